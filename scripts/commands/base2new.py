"""Base-to-new: the authors' commands, and the same for the methods that they ran without a script."""

from dataclasses import dataclass, replace

from .command import COMMANDS, Arguments, Command, first_arguments, run_folder, yaml_values

LMC_ARGUMENTS = ("DATASET", "CLIP_WEIGHT", "LOSS_TYPE", "COOP_LMC", "W_LMC", "SEED", "CFG")
LMC_PAIRS = (
    *("TRAINER.LMC.LAMBDA", "{CLIP_WEIGHT}", "TRAINER.LMC.DISTANCE", "{LOSS_TYPE}"),
    *("TRAINER.LMC.ENABLED", "{COOP_LMC}", "TRAINER.LMC.BETA", "{W_LMC}"),
)
PROMPTKD_ARGUMENTS = ("DATASET", "SEED", "STUDENT_DIR", "KD_WEIGHT", "BETA", "N")
WEAKER_KD = ("fgvc_aircraft", "oxford_flowers", "dtd")  # PromptKD distils with 200 there, elsewhere with 1000
FIRST = "{STAGE1}/base2new_train"  # what stage 2 continues
TESTS = {"base2base_test": "base", "base2new_test": "new"}


@dataclass(frozen=True)
class Scripts:
    """Where a method's scripts lie and what they are called: `folder`/base2new_train`suffix`."""

    folder: str
    suffix: str
    train: Command

    def script(self, what: str) -> str:
        """Name of one of its commands, e.g. of "base2new_test"."""
        return f"{self.folder}/{what}{self.suffix}"


def of_toy(toy: str, other: str):
    """A default that differs on the built-in benchmark."""
    return lambda arguments: toy if arguments["DATASET"].startswith("toy_") else other


def kd_weight(arguments: Arguments) -> str:
    return "200.0" if arguments["DATASET"] in WEAKER_KD else "1000.0"


def of_run(name: str):
    """A default: the folder of the run that another command makes on this data set and seed."""
    return lambda arguments: str(run_folder(COMMANDS[name], first_arguments(COMMANDS[name], arguments)))


def siglip_stage1(arguments: Arguments) -> str:
    """The stage 1 on the backbone of a stage-2 CFG such as siglip2_l16_paper."""
    return "_".join([*arguments["CFG"].split("_")[:2], "ep100_ctxv1"])


_COOP = Command(
    arguments=("DATASET", "SEED"),
    defaults={"CFG": "vit_b16_ep100_ctxv1", "SHOTS": "16"},
    trainer="CoOp",
    output="output_coop/train_base/{DATASET}/shots_{SHOTS}/CoOp/{CFG}/seed{SEED}",
    subset="base",
)
_COOP_LMC = Command(
    arguments=LMC_ARGUMENTS,
    defaults={"SHOTS": "16"},
    trainer="CoOp_LMC",
    output="output_KgCoOp_COOP_LMC/CoOp/train_base/{DATASET}/{LOSS_TYPE}/shots_{SHOTS}_{CLIP_WEIGHT}_{W_LMC}"
    "/KgCoOp_COOP_LMC/{CFG}/seed{SEED}",
    subset="base",
    stage1=FIRST,
    pairs=LMC_PAIRS,
)
_PROMPTKD = Command(
    arguments=("DATASET", "SEED"),
    defaults={
        "CFG": "vit_b16_c2_ep20_batch8_4+4ctx",
        "SHOTS": "0",  # all training images, of all classes, without their labels
        "KD_WEIGHT": kd_weight,
        "TEACHER_DIR": of_run("promptsrc/base2new_train"),
    },
    trainer="PromptKD",
    output="output_PromptKD/base2new/train_base/{DATASET}/shots_{SHOTS}/PromptKD/{CFG}/seed_{SEED}",
    subset="all",
    teacher="promptsrc/base2new_train",
    pairs=("TRAINER.PROMPTKD.TEACHER_DIR", "{TEACHER_DIR}", "TRAINER.PROMPTKD.KD_WEIGHT", "{KD_WEIGHT}"),
)

SCRIPTS: dict[str, Scripts] = {
    "CoOp": Scripts("coop", "", _COOP),
    "CoOp_LMC": Scripts("coop_LMC", "_coop", _COOP_LMC),
    "CoOp on SigLIP 2": Scripts(
        "coop",
        "_siglip2",
        replace(
            _COOP,
            seeds=("1", "2", "3"),
            arguments=("DATASET",),
            forms=(("DATASET", "CFG"),),
            defaults={"CFG": "siglip2_b16_ep100_ctxv1", "SHOTS": "16"},
        ),
    ),
    "CoOp_LMC on SigLIP 2": Scripts(
        "coop_LMC",
        "_coop_siglip2",
        replace(
            _COOP_LMC,
            seeds=("1", "2", "3"),
            arguments=tuple(name for name in LMC_ARGUMENTS if name != "SEED"),
            defaults={"SHOTS": "16", "STAGE1_CFG": siglip_stage1},
            stage1=f"{FIRST}_siglip2",
        ),
    ),
    "KgCoOp": Scripts(
        "kgcoop",
        "",
        Command(
            arguments=("DATASET", "W", "SEED"),
            forms=(("DATASET", "SEED"),),
            defaults={"CFG": "vit_b16_ep100_ctxv1", "SHOTS": "16", "W": "8.0"},
            trainer="KgCoOp",
            output="output_KgCoOp/base2new/train_base/{DATASET}/shots_{SHOTS}_{W}/KgCoOp/{CFG}/seed{SEED}",
            subset="base",
            pairs=("TRAINER.COOP.W", "{W}"),
        ),
    ),
    "KgCoOp_LMC": Scripts(
        "kgcoop_LMC",
        "_kgcoop",
        replace(
            _COOP_LMC,
            forms=(("DATASET", "CLIP_WEIGHT", "W_LMC", "SEED", "CFG"),),
            defaults={"SHOTS": "16", "LOSS_TYPE": "cosine", "COOP_LMC": "True"},
            trainer="KgCoOp_LMC",
            output=_COOP_LMC.output.replace("output_KgCoOp_COOP_LMC/CoOp/", "output_KgCoOp_LMC/KgCoOp/"),
            stage1=FIRST,
        ),
    ),
    "MultiModalAdapter": Scripts(
        "mma",
        "",
        Command(
            arguments=("DATASET", "SEED", "CFG"),
            forms=(("DATASET", "SEED"),),
            defaults={"SHOTS": "16", "CFG": of_toy("vit_b16_ep20", "vit_b16_ep5")},
            trainer="MultiModalAdapter",
            output="output_MMA/base2new/train_base/{DATASET}/shots_{SHOTS}/MultiModalAdapter/seed{SEED}",
            subset="base",
        ),
    ),
    "MMA_LMC": Scripts(
        "mma_LMC",
        "_mma",
        Command(
            arguments=("DATASET", "W_LMC", "CFG", "SEED"),
            defaults={"SHOTS": "16"},
            trainer="MMA_LMC",
            output="output_MMA_LMC/base2new/train_base/{DATASET}/shots_{SHOTS}_{W_LMC}/MMA_LMC/{CFG}/seed{SEED}",
            subset="base",
            stage1=FIRST,
            pairs=("TRAINER.LMC.BETA", "{W_LMC}"),
        ),
    ),
    "PromptSRC": Scripts(
        "promptsrc",
        "",
        Command(
            arguments=("DATASET", "SEED"),
            defaults={"CFG": of_toy("vit_b16_c2_ep20_batch4_4+4ctx", "vit_l14_c2_ep20_batch8_4+4ctx"), "SHOTS": "16"},
            trainer="PromptSRC",
            output="output_PromptSRC/base2new/train_base/{DATASET}/shots_{SHOTS}/PromptSRC/{CFG}/seed{SEED}",
            subset="base",
        ),
    ),
    "PromptKD": Scripts("promptkd", "", _PROMPTKD),
    "PromptKD_LMC": Scripts(
        "promptkd_LMC",
        "_promptkd",
        replace(
            _PROMPTKD,
            arguments=PROMPTKD_ARGUMENTS,
            forms=tuple(PROMPTKD_ARGUMENTS[:count] for count in (2, 4, 5)),
            defaults={
                **_PROMPTKD.defaults,
                "STUDENT_DIR": of_run("promptkd/base2new_train"),
                "LAMBDA": lambda a: yaml_values(f"PromptKD_LMC/{a['CFG']}")["TRAINER.LMC.LAMBDA"],  # names the folder
                "BETA": "50.0",
                "N": "10",
            },
            folders=("STUDENT_DIR",),
            trainer="PromptKD_LMC",
            output="output_PromptKD_LMC/base2new/train_base/{DATASET}/shots_{SHOTS}/PromptKD_LMC"
            "/{LAMBDA}_{BETA}_{N}_{KD_WEIGHT}/{CFG}/seed_{SEED}",
            stage1=FIRST,
            pairs=(
                *_PROMPTKD.pairs,
                *("TRAINER.LMC.LAMBDA", "{LAMBDA}", "TRAINER.LMC.BETA", "{BETA}", "TRAINER.LMC.NUM_SAMPLES", "{N}"),
            ),
        ),
    ),
}


def zero_shot(trainer: str, folder: str, where: str, **fields) -> Command:
    """CLIP as it is, or averaged with what stage 1 has trained. where: in output_{folder}, with its data set."""
    usual = {"forms": (("DATASET", "SEED", "CFG"),), "defaults": {"CFG": "vit_b16", "SHOTS": "16"}}
    output = f"output_{folder}/{where}/{trainer}/{{CFG}}/seed{{SEED}}"
    return Command(("DATASET", "SEED"), output, trainer, **usual | fields, eval_only=True)


def commands_of(scripts: Scripts) -> dict[str, Command]:
    """Training, and the tests of both halves."""
    name, train = scripts.script("base2new_train"), scripts.train
    commands = {name: train}
    for what, subset in TESTS.items():
        output = train.output.replace("train_base", f"evaluate/test_{subset}")
        commands[scripts.script(what)] = replace(train, output=output, subset=subset, evaluates=name, stage1="")
    return commands


def _commands() -> dict[str, Command]:
    commands = {name: command for scripts in SCRIPTS.values() for name, command in commands_of(scripts).items()}
    for what, subset in TESTS.items():
        mma = commands[f"mma/{what}"]
        commands[f"mma/{what}"] = replace(mma, forms=(*mma.forms, (*mma.arguments, "LOADEP")))  # as the authors' script
        half = {"where": f"evaluate/test_{subset}/{{DATASET}}/shots_{{SHOTS}}", "subset": subset}
        commands[f"zsclip/{what}"] = zero_shot("ZeroshotCLIP", "zsclip", **half)
        commands[f"zsclip2/{what}"] = zero_shot("ZeroshotCLIP2", "zsclip2", **half, forms=())
        commands[f"coop_average/{what}"] = zero_shot("CoOp_Average", "average/CoOp", **half, forms=(), stage1=FIRST)
    return commands


OURS = _commands()
