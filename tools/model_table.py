#!/usr/bin/env python
"""Write docs/models.md: every variant with its size, cost and published numbers."""
from _checkout import ROOT

from benchmarks.model_table import models_table

if __name__ == '__main__':
    path = ROOT / 'docs' / 'models.md'
    path.write_text(models_table())
    print(f'wrote {path}')
