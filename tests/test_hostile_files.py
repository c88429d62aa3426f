"""No file, however made, runs code, deletes a file, ends the process, hangs or takes the memory.

The whole table is `python -m tests.hostile_doors`; docs/security.md has its figures. Here every
file is tried at the doors that take a fraction of a second, and a choice of files at the others.
"""
import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.hostile_doors import CHEAP, DOORS
from tests.hostile_files import cases
from tests.tiny_runs import ROOT, environment

# Of each kind of fault some that only a door behind the reader can notice.
CHOICE = [
    'runs os.system', 'runs text of meta.config', 'runs text of meta.cfg',
    'best_ckpt elsewhere', 'best_ckpt of a right name elsewhere', 'best_ckpt a number',
    'best_ckpt a folder', 'keep_ckpt_ids with dots', 'keep_ckpt_ids a dict', 'best_score text',
    'array of objects', 'a view of 3 GB of four bytes', 'optimizer of expanded views',
    'a flipped byte at 0.5', 'cut to 0.9', 'a zip with two directories',
    'contents are state_dict of state_dict of ...', 'contents are a list', 'a key that is no text',
    'all NaN', 'one NaN', 'all complex64', 'tensors of other shapes', 'half of the tensors',
    'other names', 'iteration text', 'iteration beyond the run', 'seed text', 'meta a list',
    'dataset_meta text', 'dataset_meta of colours that are none',
    'message hub text', 'message hub of lists', 'learning rate NaN', 'learning rate text',
    'optimizer state of other shapes', 'optimizer state of NaN', 'optimizer of another kind',
    'optimizer of fewer parameters', 'optimizer groups of text', 'schedulers with methods',
    'schedulers NaN', 'two schedulers']
EVERYWHERE = [name for name in cases() if name.startswith('runs ') and 'meta' not in name]
"""Files that no door may take."""
USED = ['init_cfg', 'load_segmentor', 'infer', 'test', 'load_from', 'resume']
"""Doors that use the weights of a whole model. The Hub takes a backbone alone."""


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory) -> Iterator[Callable[[str, list[str]], dict[str, list]]]:
    """(door, names of files) -> name of a file -> [kind, said, bytes, faults], each from a process
    that has not been used before."""
    errors = tmp_path_factory.mktemp('doors') / 'stderr'
    with errors.open('w') as log, subprocess.Popen(
            [sys.executable, '-m', 'tests.hostile_doors', '--serve'], cwd=ROOT, text=True,
            env=environment(OMP_NUM_THREADS='1'), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=log) as process:
        def ask(door: str, names: list[str]) -> dict[str, list]:
            try:
                process.stdin.write(json.dumps([door, names]) + '\n')
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ''
            assert answer, errors.read_text()[-4000:]
            return json.loads(answer)

        yield ask


@pytest.mark.parametrize('door', DOORS)
def test_no_file_does_harm(door, outcomes):
    names = list(cases()) if door in CHEAP else CHOICE
    assert len(cases()) >= 150 and len(DOORS) >= 8
    found = outcomes(door, names)
    assert sorted(found) == sorted(names)
    assert {name: faults for name, (_, _, _, faults) in found.items() if faults} == {}
    refused = {name for name, (kind, _, _, _) in found.items() if kind == 'refused'}
    assert refused >= set(EVERYWHERE) & set(names)
    assert 'executed' not in ' '.join(said for _, said, _, _ in found.values()
                                      if 'nothing of it was executed' not in said)
    if door in USED:
        # In weights that a model uses, every number is finite.
        for name in ('all NaN', 'one NaN'):
            assert 'NaN or infinity' in found[name][1], (name, found[name])
    if door == 'resume':
        taken = {name for name in names if found[name][0] == 'taken'}
        assert {'runs text of meta.config', 'best_ckpt elsewhere', 'message hub of lists'} <= taken
        assert not taken & {'iteration text', 'iteration beyond the run', 'seed text',
                            'learning rate NaN', 'optimizer state of other shapes',
                            'optimizer of another kind', 'schedulers with methods'}
    if door in ('test', 'infer', 'load_from'):
        assert 'another config' in found['other names'][1]
        assert 'another config' in found['half of the tensors'][1]
