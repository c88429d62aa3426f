"""Every process of a test writes the metrics to one file at once, and a reader can meet half of
two texts."""

from __future__ import annotations

from types import ModuleType


def write_metrics_once(logger_hook: ModuleType) -> None:
    """Let the main process alone write the metrics. All processes have the same ones.

    Args:
        logger_hook: `mmengine.hooks.logger_hook`.
    """
    from mmengine.dist import master_only

    logger_hook.dump = master_only(logger_hook.dump)
