"""Mean and spread of the results in the logs of several runs, one sub-folder a run (usually a seed).

    python parse_test_res.py output/base2new/train_base/caltech101/shots_16/CoOp/vit_b16_ep100_ctxv1
    python parse_test_res.py --test-log output/base2new/test_new/caltech101/shots_16/CoOp/vit_b16_ep100_ctxv1
    python parse_test_res.py --multi-exp FOLDER_OF_SUCH_FOLDERS

Reads the logs of every Dassl: after the line that ends training ("Finish training", "Finished training",
"Finished training in NAME") the last number of each run counts. `--test-log` is for runs without training.
Needs nothing but Python.
"""

import argparse
import math
import re
import statistics
import sys
import warnings
from pathlib import Path

MOST_BYTES = 1 << 30
LARGEST = 1e9  # a damaged log may hold any number, and means of infinite ones are none
TRAINED = re.compile(r"Finish training|Finished training( in .*)?")  # the whole line that says that training is over
RESULT = re.compile("=> result")


def read_run(folder: Path, keyword: str, signal: re.Pattern) -> float | None:
    """Result of one run: in its last log that has one, the last `* KEYWORD: NUMBER%` behind a line that is the signal.
    log-DATE.txt is before log.txt, log.txt-DATE after it."""
    pattern = re.compile(rf"\* {re.escape(keyword)}: ([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)%", re.ASCII)
    log, result = folder / "log.txt", None
    if not log.is_file():
        sys.exit(f'error: No file found at "{log}"')
    for path in filter(Path.is_file, [*sorted(folder.glob("log-*.txt")), log, *sorted(folder.glob("log.txt-*"))]):
        if path.stat().st_size > MOST_BYTES:
            sys.exit(f'error: "{path}" has {path.stat().st_size} bytes, expected a log of at most {MOST_BYTES}')
        armed = False
        for line in map(str.strip, path.read_text(errors="replace").splitlines()):
            armed = armed or bool(signal.fullmatch(line))
            match = pattern.search(line)
            if armed and match and abs(number := float(match.group(1))) < LARGEST:
                result = number
    return result


def subfolders(directory: Path) -> list[Path]:
    """Sub-folders by name, hidden ones left out."""
    if not directory.is_dir():
        sys.exit(f'error: "{directory}" is not a folder')
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def summarise(directory: Path, keyword: str, signal: re.Pattern, ci95: bool) -> float:
    """Print one line a run and the summary of `directory`: the mean with the population standard deviation, or with
    half the width of its 95 % interval; returns the mean."""
    print(f"Parsing files in {directory}")
    values = []
    for folder in subfolders(directory):
        value = read_run(folder, keyword, signal)
        if value is None:
            warnings.warn(f'No result in "{folder / "log.txt"}": left out', stacklevel=2)
            continue
        print(f"file: {folder / 'log.txt'}. {keyword}: {value:.2f}%. ")
        values.append(value)
    if not values:
        sys.exit(f"error: Nothing found in {directory}")
    mean, deviation = statistics.fmean(values), statistics.pstdev(values)
    spread = 1.96 * deviation / math.sqrt(len(values)) if ci95 else deviation
    print(f"===\nSummary of directory: {directory}\n* {keyword}: {mean:.2f}% +- {spread:.2f}%\n===")
    return mean


def main(argv: list[str] | None = None) -> None:
    """Run one command line; what is not there ends it with one line and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="folder that holds one sub-folder a run")
    parser.add_argument("--ci95", action="store_true", help="95 %% confidence interval instead of the deviation")
    parser.add_argument("--test-log", action="store_true", help="logs of evaluations, not of training runs")
    parser.add_argument("--multi-exp", action="store_true", help="directory holds folders of runs")
    parser.add_argument("--keyword", default="accuracy", help="which result: accuracy, error, macro_f1")
    args = parser.parse_args(argv)
    folders = subfolders(args.directory) if args.multi_exp else [args.directory]
    means = [summarise(f, args.keyword, RESULT if args.test_log else TRAINED, args.ci95) for f in folders]
    if not means:
        sys.exit(f"error: Nothing found in {args.directory}")
    if args.multi_exp:
        print(f"Average performance\n* {args.keyword}: {statistics.fmean(means):.2f}%")


if __name__ == "__main__":
    main()
