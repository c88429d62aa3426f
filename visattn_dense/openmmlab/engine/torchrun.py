"""torchrun that ends with its workers' exit code and prints no report of its own.

Run as a file by tools/dist_train.sh and tools/dist_test.sh, with torchrun's own arguments.
"""
import logging
import os
import sys

# Run as a file, Python looks for modules in this folder first.
sys.path.remove(os.path.dirname(os.path.abspath(__file__)))

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: E402
from torch.distributed.run import main  # noqa: E402


def run() -> int:
    """The exit code of the first worker that failed, else 0."""
    # torchrun's default is one thread per process too, but it prints a warning if none is set.
    for variable in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ.setdefault(variable, '1')
    for name in ('torch.distributed.elastic', 'torch.distributed.run'):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        main()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        # A signal is a negative number here; a shell reports 128 plus the signal.
        return code if code > 0 else 128 - code
    return 0


if __name__ == '__main__':
    sys.exit(run())
