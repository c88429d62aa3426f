"""What an attention looks at: rows that are exact, of any size, and leave the model as it was."""
import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from visattn_dense.attention import (
    BiLevelRoutingAttention,
    CrossShapedWindowAttention,
    FocusedLinearAttention,
    GhostSelfAttention,
    LePESelfAttention,
    LiteMLA,
    SelfAttention,
    TokenPerformer,
    TokenTransformer,
    record_routing,
)
from visattn_dense.attention.naive import NAIVE, as_naive
from visattn_dense.backbones import CSWin, EfficientViT, T2TViT
from visattn_dense.errors import UserError
from visattn_dense.explain import (
    attention_rows,
    explain,
    feature_colours,
    figures,
    find_attentions,
    half_area,
    receptive_fields,
    rollout,
    weight_changes,
)
from visattn_dense.explain.changes import by_depth
from visattn_dense.explain.maps import principal_colours
from visattn_dense.explain.rows import Rows, known_attentions
from visattn_dense.layers import optimize_for_inference
from visattn_dense.ops import use_implementation

from .tiny_backbones import BACKBONES, cross_arch

SIZES = [(7, 11), (12, 6)]


class Case(NamedTuple):
    """An attention, and the two layers between which its attention matrix lies.

    `projection` takes the attention's output. The last channels of the output of `values`, as many
    as `projection` takes, are the values.
    """

    build: Callable[[], nn.Module]
    projection: str = 'proj'
    values: str = 'qkv'


def bra(**options) -> Case:
    return Case(lambda: BiLevelRoutingAttention(12, 3, **{'n_win': 3, 'topk': 4, **options}),
                'wo', 'qkv.qkv')


CASES = {
    'cross': Case(lambda: CrossShapedWindowAttention(12, 4, stripe_width=5)),
    'cross, masked padding': Case(
        lambda: CrossShapedWindowAttention(12, 4, stripe_width=5, mask_padding=True)),
    'cross, whole map': Case(lambda: CrossShapedWindowAttention(12, 4, stripe_width=None)),
    'focused': Case(lambda: FocusedLinearAttention(12, 4, native_size=(5, 9))),
    'focused cross': Case(
        lambda: FocusedLinearAttention(12, 4, native_size=(5, 9), stripe_width=5)),
    'routed': bra(),
    'routed, few channels of q': bra(qk_dim=6),
    'routed, all regions': bra(topk=99),
    'routed, differentiable': bra(diff_routing=True),
    'routed, average pooling': bra(kv_downsample_mode='avgpool', kv_downsample_ratio=2),
    'routed, adaptive pooling': bra(kv_downsample_mode='ada_avgpool', kv_per_win=2),
    'self': Case(lambda: SelfAttention(12, 3)),
    'self with LePE': Case(lambda: LePESelfAttention(12, 3)),
    'performer': Case(lambda: TokenPerformer(12, 10), values='kqv'),
    'wide': Case(lambda: TokenTransformer(12, 10).attn),
}
# Here a value is not the value that is weighed: the output alone can be compared.
OUTPUTS = {
    **CASES,
    'ghost': Case(lambda: GhostSelfAttention(12, 2), values='v'),
    'routed, soft': bra(soft_routing=True),
    'routed, maximum': bra(kv_downsample_mode='maxpool', kv_downsample_ratio=2),
    'routed, adaptive maximum': bra(kv_downsample_mode='ada_maxpool', kv_per_win=2),
}


def prepared(module: nn.Module, size: float = 1.) -> nn.Module:
    """In double precision, with weights of this size, and local convolutions of v that are zero."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        local = any(part in name for part in ('get_v', 'lepe', 'dwc'))
        parameter.data = torch.randn_like(parameter) * (0. if local else size)
    return module.double().eval()


@contextmanager
def inside(module: nn.Module, projection: str, values: str) -> Iterator[dict[str, Tensor]]:
    """The input of `projection` and the output of `values` during a forward, with their graph."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.get_submodule(projection).register_forward_pre_hook(
            lambda _module, inputs: seen.__setitem__('out', inputs[0])),
        module.get_submodule(values).register_forward_hook(
            lambda _module, _inputs, output: seen.__setitem__('values', output))]
    yield seen
    for handle in handles:
        handle.remove()


def naive_forward(module: nn.Module, x: Tensor, projection: str, values: str
                  ) -> tuple[Tensor, Tensor]:
    """The attention's output (H, W, e) and what holds its values, computed by the equations."""
    naive = as_naive(copy.deepcopy(module)) if type(module) in NAIVE or any(
        type(part) in NAIVE for part in module.modules()) else module
    with inside(naive, projection, values) as seen, use_implementation('reference'):
        naive(x)
    height, width = x.shape[1:3]
    out = seen['out'][0]
    out = out.unflatten(0, (height, width)) if out.ndim == 2 else out[:height, :width]
    return out, seen['values']


def sums(rows: Rows) -> Tensor:
    return rows.weights.sum((2, 3)) + sum(rows.elsewhere.values())


def everywhere(size: tuple[int, int]) -> list[tuple[int, int]]:
    return [(row, column) for row in range(size[0]) for column in range(size[1])]


def third(values):
    """Every third of a list: each stripe and region of SIZES has some of them."""
    return values[::3]


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('name', OUTPUTS)
def test_rows_times_values_are_the_output_of_the_attention(name: str, size: tuple[int, int]):
    module = prepared(OUTPUTS[name].build(), .5)
    x = torch.randn(1, *size, 12, dtype=torch.float64)
    with torch.no_grad():
        rows = attention_rows(module, x, third(everywhere(size)))
        out, _ = naive_forward(module, x, *OUTPUTS[name][1:])
    torch.testing.assert_close(rows.output.flatten(1), third(out.flatten(0, 1)), rtol=1e-9,
                               atol=1e-9)
    torch.testing.assert_close(sums(rows), torch.ones_like(sums(rows)))
    assert (rows.weights >= 0).all()


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('name', CASES)
def test_rows_are_those_of_the_naive_attention(name: str, size: tuple[int, int]):
    """d out_i / d v_j is the weight of key j for query i: autograd finds it without our rows."""
    module = prepared(CASES[name].build(), .5)
    x = torch.randn(1, *size, 12, dtype=torch.float64, requires_grad=True)
    positions = [(0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, 1)]
    with torch.no_grad():
        rows = attention_rows(module, x, positions)
    out, values = naive_forward(module, x, *CASES[name][1:])
    width = out.shape[-1]
    head_dim = width // rows.weights.shape[1]
    for query, (row, column) in enumerate(positions):
        for head, found in enumerate(rows.weights[query]):
            channel = head * head_dim
            gradient, = torch.autograd.grad(out[row, column, channel], values, retain_graph=True)
            expected = gradient[..., channel - width][0, :size[0], :size[1]]
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_rows_of_the_multi_scale_attention(size: tuple[int, int]):
    module = prepared(LiteMLA(12, 2, scales=(3, 5)), .5)
    x = torch.randn(1, 12, *size, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        rows = attention_rows(module, x, everywhere(size))
    assert rows.groups == ('scale 0',) * 2 + ('scale 1',) * 2 + ('scale 2',) * 2
    torch.testing.assert_close(sums(rows), torch.ones_like(sums(rows)))
    for scale, name in enumerate(('qkv', 'aggreg.0', 'aggreg.1')):
        out, tokens = naive_forward_of_mla(module, x, name)
        flat = out[0].flatten(1).T                                      # (N, 6 heads · 6)
        torch.testing.assert_close(rows.output.flatten(1), flat, rtol=1e-9, atol=1e-9)
        for head in range(2):
            query = 3 * size[1] + 2
            gradient, = torch.autograd.grad(flat[query, (2 * scale + head) * 6], tokens,
                                            retain_graph=True)
            # The channels of a head are those of q, of k and of v.
            expected = gradient[0, head * 18 + 12]
            torch.testing.assert_close(rows.weights[query, 2 * scale + head], expected,
                                       rtol=1e-9, atol=1e-12)


def naive_forward_of_mla(module: LiteMLA, x: Tensor, values: str) -> tuple[Tensor, Tensor]:
    with inside(module, 'proj', values) as seen, use_implementation('reference'):
        module(x)
    return seen['out'], seen['values']


def test_a_cross_by_hand():
    """With q = 0 all keys of a stripe weigh the same, the padding too."""
    module = CrossShapedWindowAttention(8, 2, stripe_width=2)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    rows = attention_rows(module, torch.randn(1, 3, 5, 8), [(2, 4)])
    # 3×5 is padded to 4 rows and 6 columns: below and to the right, for half of one is none.
    vertical, horizontal = rows.weights[0]
    assert vertical.tolist() == pytest.approx(np.array([[0, 0, 0, 0, 1]] * 3) / 6)
    assert horizontal.tolist() == pytest.approx(np.array([[0] * 5] * 2 + [[1] * 5]) / 10)
    assert rows.elsewhere['padding'].tolist() == [pytest.approx([.5, .5])]
    assert rows.groups == ('vertical', 'horizontal')


def test_the_epsilon_of_a_dead_query_takes_all():
    module = LiteMLA(4, 1, scales=())
    nn.init.constant_(module.qkv.conv.weight, -1.)
    rows = attention_rows(module, torch.ones(1, 4, 3, 5), [(1, 1)])
    assert rows.weights.sum() == 0 and rows.elsewhere['epsilon'].item() == 1
    assert np.isnan(half_area(rows.weights[0, 0]))


def test_routing_is_that_of_the_module():
    module = prepared(bra().build())
    x = torch.randn(1, 7, 11, 12, dtype=torch.float64)
    with torch.no_grad(), record_routing(module) as routing:
        module(x)
        rows = attention_rows(module, x, [(3, 5)])
    assert rows.routing.index.tolist() == routing[''][0].tolist()
    assert rows.routing.region == (3, 4) and rows.routing.n_win == 3
    # Row 3 and column 5 are in region 1·3 + 1.
    chosen = {(r // 3, r % 3) for r in rows.routing.index[4].tolist()}
    looked_at = {(int(r) // 3, int(c) // 4) for r, c in rows.weights[0, 0].nonzero()}
    assert looked_at == chosen


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_gives_rows_in_full_precision(dtype):
    module = CrossShapedWindowAttention(8, 2, stripe_width=2).to(dtype)
    rows = attention_rows(module, torch.randn(1, 5, 7, 8, dtype=dtype), [(1, 1)])
    assert rows.weights.dtype == torch.float32
    torch.testing.assert_close(sums(rows), torch.ones(1, 2))


def test_a_model_in_half_precision_gives_arrays(image: Tensor):
    found = explain(BACKBONES['BiFormer']().bfloat16().eval(), image)
    assert {array.dtype.name for array in found.arrays().values()} == {'float32', 'float64',
                                                                       'int64'}


class Largest(TorchDispatchMode):
    """The number of values in the largest tensor that was made."""
    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(t.numel() for t in tree_leaves(out)
                                      if isinstance(t, Tensor))])
        return out


@pytest.mark.parametrize('module, channels', [
    (CrossShapedWindowAttention(8, 2, stripe_width=2), 8),
    (FocusedLinearAttention(8, 2, native_size=(14, 14)), 8),
    (BiLevelRoutingAttention(8, 2, n_win=8, topk=8), 8),
    (SelfAttention(8, 2), 8),
    (TokenPerformer(8, 8), 8),
    (LiteMLA(8, 2), 8)], ids=lambda value: type(value).__name__)
def test_memory_grows_with_the_map_and_not_with_its_square(module: nn.Module, channels: int):
    """A map of 256×512: that of 2048×1024 pixels at stride 4, turned."""
    size = (256, 512)
    shape = (1, channels, *size) if isinstance(module, LiteMLA) else (1, *size, channels)
    with torch.no_grad(), Largest() as largest:
        rows = attention_rows(module.eval(), torch.randn(shape), [(200, 300)])
    assert rows.weights.shape[2:] == size
    torch.testing.assert_close(sums(rows), torch.ones_like(sums(rows)))
    assert largest.most <= 6 * channels * size[0] * size[1]


@pytest.fixture(scope='module', params=BACKBONES)
def backbone(request) -> nn.Module:
    torch.manual_seed(0)
    return BACKBONES[request.param]().eval()


@pytest.fixture(scope='module')
def image() -> Tensor:
    return torch.randn(3, 65, 97, generator=torch.Generator().manual_seed(1))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
               for m in model.modules())


def test_explaining_changes_nothing(backbone: nn.Module, image: Tensor):
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with torch.no_grad():
        before = backbone(image[None])
    found = explain(backbone, image, (40, 30))
    receptive_fields(backbone, image, (40, 30), draws=1)
    feature_colours(backbone, image)
    with torch.no_grad():
        after = backbone(image[None])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(tensor, state[name]) for name, tensor in backbone.state_dict().items())
    assert hooks(backbone) == 0
    assert all(p.grad is None for p in backbone.parameters()) and not image.requires_grad
    for look in found.looks:
        torch.testing.assert_close(sums(look.rows), torch.ones_like(sums(look.rows)))


def test_what_was_found_holds_no_part_of_the_forward(backbone: nn.Module, image: Tensor):
    seen = []

    def remember(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(weakref.ref(inputs[0]))
    handles = [a.register_forward_pre_hook(remember) for a in find_attentions(backbone).values()]
    found = explain(backbone, image)
    if isinstance(backbone, T2TViT):
        rollout(backbone, image)
    for handle in handles:
        handle.remove()
    gc.collect()
    assert found.looks and seen and not any(reference() is not None for reference in seen)


def test_hooks_go_when_a_forward_fails(backbone: nn.Module):
    with pytest.raises(RuntimeError):
        explain(backbone, torch.randn(5, 40, 40))
    assert hooks(backbone) == 0


def test_every_attention_of_a_stage_is_shown_inside_another_model(backbone: nn.Module,
                                                                  image: Tensor):
    whole = nn.ModuleDict(dict(backbone=backbone)).eval()
    default, last = explain(whole, image), explain(whole, image, stage=3)
    assert {look.stage for look in last.looks} == {3}
    assert last.looks[-1].name == default.looks[-1].name
    assert torch.equal(last.looks[-1].heads, default.looks[-1].heads)
    stages = [look.stage for look in default.looks]
    assert len(set(stages)) == len(stages) - stages.count('stem') + ('stem' in stages)


@pytest.mark.parametrize('name', ['CSWin', 'BiFormer', 'T2TViT'])
def test_the_figures_are_drawn(name: str, image: Tensor):
    found = explain(BACKBONES[name]().eval(), image, (40, 30))
    assert panels(found.figure()) >= 2 * len(found.looks)
    last = found.looks[-1]
    assert panels(figures.draw_heads(found.picture, found.point, last)) == len(last.heads)
    routed = [look for look in found.looks if look.rows.routing is not None]
    assert len(routed) == (3 if name == 'BiFormer' else 0)
    for look in routed[-1:]:
        assert panels(figures.draw_routing(found.picture, found.point, look)) == 2
    arrays = found.arrays()
    assert all(arrays[look.name].shape == look.heads.shape for look in found.looks)


@pytest.mark.parametrize('height, width, ratio', [
    (900, 2, 2.5), (100, 50, 2.), (50, 100, .5), (2, 900, .1)])
def test_a_narrow_picture_does_not_make_an_endless_figure(height: int, width: int, ratio: float):
    picture = np.zeros((height, width, 3), np.uint8)
    figure = figures.draw_maps(picture, (0., 0.), {'map': torch.ones(height, width)})
    for axis in figure.axes:
        box = axis.get_position(original=True)
        assert (box.height * figure.get_figheight() / (box.width * figure.get_figwidth())
                == pytest.approx(ratio))
        # What is shown keeps its shape.
        assert axis.get_aspect() == 1.


def panels(figure) -> int:
    return sum(bool(axis.images) for axis in figure.axes)


def test_a_point_is_the_position_that_it_lies_in():
    image = torch.zeros(3, 64, 96)
    model = CSWin(cross_arch()).eval()
    for point, expected in (((0, 0), (0, 0)), ((95, 63), (15, 23)), ((40, 30), (7, 10))):
        look = explain(model, image, point).looks[0]
        assert look.position == expected
        left, top, right, bottom = look.token
        assert left <= point[0] < right and top <= point[1] < bottom


@pytest.mark.parametrize('stride, level', [(4, 0), (8, 1), (16, 2)])
def test_a_token_of_t2t_is_made_from_its_box(stride: int, level: int):
    """The pixels that a token depends on, where the attentions between the splits do not mix."""
    model = BACKBONES['T2TViT']().eval()
    for part in (model.tokens_to_token.attention1, model.tokens_to_token.attention2):
        part.eps = 1e9
    image = torch.randn(1, 3, 128, 160, requires_grad=True)
    maps = model.tokens_to_token(image, lambda block, x: block(x))
    row, column = 64 // stride, 80 // stride
    gradient, = torch.autograd.grad(maps[level][0, row, column].square().sum(), image)
    # A millionth of the gradient comes by the attentions.
    moved = (gradient[0].abs().sum(0) > 1e-4 * gradient.abs().max()).nonzero()
    looks = explain(model, image[0].detach(), (column * stride, row * stride)).looks
    left, top, right, bottom = looks[level].token
    assert looks[level].position == (row, column)
    assert moved.min(0).values.tolist() == [top, left]
    assert moved.max(0).values.tolist() == [bottom - 1, right - 1]


def test_rollout_is_the_product_of_the_attentions(image: Tensor):
    model = BACKBONES['T2TViT, transformer tokens']().eval()
    for parameter in model.blocks.parameters():
        parameter.data *= 3
    inputs = []
    handles = [block.attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
               for block in model.blocks]
    look = rollout(model, image, (50, 40))
    for handle in handles:
        handle.remove()
    height, width = look.mean.shape
    tokens = 1 + height * width
    product = torch.eye(tokens)
    with torch.no_grad():
        for block, x in zip(model.blocks, inputs, strict=True):
            rows = attention_rows(block.attn, x, everywhere((height, width)), size=(height, width))
            matrix = torch.zeros(tokens, tokens)
            matrix[1:, 0] = rows.elsewhere['other tokens'].mean(1)
            matrix[1:, 1:] = rows.weights.mean(1).flatten(1)
            q, k, _ = block.attn.qkv(x)[0].unflatten(-1, (3, 2, 16)).unbind(1)
            matrix[0] = torch.einsum('h c, n h c -> h n', q[0], k).mul(
                block.attn.scale).softmax(-1).mean(0)
            product = (torch.eye(tokens) + matrix) / 2 @ product
    row = product[1 + look.position[0] * width + look.position[1]]
    torch.testing.assert_close(look.mean.flatten(), row[1:], rtol=1e-4, atol=1e-6)
    assert look.elsewhere['other tokens'] == pytest.approx(row[0].item(), rel=1e-4)


def test_rollout_needs_tokens(image: Tensor):
    with pytest.raises(UserError, match='rollout is for T2T-ViT'):
        rollout(BACKBONES['CSWin']().eval(), image)


def test_a_receptive_field_is_there_in_inference_mode():
    model, image = CSWin(cross_arch(), out_indices=(0,)).eval(), torch.randn(3, 64, 96)
    expected = receptive_fields(model, image)[0]
    with torch.inference_mode():
        torch.testing.assert_close(receptive_fields(model, image + 0)[0], expected)


def test_a_receptive_field_is_what_moves_the_map():
    """A pixel outside the field of the stem's convolution and stripes does not change the map."""
    model = CSWin(cross_arch(), out_indices=(0,)).eval()
    image = torch.randn(3, 64, 96)
    field = receptive_fields(model, image, (40, 30))[0]
    assert field.shape == image.shape[1:] and field[30, 40] > 0
    with torch.no_grad():
        before = model(image[None])[0][0, :, 7, 10]
        changed = image.clone()
        changed[:, field == 0] += 10
        after = model(changed[None])[0][0, :, 7, 10]
    assert (field == 0).any() and torch.equal(before, after)
    # The squares of the gradients of single channels, which random signs estimate.
    copied = image[None].clone().requires_grad_()
    here = model(copied)[0][0, :, 7, 10]
    exact = sum(torch.autograd.grad(value, copied, retain_graph=True)[0][0].square().sum(0)
                for value in here).sqrt()
    many = receptive_fields(model, image, (40, 30), draws=200)[0]
    assert ((many - exact).norm() / exact.norm()).item() < .1


def test_features_that_are_alike_have_one_colour():
    feature = torch.zeros(6, 4, 6)
    feature[0, :, :3], feature[1, :2, 3:], feature[2, 2:, 3:] = 3., 2., 5.
    colours = principal_colours(feature)
    patches = colours[:, :3], colours[:2, 3:], colours[2:, 3:]
    assert all((patch == patch[0, 0]).all() for patch in patches)
    assert len({tuple(patch[0, 0]) for patch in patches}) == 3
    assert principal_colours(torch.randn(2, 3, 5)).shape == (3, 5, 3)


def test_the_layer_that_differs_is_found():
    before = CSWin(cross_arch())
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.stage3[1].attn.qkv.weight *= 1.5
    changes = {change.name: change for change in weight_changes(before, after)}
    changed = changes.pop('stage3.1.attn.qkv.weight')
    assert changed.relative == pytest.approx(.5) and changed.part == 'attention'
    assert all(change.relative == 0 for change in changes.values())
    names, parts = by_depth([changed, *changes.values()])
    assert names[changed.depth] == 'block 4' and parts['attention'][4] > 0
    figures.draw_changes(names, parts, 'a → b').canvas.draw()
    with pytest.raises(UserError, match='of one config'):
        weight_changes(before, CSWin(dict(cross_arch(), embed_dim=32)))


def test_weights_too_small_for_a_picture_are_still_seen():
    """A map larger than the picture: the largest weight under a pixel counts."""
    weights = torch.zeros(40, 60)
    weights[21, 33] = 1
    picture = figures.lay_over(np.full((8, 12, 3), 100, np.uint8), weights)
    assert (picture[4, 6] != picture[0, 0]).any()


@pytest.mark.parametrize('make', [
    lambda: EfficientViT('b0'), lambda: T2TViT('7'),
    lambda: T2TViT(dict(embed_dim=64, depth=4, num_heads=2, mlp_ratio=2., tokens='transformer'))],
    ids=['mobile blocks', 'performer tokens', 'transformer tokens'])
def test_an_optimized_model_is_explained_and_has_no_field(make, image: Tensor):
    model = make().eval()
    expected = explain(model, image).looks
    fast = optimize_for_inference(copy.deepcopy(model))
    for found, look in zip(explain(fast, image).looks, expected, strict=True):
        torch.testing.assert_close(found.heads, look.heads, rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match='before optimize_for_inference'):
        receptive_fields(fast, image)


@pytest.mark.parametrize('call, message', [
    (lambda m, x: explain(m, x, (97, 0)), r'97,0 \(x, y\) is outside the image of 97x65'),
    (lambda m, x: explain(m, x, stage=7), 'stage 7 of CSWin has no attention'),
    (lambda m, x: explain(m, x, stage='stem'), 'these have: 0, 1, 2, 3'),
    (lambda m, x: explain(m, x[None].expand(2, -1, -1, -1)), 'one image'),
    (lambda m, x: explain(nn.Conv2d(3, 3, 1), x), 'no attention that can be shown'),
    (lambda m, x: explain(copy.deepcopy(m).train(), x), r'call model\.eval\(\) first'),
    (lambda m, x: attention_rows(nn.Linear(2, 2), x, [(0, 0)]), 'attention_rows.register'),
    (lambda m, x: attention_rows(SelfAttention(4, 2), torch.zeros(1, 9, 4), [(0, 0)]),
     r'size=\(H, W\)'),
    (lambda m, x: attention_rows(SelfAttention(4, 2), torch.zeros(1, 3, 3, 4), [(3, 0)]),
     r'map of 3x3, got \(3, 0\)')])
def test_bad_input_is_named(call: Callable, message: str, image: Tensor):
    with pytest.raises(UserError, match=message):
        call(CSWin(cross_arch()).eval(), image)


def test_every_attention_of_the_package_has_rows():
    """A new attention fails here until it has its function."""
    # Other tests enter toys of their own.
    ours = [cls for cls in NAIVE if cls.__module__.startswith('visattn_dense.')]
    assert len(ours) > 8
    assert all(issubclass(cls, tuple(known_attentions())) for cls in ours)
