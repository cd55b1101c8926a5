"""What each script runs: its arguments, the folder it writes, and the train.py command line.

Declarations only; `run.py` executes one of them, `main_job.py` many. Folders are the authors', below OUTPUT.
"""

from dataclasses import dataclass, field

LMC_ARGUMENTS = ("DATASET", "CLIP_WEIGHT", "LOSS_TYPE", "COOP_LMC", "W_LMC", "SEED", "CFG")


@dataclass(frozen=True)
class Command:
    """One script. Strings are templates over its arguments, e.g. "{DATASET}"."""

    arguments: tuple[str, ...]
    trainer: str
    config: str  # below configs/trainers
    output: str  # below OUTPUT
    subset: str  # base or new
    evaluates: str = ""  # name of the command whose run this one evaluates
    stage1: str = ""  # name of the command whose run this one continues
    pairs: tuple[str, ...] = ()
    defaults: dict = field(default_factory=dict)  # arguments that a script fixes
    eval_only: bool = False  # evaluates without a checkpoint of its own


def _evaluation(train: str, subset: str) -> Command:
    """The test of a training command on one half of the classes."""
    own = COMMANDS[train]
    return Command(
        arguments=own.arguments,
        trainer=own.trainer,
        config=own.config,
        output=own.output.replace("train_base", f"evaluate/test_{subset}"),
        subset=subset,
        evaluates=train,
        pairs=own.pairs,
        defaults=own.defaults,
    )


COMMANDS = {
    "coop/base2new_train": Command(
        arguments=("DATASET", "SEED"),
        defaults={"CFG": "vit_b16_ep100_ctxv1"},
        trainer="CoOp",
        config="CoOp/{CFG}",
        output="output_coop/train_base/{DATASET}/shots_16/CoOp/{CFG}/seed{SEED}",
        subset="base",
    ),
    "coop_LMC/base2new_train_coop": Command(
        arguments=LMC_ARGUMENTS,
        trainer="CoOp_LMC",
        config="CoOp_LMC/{CFG}",
        output="output_KgCoOp_COOP_LMC/CoOp/train_base/{DATASET}/{LOSS_TYPE}/shots_16_{CLIP_WEIGHT}_{W_LMC}"
        "/KgCoOp_COOP_LMC/{CFG}/seed{SEED}",
        subset="base",
        stage1="coop/base2new_train",
        pairs=(
            *("TRAINER.LMC.LAMBDA", "{CLIP_WEIGHT}", "TRAINER.LMC.DISTANCE", "{LOSS_TYPE}"),
            *("TRAINER.LMC.ENABLED", "{COOP_LMC}", "TRAINER.LMC.BETA", "{W_LMC}"),
        ),
    ),
}
for _script in ("coop/base2{}_test", "coop_LMC/base2{}_test_coop"):
    _train = _script.format("new").replace("test", "train")
    COMMANDS[_script.format("new")] = _evaluation(_train, "new")
    COMMANDS[_script.format("base")] = _evaluation(_train, "base")
for _subset in ("base", "new"):
    COMMANDS[f"zsclip/base2{_subset}_test"] = Command(
        arguments=("DATASET", "SEED"),
        defaults={"CFG": "vit_b16"},
        trainer="ZeroshotCLIP",
        config="ZeroshotCLIP/{CFG}",
        output=f"output_zsclip/evaluate/test_{_subset}/{{DATASET}}/shots_16/ZeroshotCLIP/{{CFG}}/seed{{SEED}}",
        subset=_subset,
        eval_only=True,
    )
    COMMANDS[f"coop_average/base2{_subset}_test"] = Command(
        arguments=("DATASET", "SEED"),
        defaults={"CFG": "vit_b16"},
        trainer="CoOp_Average",
        config="CoOp_Average/{CFG}",
        output=f"output_average/CoOp/evaluate/test_{_subset}/{{DATASET}}/shots_16/CoOp_Average/{{CFG}}/seed{{SEED}}",
        subset=_subset,
        stage1="coop/base2new_train",
        eval_only=True,
    )
