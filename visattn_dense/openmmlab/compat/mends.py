"""The mends, as data. Each says what breaks without the mend, upstream's issue and the versions.

OpenMMLab's last releases are mmengine 0.10.7, mmcv 2.1.0 (the last version that mmdet 3.3.0 and
mmsegmentation 1.2.2 accept), mmdet 3.3.0 and mmsegmentation 1.2.2. The forks of the same modules
have higher versions. A later release may contain its own repair, so every range ends at the tested
version.
"""

from __future__ import annotations

import pkgutil

from visattn_dense.openmmlab.compat.mend import Mend
from visattn_dense.openmmlab.compat.repairs import (
    amp,
    class_weights,
    config_text,
    find_loader,
    near_names,
    numpy_names,
    one_writer,
    quiet,
    safe_resume,
)

_MMENGINE = {'mmengine|mmengine-lite|onedl-mmengine': '>=0.8,<=0.10.12'}
_MMCV = {'mmcv|mmcv-lite|onedl-mmcv': '>=2.0,<=2.3.6'}
_MMSEG = {'mmsegmentation|onedl-mmsegmentation': '>=1.0,<=1.4.2'}
_MMDET = {'mmdet|onedl-mmdetection': '>=3.0,<=3.5.1'}


def _no_find_loader() -> bool:
    return not hasattr(pkgutil, 'find_loader')


MENDS: tuple[Mend, ...] = (
    Mend(
        name='safe-resume',
        what='torch.load refuses the training checkpoints of mmengine, and mmengine runs code from '
        'files that it downloads; both are read as plain values, and nothing of a file runs',
        issue='https://github.com/open-mmlab/mmengine/issues/1655',
        versions={**_MMENGINE, 'torch': '>=2.6'},
        module='mmengine.runner.checkpoint',
        repair=safe_resume.read_by_one_reader,
    ),
    Mend(
        name='near-names',
        what='a misspelt `type` in a config is answered with the closest registered names',
        issue='https://github.com/open-mmlab/mmsegmentation/issues/3582',
        versions=_MMENGINE,
        module='mmengine.registry.registry',
        repair=near_names.name_near_types,
    ),
    Mend(
        name='config-text',
        what='mmengine lays out the text of the config anew for every log, file and checkpoint of '
        'a training, 0.2 to 2 seconds each time; the same text is laid out once',
        issue='https://github.com/open-mmlab/mmcv/issues/2466',
        versions=_MMENGINE,
        module='mmengine.config.config',
        repair=config_text.format_once,
    ),
    Mend(
        name='one-writer',
        what='each process of a distributed test writes the metrics to the same file at the same '
        'time, and the file can be damaged; the main process alone writes',
        issue='https://github.com/open-mmlab/mmengine/pull/124',
        versions=_MMENGINE,
        module='mmengine.hooks.logger_hook',
        repair=one_writer.write_metrics_once,
    ),
    Mend(
        name='find-loader-mmengine',
        what='mmengine looks for mmcv._ext with pkgutil.find_loader, which Python 3.14 removed',
        issue='https://github.com/python/cpython/issues/97850',
        versions=_MMENGINE,
        module='mmengine.utils.dl_utils.misc',
        repair=find_loader.use_find_spec,
        needed=_no_find_loader,
    ),
    Mend(
        name='find-loader-mmcv',
        what='mmcv looks for mmcv._ext with pkgutil.find_loader, which Python 3.14 removed',
        issue='https://github.com/python/cpython/issues/97850',
        versions=_MMCV,
        module='mmcv.utils.ext_loader',
        repair=find_loader.use_find_spec,
        needed=_no_find_loader,
    ),
    Mend(
        name='amp',
        what='AmpOptimWrapper uses the deprecated torch.cuda.amp.GradScaler (a warning on every '
        'run) and refuses to run without an accelerator; torch.amp.GradScaler serves both',
        issue='https://github.com/open-mmlab/mmengine/pull/1675',
        versions={**_MMENGINE, 'torch': '>=2.4'},
        module='mmengine.optim.optimizer.amp_optimizer_wrapper',
        repair=amp.use_torch_amp,
    ),
    Mend(
        name='class-weights',
        what="mmseg's cross entropy with class weights looks up a weight for ignored pixels and "
        'padding, and ends with an IndexError; ignored pixels count as they do without weights',
        issue='https://github.com/open-mmlab/mmsegmentation/issues/3734',
        versions=_MMSEG,
        module='mmseg.models.losses.cross_entropy_loss',
        repair=class_weights.average_with_ignored_pixels,
    ),
    Mend(
        name='numpy-names-ytvis',
        what="mmdet's evaluation of YouTube-VIS uses np.float, which NumPy 1.24 removed",
        issue='https://numpy.org/doc/stable/release/1.24.0-notes.html',
        versions={**_MMDET, 'numpy': '>=1.24'},
        module='mmdet.evaluation.functional.ytviseval',
        repair=numpy_names.give_removed_names,
    ),
    Mend(
        name='numpy-names-text',
        what="mmdet's text prompts for training use np.long, which NumPy 1.24 to 1.26 lack",
        issue='https://numpy.org/doc/stable/release/1.24.0-notes.html',
        versions={'mmdet|onedl-mmdetection': '>=3.3,<=3.5.1', 'numpy': '>=1.24,<2'},
        module='mmdet.datasets.transforms.text_transformers',
        repair=numpy_names.give_removed_names,
    ),
    Mend(
        name='numpy-names-pixel-group',
        what='the pixel_group of mmcv uses np.float, which NumPy 1.24 removed',
        issue='https://numpy.org/doc/stable/release/1.24.0-notes.html',
        versions={**_MMCV, 'numpy': '>=1.24'},
        module='mmcv.ops.pixel_group',
        repair=numpy_names.give_removed_names,
    ),
    Mend(
        name='quiet-file-client',
        what="the hooks of mmengine set off mmengine's own deprecation notice on every run",
        issue='https://github.com/open-mmlab/mmengine/pull/533',
        versions=_MMENGINE,
        module='mmengine.fileio.file_client',
        repair=quiet.drop_file_client_notices,
    ),
    Mend(
        name='quiet-build-loss',
        what="the decode heads of mmseg set off mmseg's own deprecation notice on every run",
        issue='https://github.com/open-mmlab/mmsegmentation/pull/3587',
        versions=_MMSEG,
        module='mmseg.models.builder',
        repair=quiet.drop_build_loss_notice,
    ),
    Mend(
        name='quiet-autocast',
        what='mmdet calls torch.cuda.amp.autocast, which warns about its new name',
        issue='https://github.com/pytorch/pytorch/issues/130659',
        versions={**_MMDET, 'torch': '>=2.4'},
        module='mmdet',
        repair=quiet.drop_autocast_notice,
    ),
)
