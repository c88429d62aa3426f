"""`python -m visattn_dense.doctor`: what is installed, what was mended, what is wrong.

Every finding that stops a user's work comes with the command that puts it right. The exit code is 0
when nothing needed is broken and 1 otherwise. A package that is missing or cannot be imported is a
finding, not a crash. `--json` prints the same report for programs.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import importlib
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from packaging.specifiers import SpecifierSet

import visattn_dense
from visattn_dense import command
from visattn_dense.openmmlab import compat
from visattn_dense.openmmlab.compat.mend import installed_version

PIP = 'python -m pip install'
FIX_TORCH = f'{PIP} --force-reinstall torch torchvision'
FIX_MMCV = f"python -m pip uninstall -y mmcv mmcv-lite && {PIP} 'mmcv-lite==2.1.0'"


@dataclass(frozen=True)
class Package:
    """Something that has to be importable, in a version that is known to work.

    Attributes:
        module: what is imported. distributions: what pip may call it, '|' between names.
        versions: supported range (PEP 440), as in setup.py.
        fix: the command that installs a good one.
        after: modules without which it cannot be imported; their fault is not counted twice.
        fork: the distribution that may stand in its place, and its range; the second stack of
            docs/compat.md.
    """

    module: str
    distributions: str
    versions: str
    fix: str
    after: tuple[str, ...] = ()
    fork: tuple[str, str] = ('', '')


PACKAGES = (
    Package('torch', 'torch', '>=2.6', f'{PIP} --upgrade torch torchvision'),
    Package('torchvision', 'torchvision', '>=0.21', FIX_TORCH, ('torch',)),
    Package('numpy', 'numpy', '>=1.26', f"{PIP} --upgrade 'numpy>=1.26'"),
    Package('cv2', 'opencv-python|opencv-python-headless', '>=4.5',
            f'{PIP} --force-reinstall opencv-python-headless', ('numpy',)),
    # mmengine needs pkg_resources for a config that is based on one of mmseg or mmdet.
    Package('pkg_resources', 'setuptools', '>=64,<81', f"{PIP} 'setuptools<81'"),
    Package('mmengine', 'mmengine|mmengine-lite', '==0.10.7', f"{PIP} 'mmengine==0.10.7'",
            ('torch', 'numpy', 'cv2'), ('onedl-mmengine', '==0.10.12')),
    Package('mmcv', 'mmcv|mmcv-lite', '>=2.0.0rc4,<2.2.0', FIX_MMCV, ('mmengine',),
            ('onedl-mmcv', '==2.3.6')),
    Package('mmseg', 'mmsegmentation', '==1.2.2', f"{PIP} 'mmsegmentation==1.2.2' ftfy regex",
            ('mmcv',), ('onedl-mmsegmentation', '==1.4.2')),
    Package('mmdet', 'mmdet', '==3.3.0', f"{PIP} 'mmdet==3.3.0'", ('mmcv',),
            ('onedl-mmdetection', '==3.5.1')),
    Package('timm', 'timm', '>=1.0', f"{PIP} 'timm>=1.0'", ('torch', 'torchvision')),
    Package('einops', 'einops', '>=0.7', f"{PIP} 'einops>=0.7'"),
)


@dataclass
class Report:
    """What the doctor found. `problems` are pairs of what is wrong and the command against it."""

    versions: dict[str, str] = field(default_factory=dict)
    mends: list[dict[str, str]] = field(default_factory=list)
    kernels: list[dict[str, str]] = field(default_factory=list)
    native: str = ''
    gpus: list[str] = field(default_factory=list)
    backbones: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)

    def problem(self, what: str, fix: str) -> None:
        self.problems.append({'what': what, 'fix': fix})


def examine() -> Report:
    """Look at everything; never raises for what it finds."""
    report = Report()
    report.versions['python'] = platform.python_version()
    report.versions['visattn_dense'] = visattn_dense.__version__
    broken: set[str] = set()
    for package in PACKAGES:
        if not _examine_package(package, broken, report):
            broken.add(package.module)
    if all(installed_version(name) for name in ('mmcv', 'mmcv-lite')):
        report.problem('mmcv and mmcv-lite are both installed and overwrite each other', FIX_MMCV)
    usable = {package.module for package in PACKAGES} - broken
    if 'torch' in usable:
        _examine_gpus(report)
    if 'mmengine' in usable:
        _examine_mends(report)
    if {'torch', 'mmcv'} <= usable:
        _examine_kernels(report)
    if 'torch' in usable:
        _examine_native(report)
    if {'torch', 'timm'} <= usable:
        _examine_backbones(report, 'mmengine' in usable)
    return report


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0] if lines else "(no message)"}'


def _examine_package(package: Package, broken: set[str], report: Report) -> bool:
    """Import it and judge its version; returns whether others may rely on it."""
    names, wanted = package.distributions.split('|'), package.versions
    if not installed_version(*names) and installed_version(package.fork[0]):
        names, wanted = [package.fork[0]], package.fork[1]
    label = next((name for name in names if installed_version(name)), names[0])
    waits = [module for module in package.after if module in broken]
    if waits:
        report.versions[label] = (
            f'{installed_version(*names) or "missing"} (not tried: needs {", ".join(waits)})')
        return False
    try:
        module = importlib.import_module(package.module)
    # Broken binaries and version checks raise whatever they like.
    except Exception as error:
        found = installed_version(*names)
        report.versions[label] = f'{found} (broken)' if found else 'missing'
        what = f'{label} {found} cannot be imported' if found else f'{label} is not installed'
        report.problem(f'{what}: {_first_line(error)}', package.fix)
        return False
    version = getattr(module, '__version__', None) or installed_version(*names) or 'unknown'
    report.versions[label] = str(version)
    if version == 'unknown':
        report.notes.append(f'{label} does not tell its version')
    elif not SpecifierSet(wanted, prereleases=True).contains(str(version).split('+')[0]):
        report.problem(f'{label} {version} is outside {wanted}', package.fix)
        return False
    return True


def _examine_gpus(report: Report) -> None:
    import torch

    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        report.gpus.append(
            f'{index}: {device.name}, {device.total_memory / 2**30:.0f} GiB, '
            f'compute capability {device.major}.{device.minor}')
    if not report.gpus and glob.glob('/dev/nvidia[0-9]*'):
        cause = 'it is a build for the CPU only'
        if torch.version.cuda is not None:
            cause = f'see nvidia-smi: its driver may be too old for CUDA {torch.version.cuda}'
        report.notes.append(f'torch {torch.__version__} does not see the NVIDIA GPU; {cause}')


def _examine_mends(report: Report) -> None:
    """Import what the mends wait for, list what became of them, and try the one for resuming."""
    for mend in compat.mends():
        try:
            importlib.import_module(mend.module)
        except Exception as error:
            report.notes.append(f'{mend.module} cannot be imported: {_first_line(error)}')
        status = mend.status()
        report.mends.append(
            {'name': mend.name, 'status': status, 'what': mend.what, 'issue': mend.issue})
        if status.startswith('failed'):
            report.problem(f"the mend '{mend.name}' {status}", f"{PIP} 'mmengine==0.10.7'")
    try:
        _resume_once()
    except Exception as error:
        report.problem(f'training checkpoints cannot be resumed: {_first_line(error)}', FIX_TORCH)


def _resume_once() -> None:
    """Write what a training checkpoint of mmengine holds, and read it as mmengine does."""
    import torch
    from mmengine.logging import HistoryBuffer
    from mmengine.runner.checkpoint import CheckpointLoader

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'iter_1.pth')
        torch.save({'message_hub': {'log_scalars': {'loss': HistoryBuffer([1.0], [1])}}}, path)
        loaded = CheckpointLoader.load_checkpoint(path, logger='silent')
    if loaded['message_hub']['log_scalars']['loss'].current() != 1.0:
        raise ValueError('the history of logged values is lost')


def _examine_kernels(report: Report) -> None:
    """Run the operators that detection cannot do without, on every kind of device."""
    import torch

    try:
        extension = importlib.import_module('mmcv._ext')
        ops = importlib.import_module('mmcv.ops')
    except Exception as error:
        report.problem(f'the operators of mmcv cannot be imported: {_first_line(error)}', FIX_MMCV)
        return
    answers = getattr(extension, 'IMPLEMENTED', None)
    devices = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
    for op, names, check in (
        ('nms', ('nms',), _check_nms),
        ('roi_align', ('roi_align_forward', 'roi_align_backward'), _check_roi_align),
    ):
        backend = 'compiled mmcv' if answers is None else answers[names[0]][1]
        for device in devices:
            result = _outcome(lambda check=check, device=device: check(ops, device))
            report.kernels.append(
                {'op': op, 'device': device, 'by': backend, 'result': result})
            if result != 'ok':
                fix = FIX_TORCH if answers is not None else FIX_MMCV
                report.problem(f'{op} on {device}: {result}', fix)
    if answers is not None:
        for name, (_, backend) in sorted(answers.items()):
            if name not in ('nms', 'roi_align_forward', 'roi_align_backward'):
                report.kernels.append(
                    {'op': name, 'device': 'any', 'by': backend, 'result': 'not tried'})
        missing = [name for name in extension.MMCV_OPS if name not in answers]
        report.notes.append(
            f'{len(missing)} further operators of mmcv raise an error when they are called; the '
            f'compiled mmcv has them: {extension.COMPILED_MMCV}')


def _examine_native(report: Report) -> None:
    """Compile the inference kernels, or say why there are none: nothing depends on them."""
    from visattn_dense.ops import native

    reason = native.why_not()
    tiles = ', with its tile registers (AMX)' if native.tiles() else ''
    report.native = (f'compiled for this processor{tiles}' if reason is None
                     else f"none, torch's operators serve: {reason}")


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:
        return _first_line(error)
    return 'ok'


def _check_nms(ops: object, device: str) -> None:
    import torch

    boxes = torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 3.], [9., 9., 12., 12.]], device=device)
    kept = ops.nms(boxes, torch.tensor([0.8, 0.9, 0.1], device=device), 0.5)[1].tolist()
    if kept != [1, 2]:
        raise ArithmeticError(f'wrong answer {kept}')


def _check_roi_align(ops: object, device: str) -> None:
    import torch

    # The mean of a linear ramp over a box inside the map is the ramp at the box's centre.
    ramp = torch.arange(8., device=device).expand(1, 1, 8, 8).clone().requires_grad_()
    box = torch.tensor([[0., 1., 1., 6., 6.]], device=device)
    out = ops.roi_align(ramp, box, (1, 1), 1.0, 0, 'avg', True)
    out.sum().backward()
    if abs(out.item() - 3.0) > 1e-5 or abs(ramp.grad.sum().item() - 1.0) > 1e-5:
        raise ArithmeticError(f'wrong answer {out.item()}, gradient {ramp.grad.sum().item()}')


def _examine_backbones(report: Report, with_mmengine: bool) -> None:
    try:
        from visattn_dense.registry import BACKBONES

        report.backbones = sorted(BACKBONES)
        if with_mmengine:
            from mmengine.registry import MODELS

            absent = [name for name in report.backbones if name not in MODELS.module_dict]
            if absent:
                report.problem(f'not in the root registry of mmengine: {", ".join(absent)}',
                               f'{PIP} --force-reinstall --no-deps visattn-dense')
    except Exception as error:
        report.problem(f'the backbones cannot be imported: {_first_line(error)}',
                       f'{PIP} --force-reinstall --no-deps visattn-dense')


def render(report: Report) -> str:
    """The report as text for a terminal."""
    width = max(map(len, report.versions))
    lines = ['Versions', *(f'  {k:<{width}}  {v}' for k, v in report.versions.items())]
    lines += ['GPUs', *(f'  {gpu}' for gpu in report.gpus or ['none (the CPU is used)'])]
    lines += ['Mends']
    for mend in report.mends:
        lines += [f'  {mend["name"]}: {mend["status"]}', f'    {mend["what"]}',
                  f'    {mend["issue"]}']
    lines += ['Operators of mmcv']
    for kernel in report.kernels:
        lines.append(f'  {kernel["op"]} ({kernel["device"]}): {kernel["by"]}, {kernel["result"]}')
    lines += ['Kernels for inference on the CPU', f'  {report.native or "not tried"}']
    lines += ['Backbones', f'  {", ".join(report.backbones) or "none"}']
    if report.notes:
        lines += ['Notes', *(f'  {note}' for note in report.notes)]
    if not report.problems:
        return '\n'.join([*lines, 'Healthy: nothing needed is broken.'])
    lines += ['Problems']
    for problem in report.problems:
        lines += [f'  {problem["what"]}', f'    fix: {problem["fix"]}']
    return '\n'.join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Entry of the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m visattn_dense.doctor', description=__doc__.splitlines()[0])
    parser.add_argument('--json', action='store_true', help='print the report as JSON')
    options = parser.parse_args(arguments)
    with command.working(prints_json=options.json), warnings.catch_warnings():
        # What packages warn about while they are imported is not a finding.
        warnings.simplefilter('ignore')
        report = examine()
    print(json.dumps(dataclasses.asdict(report), indent=2) if options.json else render(report))
    return 1 if report.problems else 0


if __name__ == '__main__':
    sys.exit(main())
