"""`python -m demo segmentation|detection [options]`: render, train, evaluate, draw, in minutes.

Needs no download and no GPU. Exit codes: 0 done; 2 bad input; 130 stopped; else that of the
training.
"""
from __future__ import annotations

import sys

from demo import detection, segmentation
from demo.runner import exit_code, parse_args, run_demo


def main(arguments: list[str] | None = None) -> int:
    demos = dict(segmentation=segmentation.DEMO, detection=detection.DEMO)
    return exit_code(run_demo, parse_args(demos, arguments))


if __name__ == '__main__':
    sys.exit(main())
