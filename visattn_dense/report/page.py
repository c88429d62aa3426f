"""The page: a template with styles and script inside, and its parts: cards, tables, galleries.

The page asks for nothing from outside: its content security policy allows pictures inside the file
and one script, named by its hash. So a name from outside could not run even if it were not escaped.
"""
from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from visattn_dense.report.bootstrap import LEVEL, Interval
from visattn_dense.report.html import Child, Markup, element, joined

_FILES = Path(__file__).parent
# Letters above which a cell gets more width: a column of single words, or of halves of names, is
# hard to read.
_LONG, _WORD = 30, 11
_MARK = re.compile(r'\{\{(\w+)\}\}')


@dataclass(frozen=True)
class Cell:
    """A number of a table: how the number is shown, and the value by which rows are sorted."""

    text: str
    value: float


@dataclass(frozen=True)
class Section:
    """A part of the page: its title, one sentence below the title, and its content."""

    title: str
    note: str
    content: Child


@dataclass(frozen=True)
class Report:
    """All of a page.

    Attributes:
        title: for example the name of the config.
        subtitle: what was evaluated.
        cards: label, value, and a line below of each headline number.
        classes: number and name of each class of the class filter.
        sections: in order.
    """

    title: str
    subtitle: str
    cards: Sequence[tuple[str, str, str]]
    classes: Mapping[int, str]
    sections: Sequence[Section] = field(default_factory=list)

    def html(self) -> str:
        """The page as one text."""
        script = (_FILES / 'page.js').read_text(encoding='utf-8')
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        parts = {
            'policy': f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
                      f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
            'style': (_FILES / 'page.css').read_text(encoding='utf-8'), 'script': script,
            'title': joined(self.title), 'subtitle': joined(self.subtitle),
            'classes': joined([element('option', name, value=i)
                               for i, name in self.classes.items()]),
            'cards': joined([element('div', element('b', value), element('span', label),
                                     element('small', below), class_='card')
                             for label, value, below in self.cards]),
            'contents': joined([element('a', section.title, href=f'#s{i}')
                                for i, section in enumerate(self.sections)]),
            'sections': joined([
                element('section', element('h2', section.title),
                        note(section.note), section.content, id=f's{i}')
                for i, section in enumerate(self.sections)]),
        }
        template = (_FILES / 'page.html').read_text(encoding='utf-8')
        # One pass: a name that looks like a mark of the template stays text.
        return _MARK.sub(lambda mark: parts[mark[1]], template)


def number(value: float, digits: int = 1, unit: str = '') -> Cell:
    """A number for a table; '–' for NaN, which is sorted last."""
    if math.isnan(value):
        return Cell('–', value)
    return Cell(f'{value:,.{digits}f}{unit}', value)


def between(interval: Interval, digits: int = 1) -> str:
    """An interval in words."""
    if math.isnan(interval.low):
        return '–'
    return f'{interval.low:.{digits}f} to {interval.high:.{digits}f}'


def likely(interval: Interval, digits: int = 1) -> str:
    """The line below a headline number."""
    return f'{LEVEL} %: {between(interval, digits)}'


def table(header: Sequence[str], rows: Sequence[Sequence[str | Cell | Markup]],
          classes: Sequence[Sequence[int]] | None = None) -> Markup:
    """A table that the reader can sort by each column.

    Args:
        header: names of the columns.
        rows: text, or a `Cell` for numbers.
        classes: the classes that each row is about, for the class filter.
    """
    head = element('tr', [element('th', element('button', name, type='button'), scope='col',
                                  aria_sort='none') for name in header])
    body = [element('tr', [_cell(cell) for cell in row],
                    data_classes=None if classes is None else ' '.join(map(str, classes[at])))
            for at, row in enumerate(rows)]
    return element('div', element('table', element('thead', head), element('tbody', body),
                                  class_='sortable'), class_='scroll')


def _cell(cell: str | Cell | Markup) -> Markup:
    if isinstance(cell, Cell):
        return element('td', cell.text, class_='number',
                       data_value='' if math.isnan(cell.value) else repr(float(cell.value)))
    long = 'long' if len(cell) > _LONG else 'word' if len(cell) > _WORD else None
    return element('td', cell, class_=long)


def note(text: str | None) -> Markup | None:
    """A remark in small letters; None where there is no text."""
    return element('p', text, class_='note') if text else None


def gallery(examples: Iterable[Markup | None]) -> Markup | None:
    """Examples, and what stands there when the class filter hides them all; None without any."""
    shown = [example for example in examples if example]
    return element('div', shown, element('p', 'No picture here shows this class.', class_='none',
                                         hidden=True), class_='gallery') if shown else None


def galleries(chosen: Sequence[tuple[str, str, Iterable[int]]],
              draw: Callable[[int], Markup | None]) -> list[Section]:
    """A section of examples for each choice of images; an image stands in the first one alone.

    Args:
        chosen: title, note, and numbers of the images of each section.
        draw: gives the example of an image; None where it is left out.
    """
    found, seen = [], set()
    for title, text, numbers in chosen:
        fresh = [i for i in dict.fromkeys(map(int, numbers)) if i not in seen]
        seen.update(fresh)
        if content := gallery(map(draw, fresh)):
            found.append(Section(title, text, content))
    return found


def example(title: str, remark: str, pictures: Child, classes: Sequence[int],
            legend: Child = None) -> Markup:
    """One image of a gallery with its pictures side by side."""
    return element('article', element('h3', title), note(remark),
                   element('div', pictures, class_='pictures'), legend,
                   data_classes=' '.join(map(str, classes)))


def legend(names: Sequence[str], palette: Sequence[Sequence[int]],
           which: Sequence[int]) -> Markup:
    """Names and colours of some classes."""
    return element('p', [element('span', element(
        'i', class_='swatch', style='background:#{:02x}{:02x}{:02x}'.format(*palette[i])),
        names[i]) for i in which], class_='legend')


def folded(title: str, text: str) -> Markup:
    """A long text that opens with a click."""
    return element('details', element('summary', title), element('pre', text))
