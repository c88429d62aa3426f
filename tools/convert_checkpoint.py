#!/usr/bin/env python
"""Look at checkpoints and convert them; see docs/checkpoints.md.

    python tools/convert_checkpoint.py inspect|convert|extract|zoo|download ...

The same as `python -m visattn_dense.zoo`.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from visattn_dense.zoo.__main__ import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
