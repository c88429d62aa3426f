"""A CUDA runtime for a machine without a GPU: its kernels do nothing, everything else is torch's.

torch finds the functions of this library before those of NVIDIA's libraries. So what the host does
for a pass on a GPU can be seen where there is no GPU: every launch of torch and of Triton, the time
of the host, the memory that torch allocates. No number is computed.

library  compiles the library for the torch that is installed
passes   the table of passes; a process of its own, in which the library stands before NVIDIA's
"""
