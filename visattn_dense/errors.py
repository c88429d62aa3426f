"""What a user did wrong, as one clear message.

A command prints a `UserError` on stderr and ends with exit code 2; see `visattn_dense.command`.
Everywhere else a `UserError` is an ordinary `ValueError`.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message says what came and what to do about it."""


class UnknownArgumentError(UserError, TypeError):
    """A keyword that a function does not take."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that the user named is not there."""


class FullDiskError(OSError, UserError):
    """A file that does not fit on the disk. The message is that of the `OSError`."""


def is_full_disk(error: BaseException) -> bool:
    """No room on the disk, in the user's share of it, or in a file of the largest size."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def closest(name: str, choices: Iterable[str], limit: int = 3) -> list[str]:
    """The entries of `choices` that are most similar to `name`, best first; case is ignored.

    Similar are names with similar spelling ('upernet' finds 'UPerHead'), and names of which one
    contains the other ('Swin' finds 'SwinTransformer').
    """
    by_key: dict[str, str] = {}
    for choice in choices:
        by_key.setdefault(choice.lower(), choice)
    key = name.lower()
    near = difflib.get_close_matches(key, by_key, n=limit, cutoff=0.6)
    if len(key) >= 3:
        inside = [other for other in by_key if len(other) >= 3 and (key in other or other in key)]
        near += sorted(inside, key=lambda other: abs(len(other) - len(key)))
    return [by_key[match] for match in dict.fromkeys(near)][:limit]


def did_you_mean(name: str, choices: Iterable[str], limit: int = 3) -> str:
    """A sentence with the most similar choices, or with a few choices if none is similar.

    Returns:
        str: for example "Did you mean 'tiny'?"; empty if there are no choices.
    """
    known = sorted(set(choices))
    near = closest(name, known, limit)
    if near:
        return f'Did you mean {" or ".join(map(repr, near))}?'
    if not known:
        return ''
    more = ', ...' if len(known) > 12 else ''
    return f'Known: {", ".join(known[:12])}{more}.'


def few(names: Iterable[object], limit: int = 6) -> str:
    """A list for a message: the first names, and how many more there are."""
    known = [str(name) for name in names]
    more = f' and {len(known) - limit} more' if len(known) > limit else ''
    return ', '.join(known[:limit]) + more
