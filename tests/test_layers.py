"""The shared pieces: padding, windows, stochastic depth, norms."""
import copy
import os
import pickle
import platform
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from visattn_dense.attention import LiteMLA, TokenPerformer
from visattn_dense.layers import (
    ConvNormAct,
    DepthwiseConv,
    DropPath,
    FusedMBConv,
    Handover,
    LayerNorm2d,
    MBConv,
    Mlp,
    PackedConv2d,
    PackedLinear,
    Residual,
    SoftSplit,
    TransformerBlock,
    crop,
    drop_path_rates,
    merge_windows,
    optimize_for_inference,
    pad_to_multiple,
    partition_windows,
)
from visattn_dense.layers.activations import ACTIVATIONS
from visattn_dense.layers.norm import PreNorm
from visattn_dense.layers.packed import (
    NativeConv2d,
    NativeFeedForward,
    NativeFusedMBConv,
    NativeLinear,
    NativeMBConv,
)
from visattn_dense.ops import native

SIZES = [(1, 1), (5, 3), (7, 11), (13, 2), (31, 17)]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('window', [(1, 1), (3, 2), (2, 5), (7, 7)])
@pytest.mark.parametrize('centred', [False, True])
def test_pad_partition_merge_crop_is_the_identity(size, window, centred):
    x = torch.randn(2, *size, 3, 5)
    padded, pads = pad_to_multiple(x, window, centred=centred)
    windows = partition_windows(padded, window)
    assert windows.shape[1:3] == window
    torch.testing.assert_close(crop(merge_windows(windows, padded.shape[1:3]), pads), x)


def test_windows_are_cut_row_by_row():
    x = torch.arange(2 * 4 * 6).view(2, 4, 6, 1)
    windows = partition_windows(x, (2, 3))
    assert windows[1, :, :, 0].tolist() == [[3, 4, 5], [9, 10, 11]]
    assert windows[2, :, :, 0].tolist() == [[12, 13, 14], [18, 19, 20]]
    assert windows[4, 0, 0, 0] == 24


def test_full_width_windows_are_views():
    x = torch.randn(2, 8, 6, 3)
    assert partition_windows(x, (2, 6)).data_ptr() == x.data_ptr()


def test_a_window_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match='pad it first'):
        partition_windows(torch.zeros(1, 5, 6, 1), (2, 3))


@pytest.mark.parametrize('centred, expected', [(True, (1, 2, 0, 1)), (False, (0, 3, 0, 1))])
def test_pads_stand_where_they_should(centred, expected):
    x = torch.ones(1, 4, 4, 1)
    padded, pads = pad_to_multiple(x, (5, 7), centred=centred)
    left, right, top, bottom = pads
    assert pads == expected
    assert padded.shape == (1, 5, 7, 1)
    assert padded[0, top:5 - bottom, left:7 - right].all()
    assert padded.sum() == 16


def test_padding_that_is_not_needed_copies_nothing():
    x = torch.randn(1, 4, 6, 3)
    padded, pads = pad_to_multiple(x, (2, 3))
    assert padded is x and crop(padded, pads) is x


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    x = torch.ones(4000, 2, 3)
    out = DropPath(.25).train()(x)
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert out.unique().tolist() == pytest.approx([0, 1 / .75])
    assert out.mean().item() == pytest.approx(1, abs=.05)


@pytest.mark.parametrize('probability', [-.1, 1., 2.])
def test_drop_path_needs_a_probability(probability):
    with pytest.raises(ValueError, match='probability'):
        DropPath(probability)


def test_drop_path_rates_grow_from_zero():
    rates = drop_path_rates(.3, (1, 2, 1))
    assert [len(stage) for stage in rates] == [1, 2, 1]
    assert sum(rates, []) == pytest.approx([0, .1, .2, .3])
    assert drop_path_rates(.3, (1,)) == [[0.]]


def test_depthwise_conv_is_torch_convolution_channels_last():
    conv, x = DepthwiseConv(6, 5), torch.randn(2, 7, 3, 6)
    expected = nn.functional.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=2,
                                    groups=6)
    torch.testing.assert_close(conv(x), expected.permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match='odd'):
        DepthwiseConv(6, 4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_depthwise_conv_added_to_its_input(dtype):
    conv, x = DepthwiseConv(6, 5).to(dtype), torch.randn(2, 7, 3, 6, dtype=dtype)
    nn.init.normal_(conv.weight, std=1e-3)
    torch.testing.assert_close(conv.add_to(x), x + conv(x))
    with torch.autocast('cpu', torch.bfloat16):
        # Not rounded to 1 + weight in bfloat16, which would leave hardly a bit of the weights.
        torch.testing.assert_close(conv.add_to(x), x + conv(x), rtol=0, atol=0)


def test_layer_norm_2d_normalises_channels():
    norm, x = LayerNorm2d(5), torch.randn(2, 5, 3, 7)
    out = norm(x)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 3, 7), atol=1e-6, rtol=0)
    torch.testing.assert_close(out[1, :, 2, 4], nn.functional.layer_norm(x[1, :, 2, 4], (5,)))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('act', [nn.GELU(), nn.GELU('tanh'), nn.ReLU(), nn.Hardswish()])
def test_packed_layers_compute_the_same(act, bias):
    model = nn.Sequential(nn.Linear(5, 7, bias=bias), act, nn.Linear(7, 3, bias=bias)).eval()
    convs = nn.Sequential(nn.Conv2d(5, 6, 3, 2, 1, bias=bias), nn.BatchNorm2d(6), copy.copy(act),
                          nn.Conv2d(6, 6, 5, padding=2, groups=3, bias=bias), act).eval()
    nn.init.uniform_(convs[1].running_var, .5, 2)
    x, image = torch.randn(2, 11, 13, 5), torch.randn(2, 5, 17, 11)
    with torch.no_grad():
        expected, map_expected = model(x), convs(image)
        optimize_for_inference(model), optimize_for_inference(convs)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(convs(image), map_expected, rtol=1e-4, atol=1e-5)
        # As a detection head without proposals asks for it.
        assert model(x[:0]).shape == (0, 11, 13, 3)
        with torch.autocast('cpu', torch.bfloat16):
            assert model(x).dtype == torch.float32
    linear, conv = ((NativeLinear, NativeConv2d) if native.available() else
                    (PackedLinear, PackedConv2d))
    assert [type(m) for m in model] == [linear, nn.Identity, linear]
    assert [type(m) for m in convs] == [conv, *[nn.Identity] * 2, PackedConv2d, nn.Identity]


def randomised(module: nn.Module) -> nn.Module:
    """In evaluation mode, with all parameters and statistics random."""
    for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
        nn.init.uniform_(tensor, .1, .6)
    return module.eval()


@pytest.mark.parametrize('act', [nn.GELU, partial(nn.GELU, 'tanh'), nn.ReLU, nn.Hardswish])
def test_the_second_half_of_a_block_becomes_one_layer(act):
    block = randomised(TransformerBlock(6, nn.Linear(6, 6), mlp_layer=partial(Mlp, act_layer=act),
                                        norm_eps=.1))
    plain, x = copy.deepcopy(block), torch.randn(2, 5, 7, 6)
    optimize_for_inference(block)
    if native.available():
        assert type(block.mlp) is NativeFeedForward
    with torch.no_grad():
        torch.testing.assert_close(block(x), plain(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(copy.deepcopy(block)(x), plain(x), rtol=1e-5, atol=1e-5)
        handover = Handover(following=plain.norm1)
        torch.testing.assert_close(block(x, handover), plain(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(handover.normed, plain.norm1(plain(x)), rtol=1e-4, atol=1e-4)
        # In NCHW memory, as after a convolution; and no tokens.
        turned = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        torch.testing.assert_close(block(turned), plain(x), rtol=1e-5, atol=1e-5)
        assert block(x[:0]).shape == (0, 5, 7, 6)
    with pytest.raises(RuntimeError, match='keep a copy'):
        block.state_dict()


def test_the_update_of_a_block_may_be_one_for_all_tokens():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(1, keepdim=True)

    block, x = randomised(TransformerBlock(6, Mean())), torch.randn(2, 5, 6)
    with torch.no_grad():
        prepared = optimize_for_inference(copy.deepcopy(block))
        torch.testing.assert_close(prepared(x), block(x), rtol=1e-5, atol=1e-5)


class Two(nn.Sequential):
    def forward(self, x):
        handover = Handover(following=self[1].norm1)
        return self[1](self[0](x, handover), handover)


@pytest.mark.parametrize('module', [
    lambda: nn.LayerNorm(6), lambda: LayerNorm2d(6), lambda: PreNorm(6), lambda: DepthwiseConv(6),
    lambda: Two(TransformerBlock(6, nn.Identity()), TransformerBlock(6, nn.Identity())),
    lambda: ConvNormAct(6, 6, 3, act='hardswish')])
def test_vectors_may_have_gaps(module):
    """Every second number of a larger vector, as a slice leaves them."""
    model = randomised(nn.Sequential(module()))
    for layer in model.modules():
        for name, vector in layer._parameters.items():
            if vector is not None and vector.ndim == 1:
                setattr(layer, name, nn.Parameter(torch.rand(2 * len(vector))[::2]))
    x = torch.randn(2, 6, 6, 6)
    with torch.no_grad():
        expected = model(x)
        prepared = optimize_for_inference(model)
        torch.testing.assert_close(prepared(x), expected, rtol=1e-4, atol=1e-5)


def test_another_mlp_stays_apart():
    class Halved(Mlp):
        def forward(self, x):
            return super().forward(x) / 2

    block = randomised(TransformerBlock(6, nn.Identity(), mlp_layer=Halved))
    plain, x = copy.deepcopy(block), torch.randn(2, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(optimize_for_inference(block)(x), plain(x), rtol=1e-5, atol=1e-5)
    assert type(block.mlp) is Halved


@pytest.mark.parametrize(('branch', 'form'), [(MBConv, NativeMBConv),
                                              (FusedMBConv, NativeFusedMBConv)])
@pytest.mark.parametrize(('dim', 'stride', 'shortcut'),
                         [(5, 1, True), (5, 1, False), (7, 2, False)])
def test_a_mobile_block_becomes_one_layer(branch, form, dim, stride, shortcut):
    block = randomised(Residual(branch(5, dim, stride=stride), shortcut=shortcut))
    plain, x = copy.deepcopy(block), torch.randn(2, 5, 9, 6)
    optimize_for_inference(block)
    if native.available():
        assert type(block.main) is form
    with torch.no_grad():
        torch.testing.assert_close(block(x), plain(x), rtol=1e-5, atol=1e-4)


def test_what_cannot_be_packed_stays():
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict(dict(subclass=Own(2, 3), reflect=nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1, padding_mode='reflect'), nn.ReLU()),
        float64=nn.Linear(2, 2).double())).eval()
    kept = dict(model.named_modules())
    assert dict(optimize_for_inference(model).named_modules()) == kept


def test_an_activation_is_not_fused_across_an_unknown_forward():
    class Odd(nn.Module):
        """Its children do not stand in the order of its forward."""

        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(3, 3), nn.ReLU()

        def forward(self, x):
            return self.fc(self.act(x))

    model, x = Odd().eval(), torch.randn(4, 3)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(optimize_for_inference(model)(x), expected)


class Backwards(nn.Sequential):
    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


class MixedMlp(Mlp):
    """Mixes neighbours between fc1 and the activation."""

    def __init__(self, dim, hidden_dim):
        super().__init__(dim, hidden_dim)
        self.mix = nn.Linear(hidden_dim, hidden_dim)

    def before_last(self, x):
        return self.act(self.mix(self.fc1(x)))


ACT, POOL = nn.GELU(), nn.AvgPool2d(2)


@pytest.mark.parametrize(('model', 'shape'), [
    (nn.Sequential(nn.Conv2d(4, 4, 3), ACT, nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), ACT,
                   nn.BatchNorm2d(4)), (2, 4, 9, 7)),
    (nn.Sequential(nn.Conv2d(4, 4, 1), POOL, nn.GELU(), nn.Conv2d(4, 4, 1), POOL, nn.GELU()),
     (2, 4, 9, 7)),
    (Backwards(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.GELU()), (2, 4, 9, 7)),
    (MixedMlp(4, 6), (2, 5, 4)),
], ids=['norm', 'activation', 'forward', 'perceptron'])
def test_only_what_follows_a_layer_is_fused_with_it(model, shape):
    """A module that comes twice stands between two others each time."""
    model, x = randomised(model), torch.randn(shape)
    with torch.no_grad():
        prepared = optimize_for_inference(copy.deepcopy(model))
        torch.testing.assert_close(prepared(x), model(x), rtol=1e-4, atol=1e-5)


class Scaled(Residual):
    def add(self, x, update):
        return x + .1 * update


class Doubled(Residual):
    def forward(self, x):
        return x + 2 * self.main(x)


class NormAct(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def hooked(model: nn.Module, name: str) -> nn.Module:
    """With a hook on a module."""
    model.get_submodule(name).register_forward_hook(lambda _, args, out: out * 3)
    return model


OWN = {
    'residual sum': lambda: Scaled(MBConv(4, 4)),
    'residual sum of an attention': lambda: Scaled(LiteMLA(4, 2)),
    'residual forward': lambda: Doubled(FusedMBConv(4, 4)),
    'norm': lambda: nn.Sequential(nn.Conv2d(4, 4, 3), NormAct(4)),
    'norm by the batch': lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    'hook on a convolution': lambda: hooked(ConvNormAct(4, 4, 3, act='hardswish'), 'conv'),
    'hook on a norm': lambda: hooked(ConvNormAct(4, 4, 3, act='hardswish'), 'norm'),
    'hook on an activation': lambda: hooked(ConvNormAct(4, 4, 3, act='hardswish'), 'act'),
    'hook in a branch': lambda: hooked(Residual(MBConv(4, 4)), 'main.depth_conv.conv'),
    'hook in a block': lambda: hooked(
        nn.Sequential(TransformerBlock(7, nn.Identity())), '0.mlp.fc1'),
    'hook on a split': lambda: hooked(
        nn.Sequential(TokenPerformer(4 * 9, 8, split=SoftSplit(3, 2, 1))), '0.norm1'),
}


@pytest.mark.parametrize('name', OWN)
@torch.no_grad()
def test_what_a_user_changes_stays(name):
    model, x = randomised(OWN[name]()), torch.randn(2, 4, 9, 7)
    prepared = optimize_for_inference(copy.deepcopy(model))
    torch.testing.assert_close(prepared(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pruned_weights_are_those_of_the_checkpoint():
    """A hook of torch puts them together, at the next pass."""
    def pruned():
        model = nn.Sequential(nn.Linear(4, 5))
        prune.random_unstructured(model[0], 'weight', .5)
        return model.eval()

    model, loaded, x = pruned(), pruned(), torch.randn(3, 4)
    loaded.load_state_dict(model.state_dict())
    torch.testing.assert_close(optimize_for_inference(loaded)(x), model(x))


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='glibc alone has these settings')
def test_freed_memory_is_kept():
    code = ('import resource, torch\n'
            'from visattn_dense.inference.allocator import keep_freed_memory\n'
            'def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
            'def use(): [torch.ones(2**20) for _ in range(50)]\n'
            '{}\nuse(); use(); before = faults()\n'
            'for _ in range(5): use()\n'
            'print(faults() - before)')
    # By itself glibc gives the 200 MiB back each time, or half of the time keeps them by chance;
    # told to map what is larger than 64 KiB it always does, until it is told otherwise.
    giving_back = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536'}
    counts = [int(subprocess.run([sys.executable, '-c', code.format(line)], capture_output=True,
                                 env=giving_back, text=True, check=True).stdout)
              for line in ('', 'assert keep_freed_memory()')]
    # A page fault for each 4 KiB, or for fewer where the system gives huge pages.
    assert counts[0] >= 500 and counts[1] < counts[0] / 10, counts


def test_optimizing_refuses_what_would_be_lost():
    with pytest.raises(ValueError, match='eval'):
        optimize_for_inference(Mlp(3, 5))
    model = optimize_for_inference(Mlp(3, 5).eval())
    for call in (model.state_dict, lambda: model.load_state_dict({}),
                 lambda: pickle.dumps(model)):
        with pytest.raises(RuntimeError, match='keep a copy'):
            call()


@torch.no_grad()
def test_a_transformer_of_torch_stays_whole():
    """Its forward gives the weights of its layers to one fused operator."""
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 7, 32)
    torch.testing.assert_close(optimize_for_inference(copy.deepcopy(model))(x), model(x))


def test_hardswish_overwrites_its_input_only_where_no_gradient_is_needed():
    """In place, torch would copy the input of each activation in a training."""
    act, x = ACTIVATIONS['hardswish'](), torch.randn(8)
    with torch.no_grad():
        kept = x.clone()
        assert act(kept).data_ptr() == kept.data_ptr()
    assert kept.equal(nn.functional.hardswish(x))
    layer = nn.Linear(8, 8)
    out = layer(x)
    copy = out.detach().clone()
    assert act(out).data_ptr() != out.data_ptr() and out.equal(copy)
