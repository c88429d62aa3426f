"""What the cases of the Triton forms share: a process of their own, poisoned memory, no races, and
Triton's interpreter without what it does again and again.

For every call of one jit function by another, Triton's interpreter replaces the members of
triton.language, and never puts them back. The replacement takes milliseconds, many times as long as
the call. Once for each module is enough. It also checks every sum and product of integers for
overflow, in 64 bits.
"""
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from visattn_dense.ops.launching import INTERPRETED, recorded

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
ROOT = Path(__file__).resolve().parents[1]

MOST_SPILLS = 0 if torch.__version__ >= '2.15' else 128
"""Bytes of registers that a kernel may spill outside of loops. Older assemblers spill a few."""
SIZES = (72, 88, 1), (64, 128, 16), (104, 80, 3), (136, 72, 1)

fake_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < '2.7',
    reason='torch 2.6 asks a GPU for fake tensors too')


def check_kinds(run: Callable[[int, int, int], None]) -> None:
    """Triton compiles for one of the sizes all that it compiles for calls of `run` with several
    heights, widths and batches."""
    kinds = []
    for size in SIZES:
        kinds.append(set())
        with recorded() as found:
            run(*size)
        for each in found:
            for parameter, value in zip(each.kernel.params, each.args, strict=False):
                assert parameter.do_not_specialize or type(value) is not int, parameter.name
            kinds[-1].add((each.kernel.__name__, *sorted(each.constants.items())))
    assert set.union(*kinds) in kinds, set.union(*kinds) - kinds[0]


def run_cases(name: str) -> None:
    """Run the cases in tests/NAME in a process of their own: on the GPU where there is one, else in
    Triton's interpreter, which has to be chosen before Triton is imported."""
    env = {key: value for key, value in os.environ.items() if not key.startswith('PYTEST_')}
    # Deterministic algorithms ask cuBLAS for this.
    env['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'
    if not torch.cuda.is_available():
        env['TRITON_INTERPRET'] = '1'
    run = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist',
         f'tests/{name}'],
        cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert ' passed' in run.stdout


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside the block, memory that nothing has written to holds NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def interpret_quickly() -> None:
    """Speed up the interpreter for the rest of this process, if it is on and of a known kind."""
    if not INTERPRETED:
        return
    from triton.runtime import interpreter
    replace = getattr(interpreter, '_patch_lang', None)
    if replace is None:
        return
    done = set()

    def call(self, *args, **kwargs):
        module = self.fn.__globals__['__name__']
        if module not in done:
            done.add(module)
            replace(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
    object.__setattr__(interpreter.interpreter_builder.options, 'sanitize_overflow', False)

class Race(AssertionError):
    """Two programs of a launch use one address, and one of them writes to it."""


def forbid_races() -> None:
    """For the rest of this process, a launch in the interpreter raises a `Race` if there is one.

    The interpreter runs programs one after another, so a race gives the right numbers there. On a
    GPU it does not.
    """
    if not INTERPRETED:
        return
    from triton.runtime import interpreter
    builder, executor = type(interpreter.interpreter_builder), interpreter.GridExecutor
    uses: dict[bool, list[np.ndarray]] = {}
    program = 0

    def note(ptrs, mask, writes: bool) -> None:
        places = ptrs.data[mask.data].astype(np.int64).ravel()
        uses[writes].append(np.stack([places, np.full_like(places, program)]))

    def start(self, *index: int) -> None:
        nonlocal program
        program = np.ravel_multi_index(index, self.grid_dim)
        _start(self, *index)

    def load(self, ptrs, mask, *rest):
        note(ptrs, mask, False)
        return _load(self, ptrs, mask, *rest)

    def store(self, ptrs, value, mask, *rest):
        note(ptrs, mask, True)
        return _store(self, ptrs, value, mask, *rest)

    def launch(self, *args, **kwargs) -> None:
        uses.update({False: [], True: []})
        _launch(self, *args, **kwargs)
        written = np.concatenate(uses[True] or [np.empty((2, 0), np.int64)], 1)
        written = np.unique(written, axis=1)                         # each place and its writer
        places = written[0]
        if (places[1:] == places[:-1]).any():
            raise Race(f'{self.fn.__name__}: two programs write to one address')
        read = np.concatenate(uses[False] or [np.empty((2, 0), np.int64)], 1)
        at = np.searchsorted(places, read[0]).clip(max=max(0, len(places) - 1))
        if len(places) and ((places[at] == read[0]) & (written[1][at] != read[1])).any():
            raise Race(f'{self.fn.__name__}: a program reads what another one writes')

    _start, _load = builder.set_grid_idx, builder.create_masked_load
    _store, _launch = builder.create_masked_store, executor.__call__
    builder.set_grid_idx, builder.create_masked_load = start, load
    builder.create_masked_store, executor.__call__ = store, launch
