"""CONTRIBUTING.md's example of a new family, followed to the letter in a copy of the project."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
# A line that names a file, then the Python that goes into it.
BLOCKS = re.findall(r'^`(\S+\.py)`[^\n]*:\n\n```python\n(.*?)^```$', PAGE, re.M | re.S)


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Path:
    """The package and what its tests import, with the files of CONTRIBUTING.md written into it."""
    copy = tmp_path_factory.mktemp('contributing')
    ignore = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / 'visattn_dense', copy / 'visattn_dense', ignore=ignore)
    (copy / 'tests').mkdir()
    for name in ('__init__.py', 'backbone_suite.py', 'comparing.py', 'conftest.py'):
        shutil.copy(ROOT / 'tests' / name, copy / 'tests')
    shutil.copy(ROOT / 'pyproject.toml', copy)
    for name, code in BLOCKS:
        with open(copy / name, 'a', encoding='utf-8') as file:
            file.write(code)
    return copy


def run(project: Path, *arguments: str) -> str:
    """What `python -m ARGUMENTS` prints in `project`; it has to succeed."""
    done = subprocess.run([sys.executable, '-m', *arguments], cwd=project, text=True, timeout=600,
                          capture_output=True, env=os.environ | {'PYTHONPATH': str(project)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_python_block_belongs_to_a_file():
    assert PAGE.count('```python') == len(BLOCKS) > 0


def test_the_example_passes_its_tests(project):
    printed = run(project, 'pytest', '-q', '-p', 'no:cacheprovider', 'tests/test_yours.py')
    passed = int(re.search(r'(\d+) passed', printed)[1])
    assert passed > 40 and 'skipped' not in printed, printed


def test_the_example_is_clean(project):
    new = [name for name, _ in BLOCKS if not (ROOT / name).exists()]
    assert len(new) == len(BLOCKS) - 1
    run(project, 'ruff', 'check', *new)


def test_the_example_is_known_by_its_name(project):
    """To timm, and to the command that says which model a file is of."""
    (project / 'known.py').write_text("""
import timm, torch, visattn_dense.interop.timm_models
model = timm.create_model('visattn_yours_tiny', features_only=True)
torch.save(model.backbone.state_dict(), 'yours.pth')
""")
    run(project, 'known')
    assert 'Yours tiny' in run(project, 'visattn_dense.zoo', 'inspect', 'yours.pth')
