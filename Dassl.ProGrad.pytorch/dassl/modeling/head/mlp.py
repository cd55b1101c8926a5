"""Multi-layer perceptron. D: width of the last hidden layer."""

from collections.abc import Sequence

from torch import Tensor, nn

from dassl.utils import UserError, check_availability

from .build import HEAD_REGISTRY

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class MLP(nn.Module):
    """Linear, batch norm, activation, dropout for each hidden width: (B, in_features) -> (B, D)."""

    def __init__(self, in_features=2048, hidden_layers=(), activation="relu", bn=True, dropout=0.0):
        super().__init__()
        check_availability(activation, ACTIVATIONS, "MODEL.HEAD.ACTIVATION")
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        if not widths:
            raise UserError("An mlp head needs at least one width in MODEL.HEAD.HIDDEN_LAYERS")
        layers = []
        for before, width in zip([in_features, *widths], widths, strict=False):
            layers.append(nn.Linear(before, width))
            if bn:
                layers.append(nn.BatchNorm1d(width))
            layers.append(ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        self.mlp = nn.Sequential(*layers)
        self.out_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


@HEAD_REGISTRY.register()
def mlp(
    in_features: int,
    hidden_layers: int | Sequence[int],
    activation: str = "relu",
    bn: bool = True,
    dropout: float = 0.0,
    **kwargs,
) -> MLP:
    """Build an MLP; keywords that it does not know are for other heads."""
    return MLP(in_features, hidden_layers, activation=activation, bn=bn, dropout=dropout)
