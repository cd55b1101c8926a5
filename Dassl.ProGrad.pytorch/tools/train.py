"""The repository's train.py under the name that Dassl gives it; same flags, same behaviour."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "train.py"), run_name="__main__")
