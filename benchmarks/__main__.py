"""`python -m benchmarks`. Child processes import this file, so it holds nothing else."""
import sys

if __name__ == '__main__':
    from benchmarks.cli import main
    sys.exit(main())
