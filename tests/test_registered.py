"""Operators of torch that a direct call reaches past the dispatcher: see ops/registered.py."""
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from visattn_dense.ops.registered import registered


class Seen(TorchDispatchMode):
    """Notes the operators inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(operator._schema.name)
        return operator(*args, **(kwargs or {}))


@registered('visattn_tests::weighted',
            '(Tensor x, Tensor[] weights, Tensor[] biases, int[] powers, float scale) '
            '-> (Tensor, Tensor)')
def weighted(x, weights, biases, powers, scale):
    """scale · x Σ wᵖ + Σ b, and x² without a gradient."""
    total = sum(weight**power for weight, power in zip(weights, powers, strict=True))
    return scale * x * total + sum(biases, torch.zeros(())), x**2


@weighted.register_fake
def _(x, weights, biases, powers, scale):
    return torch.empty_like(x), torch.empty_like(x)


@registered('visattn_tests::weighted_backward',
            '(Tensor grad, Tensor x, Tensor[] weights, int[] powers, float scale) -> Tensor[]')
def weighted_backward(grad, x, weights, powers, scale):
    total = sum(weight**power for weight, power in zip(weights, powers, strict=True))
    return [scale * grad * total, *(
        (scale * grad * x).sum() * power * weight**(power - 1)
        for weight, power in zip(weights, powers, strict=True))]


@weighted_backward.register_fake
def _(grad, x, weights, powers, scale):
    return [torch.empty_like(x), *(torch.empty_like(weight) for weight in weights)]


def setup(ctx, inputs, output):
    x, weights, biases, *ctx.options = inputs
    ctx.biases = len(biases)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, *weights)


def backward(ctx, grad, _):
    x, *weights = ctx.saved_tensors
    grad_x, *grads = weighted_backward(grad, x, weights, *ctx.options)
    return grad_x, grads, [grad.sum()] * ctx.biases, None, None


weighted.register_autograd(backward, setup_context=setup)


def arguments(biases: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5,), (), (), *[()] * biases]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
            for shape in shapes]


def call(tensors):
    x, w, u, *biases = tensors
    return weighted(x, [w, u], biases, [1, 3], .5)


@pytest.mark.parametrize('biases', [0, 2])
def test_direct_calls_have_the_gradients_of_the_dispatcher(biases):
    tensors = arguments(biases)
    out, squares = call(tensors)
    assert 'Gradient' in type(out.grad_fn).__name__           # the direct way
    assert not squares.requires_grad
    direct = torch.autograd.grad(out.square().sum(), tensors)
    with torch.autograd.profiler.profile():                   # which sees every operator
        dispatched, _ = call(tensors)
        watched = torch.autograd.grad(dispatched.square().sum(), tensors)
    torch.testing.assert_close(dispatched, out, rtol=0, atol=0)
    for ours, torchs in zip(direct, watched, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=0, atol=0)
    assert torch.autograd.gradcheck(lambda *args: call(args)[0], tensors)
    for watch in (nullcontext(), torch.autograd.profiler.profile()):
        with watch:
            Without.apply(call(tensors)[0]).backward()
    assert all(t.grad is None for t in tensors)


class Without(torch.autograd.Function):
    """Gives no gradient to its input."""

    @staticmethod
    def forward(ctx, x):
        return x.sum()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_some_tensors_need_no_gradient():
    x, w, u, b = arguments(1)
    out = call([x.detach(), w, u.detach(), b])[0]
    assert [grad.shape for grad in torch.autograd.grad(out.sum(), [w, b])] == [(), ()]
    with torch.no_grad():
        assert call([x, w, u, b])[0].grad_fn is None
    assert call([t.detach() for t in (x, w, u, b)])[0].grad_fn is None


def test_a_second_gradient_is_refused():
    """By every way: nothing may leave out a part of the gradient."""
    x, w, u, b = arguments(1)
    for again in (lambda loss: loss.backward(), lambda loss: loss.backward(inputs=[w]),
                  lambda loss: torch.autograd.grad(loss, w)):
        out = call([x, w, u, b])[0]
        grad, = torch.autograd.grad(out.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match='no autograd formula'):
            again(out.sum() + grad.square().sum())


def test_batched_gradients():
    tensors = arguments(1)
    out = call(tensors)[0]
    weights = torch.eye(5, dtype=torch.float64)
    expected = torch.stack([torch.autograd.grad(out, tensors[0], row, retain_graph=True)[0]
                            for row in weights])
    try:
        found, = torch.autograd.grad(out, tensors[0], weights, is_grads_batched=True)
    except RuntimeError as error:                             # torch, not a pointer to nothing
        assert 'data pointer' not in str(error)
    else:
        torch.testing.assert_close(found, expected)


def test_modes_and_tracers_see_the_operator():
    tensors = arguments(1)
    with Seen() as seen:
        call(tensors)[0].sum().backward()
    assert {'visattn_tests::weighted', 'visattn_tests::weighted_backward'} <= set(seen.names)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in tensors]
        assert call(fake)[0].shape == (5,)
    assert call(fake)[0].shape == (5,)                        # outside of the mode too
    explained = torch._dynamo.explain(lambda *args: call(args)[0])(*tensors)
    assert explained.graph_break_count == 0


def test_transforms_of_functions_see_the_operator():
    """A direct call would read memory that a batched tensor does not have."""
    x, w, u, b = (t.detach() for t in arguments(1))
    with pytest.raises((RuntimeError, NotImplementedError), match='vmap|[Bb]atching'):
        torch.vmap(lambda row: call([row, w, u, b])[0])(x.expand(3, -1))
