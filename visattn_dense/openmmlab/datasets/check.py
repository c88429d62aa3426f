"""Check the data of a config before any training. The model is not built.

`check_config` is the whole check (tools/check_dataset.py). `quick_check` takes a few seconds and
looks at all folders and pairs and at a sample of the files. The launchers run `quick_check`.
"""
import copy
import importlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visattn_dense.errors import UserError, did_you_mean
from visattn_dense.openmmlab.datasets.check_coco import check_coco
from visattn_dense.openmmlab.datasets.check_duplicates import report_duplicates
from visattn_dense.openmmlab.datasets.check_files import check_folders
from visattn_dense.openmmlab.datasets.check_loading import Loading
from visattn_dense.openmmlab.datasets.check_report import DatasetReport
from visattn_dense.openmmlab.datasets.check_segmentation import IGNORE, check_segmentation

SPLITS = ('train', 'val', 'test')
SEGMENTATION_HEADS = ('decode_head', 'auxiliary_head')
DETECTION_HEADS = ('bbox_head', 'mask_head')
# STDC's boundary head has two outputs, edge and no edge, for any number of classes.
OWN_CLASSES = ('STDCHead',)


@dataclass(frozen=True)
class Head:
    """A head of the config. path: its place in the config, for example 'model.decode_head'."""

    path: str
    num_classes: int
    ignore_index: int


def find_heads(model: Any, names: Sequence[str], path: str = 'model') -> Iterator[Head]:
    """All heads under one of `names` that have num_classes in the config."""
    if isinstance(model, Mapping):
        key = path.rsplit('.', 1)[-1].split('[')[0]
        if (key in names and isinstance(model.get('num_classes'), int)
                and model.get('type') not in OWN_CLASSES):
            yield Head(path, model['num_classes'], model.get('ignore_index', IGNORE))
        for child, value in model.items():
            yield from find_heads(value, names, f'{path}.{child}')
    elif isinstance(model, list | tuple):
        for index, value in enumerate(model):
            yield from find_heads(value, names, f'{path}[{index}]')


def find_datasets(dataset: Any) -> Iterator[Mapping]:
    """The datasets inside wrappers (RepeatDataset, ConcatDataset, ...) and lists."""
    if isinstance(dataset, list | tuple):
        for part in dataset:
            yield from find_datasets(part)
    elif not isinstance(dataset, Mapping):
        raise UserError(f'a dataset in the config is {dataset!r}, not dict(type=...)')
    elif 'datasets' in dataset:
        yield from find_datasets(dataset['datasets'])
    elif 'dataset' in dataset:
        yield from find_datasets(dataset['dataset'])
    else:
        yield dataset


def dataset_class(name: Any, scope: str | None) -> type:
    """The class for `type` in a config.

    Raises:
        UserError: there is no class of this name. The message has similar names.
    """
    if isinstance(name, type):
        return name
    # `scope.Name` overrides the config's scope. The registry resolves a dotted module path.
    if isinstance(name, str) and name.count('.') == 1:
        scope, name = name.split('.')
    try:
        registry = importlib.import_module(f'{scope or "mmengine"}.registry').DATASETS
    except ModuleNotFoundError as error:
        if error.name and error.name.split('.')[0] == scope:
            raise UserError(f'default_scope {scope!r} is not installed: '
                            "'mmseg' is for segmentation, 'mmdet' for detection") from error
        raise
    found = registry.get(str(name))
    if found is None:
        raise UserError(f'no dataset is registered as {name!r}. '
                        f'{did_you_mean(str(name), registry.module_dict)} A dataset of your own '
                        'needs custom_imports=dict(imports=[its module]) in the config')
    return found


def build_lazily(leaf: Mapping, scope: str | None) -> Any:
    """The dataset of a config, without its pipeline. No file is read.

    Raises:
        UserError: unknown type, argument or class name. The message has the unknown name.
    """
    settings = copy.deepcopy(dict(leaf))
    settings.pop('_scope_', None)
    cls = dataset_class(settings.pop('type', None), scope)
    settings.update(pipeline=[], lazy_init=True)
    classes = (settings.get('metainfo') or {}).get('classes')
    if isinstance(classes, str) and '/' not in classes and not classes.endswith('.txt'):
        raise UserError(f'metainfo.classes of {cls.__name__} is the text {classes!r}; a tuple of '
                        f"one name needs its comma: classes=('{classes}', )")
    known = getattr(cls, 'METAINFO', {}).get('classes')
    if is_segmentation(cls) and known and isinstance(classes, list | tuple):
        for name in classes:
            if name not in known:
                raise UserError(f'metainfo.classes: {cls.__name__} has no class {name!r}. '
                                f'{did_you_mean(str(name), known)}')
    try:
        return cls(**settings)
    # A dataset's constructor may raise anything. Some assert that folders exist, without a text.
    except Exception as error:
        root = settings.get('data_root') or ''
        paths = [settings.get('ann_file'), *(settings.get('data_prefix') or {}).values()]
        lost = [path for path in (os.path.join(root, p) for p in paths if p)
                if not os.path.exists(path)]
        raise UserError(f'{cls.__name__} cannot be set up: {str(error) or type(error).__name__}'
                        + (f' (missing: {", ".join(lost)})' if lost else '')) from error


def is_segmentation(cls: type) -> bool:
    """Whether a dataset has mmsegmentation's interface, by class names: no imports."""
    return any(base.__name__ == 'BaseSegDataset' for base in cls.__mro__)


def check_dataset(leaf: Mapping, cfg: Mapping, split: str, *, quick: bool) -> DatasetReport:
    """Check one dataset of a config, not a wrapper."""
    report = DatasetReport(split, str(leaf.get('type')))
    backend = (leaf.get('backend_args') or {}).get('backend', 'local')
    if backend != 'local':
        report.notes.append(f'the files lie behind backend {backend!r} and are not checked')
        return report
    # mmengine's key for an entry of another library.
    scope = leaf.get('_scope_') or cfg.get('default_scope')
    try:
        dataset = build_lazily(leaf, scope)
    except UserError as error:
        report.add(str(error), 'correct the dataset in the config, or put its files there')
        return report
    report.name = f'{type(dataset).__name__} in {dataset.data_root or dataset.ann_file}'
    report.classes = tuple(dataset.metainfo.get('classes') or ())
    families = {cls.__name__ for cls in type(dataset).__mro__}
    segmentation = is_segmentation(type(dataset))
    model = cfg.get('model') or {}
    heads = list(find_heads(model, SEGMENTATION_HEADS if segmentation else DETECTION_HEADS))
    coco = 'CocoDataset' in families and 'CocoPanopticDataset' not in families
    # Elsewhere (tracking, panoptic) heads and datasets count different things.
    if segmentation or coco or 'XMLDataset' in families:
        _compare_classes(type(dataset).__name__, report, heads)
    loading = Loading.of(leaf, scope)
    if segmentation:
        labels = _label_loading(leaf)
        if labels.get('reduce_zero_label') not in (None, dataset.reduce_zero_label):
            report.add(f'reduce_zero_label is {dataset.reduce_zero_label} in the dataset and '
                       f'{labels["reduce_zero_label"]} in LoadAnnotations',
                       'set it in the dataset only', type(dataset).__name__)
            return report
        _compare_ignored(cfg, dataset.ignore_index, heads, report)
        num_classes = len(report.classes) or min((h.num_classes for h in heads), default=IGNORE)
        check_segmentation(dataset, num_classes, heads[0].ignore_index if heads else None, report,
                           quick=quick, palette_decoded=labels.get('imdecode_backend') == 'cv2',
                           loading=loading)
    elif coco:
        has_masks = (any('.mask_head' in head.path for head in heads)
                     or bool(_label_loading(leaf).get('with_mask')))
        check_coco(dataset, has_masks, report, quick=quick, loading=loading)
    else:
        folders = [path for path in dataset.data_prefix.values() if isinstance(path, str)]
        check_folders(dataset, folders, report, files=[
            path for path in [dataset.ann_file] if not os.path.isdir(path)])
        report.notes.append(f'only the folders of a {type(dataset).__name__} are checked')
    return report


def _label_loading(leaf: Mapping) -> Mapping:
    """The LoadAnnotations step of a dataset's pipeline; empty if there is none."""
    for step in leaf.get('pipeline') or ():
        if isinstance(step, Mapping) and str(step.get('type')).endswith('LoadAnnotations'):
            return step
    return {}


def _compare_classes(name: str, report: DatasetReport, heads: Sequence[Head]) -> None:
    """Compare the number of class names with num_classes of every head."""
    for head in heads:
        if report.classes and head.num_classes != len(report.classes):
            report.add(f'{head.path}.num_classes is {head.num_classes}, but {name} has '
                       f'{len(report.classes)} classes',
                       f'set {head.path}.num_classes={len(report.classes)}, or the classes in '
                       'metainfo of the dataset')


def _compare_ignored(cfg: Mapping, ignored: int, heads: Sequence[Head],
                     report: DatasetReport) -> None:
    """Padding gives a value that every head ignores, and the metric ignores what the data do."""
    preprocessor = (cfg.get('model') or {}).get('data_preprocessor') or {}
    pads = preprocessor.get('size') or preprocessor.get('size_divisor')
    padded = preprocessor.get('seg_pad_val', IGNORE)
    for head in heads if report.split == 'train' and pads else ():
        if head.ignore_index != padded:
            report.add(f'{head.path}.ignore_index is {head.ignore_index}, and images are padded '
                       f'with labels of {padded}',
                       f'set model.data_preprocessor.seg_pad_val={head.ignore_index}')
    metrics = cfg.get(f'{report.split}_evaluator') or ()
    for metric in [metrics] if isinstance(metrics, Mapping) else metrics:
        counted = metric.get('ignore_index', IGNORE)
        if str(metric.get('type')).endswith('IoUMetric') and counted != ignored:
            report.add(f'ignore_index of the {report.split} dataset is {ignored}, of its IoUMetric '
                       f'{counted}', f'set {report.split}_evaluator.ignore_index={ignored}',
                       blocks=False)


def check_config(cfg: Mapping, splits: Sequence[str] | None = None, *,
                 quick: bool = False) -> list[DatasetReport]:
    """Check every dataset of a config. If val and test are the same dataset, it is checked once.

    If all files are read, training images are searched among the images of the other splits.

    Args:
        cfg: an mmengine Config of mmsegmentation or mmdetection.
        splits: any of 'train', 'val' and 'test'; None: all splits of the config.
        quick: all folders and pairs, but only about 18 files of each dataset are opened, and one
            image of each kind.

    Raises:
        UserError: the config has no dataset for one of `splits`.
    """
    reports, seen = [], []
    for split in splits or SPLITS:
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            if splits:
                raise UserError(f'the config has no {split}_dataloader to check')
            continue
        for leaf in find_datasets(loader.get('dataset')):
            # The loading steps of the pipeline matter to the check, augmentation does not.
            identity = {key: value for key, value in leaf.items()
                        if key not in ('pipeline', 'test_mode')}
            identity |= {'load': (list(leaf.get('pipeline') or ())[:1], _label_loading(leaf))}
            if identity not in seen:
                seen.append(identity)
                reports.append(check_dataset(leaf, cfg, split, quick=quick))
    if not reports:
        raise UserError('the config names no dataset (train_dataloader, val_dataloader or '
                        'test_dataloader)')
    if not quick:
        report_duplicates(reports)
    return reports


def quick_check(cfg: Mapping, splits: Sequence[str] = ('train', 'val')) -> None:
    """Stop a run if its data cannot be used for training. Takes seconds, also for 20 000 images.

    Args:
        cfg: the config of the run.
        splits: the splits that the run reads; a split that the config does not have is skipped.

    Raises:
        UserError: the data have a fault. The message has the fault, the file and what to do. Faults
            that only make the data poorer (a label without an image) are warnings.
    """
    present = [split for split in splits if cfg.get(f'{split}_dataloader')]
    reports = check_config(cfg, present, quick=True) if present else []
    faults = [(report, problem) for report in reports for problem in report.problems]
    for report, problem in faults:
        if not problem.blocks:
            warnings.warn(f'{report.split} data: {problem}', stacklevel=2)
    blocking = [f'{report.split} data ({report.name}): {problem}'
                for report, problem in faults if problem.blocks]
    if blocking:
        raise UserError('the data do not fit the config:\n' + '\n'.join(blocking)
                        + '\nThe full check is tools/check_dataset.py.')
