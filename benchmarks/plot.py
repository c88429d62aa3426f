"""The picture above the tables: three panels that say whether ours is worth it."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visattn_dense.atomic import written_whole

# Colour-blind safe (Okabe and Ito), a colour for each family; another family is grey.
_COLOURS = {'cswin': '#0072b2', 'flatten': '#e69f00', 'biformer': '#009e73',
            'efficientvit': '#d55e00', 't2t': '#cc79a7'}
_GREY = '#777777'
_STYLES = ('-', '--', ':')
_MARKS = ('o', 's', '^')


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture. A panel without results says 'not measured'."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    plain = [record for record in records if not record['saturating']]
    figure = Figure(figsize=(15, 5.8), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    _draw_ratios(left, [r for r in plain if r['kind'] == 'backbone'], 'Backbones, forward')
    _draw_ratios(middle, [r for r in plain if r['kind'] == 'operator'], 'Operators, forward')
    _draw_fractions(right, [r for r in plain if r['kind'] == 'backbone'])
    with written_whole(path) as temporary:
        figure.savefig(temporary, format='png')


def _draw_ratios(axes: Any, records: Sequence[dict[str, Any]], title: str) -> None:
    axes.set_title(title, loc='left', weight='bold')
    seen: dict[str, int] = {}
    sizes = {}
    for name in dict.fromkeys(record['name'] for record in records):
        own = [r for r in records if r['name'] == name
               and {'ours', 'naive'} <= r.get('forward', {}).keys()]
        if not own:
            continue
        sizes |= {r['height'] * r['width']: f'{r["height"]}²' if r['height'] == r['width']
                  else f'{r["height"]}×{r["width"]}' for r in own}
        family = own[0]['family']
        number = seen[family] = seen.get(family, -1) + 1
        axes.plot([r['height'] * r['width'] for r in own],
                  [r['forward']['ours']['ms'] / r['forward']['naive']['ms'] for r in own],
                  color=_COLOURS.get(family, _GREY), linestyle=_STYLES[number % 3],
                  marker=_MARKS[number % 3], label=name.split(', ')[-1])
    if not sizes:
        axes.text(.5, .5, 'not measured', ha='center', va='center', transform=axes.transAxes)
        return
    axes.axhline(1, color='#888888', linewidth=1)
    axes.set_xscale('log')
    axes.set_xticks(list(sizes), list(sizes.values()), fontsize=8)
    axes.minorticks_off()
    axes.set(xlabel='image', ylabel="time of ours / time of naive")
    axes.set_ylim(0, max(1.1, axes.get_ylim()[1]))
    axes.grid(alpha=.25)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc='upper center', bbox_to_anchor=(.5, -.12))


def _draw_fractions(axes: Any, records: Sequence[dict[str, Any]]) -> None:
    """Bars at 512×512, otherwise at the size at which most backbones were measured."""
    records = [r for r in records if 'ours' in r.get('forward', {})]
    shapes = [(r['height'], r['width']) for r in records]
    if not shapes:
        axes.text(.5, .5, 'not measured', ha='center', va='center', transform=axes.transAxes)
        return
    shape = (512, 512) if (512, 512) in shapes else max(shapes, key=shapes.count)
    own = [r for r in records if (r['height'], r['width']) == shape]
    axes.set_title(f'Share of the GEMM rate, {shape[0]}×{shape[1]}', loc='left',
                   weight='bold')
    for row, record in enumerate(own):
        colour = _COLOURS.get(record['family'], _GREY)
        forward = record['forward']
        axes.barh(row - .2, forward['ours']['fraction'], .36, color=colour)
        if 'naive' in forward:
            axes.barh(row + .2, forward['naive']['fraction'], .36, color=colour, alpha=.35)
        axes.text(.01, row - .2, f'{forward["ours"]["fraction"]:.2f}', va='center', fontsize=8,
                  color='white')
        share = record.get('forms', {}).get('optimized', {}).get('fraction')
        if share:
            axes.annotate(f'{share:.2f}', (share, row - .2), xytext=(6, 0), va='center',
                          textcoords='offset points', fontsize=8)
            axes.plot([share], [row - .2], marker='D', color='black', markersize=5,
                      linestyle='none', label='optimize_for_inference')
    axes.set_yticks(range(len(own)), [r['name'] for r in own])
    axes.set_ylim(max(len(own), 4) - .5, -.5)
    axes.set_xlim(0, max(1, 1.06 * axes.get_xlim()[1]))
    axes.set_xlabel('2·MACs / time / rate of a matrix product; pale: naive')
    axes.grid(axis='x', alpha=.25)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[:1], labels[:1], frameon=False, fontsize=8, loc='upper center',
                    bbox_to_anchor=(.5, -.12))
