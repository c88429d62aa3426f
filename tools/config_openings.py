#!/usr/bin/env python
"""Write the opening lines of every config in configs/recipes.json.

    python tools/config_openings.py

The table holds the facts: title, commands, hardware, data, pretrained weights, published number and
its source. The wording is here, once. A new recipe is a row in the table and a file in configs/
that begins with a docstring; a test compares the two.
"""
import json
import re
import textwrap
from pathlib import Path

from visattn_dense.zoo import find_release

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
TABLE = json.loads((CONFIGS / 'recipes.json').read_text(encoding='utf-8'))
WIDTH = 100


def opening(name: str) -> str:
    """The docstring, with its quotes, that the config `name` of the table begins with."""
    row = TABLE['recipes'][name]
    facts = dict(row, config=f'configs/{name}.py')
    if 'released' in row:
        facts['file'] = find_release(row['released']).file
    commands = [command.format_map(facts) for command in TABLE['commands'][row['commands']]]
    lines = [f'"""{row["title"]}', '', *(f'    {command}' for command in commands), '']
    for paragraph in [*(TABLE['notes'][note] for note in row.get('notes', ())), _hardware(row),
                      f'Data: {TABLE["data"][row["data"]]}']:
        lines += _wrapped(paragraph)
    return '\n'.join([*lines, *_start(row), *_wrapped(_published(row)), '"""']) + '\n'


def _hardware(row: dict) -> str:
    gpus, images = row['gpus'], row['images']
    if 'hardware' in row:
        return f'Hardware: {row["hardware"]}.'
    if gpus > 1:
        return f'Hardware: {gpus} GPUs with {images} images each; on fewer, add --auto-scale-lr.'
    return (f'Hardware: one GPU with {images} images; on less, '
            f'train_dataloader.batch_size={images // 2} and --auto-scale-lr.')


def _start(row: dict) -> list[str]:
    option = '    --cfg-options model.backbone.init_cfg'
    if row['weights'] is None:
        return [*_wrapped(f'Start: random weights ({row["no_weights"]}). With a file:'),
                f'{option}.type=Pretrained model.backbone.init_cfg.checkpoint=PATH']
    # A frozen stem needs pretrained weights.
    thaw = ' model.backbone.frozen_stages=-1' if row['commands'] == 'custom' else ''
    return [f'Start: ImageNet weights (visattn://{row["weights"]}). Another file, or none:',
            f'{option}.checkpoint=PATH', f'{option}=None{thaw}']


def _published(row: dict) -> str:
    if row['published']:
        text = f'Published by the authors ({row["source"]}): {row["published"]}.'
    elif 'own_head' in row:
        text = f"Published: nothing with this head; {row['own_head']} with the authors' own."
    else:
        text = 'Published: nothing.'
    return f'{text} By us: {row["ours"]}.'


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def main() -> None:
    for name in TABLE['recipes']:
        path = CONFIGS / f'{name}.py'
        text = path.read_text(encoding='utf-8')
        new = re.sub(r'\A""".*?"""\n', lambda _, name=name: opening(name), text, flags=re.S)
        if new != text:
            path.write_text(new, encoding='utf-8')
            print(f'wrote {path}')


if __name__ == '__main__':
    main()
