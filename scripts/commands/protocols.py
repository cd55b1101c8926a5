"""The protocols of a method that learns from labelled shots: base-to-new, cross-data-set, domain generalisation and the
few-shot curve.

All classes each time, but in base-to-new. Cross-data-set and domain generalisation share one model, trained on the
source; a test names the target first, and the source last where it is not the usual one.
"""

from dataclasses import replace

from dassl.merging.records import METHODS

from .command import COMMANDS, Arguments, Command, of_stage1, others, run_folder, source_of

TESTS = {"base2base_test": "base", "base2new_test": "new"}
TRANSFER = {"cross": "xd_test", "dg": "dg_test"}  # protocol -> script


def base2new(train: Command) -> dict[str, Command]:
    """Training, and the tests of both halves."""
    commands = {train.named("base2new_train"): train}
    for what, subset in TESTS.items():
        output = train.output.replace("train_base", f"evaluate/test_{subset}")
        commands[train.named(what)] = test_of(train, "base2new_train", output=output, subset=subset)
    return commands


def test_of(train: Command, what: str, **fields) -> Command:
    """What evaluates a training, `what` among its method's scripts."""
    return replace(train, evaluates=train.named(what), stage1="", **fields)


def source_training(train: Command) -> Command:
    """Training on all classes of the source. With nothing but a SEED it is ImageNet, as in CoOp's scripts."""
    short = set(train.arguments) - set(train.defaults) == {"DATASET", "SEED"}
    return replace(
        train,
        subset="all",
        protocol="cross",
        forms=(*train.forms, ("SEED",)) if short else train.forms,
        defaults={"DATASET": "imagenet"} | train.defaults if short else train.defaults,
        output=train.output.replace("base2new/", "").replace("train_base", "cross/train"),
        stage1=train.stage1.replace("base2new", "xd"),
    )


def transfer(train: Command, what: str, protocol: str) -> Command:
    """The test of a source model, whose script is `what`, on another data set."""
    forms = (train.arguments, *train.forms)
    with_source = tuple((*form, "SOURCE") for form in forms if "DATASET" in form)
    taken = {len(form) for form in forms}
    output = train.output.replace("train/{DATASET}", "test/{SOURCE}_to_{DATASET}")
    return test_of(
        train,
        what,
        protocol=protocol,
        forms=(
            *(form for form in train.forms if "DATASET" in form),
            *(form for form in with_source if len(form) not in taken),
        ),
        defaults={key: value for key, value in train.defaults.items() if key != "DATASET"} | {"SOURCE": source_of},
        output=output.replace("/cross/", f"/{protocol}/"),
    )


def fewshot_training(train: Command) -> Command:
    """Training on SHOTS images of every class."""
    arguments, *others = (("DATASET", "SHOTS", *form[1:]) for form in (train.arguments, *train.forms))
    return replace(
        train,
        arguments=arguments,
        forms=tuple(others),
        defaults={key: value for key, value in train.defaults.items() if key != "SHOTS"},
        subset="all",
        protocol="fewshot",
        output=train.output.replace("base2new/", "").replace("train_base", "fewshot/train"),
        stage1=train.stage1.replace("base2new", "fewshot"),
    )


def other_protocols(train: Command) -> dict[str, Command]:
    """Training on the source and its tests on other data sets, and the few-shot curve."""
    source, shots = source_training(train), fewshot_training(train)
    tests = {script: transfer(source, "xd_train", protocol) for protocol, script in TRANSFER.items()}
    output = shots.output.replace("fewshot/train", "fewshot/test")
    tests |= {"fewshot_test": test_of(shots, "fewshot_train", output=output)}
    every = {"xd_train": source, "fewshot_train": shots, **tests}
    return {train.named(what): command for what, command in every.items()}


def zero_shot(trainer: str, output: str, **fields) -> Command:
    """CLIP as it is, or averaged with what stage 1 has trained. output: its beginning, with its data set."""
    usual = {"forms": (("DATASET", "SEED", "CFG"),), "defaults": {"CFG": "vit_b16", "SHOTS": "16"}}
    output = f"{output}/{trainer}/{{CFG}}/seed{{SEED}}"
    return Command(("DATASET", "SEED"), output, trainer, **usual | fields, eval_only=True)


def zero_shot_commands() -> dict[str, Command]:
    """Of zero-shot CLIP, and of its average with CoOp's class vectors."""
    commands = {}
    for what, subset in TESTS.items():
        for folder, trainer, place, fields in (
            ("zsclip", "ZeroshotCLIP", "zsclip", {}),
            ("zsclip2", "ZeroshotCLIP2", "zsclip2", {"forms": ()}),
            ("coop_average", "CoOp_Average", "average/CoOp", {"forms": (), "stage1": "base2new_train"}),
        ):
            output = f"output_{place}/evaluate/test_{subset}/{{DATASET}}/shots_{{SHOTS}}"
            commands[f"{folder}/{what}"] = zero_shot(trainer, output, subset=subset, **fields)
    for protocol, what in TRANSFER.items():
        commands[f"coop_average/{what}"] = zero_shot(
            "CoOp_Average",
            f"output_average/CoOp/{protocol}/test/{{SOURCE}}_to_{{DATASET}}",
            forms=(("DATASET", "SEED", "SOURCE"),),
            defaults={"CFG": "vit_b16", "SHOTS": "16", "SOURCE": source_of},
            protocol=protocol,
            stage1="xd_train",
        )
    for protocol, what in {**TRANSFER, "fewshot": "fewshot_test", "robust": "robust_test"}.items():
        output = f"output_zsclip/{protocol}/test/{{DATASET}}"
        commands[f"zsclip/{what}"] = zero_shot("ZeroshotCLIP", output, protocol=protocol)
    return commands


# Merging without training: CLIP and a stage-1 run of base-to-new, by any method of `mergetune.merge`


def _beside_shots(arguments: Arguments) -> Arguments:
    """What is asked of stage 1 beside its shots, e.g. its W."""
    return {key: value for key, value in of_stage1(arguments).items() if key != "SHOTS"}


def _name(arguments: Arguments) -> str:
    return "".join(f"_{value}" for value in _beside_shots(arguments).values())


def _words(arguments: Arguments) -> list[str]:
    train = COMMANDS[f"{arguments['STAGE1']}/base2new_train"]
    shared = {key: arguments[key] for key in ("DATASET", "SEED", "SHOTS")}
    run = str(run_folder(train, train.complete(shared | _beside_shots(arguments))))
    method = METHODS.get(arguments["METHOD"])  # of a wrong name the command itself complains
    clip = ["zero-shot"] if method and method.least > 1 else []  # the others start at CLIP and take the run alone
    names = others(MERGE, arguments)
    beside = ["--others", names] if names else []
    return ["--method", arguments["METHOD"], *clip, run, "--eval", "base", "new", *beside]


MERGE = Command(
    arguments=("METHOD", "STAGE1", "DATASET", "SEED"),
    defaults={"SHOTS": "16", "OWN": _name},
    output="output_merged/{STAGE1}/{METHOD}/{DATASET}/shots_{SHOTS}{OWN}/seed{SEED}",
    evaluates="{STAGE1}/base2new_train",
    subset="new",
    module="mergetune.merge",
    words=_words,
    marker="eval_new/results.json",
)
