"""Backbones on the Hugging Face Hub, or in a folder as the Hub keeps them.

    model = HubBackbone('CSWin', 'tiny', options=dict(in_channels=4))
    load_pretrained(model.backbone, 'visattn://cswin_tiny_224')
    model.save_pretrained('folder')                  # config.json, model.safetensors, README.md
    model = HubBackbone.from_pretrained('folder')    # or 'user/repository'
"""
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from visattn_dense.registry import BACKBONES

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
        arch: the name of its variant, or a dict of its sizes.
        options: further arguments of the class; numbers, strings, and lists and dicts of them.

    Raises:
        UserError: there is no such family, arch or option.
    """

    def __init__(self, family: str, arch: str | dict[str, Any],
                 options: dict[str, Any] | None = None) -> None:
        super().__init__()
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
            weights='Whoever saved them has not said where they come from.')
        return super().generate_model_card(*args, **{**facts, **kwargs})

    @classmethod
    def _from_pretrained(cls, **kwargs: Any) -> 'HubBackbone':
        # The default, not strict, would leave what is missing at random without a word.
        return super()._from_pretrained(**{'strict': True, **kwargs})
