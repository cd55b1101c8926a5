"""What each script runs: its arguments, the folder it writes, and the train.py command line.

Declarations only; `run.py` executes one of them, `main_job.py` and `sweep.py` many. Folders are the authors', below
OUTPUT; where the released training and test scripts disagreed, the test reads what the training writes.
"""

from .base2new import COMMANDS as BASE2NEW
from .command import Command, folder, run_folder
from .condu import COMMANDS as CONDU
from .merge import COMMANDS as MERGE
from .protocols import COMMANDS as PROTOCOLS
from .robust import COMMANDS as ROBUST

COMMANDS: dict[str, Command] = BASE2NEW | PROTOCOLS | ROBUST | MERGE | CONDU

__all__ = ["COMMANDS", "Command", "folder", "run_folder"]
