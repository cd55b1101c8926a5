"""The lock that a killed snakemake leaves: removed if its process is dead, and only then.

A workflow started by `flow.py` holds a lock of the kernel's on its folder as well, which dies with it. So snakemake's
own, a list of files, is either a dead one's, or of a snakemake that somebody started without `flow.py`.
"""

import os
import platform
import shutil
from pathlib import Path

HOST = "host"  # file beside the lock: where the last workflow ran


def living(home: Path) -> int | None:
    """The process id of a snakemake that works in a folder, on this machine; None if there is none."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and works_in(entry, home):
            return int(entry.name)
    return None


def works_in(process: Path, home: Path) -> bool:
    """Is it a snakemake with this as its folder, or that names it? A process that ends meanwhile is none."""
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        if not any("snakemake" in Path(word).name for word in words[:3]):
            return False
        return str(home) in words or Path(os.readlink(process / "cwd")) == home.resolve()
    except OSError:
        return False


def clear_dead_lock(home: Path) -> None:
    """Remove the lock of a dead snakemake, and write down where the one that starts now runs.

    UserError: its process lives, or ran on another machine, where this one cannot look.
    """
    from dassl.utils import UserError, atomic_write

    locks, host = home / ".snakemake" / "locks", home / HOST
    here = platform.node()
    if locks.is_dir() and any(locks.iterdir()):
        there = host.read_text().strip() if host.is_file() else here
        if there != here:
            raise UserError(f"{home} was locked on {there}, this is {here}: if no workflow runs there, remove {locks}")
        if not Path("/proc/self").exists():
            raise UserError(f"{home} is locked, and no /proc says by whom: if no workflow runs, remove {locks}")
        if pid := living(home):
            raise UserError(f"{home} is in use by a running snakemake (pid {pid})")
        shutil.rmtree(locks)
        print(f"removed the lock of a workflow that was killed ({home})", flush=True)
    with atomic_write(str(host), "w") as file:
        file.write(here + "\n")
