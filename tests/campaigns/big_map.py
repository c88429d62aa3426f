"""By hand: a map of any size to a label file, with its time and peak memory.

    python -m tests.campaigns.big_map [--height 30000] [--width 30000] [--folder DIR] [--crop 512]

Writes a deflated, tiled TIFF, then runs tools/infer.py --native on it with a
small network of random weights, in a process of its own. The script fails if the process needs 4 GB
or more, or if the label file has another size.
"""
from __future__ import annotations

import argparse
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


def tiles(height: int, width: int) -> Iterator[np.ndarray]:
    """Tiles of smooth noise, each with another brightness."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (24, 24, 3), np.uint8)
    base = np.array(Image.fromarray(coarse).resize((_TILE, _TILE), Image.Resampling.BICUBIC))
    for _ in range(-(-height // _TILE) * -(-width // _TILE)):
        yield base + np.uint8(rng.integers(0, 50))


def _peak(pid: int) -> float:
    """The largest memory that a process has had so far, in GiB; Linux."""
    lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith('VmHWM')), 0.)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--height', type=int, default=30_000)
    parser.add_argument('--width', type=int, default=30_000)
    parser.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir()) / 'big_map')
    parser.add_argument('--crop', type=int, default=512)
    args = parser.parse_args()
    size = args.height, args.width
    run, image = args.folder / 'run', args.folder / f'map_{args.height}x{args.width}.tif'
    run.mkdir(parents=True, exist_ok=True)
    write_weights(write_run(run, images=1), run / 'iter_8.pth')
    if not image.exists():
        tifffile.imwrite(image, tiles(*size), shape=(*size, 3), dtype=np.uint8, photometric='rgb',
                         tile=(_TILE, _TILE), compression='zlib', bigtiff=True)
    begun = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, ROOT / 'tools/infer.py', run, image, '--native', '--crop', str(args.crop),
         str(args.crop), '--out-dir', args.folder / 'out', '--device', 'cpu', '--optimize'])
    peak = 0.
    while child.poll() is None:
        peak = max(peak, _peak(child.pid))
        time.sleep(0.5)
    seconds = time.monotonic() - begun
    print(f'{args.height}x{args.width}: exit code {child.returncode}, {seconds:.0f} s, peak memory '
          f'{peak:.2f} GiB')
    with tifffile.TiffFile(args.folder / 'out' / f'{image.stem}_label.tif') as file:
        assert file.pages[0].shape == size
    return child.returncode or int(peak >= 4e9 / 2**30)


if __name__ == '__main__':
    sys.exit(main())
