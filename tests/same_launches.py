"""Run by test_no_gpu: does every prepared launch pass Triton what Triton's own launch passes?

The process has a GPU whose kernels do nothing.
"""
import os
import sys
from typing import Any

import torch
from torch import Tensor

from visattn_dense.backbones import BiFormer, CSWin, EfficientViT, FLattenCSWin
from visattn_dense.ops.launching import Launch

calls: list[tuple[Any, ...]] = []
alike: list[str] = []
prepared = Launch._launch


def watch(compiled: Any) -> None:
    """Note the arguments of the launcher of a compiled kernel."""
    if hasattr(compiled, 'is_watched'):
        return
    run, compiled.is_watched = compiled.run, True

    def noting(*args: Any) -> None:
        calls.append(args)
        run(*args)

    # `run` is a property in new versions of Triton.
    setattr(compiled, 'run' if 'run' in vars(compiled) else '_run', noting)


def both(self: Launch, device: int, tensors: tuple[Tensor | None, ...]) -> None:
    own = self.kernel[self.grid]
    watch(own(*tensors, *self.numbers, **self.constants))
    prepared(self, device, tensors)                  # looks the kernel up where it is new
    calls.clear()
    own(*tensors, *self.numbers, **self.constants)
    prepared(self, device, tensors)
    expected, found = calls
    # Grid, stream and function, then the arguments; between them, what Triton says of the kernel.
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        if i not in (5, 6, 7, 8):
            assert a is b or type(a) is type(b) and a == b, (self.kernel.__name__, i, a, b)
    alike.append(self.kernel.__name__)


Launch._launch = both
for model in (CSWin('small'), BiFormer('small', soft_routing=True, diff_routing=True),
              BiFormer('small'), FLattenCSWin('tiny'), EfficientViT('b2')):
    x = torch.zeros(2, 3, 160, 192, device='cuda')
    for training in (False, True):
        model.cuda().train(training)
        with torch.set_grad_enabled(training), torch.autocast('cuda', torch.bfloat16):
            outs = model(x)
        if training:
            sum(out.float().sum() for out in outs).backward()
torch.cuda.synchronize()
print(len(alike), *sorted(set(alike)))
sys.stdout.flush()
os._exit(0)
