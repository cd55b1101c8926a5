"""Multi-layer perceptron. D: width of the last hidden layer."""

import functools

from torch import nn

from dassl.utils import UserError, check_availability

from .build import HEAD_REGISTRY

_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": functools.partial(nn.LeakyReLU, negative_slope=0.1)}


class MLP(nn.Sequential):
    """Linear, batch norm, activation, dropout for each hidden width: (B, in_features) -> (B, D)."""

    def __init__(self, in_features, hidden_layers, activation="relu", bn=True, dropout=0.0):
        check_availability(activation, _ACTIVATIONS, "MODEL.HEAD.ACTIVATION")
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        if not widths:
            raise UserError("An mlp head needs at least one width in MODEL.HEAD.HIDDEN_LAYERS")
        layers = []
        for before, width in zip([in_features, *widths], widths, strict=False):
            layers.append(nn.Linear(before, width))
            if bn:
                layers.append(nn.BatchNorm1d(width))
            layers.append(_ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers)
        self.out_features = widths[-1]


@HEAD_REGISTRY.register()
def mlp(in_features, hidden_layers, activation="relu", bn=True, dropout=0.0, **kwargs):
    """Build an MLP; keywords that it does not know are for other heads."""
    return MLP(in_features, hidden_layers, activation=activation, bn=bn, dropout=dropout)
