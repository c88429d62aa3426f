"""End a training whose metric no longer improves."""
from __future__ import annotations

from mmengine.hooks import EarlyStoppingHook
from mmengine.registry import HOOKS

_STATE = 'early_stop'


@HOOKS.register_module()
class EarlyStopHook(EarlyStoppingHook):
    """mmengine's EarlyStoppingHook for configs that are also tested, and for runs that are resumed.

    mmengine's hook refuses every run without a training loop, so tools/test.py could not take the
    config. In a resumed run it also forgets how many validations it has waited. The arguments are
    those of `EarlyStoppingHook`; `patience` counts validations.

    A checkpoint is written before the validation of its iteration, and once more after it if its
    score is the best (`save_best`). So a resumed run knows all validations before this one, and
    this one if it was the best.
    """

    # Before the checkpoint of the best score.
    priority = 'LOW'

    def before_run(self, runner) -> None:
        pass

    def before_train(self, runner) -> None:
        super().before_run(runner)
        saved = runner.message_hub.get_info(_STATE)
        if saved is not None:
            self.wait_count, self.best_score = saved

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        super().after_val_epoch(runner, metrics)
        runner.message_hub.update_info(_STATE, [self.wait_count, float(self.best_score)])
