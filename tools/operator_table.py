#!/usr/bin/env python
"""Write the tables of mmcv's operators in docs/compat.md: what computes each, and which raise."""
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from visattn_dense.openmmlab.compat import mmcv_ext  # noqa: E402

PAGE = ROOT / 'docs' / 'compat.md'
BEGIN = '<!-- operators: python tools/operator_table.py writes from here -->\n'
END = '<!-- operators: to here -->\n'


def tables() -> str:
    """The operators that work, by the file that has them, and the names of those that raise."""
    families: dict[str, dict[str, str]] = {}
    for name, (function, backend) in mmcv_ext.IMPLEMENTED.items():
        families.setdefault(function.__module__, {})[f'`{name}`'] = backend
    lines = ['| operator of mmcv | computed by | what it is |', '| --- | --- | --- |']
    for module, family in sorted(families.items()):
        backends = ', '.join(dict.fromkeys(family.values()))
        what = sys.modules[module].__doc__.splitlines()[0]
        lines.append(f'| {", ".join(family)} | {backends} | {what} |')
    missing = [name for name in mmcv_ext.MMCV_OPS if name not in mmcv_ext.IMPLEMENTED]
    listed = textwrap.fill(
        ' '.join(f'`{name}`' for name in missing), 100, break_long_words=False,
        break_on_hyphens=False)
    return '\n'.join([
        '', *lines, '', f'The other {len(missing)} raise `MissingOpError` when they are called:',
        '', listed, '', ''])


def page(text: str) -> str:
    """`text` of docs/compat.md with the present tables."""
    before, rest = text.split(BEGIN)
    return f'{before}{BEGIN}{tables()}{END}{rest.split(END)[1]}'


if __name__ == '__main__':
    PAGE.write_text(page(PAGE.read_text()))
    print(f'wrote {PAGE}')
