"""Merging without training: CLIP and a stage-1 run of base-to-new, by any method of `mergetune.merge`."""

from dassl.merging.records import METHODS

from .command import COMMANDS, Arguments, Command, of_stage1, others, run_folder


def _own(arguments: Arguments) -> Arguments:
    """What is given of stage 1 beside its shots, e.g. its W."""
    return {key: value for key, value in of_stage1(arguments).items() if key != "SHOTS"}


def _words(arguments: Arguments) -> list[str]:
    train = COMMANDS[f"{arguments['STAGE1']}/base2new_train"]
    given = {key: arguments[key] for key in ("DATASET", "SEED", "SHOTS")} | _own(arguments)
    run = str(run_folder(train, train.complete(given)))
    method = METHODS.get(arguments["METHOD"])  # of a wrong name the command itself complains
    clip = ["zero-shot"] if method and method.least > 1 else []  # the others start at CLIP and take the run alone
    names = others(COMMANDS["merge/base2new"], arguments)
    beside = ["--others", names] if names else []
    return ["--method", arguments["METHOD"], *clip, run, "--eval", "base", "new", *beside]


OURS = {
    "merge/base2new": Command(
        arguments=("METHOD", "STAGE1", "DATASET", "SEED"),
        defaults={"SHOTS": "16", "OWN": lambda arguments: "".join(f"_{value}" for value in _own(arguments).values())},
        output="output_merged/{STAGE1}/{METHOD}/{DATASET}/shots_{SHOTS}{OWN}/seed{SEED}",
        evaluates="{STAGE1}/base2new_train",
        subset="new",
        module="mergetune.merge",
        words=_words,
        marker="eval_new/results.json",
    )
}
