"""Tables of the paper as data: configs/tables/NAME.yaml -> the cells of its grid.

The yaml says `protocol`, `methods` (pairs of `jobs.py`; FT and LoRA of ConDU's streams), `presets` of stage 2,
`seeds`, and `datasets` or, of streams, `orders`: {toy, public}, each a list or `all`. Or it says `sweeps`, files of
configs/sweeps, which have data sets and seeds of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scripts.jobs import PRESETS, PROTOCOLS, PUBLIC, STREAMS, TUNINGS, Step, cell_steps, stream, toy_sets
from scripts.main_job import grid, without_repeats
from scripts.sweep import read_sweep
from scripts.sweep import steps as sweep_steps

ROOT = Path(__file__).resolve().parent.parent.parent
TABLES, SWEEPS = ROOT / "configs" / "tables", ROOT / "configs" / "sweeps"
KINDS = {"protocol": str, "methods": list, "presets": list, "datasets": dict, "orders": dict, "seeds": list}
WORLDS = ("toy", "public")


@dataclass(frozen=True)
class Table:
    """One yaml. datasets, orders: by world, a world that the table does not have left out."""

    name: str
    protocol: str = ""
    methods: list[str] = field(default_factory=list)
    presets: list[str] = field(default_factory=lambda: list(PRESETS))
    datasets: dict[str, list[str]] = field(default_factory=dict)
    orders: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    sweeps: list[str] = field(default_factory=list)


def names() -> list[str]:
    """The tables there are."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def read_table(path: str | Path) -> Table:
    """The table of a yaml file. UserError for a field or a name that is missing, unknown or of another kind."""
    from dassl.config import read_yaml
    from dassl.utils import UserError, check_availability

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such table; configs/tables has {', '.join(names())}")
    tree = read_yaml(path)
    kinds = {"sweeps": list} if "sweeps" in tree else KINDS
    for key, value in tree.items():
        check_availability(key, list(kinds), f"{path}: a field")
        if not isinstance(value, kinds[key]):
            raise UserError(f"{path}: {key} is {value!r}, expected a {kinds[key].__name__}")
    if "sweeps" not in tree:
        check_grid(path, tree)
    for name in tree.get("sweeps", []):
        check_availability(name, [file.stem for file in SWEEPS.glob("*.yaml")], f"{path}: a sweep")
    return Table(path.stem, **tree)


def check_grid(path: Path, tree: dict) -> None:
    """Refuse what a table of a protocol lacks, and names that it does not have. `all` becomes the names."""
    from dassl.utils import UserError, check_availability

    check_availability(tree.get("protocol"), [*PROTOCOLS, *STREAMS], f"{path}: protocol")
    of_streams = tree["protocol"] in STREAMS
    where = "orders" if of_streams else "datasets"
    needed = {"protocol", "methods", "seeds", where}
    if lacking := sorted(needed - tree.keys()):
        raise UserError(f"{path}: {', '.join(lacking)} missing; a table of {tree['protocol']} has {sorted(needed)}")
    if spare := tree.keys() - needed - (set() if of_streams else {"presets"}):
        raise UserError(f"{path}: a table of {tree['protocol']} has no {', '.join(sorted(spare))}")
    for kind, known in (("methods", TUNINGS if of_streams else PROTOCOLS[tree["protocol"]]), ("presets", PRESETS)):
        for name in tree.get(kind, []):
            check_availability(name, list(known), f"{path}: {kind}")
    for seed in tree["seeds"]:
        if not isinstance(seed, int) or seed < 1:
            raise UserError(f"{path}: seed {seed!r}, expected a positive whole number")
    for world, sets in tree[where].items():
        check_availability(world, list(WORLDS), f"{path}: {where} of")
        tree[where][world] = check_subjects(path, world, sets, of_streams)


def check_subjects(path: Path, world: str, sets, of_streams: bool) -> list[str]:
    """The data sets or orders of a world, each known."""
    from dassl.utils import UserError, check_availability
    from scripts.condu.orders import tasks_of

    if sets == "all" and not of_streams:
        return toy_sets() if world == "toy" else list(PUBLIC)
    if not isinstance(sets, list):
        raise UserError(f"{path}: {world} is {sets!r}, expected a list" + (" or all" if not of_streams else ""))
    known = [file.stem for file in (ROOT / "configs" / "datasets").glob("*.yaml")]
    for name in sets:
        if of_streams:
            tasks_of(str(name))
        else:
            check_availability(name, known, f"{path}: a data set")
    return [str(name) for name in sets]


def table_plan(table: Table) -> Callable:
    """`plan(args)` -> the cells of a table, those of a command line's own data sets and seeds if it names any."""

    def plan(args) -> list[list[Step]]:
        if table.sweeps:
            return without_repeats([cell for name in table.sweeps for cell in sweep_cells(table, name, args)])
        if table.protocol in STREAMS:
            return stream_cells(table, args)
        datasets, seeds = grid(args, known_world(table, table.datasets, args), table.seeds)
        return without_repeats(
            [
                [step for name in table.methods for step in own(table, name, dataset, seed, args)]
                for seed in seeds
                for dataset in datasets
            ]
        )

    return plan


def own(table: Table, name: str, dataset: str, seed: int, args) -> list[Step]:
    """The steps of one method pair."""
    return cell_steps(name, table.protocol, dataset, seed, args.set, table.presets)


def known_world(table: Table, worlds: dict[str, list[str]], args) -> list[str]:
    """The subjects of the world that a command line is about. UserError if the table has none there."""
    from dassl.utils import UserError

    world = WORLDS[bool(args.data)]
    if not worlds.get(world) and not any(not word.isdecimal() for word in args.words):
        hint = "name some, or give --data DIR" if world == "toy" else "name some"
        raise UserError(f"table {table.name} has no {world} form: {hint}")
    return worlds.get(world, [])


def sweep_cells(table: Table, name: str, args) -> list[list[Step]]:
    """The cells of one of its sweeps."""
    sweep = read_sweep(SWEEPS / f"{name}.yaml")
    datasets, seeds = grid(args, known_world(table, sweep.datasets, args), sweep.seeds)
    return [sweep_steps(sweep, dataset, seed, tuple(args.set)) for seed in seeds for dataset in datasets]


def stream_cells(table: Table, args) -> list[list[Step]]:
    """A cell for each tuning, order and seed: they share nothing."""
    from scripts.condu.orders import tasks_of

    words = [word for word in args.words if not word.isdecimal()]
    orders = words or known_world(table, table.orders, args)
    seeds = [int(word) for word in args.words if word.isdecimal()] or table.seeds
    for order in orders:
        tasks_of(order)
    return [
        stream(table.protocol, name, order, seed, args.set)
        for seed in seeds
        for order in orders
        for name in table.methods
    ]
