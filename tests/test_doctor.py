"""`python -m visattn_dense.doctor` as a user runs it: healthy, and with things broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from visattn_dense import doctor

ROOT = Path(__file__).resolve().parents[1]
for needed in ('mmengine', 'mmcv', 'mmseg', 'mmdet'):
    pytest.importorskip(needed)


def run(*arguments: str, first: Path | None = None) -> subprocess.CompletedProcess:
    """Run the doctor, with the folder `first` before everything else on its path."""
    paths = [str(path) for path in (first, ROOT) if path]
    return subprocess.run(
        [sys.executable, '-m', 'visattn_dense.doctor', *arguments], capture_output=True, text=True,
        cwd=ROOT.parent, env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths)))


def stub(folder: Path, module: str, source: str) -> Path:
    """A module that hides the installed one."""
    (folder / module).mkdir()
    (folder / module / '__init__.py').write_text(source)
    return folder


def test_a_healthy_machine():
    done = run('--json')
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report['problems'] == []
    for name in ('python', 'torch', 'torchvision', 'numpy', 'mmengine', 'mmsegmentation', 'mmdet',
                 'timm', 'einops', 'visattn_dense'):
        assert report['versions'][name][0].isdigit()
    assert 'CSWin' in report['backbones']
    tried = {kernel['op']: kernel['result'] for kernel in report['kernels']
             if kernel['device'] == 'cpu'}
    assert tried == {'nms': 'ok', 'roi_align': 'ok'}
    statuses = {mend['name']: mend['status'] for mend in report['mends']}
    assert statuses['safe-resume'] == 'mended'
    assert not [name for name, status in statuses.items() if status.startswith(('failed', 'wait'))]


def test_json_stays_json_where_libraries_print(tmp_path: Path):
    """A first call on a machine says that it compiles the kernels, for example."""
    (tmp_path / 'sitecustomize.py').write_text(
        'import sys\n'
        'class Loud:\n'
        '    def find_spec(self, name, *_):\n'
        "        if name == 'mmdet':\n"
        "            print('11/28 17:00:58 - loading')\n"
        'sys.meta_path.insert(0, Loud())\n')
    done = run('--json', first=tmp_path)
    assert json.loads(done.stdout)['versions'], done.stdout[:200]
    assert 'loading' in done.stderr


def test_torchvision_without_its_kernels(tmp_path: Path):
    source = 'raise RuntimeError("operator torchvision::nms does not exist")'
    done = run(first=stub(tmp_path, 'torchvision', source))
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'torchvision::nms does not exist' in done.stdout
    assert 'fix: python -m pip install --force-reinstall torch torchvision' in done.stdout
    # What does not depend on it was examined all the same.
    assert 'safe-resume: mended' in done.stdout


def test_mmcv_too_new_and_a_package_missing(tmp_path: Path):
    stub(tmp_path, 'mmcv', '__version__ = "2.2.0"')
    stub(tmp_path, 'einops', 'raise ModuleNotFoundError("No module named \'einops\'")')
    done = run('--json', first=tmp_path)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    problems = {problem['what']: problem['fix'] for problem in json.loads(done.stdout)['problems']}
    fix = next(fix for what, fix in problems.items() if '2.2.0 is outside' in what)
    assert 'uninstall' in fix and "'mmcv-lite==2.1.0'" in fix
    assert any('einops' in what and 'einops' in fix for what, fix in problems.items())
    # mmseg and mmdet fail because of mmcv, and are not blamed for it.
    assert not any('mmseg' in what or 'mmdet' in what for what in problems)


def test_setuptools_without_pkg_resources(tmp_path: Path):
    source = 'raise ModuleNotFoundError("No module named \'pkg_resources\'")'
    done = run(first=stub(tmp_path, 'pkg_resources', source))
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert "fix: python -m pip install 'setuptools<81'" in done.stdout


@pytest.mark.parametrize('version, problems', [
    ('2.3.6', []), ('2.4.0', ['onedl-cvlike 2.4.0 is outside ==2.3.6'])])
def test_a_fork_stands_in_the_place_of_its_original(version, problems, tmp_path, monkeypatch):
    (tmp_path / 'cvlike.py').write_text(f'__version__ = {version!r}')
    info = tmp_path / f'onedl_cvlike-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Name: onedl-cvlike\nVersion: {version}\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'cvlike', raising=False)
    report = doctor.Report()
    package = doctor.Package('cvlike', 'cvlike|cvlike-lite', '==2.1.0', 'install it',
                             fork=('onedl-cvlike', '==2.3.6'))
    assert doctor._examine_package(package, set(), report) == (not problems)
    assert report.versions == {'onedl-cvlike': version}
    assert [problem['what'] for problem in report.problems] == problems


def test_text_names_the_problem_and_its_fix():
    report = doctor.Report(versions={'python': '3.11.0'})
    assert 'Healthy' in doctor.render(report)
    report.problem('something is broken', 'mend it')
    text = doctor.render(report)
    assert 'something is broken' in text and 'fix: mend it' in text and 'Healthy' not in text
