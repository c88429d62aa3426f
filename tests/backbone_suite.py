"""The tests that every backbone inherits. A new family writes:

    class TestCSWin(BackboneSuite):
        backbone = CSWin
        arch = dict(embed_dim=16, depths=(1, 1, 2, 1), ...)      # small, for speed

CONTRIBUTING.md has a whole example.
"""
import copy
import itertools
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune

from visattn_dense.backbones import DenseBackbone
from visattn_dense.checkpoints import load_pretrained
from visattn_dense.errors import UserError
from visattn_dense.layers import half_weights, optimize_for_inference
from visattn_dense.registry import BACKBONES

SIZES = [(64, 64), (64, 96), (65, 97), (31, 17), (37, 131), (1, 1), (3, 200), (128, 32)]


class BackboneSuite:
    """Behaviour that a user of any backbone relies on.

    Attributes:
        backbone: the class under test.
        arch: its smallest useful variant.
        kwargs: other arguments of every model that the tests build.
        without_gradient: names of parameters that get no gradient by design.
        half_tolerance: relative error that is allowed in bfloat16 and float16.
    """

    backbone: type[DenseBackbone]
    arch: str | dict[str, Any]
    kwargs: dict[str, Any] = {}
    without_gradient: tuple[str, ...] = ()
    half_tolerance = 0.05

    def build(self, **kwargs: Any) -> DenseBackbone:
        torch.manual_seed(0)
        return self.backbone(self.arch, **{**self.kwargs, **kwargs})

    def official_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """`state` with the names of an official checkpoint, which `layouts` turns into ours."""
        return state

    def image(self, height: int = 64, width: int = 96, batch: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, 3, height, width, generator=generator)

    @pytest.mark.parametrize('size', SIZES, ids=lambda s: f'{s[0]}x{s[1]}')
    def test_any_size_gives_the_pyramid(self, size):
        model = self.build().eval()
        with torch.no_grad():
            outs = model(self.image(*size))
        assert isinstance(outs, tuple) and len(outs) == 4
        for out, channels, stride in zip(outs, model.out_channels, model.strides, strict=True):
            assert out.shape[:2] == (2, channels)
            for got, pixels in zip(out.shape[2:], size, strict=True):
                assert max(1, pixels // stride) <= got <= -(-pixels // stride)
            assert out.isfinite().all()

    @pytest.mark.parametrize('with_cp', [False, True])
    def test_weights_cast_at_once_change_no_bit(self, with_cp, monkeypatch):
        """Inside autocast: values and gradients are those of autocast's own casts."""
        model = self.build(with_cp=with_cp)
        model.train()
        whole, casts, found = half_weights._Cast.apply, [], {}
        monkeypatch.setattr(half_weights._Cast, 'apply',
                            lambda *args: casts.append(len(args)) or whole(*args))
        for mine in (True, False):
            if not mine:
                monkeypatch.setattr(half_weights, 'autocast_dtype', lambda x: None)
            torch.manual_seed(0)
            with torch.autocast('cpu', torch.bfloat16):
                outs = model(self.image())
            sum(out.float().square().mean() for out in outs).backward()
            found[mine] = [*outs, *(p.grad for p in model.parameters() if p.grad is not None)]
            model.zero_grad()
        assert casts
        assert all(type(layer.weight) is nn.Parameter for layer in model.modules()
                   if isinstance(layer, nn.Linear))
        for ours, autocast in zip(found[True], found[False], strict=True):
            torch.testing.assert_close(ours, autocast, rtol=0, atol=0)

    def test_strides_and_channels_are_readable(self):
        model = self.build()
        assert model.strides == (4, 8, 16, 32)
        assert all(isinstance(c, int) for c in model.out_channels)

    @pytest.mark.parametrize('out_indices', [(0,), (3,), (1, 3), (3, 0)])
    def test_out_indices_choose_stages(self, out_indices):
        everything, some = self.build().eval(), self.build(out_indices=out_indices).eval()
        some.load_state_dict({k: v for k, v in everything.state_dict().items()
                              if k in some.state_dict()})
        with torch.no_grad():
            full, part = everything(self.image()), some(self.image())
        assert some.out_channels == tuple(everything.out_channels[i] for i in out_indices)
        for out, i in zip(part, out_indices, strict=True):
            torch.testing.assert_close(out, full[i])

    @pytest.mark.parametrize('bad', [(4,), (-1,), (0, 0), ()])
    def test_bad_out_indices_are_refused(self, bad):
        with pytest.raises(UserError, match='out_indices'):
            self.build(out_indices=bad)

    def test_every_parameter_gets_a_gradient(self):
        model = self.build().train()
        sum((out ** 2).mean() for out in model(self.image())).backward()
        # A layer may end in a zero-initialised product: the gradient must exist and be finite.
        without = {name for name, p in model.named_parameters() if p.grad is None}
        assert without == set(self.without_gradient)
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    def test_batch_entries_do_not_mix(self):
        model, x = self.build().eval(), self.image(64, 96)
        with torch.no_grad():
            both, first = model(x), model(x[:1])
        for out, alone in zip(both, first, strict=True):
            torch.testing.assert_close(out[:1], alone, rtol=1e-4, atol=1e-4)

    def test_vmap_gives_each_image_its_own(self):
        model = self.build().eval()
        x = torch.randn(2, 3, 67, 45)
        with torch.no_grad():
            for alone, batch in zip(torch.vmap(lambda image: model(image[None]))(x), model(x),
                                    strict=True):
                torch.testing.assert_close(alone[:, 0], batch, rtol=1e-4, atol=1e-5)

    def test_functional_gradients_are_those_of_autograd(self):
        model, x = self.build().eval(), torch.randn(1, 3, 67, 45)
        learned = dict(model.named_parameters())

        def loss(given: dict[str, Tensor]) -> Tensor:
            outs = torch.func.functional_call(model, given, (x,))
            return sum(out.square().mean() for out in outs)

        found = torch.func.grad(loss)(learned)
        grads = torch.autograd.grad(loss(learned), learned.values())
        for name, grad in zip(learned, grads, strict=True):
            torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-5, msg=name)

    def test_no_images_give_no_maps(self):
        model = self.build().train()
        outs = model(torch.randn(0, *self.image(67, 45).shape[1:]))
        assert [tuple(out.shape) for out in outs] == [
            (0, *out.shape[1:]) for out in model(self.image(67, 45))]

    def test_forward_does_not_change_the_module(self):
        model = self.build().eval()
        before = {name: copy.copy(module.__dict__) for name, module in model.named_modules()}
        with torch.no_grad():
            model(self.image(65, 97))
        for name, module in model.named_modules():
            assert before[name].keys() == module.__dict__.keys(), name
            assert all(before[name][key] is value or before[name][key] == value
                       for key, value in module.__dict__.items()
                       if not key.startswith('_')), name

    def test_state_dict_round_trip_is_strict(self):
        one, other = self.build().eval(), self.build().eval()
        with torch.no_grad():
            for p in one.parameters():
                p.add_(torch.randn_like(p) * .01)
        other.load_state_dict(one.state_dict(), strict=True)
        with torch.no_grad():
            for a, b in zip(one(self.image()), other(self.image()), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)

    @pytest.mark.parametrize('how', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                             ids=['deepcopy', 'pickle'])
    def test_copies_compute_the_same(self, how):
        model = self.build().eval()
        with torch.no_grad():
            for a, b in zip(model(self.image()), how(model)(self.image()), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_pruned_convolutions_train_and_load(self):
        """Also those whose weights go to an operator of an attention: nothing calls them."""
        def pruned() -> DenseBackbone:
            model = self.build()
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    prune.l1_unstructured(module, 'weight', .3)
            return model

        model, loaded, x = pruned().train(), pruned().eval(), self.image()
        for _ in range(2):
            sum(out.square().mean() for out in model(x)).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 1.01
            loaded.load_state_dict(model.state_dict())
            for a, b in zip(model.eval()(x), loaded(x), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_checkpointing_gives_equal_gradients(self):
        plain, saving = self.build().train(), self.build(with_cp=True).train()
        saving.load_state_dict(plain.state_dict())
        for model in (plain, saving):
            torch.manual_seed(3)
            sum(out.square().mean() for out in model(self.image())).backward()
        for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, msg=lambda m, n=name: f'{n}: {m}')
        # Recomputing must not count a batch twice in running statistics.
        for (name, p), q in zip(plain.named_buffers(), saving.buffers(), strict=True):
            torch.testing.assert_close(p, q, msg=lambda m, n=name: f'{n}: {m}')

    def test_checkpointing_keeps_less(self):
        def kept(with_cp: bool) -> int:
            total = 0

            def pack(tensor: Tensor) -> Tensor:
                nonlocal total
                total += tensor.numel()
                return tensor

            model = self.build(with_cp=with_cp).train()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                model(self.image())
            return total

        assert kept(True) < .6 * kept(False)

    @pytest.mark.parametrize('frozen', [-1, 0, 1, 2, 4])
    def test_frozen_stages_stay_as_they_are(self, frozen):
        model = self.build(frozen_stages=frozen).train()
        groups = model.stage_modules()
        assert len(groups) == 5
        for i, modules in enumerate(groups):
            for module in modules:
                assert all(p.requires_grad == (i > frozen) for p in module.parameters())
                assert module.training == (i > frozen)
        if frozen == 4:
            assert not any(p.requires_grad for p in model.parameters())
            return
        before = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=.1)
        sum(out.square().mean() for out in model(self.image())).backward()
        optimizer.step()
        frozen_ids = {id(t) for modules in groups[:frozen + 1] for m in modules
                      for t in m.state_dict(keep_vars=True).values()}
        changed = {name for name, t in model.state_dict(keep_vars=True).items()
                   if not torch.equal(t, before[name])}
        still = {name for name, t in model.state_dict(keep_vars=True).items()
                 if id(t) in frozen_ids}
        assert changed and not changed & still

    def test_layer_groups_hold_each_parameter_once_and_stages_in_turn(self):
        model = self.build()
        groups, depths = model.layer_groups(), model.layer_depths()
        assert list(depths) == [name for name, _ in model.named_parameters()]
        parts = [part for group in groups for part in group]
        held = [p for part in parts
                for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())]
        assert all(groups) and len(held) == len(set(held))
        of = {p: depths[name] for name, p in model.named_parameters()}
        # What is in no group has the depth of the heads, at whatever stage it stands.
        stages = [[of[p] for module in modules for p in module.parameters() if p in set(held)]
                  for modules in model.stage_modules()]
        assert set(stages[0]) == {0}
        assert all(max(a) < min(b) for a, b in itertools.pairwise(filter(None, stages)))

    def test_layers_run_in_the_order_of_their_depth(self):
        model, order = self.build().eval(), []
        for depth, group in enumerate(model.layer_groups()):
            for part in group:
                # A ModuleList is not called itself.
                if isinstance(part, nn.Module) and not isinstance(part, nn.ModuleList):
                    part.register_forward_hook(lambda *_, depth=depth: order.append(depth))
        with torch.no_grad():
            model(self.image())
        assert order and order == sorted(order)

    def test_stages_that_are_not_built_take_no_depth(self):
        model, short = self.build(), self.build(out_indices=(2,))
        assert len(short.layer_groups()) < len(model.layer_groups())
        depths = model.layer_depths()
        for name, depth in short.layer_depths().items():
            assert depth == min(depths[name], len(short.layer_groups())), name

    def test_norm_eval_fixes_batch_statistics(self):
        model = self.build(norm_eval=True).train()
        assert all(not m.training for m in model.modules() if isinstance(m, _BatchNorm))
        assert any(m.training for m in model.modules())

    def test_drop_path_acts_in_training_only(self):
        model = self.build(drop_path_rate=.5)
        with torch.no_grad():
            model.eval()
            torch.testing.assert_close(model(self.image()), model(self.image()))
            # BatchNorm aside, what differs between two passes is what was dropped.
            model.train()
            for m in model.modules():
                if isinstance(m, _BatchNorm):
                    m.eval()
            a, b = model(self.image())[-1], model(self.image())[-1]
        assert not torch.equal(a, b)

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bf16', 'fp16'])
    def test_autocast_stays_close_to_float32(self, dtype):
        model = self.build().eval()
        with torch.no_grad():
            exact = model(self.image())
            with torch.autocast('cpu', dtype=dtype):
                rough = model(self.image())
        for a, b in zip(exact, rough, strict=True):
            assert b.isfinite().all()
            assert (a - b.float()).norm() < self.half_tolerance * a.norm()

    def test_weights_in_bfloat16_stay_close_to_float32(self):
        model = self.build().eval()
        rough = copy.deepcopy(model).bfloat16()
        with torch.no_grad():
            exact = model(self.image())
            for form in (rough, optimize_for_inference(copy.deepcopy(rough))):
                for a, b in zip(exact, form(self.image().bfloat16()), strict=True):
                    assert b.dtype == torch.bfloat16 and b.isfinite().all()
                    assert (a - b.float()).norm() < 2 * self.half_tolerance * a.norm()

    def test_channels_last_input_computes_the_same(self):
        model, x = self.build().eval(), self.image()
        with torch.no_grad():
            for a, b in zip(model(x), model(x.contiguous(memory_format=torch.channels_last)),
                            strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    def test_optimized_for_inference_computes_the_same(self):
        model = self.build().eval()
        optimized = optimize_for_inference(copy.deepcopy(model))
        with torch.no_grad():
            for size in ((64, 96), (65, 97), (31, 17)):
                x = self.image(*size)
                for a, b in zip(model(x), optimized(x), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert not [m for m in optimized.modules() if type(m) is nn.Linear]
        assert not any(out.requires_grad for out in optimized(self.image()))
        with pytest.raises(RuntimeError, match='keep a copy'):
            optimized.state_dict()

    def test_compiles_without_graph_breaks(self):
        # Sizes of earlier compilations of the same code can make these dynamic, and slow.
        torch._dynamo.reset()
        model = self.build().eval()
        x = self.image(64, 96, batch=1)
        # The eager backend traces as inductor's does and needs no C++ compiler.
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        with torch.no_grad():
            for a, b in zip(model(x), compiled(x), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    def test_one_exported_program_serves_every_batch(self):
        model = self.build().eval()
        program = torch.export.export(model, (self.image(),), strict=False, dynamic_shapes={
            'x': {0: torch.export.Dim.DYNAMIC}}).module()
        with torch.no_grad():
            for batch in (1, 3):
                x = self.image(batch=batch)
                for a, b in zip(program(x), model(x), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    def test_grey_images(self):
        model = self.build(in_channels=1).eval()
        with torch.no_grad():
            assert len(model(torch.randn(1, 1, 64, 64))) == 4

    def test_an_image_without_its_batch_is_refused(self):
        with pytest.raises(UserError, match=r'\(B, C, H, W\).*\(3, 64, 96\).*image\[None\]'):
            self.build()(self.image()[0])

    @pytest.mark.parametrize('size', [(0, 64), (64, 0)])
    def test_an_image_without_pixels_is_refused(self, size):
        with pytest.raises(UserError, match='{}x{} has no pixels'.format(*size)):
            self.build()(torch.zeros(2, 3, *size))

    @pytest.mark.parametrize('word, help', [
        ('in_chans', 'in_channels'), ('drop_path', 'drop_path_rate'), ('use_checkpoint', 'with_cp'),
        ('num_classes', 'docs/timm.md'), ('out_index', "'out_indices'")])
    def test_other_projects_words_are_told_ours(self, word, help):
        with pytest.raises(UserError, match=f'{word}.*{help}'):
            self.build(**{word: 1})

    def test_registered_by_name(self):
        from mmengine.registry import MODELS
        name = self.backbone.__name__
        assert BACKBONES.get(name) is self.backbone is MODELS.get(name)
        built = MODELS.build(dict(type=name, arch=self.arch, **self.kwargs))
        assert isinstance(built, nn.Module) and type(built) is self.backbone

    def test_every_arch_builds(self):
        for arch in self.backbone.archs:
            with torch.device('meta'):
                assert len(self.backbone(arch).out_channels) == 4, arch

    @pytest.mark.parametrize('name', ['tiney', 'xxl'])
    def test_a_wrong_arch_names_the_others(self, name):
        with pytest.raises(UserError, match='|'.join(self.backbone.archs)):
            self.backbone(name)

    def test_a_wrong_entry_of_arch_names_the_near_one(self):
        if isinstance(self.arch, str):
            pytest.skip('this family is built by name here')
        key = sorted(self.arch)[0]
        bad = {k: v for k, v in self.arch.items() if k != key} | {key + 's': self.arch[key]}
        with pytest.raises(UserError, match=key):
            self.backbone(bad)

    def test_pretrained_through_init_cfg(self, tmp_path):
        source = self.build().eval()
        torch.save({'state_dict': {f'module.backbone.{k}': v
                                   for k, v in source.state_dict().items()}}, tmp_path / 'x.pth')
        torch.manual_seed(7)
        model = self.backbone(self.arch, **self.kwargs, init_cfg=dict(
            type='Pretrained', checkpoint=str(tmp_path / 'x.pth')))
        model.init_weights()
        model.eval()
        with torch.no_grad():
            for a, b in zip(source(self.image()), model(self.image()), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_an_official_checkpoint_leaves_out_only_what_is_fresh(self, tmp_path):
        source, fresh = self.build().state_dict(), self.backbone.fresh
        for pattern in fresh:
            assert any(re.fullmatch(pattern, name) for name in source), f'{pattern} fits nothing'
        held = {name: tensor for name, tensor in source.items()
                if not any(re.fullmatch(pattern, name) for pattern in fresh)}
        official = self.official_state(held)
        torch.save({'model': official}, tmp_path / 'official.pth')
        torch.manual_seed(7)
        model = self.backbone(self.arch, **self.kwargs)
        report = load_pretrained(model, tmp_path / 'official.pth')
        assert report.fraction == 1 and not report.unused
        assert set(report.fresh) == source.keys() - held.keys()
        assert (report.layout == 'native') == (official.keys() == held.keys())
        for name, tensor in held.items():
            assert torch.equal(model.state_dict()[name], tensor), name
