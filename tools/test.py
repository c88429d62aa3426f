#!/usr/bin/env python
"""Evaluate a checkpoint: tools/test.py CONFIG CHECKPOINT [options]; see docs/training.md."""
import sys

import _checkout  # noqa: F401  (first)

from visattn_dense.openmmlab.engine.launch import test

if __name__ == '__main__':
    sys.exit(test())
