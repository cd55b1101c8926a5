"""What a run printed, by epoch: `history` of results.json, and what curves over epochs are drawn from."""

import math


class History:
    """epochs: list of {"epoch": from 1, name: mean over the epoch's batches, ...}, rising. resume.pt holds it."""

    def __init__(self):
        self.epochs = []

    def add(self, epoch, values):
        """Add {name: number} to the record of an epoch (from 1); later epochs, of an earlier training, go.

        None stands for what is not finite, which JSON cannot hold.
        """
        earlier = [entry for entry in self.epochs if entry["epoch"] < epoch]
        own = next((entry for entry in self.epochs if entry["epoch"] == epoch), {})
        values = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self.epochs = [*earlier, {"epoch": epoch} | own | values | {"epoch": epoch}]
