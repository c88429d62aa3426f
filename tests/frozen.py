"""The last import of a process that forks: its children leave alone what it made.

A collection of garbage in a child would copy the memory of every object, and mmengine collects for
every dataset.
"""
import atexit
import gc

gc.collect()
gc.freeze()
# Else modules complain at the end that their objects are still there.
atexit.register(gc.unfreeze)
