"""Fixtures that every test may use."""
import os
from pathlib import Path

# Several workers share the cores; each computes with one thread.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# The same form of a packed layer on every machine; test_measured.py takes this away.
os.environ.setdefault('VISATTN_MEASURE', '0')

import pytest
import torch

torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared'


@pytest.fixture
def shared() -> Path:
    """The folder of specs, golden outputs and real data; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip('needs ../shared, which is not here')
    return SHARED


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers whatever ran before."""
    torch.manual_seed(0)
