"""Compile the CUDA runtime that does nothing, for the torch that is installed.

What the headers define differently from version to version (structures, numbers) comes from the
headers that NVIDIA's wheels bring. Which functions there are comes from the libraries of torch:
every function that they ask of NVIDIA's libraries, and that `runtime.c` does not define, does
nothing and succeeds.
"""
from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch

from visattn_dense.errors import UserError

HERE = Path(__file__).parent
# How a device function differs from one of the host concerns only NVIDIA's compiler.
_HOST_DEFINES = '\n'.join(f'#define {name}' for name in (
    '__host__', '__device__', '__device_builtin__', '__cudart_builtin__', '__no_return__',
    '__device_builtin_texture_type__', '__device_builtin_surface_type__', 'CUDARTAPI',
    'CUDARTAPI_CDECL', '__location__(a)', '__specialization_static')) + '''
#define __forceinline__ inline
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
'''
_PRODUCTS = re.compile(r'cublas(LtMatmul|\w*(Gemm|gemm|gemv)\w*)')
_NVIDIA = re.compile(r'_*(cuda|cublas|cudnn|cusparse|cusolver|curand|cufft)[A-Z]')


def environment(folder: Path, launch_ns: int) -> dict[str, str]:
    """The environment of a process whose torch sees the library instead of a GPU.

    Args:
        folder: for the compiled library.
        launch_ns: nanoseconds that a launch takes.

    Raises:
        UserError: this machine, this compiler or this torch is not suited.
    """
    runtime, driver = _compile(folder)
    return os.environ | dict(
        LD_PRELOAD=f'{runtime}:{driver}', LD_LIBRARY_PATH=str(folder), CUDA_VISIBLE_DEVICES='0',
        TRITON_LIBCUDA_PATH=str(folder), VISATTN_LAUNCH_NS=str(launch_ns))


def _compile(folder: Path) -> tuple[Path, Path]:
    compiler = shutil.which('gcc')
    wheels = Path(torch.__file__).parents[1] / 'nvidia'
    headers = [path.parent for name in ('cuda_runtime_api.h', 'cublasLt.h', 'cudnn_backend.h')
               for path in sorted(wheels.rglob(name))[:1]]
    if compiler is None or torch.version.cuda is None or len(headers) < 3:
        raise UserError('this needs Linux, gcc, and a torch for CUDA from PyPI with the headers of '
                        f"NVIDIA's wheels; here: gcc {compiler or 'missing'}, torch "
                        f'{torch.__version__}, {len(headers)} of 3 headers in {wheels}')
    # Headers of the compiler, which are in no wheel that torch needs, and two sources.
    for name, text in (('crt/host_defines.h', _HOST_DEFINES), ('crt/host_config.h', ''),
                       ('nv/target', ''), ('libraries.c', _libraries(wheels)),
                       ('rest.c', _driver())):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    common = [compiler, '-w', '-O2', '-fPIC', '-shared', f'-I{folder}',
              *(f'-I{path}' for path in dict.fromkeys(headers))]
    runtime, driver = folder / 'libno_gpu.so', folder / 'libcuda.so.1'
    for command in (
            [*common, HERE / 'runtime.c', folder / 'libraries.c', '-o', runtime],
            [*common, HERE / 'driver.c', folder / 'rest.c', f'-Wl,-soname,{driver.name}', '-o',
             driver]):
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise UserError(f'gcc cannot compile the library for torch {torch.__version__}: '
                            f'{run.stderr.strip()[-500:]}')
    # For the linker, which old versions of Triton call.
    (folder / 'libcuda.so').unlink(missing_ok=True)
    (folder / 'libcuda.so').symlink_to(driver.name)
    return runtime, driver


def _libraries(wheels: Path) -> str:
    """The functions of NVIDIA's libraries that torch asks for. Those of `runtime.c` come before."""
    lib = Path(torch.__file__).parent / 'lib'
    asked = {name for path in (*lib.glob('libtorch*.so'), lib / 'libc10_cuda.so')
             for name in _symbols(path, '--undefined-only')}
    known = {name for path in wheels.rglob('lib*.so.*') if re.match(
        r'lib(cudart|cublas|cublasLt|cudnn|cusparse|cusolver|curand|cufft)\.so', path.name)
        for name in _symbols(path, '--defined-only')}
    lines = ['#define WEAK __attribute__((weak)) int', 'void visattn_launch(void);']
    for name in sorted(name for name in asked & known if _NVIDIA.match(name)):
        if _PRODUCTS.fullmatch(name) or name.startswith('cudnnBatchNormalization'):
            lines.append(f'WEAK {name}() {{ visattn_launch(); return 0; }}')
        elif name.startswith('cudnnCreate'):
            lines.append(f'WEAK {name}(void **it) {{ *it = &visattn_launch; return 0; }}')
        else:
            lines.append(f'WEAK {name}() {{ return 0; }}')
    return '\n'.join(lines) + '\n'


def _driver() -> str:
    """What Triton and torch ask of the driver. The functions of `driver.c` come before."""
    lib = Path(torch.__file__).parent / 'lib' / 'libcaffe2_nvrtc.so'
    names = {name for name in _symbols(lib, '--undefined-only') if re.match(r'cu[A-Z]', name)}
    names |= {'cuInit', 'cuCtxGetLimit', 'cuCtxSetLimit', 'cuCtxSetCurrent', 'cuFuncSetAttribute',
              'cuFuncSetCacheConfig', 'cuModuleUnload', 'cuOccupancyMaxActiveClusters',
              'cuPointerGetAttributes', 'cuTensorMapEncodeTiled', 'cuTensorMapEncodeIm2col',
              'cuTensorMapEncodeIm2colWide', 'cuGetErrorName', 'cuMemAlloc_v2', 'cuMemFree_v2'}
    return '\n'.join(f'__attribute__((weak)) int {name}() {{ return 0; }}\n'
                     for name in sorted(names))


def _symbols(library: Path, which: str) -> set[str]:
    run = subprocess.run(['nm', '-D', which, library], capture_output=True, text=True)
    return {line.split()[-1].split('@')[0] for line in run.stdout.splitlines() if line.strip()}
