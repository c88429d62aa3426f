#!/usr/bin/env python
"""Look at checkpoints and convert them; see docs/checkpoints.md.

    python tools/convert_checkpoint.py inspect|convert|extract|zoo|download ...

The same as `python -m visattn_dense.zoo`.
"""
import sys

import _checkout  # noqa: F401  (first)

from visattn_dense.zoo.__main__ import main

if __name__ == '__main__':
    sys.exit(main())
