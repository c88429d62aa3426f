"""mmengine's AmpOptimWrapper on the names torch has today, and on a CPU."""

from __future__ import annotations

from types import ModuleType


def use_torch_amp(wrapper: ModuleType) -> None:
    """Build `torch.amp.GradScaler` for the device at hand instead of `torch.cuda.amp.GradScaler`.

    On a machine without an accelerator, mmengine refuses mixed precision although torch has
    bfloat16 autocast and a gradient scaler for the CPU; the refusal is lifted there. float16 on a
    CPU is still refused, by mmengine's autocast.

    Args:
        wrapper: `mmengine.optim.optimizer.amp_optimizer_wrapper`.
    """
    import torch

    class GradScaler(torch.amp.GradScaler):
        def __init__(self, **settings: object) -> None:
            super().__init__('cuda' if torch.cuda.is_available() else 'cpu', **settings)

    # npu and mlu bring scalers of their own, which stay. onedl-mmengine wraps torch.amp's.
    known = getattr(wrapper.GradScaler, 'func', wrapper.GradScaler)
    if known.__module__.startswith(('torch.cuda', 'torch.amp')):
        wrapper.GradScaler = GradScaler
    wrapper.is_cuda_available = lambda: True
