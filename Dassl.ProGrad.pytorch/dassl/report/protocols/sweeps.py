"""Sweeps: base-to-new runs of one method that differ in one or two of its settings.

A run's settings are those of its `lmc` field and the epochs it was trained for. Around the preset's own values
(those of the runs that changed nothing, or else the most common ones) every set of keys that changed together
makes one table: a list with the cost of training, or, for two keys, a matrix of H.
"""

from collections import Counter
from dataclasses import dataclass

from dassl.report import table
from dassl.report.frame import Row, Summary, with_accuracy
from dassl.report.methods import CHANGED, NONE, Methods, backbone_of, merge_name, plain_row, row_names
from dassl.report.protocols.base2new import AVERAGES, OTHERS, SUBSETS, Base2New, base2new
from dassl.report.protocols.base2new import PROTOCOL as BASE2NEW
from dassl.report.records import NoRuns, group_by, newest_each, select, without_repeats
from dassl.report.table import MISSING, MULTIPLY, show

PROTOCOL = "sweep"
EPOCHS = "epochs"
COST_LEGEND = [
    "train s: wall clock of a training run, start-up, validation and final test included",
    f"{MULTIPLY} stage 1: that time over the stage-1 run's, same data sets and seeds; an epoch: each by its epochs",
]


@dataclass
class Sweep:
    """One set of keys and the runs that differ in no other. rows: of `grid`, in the order of their settings;
    costs: {setting: (mean seconds of a run, relative to stage 1 whole runs and single epochs, None without any)}."""

    name: str
    keys: tuple
    rows: list
    grid: Base2New
    costs: dict

    def values(self, row: Row) -> tuple:
        """A row's values of the keys."""
        return tuple(dict(row.setting).get(key) for key in self.keys)


def sweeps(records: list[dict], methods: Methods = NONE) -> list[Sweep]:
    """From records of `load_results`, of each method one for each set of keys that is not part of a larger one. NoRuns
    if nothing varies."""
    runs = [r for r in records if _setting(r) and r["protocol"] in (PROTOCOL, BASE2NEW) and not merge_name(r, methods)]
    result, order = [], [*methods.settings]
    for family, group in group_by(runs, key=lambda r: plain_row(r, methods)).items():
        evaluations = with_accuracy(group, kind="eval", subset=SUBSETS)
        if swept := select(evaluations, protocol=PROTOCOL):  # beside it base-to-new runs at its own data sets and seeds
            cells = {(r["dataset"], r["seed"]) for r in swept}
            lent = [r for r in select(evaluations, protocol=BASE2NEW) if (r["dataset"], r["seed"]) in cells]
            evaluations = without_repeats(swept, lent, lambda r: (_setting(r), r["dataset"], r["subset"], r["seed"]))
        if len({_setting(r) for r in evaluations}) < 2:
            continue
        protocols = PROTOCOL, BASE2NEW
        grid = base2new(evaluations, methods, protocols, lambda r, family=family: family._replace(setting=_setting(r)))
        centre = _centre(evaluations)
        changes = {row: frozenset(k for k, v in row.setting if v != centre.get(k)) for row in grid.rows}
        sets = {keys for keys in changes.values() if keys}
        whole = (keys for keys in sets if not any(keys < other for other in sets))
        costs = _costs(family, select(group, kind="train"), records, methods)
        for keys in sorted(whole, key=lambda keys: (len(keys), sorted(keys))):
            named = tuple(sorted(keys, key=lambda k: (order.index(k) if k in order else len(order), k)))
            rows = [row for row, changed in changes.items() if changed <= keys]
            sweep = Sweep(row_names([family])[family], named, rows, grid, costs)
            rows.sort(key=lambda row: [*map(_order, sweep.values(row))])
            result.append(sweep)
    if not result:
        raise NoRuns(
            f"No sweep table: of {len(records)} results, {len(runs)} say their settings, and no method was evaluated "
            "with more than one"
        )
    return result


def _setting(record):
    """((key, value), ...) of a run, or () if it does not say."""
    lmc = record.get("lmc")
    if not lmc:
        return ()
    values = {key: value for key, value in lmc.items() if isinstance(value, int | float | str)}
    return tuple(sorted(values.items())) + ((EPOCHS, epochs_asked(record)),)


def epochs_asked(record: dict) -> float | None:
    """Epochs that were asked for: the epoch that validation chose is no setting. None if the file does not say."""
    chosen = str(record.get("chosen_on") or "")
    if record["kind"] == "eval" and chosen.startswith("epoch "):
        return record.get("epochs")
    asked = record.get("max_epoch")
    return record.get("epochs") if asked is None and chosen == "last_step" else asked


def _order(value):
    """Sort key among numbers, words and None."""
    return (isinstance(value, str), value is not None, value if value is not None else 0)


def _centre(evaluations):
    """The settings around which a sweep varies -> dict."""
    plain = {_setting(r) for r in evaluations if CHANGED not in r["preset"]}
    if len(plain) == 1:
        return dict(plain.pop())
    pairs = [pair for setting in {_setting(r) for r in evaluations} for pair in setting]
    counts = Counter(pairs).items()  # of one key the most common stands last
    return dict(pair for pair, _ in sorted(counts, key=lambda item: (item[1], str(item[0][1]))))


def _costs(family, training, records, methods):
    """`costs` of a Sweep by the wall clock of training runs, beside stage 1 on the same data sets and seeds."""
    trained = select(records, kind="train", protocol=(PROTOCOL, BASE2NEW))
    first = methods.stage1.get(family.trainer), family.backbone, family.shots
    stage1 = [r for r in trained if (methods.trainer(r), backbone_of(r), r.get("shots")) == first]
    base, costs = _seconds(stage1), {}
    for setting, group in group_by(training, _setting).items():
        seconds = _seconds(group)
        shared = [cell for cell in seconds if cell in base]
        ratios = [sum(seconds[c][k] for c in shared) / sum(base[c][k] for c in shared) for k in (0, 1) if shared]
        if seconds:
            ratios = ratios or [None, None]
            costs[setting] = sum(run for run, _ in seconds.values()) / len(seconds), *ratios
    return costs


def _seconds(training):
    """{(data set, seed): (seconds of the run, seconds of an epoch)} of the newest training runs that say both."""
    timed = [r for r in training if min(r.get("wall_s") or 0, r.get("epochs") or 0) > 0]
    newest = newest_each(timed, key=lambda r: (r["dataset"], r["seed"]), what="training runs")
    return {(r["dataset"], r["seed"]): (r["wall_s"], r["wall_s"] / r["epochs"]) for r in newest}


def _value(value):
    return MISSING if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)


def _cost(cost, missing=MISSING):
    seconds, *ratios = cost or [None] * 3
    shown = [missing if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return [missing if seconds is None else f"{seconds:.1f}", *shown]


def sweep_tables(sweep: Sweep, methods: Methods) -> list[table.Table]:
    """Where two keys vary a matrix of H of averages, with others one of base and of these too; else one with
    a line a setting and its cost."""
    grid, where = sweep.grid, f"average over {table.data_sets(sweep.grid.datasets)}"
    names = [methods.settings.get(key, key.lower()) for key in sweep.keys]
    values = {row: [*map(_value, sweep.values(row))] for row in grid.rows}
    words = {row: ", ".join(map(" ".join, zip(names, shown, strict=True))) for row, shown in values.items()}
    of_sets = grid.others_notes(words)
    if len(names) == 2:
        matrices = ("H of averages", *(["base", *grid.of_others] if of_sets else []))
        return [_matrix(sweep, q, names, where, of_sets if q == OTHERS else []) for q in matrices]
    costs = [sweep.costs.get(row.setting) for row in sweep.rows]
    head = ["train s", f"{MULTIPLY} stage 1", f"{MULTIPLY} stage 1 an epoch"] if any(costs) else []
    quantities, rows, notes = [*AVERAGES, *grid.of_others], [], []
    for row, cost in zip(sweep.rows, costs, strict=True):
        averages, gaps = [grid.average(row)[q] for q in quantities], grid.gaps(row)
        notes += table.row_notes(words[row], gaps and f"not averaged where a data set is missing: {gaps}")
        rows.append([*values[row], *map(show, averages), *(_cost(cost) if head else []), table.show_n(averages)])
    title = f"{sweep.name}: {', '.join(names)} ({where})"
    return [table.Table(title, [*names, *quantities, *head, "n"], rows, notes + of_sets)]


def _matrix(sweep, quantity, names, where, more):
    """H of averages, say: the first key downwards, the second across."""
    cells = {sweep.values(row): sweep.grid.average(row)[quantity] for row in sweep.rows}
    down, across = (sorted({pair[k] for pair in cells}, key=_order) for k in (0, 1))
    rows = [[_value(a), *(str(show(cells.get((a, b), Summary(None)))) for b in across)] for a in down]
    title = f"{sweep.name}: {quantity} by {names[0]} and {names[1]} ({where})"
    counts = sorted({cell.n for cell in cells.values() if cell})
    notes = [f"n: {' to '.join(map(str, counts[:: len(counts) - 1 or 1]))}, seeds behind a cell."] if counts else []
    return table.Table(title, [names[0], *(f"{names[1]} {_value(b)}" for b in across)], rows, notes + more)


def sweeps_report(records: list[dict], methods: Methods = NONE) -> table.Report:
    """A table for each set of keys that varies together. NoRuns if nothing varies."""
    kept, lines = sweeps(records, methods), []
    keys = list(dict.fromkeys(key for sweep in kept for key in sweep.keys))
    for sweep in kept:
        for row in sweep.rows:
            values, averages = [_value(dict(row.setting).get(key)) for key in keys], sweep.grid.average(row)
            cells = {(*values, q): averages[q] for q in (*AVERAGES, *sweep.grid.of_others)}
            lines += table.csv_lines(sweep.name, row, cells, _cost(sweep.costs.get(row.setting), missing=""))
    return table.method_report(
        PROTOCOL,
        "Sweeps, base-to-new accuracy in percent",
        [one for sweep in kept for one in sweep_tables(sweep, methods)],
        COST_LEGEND if any(sweep.costs for sweep in kept) else [],
        [*keys, "quantity"],
        lines,
        ["train_s", "x_stage1", "x_stage1_epoch"],
    )
