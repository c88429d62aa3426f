"""Imported first by every tool: the package of this checkout is the one that the tool uses."""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
