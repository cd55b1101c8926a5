"""Cross-data-set, domain generalisation and the few-shot curve, for the methods that train on labelled shots.

All classes each time. Cross-data-set and domain generalisation share one model, trained on the source; a test names
the target first, and the source last where it is not the usual one.
"""

from dataclasses import replace

from .base2new import SCRIPTS, Scripts, zero_shot
from .command import Command, source_of

NAMES = ("CoOp", "CoOp_LMC", "KgCoOp", "KgCoOp_LMC", "MultiModalAdapter", "MMA_LMC")
TRANSFER = {"xd_test": "cross", "dg_test": "dg"}  # script -> protocol


def source_training(own: Command) -> Command:
    """Training on all classes of the source. With nothing but a SEED it is ImageNet, as in CoOp's scripts."""
    short = set(own.arguments) - set(own.defaults) == {"DATASET", "SEED"}
    return replace(
        own,
        subset="all",
        protocol="cross",
        forms=(*own.forms, ("SEED",)) if short else own.forms,
        defaults={"DATASET": "imagenet"} | own.defaults if short else own.defaults,
        output=own.output.replace("base2new/", "").replace("train_base", "cross/train"),
        stage1=own.stage1.replace("base2new", "xd"),
    )


def transfer(train: Command, script: str, protocol: str) -> Command:
    """The test of a source model on another data set."""
    forms = (train.arguments, *train.forms)
    with_source = tuple((*form, "SOURCE") for form in forms if "DATASET" in form)
    taken = {len(form) for form in forms}
    output = train.output.replace("train/{DATASET}", "test/{SOURCE}_to_{DATASET}")
    return replace(
        train,
        protocol=protocol,
        forms=(
            *(form for form in train.forms if "DATASET" in form),
            *(form for form in with_source if len(form) not in taken),
        ),
        defaults={key: value for key, value in train.defaults.items() if key != "DATASET"} | {"SOURCE": source_of},
        output=output.replace("/cross/", f"/{protocol}/"),
        evaluates=script,
        stage1="",
    )


def fewshot_training(own: Command) -> Command:
    """Training on SHOTS images of every class."""
    arguments, *others = (("DATASET", "SHOTS", *form[1:]) for form in (own.arguments, *own.forms))
    return replace(
        own,
        arguments=arguments,
        forms=tuple(others),
        defaults={key: value for key, value in own.defaults.items() if key != "SHOTS"},
        subset="all",
        protocol="fewshot",
        output=own.output.replace("base2new/", "").replace("train_base", "fewshot/train"),
        stage1=own.stage1.replace("base2new", "fewshot"),
    )


def commands_of(scripts: Scripts) -> dict[str, Command]:
    """Training on the source and its tests on other data sets, and the few-shot curve."""
    source = scripts.script("xd_train")
    commands = {source: source_training(scripts.train)}
    for what, protocol in TRANSFER.items():
        commands[scripts.script(what)] = transfer(commands[source], source, protocol)
    name = scripts.script("fewshot_train")
    commands[name] = train = fewshot_training(scripts.train)
    output = train.output.replace("fewshot/train", "fewshot/test")
    commands[scripts.script("fewshot_test")] = replace(train, output=output, evaluates=name, stage1="")
    return commands


def _commands() -> dict[str, Command]:
    commands = {name: command for trainer in NAMES for name, command in commands_of(SCRIPTS[trainer]).items()}
    for what, protocol in TRANSFER.items():
        commands[f"coop_average/{what}"] = zero_shot(
            "CoOp_Average",
            "average/CoOp",
            f"{protocol}/test/{{SOURCE}}_to_{{DATASET}}",
            forms=(("DATASET", "SEED", "SOURCE"),),
            defaults={"CFG": "vit_b16", "SHOTS": "16", "SOURCE": source_of},
            protocol=protocol,
            stage1="{STAGE1}/xd_train",
        )
    for what, protocol in {**TRANSFER, "fewshot_test": "fewshot", "robust_test": "robust"}.items():
        where = f"{protocol}/test/{{DATASET}}"
        commands[f"zsclip/{what}"] = zero_shot("ZeroshotCLIP", "zsclip", where, protocol=protocol)
    return commands


OURS = _commands()
