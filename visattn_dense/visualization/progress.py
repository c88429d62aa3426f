"""Following a training run of another process: one line, with the time that is left."""
from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from .curve import newest_scalars, read_scalars


class ProgressLine:
    """Turns the growing training record of a run into a line of progress.

    On a terminal the line is redrawn in place; elsewhere (a log, a pipe) a new one is written for
    each tenth of the work.

    Args:
        work_dir: of the run.
        total: iterations of the whole run.
        out: where the line goes; stdout where None.
        clock: seconds, monotonic.
    """

    def __init__(self, work_dir: Path, total: int, out: TextIO | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.work_dir, self.total = work_dir, total
        self.out = out or sys.stdout
        self.clock = clock
        self.begun = clock()
        self.first: tuple[int, float] | None = None
        self.shown = -1
        self.finished = False
        self.on_terminal = self.out.isatty()

    def update(self) -> None:
        """Look at the record again and redraw, or write where a tenth was completed."""
        record = newest_scalars(self.work_dir)
        entries = read_scalars(record) if record else []
        train = [entry for entry in entries if 'loss' in entry]
        scores = [entry['mIoU'] for entry in entries if 'mIoU' in entry]
        done = self.total if self.finished else train[-1]['iter'] if train else 0
        tenth = 10 * done // self.total
        if not self.on_terminal and tenth <= self.shown:
            return
        self.shown = tenth
        text = self._describe(done, train[-1]['loss'] if train else None, scores)
        if self.on_terminal:
            # Back to the start of the line, and clear what was longer before.
            self.out.write(f'\r{text}\x1b[K')
        else:
            self.out.write(text + '\n')
        self.out.flush()

    def close(self, finished: bool) -> None:
        """Leave the last line standing; where the run came to its end, it says so.

        The last iterations need not be in the record: it has one entry for several of them.
        """
        if finished:
            self.finished = True
            self.shown = -1
            self.update()
        if self.on_terminal:
            self.out.write('\n')
            self.out.flush()

    def _describe(self, done: int, loss: float | None, scores: list[float]) -> str:
        now = self.clock()
        if loss is None:
            return f'  starting ({now - self.begun:.0f} s)'
        if self.first is None:
            # The first iterations include the warming up of everything.
            self.first = (done, now)
        start, since = self.first
        filled = 24 * done // self.total
        text = f'  [{"#" * filled}{"." * (24 - filled)}] {done}/{self.total}  loss {loss:.2f}'
        if scores:
            text += f'  mIoU {scores[-1]:.1f}'
        if done >= self.total:
            return f'{text}  {minutes(now - self.begun)}'
        if done > start:
            text += f'  {minutes((now - since) / (done - start) * (self.total - done))} left'
        return text


def minutes(seconds: float) -> str:
    """'1:05' for 65 seconds."""
    whole = round(seconds)
    return f'{whole // 60}:{whole % 60:02d}'
