"""MERGETUNE on KgCoOp: the loss of CoOp_LMC, from KgCoOp's prompt; KgCoOp's own term does not return."""

from dassl.engine import TRAINER_REGISTRY
from mergetune.trainers.coop_lmc import CoOp_LMC
from mergetune.trainers.kgcoop import KgCoOp


@TRAINER_REGISTRY.register()
class KgCoOp_LMC(CoOp_LMC):
    """CoOp_LMC under its own name, so that tables tell the two stage-1 methods apart."""

    stage1 = KgCoOp
    presets = CoOp_LMC.presets
