"""The findings of a data set check: as data, as a table for people and as JSON."""
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from visattn_dense.errors import few

SHOWN = 5


@dataclass
class Problem:
    """One fault.

    what: the fault, without the file. fix: what to do. files: the files, one entry for each, with
    the wrong value in parentheses. blocks: True: training would stop, or learn from wrong labels.
    False: the data are only poorer than they look.
    """

    what: str
    fix: str
    files: list[str] = field(default_factory=list)
    blocks: bool = True

    def __str__(self) -> str:
        where = few(self.files, SHOWN)
        return f'{self.what}{": " if where else ""}{where}\n    fix: {self.fix}'


@dataclass
class DatasetReport:
    """The check of one dataset of one split.

    images: number of images. read: number of opened images. sizes: (width, height) in pixels of the
    opened images. classes: names. counts: class index -> pixels (segmentation) or boxes
    (detection). ignored: pixels of no class. notes: useful facts that are not faults. fingerprints:
    of the opened images by their paths, for the search for copies (`check_duplicates`).
    """

    split: str
    name: str
    images: int = 0
    read: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    counts: Counter[int] = field(default_factory=Counter)
    ignored: int = 0
    unit: str = 'pixels'
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fingerprints: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def add(self, what: str, fix: str, where: Iterable[str] | str = (), *,
            blocks: bool = True) -> None:
        """Note a problem; the same fault in several files becomes one problem."""
        files = [where] if isinstance(where, str) else list(where)
        for problem in self.problems:
            if (problem.what, problem.fix) == (what, fix):
                problem.files += files
                return
        self.problems.append(Problem(what, fix, files, blocks))

    def size_summary(self) -> dict[str, list[float]]:
        """[width, height] in pixels as min, median and max, each side on its own."""
        if not self.sizes:
            return {}
        sides = list(zip(*self.sizes, strict=True))
        return {name: [how(side) for side in sides]
                for name, how in (('min', min), ('median', median), ('max', max))}

    def histogram(self) -> dict[str, float]:
        """Class name -> percent of the labelled and ignored pixels, or of the boxes."""
        total = sum(self.counts.values()) + self.ignored
        if not total:
            return {}
        names = self.classes or tuple(str(i) for i in range(max(self.counts, default=-1) + 1))
        table = {name: 100 * self.counts[i] / total for i, name in enumerate(names)}
        if self.ignored:
            table['(ignored)'] = 100 * self.ignored / total
        return table

    def as_dict(self) -> dict:
        """The report as values for JSON."""
        return dict(split=self.split, dataset=self.name, images=self.images, read=self.read,
                    sizes=self.size_summary(), unit=self.unit, histogram=self.histogram(),
                    problems=[dict(what=p.what, fix=p.fix, files=p.files, blocks=p.blocks)
                              for p in self.problems],
                    notes=self.notes)

    def as_table(self) -> str:
        """A readable table; classes in falling order of frequency, two to a line."""
        lines = [f'{self.split}: {self.name}',
                 f'  images  {self.images}' + (f' ({self.read} read)' if self.read else '')]
        for name, (width, height) in self.size_summary().items():
            lines.append(f'  size    {name:<6} {width:g} x {height:g}')
        histogram = self.histogram()
        present = sorted(((share, name) for name, share in histogram.items() if share),
                         key=lambda row: (-row[0], row[1]))
        cells = [f'{name.strip():<24.24}{share:7.2f} %' for share, name in present]
        if cells:
            lines.append(f'  classes, percent of {self.unit}:')
        for left in range(0, len(cells), 2):
            lines.append('    ' + '    '.join(cells[left:left + 2]))
        absent = [name.strip() for name, share in histogram.items() if not share]
        if absent:
            shown = ', '.join(absent[:12]) + (', ...' if len(absent) > 12 else '')
            lines.append(f'  never seen: {len(absent)} of {len(self.classes)} classes ({shown})')
        lines += [f'  note: {note}' for note in self.notes]
        lines += [f'  PROBLEM: {problem}' for problem in self.problems]
        if not self.problems:
            lines.append('  ok')
        return '\n'.join(lines)
