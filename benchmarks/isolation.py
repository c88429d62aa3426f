"""A function in a process of its own, bounded in memory and time.

Processes are forked from a server that has imported torch and this project, and has computed
nothing. So a start takes milliseconds, and the peak of the memory belongs to the measurement alone.
"""
from __future__ import annotations

import multiprocessing
import re
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

_context = multiprocessing.get_context('forkserver')
# Limits that a run may reach. Every other end of a measurement is a failure.
EXPECTED = ('does not fit', 'took more than', 'not begun', 'the process ended with code -9')
_OUT_OF_MEMORY = re.compile(
    "not enough memory|can't allocate memory|bad_alloc|could not create a (primitive|memory)",
    re.IGNORECASE)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is the allocator's, of torch, oneDNN or Python."""
    return (isinstance(error, (MemoryError, torch.OutOfMemoryError))
            or isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error))))


def collect(function: Callable[..., Iterator[dict[str, Any]]], *arguments: Any,
            seconds: float, memory: int | None) -> tuple[dict[str, Any], str | None]:
    """Run a generator of dicts in another process, and merge its dicts.

    Args:
        function: the generator, at the top level of a module, so that another process finds it.
        arguments: for the function.
        seconds: the process is killed after this time; the dicts so far are kept.
        memory: bytes of data that the process may allocate; None for no limit.

    Returns:
        The merged dicts, and the reason why the generator did not end (None if it ended).
    """
    _context.set_forkserver_preload(['benchmarks.cases', 'torch._dynamo'])
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_serve, args=(sender, memory, function, arguments))
    process.start()
    sender.close()
    merged: dict[str, Any] = {}
    trouble: str | None = f'took more than {seconds:.0f} s'
    end = time.monotonic() + seconds
    try:
        while receiver.poll(max(0., end - time.monotonic())):
            kind, value = receiver.recv()
            if kind == 'end':
                trouble = value
                break
            merged.update(value)
    except EOFError:
        process.join(10)
        trouble = f'the process ended with code {process.exitcode}' + (
            ', probably out of memory' if process.exitcode == -9 else '')
    finally:
        process.kill() if trouble else process.join()
        receiver.close()
    return merged, trouble


def _serve(sender: Any, memory: int | None, function: Callable[..., Iterator[dict[str, Any]]],
           arguments: tuple[Any, ...]) -> None:
    trouble = None
    try:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        for part in function(*arguments):
            sender.send(('part', part))
    except KeyboardInterrupt:
        return
    except Exception as error:
        trouble = (f'does not fit in {memory / 2**30:.1f} GiB' if memory and out_of_memory(error)
                   else 'does not fit' if out_of_memory(error)
                   else f'{type(error).__name__}: {str(error).strip().splitlines()[0]}'
                   if str(error).strip() else type(error).__name__)
    sender.send(('end', trouble))
