"""The yardstick: our attentions and backbones against their naive equations, side by side.

    python -m benchmarks            the short form, under ten minutes on two cores
    python -m benchmarks --full     all sizes and forms; writes docs/notes/benchmarks.md

Every measurement runs in a process of its own; the two sides take turns in one process. A speed is
reported of what computes the right thing only: see `benchmarks.parity`. tools/benchmark.py, which
measures the model of a config, stands on the same modules. See docs/benchmarks.md.
"""
