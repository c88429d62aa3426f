#!/usr/bin/env python
"""Train a segmentor or detector: tools/train.py CONFIG [options]; see docs/training.md."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from visattn_dense.openmmlab.engine.launch import train  # noqa: E402

if __name__ == '__main__':
    sys.exit(train())
