"""The plain average of stage 2's two endpoints, a control: what merging gives without any training.

SPACE features: mean of the zero-shot and the stage-1 class vectors; weights: mean of the contexts.
"""

from torch import Tensor

from dassl.clip import text_classifier
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from mergetune.lmc import interpolate
from mergetune.stage1 import data_seen
from mergetune.trainers.coop_lmc import CoOp_LMC


@TRAINER_REGISTRY.register()
class CoOp_Average(CoOp_LMC):
    """Evaluated as it is, on the classes of the run; --resume-coop names the stage-1 folder."""

    needs_checkpoint = False

    def build_model(self) -> None:
        if not self.cfg.RESUME_COOP:
            raise UserError(f"{self.cfg.TRAINER.NAME} averages a stage-1 run with CLIP: name it with --resume-coop")
        super().build_model()

    def set_endpoints(self) -> None:
        ctx2 = self.read_stage1()
        self._seen = data_seen(self.stage1_file)
        if self.cfg.TRAINER.LMC.SPACE == "weights":
            self._average = self.class_vectors(interpolate(self.zero_shot_context(), ctx2, 0.5))
            return
        zero_shot = text_classifier(self.clip, self.classnames, [self.template]).float()
        self._average = interpolate(zero_shot, self.class_vectors(ctx2), 0.5)

    def text_features(self, ctx: Tensor | None = None) -> Tensor:
        return self._average if ctx is None else super().text_features(ctx)

    def before_train(self) -> None:
        raise UserError(f"{type(self).__name__} has nothing to train; add --eval-only")
