"""Tables and figures of MERGETUNE runs: `python -m mergetune.report DIR... [--out DIR] [--figures]`."""

import argparse
import sys
from pathlib import Path

from dassl.report.base2new import base2new, to_text, write_base2new
from dassl.report.methods import Methods
from dassl.report.results import load_results
from dassl.utils import UserError, get_logger

METHODS = Methods(
    labels={
        ("ZeroshotCLIP", None): "ZeroshotCLIP",
        ("CoOp", None): "CoOp",
        ("CoOp_LMC", "continued"): "CoOp continued",
        ("CoOp_Average", None): "Average",
        ("CoOp_LMC", "released"): "CoOp_LMC (released)",
        ("CoOp_LMC", "paper"): "CoOp_LMC (paper)",
    },
    aliases={"KgCoOp_COOP_LMC": "CoOp_LMC"},
)

EPILOG = """\
The table: accuracy on base and new classes and their harmonic mean H, for each data set and on average,
mean and population deviation over seeds. H of averages (as papers print it) and the mean of the data
sets' H are both given. Only evaluation runs count; where one cell was evaluated twice, the newest run
does, with a warning. What is missing is shown as a dash, and a method that lacks a data set gets no
average.

Figures: for each stage-2 method, loss and accuracy on the path zero-shot -> ours -> fine-tuned.

Files: OUT/tables/base2new.md, OUT/tables/base2new.csv; with --figures OUT/figures/path_METHOD_SPACE.png
and .csv.

examples:
  python -m mergetune.report output
  python -m mergetune.report output/toy /more/runs --out report --figures
"""


def parse_args(argv=None):
    """Command line -> Namespace with folders, out, figures."""
    parser = argparse.ArgumentParser(
        prog="python -m mergetune.report",
        description="Print the base-to-new table of finished runs and write it as Markdown and CSV.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="DIR",
        help="folder of runs; every results.json anywhere below it is read",
    )
    parser.add_argument("--out", metavar="DIR", help="where tables/ and figures/ go (default: the first DIR)")
    parser.add_argument("--figures", action="store_true", help="draw the path curves too, from path.json files")
    return parser.parse_args(argv)


def report(folders, out, figures=False):
    """Prints the table, writes it below `out`, draws the figures if asked -> list of Paths written."""
    records = load_results(*folders)
    if not records:
        raise UserError(f"No finished run: no readable results.json below {', '.join(map(str, folders))}")
    found = base2new(records, METHODS)
    log = get_logger()
    log.info(to_text(found))
    written = write_base2new(found, Path(out, "tables"))
    if figures:
        from dassl.report.figures import path_figures

        drawn = path_figures(folders, Path(out, "figures"), METHODS)
        if not drawn:
            log.warning("Warning: no figure: none of the runs has a path.json")
        written += drawn
    log.info("\nWrote " + "\n      ".join(map(str, written)))
    return written


def main(argv=None):
    """Entry point; bad input ends with one line on stderr and exit code 1."""
    args = parse_args(argv)
    try:
        report(args.folders, args.out or args.folders[0], args.figures)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
