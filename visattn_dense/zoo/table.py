"""The model zoo: every released file that loads here, by name, as data.

    load_pretrained(CSWin('tiny'), 'visattn://cswin_tiny_224')
    init_cfg=dict(type='Pretrained', checkpoint='visattn://cswin_tiny_224')

The table is zoo.json. Every figure in the table was measured and published by the authors of the
file. `python -m visattn_dense.zoo zoo --markdown docs/zoo.md` makes docs/zoo.md from the table.
"""
import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from visattn_dense.checkpoints.download import cache_folder, download
from visattn_dense.errors import UserError, did_you_mean
from visattn_dense.registry import BACKBONES
from visattn_dense.web import address_fault

SCHEME = 'visattn://'
MIRROR = 'VISATTN_MIRROR'
"""The environment variable with the address of a mirror of all these files."""


@dataclass(frozen=True)
class Release:
    """A file that authors released.

    Attributes:
        name: what follows `visattn://`.
        family: the class in `visattn_dense.registry.BACKBONES`.
        arch, options: the arguments for the backbone that the file fills.
        kind: 'classifier' (a backbone with a classifier) or 'segmentor' (with its decode head).
        image_size: side of the training images, or their [height, width], in pixels.
        layout: the naming of the tensors, an entry of the family's `layouts`.
        wrappers: the keys of the file that may hold the tensors, in the order of the search.
        file: the file's name in the cache.
        url: the file's address; None if no working address is known.
        announced: the page on which the authors announced the file.
        data, metric, value, figures_from: the training data, and the authors' figure and its
            source.
        licence, licence_from: the licence of code and weights (None if none is stated), and the
            source of this fact.
        code, paper: the authors' repository and paper.
        sha256: the published checksum of the file; None if there is none.
        size: the published length of the file in bytes; None if there is none.
        note: anything else to know.
    """

    name: str
    family: str
    arch: str
    kind: str
    image_size: int | list[int]
    layout: str
    file: str
    url: str | None
    data: str
    metric: str
    value: float | None
    figures_from: str
    licence: str | None
    licence_from: str
    code: str
    paper: str
    wrappers: list[str]
    announced: str = ''
    options: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    size: int | None = None
    note: str = ''

    @property
    def path(self) -> Path:
        """Where the file is after a download. A user may also put the file there by hand."""
        return cache_folder() / self.file

    @property
    def mirror(self) -> str | None:
        """The file's address on the mirror of VISATTN_MIRROR; None without a mirror.

        Raises:
            UserError: VISATTN_MIRROR is not an address.
        """
        base = os.environ.get(MIRROR, '').strip().rstrip('/')
        if base and (fault := address_fault(base)):
            raise UserError(f'{MIRROR} is the http(s) address of a folder of released files, got '
                            f'{base!r}: {fault}; for a folder on this machine set TORCH_HOME, see '
                            'docs/checkpoints.md')
        return f'{base}/{quote(self.file)}' if base else None

    def fetch(self) -> Path:
        """The file, downloaded if necessary; its checksum is verified.

        Raises:
            UserError: see `download` and `mirror`; or the file has no address.
        """
        if not (self.path.exists() or self.url or self.mirror):
            raise UserError(f'{SCHEME}{self.name} cannot be downloaded: {self.note}. It was '
                            f'announced at {self.announced}. If you have {self.file}, put it at '
                            f'{self.path}')
        return download(self.url, self.path, sha256=self.sha256, size=self.size,
                        mirror=self.mirror)

    def build(self, **options: Any):
        """The backbone that the file fills, with random weights; `options` go to its class."""
        return BACKBONES.build(dict(type=self.family, arch=self.arch), **{**self.options,
                                                                          **options})


@functools.cache
def releases() -> Mapping[str, Release]:
    """Every entry of the zoo by its name."""
    table = json.loads(Path(__file__).with_name('zoo.json').read_text(encoding='utf-8'))
    entries = {}
    for row in table['files']:
        source = table['sources'][row['source']]
        fields = {**source, **{key: value for key, value in row.items() if key != 'source'}}
        fields.setdefault('announced', source['code'])
        entries[row['name']] = Release(**fields)
    return entries


def find_release(source: str | os.PathLike) -> Release:
    """The entry for 'visattn://NAME', or for NAME alone.

    Raises:
        UserError: there is no such entry. The message has similar names.
    """
    name = os.fspath(source).removeprefix(SCHEME).strip('/')
    if name not in releases():
        raise UserError(f'the model zoo has no {SCHEME}{name}. {did_you_mean(name, releases())} '
                        'See docs/zoo.md, or python -m visattn_dense.zoo zoo')
    return releases()[name]


def fetch(source: str | os.PathLike) -> Path:
    """The file of 'visattn://NAME', downloaded if necessary.

    Raises:
        UserError: see `find_release` and `Release.fetch`.
    """
    return find_release(source).fetch()


def markdown_table() -> str:
    """The text of docs/zoo.md."""
    lines = [_INTRODUCTION]
    families = dict.fromkeys(release.family for release in releases().values())
    for family in families:
        rows = [release for release in releases().values() if release.family == family]
        lines += [f'\n## {family}\n', _facts(rows), _HEADER]
        lines += [_row(release) for release in rows]
    return '\n'.join(lines) + '\n'


def _facts(rows: list[Release]) -> str:
    facts = dict.fromkeys(
        f'[{row.code.removeprefix("https://github.com/")}]({row.code}), {row.paper}. Licence: '
        f'{row.licence or "none stated"} ({row.licence_from}). Figures: {row.figures_from}.'
        for row in rows)
    return '\n'.join(f'- {fact}' for fact in facts) + '\n'


def _row(release: Release) -> str:
    size = release.image_size
    size = f'{size[0]}×{size[1]}' if isinstance(size, list) else f'{size}×{size}'
    options = ''.join(f', {key}={value}' for key, value in release.options.items())
    file = f'[{release.file}]({release.url})' if release.url else (
        f'{release.file}, announced [here]({release.announced})')
    value = '' if release.value is None else f'{release.value:g} {release.metric}'
    return (f'| `{SCHEME}{release.name}` | {release.arch}{options} | {release.kind} | {size} | '
            f'{release.layout} | {release.data} | {value} | {file} | {release.note} |')


_HEADER = ('| checkpoint | arch | kind | trained at | layout | data | published | file | note |\n'
           '|---|---|---|---|---|---|---|---|---|')
_INTRODUCTION = """\
# Model zoo

Made from `visattn_dense/zoo/zoo.json` by
`python -m visattn_dense.zoo zoo --markdown docs/zoo.md`. A test checks that the two are equal.

The authors measured every figure; we measured none. Use a name of the first column wherever a
command or config takes a checkpoint. [checkpoints.md](checkpoints.md) says how the files are
downloaded, verified and loaded."""
