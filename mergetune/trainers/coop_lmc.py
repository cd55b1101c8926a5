"""MERGETUNE on CoOp (arXiv 2601.10497): the prompt trained on, connected to zero-shot CLIP and to CoOp's."""

from dassl.engine import TRAINER_REGISTRY
from mergetune import stage1
from mergetune.stage2 import MergeTune
from mergetune.trainers.coop import CoOp


@TRAINER_REGISTRY.register()
class CoOp_LMC(MergeTune, CoOp):
    """The loss is `MergeTune.losses` (mergetune/stage2.py). Its endpoints: the words' embeddings, whose class vectors
    are those of the data set's template, and stage 1's prompt."""

    model_name = "prompt_mid_learner"
    stage1 = CoOp
    presets = {"released": "vit_b16_ep100_ctxv1", "paper": "paper", "continued": "continued"}
    # the released code's keys; a value given to one of them sets ours
    ALIASES = CoOp.ALIASES | {"TRAINER.COOP.W": "TRAINER.LMC.LAMBDA"}

    def check_stage1(self) -> None:
        super().check_stage1()
        if "token_suffix" in self.stage1_beside:
            names = self.model.fixed[:, self.clip.start_tokens + self.model.n_ctx :]
            stage1.check_names(self.stage1_file, "token_suffix", self.stage1_beside["token_suffix"], names)


@TRAINER_REGISTRY.register()
class KgCoOp_COOP_LMC(CoOp_LMC):
    """The name under which the authors' code registered it."""

    alias_of = CoOp_LMC
