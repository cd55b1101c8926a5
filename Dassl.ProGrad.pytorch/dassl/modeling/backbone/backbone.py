"""Base class of feature extractors. D: feature size."""

from torch import nn


class Backbone(nn.Module):
    """Module whose `forward` gives (B, D); a subclass sets `_out_features` to D."""

    _out_features: int | None = None

    @property
    def out_features(self) -> int | None:
        """D, or None if the subclass did not set it."""
        return self._out_features
