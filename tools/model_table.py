#!/usr/bin/env python
"""Write docs/models.md: every variant with its size, cost and published numbers."""
from pathlib import Path

from visattn_dense.benchmark.models import models_table

if __name__ == '__main__':
    path = Path(__file__).resolve().parents[1] / 'docs' / 'models.md'
    path.write_text(models_table())
    print(f'wrote {path}')
