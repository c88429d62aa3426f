"""Passes the messages of this project to the log of mmengine's current run.

Every module of this project writes to the logger `visattn_dense`. A command shows warnings on
stderr (`visattn_dense.command`). Where mmengine is imported and no command of ours runs, and in
tools/train.py and tools/test.py, the messages go to mmengine's logger, so they stand in the log
file of the run.
"""
import copy
import logging
from types import ModuleType

log = logging.getLogger('visattn_dense')


class _RunLog(logging.Handler):
    """Hands each message to mmengine's current logger, or keeps the messages until `hand_over`."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._kept: list[logging.LogRecord] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self._kept is not None:
            self._kept.append(record)
            return
        from mmengine.logging import MMLogger
        # mmengine leaves out warnings with a `msg` that came before: here the whole text.
        record = copy.copy(record)
        record.msg, record.args = record.getMessage(), None
        MMLogger.get_current_instance().handle(record)

    def keep(self) -> None:
        """Keep the messages from now on: the run has no log file yet."""
        self._kept = []

    def hand_over(self) -> None:
        """Hand over what was kept; the run has its logger now."""
        kept, self._kept = self._kept or [], None
        for record in kept:
            self.emit(record)


RUN_LOG = _RunLog()


def follow(_: ModuleType) -> None:
    """Send the messages to mmengine's logger, unless they already go elsewhere."""
    if not log.handlers:
        log.addHandler(RUN_LOG)
        log.setLevel(logging.INFO)
