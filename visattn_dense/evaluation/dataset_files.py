"""Class names and file conventions of the datasets that the evaluation takes by name."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from visattn_dense.errors import UserError, did_you_mean


@dataclass(frozen=True)
class DatasetFiles:
    """How the label and prediction files of a dataset are written."""

    dataset: str
    reduce_zero_label: bool = False
    label_suffix: str = '.png'
    pred_suffix: str = '.png'


# The dataset classes of mmsegmentation and of this package, with the suffixes of the published
# files. Predictions have the name of the image, as in mmsegmentation's IoUMetric.
DATASETS = {
    'ade20k': DatasetFiles('ADE20KDataset', reduce_zero_label=True),
    'camvid': DatasetFiles('CamVidDataset'),
    'cityscapes': DatasetFiles('CityscapesDataset', label_suffix='_gtFine_labelTrainIds.png',
                               pred_suffix='_leftImg8bit.png'),
}


def dataset_files(name: str) -> DatasetFiles:
    """The conventions of a dataset.

    Raises:
        UserError: the name is unknown.
    """
    if name not in DATASETS:
        raise UserError(f'unknown dataset {name!r}. {did_you_mean(name, DATASETS)}')
    return DATASETS[name]


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Class names of a text file, one on each line; empty lines are skipped.

    Raises:
        UserError: the file is missing, empty or not a text, or a name comes twice.
    """
    try:
        # Editors on Windows begin a file with a mark, which is no part of the first name.
        text = Path(path).read_text(encoding='utf-8-sig')
    except OSError as error:
        raise UserError(f'class names {path} cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise UserError(f'class names {path}: not a text file in UTF-8') from error
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise UserError(f'{path} is empty; it holds one class name on each line')
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f'{path} names {", ".join(twice)} more than once')
    return names
