"""The range of torch and Python: what setup.py states is what tools/test_matrix.py ran."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import test_matrix as tool  # noqa: E402

from visattn_dense.errors import UserError  # noqa: E402

SETUP = (ROOT / 'setup.py').read_text(encoding='utf-8')
PINS = (ROOT / 'requirements.txt').read_text(encoding='utf-8')


def bound(package: str) -> str:
    """The range that setup.py states for a package."""
    return re.search(rf"^    '{package}([<>=][^']+)',$", SETUP, re.MULTILINE)[1]


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split('.')]


def test_lowest_row_is_the_lower_end_of_the_range():
    row = tool.ROWS['lowest']
    assert f"python_requires='>={row.python}'" in SETUP
    pins = dict(pin.split('==') for pin in row.pins)
    for package in ('torch', 'torchvision'):
        (lowest,) = SpecifierSet(bound(package))
        assert lowest.operator == '>='
        assert numbers(lowest.version) == numbers(pins[package])[:2]


def test_highest_row_is_the_newest_python_of_the_classifiers():
    stated = re.findall(r"'Programming Language :: Python :: (3\.\d+)'", SETUP)
    assert tool.ROWS['highest'].python == max(stated, key=numbers)


def test_no_row_of_the_page_failed():
    """The range is what passed."""
    page = tool.PAGE.read_text(encoding='utf-8')
    lines = page.split(tool.BEGIN)[1].split(tool.END)[0].splitlines()
    lines = [line for line in lines if line.startswith('| 2')]
    assert {row.python for row in tool.ROWS.values()} <= {
        '.'.join(map(str, tool.key(line)[1])) for line in lines}
    for line in lines:
        assert re.search(r'\| \d+ passed', line) and 'failed' not in line, line


def test_every_file_of_the_core_is_there():
    files = tool.core_files()
    assert len(set(files)) == len(files) and all((ROOT / file).is_file() for file in files)


def test_pins_of_a_row_stand_in_for_the_lines_of_requirements():
    row = tool.ROWS['lowest']
    before, after = PINS.splitlines(), tool.requirements(PINS, row).splitlines()
    # torch has a line for old Pythons and one for the others; the row's pin replaces both.
    assert [line for line in after if tool.package(line) == 'torch'] == ['torch==2.6.0']
    assert set(after) - set(before) == set(row.pins)
    assert {tool.package(line) for line in before} == {tool.package(line) for line in after}
    with pytest.raises(UserError, match='does not pin torhc'):
        tool.requirements(PINS, tool.Row('3.10', ('torhc==2.6.0',)))


def test_results_of_a_real_run(tmp_path: Path):
    (tmp_path / 'test_some.py').write_text('''
import pytest

@pytest.fixture
def breaks():
    yield
    raise OSError

def test_good(): pass
def test_bad(breaks): assert 1 == 2
def test_broken(breaks): pass
@pytest.mark.skip
def test_left_out(): pass
''')
    file = tmp_path / 'results.xml'

    def results(*options: str) -> tuple[str, bool]:
        subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider',
                        f'--junitxml={file}', f'--rootdir={tmp_path}', *options],
                       cwd=tmp_path, capture_output=True)
        return tool.read_results([file])

    assert results() == ('1 passed, 1 skipped, 2 failed: `test_some::test_bad` '
                         '`test_some::test_broken`', False)
    assert results('-k', 'good or left_out') == ('1 passed, 1 skipped', True)
    assert results('-k', 'nothing') == ('no tests ran', False)


def test_an_interrupted_run_goes_on_after_its_last_whole_file(tmp_path: Path):
    """Interrupted in a test, as by Ctrl-C: pytest then writes the tests that it has."""
    results = tmp_path / 'results'
    results.mkdir()
    (tmp_path / 'pytest.ini').write_text('[pytest]')
    (tmp_path / 'test_one.py').write_text(
        "def test_one():\n    with open('runs.txt', 'a') as file:\n        file.write('one ')\n")
    second = tmp_path / 'test_two.py'
    # No signal: a process in the background may ignore SIGINT.
    second.write_text('def test_two(): pass\n\ndef test_three(): raise KeyboardInterrupt\n')

    def run() -> tuple[str, bool]:
        files = tool.run_files(sys.executable, tmp_path, ['test_one.py', 'test_two.py'], results)
        return tool.read_results(files)

    with pytest.raises(UserError, match=r'test_two\.py.*2'):
        run()
    second.write_text('def test_two(): pass\n\ndef test_three(): assert False\n')
    assert run() == ('2 passed, 1 failed: `test_two::test_three`', False)
    assert (tmp_path / 'runs.txt').read_text() == 'one '


def test_a_new_line_replaces_the_old_one_of_its_torch_and_python():
    page = f'above\n{tool.BEGIN}\n| a | table |\n| --- | --- |\n\n{tool.END}below\n'
    lines = ['| 2.15.0 | 0.29.2 | 3.13.0 | 7 passed | today |',
             '| 2.6.0 | 0.21.0 | 3.10.13 | 6 passed, 1 failed: `x::y` | today |',
             '| 2.6.0 | 0.21.0 | 3.10.19 | 7 passed | today |']
    for line in lines:
        page = tool.with_line(page, line)
    assert page.startswith('above\n') and page.endswith(f'\n{tool.END}below\n')
    assert [line for line in page.splitlines() if line.startswith('| 2')] == [lines[2], lines[0]]


@pytest.mark.parametrize(('arguments', 'words'), [
    ([], ["no Python 3.", '/nowhere', '--python 3.']),
    (['lowst'], ["'lowst'", "'lowest'"]),
    (['lowest', '--python', f'3.10={os.devnull}'], [f'3.10={os.devnull}', 'not a Python 3.10']),
    (['lowest', '--python', 'python3.10'], ['VERSION=EXECUTABLE', 'python3.10']),
])
def test_what_cannot_run_is_one_message(arguments, words, tmp_path: Path):
    done = subprocess.run([sys.executable, ROOT / 'tools' / 'test_matrix.py', *arguments],
                          capture_output=True, text=True, cwd=tmp_path,
                          env={'PATH': str(tmp_path), 'PYENV_ROOT': '/nowhere'})
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr
    assert 'Traceback' not in done.stderr
