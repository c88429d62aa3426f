"""Options that both commands read in the same way: image sizes, devices and dtypes."""
from __future__ import annotations

import re
from typing import NamedTuple

import torch

from visattn_dense.errors import UserError


class Size(NamedTuple):
    """Height and width of an image in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f'{self.height}×{self.width}'


def parse_size(text: str, least: int) -> Size:
    """'512' or 'HEIGHTxWIDTH' as a size with sides of at least `least` pixels.

    Raises:
        UserError: something else, or a shorter side.
    """
    found = re.fullmatch(r'(\d+)(?:[x×](\d+))?', text)
    size = Size(int(found[1]), int(found[2] or found[1])) if found else Size(0, 0)
    if min(size) < least:
        raise UserError(f'a size is a number of pixels or HEIGHTxWIDTH, at least {least}, got '
                        f'{text!r}')
    return size


def parse_place(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype of the computation.

    Raises:
        UserError: the device is not cpu or cuda, or not in this machine; or float16 on a CPU.
    """
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UserError(f'device {device!r} is unknown; take cpu, cuda or cuda:1') from error
    # The timing and the memory count know only these two.
    if place.type not in ('cpu', 'cuda') or place.type == 'cuda' and (place.index or 0) >= (
            torch.cuda.device_count()):
        raise UserError(f'device {device!r} is not available here; take cpu'
                        + (' or cuda' if torch.cuda.is_available() else ''))
    if dtype == 'float16' and place.type == 'cpu':
        raise UserError('CPUs do not compute in float16; take --dtype bfloat16')
    return place, getattr(torch, dtype)
