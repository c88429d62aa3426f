"""The two-layer perceptron of a transformer block."""
from torch import Tensor, nn


class Mlp(nn.Module):
    """fc2(act(fc1(x))) on the last dimension; the parameter names are timm's and the authors'.

    Args:
        dim: channels in and out.
        hidden_dim: channels between.
        act_layer: the activation's class.
    """

    def __init__(self, dim: int, hidden_dim: int, *, act_layer: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        return self.fc2(self.act(self.fc1(x)))
