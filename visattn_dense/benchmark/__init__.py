"""Speed, memory, parameters and FLOPs of a config's model: what tools/benchmark.py measures."""
from .flops import FlopCount, count_flops
from .measure import Latency, measure
from .memory import PeakMemory
from .model import Subject, load_subject
from .report import environment, markdown, write_report

__all__ = ['FlopCount', 'Latency', 'PeakMemory', 'Subject', 'count_flops', 'environment',
           'load_subject', 'markdown', 'measure', 'write_report']
