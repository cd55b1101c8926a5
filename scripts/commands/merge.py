"""Merging without training: CLIP and a stage-1 run of base-to-new, by any method of `mergetune.merge`."""

from dassl.merging.records import METHODS

from .command import COMMANDS, Arguments, Command, of_stage1, others, run_folder


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
