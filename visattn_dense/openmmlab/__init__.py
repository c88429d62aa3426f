"""Everything that knows OpenMMLab: mmengine, mmcv, mmsegmentation and mmdetection.

The rest of the package needs torch alone. Importing this room imports none of the four.

imports       act on a module as soon as it is imported
registration  what enters OpenMMLab's registries, and when
compat        mends of OpenMMLab's last releases, and `mmcv._ext` without a compiled mmcv
config        config files and --cfg-options
engine        training and testing
datasets      data sets, and the check of them before a training
heads         decode heads
inference     a segmentor, or a backbone, from a config and a checkpoint
schemes       'visattn://' for mmengine
"""
