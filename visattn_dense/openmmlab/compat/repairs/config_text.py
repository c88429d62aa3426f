"""A training asks mmengine again and again for the text of the same config: each log, file and
checkpoint gets a copy. yapf lays the text out anew each time: 0.2 to 2 seconds."""

from __future__ import annotations

import functools
from types import ModuleType


def format_once(config: ModuleType) -> None:
    """Keep what yapf made of the last texts. A config that changed has another text.

    Args:
        config: `mmengine.config.config`.
    """
    format_code = config.FormatCode

    @functools.lru_cache(maxsize=8)
    def formatted(text: str, style: tuple, options: tuple) -> tuple[str, bool]:
        return format_code(text, style_config=dict(style), **dict(options))

    def format_or_recall(text: str, *, style_config: dict, **options: bool) -> tuple[str, bool]:
        return formatted(text, tuple(style_config.items()), tuple(options.items()))

    config.FormatCode = format_or_recall
