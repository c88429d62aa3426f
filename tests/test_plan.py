"""benchmarks --plan: costs on a GPU that is not here."""
import pytest
import torch
from torch import Tensor, nn

from benchmarks import cli, plan, subjects
from benchmarks.options import Size
from visattn_dense.errors import UserError


class Net(nn.Module):
    """1×1 convolution, GELU, and views that cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.conv(x)).flatten(2).mT[:, :5]


class Asking(Net):
    """A pass in which torch asks a GPU that is not there, as torch 2.6 does for a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError('CUDA error: CUDA driver version is insufficient')


def test_a_torch_that_asks_a_gpu_is_named():
    with pytest.raises(UserError, match='newer torch'):
        plan.cost(Asking, 1, Size(8, 8))


@pytest.mark.parametrize(('dtype', 'casts'), [(torch.float32, 0), (torch.bfloat16, 2)])
def test_every_operator_but_views_is_counted(dtype, casts):
    """Two operators; autocast casts the image and the kernel besides."""
    found = plan.cost(Net, 2, Size(16, 32), dtype)
    pixels, size = 2 * 16 * 32, dtype.itemsize
    assert found.launches == 2 + casts
    assert found.flops == 2 * pixels * 3 * 8
    image, kernel, out = 3 * pixels, 3 * 8, 8 * pixels
    assert found.bytes == (size * (image + kernel + out + 2 * out)
                           + (casts and (4 + size) * (image + kernel)))
    assert found.floor_ms == pytest.approx(1e3 * found.bytes / plan.BYTES_PER_S)


def test_the_command_needs_no_gpu(capsys):
    assert cli.main(['--plan', '--backbones', 'EfficientViT:b0', '--sizes', '64x96']) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith('| EfficientViT b0 | 64×96 | 1 | ')
    assert not torch.is_autocast_enabled('cuda')


@pytest.mark.parametrize(('name', 'aim', 'size'), [
    ('CSWin:small', 600, Size(1024, 1024)), ('BiFormer:small', 500, Size(1024, 1024)),
    ('FLattenCSWin:tiny', 500, Size(896, 896)), ('EfficientViT:b2', 350, Size(1024, 1024)),
    ('EfficientViT:l2', 350, Size(1024, 1024)), ('T2TViT:14', 250, Size(1024, 1024))])
def test_few_launches(name, aim, size):
    """A forward pass starts few kernels: launches bound a small batch in eager mode."""
    assert plan.cost(subjects.backbone(name).make, 4, size).launches <= aim
