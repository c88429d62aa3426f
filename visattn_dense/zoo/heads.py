"""The heads of released models: from the authors' tensor names to the names here.

The heads themselves are in mmsegmentation or in `visattn_dense.openmmlab.heads`.
"""
from visattn_dense.checkpoints import rename
from visattn_dense.checkpoints.matching import StateDict


def efficientvit_seg(state: StateDict) -> StateDict:
    """The head of EfficientViT-Seg. The official names count the maps from the coarsest."""
    outputs = {name.split('.')[3] for name in state if name.startswith('output_ops.0.op_list.')}
    classifier = max(outputs, default='0', key=int)
    count = len({name.split('.')[1] for name in state if name.startswith('input_ops.')})
    return rename(
        # The input that is not resized is a single layer; the other inputs are lists of layers.
        (r'^input_ops\.(\d+)\.(?:op_list\.0\.)?',
         lambda match: f'inputs.{count - 1 - int(match[1])}.'),
        (r'^middle\.op_list\.', 'blocks.'),
        (rf'^output_ops\.0\.op_list\.{classifier}\.conv\.', 'conv_seg.'),
        (r'^output_ops\.0\.op_list\.0\.', 'expand.'))(state)
