"""An ONNX file in 8 bits: onnxruntime's static quantisation."""
from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from visattn_dense.atomic import written_whole
from visattn_dense.errors import UserError
from visattn_dense.predict.card import Card
from visattn_dense.predict.fitting import load
from visattn_dense.predict.sources import Picture


def quantize(path: str | os.PathLike, card: Card, pictures: Iterable[Picture]) -> Card:
    """Let a file compute its convolutions and linear layers in 8 bits.

    The products inside attentions, softmax and norms stay in float32: they have no weights.
    Weights get a scale for each output channel; activations get one for each tensor, from the
    range of values that the pictures give.

    Args:
        path: an ONNX file in float32, which is overwritten.
        card: of the file.
        pictures: a few that look like those to come.

    Returns:
        The new card.

    Raises:
        UserError: there is no picture, or onnxruntime cannot quantise the file.
    """
    import onnx
    from onnxruntime import quantization as tools
    card = replace(card, int8=True)
    inputs = [load(picture, card).inputs for picture in pictures]
    if not inputs:
        raise UserError('--int8 needs at least one picture')
    quiet, level = logging.getLogger(), logging.getLogger().level
    quiet.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder, 'whole.onnx'), Path(folder, 'small.onnx')
        try:
            # Shapes, constant folding and fusion, as onnxruntime asks for.
            tools.shape_inference.quant_pre_process(os.fspath(path), whole,
                                                    skip_symbolic_shape=True)
            tools.quantize_static(
                whole, small, _Reader(inputs), per_channel=True,
                op_types_to_quantize=['Conv', 'MatMul', 'Gemm'],
                weight_type=tools.QuantType.QInt8, activation_type=tools.QuantType.QUInt8,
                extra_options=dict(MatMulConstBOnly=True))
        # The errors of the tool have no common type.
        except Exception as error:
            raise UserError(f'onnxruntime cannot write {path} in 8 bits: {error}') from error
        finally:
            quiet.setLevel(level)
        model = onnx.load(small)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, card.strings())
    with written_whole(path) as temporary:
        onnx.save(model, temporary)
    return card


class _Reader:
    """Hands one input after another to onnxruntime."""

    def __init__(self, inputs: list[np.ndarray]) -> None:
        self._left = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._left, None)
        return None if image is None else {'image': image}
