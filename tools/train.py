#!/usr/bin/env python
"""Train a segmentor or detector: tools/train.py CONFIG [options]; see docs/training.md."""
import sys

import _checkout  # noqa: F401  (first)

from visattn_dense.openmmlab.engine.launch import train

if __name__ == '__main__':
    sys.exit(train())
