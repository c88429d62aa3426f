"""The blocks of T2T-ViT's forms: how many an arch has, of what width, and where its levels are.

    plain     TransformerBlock with SelfAttention                      most archs
    se        squeeze-and-excitation after the attention               '14_se'
    ghost     half of q, k, v and most of the MLP are scaled copies    '16_ghost'
    growth    a block appends channels to its input                    'dense'

`attention/squeeze_excitation.py`, `attention/ghost.py` and `t2t_vit_dense.py` have these modules.
"""
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from visattn_dense.attention import (
    GhostMlp,
    GhostSelfAttention,
    SelfAttention,
    SESelfAttention,
)
from visattn_dense.errors import UserError
from visattn_dense.layers import Mlp, TransformerBlock

from .t2t_vit_dense import DenseBlock, dense_steps

# What makes the tokens.
TOKENS = ('performer', 'transformer', 'convolution')
# The entries of an arch that choose another block, at most one of them.
BLOCKS = ('se', 'ghost', 'growth')


def plan_blocks(dims: Mapping[str, Any]) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
    """The channels in and out of each entry of `blocks`, and the entries up to each level.

    Raises:
        UserError: entries of the arch that do not fit each other.
    """
    dim, depth, heads = dims['embed_dim'], dims['depth'], dims['num_heads']
    if dims['tokens'] not in TOKENS:
        raise UserError(f'tokens is one of {", ".join(map(repr, TOKENS))}, got {dims["tokens"]!r}')
    block = [name for name in BLOCKS if dims.get(name)]
    if len(block) > 1:
        raise UserError(f'an arch has at most one of {", ".join(BLOCKS)}, '
                        f'got {" and ".join(block)}')
    if block == ['ghost'] and (dims['mlp_ratio'] != 3 or dim % 2):
        raise UserError('with ghost=True, mlp_ratio is 3 and embed_dim is even; '
                        f'got mlp_ratio {dims["mlp_ratio"]}, embed_dim {dim}')
    if block == ['growth']:
        if (not isinstance(depth, Sequence) or len(depth) != 4
                or not all(isinstance(n, int) and n > 0 for n in (*depth, dims['growth']))):
            raise UserError('with growth, depth has the numbers of blocks of four stages, and all '
                            f'are at least 1; got growth {dims["growth"]}, depth {depth}')
        steps, ends = dense_steps(dim, depth, dims['growth'])
    elif not isinstance(depth, int) or depth < 1:
        raise UserError(f'without growth, depth is one number of blocks, got {depth}')
    else:
        steps = [(dim, dim)] * depth
        ends = tuple(max(1, depth * (i + 1) // 4) for i in range(4))
    for width in (a for a, b in steps if b >= a):
        if width % heads:
            what = f'embed_dim {dim}' if width == dim else f'the width {width} of a block'
            raise UserError(f'num_heads {heads} does not divide {what}')
    return steps, ends


def make_block(dims: Mapping[str, Any], dim: int, out_dim: int, *,
               drop_path: float) -> nn.Module:
    """A block from `dim` channels to `out_dim`: to more in T2T-ViT-dense, to as many elsewhere."""
    ghost = dims.get('ghost')
    attention = (GhostSelfAttention if ghost else
                 SESelfAttention if dims.get('se') else SelfAttention)(dim, dims['num_heads'])
    options = dict(mlp_ratio=dims['mlp_ratio'], mlp_layer=GhostMlp if ghost else Mlp,
                   drop_path=drop_path)
    if out_dim == dim:
        return TransformerBlock(dim, attention, **options)
    return DenseBlock(dim, attention, growth=out_dim - dim, **options)
