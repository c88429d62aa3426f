"""Released models of other projects where a run expects a checkpoint of its own."""
from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from visattn_dense.zoo import translate_checkpoint


@HOOKS.register_module()
class ForeignCheckpointHook(Hook):
    """Lets `load_from` and tools/test.py take a released model in its authors' names.

    Every run has one. A checkpoint in the model's own names passes unchanged; a foreign one that
    fills too little of the model is refused with a `UserError`.

    Args:
        min_matched: part of the model's tensors that a foreign checkpoint must fill: all, since a
            classifier left at random makes every number wrong. To train on from a released model
            with other classes, name the hook in `custom_hooks` with less.
    """

    # Before every hook that looks at what is loaded.
    priority = 'VERY_HIGH'

    def __init__(self, min_matched: float = 1.) -> None:
        self.min_matched = min_matched

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # A test-time augmentation model keeps the real one inside and loads into that.
        report = translate_checkpoint(getattr(model, 'module', model), checkpoint,
                                      min_matched=self.min_matched)
        if report is not None:
            runner.logger.info(f'The checkpoint has names of its own: {report}')
