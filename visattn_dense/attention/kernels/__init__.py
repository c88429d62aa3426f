"""GPU kernels in Triton. Nothing here is imported before a kernel is wanted."""
