"""Kernels with a race, to test that the interpreter finds races."""
import triton
import triton.language as tl


@triton.jit
def write_twice(x):
    tl.store(x + 0 * tl.program_id(0), 1.)


@triton.jit
def read_next(x):
    at = tl.program_id(0)
    tl.store(x + at, tl.load(x + at + 1))
