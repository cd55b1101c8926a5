"""Running averages of what a training loop prints. Values on a GPU stay there until somebody reads them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch


def _scalar(value):
    """Plain float if reading costs nothing, else a float64 scalar on its own device."""
    if not isinstance(value, torch.Tensor):
        return float(value)
    if value.numel() != 1:
        raise ValueError(f"A meter takes one number, but got a tensor of shape {tuple(value.shape)}")
    value = value.detach().reshape(())
    return value.double() if value.is_cuda else value.item()


class AverageMeter:
    """Last value, sum, count and average; `ema=True` averages exponentially (0.9 old, 0.1 new, from 0)."""

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._val = self._sum = self._ema = 0.0
        self.count = 0

    def update(self, val: float | torch.Tensor, n: int = 1) -> None:
        """Add `val`, a number or a one-element tensor, with weight `n`."""
        self._val = _scalar(val)
        self._sum = self._sum + self._val * n
        self._ema = self._ema * 0.9 + self._val * 0.1
        self.count += n

    @property
    def val(self) -> float:
        """The last value."""
        return float(self._val)

    @property
    def sum(self) -> float:
        """The sum, each value times its weight."""
        return float(self._sum)

    @property
    def avg(self) -> float:
        """The weighted mean, or the exponential average; 0.0 of nothing."""
        if self.ema:
            return float(self._ema)
        return float(self._sum) / self.count if self.count else 0.0


class MetricMeter:
    """AverageMeters by name; as text `loss 3.0000 (2.0000)`: last (average), in order of first appearance."""

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: defaultdict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: dict | None) -> None:
        """Add one value per name; None adds nothing. Raises TypeError for anything but a dictionary."""
        if input_dict is None:
            return
        if not isinstance(input_dict, dict):
            raise TypeError("Input to MetricMeter.update() must be a dictionary")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self):
        parts = (f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items())
        return self.delimiter.join(parts)

    def state_dict(self) -> dict[str, list]:
        """{name: [last, sum, exponential average, count]}, in order."""
        return {name: [m.val, m.sum, float(m._ema), m.count] for name, m in self.meters.items()}

    def load_state_dict(self, state: Mapping[str, Sequence]) -> None:
        """Go on from what `state_dict` gave."""
        for name, numbers in state.items():
            meter = self.meters[name]
            meter._val, meter._sum, meter._ema, meter.count = numbers
