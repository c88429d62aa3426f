"""Backbones on the Hugging Face Hub, or in a folder as the Hub keeps them.

    model = HubBackbone('CSWin', 'tiny', options=dict(in_channels=4))
    load_pretrained(model.backbone, 'visattn://cswin_tiny_224')
    model.save_pretrained('folder')                  # config.json, model.safetensors, README.md
    model = HubBackbone.from_pretrained('folder')    # or 'user/repository'
"""
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from visattn_dense.checkpoints import match_state_dict, read_checkpoint, unwrap
from visattn_dense.checkpoints.pretrained import fill
from visattn_dense.errors import UserError, did_you_mean, few
from visattn_dense.registry import BACKBONES

# No published backbone reaches these limits; a config.json may ask for any size.
_DEEPEST, _WIDEST, _MOST_PARAMETERS = 512, 1 << 16, 4_000_000_000

_CARD = """\
---
{{ card_data }}
---

# {{ family }} {{ arch }}

An image backbone of [visattn-dense]: {{ parameters }} M parameters, {{ in_channels }} image
channels. It returns {{ levels }} maps, of {{ channels }} channels at strides {{ strides }}.

```python
from visattn_dense.interop.hub import HubBackbone
model = HubBackbone.from_pretrained('THIS REPOSITORY OR FOLDER')
maps = model(image)          # image: (B, {{ in_channels }}, H, W), any H and W
```

In a config of mmsegmentation or mmdetection:

```python
backbone = dict(type='{{ family }}', arch={{ arch_code }}, init_cfg=dict(
    type='Pretrained', checkpoint='model.safetensors'))
```

## Weights

{{ weights }}
"""


class HubBackbone(nn.Module, PyTorchModelHubMixin, library_name='visattn-dense',
                  pipeline_tag='image-feature-extraction', tags=['dense-prediction', 'backbone'],
                  model_card_template=_CARD):
    """A backbone with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    Args:
        family: the class in `visattn_dense.registry.BACKBONES`.
        arch: the name of the variant, or a dict of sizes.
        options: further arguments of the class: numbers, strings, or lists and dicts of these.

    Raises:
        UserError: there is no such family, arch or option.
    """

    def __init__(self, family: str, arch: str | dict[str, Any],
                 options: dict[str, Any] | None = None) -> None:
        super().__init__()
        _check_size(family, arch, options)
        self.family, self.arch = family, arch
        self.in_channels = (options or {}).get('in_channels', 3)
        self.backbone = BACKBONES.build(dict(type=family, arch=arch), **(options or {}))
        self.out_channels, self.strides = self.backbone.out_channels, self.backbone.strides

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to the backbone's maps."""
        return self.backbone(x)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The README of a saved model.

        Args:
            kwargs: `weights`, a paragraph on data, training, figures and licence of the weights.
        """
        named = isinstance(self.arch, str)
        facts: Mapping[str, Any] = dict(
            family=self.family, arch=self.arch if named else '', arch_code=repr(self.arch),
            parameters=f'{sum(p.numel() for p in self.parameters()) / 1e6:.1f}',
            in_channels=self.in_channels, levels=len(self.strides),
            channels=', '.join(map(str, self.out_channels)),
            strides=', '.join(map(str, self.strides)),
            weights='The origin of these weights was not given when they were saved.')
        return super().generate_model_card(*args, **{**facts, **kwargs})

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> 'HubBackbone':
        """As huggingface_hub's; the weights are read by `visattn_dense.checkpoints`.

        Raises:
            UserError: config.json names no model of this project, or the weights are damaged, do
                not fit, or are not finite.
        """
        try:
            return super().from_pretrained(*args, **kwargs)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f'config.json of {args[0] if args else kwargs} is not one of '
                            f'HubBackbone: {str(error)[:200]}') from error

    @classmethod
    def _load_weights(cls, model: 'HubBackbone', model_file: str, map_location: str,
                      strict: bool) -> 'HubBackbone':
        # huggingface_hub's default, not strict, would leave what is missing at random.
        del strict
        filled, report = match_state_dict(model, unwrap(read_checkpoint(model_file, mmap=True)),
                                          layouts={}, prefix='')
        if others := [*report.missing, *report.mismatched, *report.unused]:
            raise UserError(f'{model_file} does not fit {model.family} {model.arch}. Missing, left '
                            f'over or of another shape: {few(others)}')
        fill(model, filled, model_file)
        return model.to(map_location).eval()

    _load_as_safetensor = _load_as_pickle = _load_weights


def _check_size(family: Any, arch: Any, options: Any) -> None:
    """Check that a config.json describes a model that fits into the memory of a machine.

    Raises:
        UserError: the model would be too large, or there is no such family.
    """
    if not (isinstance(family, str) and family in BACKBONES):
        raise UserError(f'there is no family {family!r}. '
                        f'{did_you_mean(str(family)[:80], BACKBONES)}')
    if options is not None and not isinstance(options, Mapping):
        raise UserError(f'options are a dict of arguments, got {str(options)[:80]!r}')
    for name, number in [*_numbers('arch', arch), *_numbers('options', options)]:
        limit = _DEEPEST if 'depth' in name else _WIDEST
        if not abs(number) <= limit:
            raise UserError(f'{name} is {number}; no backbone here has more than {limit}')
    with torch.device('meta'):
        skeleton = BACKBONES.build(dict(type=family, arch=arch), **(options or {}))
    count = sum(parameter.numel() for parameter in skeleton.parameters())
    if count > _MOST_PARAMETERS:
        raise UserError(f'{family} {arch} would have {count:,} parameters; the limit is '
                        f'{_MOST_PARAMETERS:,}')


def _numbers(name: str, value: Any, depth: int = 8) -> Iterator[tuple[str, float]]:
    if isinstance(value, (int, float)):
        yield name, value
    elif isinstance(value, (Mapping, list, tuple)) and depth and len(value) <= 64:
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _numbers(f'{name}.{key}', inner, depth - 1)
    elif isinstance(value, (Mapping, list, tuple)):
        raise UserError(f'{name} has more entries than any backbone takes')
