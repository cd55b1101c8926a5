"""MERGETUNE on MMA (arXiv 2601.10497). Adapters are no part of CLIP, so what is merged are the class vectors.

A step is one image pass and one text pass, both through the adapters being trained: the path between class
vectors needs no more. PATH_TO stage1 is the paper's form, zero_shot the one the authors released.
"""

from dassl.engine import TRAINER_REGISTRY
from mergetune.stage2 import MergeTune
from mergetune.trainers.mma import MultiModalAdapter


@TRAINER_REGISTRY.register()
class MMA_LMC(MergeTune, MultiModalAdapter):
    """Its endpoints: the data set's template through CLIP without adapters, and the stage-1 adapters."""

    stage1 = MultiModalAdapter
    presets = {"released": "vit_b16_ep5", "paper": "paper", "continued": "continued"}
    toy_presets = {"released": "released_ep20", "paper": "paper_ep20", "continued": "continued_ep20"}
    path_note = "image features are ours at every point: the ends are heads on them, not the models"
    template_family = "coop"  # as released; differs from KgCoOp's for DTD
    # the released code's keys; a value given to one of them sets ours
    ALIASES = {
        "TRAINER.COOP.W_LMC": "TRAINER.LMC.BETA",
        "TRAINER.COOP.NUM_SAMPLES": "TRAINER.LMC.NUM_SAMPLES",
        "TRAINER.COOP.COOP_LMC": "TRAINER.LMC.ENABLED",
    }
