"""One picture of where the five attentions look, from the nets that docs/explain.md trains.

    python -m demo.families IMAGE --point X,Y [--out docs/img/attention.jpg]

The nets lie in work_dirs/demo/run (CSWin) and work_dirs/explain/NET.
"""
from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from visattn_dense.command import run
from visattn_dense.errors import MissingFileError
from visattn_dense.explain import explain
from visattn_dense.explain.figures import draw_maps, lay_over
from visattn_dense.openmmlab.backbone import open_backbone, prepare_image
from visattn_dense.openmmlab.config import read_config

CONFIGS = Path(__file__).parent / 'configs'
# Title, config, folder of the run, and the stage whose last attention is shown.
NETS = (('CSWin: a cross of stripes', 'cswin', 'work_dirs/demo/run', 1),
        ('FLatten: focused linear', 'flatten', 'work_dirs/explain/flatten', 1),
        ('BiFormer: routed regions', 'biformer', 'work_dirs/explain/biformer', 2),
        ('EfficientViT: ReLU linear', 'efficientvit', 'work_dirs/explain/efficientvit', 2),
        ('T2T-ViT: the whole map', 't2t_vit', 'work_dirs/explain/t2t_vit', 0))


def draw(args: argparse.Namespace) -> None:
    """Write the picture.

    Raises:
        MissingFileError: the image or a net is not there.
    """
    x, y = map(float, args.point.split(','))
    maps: dict[str, np.ndarray] = {}
    for title, net, folder, stage in NETS:
        found = sorted(Path(folder).glob('iter_*.pth'))
        if not found or not args.image.is_file():
            raise MissingFileError(f'no {args.image if found else folder + "/iter_*.pth"}: '
                                   'docs/explain.md has the commands that make it')
        cfg = read_config(CONFIGS / f'demo_upernet_{net}_scenes.py')
        prepared = prepare_image(cfg, args.image)
        point = prepared.point(x, y)
        looks = explain(open_backbone(cfg, found[-1]), prepared.image, point, stage=stage,
                        picture=prepared.picture).looks
        maps[title] = lay_over(prepared.picture, looks[-1].mean)
    buffer = io.BytesIO()
    draw_maps(prepared.picture, point, maps).savefig(buffer, format='png')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(buffer) as picture:
        picture.convert('RGB').save(args.out, quality=85, optimize=True)
    print(args.out)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m demo.families', description=__doc__)
    parser.add_argument('image', type=Path)
    parser.add_argument('--point', required=True, metavar='X,Y', help='in pixels of the image')
    parser.add_argument('--out', type=Path, default=Path('docs/img/attention.jpg'))
    return run(draw, parser.parse_args(arguments))


if __name__ == '__main__':
    sys.exit(main())
