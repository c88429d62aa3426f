#!/usr/bin/env python
"""Run the core of the tests on the lowest and the highest torch and Python, in new environments.

    python tools/test_matrix.py                    # every row
    python tools/test_matrix.py lowest --folder F  # one row; the environment stays in F/lowest
    python tools/test_matrix.py --python 3.10=/opt/python3.10/bin/python

A row takes about 3 GB of downloads, 9 GB of disk and half an hour of one core. The results are
written into docs/compat.md; the exit code is 1 where a test failed. A run with --folder that was
interrupted goes on, with the copy of the checkout that it began with.
"""
import argparse
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from _checkout import ROOT

from visattn_dense import command
from visattn_dense.errors import UserError, did_you_mean

PAGE = ROOT / 'docs' / 'compat.md'
BEGIN = '<!-- tested: python tools/test_matrix.py writes from here -->\n'
END = '<!-- tested: to here -->\n'
HEAD = ['| torch | torchvision | Python | result | date |', '| --- | --- | --- | --- | --- |']


@dataclass(frozen=True)
class Row:
    """One environment: requirements.txt, with `pins` in the place of its lines for these packages.

    `python` is a version, as '3.10'.
    """

    python: str
    pins: tuple[str, ...] = ()


#: The ends of the ranges in setup.py. What torch itself asks for exactly is pinned with it.
ROWS = {
    'lowest': Row('3.10', ('torch==2.6.0', 'torchvision==0.21.0', 'sympy==1.13.1')),
    'highest': Row('3.13'),
}

#: The tests that depend on torch or Python more than others, by what they show.
CORE = {
    'backbones': ('cswin', 'flatten_cswin', 'biformer', 'efficientvit', 't2t_vit', 'layers'),
    'operators': ('ops', 'block', 'native', 'measured', 'graphs', 'mmcv_ext', 'mmcv_operators',
                  'registered', 'routed_triton', 'triton_forms', 'training_graphs', 'few_launches'),
    'checkpoints': ('checkpoints', 'checkpoint_properties'),
    'compilation': ('torch_compile', 'dynamic_shapes'),
    'registry and installation': ('registry', 'packaging'),
    'mends': ('compat', 'doctor'),
    'numbers of the official code': ('goldens', 'classifier', 'efficientvit_seg'),
    'tiny trainings': ('detection', 'finetune', 'zoo_runs'),
    'timm': ('interop',),
}


def core_files() -> list[str]:
    """The test files of CORE, relative to the checkout."""
    return [f'tests/test_{name}.py' for names in CORE.values() for name in names]


def package(line: str) -> str:
    """The normalised name that a line `NAME==VERSION` pins."""
    return line.split('==')[0].strip().lower().replace('_', '-')


def requirements(text: str, row: Row) -> str:
    """`text` of requirements.txt with the pins of `row`.

    Raises:
        UserError: a pin of the row stands for no line of requirements.txt.
    """
    own = {package(pin): pin for pin in row.pins}
    lines = text.splitlines()
    if unknown := set(own) - {package(line) for line in lines}:
        raise UserError(f'requirements.txt does not pin {", ".join(sorted(unknown))}')
    return '\n'.join([*(line for line in lines if package(line) not in own), *own.values(), ''])


def version_of(python: str | Path) -> str:
    """What a Python says that it is, as '3.10.13'; empty where it does not run."""
    code = "import platform; print(platform.python_version())"
    try:
        done = subprocess.run([python, '-c', code], capture_output=True, text=True)
    except OSError:
        return ''
    return done.stdout.strip() if done.returncode == 0 else ''


def find_python(version: str, named: dict[str, str]) -> str:
    """The Python of one version: the named one, this one, one on PATH or one of pyenv's.

    Raises:
        UserError: there is none.
    """
    def fits(python: str | Path) -> bool:
        return version_of(python).split('.')[:2] == version.split('.')

    if version in named:
        if not fits(named[version]):
            raise UserError(
                f'--python {version}={named[version]} is not a Python {version} that runs')
        return named[version]
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv')) / 'versions'
    for python in (sys.executable, f'python{version}', *pyenv.glob(f'{version}.*/bin/python')):
        if fits(python):
            return str(python)
    raise UserError(
        f'no Python {version} was found (looked for python{version} on PATH and in {pyenv}). '
        f'Install it, or name it: --python {version}=/path/to/python')


def clean_environment() -> dict[str, str]:
    """The environment without what would lead another Python to other packages."""
    return {key: value for key, value in os.environ.items()
            if key not in ('PYTHONPATH', 'PYTHONHOME') and not key.startswith('VISATTN_')}


def copy_checkout(target: Path) -> None:
    """What git knows or would add, as it stands now, and the folder of real data beside it."""
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
                            cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split('\0')):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    shared = ROOT.parent / 'shared'
    if shared.is_dir() and not (target.parent / 'shared').exists():
        (target.parent / 'shared').symlink_to(shared)


def run_files(python: str, checkout: Path, files: Iterable[str], results: Path) -> list[Path]:
    """Run test files one after the other, without those that have a result: their JUnit files.

    Raises:
        UserError: pytest did not get to the end of a file.
    """
    written = []
    for file in files:
        result = results / f'{Path(file).stem}.xml'
        written.append(result)
        if result.exists():
            continue
        partial = result.with_suffix('.partial')
        done = subprocess.run(
            [python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', f'--junitxml={partial}', file],
            cwd=checkout, env={'OMP_NUM_THREADS': '1', **clean_environment()})
        # 1: a test failed. An interrupted pytest also writes what it has.
        if done.returncode not in (0, 1):
            raise UserError(f'pytest did not get to the end of {file} (exit code '
                            f'{done.returncode}): the lines above say why')
        partial.rename(result)
    return written


def read_results(files: Iterable[Path]) -> tuple[str, bool]:
    """The results in words, from pytest's JUnit files, and whether every test passed."""
    # A test that fails in its call and in its teardown is written as two cases.
    cases: dict[str, set[str]] = {}
    for case in (case for file in files for case in ElementTree.parse(file).iter('testcase')):
        name = f'`{case.get("classname").replace(".", "/")}::{case.get("name")}`'
        cases.setdefault(name, set()).update(child.tag for child in case)
    failed = [name for name, kinds in cases.items() if kinds & {'failure', 'error'}]
    skipped = sum('skipped' in kinds for kinds in cases.values())
    counts = {'passed': len(cases) - len(failed) - skipped, 'skipped': skipped}
    words = ', '.join(f'{count} {kind}' for kind, count in counts.items() if count)
    if failed:
        words = ', '.join(filter(None, [words, f'{len(failed)} failed: {" ".join(failed)}']))
    return words or 'no tests ran', bool(cases) and not failed


def try_row(row: Row, python: str, folder: Path) -> tuple[str, bool]:
    """Install the row below `folder`, run the core: the line of the table, and whether it passed.

    Raises:
        UserError: the environment could not be made, or pytest did not get as far as a result.
    """
    checkout, results, env = folder / 'visattn-dense', folder / 'results', clean_environment()
    if not results.exists():
        copy_checkout(checkout)
        wanted = checkout / 'requirements.txt'
        wanted.write_text(requirements((ROOT / 'requirements.txt').read_text(), row))
        results.mkdir()
    set_up = subprocess.run(['bash', checkout / 'tools' / 'setup_env.sh'], stdout=subprocess.PIPE,
                            text=True, env={**env, 'VISATTN_PYTHON': python})
    if set_up.returncode:
        raise UserError(f'the environment in {checkout} could not be made: the lines above say why')
    own = set_up.stdout.strip()
    words, passed = read_results(run_files(own, checkout, core_files(), results))
    code = ("import platform; from importlib.metadata import version; "
            "print(version('torch'), version('torchvision'), platform.python_version(), sep=' | ')")
    versions = subprocess.run([own, '-c', code], check=True, capture_output=True, text=True,
                              env=env).stdout.strip()
    shutil.rmtree(results)
    today = datetime.date.today()
    return f'| {versions} | {words} | {today.day} {today:%B %Y} |', passed


def key(line: str) -> tuple[list[int], list[int]]:
    """What a line of the table is about: torch, and Python without its patch, as numbers."""
    torch, _, python = (cell.strip() for cell in line.split('|')[1:4])
    numbers = [[int(part) for part in text.split('+')[0].split('.')] for text in (torch, python)]
    return numbers[0], numbers[1][:2]


def with_line(text: str, line: str) -> str:
    """`text` of docs/compat.md with `line` in its table, in the place of the older one."""
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    lines = [old for old in table.split('\n') if old.startswith('|')][len(HEAD):]
    lines = sorted([*(old for old in lines if key(old) != key(line)), line], key=key)
    return '\n'.join([f'{before}{BEGIN}', *HEAD, *lines, '', f'{END}{after}'])


def named_python(text: str) -> tuple[str, str]:
    """'3.10=/usr/bin/python3.10' as the two parts."""
    version, equals, path = text.partition('=')
    if not (version and equals and path):
        raise argparse.ArgumentTypeError(
            f'give VERSION=EXECUTABLE, as 3.10=/usr/bin/python3.10, not {text}')
    return version, path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('rows', nargs='*', metavar='ROW',
                        help=f'which rows (default: all): {", ".join(ROWS)}')
    parser.add_argument('--python', action='append', default=[], type=named_python,
                        metavar='VERSION=EXECUTABLE', help='a Python that is not on PATH')
    parser.add_argument('--folder', type=Path,
                        help='where the environments are made and stay (default: a folder of the '
                             'system for temporary files, removed at the end)')
    command.add_debug(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    for name in args.rows:
        if name not in ROWS:
            raise UserError(f"there is no row '{name}'. {did_you_mean(name, ROWS)}")
    rows = {name: ROWS[name] for name in args.rows or ROWS}
    # All of them first: a missing Python is told before an hour of work.
    pythons = {name: find_python(row.python, dict(args.python)) for name, row in rows.items()}
    passed = True
    for name, row in rows.items():
        print(f'== {name}: Python {row.python} ({pythons[name]}), '
              f'{", ".join(row.pins) or "requirements.txt as it is"}', flush=True)
        if args.folder is None:
            with tempfile.TemporaryDirectory(prefix=f'matrix-{name}-') as folder:
                line, good = try_row(row, pythons[name], Path(folder))
        else:
            line, good = try_row(row, pythons[name], args.folder.resolve() / name)
        PAGE.write_text(with_line(PAGE.read_text(encoding='utf-8'), line), encoding='utf-8')
        print(f'== {name}: {line}\nwrote {PAGE}', flush=True)
        passed &= good
    return 0 if passed else 1


if __name__ == '__main__':
    sys.exit(command.run(main, parse_args()))
