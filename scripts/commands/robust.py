"""Robust fine-tuning: all training images of the source, tested there and on its shifted test sets.

LinearProbe trains CLIP's head on frozen features, FineTune the whole image tower too; both start at zero-shot CLIP.
"""

from .base2new import of_toy
from .command import COMMANDS, Arguments, Command, run_folder
from .protocols import transfer

TOY_SHIFTS = ("toy_objects_sketch", "toy_objects_noise", "toy_objects_dark", "toy_objects_rotation")
SHIFTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r", "objectnet")


def shifts(dataset: str) -> tuple[str, ...]:
    """The shifted test sets of a source."""
    return TOY_SHIFTS if dataset.startswith("toy_") else SHIFTS


def ensemble(kind: str) -> Command:
    """A model of METHOD, e.g. finetune_LMC, blended with zero-shot CLIP; alpha is chosen on validation images, 0.5 on
    ImageNet, which has none."""

    def words(arguments: Arguments) -> list[str]:
        alphas = of_toy([], ["--alphas", "0.5"])(arguments)
        train = COMMANDS[f"robust/{arguments['METHOD']}_train"]
        trained = str(run_folder(train, train.complete(arguments)))
        return [trained, "--kind", kind, *alphas, "--test", *shifts(arguments["DATASET"])]

    return Command(
        arguments=("METHOD", "DATASET", "CFG", "SEED"),
        forms=(("METHOD", "DATASET", "SEED"),),
        defaults={"CFG": of_toy("toy", "vit_b16"), "SHOTS": "0"},
        output=f"output_robust/{{METHOD}}/{kind}_ensemble/{{DATASET}}/{{CFG}}/seed{{SEED}}",
        protocol="robust",
        evaluates="robust/{METHOD}_train",
        module="mergetune.ensemble",
        words=words,
        marker="sweep.json",
    )


def training(trainer: str, name: str, continues: bool, cfg: str = "", **fields) -> Command:
    """Stage 1, or a stage 2 on it. name: of its scripts; cfg: stage 1's usual one."""
    defaults = {"DATASET": "imagenet", "CFG": cfg or of_toy("toy", "vit_b16"), "SHOTS": "0"}
    stage1 = {"arguments": ("DATASET", "SEED"), "forms": (("SEED",),), "defaults": defaults}
    stage2 = {"arguments": ("DATASET", "CFG", "SEED"), "defaults": {"SHOTS": "0"}, "stage1": "train"}
    return Command(
        script=f"robust/{name}_{{}}",
        trainer=trainer,
        output=f"output_robust/{name}/train/{{DATASET}}/{trainer}/{{CFG}}/seed{{SEED}}",
        protocol="robust",
        **(stage2 if continues else stage1) | fields,
    )


def commands_of(train: Command) -> dict[str, Command]:
    """Training and the test."""
    return {train.named("train"): train, train.named("test"): transfer(train, "train", "robust")}


METHODS = (
    training("LinearProbe", "linear_probe", False),
    training("LinearProbe_LMC", "linear_probe_LMC", True),
    training("FineTune", "finetune", False),
    training("FineTune_LMC", "finetune_LMC", True),
)
