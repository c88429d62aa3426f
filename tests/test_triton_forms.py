"""The Triton forms: their cases in a process of their own, and what needs no device."""
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.registers import compile_launch, launches
from visattn_dense.ops import launching
from visattn_dense.ops.add_norm import add_norm
from visattn_dense.ops.add_norm import triton_form as add_norm_form
from visattn_dense.ops.depthwise import triton_form as depthwise_form
from visattn_dense.ops.linear import triton_form as linear_layers
from visattn_dense.ops.linear_attention import triton_form as linear_form
from visattn_dense.ops.norm_act import TrainingNorm
from visattn_dense.ops.norm_act import triton_form as norm_act_form
from visattn_dense.ops.pointwise import triton_form as pointwise_form

from .interpreting import MOST_SPILLS, check_kinds, fake_gpu, run_cases

needs_triton = pytest.mark.skipif(not launching.HAS_TRITON, reason='needs Triton')


@needs_triton
def test_cases():
    """On the GPU where there is one, else in Triton's interpreter."""
    run_cases('triton_form_cases.py')


@needs_triton
def test_backbones():
    run_cases('backbone_triton_cases.py')


@needs_triton
@pytest.mark.skipif(launching.INTERPRETED, reason='the interpreter compiles nothing')
@pytest.mark.parametrize('case, head_dim, capability', [
    ('residual norm', 64, 80), ('depthwise 3x3 in windows', 32, 90), ('grouped pointwise', 32, 80),
    ('focused attention', 64, 90), ('focused attention', 32, 80), ('perceptron', 32, 90),
    ('norm and activation, training', 64, 90)])
def test_kernels_compile_to_gpu_code(case, head_dim, capability, tmp_path, monkeypatch):
    """Types and shapes are checked by Triton's compiler, not by its interpreter; needs no GPU.

    `python -m benchmarks.registers` compiles all kernels, for both capabilities.
    """
    if case == 'focused attention' and head_dim > 32 and MOST_SPILLS:
        pytest.skip('the assembler of Triton 3.2 spills with heads of 64 channels; models have 32')
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    found = launches(case, torch.bfloat16, head_dim)
    for launch in found:
        usage = compile_launch(launch, capability)
        # What a thread block may have on every GPU from capability 8.0 on.
        assert usage.shared <= 99 * 1024
        assert max(usage.spills, usage.stack) <= MOST_SPILLS and usage.spills_in_loops == 0
        # A thread loads neighbouring channels at once.
        assert usage.loads[16] > 0
        # In focused attention, all but the convolution and what is done channel by channel.
        assert case != 'focused attention' or usage.matrix_units or launch.kernel.__name__ in (
            'statistics_kernel', 'focus_gradient_kernel', 'convolve_kernel',
            'weight_gradient_kernel', 'sum_rows_kernel')
    assert len(found) > 1


@needs_triton
@pytest.mark.skipif(launching.INTERPRETED, reason='the interpreter compiles nothing')
def test_float32_products_in_groups_stay_in_registers(tmp_path, monkeypatch):
    """Wider groups would spill tens of kilobytes a thread: torch computes these."""
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    widest = pointwise_form.MAX_FLOAT32_WIDTH
    for launch in launches('grouped pointwise', torch.float32, widest):
        assert compile_launch(launch, 80).spills == 0
    with FakeTensorMode(), torch.device('cuda'):
        x, weight = torch.empty(1, 4, 4, 3 * widest + 3), torch.empty(3, widest + 1, 1, 1)
        assert str(widest) in pointwise_form.why_not(x, weight, groups=3)
        assert pointwise_form.why_not(x.bfloat16(), weight.bfloat16(), groups=3) is None


@needs_triton
@fake_gpu
def test_plans_need_no_gpu():
    """Fake tensors on a GPU go through the Triton forms where there is no GPU."""
    with FakeTensorMode():
        x, weight = torch.empty(2, 5, 8, device='cuda'), torch.empty(8, device='cuda')
        update = x.bfloat16().requires_grad_()
        total, normed = add_norm(x, update, weight, weight, eps=1e-5, dtype=torch.bfloat16)
        assert 'add_norm' in type(total.grad_fn).__name__
        assert (total.dtype, normed.dtype) == (torch.float32, torch.bfloat16)
        assert total.device == normed.device == x.device


@needs_triton
@pytest.mark.skipif(launching.INTERPRETED, reason='the interpreter compiles nothing')
@pytest.mark.parametrize('operator', [
    'depthwise', 'depthwise in windows', 'focused', 'ReLU', 'linear layers', 'add_norm', 'norm',
    'bias'])
def test_a_new_size_compiles_nothing(operator):
    """Launches at other sizes, also of 1 or of multiples of 16, differ in no constant."""
    def run(height: int, width: int, batch: int) -> None:
        x = torch.empty(batch, height, width, 32, requires_grad=True)
        kernel = torch.empty(32, 1, 3, 3, requires_grad=True)
        if operator == 'linear layers':
            weight, bias = torch.empty(32, 32), torch.empty(32, requires_grad=True)
            out = linear_layers.mlp(linear_layers.linear(x, weight, bias), weight, bias, weight,
                                    bias)
        elif operator == 'add_norm':
            bias = torch.empty(32, requires_grad=True)
            out, normed = add_norm_form.add_norm(x, x, bias, bias, eps=1e-5, update_bias=bias)
            out.backward(torch.empty_like(out), retain_graph=True)
            out = normed
        elif operator in ('norm', 'bias'):
            vector, batches = torch.empty(32, requires_grad=True), torch.zeros((), dtype=torch.long)
            norm = TrainingNorm(torch.empty(32), torch.empty(32), vector, batches, .1, 1e-5)
            out = norm_act_form.norm_act(x.permute(0, 3, 1, 2), vector,
                                         norm if operator == 'norm' else None)
        elif operator == 'ReLU':
            qkv = torch.empty(batch, height * width, 1, 3, 32).permute(0, 2, 3, 4, 1)
            out = linear_form.relu_attention(qkv.requires_grad_(), epsilon=1e-6)
        elif operator == 'focused':
            out = linear_form.focused_attention(
                torch.empty(batch, height, width, 3, 32, requires_grad=True), (height, width),
                num_heads=1, position=torch.empty(1, height * width, 32), power=3.,
                scale=torch.empty(1, 1, 32), epsilon=1e-6, kernel=kernel, bias=None)
        else:
            window = (height, 7) if operator == 'depthwise in windows' else None
            out = depthwise_form.depthwise(x, kernel, window=window)
        out.backward(torch.empty_like(out))

    check_kinds(run)
