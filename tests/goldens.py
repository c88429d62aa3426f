"""Golden outputs of the official implementations: what they are is in tests/goldens/README.md.

A case is a file `<case>.npz`: a JSON string `meta`, and float32 arrays that the official code put
out. Neither weights nor inputs are stored. Both are drawn from seeds, here as when the case was
made. tests/goldens/ holds a part of each array, and is in every clone. `../shared/parity/cases` has
whole arrays and more cases; tests use it where it is present.

`python -m tests.goldens FOLDER CASE...` cuts whole cases of FOLDER and writes tests/goldens/.
"""
import json
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visattn_dense.layers import optimize_for_inference

COMMITTED = Path(__file__).with_name('goldens')
OPTIONAL = Path(__file__).resolve().parents[2] / 'shared' / 'parity' / 'cases'

# A longer array is committed at this many of its positions.
LIMIT = 4096


@dataclass(frozen=True)
class Golden:
    """An array of the official code, whole or at some of its positions.

    Attributes:
        shape: of the whole array.
        positions: (N,) which elements are known, as indices into the flat array; None for all.
        values: (N,) float32, the elements at `positions`.
    """

    shape: tuple[int, ...]
    positions: np.ndarray | None
    values: np.ndarray

    def error(self, out: Tensor) -> float:
        """||out − golden|| / ||golden|| over the known elements, in float64."""
        assert tuple(out.shape) == self.shape, f'{tuple(out.shape)}, golden {self.shape}'
        ours = out.detach().double().numpy().ravel()
        if self.positions is not None:
            ours = ours[self.positions]
        theirs = self.values.astype(np.float64)
        return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def sample(array: str, size: int) -> np.ndarray | None:
    """The positions, in rising order, at which an array of `size` elements is committed."""
    if size <= LIMIT:
        return None
    return np.sort(np.random.RandomState(_seed(array)).permutation(size)[:LIMIT])


def read_case(path: Path) -> tuple[dict[str, Any], dict[str, Golden]]:
    """(meta, name -> golden) of a file, a cut one (`shapes` in its meta) or a whole one."""
    with np.load(path) as file:
        meta = json.loads(str(file['meta']))
        arrays = {name: file[name] for name in file.files if name != 'meta'}
    if 'shapes' not in meta:
        return meta, {name: Golden(array.shape, None, array.ravel())
                      for name, array in arrays.items()}
    return meta, {name: Golden(tuple(shape), sample(name, int(np.prod(shape))), arrays[name])
                  for name, shape in meta['shapes'].items()}


def cut_case(source: Path, folder: Path) -> None:
    """Write the part of a whole case that is committed: the same name, in `folder`."""
    meta, goldens = read_case(source)
    assert 'shapes' not in meta, f'{source} is cut already'
    arrays = {name: golden.values if (at := sample(name, golden.values.size)) is None
              else golden.values[at] for name, golden in goldens.items()}
    meta['shapes'] = {name: golden.shape for name, golden in goldens.items()}
    np.savez_compressed(folder / source.name, meta=json.dumps(meta), **arrays)


def load_case(name: str) -> tuple[dict[str, Any], dict[str, Golden], dict[str, Tensor], Tensor]:
    """(meta, goldens, official state dict, input that asks for its gradient) of a case.

    The whole case where it is present, else the committed part. Without both the test is skipped.
    """
    path = next((path for path in (OPTIONAL / f'{name}.npz', COMMITTED / f'{name}.npz')
                 if path.is_file()), None)
    if path is None:
        pytest.skip(f'needs {name}.npz in ../shared/parity/cases')
    meta, goldens = read_case(path)
    return meta, goldens, official_state(meta), _normal(0, meta['input']).requires_grad_()


def official_state(meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """The checkpoint that the official code ran with: each tensor is drawn from its own name.

    Normal numbers: weights of two or more axes have the variance 1/fan-in (those of three axes,
    tokens and tables, 0.01), vectors called weight are near 1, other vectors near 0, running
    variances above 1. `pos_embed` is left out where it is the architecture's own table.
    """
    state = {}
    for name, shape in meta['state_dict'].items():
        if name.endswith('num_batches_tracked'):
            state[name] = torch.zeros((), dtype=torch.int64)
            continue
        if name == 'pos_embed' and 'pos_embed' in meta:
            continue
        tensor = _normal(_seed(name), shape)
        if name.endswith('running_var'):
            tensor = 1 + 0.1 * tensor.abs()
        elif len(shape) <= 1:
            tensor = 1 + 0.1 * tensor if name.endswith('weight') else 0.05 * tensor
        elif len(shape) == 3:
            tensor = 0.1 * tensor
        else:
            # Divided in float64, so that every version of NumPy and torch rounds alike.
            tensor = (tensor.double() / float(np.sqrt(np.prod(shape[1:])))).float()
        state[name] = tensor
    return state


def assert_outputs(outputs: Mapping[str, Tensor], goldens: Mapping[str, Golden],
                   tolerance: float = 1e-5) -> None:
    """Every output is within `tolerance` (relative, Frobenius) of the golden of the same name."""
    for name, out in outputs.items():
        error = goldens[name].error(out)
        assert error < tolerance, f'{name}: relative error {error:.2e}'


@torch.no_grad()
def assert_optimized_outputs(model: nn.Module, x: Tensor, goldens: Mapping[str, Golden]) -> None:
    """The outputs are the golden ones too after `optimize_for_inference`; it changes the model."""
    outs = optimize_for_inference(model)(x)
    assert_outputs({f'out{i}': out for i, out in enumerate(outs)}, goldens)


def assert_gradient(outputs: Iterable[Tensor], x: Tensor, golden: Golden,
                    tolerance: float = 1e-4) -> None:
    """The input gradient of sum_i mean(out_i · w_i) is within `tolerance` of the golden one."""
    loss = sum((out * _normal(100 + i, out.shape)).mean() for i, out in enumerate(outputs))
    grad, = torch.autograd.grad(loss, x)
    error = golden.error(grad)
    assert error < tolerance, f'gradient: relative error {error:.2e}'


def _seed(name: str) -> int:
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def _normal(seed: int, shape: Iterable[int]) -> Tensor:
    """Standard-normal float32. NumPy promises that RandomState draws the same numbers for ever."""
    numbers = np.random.RandomState(seed).standard_normal(tuple(shape))
    return torch.from_numpy(np.asarray(numbers, np.float32))


if __name__ == '__main__':
    for case in sys.argv[2:]:
        cut_case(Path(sys.argv[1]) / f'{case}.npz', COMMITTED)
