"""The user's own images and masks: two folders with files of the same names.

    images/train/a.jpg  ->  masks/train/a.png

Imported by configs through custom_imports; registers `FolderSegDataset` with mmsegmentation.
"""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from visattn_dense.errors import UserError
from visattn_dense.files import list_files
from visattn_dense.visualization.colour import distinct_palette

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


@DATASETS.register_module()
class FolderSegDataset(BaseSegDataset):
    """Images of any usual format, and PNG masks of class indices: 0..N−1, 255 for no class.

    Args:
        metainfo: dict(classes=[...]), the names of the indices in their order, at least two. If
            there is no palette, colours are chosen.
        img_suffix: ending of the images, or several endings; upper and lower case are the same.
        kwargs: arguments of BaseSegDataset (data_root, data_prefix, pipeline, ...).

    Raises:
        UserError: there are fewer than two class names, or a name comes twice; two images have the
            same mask; a folder cannot be searched.
    """

    def __init__(self, metainfo: dict[str, Any] | None = None,
                 img_suffix: str | Sequence[str] = IMAGE_SUFFIXES, **kwargs: Any) -> None:
        metainfo = dict(metainfo or {})
        classes = metainfo.get('classes')
        if not isinstance(classes, (list, tuple)) or len(classes) < 2:
            raise UserError('classes is the list of the names of the mask values 0, 1, 2, ..., the '
                            "background's too if there is one, so at least two; got "
                            f'{classes!r}')
        if twice := sorted({name for name in classes if list(classes).count(name) > 1}):
            raise UserError(f'classes names {", ".join(twice)} more than once')
        metainfo.setdefault('palette', [list(c) for c in distinct_palette(len(classes))])
        suffixes = (img_suffix,) if isinstance(img_suffix, str) else tuple(img_suffix)
        self.suffixes = tuple(suffix.lower() for suffix in suffixes)
        # Messages show the first suffix only.
        super().__init__(metainfo=metainfo, img_suffix=self.suffixes[0], **kwargs)

    def _with_its_suffix(self, item: dict) -> dict:
        """An entry of a list file, whose names have no suffix, with that of the file there."""
        stem = item['img_path'].removesuffix(self.img_suffix)
        choices = [stem + form for suffix in self.suffixes for form in (suffix, suffix.upper())]
        item['img_path'] = next(filter(os.path.exists, choices), item['img_path'])
        return item

    def load_data_list(self) -> list[dict]:
        """Every image below the folder, with the mask of the same name."""
        if self.ann_file:
            return [self._with_its_suffix(item) for item in super().load_data_list()]
        folder, masks = self.data_prefix['img_path'], self.data_prefix.get('seg_map_path')
        items: dict[str, dict] = {}
        for name in list_files(folder):
            path = Path(folder, name)
            if path.suffix.lower() not in self.suffixes:
                continue
            stem = str(Path(name).with_suffix(''))
            if stem in items:
                raise UserError(f'{items[stem]["img_path"]} and {path} would share the mask '
                                f'{stem}{self.seg_map_suffix}: rename one of them, and its mask')
            items[stem] = dict(
                img_path=str(path), label_map=self.label_map,
                reduce_zero_label=self.reduce_zero_label, seg_fields=[])
            if masks is not None:
                # with_suffix would cut the name at a dot that does not begin a suffix.
                items[stem]['seg_map_path'] = str(Path(masks, stem + self.seg_map_suffix))
        return list(items.values())
