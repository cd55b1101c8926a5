"""Run a command on one free GPU of N:  python scripts/gpu.py N FOLDER COMMAND ARGUMENT...

The command sees that GPU alone. A GPU is taken by a lock on FOLDER/gpu<k>, which the kernel drops with the process.
Those that CUDA_VISIBLE_DEVICES names are shared out, if it is set.
"""

import argparse
import fcntl
import os
import sys
import time


def take(count: int, folder: str) -> int:
    """The number of a GPU that no other process holds; waits for one. The lock is inherited by what is executed."""
    os.makedirs(folder, exist_ok=True)
    while True:
        for number in range(count):
            handle = os.open(os.path.join(folder, f"gpu{number}"), os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
            else:
                os.set_inheritable(handle, True)
                return number
        time.sleep(0.2)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, metavar="N", help="GPUs that are shared out")
    parser.add_argument("folder", metavar="FOLDER", help="where their locks lie")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    args = parser.parse_args(words)
    number, command = take(args.count, args.folder), args.command
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    device = visible.split(",")[number] if visible else str(number)
    os.execvpe(command[0], command, os.environ | {"CUDA_VISIBLE_DEVICES": device})


if __name__ == "__main__":
    main(sys.argv[1:])
