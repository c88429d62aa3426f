"""Check that a checkpoint belongs to the model before a run loads the checkpoint."""
from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop

from visattn_dense.checkpoints.matching import unwrap
from visattn_dense.checkpoints.pretrained import require_finite
from visattn_dense.errors import few
from visattn_dense.openmmlab.engine.resume import cannot_resume, check_training_state
from visattn_dense.openmmlab.engine.resumed_config import begins_elsewhere, compare
from visattn_dense.zoo.segmentor import is_native, match_parts, place_weights, require_fit

# The fraction of a model's tensors that a new training needs from load_from, as with init_cfg.
_LEAST_OF_OUR_OWN = 0.95


@HOOKS.register_module()
class ForeignCheckpointHook(Hook):
    """Lets `load_from` and tools/test.py load a released model with its authors' names, and refuses
    a checkpoint that does not belong to the model.

    Every run has this hook. mmengine alone loads by name; if no name fits, mmengine continues with
    random weights.

    - A test needs every tensor of the model, except auxiliary heads.
    - A training that begins from `load_from` needs 95 % of the tensors. The last layers of heads
      may have another number of classes; then these layers begin anew, and the log names them.
    - A resumed training needs every tensor, and state that belongs to the run (see
      `visattn_dense.openmmlab.engine.resume.check_training_state`).
    - All numbers have to be finite.

    Args:
        min_matched: fraction of the model's tensors that a checkpoint with other names must fill.
            By default all tensors: a classifier with random weights makes every number wrong. To
            train from a released model with other classes, list the hook in `custom_hooks` with a
            smaller fraction.
    """

    # Before every hook that looks at what is loaded.
    priority = 'VERY_HIGH'

    def __init__(self, min_matched: float = 1.) -> None:
        self.min_matched = min_matched

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # A model for test-time augmentation holds the real model, and the real model is loaded.
        model = getattr(model, 'module', model)
        # Only train() builds the training loop; otherwise `_train_loop` is the loop's config.
        training = isinstance(runner._train_loop, BaseLoop)
        origin = runner._load_from or 'the checkpoint'
        state = unwrap(checkpoint)
        filled, report = match_parts(model, state)
        native = is_native(model, state, filled)
        resumed = training and bool(runner._resume)
        least = 1. if resumed or not training else (
            min(self.min_matched, _LEAST_OF_OUR_OWN) if native else self.min_matched)
        require_fit(model, report, origin=origin, min_matched=least, training=training,
                    new_classes=training and native and not resumed)
        require_finite(filled, origin)
        if resumed:
            if absent := [name for name in report.fresh if name.startswith('auxiliary_head')]:
                raise cannot_resume(origin, f'it lacks {few(absent)}')
            runner.schedule_changed = compare(runner, checkpoint.get('meta') or {}, origin)
            if runner.schedule_changed:
                # mmengine would restore these over the config.
                checkpoint.pop('param_schedulers', None)
            check_training_state(runner, checkpoint, origin)
            if not runner.schedule_changed:
                runner.schedule_changed = begins_elsewhere(runner, checkpoint.get('optimizer'))
        # EMAHook, unlike the loader, compares the names as they are.
        own = {name.removeprefix('module.'): tensor for name, tensor in state.items()}
        place_weights(checkpoint, own if native else filled)
        if not native:
            runner.logger.info(f'The checkpoint has names of its own: {report}')
        elif report.fresh or report.missing or report.mismatched:
            runner.logger.info(f'The checkpoint fills the model, all but a part: {report}')
