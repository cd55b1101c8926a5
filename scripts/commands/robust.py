"""Robust fine-tuning: all training pictures of the source, tested there and on its shifted test sets.

LinearProbe trains CLIP's head on frozen features, FineTune the whole image tower too; both start at zero-shot CLIP.
"""

from dataclasses import replace

from .base2new import of_toy
from .command import Arguments, Command, run_folder, source_of
from .protocols import zero_shot

STAGE1 = {"linear_probe": "LinearProbe", "finetune": "FineTune"}
TOY_SHIFTS = ("toy_objects_sketch", "toy_objects_noise", "toy_objects_dark", "toy_objects_rotation")
SHIFTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")


def training(folder: str, trainer: str) -> Command:
    return Command(
        arguments=("DATASET", "SEED"),
        forms=(("SEED",),),
        defaults={"DATASET": "imagenet", "CFG": of_toy("toy", "vit_b16"), "SHOTS": "0"},
        trainer=trainer,
        config=f"{trainer}/{{CFG}}",
        output=f"output_robust/{folder}/train/{{DATASET}}/{trainer}/{{CFG}}/seed{{SEED}}",
        subset="all",
        protocol="robust",
    )


def continued(stage1: Command, script: str, folder: str, trainer: str) -> Command:
    """MERGETUNE on either; CFG is its preset."""
    return replace(
        stage1,
        arguments=("DATASET", "CFG", "SEED"),
        forms=(),
        defaults={"SHOTS": "0"},
        trainer=trainer,
        config=f"{trainer}/{{CFG}}",
        output=f"output_robust/{folder}/train/{{DATASET}}/{trainer}/{{CFG}}/seed{{SEED}}",
        stage1=script,
    )


def test_of(train: Command, script: str) -> Command:
    """The test of a model on the source or a shifted set of the same classes."""
    return replace(
        train,
        forms=((*train.arguments, "SOURCE"),),
        defaults={key: value for key, value in train.defaults.items() if key != "DATASET"} | {"SOURCE": source_of},
        output=train.output.replace("train/{DATASET}", "test/{SOURCE}_to_{DATASET}"),
        evaluates=script,
        stage1="",
    )


def shifts(dataset: str) -> tuple[str, ...]:
    """The shifted test sets of a source."""
    return TOY_SHIFTS if dataset.startswith("toy_") else (*SHIFTS, "objectnet")


def ensemble(kind: str) -> Command:
    """A model of METHOD, e.g. finetune_LMC, blended with zero-shot CLIP; alpha is chosen on validation pictures, 0.5 on
    ImageNet, which has none."""

    def words(arguments: Arguments) -> list[str]:
        given = of_toy([], ["--alphas", "0.5"])(arguments)
        return [trained(arguments), "--kind", kind, *given, "--test", *shifts(arguments["DATASET"])]

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


def trained(arguments: Arguments) -> str:
    """The run of METHOD."""
    train = COMMANDS[f"robust/{arguments['METHOD']}_train"]
    return str(run_folder(train, train.complete(arguments)))


def _commands() -> dict[str, Command]:
    found = {"zsclip/robust_test": zero_shot("zsclip", "ZeroshotCLIP", "robust")}
    found |= {f"robust/{kind}_ensemble": ensemble(kind) for kind in ("weight", "output")}
    for name, trainer in STAGE1.items():
        first, second = f"robust/{name}_train", f"robust/{name}_LMC_train"
        found[first] = training(name, trainer)
        found[second] = continued(found[first], first, f"{name}_LMC", f"{trainer}_LMC")
        for script in (first, second):
            found[script.replace("train", "test")] = test_of(found[script], script)
    return found


COMMANDS = _commands()
