"""Bi-level routing attention (BiFormer, arXiv 2303.08810, §3.2).

The map is cut into n_win × n_win regions. The descriptors of a region are its means of q and of k.
The descriptors choose K regions for each region. The tokens of a region attend to all tokens of the
K chosen regions:

    index_r = top-K_i( q̄_r · k̄_i · scale ),   out_r = softmax(q_r [k_i]ᵀ · scale) [v_i] + LePE(v)

Shapes: B batch, H×W map (after padding: multiples of n_win), C channels, Q = qk_dim channels of q
and k, R = n_win² regions, N tokens of a region, h heads.

Official code: rayleizhu/BiFormer, ops/bra_legacy.py. The scale is Q^-½, not head_dim^-½. The map
is zero-padded at the bottom and right *before* the qkv projection, so the q, k and v of padded
tokens are the bias of the projection. The padding is not masked. Deviations:
- keys and values are not gathered for all regions at once (see
  `visattn_dense.ops.group_attention.routed`);
- a top-k larger than the number of regions means all regions;
- differentiable hard routing, which the official code does not have, is the straight-through
  estimate.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from visattn_dense.layers import DepthwiseConv, crop, pad_to_multiple
from visattn_dense.layers.linear import EndsInLinear, linear
from visattn_dense.ops import UsesOperators
from visattn_dense.ops.group_attention import region_attention
from visattn_dense.ops.routing import region_means, top_regions

KVPool = Literal['identity', 'avgpool', 'maxpool', 'ada_avgpool', 'ada_maxpool']


class TopkRouting(UsesOperators, nn.Module):
    """Choose the regions that each region attends to.

    Args:
        qk_dim: Q, channels of the descriptors.
        topk: K; a number larger than the number of regions means all regions.
        scale: factor of the routing logits.
        param_routing: apply a learned linear map to the descriptors.
        diff_routing: let gradients flow through the descriptors.
    """

    def __init__(self, qk_dim: int, topk: int, *, scale: float, param_routing: bool = False,
                 diff_routing: bool = False) -> None:
        super().__init__()
        self.topk = topk
        self.scale = scale
        self.diff_routing = diff_routing
        self.emb = nn.Linear(qk_dim, qk_dim) if param_routing else nn.Identity()

    def forward(self, q: Tensor, k: Tensor, *,
                weights: bool = True) -> tuple[Tensor | None, Tensor]:
        """Route.

        Args:
            q, k: (B, R, Q) descriptors.
            weights: whether the weights are wanted. Most attentions use the index alone.

        Returns:
            weight: (B, R, K), the softmax over the K largest logits; None without `weights`.
            index: (B, R, K), the chosen regions, from the largest weight to the smallest.
        """
        if not self.diff_routing:
            q, k = q.detach(), k.detach()
        logits, index = top_regions(self.emb(q), self.emb(k), count=self.topk, scale=self.scale,
                                    mode=self.mode)
        return logits.softmax(-1) if weights else None, index


class BiLevelRoutingAttention(UsesOperators, EndsInLinear):
    """Bi-level routing attention on a map.

    Args:
        dim: C.
        num_heads: h; divides `dim` and `qk_dim`.
        n_win: regions along each side.
        topk: K, regions that each region attends to.
        qk_dim: Q, C by default.
        scale: factor of the logits, Q^-½ by default.
        side_dwconv: kernel size of LePE on v, odd; 0 for no LePE.
        kv_downsample_mode: how k and v of a region are pooled: 'identity' (no pooling), 'avgpool'
            or 'maxpool' (by `kv_downsample_ratio`), 'ada_avgpool' or 'ada_maxpool' (to
            `kv_per_win`²).
        kv_downsample_ratio: side of the pooling window, in tokens.
        kv_per_win: side of the pooled region, in tokens.
        param_attention: 'qkvo', or 'qkv' for no output projection.
        param_routing, diff_routing: see `TopkRouting`.
        soft_routing: multiply k and v of a routed region by its routing weight.
        auto_pad: pad the map to multiples of n_win. False: a map that n_win does not divide is an
            error.

    Raises:
        ValueError: num_heads does not divide dim or qk_dim, or a mode is unknown; the message names
            the choices.
    """

    last = 'wo'

    def __init__(self, dim: int, num_heads: int, *, n_win: int = 7, topk: int = 4,
                 qk_dim: int | None = None, scale: float | None = None, side_dwconv: int = 5,
                 kv_downsample_mode: KVPool = 'identity', kv_downsample_ratio: int = 4,
                 kv_per_win: int = 4, param_attention: Literal['qkvo', 'qkv'] = 'qkvo',
                 param_routing: bool = False, diff_routing: bool = False,
                 soft_routing: bool = False, auto_pad: bool = True) -> None:
        super().__init__()
        self.qk_dim = qk_dim or dim
        if dim % num_heads or self.qk_dim % num_heads:
            raise ValueError(f'num_heads {num_heads} must divide dim {dim} and qk_dim '
                             f'{self.qk_dim}')
        if topk < 1 or n_win < 1:
            raise ValueError(f'n_win and topk are at least 1, got {n_win} and {topk}')
        if param_attention not in ('qkvo', 'qkv'):
            raise ValueError(f"param_attention is 'qkvo' or 'qkv', got {param_attention!r}")
        if param_routing and not diff_routing:
            raise ValueError('param_routing needs diff_routing: without it nothing trains the '
                             'routing')
        self.dim = dim
        self.num_heads = num_heads
        self.n_win = n_win
        self.scale = self.qk_dim ** -.5 if scale is None else scale
        self.soft_routing = soft_routing
        self.auto_pad = auto_pad
        self.router = TopkRouting(self.qk_dim, topk, scale=self.scale,
                                  param_routing=param_routing, diff_routing=diff_routing)
        self.qkv = nn.ModuleDict({'qkv': nn.Linear(dim, 2 * self.qk_dim + dim)})
        self.kv_down = _kv_pool(kv_downsample_mode, kv_downsample_ratio, kv_per_win)
        self.lepe = DepthwiseConv(dim, side_dwconv) if side_dwconv else None
        self.wo = nn.Linear(dim, dim) if param_attention == 'qkvo' else nn.Identity()

    def result(self, x: Tensor, *, biased: bool) -> Tensor:
        """(B, H, W, C) to (B, H, W, C); see `EndsInLinear`."""
        if not self.auto_pad and (x.shape[1] % self.n_win or x.shape[2] % self.n_win):
            raise ValueError(f'n_win {self.n_win} does not divide the map {x.shape[1]}x'
                             f'{x.shape[2]}; resize it or set auto_pad=True')
        x, pads = pad_to_multiple(x, (self.n_win, self.n_win))
        qkv = linear(self.qkv['qkv'], x)
        q, k, v = qkv.split([self.qk_dim, self.qk_dim, self.dim], dim=-1)
        means = region_means(qkv[..., :2 * self.qk_dim], self.n_win, mode=self.mode)
        weight, index = self.router(*means.chunk(2, -1),
                                    weights=self.soft_routing or self.router.diff_routing)
        out = region_attention(
            q, k, v, index, num_heads=self.num_heads, n_win=self.n_win, scale=self.scale,
            weight=self._factor(weight), pool=self.pool, mode=self.mode)
        if self.lepe is not None:
            out = self.lepe(v, onto=out)
        return crop(linear(self.wo, out, biased=biased), pads)

    @property
    def pool(self) -> nn.Module | None:
        """The pooling of a region's keys and values, (·, C, h, w) each; None for no pooling."""
        return None if isinstance(self.kv_down, nn.Identity) else self.kv_down

    def _factor(self, weight: Tensor | None) -> Tensor | None:
        """The factor of the routed k and v: the weights, 1 with their gradient, or None."""
        if self.soft_routing:
            return weight
        return 1 + weight - weight.detach() if self.router.diff_routing else None


@contextmanager
def record_routing(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect the routing of every bi-level routing attention in `model` while the block runs.

    Yields:
        A dict, name of the attention -> (B, R, K) routed regions of its last forward. Each forward
        fills the dict.
    """
    found: dict[str, Tensor] = {}
    handles = [
        module.router.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output[1]))
        for name, module in model.named_modules() if isinstance(module, BiLevelRoutingAttention)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _kv_pool(mode: KVPool, ratio: int, per_win: int) -> nn.Module:
    pools = {
        'identity': nn.Identity,
        'avgpool': lambda: nn.AvgPool2d(ratio),
        'maxpool': lambda: nn.MaxPool2d(ratio),
        'ada_avgpool': lambda: nn.AdaptiveAvgPool2d(per_win),
        'ada_maxpool': lambda: nn.AdaptiveMaxPool2d(per_win),
    }
    if mode not in pools:
        raise ValueError(f'kv_downsample_mode is one of {", ".join(pools)}; got {mode!r}')
    return pools[mode]()
