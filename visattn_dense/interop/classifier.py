"""Image classifiers: a backbone, and on its last stage the norm and the head of its authors.

    logits = classifier(pool(norm(last stage)))        CSWin, FLatten-CSWin, BiFormer, T2T-ViT
    logits = classifier(hidden(pool(conv(last stage))))        EfficientViT, whose head is wide

A family's form is data: `FORMS`. The norm and the head have the names of the official checkpoints
(`norm.weight`, `head.weight`, `head.op_list.0.conv.weight`), so the released files fill them.

Shapes: the image (B, C, H, W); features (B, C', H/32, W/32), or tokens (B, 1 + N, C') of T2T-ViT;
logits (B, num_classes).
"""
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from visattn_dense.backbones import DenseBackbone
from visattn_dense.checkpoints import (
    load_pretrained,
    match_state_dict,
    read_checkpoint,
    rename,
    unwrap,
)
from visattn_dense.checkpoints.pretrained import fill
from visattn_dense.checkpoints.reading import resolve
from visattn_dense.errors import UserError, did_you_mean, few
from visattn_dense.layers import ConvNormAct, LayerNorm2d, init_vit_weights
from visattn_dense.layers.activations import ACTIVATIONS
from visattn_dense.registry import BACKBONES

# timm's names of EfficientViT's head.
_TIMM = rename((r'^head\.in_conv\.', 'head.op_list.0.'),
               (r'^head\.classifier\.0\.', 'head.op_list.2.linear.'),
               (r'^head\.classifier\.1\.', 'head.op_list.2.norm.'),
               (r'^head\.classifier\.4\.', 'head.op_list.3.linear.'))


@dataclass(frozen=True)
class Form:
    """What the authors of a family put on the last stage.

    Attributes:
        norm: the class of the norm, called with the number of channels; None for no norm.
        pool: 'avg' for the mean over the positions, or 'token' for the class token.
        replaced: the norm of the dense backbone that a classifier does not have.
        widths: for each arch, the channels of a wide head's convolution and of its hidden layer.
        options: arguments of the backbone in the authors' classifier.
        crop: the fraction of the image's shorter side that the authors' evaluation keeps.
        crops: the same for archs with another fraction.
    """

    norm: type[nn.Module] | None
    crop: float
    pool: str = 'avg'
    replaced: str = ''
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    crops: Mapping[str, float] = field(default_factory=dict)

    @property
    def classifier_name(self) -> str:
        """The name of the last linear layer."""
        return 'head.op_list.3.linear' if self.widths else 'head'


# Crops: CSWin and T2T-ViT `default_cfgs` in the model files; BiFormer and FLatten resize to 256/224
# of the input (main.py, data/build.py); EfficientViT crop_ratio in eval_efficientvit_cls_model.py.
FORMS: dict[str, Form] = {
    'CSWin': Form(LayerNorm2d, .9, replaced='norm4', crops=dict(base_384=1., large_384=1.)),
    'FLattenCSWin': Form(LayerNorm2d, .875, replaced='norm4'),
    'BiFormer': Form(nn.BatchNorm2d, .875, replaced='extra_norms.3', options=dict(n_win=7)),
    'T2TViT': Form(nn.LayerNorm, .9, pool='token', replaced='norm'),
    'EfficientViT': Form(None, .95, widths=dict(
        b0=(1024, 1280), b1=(1536, 1600), b2=(2304, 2560), b3=(2304, 2560), l0=(3072, 3200),
        l1=(3072, 3200), l2=(3072, 3200), l3=(6144, 6400))),
}


class HiddenLayer(nn.Module):
    """act(norm(linear(x))), the linear layer without a bias."""

    def __init__(self, in_dim: int, dim: int, *, act: str, norm_eps: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.act = ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) to (B, dim)."""
        return self.act(self.norm(self.linear(x)))


class WideHead(nn.Module):
    """EfficientViT's head: a 1×1 convolution, pooling, a hidden layer, the classifier.

    Args:
        dim: channels of the last stage.
        widths: channels of the convolution and of the hidden layer.
        act, norm_eps: activation, and eps of the norms.
    """

    def __init__(self, dim: int, widths: tuple[int, int], *, act: str, norm_eps: float) -> None:
        super().__init__()
        # The second module of the official list pools; it has no tensors.
        self.op_list = nn.ModuleList([
            ConvNormAct(dim, widths[0], act=act, norm_eps=norm_eps), nn.Identity(),
            HiddenLayer(widths[0], widths[1], act=act, norm_eps=norm_eps),
            nn.ModuleDict(dict(linear=nn.Identity()))])


class Classifier(nn.Module):
    """A backbone that classifies images, with the methods of timm's models.

    Args:
        family, arch: the class in `visattn_dense.registry.BACKBONES` and the name of its variant.
        num_classes: number of classes; 0 for no classifier, so that pooled features are returned.
        global_pool: 'avg', 'token' (T2T-ViT), or '' for no pooling, so that the result of
            `forward_features` is returned. By default the authors' pooling.
        drop_rate: dropout before the classifier.
        options: further arguments of the backbone's class. The defaults are those of the authors'
            classifier.

    Attributes:
        num_features: channels of the last stage.
        head_hidden_size: channels that the classifier takes.

    Raises:
        UserError: there is no such family, arch or option, or the family has no such head.
    """

    def __init__(self, family: str, arch: str, *, num_classes: int = 1000,
                 global_pool: str | None = None, drop_rate: float = 0., **options: Any) -> None:
        super().__init__()
        if family not in FORMS:
            raise UserError(f'there is no classifier of {family!r}. {did_you_mean(family, FORMS)}')
        self.form = FORMS[family]
        self.backbone: DenseBackbone = BACKBONES.build(
            dict(type=family, arch=arch, out_indices=(3,)), **{**self.form.options, **options})
        self.in_chans = options.get('in_channels', 3)
        if self.form.replaced:
            self.backbone.set_submodule(self.form.replaced, nn.Identity())
        self.num_features = self.head_hidden_size = self.backbone.stage_channels[-1]
        self._wide: dict[str, Any] | None = None
        if self.form.widths:
            dims = self.backbone.archs[arch]
            self._wide = dict(widths=self.form.widths[arch], act=dims['act'],
                              norm_eps=options.get('norm_eps') or dims['norm_eps'])
            self.head_hidden_size = self.form.widths[arch][1]
        self.norm = nn.Identity() if self.form.norm is None else self.form.norm(self.num_features)
        self.head: nn.Module = nn.Identity()
        self.drop_rate = drop_rate
        self.dropout = nn.Dropout(drop_rate)
        self.global_pool = ''
        self.reset_classifier(num_classes, self.form.pool if global_pool is None else global_pool)

    def get_classifier(self) -> nn.Module:
        """The last linear layer; nn.Identity if there is none."""
        return (self.head.op_list[3]['linear'] if isinstance(self.head, WideHead)
                else self.head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a new one with random weights. All other layers stay.

        Args:
            num_classes: number of classes; 0 for no classifier.
            global_pool: as in the constructor. None keeps the pooling; for classes without a
                pooling, it is the authors' pooling.

        Raises:
            UserError: the pooling is unknown, or '' is given together with classes.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if global_pool is None and num_classes:
            pool = pool or self.form.pool
        pools = ('avg', '', 'token') if self.form.pool == 'token' else ('avg', '')
        if pool not in pools:
            raise UserError(f'global_pool is one of {", ".join(map(repr, pools))}, got {pool!r}')
        if num_classes < 0 or num_classes and not pool:
            raise UserError(f"global_pool={pool!r} with num_classes={num_classes}: a classifier "
                            "needs pooled features; give num_classes=0 to have the map")
        place = next(self.parameters())
        # If every parameter is frozen, the new layer is frozen too.
        frozen = not any(p.requires_grad for p in self.parameters())
        self.num_classes, self.global_pool = num_classes, pool
        last = (nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity())
        if not pool or self._wide is None:
            self.head = last
        else:
            if not isinstance(self.head, WideHead):
                self.head = WideHead(self.num_features, **self._wide)
                self.head.apply(init_vit_weights)
            self.head.op_list[3]['linear'] = last
        last.apply(init_vit_weights)
        self.head.to(device=place.device, dtype=place.dtype).train(self.training)
        self.head.requires_grad_(not frozen)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in backward instead of keeping them."""
        self.backbone.with_cp = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the last stage after the norm: (B, C', H/32, W/32), or tokens."""
        return self.norm(self.backbone.forward_features(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The result of `forward_features` to (B, num_classes).

        Args:
            pre_logits: return the input of the classifier: (B, head_hidden_size).
        """
        if not self.global_pool:
            return x
        if isinstance(self.head, WideHead):
            x = self.head.op_list[2](self._pool(self.head.op_list[0](x)))
        else:
            x = self._pool(x)
        x = self.dropout(x)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def _pool(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return x.mean((2, 3))
        return x[:, 0] if self.global_pool == 'token' else x[:, 1:].mean(1)


def load_classifier(model: Classifier, checkpoint: str | os.PathLike, *,
                    new_classifier: bool = False) -> None:
    """Fill every tensor of a classifier from a checkpoint, or fail.

    Args:
        model: the classifier to fill.
        checkpoint: path, http(s) address or 'visattn://NAME': the authors' file, timm's file, or a
            file with this project's names.
        new_classifier: keep the last linear layer, because the file has other classes.

    Raises:
        FileNotFoundError, UserError: see `load_pretrained`; or the file lacks the norm or the head.
    """
    path = resolve(checkpoint)
    report = load_pretrained(model.backbone, path, min_matched=1.)
    parts = nn.ModuleDict(dict(norm=model.norm, head=model.head))
    state = unwrap(read_checkpoint(path, mmap=True))
    filled, found = match_state_dict(parts, state, layouts=dict(timm=_TIMM),
                                     prefix=report.prefix.removesuffix('backbone.'))
    wrong = {name: 'missing' for name in found.missing} | found.mismatched
    if new_classifier:
        last = model.form.classifier_name
        ends = (f'{last}.weight', f'{last}.bias')
        wrong = {name: text for name, text in wrong.items() if name not in ends}
        filled = {name: tensor for name, tensor in filled.items() if name not in ends}
    if wrong:
        raise UserError(
            f'{checkpoint} does not hold the classifier of {type(model.backbone).__name__} with '
            f'{model.num_classes} classes: {few([f"{n} ({t})" for n, t in wrong.items()])}. For '
            'the backbone alone give features_only=True')
    fill(parts, filled, path)
