"""Run a command on one free GPU of N:  python scripts/gpu.py N FOLDER COMMAND ARGUMENT...

The command sees that GPU alone. A GPU is taken by a lock on FOLDER/gpu<k>, which the kernel drops with the process.
Those that CUDA_VISIBLE_DEVICES names are shared out, if it is set.
"""

import argparse
import contextlib
import fcntl
import os
import sys
import time


def main(words: list[str]) -> None:
    """Wait for a GPU that no other process holds, and become the command, which inherits the lock."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, metavar="N", help="GPUs that are shared out")
    parser.add_argument("folder", metavar="FOLDER", help="where their locks lie")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    args = parser.parse_args(words)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [*map(str, range(args.count))]
    os.makedirs(args.folder, exist_ok=True)
    while True:
        for number in range(args.count):
            handle = os.open(os.path.join(args.folder, f"gpu{number}"), os.O_RDWR | os.O_CREAT, 0o644)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.set_inheritable(handle, True)
                os.execvpe(args.command[0], args.command, os.environ | {"CUDA_VISIBLE_DEVICES": devices[number]})
            os.close(handle)
        time.sleep(0.2)


if __name__ == "__main__":
    main(sys.argv[1:])
