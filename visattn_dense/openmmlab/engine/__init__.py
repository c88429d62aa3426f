"""Training and testing: one launcher for mmseg and mmdet, and runs that do not lose work.

Importing this package enters its runner, hooks, batch sampler and layer decay in
mmengine's root registries.
"""
from visattn_dense.openmmlab.engine.checkpoint_hook import AtomicCheckpointHook
from visattn_dense.openmmlab.engine.data_stream import DrawBatchSampler
from visattn_dense.openmmlab.engine.early_stop import EarlyStopHook
from visattn_dense.openmmlab.engine.foreign import ForeignCheckpointHook
from visattn_dense.openmmlab.engine.layer_decay import LayerDecayConstructor
from visattn_dense.openmmlab.engine.nonfinite import NonFiniteLossError, NonFiniteLossHook
from visattn_dense.openmmlab.engine.pictures import PicturesHook
from visattn_dense.openmmlab.engine.runner import DenseRunner
from visattn_dense.openmmlab.engine.seeding import IterationSeedHook
from visattn_dense.openmmlab.engine.speed import SpeedHook, SpeedLogProcessor
from visattn_dense.openmmlab.engine.validations import ValidationRecordHook

__all__ = ['AtomicCheckpointHook', 'DenseRunner', 'DrawBatchSampler',
           'EarlyStopHook', 'ForeignCheckpointHook', 'IterationSeedHook', 'LayerDecayConstructor',
           'NonFiniteLossError', 'NonFiniteLossHook', 'PicturesHook', 'SpeedHook',
           'SpeedLogProcessor', 'ValidationRecordHook']
