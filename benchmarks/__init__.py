"""The yardstick: our attentions and backbones against their naive equations, side by side.

    python -m benchmarks            the short form, under ten minutes on two cores
    python -m benchmarks --full     all sizes and forms; writes docs/notes/benchmarks.md

Every measurement runs in a process of its own; the two sides take turns in one process. A speed is
reported only if the outputs are right: see `benchmarks.parity`. tools/benchmark.py measures the
model of a config with the same modules. See docs/benchmarks.md.
"""
