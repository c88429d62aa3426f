"""The model zoo: every released file that loads here, by name, as data.

    load_pretrained(CSWin('tiny'), 'visattn://cswin_tiny_224')
    init_cfg=dict(type='Pretrained', checkpoint='visattn://cswin_tiny_224')

The table is zoo.json: facts, each figure its authors' and measured by them. docs/zoo.md is made
from it: `python -m visattn_dense.zoo zoo --markdown`.
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
from visattn_dense.checkpoints.web import address_fault
from visattn_dense.errors import UserError, did_you_mean
from visattn_dense.registry import BACKBONES

SCHEME = 'visattn://'
MIRROR = 'VISATTN_MIRROR'
"""The environment variable that names another place for all of these files."""


@dataclass(frozen=True)
class Release:
    """A file that authors released.

    Attributes:
        name: what follows `visattn://`.
        family: the class in `visattn_dense.registry.BACKBONES`.
        arch, options: the arguments that build the backbone that it fills.
        kind: 'classifier' (a backbone with a classifier) or 'segmentor' (with its decode head).
        image_size: side of the training images, or their [height, width], in pixels.
        layout: whose names its tensors have, an entry of the family's `layouts`.
        wrappers: where its tensors lie in the file, the first that is there.
        file: its name in the cache.
        url: where it is; None where no address that answers is known.
        announced: the page on which the authors announced it.
        data, metric, value, figures_from: what it was trained on, and what its authors report.
        licence, licence_from: of code and weights (None: none is stated), and who says so.
        code, paper: the authors' repository and paper.
        sha256: published sum of the file, where there is one.
        size: published length of the file in bytes, where there is one.
        note: what else to know.
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
        """Where the file lies once it is downloaded, or put there by hand."""
        return cache_folder() / self.file

    @property
    def mirror(self) -> str | None:
        """Where VISATTN_MIRROR has the file; None where it names no mirror.

        Raises:
            UserError: it names something else than an address.
        """
        base = os.environ.get(MIRROR, '').strip().rstrip('/')
        if base and (fault := address_fault(base)):
            raise UserError(f'{MIRROR} is the http(s) address of a folder of released files, got '
                            f'{base!r}: {fault}; for a folder on this machine set TORCH_HOME, see '
                            'docs/checkpoints.md')
        return f'{base}/{quote(self.file)}' if base else None

    def fetch(self) -> Path:
        """The file, downloaded if it is not there, its checksum verified.

        Raises:
            UserError: see `download` and `mirror`; or there is no address to download it from.
        """
        if not (self.path.exists() or self.url or self.mirror):
            raise UserError(f'{SCHEME}{self.name} cannot be downloaded: {self.note}. It was '
                            f'announced at {self.announced}. If you have {self.file}, put it at '
                            f'{self.path}')
        return download(self.url, self.path, sha256=self.sha256, size=self.size,
                        mirror=self.mirror)

    def build(self, **options: Any):
        """The backbone that it fills, with random weights; `options` as its class takes them."""
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
    """The entry that 'visattn://NAME', or NAME alone, stands for.

    Raises:
        UserError: there is none; the message names the near ones.
    """
    name = os.fspath(source).removeprefix(SCHEME).strip('/')
    if name not in releases():
        raise UserError(f'the model zoo has no {SCHEME}{name}. {did_you_mean(name, releases())} '
                        'See docs/zoo.md, or python -m visattn_dense.zoo zoo')
    return releases()[name]


def fetch(source: str | os.PathLike) -> Path:
    """The file of 'visattn://NAME', downloaded if it is not there.

    Raises:
        UserError: see `find_release` and `Release.fetch`.
    """
    return find_release(source).fetch()


def markdown_table() -> str:
    """docs/zoo.md."""
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
`python -m visattn_dense.zoo zoo --markdown docs/zoo.md`; a test keeps the two equal.

Every figure is the authors' own, measured by them; nothing here was measured by us. The names in
the first column stand wherever a checkpoint is asked for; [checkpoints.md](checkpoints.md) says
how they are downloaded, verified and loaded."""
