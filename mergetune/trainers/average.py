"""The plain average of stage 2's two endpoints, a control: what merging gives without any training.

SPACE features: mean of the zero-shot and the stage-1 class vectors; weights: mean of the contexts.
"""

from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl.engine.results import run_facts, trained_facts
from dassl.utils import UserError
from mergetune.lmc import interpolate
from mergetune.trainers.coop_lmc import CoOp_LMC


@TRAINER_REGISTRY.register()
class CoOp_Average(CoOp_LMC):
    """Evaluated as it is, on the classes of the run; --resume-coop names the stage-1 folder."""

    needs_checkpoint = learns_prompts = False
    held_keys = (*CoOp_LMC.held_keys, "TRAINER.LMC.SPACE")

    def build_model(self) -> None:
        if not self.cfg.RESUME_COOP:
            raise UserError(f"{self.cfg.TRAINER.NAME} averages a stage-1 run with CLIP: name it with --resume-coop")
        super().build_model()

    def set_endpoints(self) -> None:
        super().set_endpoints()
        stage1 = run_facts(self.stage1_file).get("trainer", "")
        self.trained = trained_facts(self.stage1_file, self, by=stage1)
        del self.trained["lmc"]  # of the average itself
        if self.cfg.TRAINER.LMC.SPACE == "weights":
            self.start_at(interpolate(self.w1, self.w2, 0.5))
            self._average = self.class_vectors()
        else:
            self._average = interpolate(self.f1, self.f2, 0.5)

    def text_features(self) -> Tensor:
        average = getattr(self, "_average", None)
        return super().text_features() if average is None else average

    def metadata(self) -> dict:
        facts = super().metadata()
        return facts | {"templates": f"mean of {facts['zero_shot_template']!r} and {facts['templates']}"}

    def before_train(self) -> None:
        raise UserError(f"{type(self).__name__} has nothing to train; add --eval-only")
