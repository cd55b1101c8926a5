"""Robust fine-tuning: all training images of the source, tested there and on its shifted test sets.

LinearProbe trains CLIP's head on frozen features, FineTune the whole image tower too; both start at zero-shot CLIP.
"""

from .base2new import of_toy
from .command import COMMANDS, Arguments, Command, run_folder
from .protocols import transfer

ROBUST = {  # trainer -> the scripts' name
    "LinearProbe": "linear_probe",
    "LinearProbe_LMC": "linear_probe_LMC",
    "FineTune": "finetune",
    "FineTune_LMC": "finetune_LMC",
}
TOY_SHIFTS = ("toy_objects_sketch", "toy_objects_noise", "toy_objects_dark", "toy_objects_rotation")
SHIFTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")


def shifts(dataset: str) -> tuple[str, ...]:
    """The shifted test sets of a source."""
    return TOY_SHIFTS if dataset.startswith("toy_") else (*SHIFTS, "objectnet")


def ensemble(kind: str) -> Command:
    """A model of METHOD, e.g. finetune_LMC, blended with zero-shot CLIP; alpha is chosen on validation images, 0.5 on
    ImageNet, which has none."""

    def words(arguments: Arguments) -> list[str]:
        given = of_toy([], ["--alphas", "0.5"])(arguments)
        train = COMMANDS[f"robust/{arguments['METHOD']}_train"]
        trained = str(run_folder(train, train.complete(arguments)))
        return [trained, "--kind", kind, *given, "--test", *shifts(arguments["DATASET"])]

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


def commands_of(name: str, trainer: str, continues: bool, cfg: str = "", **fields) -> dict[str, Command]:
    """Training and the test, of stage 1 or of a stage 2 on it. name: of its scripts; cfg: stage 1's usual one."""
    defaults = {"DATASET": "imagenet", "CFG": cfg or of_toy("toy", "vit_b16"), "SHOTS": "0"}
    stage1 = {"arguments": ("DATASET", "SEED"), "forms": (("SEED",),), "defaults": defaults}
    stage2 = {"arguments": ("DATASET", "CFG", "SEED"), "defaults": {"SHOTS": "0"}, "stage1": "robust/{STAGE1}_train"}
    train = Command(
        trainer=trainer,
        output=f"output_robust/{name}/train/{{DATASET}}/{trainer}/{{CFG}}/seed{{SEED}}",
        protocol="robust",
        **(stage2 if continues else stage1) | fields,
    )
    script = f"robust/{name}_train"
    return {script: train, f"robust/{name}_test": transfer(train, script, "robust")}


def _commands() -> dict[str, Command]:
    commands = {f"robust/{kind}_ensemble": ensemble(kind) for kind in ("weight", "output")}
    for trainer, name in ROBUST.items():
        commands |= commands_of(name, trainer, continues=name.endswith("_LMC"))
    return commands


OURS = _commands()
