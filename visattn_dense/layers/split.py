"""Soft split (T2T-ViT, arXiv 2101.11986, §3.1): overlapping patches of a map become tokens."""
import torch.nn.functional as F
from torch import Tensor, nn


class SoftSplit(nn.Module):
    """Patches as tokens, without parameters.

    Args:
        kernel_size, stride, padding: of the patches, as for a convolution.
    """

    def __init__(self, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H', W', C · k²), channel by channel."""
        patches = F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)
        return patches.transpose(1, 2).unflatten(1, self.map_size(x))

    def map_size(self, x: Tensor) -> tuple[int, int]:
        """(H', W') of the tokens from the map x, (B, C, H, W)."""
        height, width = ((size + 2 * self.padding - self.kernel_size) // self.stride + 1
                         for size in x.shape[2:])
        return height, width

    def extra_repr(self) -> str:
        return f'{self.kernel_size}, stride={self.stride}, padding={self.padding}'


class ProjectsSplit:
    """A second base class, beside nn.Module, of a module that begins with linear(norm(split(x))).

    Attributes:
        split: the soft split, or nn.Identity where the module is given tokens.
        projection: the names of the norm ('' for none) and of the linear layer.
    """
    split: nn.Module
    projection: tuple[str, str]
