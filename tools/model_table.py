#!/usr/bin/env python
"""Write docs/models.md: every variant with its size, cost and published numbers."""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.model_table import models_table  # noqa: E402

if __name__ == '__main__':
    path = ROOT / 'docs' / 'models.md'
    path.write_text(models_table())
    print(f'wrote {path}')
