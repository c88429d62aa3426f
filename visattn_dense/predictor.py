"""One predictor for pictures, folders, videos and cameras.

    predict = Predictor('config.py', 'checkpoint.pth', device='cuda')
    for result in predict(['a.jpg', array, image], batch_size=8):
        result.save('out')

docs/inference.md has the sources, the results and the options.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from visattn_dense.errors import MissingFileError, UserError, did_you_mean
from visattn_dense.predict.maps import map_file
from visattn_dense.predict.results import Result
from visattn_dense.predict.sources import open_sources
from visattn_dense.predict.stream import Options, Runtime, predictions

EXPORTED = ('.onnx', '.pt2')
"""The suffixes of what tools/export.py writes."""


class Predictor:
    """A trained segmentor, detector or instance segmentor.

    Args:
        model: a config file; or the folder of a training run, which has config and checkpoint (the
            newest best one, else the newest); or a file that tools/export.py wrote, without
            checkpoint and options. An ONNX file needs neither torch nor OpenMMLab.
        checkpoint: file or URL; nothing in it is executed. With the folder of a run, another
            checkpoint than its best.
        device: where the model runs; 'cuda:0' if there is a GPU, else 'cpu', where None.
        cfg_options: changes of the config, as --cfg-options of the tools takes them.
        **options: of the model: `half`, `optimize`, `tta`, `native`, `mode`, `crop`, `stride`; of
            segmentors also `gather`. See `visattn_dense.openmmlab.inference.open_segmentor`.

    Attributes:
        runtime: the model, as `visattn_dense.predict.stream.Runtime` describes it.
        classes, palette: name and RGB triple of each class.

    Raises:
        UserError, FileNotFoundError: no such config, folder, checkpoint or device; a checkpoint
            that does not fit.
    """

    def __init__(self, model: str | os.PathLike, checkpoint: str | os.PathLike | None = None, *,
                 device: str | None = None, cfg_options: Mapping[str, Any] | None = None,
                 **options: Any) -> None:
        self.runtime = _open(os.fspath(model), checkpoint, device, cfg_options, options)
        self.classes, self.palette = self.runtime.classes, self.runtime.palette

    def __call__(self, source: Any, *, batch_size: int = 1, channels: str = 'rgb',
                 conf: float | None = None, classes: Sequence[str | int] | None = None,
                 max_det: int | None = None, scores: bool = False, workers: int = 2
                 ) -> Iterator[Result]:
        """The results of a source, one after another; nothing is kept of those that you drop.

        Loading, the model and your own work on the results run at the same time.

        Args:
            source: see `visattn_dense.predict.sources`: paths, addresses, folders, patterns,
                videos, cameras, bytes, arrays, tensors, images, lists and generators of them.
            batch_size: pictures that the model gets at once; only pictures of one prepared size
                share a batch.
            channels: 'rgb' or 'bgr': the order of colours in arrays and tensors.
            conf: the least score of an object (0.3 where None); of segmentors the least probability
                of a pixel's class, below which a pixel is `ignored` (none where None).
            classes: names or indices of the classes to keep.
            max_det: objects of one picture at most.
            scores: segmentors also give the probability of each class.
            workers: threads that load pictures.

        Returns:
            An iterator of `Segmentation` or `Detection` (`visattn_dense.predict.results`).

        Raises:
            UserError: at once where the source or an option is wrong; during the iteration where a
                picture cannot be read.
        """
        options = self._options(conf, classes, max_det, scores, batch_size)
        return predictions(self.runtime, open_sources(source, channels=channels), options,
                           batch_size=batch_size, workers=workers)

    def map(self, path: str | os.PathLike, folder: str | os.PathLike, *,
            name: str | None = None, geojson: bool = False, opacity: float = 0.5,
            legend: bool = True, batch_size: int = 1, conf: float | None = None,
            classes: Sequence[str | int] | None = None, max_det: int | None = None,
            progress: Callable[[int], object] = lambda rows: None) -> list[Path]:
        """Predict on a TIFF file that need not fit into memory, in tiles; writes files.

        The predictor was made with `native=True` or `mode='tiles'`. What is written:
        `visattn_dense.predict.maps.map_file`.

        Args:
            path: the TIFF file.
            folder: where to write.
            name: of the files; that of the TIFF file, without its suffix, where None.
            geojson: write polygons too.
            opacity, legend: of the overlay; see `visattn_dense.predict.results.Result.draw`.
            batch_size: windows that the model gets at once.
            conf, classes, max_det: as for a call.
            progress: called with the number of picture rows that are done now.

        Returns:
            What was written.

        Raises:
            UserError: a predictor without tiles, a file that cannot be read, or a missing extra.
        """
        if getattr(self.runtime, 'mode', None) != 'tiles':
            raise UserError("map computes in tiles: make the predictor with native=True")
        options = self._options(conf, classes, max_det, False, batch_size)
        return map_file(self.runtime, path, folder, options, name=name, geojson=geojson,
                        opacity=opacity, legend=legend, progress=progress)

    def _options(self, conf: float | None, classes: Sequence[str | int] | None,
                 max_det: int | None, scores: bool, batch_size: int) -> Options:
        if conf is not None and not 0 <= conf <= 1:
            raise UserError(f'conf is from 0 to 1, got {conf}')
        if max_det is not None and max_det < 1:
            raise UserError(f'max_det is at least 1, got {max_det}')
        if batch_size < 1:
            raise UserError(f'batch_size is at least 1, got {batch_size}')
        kept = None if classes is None else tuple(self._index(name) for name in classes)
        return Options(conf, kept, max_det, scores, batch_size)

    def _index(self, name: str | int) -> int:
        names = list(self.classes)
        if isinstance(name, str) and name in names:
            return names.index(name)
        if str(name).isdecimal() and int(name) < len(names):
            return int(name)
        raise UserError(f'the model has no class {name!r}. {did_you_mean(str(name), names)}')


def _open(model: str, checkpoint: str | os.PathLike | None, device: str | None,
          cfg_options: Mapping[str, Any] | None, options: dict[str, Any]) -> Runtime:
    """The model that computes: decided by what `model` is."""
    if Path(model).suffix.lower() in EXPORTED:
        return _open_exported(model, checkpoint, device, cfg_options, options)
    folder = Path(model) if Path(model).is_dir() else None
    if folder is None and checkpoint is None:
        raise UserError(f'{model} is no folder of a training run: name a checkpoint too')
    import torch

    from visattn_dense.openmmlab.config import merge_options, read_config
    from visattn_dense.openmmlab.engine.run_folder import checkpoint_of, config_of
    from visattn_dense.openmmlab.inference import open_model
    if folder is not None:
        model, checkpoint = str(config_of(folder)), checkpoint or checkpoint_of(folder)
    cfg = read_config(model)
    merge_options(cfg, cfg_options)
    device = device or ('cuda:0' if torch.cuda.is_available() else 'cpu')
    return open_model(cfg, checkpoint, device=device, **options)


def _open_exported(model: str, checkpoint: str | os.PathLike | None, device: str | None,
                   cfg_options: Mapping[str, Any] | None, options: dict[str, Any]) -> Runtime:
    asked = [name for name, value in dict(checkpoint=checkpoint, cfg_options=cfg_options, **options
                                          ).items() if value]
    if asked:
        raise UserError(f'{model} is an exported model, and {", ".join(asked)} belong to the '
                        'export: leave them out')
    if not Path(model).is_file():
        raise MissingFileError(f'there is no file {model}')
    if Path(model).suffix.lower() == '.onnx':
        from visattn_dense.predict.exported import open_onnx
        return open_onnx(model, device)
    from visattn_dense.inference.exported import open_program
    return open_program(model, device)
