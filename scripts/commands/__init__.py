"""What each script runs: its arguments, the folder it writes, and the train.py command line.

Declarations only; `run.py` executes one of them, `main_job.py` and `sweep.py` many. Folders are the authors', below
OUTPUT; where the released training and test scripts disagreed, the test reads what the training writes.
"""

from dataclasses import replace

from . import base2new, condu, protocols, robust
from .command import COMMANDS, Command, folder, run_folder

__all__ = ["COMMANDS", "TRAININGS", "Command", "folder", "run_folder", "scripts_of", "stage1_command"]

TRAININGS = {train.trainer: train for train in (*base2new.METHODS, *robust.METHODS)}  # trainer -> its first command
for _train in (*base2new.METHODS, base2new.SIGLIP, base2new.SIGLIP_LMC):
    COMMANDS.update(protocols.base2new(_train))
for _test in protocols.TESTS:  # as the authors' script
    _mma = COMMANDS[f"mma/{_test}"]
    COMMANDS[f"mma/{_test}"] = replace(_mma, forms=(*_mma.forms, (*_mma.arguments, "LOADEP")))
for _train in base2new.LABELLED:
    COMMANDS.update(protocols.other_protocols(_train))
COMMANDS.update(protocols.zero_shot_commands())
for _train in robust.METHODS:
    COMMANDS.update(robust.commands_of(_train))
COMMANDS.update({f"robust/{kind}_ensemble": robust.ensemble(kind) for kind in ("weight", "output")})
COMMANDS.update({"merge/base2new": protocols.MERGE} | condu.COMMANDS)


def scripts_of(trainer: str) -> str:
    """What a trainer's scripts are called by: their folder, or of robust fine-tuning the first part of their names."""
    script = TRAININGS[trainer].script if trainer in TRAININGS else trainer
    return script.removeprefix("robust/").split("/")[0].removesuffix("_{}")


def stage1_command(command: Command) -> str:
    """Name of the command whose run one continues, "" if none: the class of its trainer says of which method."""
    if not command.stage1:
        return ""
    from dassl.engine import TRAINER_REGISTRY
    from mergetune.stage2 import stage1_of

    return TRAININGS[stage1_of(TRAINER_REGISTRY.get(command.trainer))].script.format(command.stage1)
