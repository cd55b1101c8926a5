"""The same targets and verdicts, with inputs that libFuzzer makes: it sees which branches of ours each one reached.

    pip install atheris
    python tests/fuzz/guided.py
    python tests/fuzz/guided.py --inputs 2000 --only yaml split --seed 3

An input of libFuzzer is a number (2 bytes), which draws the files of a target and says which of them is replaced, and
then the new content of that file. Beside run.py, whose changes know the formats, this one finds its way into parsers
that are ours: a reader that starts a process is left out. Prints and exits as run.py does, without its count of lines.
"""

import argparse
import gc
import importlib.util
import os
import sys
from pathlib import Path
from random import Random
from types import FunctionType

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]
os.environ["OMP_NUM_THREADS"] = "1"

from tests.fuzz.campaign import Report, Worker, campaign  # noqa: E402
from tests.fuzz.oracle import Files, Target, Watch, confine, judge  # noqa: E402
from tests.fuzz.run import show  # noqa: E402
from tests.fuzz.targets import TARGETS  # noqa: E402

LONGEST = 1 << 14  # bytes that libFuzzer makes up: larger files are what run.py changes in places
SEEDS = 200  # inputs that it starts from


def drawn(target: Target, number: int) -> tuple[Files, str]:
    """The files that a number stands for, and the name of the one to replace."""
    try:
        files = target.make(Random(number))
    except RecursionError:  # the harness's own: a tree too deep to be written
        files = target.make(Random(0))
    return files, sorted(files)[number % len(files)]


def seeds(target: Target, folder: Path) -> None:
    """Inputs that stand for files as the target makes them."""
    for number in range(SEEDS):
        files, name = drawn(target, number)
        content = files[name]
        if isinstance(content, bytes) and len(content) < LONGEST:
            (folder / f"{number:05}").write_bytes(number.to_bytes(2, "big") + content)


class Guided(Worker):
    """A fuzzing process whose inputs come from libFuzzer."""

    def run(self, start: int, end: int) -> None:
        import atheris

        os.chdir(self.folder.parent)
        for stream in (1, 2):  # what readers and libFuzzer say
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        for function in [found for found in gc.get_objects() if isinstance(found, FunctionType)]:
            if function.__code__.co_filename.startswith(tuple(str(ROOT / module) for module in self.target.covers)):
                atheris.instrument_func(function)
        self.watch = Watch()
        confine(self.watch)
        self.number = start
        corpus = self.folder.parent / "corpus"
        corpus.mkdir(exist_ok=True)
        seeds(self.target, corpus)
        flags = {"runs": end - start, "seed": self.seed + start + 1, "max_len": LONGEST, "timeout": 0}
        flags |= {"rss_limit_mb": 0, "detect_leaks": 0, "verbosity": 0}
        atheris.Setup([sys.argv[0], *(f"-{name}={value}" for name, value in flags.items()), str(corpus)], self.guided)
        atheris.Fuzz()  # ends the process

    def guided(self, data: bytes) -> None:
        """One input of libFuzzer."""
        self.number += 1
        _, *tally = self.counts.get()
        self.counts.set(self.number, *tally)
        files, name = drawn(self.target, int.from_bytes(data[:2], "big"))
        files[name] = data[2:]
        self.log_metrics(self.number - 1, files, judge(self.target, files, self.folder, self.watch))


def main(argv: list[str] | None = None) -> int:
    able = [name for name, target in TARGETS.items() if not target.child]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--inputs", type=int, default=5000, help="of each target (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--only", nargs="+", default=able, metavar="TARGET", choices=able, help=", ".join(able))
    add("--saved", default=str(ROOT / "output" / "fuzz"), metavar="DIR", help="where failing inputs go")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("atheris") is None:
        parser.error("it needs atheris: pip install atheris (built for Linux on x86-64)")
    reports: list[Report] = []
    for name in args.only:
        reports.append(campaign(TARGETS[name], args.inputs, args.seed, Path(args.saved), Guided))
    show(reports)
    return 1 if any(report.failures for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
