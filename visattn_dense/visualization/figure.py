"""Figures of matplotlib without pyplot, which would choose a display and keep every figure."""
from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

COLOURS = ('#2563b0', '#d9730d', '#2a8f5b', '#a63d8f', '#8a6d1f', '#c0392b', '#5b6770')
FAINT = '#8a9099'


def figure_of(width: float, height: float, *, layout: str | None = None) -> Any:
    """An empty figure, in inches of 110 pixels; `layout` as matplotlib takes it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), dpi=110, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: str | os.PathLike) -> None:
    """Write a figure as PNG, whatever `path` ends in."""
    out = io.BytesIO()
    figure.savefig(out, format='png')
    Path(path).write_bytes(out.getvalue())


def plain(text: str) -> str:
    """The text as it is: matplotlib takes what stands between two dollar signs for a formula."""
    return text.replace('$', r'\$')
