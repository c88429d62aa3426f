"""Golden outputs of the official implementations, from ../shared/parity where it is present."""
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visattn_dense.layers import optimize_for_inference

PARITY = Path(__file__).resolve().parents[2] / 'shared' / 'parity'

needs_goldens = pytest.mark.skipif(not PARITY.is_dir(), reason='needs ../shared/parity')


def parity() -> ModuleType:
    """The module that reads the cases."""
    spec = importlib.util.spec_from_file_location('parity', PARITY / 'parity.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_case(name: str) -> tuple[dict, dict[str, np.ndarray], dict[str, Tensor], Tensor]:
    """(meta, golden arrays, official state dict, input that asks for its gradient)."""
    module = parity()
    meta, arrays = module.load(name)
    state = {k: torch.from_numpy(np.asarray(v))
             for k, v in module.official_state_dict(meta).items()}
    return meta, arrays, state, torch.from_numpy(module.make_input(meta['input'])).requires_grad_()


def assert_outputs(outputs: dict[str, Tensor], arrays: dict[str, np.ndarray],
                   tolerance: float = 1e-5) -> None:
    """Every output is within `tolerance` (relative, Frobenius) of the golden of the same name."""
    module = parity()
    for name, out in outputs.items():
        assert tuple(out.shape) == arrays[name].shape, name
        error = module.relative_error(out.detach(), arrays[name])
        assert error < tolerance, f'{name}: relative error {error:.2e}'


@torch.no_grad()
def assert_optimised_outputs(model: nn.Module, x: Tensor, arrays: dict[str, np.ndarray]) -> None:
    """The outputs are the golden ones too after `optimize_for_inference`; it changes the model."""
    outs = optimize_for_inference(model)(x)
    assert_outputs({f'out{i}': out for i, out in enumerate(outs)}, arrays)


def assert_gradient(outputs: list[Tensor], x: Tensor, golden: np.ndarray,
                    tolerance: float = 1e-4) -> None:
    """The input gradient of sum_i mean(out_i · w_i) is within `tolerance` of the golden one."""
    module = parity()
    loss = sum((out * torch.from_numpy(module.make_cotangent(out.shape, i))).mean()
               for i, out in enumerate(outputs))
    grad, = torch.autograd.grad(loss, x)
    error = module.relative_error(grad, golden)
    assert error < tolerance, f'gradient: relative error {error:.2e}'
