#!/usr/bin/env python
"""Check the data that a config names before training on them.

    python tools/check_dataset.py CONFIG [--split train] [--quick] [--json]

Prints what the data are (number, sizes, classes) and either 'ok' or each problem with its file and
its fix. Exit code: 0 for ok, 1 for problems, 2 where there was nothing to check.
"""
import argparse
import json
import sys

import _checkout  # noqa: F401  (first)

import visattn_dense  # noqa: F401  (mends and registers)
from visattn_dense.command import add_debug, run, working
from visattn_dense.openmmlab.config import add_cfg_options, merge_options, read_config
from visattn_dense.openmmlab.datasets.check import SPLITS, check_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Check the data that a config names.')
    parser.add_argument('config', help='config file of mmsegmentation or mmdetection')
    parser.add_argument('--split', choices=SPLITS, action='append',
                        help='check this split only; may be given several times')
    parser.add_argument('--quick', action='store_true',
                        help='open a sample of the files only, as the launchers do')
    parser.add_argument('--json', action='store_true', help='print JSON instead of tables')
    add_cfg_options(parser)
    add_debug(parser)
    return parser.parse_args()


def check(args: argparse.Namespace) -> int:
    with working(prints_json=args.json):
        cfg = read_config(args.config)
        merge_options(cfg, args.cfg_options)
        reports = check_config(cfg, args.split, quick=args.quick)
    problems = sum(len(report.problems) for report in reports)
    if args.json:
        print(json.dumps(dict(ok=not problems, datasets=[r.as_dict() for r in reports]), indent=2))
    else:
        print('\n\n'.join(report.as_table() for report in reports))
        print(f'\n{problems} problem{"s"[:problems > 1]}' if problems else '\nok')
    return int(problems > 0)


if __name__ == '__main__':
    sys.exit(run(check, parse_args()))
