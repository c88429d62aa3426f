"""Notices that OpenMMLab's own code causes on every run and that no user can act upon.

Each is silenced by its exact text and place; warnings about what a user wrote stay.
"""

from __future__ import annotations

import warnings
from types import ModuleType

_FILE_CLIENT_NOTICES = (
    '"FileClient" will be deprecated in future.',
    '"HardDiskBackend" is the alias of "LocalBackend"',
)


def drop_file_client_notices(file_client: ModuleType) -> None:
    """mmengine's checkpoint and logger hooks create the FileClient that mmengine warns about.

    Args:
        file_client: `mmengine.fileio.file_client`.
    """
    print_log = file_client.print_log

    def print_log_of_others(msg: object, *args: object, **kwargs: object) -> None:
        if not str(msg).startswith(_FILE_CLIENT_NOTICES):
            print_log(msg, *args, **kwargs)

    file_client.print_log = print_log_of_others


def drop_build_loss_notice(builder: ModuleType) -> None:
    """mmseg's decode heads call the `build_loss` that mmseg warns about.

    Args:
        builder: `mmseg.models.builder`.
    """
    warnings.filterwarnings(
        'ignore', r'``build_loss`` would be deprecated soon', UserWarning, r'mmseg\.models\.builder'
    )


def drop_autocast_notice(mmdet: ModuleType) -> None:
    """mmdet calls `torch.cuda.amp.autocast`, which torch 2.4 renamed.

    Args:
        mmdet: the package.
    """
    warnings.filterwarnings(
        'ignore', r'`torch\.cuda\.amp\.autocast\(args\.\.\.\)` is deprecated', FutureWarning,
        r'mmdet\.'
    )
