"""Tables and figures of MERGETUNE and ConDU: `python -m mergetune.report DIR... [--protocol NAME...] [--out DIR]`."""

import argparse
from functools import partial
from pathlib import Path

from dassl.engine.build import published_files
from dassl.merging.records import METHODS as MERGING
from dassl.report.figures.all import FIGURES, all_figures
from dassl.report.methods import Methods
from dassl.report.page import write_page
from dassl.report.protocols.against import against_report
from dassl.report.protocols.base2new import backbones_report, base2new_report
from dassl.report.protocols.fewshot import fewshot_report
from dassl.report.protocols.mtil import PROTOCOLS as STREAMS
from dassl.report.protocols.mtil import mtil_report
from dassl.report.protocols.paired import paired_report
from dassl.report.protocols.paths import barriers_report
from dassl.report.protocols.sweeps import sweeps_report
from dassl.report.protocols.transfer import PROTOCOLS as TRANSFERS
from dassl.report.protocols.transfer import transfer_report
from dassl.report.records import NoRuns, load_results
from dassl.report.table import Report
from dassl.utils import UserError, check_availability, command_parser, get_logger
from dassl.utils.torchrun import run_command

log = get_logger()

PRESETS = ("released", "paper")
# What streams of tasks are evaluated with beside zero-shot CLIP, in printed order.
ON_STREAMS = {
    "sequential": "Sequential fine-tuning",
    "average": "Weight average",
    "wise_ft": "WiSE-FT",
    "ConDU": "ConDU",
    "experts": "Separate experts",
}
MERGES = {name: method.title for name, method in MERGING.items()}
MERGES |= {"average": "average", "task_arithmetic": "task arithmetic"}
MERGES |= {"wise_ft": "weight ens.", "output_ensemble": "output ens."}
DATASETS = (
    *("ImageNet", "Caltech101", "OxfordPets", "StanfordCars", "OxfordFlowers", "Food101", "FGVCAircraft"),
    *("SUN397", "DescribableTextures", "EuroSAT", "UCF101"),
    *("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR", "ObjectNet"),
)


def methods() -> Methods:
    """What tables call the registered trainers, and which of them continues which: as their classes say."""
    from mergetune.stage2 import aliases, label_of, method_pairs  # late: the trainers need PyTorch

    pairs = method_pairs()
    labels = {("ZeroshotCLIP", ""): "ZeroshotCLIP", ("ZeroshotCLIP2", None): "ZeroshotCLIP2"}
    for pair in pairs.values():
        labels |= {(pair.taught_by, None): label_of(pair.taught_by)} if pair.taught_by else {}
        labels[pair.stage1, None] = pair.label
        if pair.name == pair.label:  # the control of stage 1, once
            labels[pair.stage2, "continued"] = f"{pair.label} continued"
        labels[f"{pair.stage1}_Average", None] = f"{pair.label} average"
        labels |= {(pair.stage2, preset): f"{pair.stage2} ({preset})" for preset in PRESETS}
    return Methods(
        labels=labels | {(trainer, None): name for trainer, name in ON_STREAMS.items()},
        short={pair.stage1: pair.label for pair in pairs.values() if pair.label != pair.stage1},
        aliases=aliases() | {"zero_shot": "ZeroshotCLIP"},
        merges=MERGES,
        stage1={pair.stage2: pair.stage1 for pair in pairs.values()},
        settings={"LAMBDA": "lambda", "BETA": "beta", "TAU": "tau", "NUM_SAMPLES": "N", "epochs": "epochs"},
        datasets=DATASETS,
        published=published_files(),
    )


# What the command can print, in order: name -> function of records, without what is printed of folders.
REPORTS = {
    "barriers": None,
    **{name: partial(transfer_report, protocol=name) for name in TRANSFERS},
    "fewshot": fewshot_report,
    "sweep": sweeps_report,
    "backbones": backbones_report,
    **{name: partial(mtil_report, protocol=name) for name in STREAMS},
    "paired": paired_report,
    "base2new": base2new_report,
}

EPILOG = """\
Every table for which there are runs is printed: mean and population deviation over seeds, what is missing as a
dash, and a mark where a method is below zero-shot CLIP.
  base2new   base and new classes and their harmonic mean H, each data set and average; both H of averages (as
             papers print it) and the mean of the data sets' H; the accuracy on other data sets where evaluations
             have it (TEST.OTHERS), what of zero-shot CLIP's is forgotten, and which epoch the weights are of
  cross      trained on one data set: its own test set, each target, Avg-C
  dg         the same on shifted test sets, Avg-D
  robust     the same after training on all images, with the alpha of merged models
  fewshot    accuracy on all classes by shots
  sweep      runs that differ in one or two settings; the cost of training relative to stage 1
  backbones  base2new averages by backbone, gain over stage 1
  paired     each stage-2 method beside its stage 1 and controls: difference in H, and in the accuracy on other
             data sets, over seeds, with its interval
  mtil       streams of tasks: Transfer, Average, Last; by task, over many orders, ablations, accuracy matrices
  mtil_agnostic   the same with the task unknown at test time, for each label space, known experts beside
  barriers   from the path cards: how far straight lines between the solutions rise over their ends
Only evaluation runs count; where one cell was evaluated twice, the newest run does, with a warning. A method
that lacks a data set gets no average.

Figures, with --figures all for which there are runs, with --figure NAME... those alone and no tables:
  path       for each stage-2 method, loss and accuracy on the path zero-shot -> ours -> fine-tuned
  change     accuracy on that path less zero-shot CLIP's, on other data sets too, for half a page
  plane      contours of the loss on the plane through the three
  fewshot    accuracy by shots
  sweep      base, new, H and others over one setting
  others     base against others, a point a method
  epochs     training loss, training and validation accuracy over epochs
  heatmap    for each stream and method, the accuracy after each task on each task
  orders     Transfer, Average and Last of each order of the same tasks
  tsne       image features of experts beside those of their reconstructions, where a run left tsne.json

With --against paper, published numbers stand beside ours: in the band or out of it, and which recorded facts differ.

Files: OUT/tables/NAME.md and .csv, with --latex .tex; OUT/figures/*.png, each with its numbers as .csv;
with --html FILE one page with all of it, which filters and links each cell to the facts of its runs.

examples:
  python -m mergetune.report output
  python -m mergetune.report output --figure path epochs
  python -m mergetune.report output/toy /more/runs --protocol base2new cross --out report --figures --latex
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line -> Namespace with folders, protocol, out, figures, figure, latex, against, html."""
    about = "Print the tables of finished runs and write them as Markdown and CSV."
    parser = command_parser("mergetune.report", about, EPILOG)
    add = parser.add_argument
    folders = "folder of runs; every results.json anywhere below it is read"
    add("folders", type="path", nargs="+", metavar="DIR", help=folders)
    add("--protocol", nargs="+", metavar="NAME", help=f"only these tables, of {', '.join(REPORTS)} (default: all)")
    add("--out", type="path", metavar="DIR", help="of tables/ and figures/ (default: the first DIR)")
    add("--figures", action="store_true", help="draw every figure for which there are runs")
    add("--figure", nargs="+", metavar="NAME", help=f"draw these alone, and no tables, of {', '.join(FIGURES)}")
    add("--latex", action="store_true", help="write the tables as LaTeX too")
    add("--against", choices=["paper"], help="published numbers beside ours")
    add("--html", type="path", metavar="FILE", help="one self-contained page of tables and figures")
    return parser.parse_args(argv)


def reports(records: list[dict], folders: list[str], protocols: list[str] | None, known: Methods) -> list[Report]:
    """The Reports for which there are runs. NoRuns if there is none, or none of one that was asked for."""
    made, reasons = [], []
    for name in protocols or ():
        check_availability(name, list(REPORTS), "--protocol")
    for name, make in ((name, make) for name, make in REPORTS.items() if not protocols or name in protocols):
        try:
            made.append(make(records, methods=known) if make else barriers_report(folders, known))
        except NoRuns as error:
            reasons.append(str(error))
            # a source model is trained as `cross`, also where only `dg` evaluates it
            evaluated = name == "cross" and any((r["protocol"], r.get("kind")) == ("dg", "eval") for r in records)
            if not protocols and not evaluated and any(record["protocol"] == name for record in records):
                log.warning(f"Warning: {error}")
    if (protocols and reasons) or not made:
        raise NoRuns(" ".join(reasons))
    return made


def compared(made: list[Report], records: list[dict], known: Methods) -> list[Report]:
    """The reports of published numbers beside ours; a table that has none is said to have none."""
    comparisons = []
    for one in (one for one in made if {"dataset", "task"} & {*one.columns}):
        try:
            comparisons.append(against_report(one, records, known))
        except NoRuns as error:
            log.info(f"{error}\n")
    return comparisons


def report(args: argparse.Namespace) -> list[Path]:
    """Prints the tables, writes them, draws the figures and the page that `args` ask for -> what was written."""
    left_out: list[Path] = []
    records = load_results(*args.folders, left_out=left_out)
    if not records:
        raise UserError(f"No finished run: no readable results.json below {', '.join(map(str, args.folders))}")
    known, out = methods(), Path(args.out or args.folders[0])
    tables_too = not args.figure or args.figures or args.protocol or args.against or args.html or args.latex
    made = reports(records, args.folders, args.protocol, known) if tables_too else []
    beside = compared(made, records, known) if args.against else []
    written, drawn = [], []
    for one in made + beside:
        if left_out:
            one.legend.append(f"left out, for they could not be read: {', '.join(map(str, left_out))}")
        log.info(one.text() + "\n")
        written += one.write(out / "tables", args.latex)
    if args.figure or args.figures or args.html:
        drawn = all_figures(args.folders, records, out / "figures", known, None if args.figures else args.figure)
    if args.figures and not drawn:
        log.warning(f"Warning: no figure: no run has what one of {', '.join(FIGURES)} needs")
    written += drawn
    if args.html:
        written.append(write_page(args.html, made[::-1] + beside, drawn, records))  # what a terminal shows last
    log.info("Wrote " + "\n      ".join(map(str, written)))
    return written


def main(argv: list[str] | None = None) -> None:
    """One command line."""
    report(parse_args(argv))


def __getattr__(name: str) -> Methods:
    if name == "METHODS":
        return methods()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    run_command(main)
