"""The backbone table: base-to-new averages of each method on each backbone, and what stage 2 gains over stage 1."""

from dassl.report.base2new import AVERAGES, PROTOCOL, SUBSETS, base2new
from dassl.report.grid import with_accuracy
from dassl.report.methods import NONE, backbone_of, row_names
from dassl.report.results import NoRuns, group_by, select
from dassl.report.sheet import csv_lines, method_sheet, row_notes
from dassl.report.stats import Summary, summarise
from dassl.report.tables import Table, show, show_n

GAIN = "gain in H"


def backbones(records, methods=NONE):
    """Records -> [(Base2New of one backbone, Row, {quantity: Summary})]. NoRuns if there is but one backbone."""
    runs = with_accuracy(records, protocol=PROTOCOL, subset=SUBSETS)
    groups = group_by(select(runs, kind="eval"), backbone_of)
    if len(groups) < 2:
        raise NoRuns(f"No backbones table: base-to-new evaluations on {len(groups)} backbones, expected 2 or more")
    lines = []
    for group in groups.values():
        found = base2new(group, methods)
        lines += [(found, row, found.average(row) | {GAIN: _gain(found, row)}) for row in found.rows]
    return sorted(lines, key=lambda line: methods.rank(line[1]))


def _gain(found, row):
    """H of averages over that of the stage-1 method -> Summary. Deviation and n: of the seeds' differences."""
    first = found.methods.stage1.get(row.trainer)
    stage1 = [r for r in found.rows if r.trainer == first and r.shots == row.shots and not r.merge]
    if len(stage1) != 1 or row.merge:
        return Summary(None)
    ours, theirs = (found.average(r)["H of averages"] for r in (row, stage1[0]))
    if not (ours and theirs):
        return Summary(None)
    mine, other = found.h_by_seed(row), found.h_by_seed(stage1[0])
    paired = summarise({seed: mine[seed] - other[seed] for seed in mine if seed in other})
    return paired._replace(mean=ours.mean - theirs.mean)


def backbones_sheet(records, methods=NONE):
    """Records -> Sheet with one table, a line for each method and backbone."""
    found = backbones(records, methods)
    names = row_names([row._replace(backbone="") for _, row, _ in found])
    rows, lines, notes = [], [], []
    for own, row, cells in found:
        name, gain = names[row._replace(backbone="")], cells[GAIN]
        averages = [cells[q] for q in AVERAGES]
        sign = "+" if gain and gain.mean >= 0 else ""
        risen = sign + show(gain) if row.trainer in own.methods.stage1 else ""
        gaps = ", ".join(own.missing(row))
        notes += row_notes(f"{name}, {row.backbone}", gaps and f"not averaged where a data set is missing: {gaps}")
        rows.append([name, row.backbone, str(len(own.datasets)), *map(show, averages), risen, show_n(averages)])
        lines += csv_lines({row: name}, lambda row, cells=cells: {(q,): summary for q, summary in cells.items()})
    columns = ["method", "backbone", "data sets", *AVERAGES, GAIN, "n"]
    return method_sheet(
        "backbones",
        "Backbones, base-to-new accuracy in percent",
        [Table("Average over the data sets of each backbone", columns, rows, notes)],
        [f"{GAIN}: H of averages of a stage-2 method minus that of its stage 1; deviation of the seeds' differences"],
        ["quantity"],
        lines,
    )
