"""Elements of a page. Text becomes part of a page only through `element`, which escapes the text.

A class name or a file name is text from outside. `Markup` is text that is HTML already; only this
module and the page's own template make `Markup`.
"""
from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = frozenset({'img', 'br', 'meta', 'input', 'rect', 'line', 'polyline', 'path', 'circle'})


class Markup(str):
    """HTML that is safe already."""


Child = str | int | float | None | Iterable['Child']


def element(tag: str, *children: Child, **attributes: object) -> Markup:
    """An HTML or SVG element.

    Args:
        tag: for example 'td'.
        children: text, which is escaped; `Markup`, which is not; None, which is left out; or lists
            of all these.
        attributes: escaped too. `class_` stands for `class`, `view_Box` for `viewBox`, and any
            other `_` for `-`. None and False leave the attribute out, True gives no value.
    """
    written = ''.join(_attribute(name, value) for name, value in attributes.items()
                      if value is not None and value is not False)
    if tag in _VOID and not children:
        return Markup(f'<{tag}{written}/>')
    return Markup(f'<{tag}{written}>{joined(children)}</{tag}>')


def joined(children: Child) -> Markup:
    """Children one after the other."""
    if children is None:
        return Markup('')
    if isinstance(children, Markup):
        return children
    if isinstance(children, (str, int, float)):
        return Markup(html.escape(printable(str(children))))
    return Markup(''.join(map(joined, children)))


def printable(text: str) -> str:
    """The text without lone surrogates, which a file name may hold and UTF-8 cannot."""
    return text.encode('utf-8', 'backslashreplace').decode('utf-8')


def _attribute(name: str, value: object) -> str:
    name = {'class_': 'class', 'view_Box': 'viewBox'}.get(name, name.replace('_', '-'))
    return f' {name}' if value is True else f' {name}="{html.escape(printable(str(value)))}"'
