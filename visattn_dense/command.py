"""The frame of every command: its exit code, and what a user reads when something goes wrong.

Exit codes: 0 done; 2 the user's input was wrong, or the disk is full, with one message; 130
interrupted; 1 any other error, with its traceback. A command may use 1, or further codes, for a
result; then its page says so. `--debug`, or VISATTN_DEBUG=1, shows the traceback of every error.
"""
from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping

from visattn_dense.errors import UserError, is_full_disk


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Give a command the option `--debug`."""
    parser.add_argument('--debug', action='store_true', help='show the traceback of every error')


def working(*, prints_json: bool) -> contextlib.AbstractContextManager:
    """The work before a command prints its result. If that is JSON, all that libraries print and
    log meanwhile goes to stderr: so a program can read stdout."""
    return contextlib.redirect_stdout(sys.stderr) if prints_json else contextlib.nullcontext()


def run(task: Callable[..., int | None], args: argparse.Namespace, *,
        codes: Mapping[type[Exception], int] | None = None, stopped: str = 'Stopped.',
        message: Callable[[Exception], str] = str, who: str = '',
        log_to: logging.Handler | None = logging.lastResort) -> int:
    """Carry out `task(args)`; returns the exit code.

    Args:
        task: the command; it may return an exit code of its own.
        args: what the command line says.
        codes: further kinds of errors that are printed as one message, with their exit codes.
        stopped: the message after Ctrl-C.
        message: makes the text of an error.
        who: text after the word 'error'.
        log_to: takes the messages of the logger `visattn_dense`; by default warnings go to stderr.
    """
    # A file name, or a name in a file, may hold what this terminal cannot print.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    told = {**(codes or {}), UserError: 2}
    log = logging.getLogger('visattn_dense')
    log.handlers, before = [log_to], log.handlers
    try:
        return task(args) or 0
    except KeyboardInterrupt:
        print(f'\n{stopped}', file=sys.stderr)
        return 130
    except Exception as error:
        code = next((code for kind, code in told.items() if isinstance(error, kind)), 1)
        # A library's own file, such as the log of a training.
        code = 2 if code == 1 and is_full_disk(error) else code
        sys.stdout.flush()
        if code == 1 or getattr(args, 'debug', False) or _debugging():
            traceback.print_exception(error)
        else:
            print(f'error{who}: {message(error)}', file=sys.stderr, flush=True)
        return code
    finally:
        log.handlers = before


def _debugging() -> bool:
    return os.environ.get('VISATTN_DEBUG', '0') not in ('', '0')
