#!/usr/bin/env python
"""Compile the operators of mmcv that have a CPU form here, to compare ours with them.

    python tools/build_mmcv_cpu.py FOLDER
    MMCV_COMPILED=FOLDER python -m pytest tests/test_compiled_mmcv.py

The sources are those inside the installed mmcv-lite, unchanged. Needs a C++20 compiler and ninja.
Takes minutes; the whole of mmcv takes most of an hour.
"""
import argparse
import re
from importlib.util import find_spec
from pathlib import Path

from torch.utils import cpp_extension

FILES = ('nms', 'roi_align', 'deform_conv', 'modulated_deform_conv', 'psamask')
#: The functions of these files that mmcv's Python calls.
NAMES = re.compile(
    r'nms|softnms|nms_match|roi_align_(forward|backward)|(modulated_)?deform_conv_\w+|psamask_\w+')


def bindings(text: str) -> str:
    """mmcv's pybind.cpp with the definitions of NAMES only; declarations stay."""
    head, body = text.split('PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {')
    kept = [statement for statement in re.findall(r'm\.def\(.*?\);', body, re.DOTALL)
            if NAMES.fullmatch(re.search(r'"(\w+)"', statement)[1])]
    return f'{head}PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {{\n{chr(10).join(kept)}\n}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help='where _ext.so and its object files go')
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sources = Path(find_spec('mmcv').origin).parent / 'ops' / 'csrc'
    units = {'bindings': bindings((sources / 'pytorch' / 'pybind.cpp').read_text())}
    # Two files with the same name in two folders would become one object file.
    for name in FILES:
        for part in ('', 'cpu'):
            file = sources / 'pytorch' / part / f'{name}.cpp'
            units[f'{name}_{part}'] = f'#include "{file}"\n'
    for name, text in units.items():
        (folder / f'{name}.cpp').write_text(text)
    cpp_extension.load(
        '_ext', [str(folder / f'{name}.cpp') for name in units],
        extra_include_paths=[str(sources / 'common')], extra_cflags=['-O1', '-w'],
        build_directory=str(folder), is_python_module=False, verbose=True)


if __name__ == '__main__':
    main()
