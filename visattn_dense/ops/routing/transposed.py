"""The transpose of a routing: for each region, the list of the regions that attend to it."""
from typing import NamedTuple

import torch
from torch import Tensor

from ..launching import Launch, empty, once_for_a_size


class Routing(NamedTuple):
    """The transpose of a routing (B, R, K).

    Rows count the regions of all images: image · R + region. The lists of all rows follow one
    another.

    Attributes:
        positions: (B·R·K,) int64, for each entry of the lists its position in index.flatten(). The
            positions of a list rise.
        askers: (B·R·K,) int32, for each entry of the lists the region, counted in its image.
        segments: (segments,) int32, the row of each segment of a list; B·R where there is none.
        lists: (B·R, 4) int32, for each row the start and the length of its list, its first segment
            and the number of its segments.
    """
    positions: Tensor
    askers: Tensor
    segments: Tensor
    lists: Tensor


def most_segments(rows: int, regions: int) -> int:
    """How many segments the lists may have, for R regions of an image. See `transpose_routing`."""
    return rows // regions * (regions + regions // 2)


def transpose_routing(index: Tensor) -> Routing:
    """Transpose a routing by two Triton kernels.

    A list longer than 2 K is cut into equal segments of more than K and at most 2 K entries, so
    that no program has to sum over a very long list. Other lists are one segment.

    Args:
        index: (B, R, K) int64, contiguous: the regions that each region attends to.
    """
    batch, regions, _ = index.shape
    rows = batch * regions
    counts, askers, segments, lists = (empty((n,), index, torch.int32) for n in (
        rows, index.numel(), most_segments(rows, regions), 4 * rows))
    found = Routing(empty((index.numel(),), index), askers, segments, lists.view(rows, 4))
    count, fill = _launches(index.shape)
    count(index, counts)
    fill(index, counts, *found)
    return found


@once_for_a_size
def _launches(shape: torch.Size) -> tuple[Launch, Launch]:
    from .triton_kernels import asker_count_kernel, asker_list_kernel
    batch, regions, listed = shape
    return (Launch(asker_count_kernel, (batch, -(-regions // 16)), regions, listed, BLOCK_R=16,
                   BLOCK=256, num_warps=4),
            Launch(asker_list_kernel, (batch * regions,), regions, listed, batch * regions,
                   BLOCK=1024, num_warps=4))
