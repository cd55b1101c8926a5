"""Cross-data-set, domain generalisation and the few-shot curve, for the methods that train on labelled shots.

All classes each time. Cross-data-set and domain generalisation share one model, trained on the source; a test names
the target first, and the source last where it is not the usual one.
"""

from dataclasses import replace

from .base2new import METHODS, Method
from .command import Command, source_of

NAMES = ("CoOp", "CoOp_LMC", "KgCoOp", "KgCoOp_LMC", "MultiModalAdapter", "MMA_LMC")
STAGE1 = {"CoOp_LMC": "CoOp", "KgCoOp_LMC": "KgCoOp", "MMA_LMC": "MultiModalAdapter"}
TRANSFER = {"xd_test": "cross", "dg_test": "dg"}  # script -> protocol


def stage1_script(name: str, what: str) -> str:
    """The script of the stage-1 method behind a stage-2 one, "" for a method of stage 1."""
    return METHODS[STAGE1[name]].script(what) if name in STAGE1 else ""


def forms(command: Command) -> tuple[tuple[str, ...], ...]:
    """Every list of arguments that a command takes."""
    return (command.arguments, *command.forms)


def source_training(name: str, method: Method) -> Command:
    """Training on all classes of the source. With nothing but a SEED it is ImageNet, as in CoOp's scripts."""
    own = method.train
    short = set(own.arguments) - set(own.defaults) == {"DATASET", "SEED"}
    return replace(
        own,
        subset="all",
        protocol="cross",
        forms=(*own.forms, ("SEED",)) if short else own.forms,
        defaults={"DATASET": "imagenet"} | own.defaults if short else own.defaults,
        output=own.output.replace("base2new/", "").replace("train_base", "cross/train"),
        stage1=stage1_script(name, "xd_train"),
    )


def transfer(train: Command, script: str, protocol: str) -> Command:
    """The test of a source model on another data set."""
    with_source = tuple((*form, "SOURCE") for form in forms(train) if "DATASET" in form)
    taken = {len(form) for form in forms(train)}
    return replace(
        train,
        protocol=protocol,
        forms=(
            *(form for form in train.forms if "DATASET" in form),
            *(form for form in with_source if len(form) not in taken),
        ),
        defaults={key: value for key, value in train.defaults.items() if key != "DATASET"} | {"SOURCE": source_of},
        output=train.output.replace("cross/train/{DATASET}", f"{protocol}/test/{{SOURCE}}_to_{{DATASET}}"),
        evaluates=script,
        stage1="",
    )


def fewshot_training(name: str, method: Method) -> Command:
    """Training on SHOTS pictures of every class."""
    own = method.train
    arguments, *others = (("DATASET", "SHOTS", *form[1:]) for form in forms(own))
    return replace(
        own,
        arguments=arguments,
        forms=tuple(others),
        defaults={key: value for key, value in own.defaults.items() if key != "SHOTS"},
        subset="all",
        protocol="fewshot",
        output=own.output.replace("base2new/", "").replace("train_base", "fewshot/train"),
        stage1=stage1_script(name, "fewshot_train"),
    )


def fewshot_test(train: Command, script: str) -> Command:
    """The test of a few-shot model."""
    output = train.output.replace("fewshot/train", "fewshot/test")
    return replace(train, output=output, evaluates=script, stage1="")


def zero_shot(folder: str, trainer: str, protocol: str) -> Command:
    """CLIP on all classes of a data set: the line that a protocol's methods start from."""
    return Command(
        arguments=("DATASET", "SEED"),
        forms=(("DATASET", "SEED", "CFG"),),
        defaults={"CFG": "vit_b16", "SHOTS": "16"},
        trainer=trainer,
        config=f"{trainer}/{{CFG}}",
        output=f"output_{folder}/{protocol}/test/{{DATASET}}/{trainer}/{{CFG}}/seed{{SEED}}",
        subset="all",
        protocol=protocol,
        eval_only=True,
    )


def average(protocol: str) -> Command:
    """The average of CLIP's class vectors and those of CoOp's source model, on another data set."""
    return replace(
        zero_shot("average/CoOp", "CoOp_Average", protocol),
        forms=(("DATASET", "SEED", "SOURCE"),),
        defaults={"CFG": "vit_b16", "SHOTS": "16", "SOURCE": source_of},
        output=f"output_average/CoOp/{protocol}/test/{{SOURCE}}_to_{{DATASET}}/CoOp_Average/{{CFG}}/seed{{SEED}}",
        stage1="coop/xd_train",
    )


def _commands() -> dict[str, Command]:
    found = {}
    for name in NAMES:
        method = METHODS[name]
        source = found[method.script("xd_train")] = source_training(name, method)
        for what, protocol in TRANSFER.items():
            found[method.script(what)] = transfer(source, method.script("xd_train"), protocol)
        shots = found[method.script("fewshot_train")] = fewshot_training(name, method)
        found[method.script("fewshot_test")] = fewshot_test(shots, method.script("fewshot_train"))
    found |= {f"coop_average/{what}": average(protocol) for what, protocol in TRANSFER.items()}
    for what, protocol in {**TRANSFER, "fewshot_test": "fewshot"}.items():
        found[f"zsclip/{what}"] = zero_shot("zsclip", "ZeroshotCLIP", protocol)
    return found


COMMANDS = _commands()
