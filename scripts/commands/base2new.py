"""Base-to-new: the authors' commands, and the same for the methods that they ran without a script."""

from dataclasses import replace

from .command import COMMANDS, Arguments, Command, first_arguments, run_folder, yaml_values

LMC_ARGUMENTS = ("DATASET", "CLIP_WEIGHT", "LOSS_TYPE", "COOP_LMC", "W_LMC", "SEED", "CFG")
PROMPTKD_ARGUMENTS = ("DATASET", "SEED", "STUDENT_DIR", "KD_WEIGHT", "BETA", "N")
WEAKER_KD = ("fgvc_aircraft", "oxford_flowers", "dtd")  # PromptKD distils with 200 there, elsewhere with 1000


def of_toy(toy: str, other: str):
    """A default that differs on the built-in benchmark."""
    return lambda arguments: toy if arguments["DATASET"].startswith("toy_") else other


def kd_weight(arguments: Arguments) -> str:
    return "200.0" if arguments["DATASET"] in WEAKER_KD else "1000.0"


def of_run(name: str):
    """A default: the folder of the run that another command makes on this data set and seed."""
    return lambda arguments: str(run_folder(COMMANDS[name], first_arguments(COMMANDS[name], arguments)))


COOP = Command(
    script="coop/{}",
    arguments=("DATASET", "SEED"),
    defaults={"CFG": "vit_b16_ep100_ctxv1", "SHOTS": "16"},
    trainer="CoOp",
    output="output_coop/train_base/{DATASET}/shots_{SHOTS}/CoOp/{CFG}/seed{SEED}",
    subset="base",
)
COOP_LMC = Command(
    script="coop_LMC/{}_coop",
    arguments=LMC_ARGUMENTS,
    defaults={"SHOTS": "16"},
    trainer="CoOp_LMC",
    output="output_KgCoOp_COOP_LMC/CoOp/train_base/{DATASET}/{LOSS_TYPE}/shots_{SHOTS}_{CLIP_WEIGHT}_{W_LMC}"
    "/KgCoOp_COOP_LMC/{CFG}/seed{SEED}",
    subset="base",
    stage1="base2new_train",
    pairs={
        "TRAINER.LMC.LAMBDA": "CLIP_WEIGHT",
        "TRAINER.LMC.DISTANCE": "LOSS_TYPE",
        "TRAINER.LMC.ENABLED": "COOP_LMC",
        "TRAINER.LMC.BETA": "W_LMC",
    },
)
KGCOOP = replace(
    COOP,
    script="kgcoop/{}",
    arguments=("DATASET", "W", "SEED"),
    forms=(("DATASET", "SEED"),),
    defaults={"CFG": "vit_b16_ep100_ctxv1", "SHOTS": "16", "W": "8.0"},
    trainer="KgCoOp",
    output="output_KgCoOp/base2new/train_base/{DATASET}/shots_{SHOTS}_{W}/KgCoOp/{CFG}/seed{SEED}",
    pairs={"TRAINER.COOP.W": "W"},
)
KGCOOP_LMC = replace(
    COOP_LMC,
    script="kgcoop_LMC/{}_kgcoop",
    forms=(("DATASET", "CLIP_WEIGHT", "W_LMC", "SEED", "CFG"),),
    defaults={"SHOTS": "16", "LOSS_TYPE": "cosine", "COOP_LMC": "True"},
    trainer="KgCoOp_LMC",
    output=COOP_LMC.output.replace("output_KgCoOp_COOP_LMC/CoOp/", "output_KgCoOp_LMC/KgCoOp/"),
)
MMA = replace(
    COOP,
    script="mma/{}",
    arguments=("DATASET", "SEED", "CFG"),
    forms=(("DATASET", "SEED"),),
    defaults={"SHOTS": "16", "CFG": of_toy("vit_b16_ep20", "vit_b16_ep5")},
    trainer="MultiModalAdapter",
    output="output_MMA/base2new/train_base/{DATASET}/shots_{SHOTS}/MultiModalAdapter/seed{SEED}",
)
MMA_LMC = replace(
    COOP_LMC,
    script="mma_LMC/{}_mma",
    arguments=("DATASET", "W_LMC", "CFG", "SEED"),
    trainer="MMA_LMC",
    output="output_MMA_LMC/base2new/train_base/{DATASET}/shots_{SHOTS}_{W_LMC}/MMA_LMC/{CFG}/seed{SEED}",
    pairs={"TRAINER.LMC.BETA": "W_LMC"},
)
PROMPTSRC = replace(
    COOP,
    script="promptsrc/{}",
    defaults={"CFG": of_toy("vit_b16_c2_ep20_batch4_4+4ctx", "vit_l14_c2_ep20_batch8_4+4ctx"), "SHOTS": "16"},
    trainer="PromptSRC",
    output="output_PromptSRC/base2new/train_base/{DATASET}/shots_{SHOTS}/PromptSRC/{CFG}/seed{SEED}",
)
PROMPTKD = Command(
    script="promptkd/{}",
    arguments=("DATASET", "SEED"),
    defaults={
        "CFG": "vit_b16_c2_ep20_batch8_4+4ctx",
        "SHOTS": "0",  # all training images, of all classes, without their labels
        "KD_WEIGHT": kd_weight,
        "TEACHER_DIR": of_run("promptsrc/base2new_train"),
    },
    trainer="PromptKD",
    output="output_PromptKD/base2new/train_base/{DATASET}/shots_{SHOTS}/PromptKD/{CFG}/seed_{SEED}",
    teacher="promptsrc/base2new_train",
    pairs={"TRAINER.PROMPTKD.TEACHER_DIR": "TEACHER_DIR", "TRAINER.PROMPTKD.KD_WEIGHT": "KD_WEIGHT"},
)
PROMPTKD_LMC = replace(
    PROMPTKD,
    script="promptkd_LMC/{}_promptkd",
    arguments=PROMPTKD_ARGUMENTS,
    forms=tuple(PROMPTKD_ARGUMENTS[:count] for count in (2, 4, 5)),
    defaults={
        **PROMPTKD.defaults,
        "STUDENT_DIR": of_run("promptkd/base2new_train"),
        "LAMBDA": lambda a: yaml_values(f"PromptKD_LMC/{a['CFG']}")["TRAINER.LMC.LAMBDA"],  # names the folder
        "BETA": "50.0",
        "N": "10",
    },
    trainer="PromptKD_LMC",
    output="output_PromptKD_LMC/base2new/train_base/{DATASET}/shots_{SHOTS}/PromptKD_LMC"
    "/{LAMBDA}_{BETA}_{N}_{KD_WEIGHT}/{CFG}/seed_{SEED}",
    stage1="base2new_train",
    pairs={
        **PROMPTKD.pairs,
        "TRAINER.LMC.LAMBDA": "LAMBDA",
        "TRAINER.LMC.BETA": "BETA",
        "TRAINER.LMC.NUM_SAMPLES": "N",
    },
)
SIGLIP = replace(
    COOP,
    script="coop/{}_siglip2",
    seeds=lambda: ("1", "2", "3"),
    arguments=("DATASET",),
    forms=(("DATASET", "CFG"),),
    defaults={"CFG": "siglip2_b16_ep100_ctxv1", "SHOTS": "16"},
)
SIGLIP_LMC = replace(
    COOP_LMC,
    script="coop_LMC/{}_coop_siglip2",
    seeds=SIGLIP.seeds,
    arguments=tuple(name for name in LMC_ARGUMENTS if name != "SEED"),
    # stage 1 on the backbone of a stage-2 CFG such as siglip2_l16_paper
    defaults={"SHOTS": "16", "STAGE1_CFG": lambda a: "_".join([*a["CFG"].split("_")[:2], "ep100_ctxv1"])},
    stage1="base2new_train_siglip2",
)
LABELLED = (COOP, COOP_LMC, KGCOOP, KGCOOP_LMC, MMA, MMA_LMC)  # train on labelled shots: all protocols
METHODS = (*LABELLED, PROMPTSRC, PROMPTKD, PROMPTKD_LMC)
