#!/usr/bin/env python
"""Evaluate a checkpoint: tools/test.py CONFIG CHECKPOINT [options]; see docs/training.md."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from visattn_dense.openmmlab.engine.launch import test  # noqa: E402

if __name__ == '__main__':
    sys.exit(test())
