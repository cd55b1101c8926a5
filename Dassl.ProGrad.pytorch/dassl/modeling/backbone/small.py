"""A convolutional network for small images, that trains on a CPU. B: batch."""

from torch import Tensor, nn

from ..ops import BatchNorm2d
from .backbone import Backbone
from .build import BACKBONE_REGISTRY

WIDTHS = (16, 32, 64, 64)


class SmallNet(Backbone):
    """Four times 3 x 3 convolution, batch norm, ReLU, 2 x 2 maximum; 2 x 2 average: (B, 3, H, W) -> (B, 256).

    H and W: at least 16. 0.06 M parameters; 32 x 32 pixels cost 3.4 M multiplications.
    """

    def __init__(self):
        super().__init__()
        layers, before = [], 3
        for width in WIDTHS:
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), BatchNorm2d(width)]
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            before = width
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self._out_features = 4 * before

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@BACKBONE_REGISTRY.register()
def cnn_small(**kwargs) -> SmallNet:
    """D = 256; starts at random, so PRETRAINED has no effect."""
    return SmallNet()
