"""Linear probe of WiSE-FT (arXiv 2109.01903): CLIP stays frozen, a head that starts as zero-shot CLIP trains."""

from torch import Tensor

from dassl.config import with_values
from dassl.data import DataManager, transforms
from dassl.engine import TRAINER_REGISTRY
from mergetune.models.heads import HeadTrainer, LinearHead


@TRAINER_REGISTRY.register()
class LinearProbe(HeadTrainer):
    """Training images are prepared as test images are, so one view of each in the bank serves all epochs."""

    model_name = "head"

    def __init__(self, cfg):
        super().__init__(with_values(cfg, {"FEATURES.VIEWS": min(1, cfg.FEATURES.VIEWS)}))

    def build_data_manager(self) -> DataManager:
        return DataManager(self.cfg, custom_tfm_train=transforms.build_transform(self.cfg, is_train=False))

    def build_trained(self) -> LinearHead:
        return LinearHead(self.zero_shot_head())

    def zero_shot_weights(self) -> dict[str, Tensor]:
        """w1: the zero-shot classifier."""
        return {self.head_key: self.zero_shot_head()}
