"""Everything that knows OpenMMLab: mmengine, mmcv, mmsegmentation and mmdetection.

The rest of the package needs torch alone. Importing this room imports none of the four.

imports       act on a module as soon as it is imported
registration  what enters OpenMMLab's registries, and when
compat        mends of OpenMMLab's last releases, and `mmcv._ext` without a compiled mmcv
config        config files and --cfg-options
engine        training and testing
datasets      data sets, and the check of them before a training
heads         decode heads
inference     a segmentor or detector at work, from a config and a checkpoint
export        a segmentor as one file that computes without mmsegmentation
parity        whether such a file computes what the model computes
backbone      the backbone of a config's model, and an image as the config prepares it
run_log       the messages of this project in the log of mmengine's run
schemes       'visattn://' for mmengine
"""
