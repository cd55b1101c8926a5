"""What each script runs: its arguments, the folder it writes, and the train.py command line.

Declarations only; `run.py` executes one of them, `main_job.py` and `sweep.py` many. Folders are the authors', below
OUTPUT; where the released training and test scripts disagreed, the test reads what the training writes.
"""

from .base2new import OURS as BASE2NEW
from .base2new import SCRIPTS
from .command import COMMANDS, Command, folder, run_folder
from .condu import COMMANDS as CONDU
from .merge import OURS as MERGE
from .protocols import OURS as PROTOCOLS
from .robust import OURS as ROBUST_COMMANDS
from .robust import ROBUST

COMMANDS.update(BASE2NEW | PROTOCOLS | ROBUST_COMMANDS | MERGE | CONDU)

__all__ = ["COMMANDS", "SCRIPTS", "Command", "folder", "run_folder", "scripts_of", "stage1_command"]


def scripts_of(trainer: str) -> str:
    """The folder of a trainer's scripts, or what those of robust fine-tuning are called."""
    return SCRIPTS[trainer].folder if trainer in SCRIPTS else ROBUST.get(trainer, trainer)


def stage1_command(command: Command) -> str:
    """Name of the command whose run one continues, "" if none: the class of its trainer says of which method."""
    if not command.stage1:
        return ""
    from dassl.engine import TRAINER_REGISTRY
    from mergetune.stage2 import stage1_of

    return command.stage1.format(STAGE1=scripts_of(stage1_of(TRAINER_REGISTRY.get(command.trainer))))
