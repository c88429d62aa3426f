"""By hand: a map of any size to a label file, with its time and peak memory.

    python -m tests.campaigns.big_map [--side 30000] [--folder DIR] [--crop 512]

Writes a deflated, tiled TIFF of SIDE×SIDE pixels, then runs tools/infer.py --native on it with a
small network of random weights, in a process of its own. The script fails if the process needs 4 GB
or more, or if the label file has another size.
"""
from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from tests.test_predictor import write_weights
from tests.tiny_runs import ROOT, write_run

_TILE = 512


def tiles(side: int) -> Iterator[np.ndarray]:
    """Tiles of smooth noise, each with another brightness."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (24, 24, 3), np.uint8)
    base = np.array(Image.fromarray(coarse).resize((_TILE, _TILE), Image.Resampling.BICUBIC))
    for _ in range((-(-side // _TILE))**2):
        yield base + np.uint8(rng.integers(0, 50))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--side', type=int, default=30_000)
    parser.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir()) / 'big_map')
    parser.add_argument('--crop', type=int, default=512)
    args = parser.parse_args()
    run, image = args.folder / 'run', args.folder / f'map_{args.side}.tif'
    run.mkdir(parents=True, exist_ok=True)
    write_weights(write_run(run, images=1), run / 'iter_8.pth')
    if not image.exists():
        tifffile.imwrite(image, tiles(args.side), shape=(args.side, args.side, 3), dtype=np.uint8,
                         photometric='rgb', tile=(_TILE, _TILE), compression='zlib',
                         bigtiff=True)
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/infer.py', run, image, '--native', '--crop', str(args.crop),
         str(args.crop), '--out-dir', args.folder / 'out', '--device', 'cpu', '--optimize'])
    seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f'{args.side}x{args.side}: exit code {done.returncode}, {seconds:.0f} s, peak memory '
          f'{peak:.2f} GiB')
    with tifffile.TiffFile(args.folder / 'out' / f'{image.stem}_label.tif') as file:
        assert file.pages[0].shape == (args.side, args.side)
    return done.returncode or int(peak >= 4e9 / 2**30)


if __name__ == '__main__':
    sys.exit(main())
