"""Robust fine-tuning: all training pictures of the source, tested there and on its shifted test sets.

LinearProbe trains CLIP's head on frozen features, FineTune the whole image tower too; both start at zero-shot CLIP.
"""

from .base2new import of_toy
from .command import Arguments, Command, run_folder
from .protocols import transfer

ROBUST = {"LinearProbe": "linear_probe", "FineTune": "finetune"}
TOY_SHIFTS = ("toy_objects_sketch", "toy_objects_noise", "toy_objects_dark", "toy_objects_rotation")
SHIFTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")


def training(folder: str, trainer: str, **fields) -> Command:
    """Of stage 1, or of MERGETUNE on it."""
    output = f"output_robust/{folder}/train/{{DATASET}}/{trainer}/{{CFG}}/seed{{SEED}}"
    return Command(trainer=trainer, output=output, protocol="robust", **fields)


def shifts(dataset: str) -> tuple[str, ...]:
    """The shifted test sets of a source."""
    return TOY_SHIFTS if dataset.startswith("toy_") else (*SHIFTS, "objectnet")


def ensemble(kind: str) -> Command:
    """A model of METHOD, e.g. finetune_LMC, blended with zero-shot CLIP; alpha is chosen on validation pictures, 0.5 on
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


def _commands() -> dict[str, Command]:
    found = {f"robust/{kind}_ensemble": ensemble(kind) for kind in ("weight", "output")}
    usual = {"DATASET": "imagenet", "CFG": of_toy("toy", "vit_b16"), "SHOTS": "0"}
    for trainer, name in ROBUST.items():
        first, second = f"robust/{name}_train", f"robust/{name}_LMC_train"
        found[first] = training(name, trainer, arguments=("DATASET", "SEED"), forms=(("SEED",),), defaults=usual)
        lmc = {"arguments": ("DATASET", "CFG", "SEED"), "defaults": {"SHOTS": "0"}, "stage1": first}
        found[second] = training(f"{name}_LMC", f"{trainer}_LMC", **lmc)
        for script in (first, second):
            found[script.replace("train", "test")] = transfer(found[script], script, "robust")
    return found


COMMANDS = _commands()
