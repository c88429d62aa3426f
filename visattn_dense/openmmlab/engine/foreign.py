"""Whether a checkpoint belongs to the model that a run is about to fill with it."""
from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop

from visattn_dense.checkpoints.pretrained import require_finite
from visattn_dense.openmmlab.engine.resume import check_training_state
from visattn_dense.openmmlab.engine.resumed_config import compare
from visattn_dense.zoo.segmentor import fit_whole, is_native

# Of a model's tensors, as with init_cfg: what a new training may begin without.
_LEAST_OF_OUR_OWN = 0.95


@HOOKS.register_module()
class ForeignCheckpointHook(Hook):
    """Lets `load_from` and tools/test.py take a released model in its authors' names, and refuses
    a checkpoint that does not belong to the model.

    Every run has one. mmengine loads by name and goes on with random weights where nothing fits.

    - A test needs every tensor of the model, auxiliary heads excepted.
    - A training that begins from `load_from` needs 95 % of them. The last layers of heads may have
      another number of classes; they begin anew, and the log names them.
    - A resumed training needs every tensor, and state that belongs to the run (see
      `visattn_dense.openmmlab.engine.resume.check_training_state`).
    - All numbers have to be finite.

    Args:
        min_matched: part of the model's tensors that a checkpoint with other names must fill: all,
            since a classifier left at random makes every number wrong. To train on from a released
            model with other classes, name the hook in `custom_hooks` with less.
    """

    # Before every hook that looks at what is loaded.
    priority = 'VERY_HIGH'

    def __init__(self, min_matched: float = 1.) -> None:
        self.min_matched = min_matched

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # A test-time augmentation model keeps the real one inside and loads into that.
        model = getattr(model, 'module', model)
        # Built by train() alone; before that it is the loop's config.
        training = isinstance(runner._train_loop, BaseLoop)
        origin = runner._load_from or 'the checkpoint'
        native = is_native(model, checkpoint)
        resumed = training and bool(runner._resume)
        least = 1. if resumed or not training else (
            min(self.min_matched, _LEAST_OF_OUR_OWN) if native else self.min_matched)
        filled, report = fit_whole(model, checkpoint, origin=origin, min_matched=least,
                                   new_classes=training and native and not resumed,
                                   training=training)
        require_finite(filled, origin)
        if resumed:
            runner.schedule_changed = compare(runner, checkpoint.get('meta') or {}, origin)
            if runner.schedule_changed:
                # mmengine would restore these over the config.
                checkpoint.pop('param_schedulers', None)
            check_training_state(runner, checkpoint, origin)
        if not native:
            checkpoint['state_dict'] = filled
            runner.logger.info(f'The checkpoint has names of its own: {report}')
        elif report.fresh or report.missing or report.mismatched:
            runner.logger.info(f'The checkpoint fills the model, all but a part: {report}')
