"""Packaging of visattn-dense: all metadata, and the start-up hook as a file of the installation.

`visattn_dense_startup.pth` has to lie at the top of site-packages, where Python runs it at start.
setuptools has no option for that, so two commands are extended: `build_py` for wheels and
`editable_wheel` for `pip install -e .` (PEP 660). Either way pip records the file and removes it.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import zipfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
STARTUP_PTH = 'visattn_dense_startup.pth'

# Ranges are what we believe works; requirements.txt pins the set that the tests ran on.
INSTALL_REQUIRES = [
    # Any pair of torch and torchvision from PyPI that belong together. 2.6 is where torch.load
    # became weights-only by default. docs/compat.md says what was tested on which torch and Python.
    'torch>=2.6',
    'torchvision>=0.21',
    # OpenMMLab's last releases; visattn_dense.openmmlab.compat mends exactly these.
    'mmengine==0.10.7',
    'mmsegmentation==1.2.2',
    'mmdet==3.3.0',
    # mmseg imports these two without asking for them.
    'ftfy>=6.1',
    'regex>=2022.1',
    # mmengine imports pkg_resources, which later releases of setuptools no longer have.
    'setuptools>=64,<81',
    'timm>=1.0',
    'einops>=0.7',
    'safetensors>=0.4',
    'huggingface_hub>=0.23',
    'numpy>=1.26',
    'scipy>=1.11',
    'matplotlib>=3.8',
    'pycocotools>=2.0.7',
    'tqdm>=4.65',
    'filelock>=3.12',
    # versions, in the mends and the doctor
    'packaging>=23',
]

# mmcv has two distributions with one import name, and pip cannot say "either". Asking for
# mmcv-lite above would write over a compiled mmcv that stands already, so the choice is an extra.
EXTRAS_REQUIRE = {
    'lite': ['mmcv-lite==2.1.0'],
    'compiled': ['mmcv==2.1.0'],
    # COCO evaluation several times faster; without it pycocotools answers.
    'fast-eval': ['faster-coco-eval>=1.6'],
    # Writing H.264 videos; OpenCV, which mmcv needs, reads them.
    'video': ['av>=12'],
    # Pictures in TIFF files that do not fit into memory; without imagecodecs only uncompressed and
    # deflated ones.
    'tiff': ['tifffile>=2024.5', 'imagecodecs'],
    # Models as ONNX files; a program that only uses such a file needs onnxruntime alone.
    'export': ['onnx>=1.17', 'onnxscript>=0.5', 'onnxruntime>=1.20'],
    # YOLO, LabelMe and VOC to COCO, as docs/datasets.md shows.
    'convert': ['supervision>=0.31'],
    # examples/serve.py: a model behind HTTP.
    'serve': ['starlette>=0.40', 'uvicorn>=0.30'],
    # Polygons in GeoJSON.
    'geo': ['rasterio>=1.3'],
    # The curves of a training in the browser.
    'tensorboard': ['tensorboard>=2.16'],
    'dev': ['pytest>=8', 'pytest-xdist>=3.5', 'hypothesis>=6.100', 'ruff>=0.9',
            'import-linter>=2.15', 'pre-commit>=3.5'],
}


def read_version() -> str:
    """`__version__` of the package, read as text: importing it would already mend OpenMMLab."""
    text = (ROOT / 'visattn_dense' / '__init__.py').read_text(encoding='utf-8')
    match = re.search(r"^__version__ = '([^']+)'$", text, re.MULTILINE)
    if match is None:
        raise ValueError("visattn_dense/__init__.py has no line __version__ = '...'")
    return match.group(1)


def read_readme() -> str:
    """README.md, or nothing in a tree that was cut down to what a build needs."""
    path = ROOT / 'README.md'
    return path.read_text(encoding='utf-8') if path.is_file() else ''


def add_to_wheel(wheel: Path, name: str, content: bytes) -> None:
    """Add one file to the root of a built wheel, with its line in RECORD (PEP 427).

    The archive is written anew and swapped in: appending would leave two RECORDs in it.
    """
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()
    row = io.StringIO()
    csv.writer(row, lineterminator='\n').writerow([name, f'sha256={digest}', len(content)])
    partial = wheel.with_name(f'{wheel.name}.partial')
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(partial, 'w') as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith('.dist-info/RECORD'):
                # RECORD comes last, as PEP 427 recommends; the new file stands before it.
                new.writestr(name, content)
                data = row.getvalue().encode() + data
            new.writestr(item, data)
    os.replace(partial, wheel)


class BuildPyWithStartup(build_py):
    """`build_py` that also lays the .pth file beside the packages."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file(str(ROOT / STARTUP_PTH), os.path.join(self.build_lib, STARTUP_PTH))


class EditableWheelWithStartup(editable_wheel):
    """`editable_wheel` whose wheel also carries the .pth file."""

    def run(self) -> None:
        super().run()
        wheels = list(Path(self.dist_dir).glob('*.whl'))
        if not wheels:
            raise FileNotFoundError(f'setuptools left no editable wheel in {self.dist_dir}')
        newest = max(wheels, key=lambda path: path.stat().st_mtime_ns)
        add_to_wheel(newest, STARTUP_PTH, (ROOT / STARTUP_PTH).read_bytes())


setup(
    name='visattn-dense',
    version=read_version(),
    description='Efficient-attention backbones for segmentation and detection on OpenMMLab 2',
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.10',
    packages=find_packages(include=['visattn_dense', 'visattn_dense.*']),
    py_modules=['visattn_dense_startup'],
    include_package_data=True,
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    cmdclass={'build_py': BuildPyWithStartup, 'editable_wheel': EditableWheelWithStartup},
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
)
