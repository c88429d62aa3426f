"""What installing the project does: the start-up hook, the pins, the set-up scripts' messages.

The project is built once as a wheel and once as an editable wheel (the PEP 660 hook, which is what
`pip install -e .` calls), and each is installed into an empty environment, offline.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PTH = 'visattn_dense_startup.pth'
HOOK_LOADED = "import sys; print('visattn_dense_startup' in sys.modules)"
# Nothing of the environment that runs the tests may leak into the ones that they make.
CLEAN_ENV = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run to the end, output captured, with `CLEAN_ENV` unless another environment is given."""
    options = {'env': CLEAN_ENV, 'timeout': 900, **options}
    return subprocess.run(
        [str(part) for part in command],
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        **options,
    )


def succeed(*command: object, **options: object) -> str:
    """As `run`, and the standard output of a command that has to work."""
    done = run(*command, **options)
    assert done.returncode == 0, f'{command}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
    return done.stdout


def pip(venv: Path, *arguments: object) -> str:
    """This interpreter's pip, working on another environment."""
    return succeed(
        sys.executable,
        '-m',
        'pip',
        '--python',
        venv / 'bin' / 'python',
        '--disable-pip-version-check',
        *arguments,
        cwd=venv,
    )


def site_packages(venv: Path) -> Path:
    """Its path; uninstalling the last package may have removed the folder."""
    return venv / 'lib' / f'python3.{sys.version_info.minor}' / 'site-packages'


@pytest.fixture(scope='module')
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, and of what it must leave out; building leaves folders."""
    target = tmp_path_factory.mktemp('sources')
    files = [
        'setup.py',
        'pyproject.toml',
        'MANIFEST.in',
        'LICENSE',
        'README.md',
        'visattn_dense_startup.py',
        PTH,
    ]
    for name in files:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, target)
    for package in ('visattn_dense', 'demo', 'benchmarks'):
        shutil.copytree(
            ROOT / package,
            target / package,
            ignore=shutil.ignore_patterns('__pycache__', '*.pyc'),
        )
    return target


def build(sources: Path, hook: str, target: Path) -> Path:
    """One wheel by the build backend's own hook, as pip calls it."""
    code = f'import sys, setuptools.build_meta as b; b.{hook}(sys.argv[1])'
    succeed(sys.executable, '-c', code, target, cwd=sources)
    (wheel,) = target.glob('*.whl')
    return wheel


@pytest.fixture(scope='module')
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(sources, 'build_wheel', tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def editable(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(sources, 'build_editable', tmp_path_factory.mktemp('editable'))


def test_wheel_holds_the_files_that_are_no_modules(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    files = {f'{file.relative_to(ROOT)}' for file in (ROOT / 'visattn_dense').rglob('*')
             if file.is_file() and file.suffix not in ('.py', '.pyc')}
    assert files and files <= held


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An empty environment; without pip of its own it is made in a blink."""
    path = tmp_path / 'venv'
    succeed(sys.executable, '-m', 'venv', '--without-pip', path)
    return path


@pytest.mark.parametrize('kind', ['wheel', 'editable'])
def test_start_hook_runs_once_installed_and_goes_with_it(kind, request, venv):
    python = venv / 'bin' / 'python'
    assert succeed(python, '-c', HOOK_LOADED, cwd=venv).strip() == 'False'

    pip(venv, 'install', '--no-deps', '--no-index', request.getfixturevalue(kind))
    started = run(python, '-c', HOOK_LOADED, cwd=venv)
    assert started.stdout.strip() == 'True'
    assert started.stderr == ''

    pip(venv, 'uninstall', '--yes', 'visattn-dense')
    assert not (site_packages(venv) / PTH).exists()
    gone = run(python, '-c', HOOK_LOADED, cwd=venv)
    assert (gone.stdout.strip(), gone.stderr) == ('False', '')


def test_hook_without_its_module_is_silent(venv):
    shutil.copy(ROOT / PTH, site_packages(venv))
    started = run(venv / 'bin' / 'python', '-c', HOOK_LOADED, cwd=venv)
    assert (started.returncode, started.stdout.strip(), started.stderr) == (0, 'False', '')


def test_editable_install_is_the_checkout(editable, sources, venv):
    pip(venv, 'install', '--no-deps', '--no-index', editable)
    code = 'import visattn_dense_startup as s; print(s.__file__)'
    found = succeed(venv / 'bin' / 'python', '-c', code, cwd=venv).strip()
    assert Path(found) == sources / 'visattn_dense_startup.py'


def test_wheel_holds_every_module_and_nothing_else(wheel, sources):
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        names = {name for name in archive.namelist() if '.dist-info/' not in name}
    modules = {str(path.relative_to(sources)) for path in (sources / 'visattn_dense').rglob('*.py')}
    assert {name for name in names if name.endswith('.py')} == {
        *modules,
        'visattn_dense_startup.py',
    }
    assert {name.split('/')[0] for name in names} == {
        'visattn_dense',
        'visattn_dense_startup.py',
        PTH,
    }


def requirements(wheel: Path, extra: str = '') -> list[Requirement]:
    """What the built wheel asks for, unconditionally or under one extra."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        metadata = archive.read(name).decode()
    found = [Requirement(line) for line in re.findall(r'^Requires-Dist: (.+)$', metadata, re.M)]
    return [
        item
        for item in found
        if (item.marker is None) == (not extra)
        and (item.marker is None or item.marker.evaluate({'extra': extra}))
    ]


def pins(python_version: str) -> dict[str, str]:
    """requirements.txt as one Python reads it: normalised name -> version."""
    found: dict[str, str] = {}
    for line in (ROOT / 'requirements.txt').read_text().splitlines():
        if not line or line.startswith('#'):
            continue
        item = Requirement(line)
        if item.marker and not item.marker.evaluate({'python_version': python_version}):
            continue
        (pin,) = item.specifier
        assert pin.operator == '==', line
        name = item.name.lower().replace('_', '-')
        assert name not in found, f'{name} is pinned twice for Python {python_version}'
        found[name] = pin.version
    return found


@pytest.mark.parametrize('python_version', ['3.10', '3.11', '3.12', '3.13'])
def test_pins_are_within_the_ranges(wheel, python_version):
    pinned = pins(python_version)
    wanted = requirements(wheel) + requirements(wheel, 'lite')
    assert len(wanted) > 10
    for item in wanted:
        name = item.name.lower().replace('_', '-')
        assert name in pinned, f'requirements.txt does not pin {name}'
        assert item.specifier.contains(pinned[name]), f'{item} against {pinned[name]}'


def test_installing_never_touches_an_mmcv_unasked(wheel):
    """pip would lay mmcv-lite over a compiled mmcv; only the extras name either."""
    assert not [item for item in requirements(wheel) if item.name.startswith('mmcv')]
    assert [item.name for item in requirements(wheel, 'lite')] == ['mmcv-lite']
    assert [item.name for item in requirements(wheel, 'compiled')] == ['mmcv']


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that the set-up reads, in a folder whose name holds a space."""
    target = tmp_path / 'a checkout'
    (target / 'tools').mkdir(parents=True)
    for name in ('requirements.txt', 'setup.py', 'pyproject.toml', PTH, 'tools/setup_env.sh'):
        shutil.copy(ROOT / name, target / name)
    return target


def set_up(checkout: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in CLEAN_ENV.items() if 'VISATTN' not in key}
    environment.update({key: str(value) for key, value in variables.items()})
    return run('bash', checkout / 'tools' / 'setup_env.sh', env=environment, cwd='/')


@pytest.mark.parametrize(
    ('variables', 'words'),
    [
        ({'VISATTN_PYTHON': '/nonexistent/python3'}, ['/nonexistent/python3', '3.10']),
        ({'VISATTN_VENV': '/nonexistent'}, ['VISATTN_VENV=/nonexistent', 'unset VISATTN_VENV']),
    ],
)
def test_set_up_refuses_in_one_message(checkout, variables, words):
    done = set_up(checkout, **variables)
    assert done.returncode == 1
    assert done.stdout == ''
    assert len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert not (checkout / '.venv').exists()


def test_set_up_names_what_another_environment_lacks(checkout, venv):
    before = sorted(site_packages(venv).rglob('*'))
    done = set_up(checkout, VISATTN_VENV=venv)
    assert done.returncode == 1
    assert 'mmengine' in done.stderr and 'requirements.txt' in done.stderr
    assert sorted(site_packages(venv).rglob('*')) == before
    assert not (checkout / '.venv').exists()


def test_set_up_without_a_recent_python_says_so(checkout, tmp_path):
    """A PATH with the shell's own tools and no Python at all."""
    bare = tmp_path / 'bin'
    bare.mkdir()
    for tool in ('bash', 'dirname', 'cat', 'flock'):
        if found := shutil.which(tool):
            (bare / tool).symlink_to(found)
    done = set_up(checkout, PATH=bare)
    assert done.returncode == 1
    assert 'no Python 3.10 or newer found' in done.stderr
    assert 'VISATTN_PYTHON=' in done.stderr


def test_interrupted_set_up_is_not_taken_for_done(checkout, venv):
    """An environment without the stamp is completed, not used; here a package cannot be had."""
    if shutil.disk_usage(checkout).free < 10e9:
        pytest.skip('the set-up asks for more free disk than there is')
    (checkout / 'requirements.txt').write_text('torch==0.0.0\n')
    shutil.copytree(venv, checkout / '.venv', symlinks=True)
    # Lends it the pip that runs these tests, rather than unpacking another.
    borrowed = site_packages(checkout / '.venv') / 'borrowed.pth'
    borrowed.write_text(f'{Path(pytest.__file__).parents[1]}\n')
    done = set_up(checkout, PIP_NO_INDEX='1', PIP_FIND_LINKS='')
    assert done.returncode != 0
    assert done.stdout == ''
    assert 'setup.log' in done.stderr and 'No matching distribution' in done.stderr
    assert not (checkout / '.venv' / '.visattn-stamp').exists()
