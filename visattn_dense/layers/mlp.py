"""The two-layer perceptron of a transformer block."""
from torch import Tensor, nn

from visattn_dense.ops.linear import mlp

from .activations import activation_name
from .linear import EndsInLinear, linear, trains_plainly
from .plain import is_called_plainly


class Mlp(EndsInLinear):
    """fc2(act(fc1(x))) on the last dimension; the parameter names are timm's and the authors'.

    Args:
        dim: channels in and out.
        hidden_dim: channels between.
        act_layer: the activation's class.
    """

    last = 'fc2'

    def __init__(self, dim: int, hidden_dim: int, *, act_layer: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def before_last(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., hidden_dim)."""
        return self.act(linear(self.fc1, x))

    def result(self, x: Tensor, *, biased: bool) -> Tensor:
        """See `EndsInLinear`. In training on a GPU, the layers and a GELU are one operator."""
        fc1, act, fc2 = self.fc1, self.act, self.fc2
        if (trains_plainly(x, fc1, fc2) and activation_name(act) == 'gelu'
                and is_called_plainly(act) and type(self).before_last is Mlp.before_last):
            return mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias if biased else None)
        return super().result(x, biased=biased)
