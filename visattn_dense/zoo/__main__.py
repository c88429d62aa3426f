"""Look at checkpoints and convert them: python -m visattn_dense.zoo --help.

Exit codes: 0 done; 2 bad input, with one message on stderr before anything is written.
"""
import argparse
import json
import sys
from pathlib import Path

from visattn_dense.checkpoints.archive import check_is_checkpoint
from visattn_dense.checkpoints.matching import unwrap
from visattn_dense.checkpoints.reading import read_checkpoint, resolve
from visattn_dense.command import add_debug, run, working
from visattn_dense.errors import few
from visattn_dense.zoo.convert import DTYPES, convert, extract, save_state
from visattn_dense.zoo.recognise import Summary, summarise
from visattn_dense.zoo.table import SCHEME, markdown_table, releases


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m visattn_dense.zoo',
        description='Look at checkpoints and convert them. Nothing in a file is executed.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    source = argparse.ArgumentParser(add_help=False)
    source.add_argument('file', help=f'file, http(s) address or {SCHEME}NAME')
    source.add_argument('--trust', action='store_true',
                        help='build every object in the file; this executes code from the file')
    target = argparse.ArgumentParser(add_help=False)
    target.add_argument('out', type=Path, help='*.safetensors or *.pth')
    target.add_argument('--overwrite', action='store_true', help='replace OUT if it is there')

    look = commands.add_parser('inspect', parents=[source],
                               help='say what a file is and which model it fits')
    look.add_argument('--json', action='store_true', help='print JSON')

    make = commands.add_parser(
        'convert', parents=[source, target],
        help="write only the weights, with this project's names; heads of whole models stay")
    make.add_argument('--family', help='the class of the backbone, if it is not recognised')
    make.add_argument('--no-heads', action='store_true', help='write only the backbone')
    make.add_argument('--dtype', choices=list(DTYPES), help='precision of the new file')

    part = commands.add_parser('extract', parents=[source, target],
                               help='write one part of a trained detector or segmentor')
    part.add_argument('--part', default='backbone', help='which part (default: %(default)s)')

    zoo = commands.add_parser('zoo', help='list the released files that load by name')
    zoo.add_argument('--markdown', type=Path, metavar='FILE', help='write docs/zoo.md')

    fetch = commands.add_parser('download', help='download a file of the zoo into the cache')
    fetch.add_argument('name', help=f'{SCHEME}NAME, or NAME alone')
    add_debug(parser)
    return parser.parse_args(arguments)


def inspect_file(args: argparse.Namespace) -> None:
    with working(prints_json=args.json):
        path = resolve(args.file)
        kind = check_is_checkpoint(path)
        summary = summarise(read_checkpoint(path, trust=args.trust, mmap=True))
    if args.json:
        print(json.dumps(_as_dict(path, kind, summary), indent=2))
        return
    print(f'{path}: {path.stat().st_size:,} bytes, {kind} format')
    print(f'  {summary.kind}, {sum(summary.parts.values())} tensors, '
          f'{summary.parameters / 1e6:.2f} M numbers, {_counts(summary.dtypes)}')
    print(f'  parts: {_counts(summary.parts)}')
    if summary.others:
        print(f'  beside the weights: {", ".join(summary.others)}')
    if summary.nonfinite:
        print(f'  NaN or infinity in {len(summary.nonfinite)} tensors: '
              f'{few(summary.nonfinite)}')
    if not summary.candidates:
        print(f'  not recognised: {summary.problem}')
    for candidate in summary.candidates:
        lines = str(candidate.report).replace('\n', '\n  ')
        print(f'  {candidate.family} {candidate.arch}: {lines}')


def _counts(counts: dict[str, int]) -> str:
    return few((f'{name} ({count})' for name, count in counts.items()), 12)


def _as_dict(path: Path, kind: str, summary: Summary) -> dict:
    fits = [dict(family=c.family, arch=c.arch, layout=c.report.layout, prefix=c.report.prefix,
                 fraction=c.report.fraction, adapted=c.report.adapted, missing=c.report.missing,
                 mismatched=c.report.mismatched, unused=c.report.unused)
            for c in summary.candidates]
    return dict(file=str(path), bytes=path.stat().st_size, format=kind, kind=summary.kind,
                tensors=sum(summary.parts.values()), parameters=summary.parameters,
                dtypes=summary.dtypes, parts=summary.parts, others=summary.others,
                nonfinite=summary.nonfinite, fits=fits, problem=summary.problem)


def convert_file(args: argparse.Namespace) -> None:
    state, what = convert(read_checkpoint(args.file, trust=args.trust), family=args.family,
                          heads=not args.no_heads, dtype=args.dtype)
    save_state(state, args.out, metadata={'model': what.split(':')[0], 'origin': args.file},
               overwrite=args.overwrite)
    print(f'{what}\n{args.out}: {len(state)} tensors, {args.out.stat().st_size:,} bytes')


def extract_part(args: argparse.Namespace) -> None:
    contents = read_checkpoint(args.file, trust=args.trust)
    state = extract(contents, args.part)
    save_state(state, args.out, metadata={'part': args.part, 'origin': args.file},
               overwrite=args.overwrite)
    print(f'{args.out}: {len(state)} of the {len(unwrap(contents))} tensors, '
          f'{args.out.stat().st_size:,} bytes')


def show_zoo(args: argparse.Namespace) -> None:
    if args.markdown:
        args.markdown.write_text(markdown_table(), encoding='utf-8')
        return
    for release in releases().values():
        value = '' if release.value is None else f'{release.value:g} {release.metric}'
        here = 'in the cache' if release.path.exists() else ''
        print(f'{SCHEME + release.name:42} {release.family} {release.arch:10} {value:12} {here}')


def download_release(args: argparse.Namespace) -> None:
    print(resolve(SCHEME + args.name.removeprefix(SCHEME)))


COMMANDS = {'inspect': inspect_file, 'convert': convert_file, 'extract': extract_part,
            'zoo': show_zoo, 'download': download_release}


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    return run(COMMANDS[args.command], args)


if __name__ == '__main__':
    sys.exit(main())
