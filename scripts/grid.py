"""What a command line of the main job, a sweep or a table stands for: groups of jobs that need each other.

Two kinds of yaml say a grid: a sweep (configs/sweeps; its fields: `sweep.py --help`), and a table of the paper
(configs/tables): `protocol`, `methods` (pairs of `plans.py`; FT and LoRA of ConDU's streams), `presets` of stage 2,
`seeds`, and `datasets` or, of streams, `orders`; or `sweeps` alone. `datasets` and `orders` are {toy, public}, each a
list or `all`. What a command line names wins.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace

from condu.orders import tasks_of
from dassl.config import read_yaml
from dassl.utils import UserError, check_availability
from scripts import plans
from scripts.commands import COMMANDS, folder, stage1_command
from scripts.commands.command import OTHERS_KEY, OVERWRITE, ROOT, Arguments, checked_pairs, names_in, recipe
from scripts.commands.protocols import TESTS
from scripts.commands.registered import know, presets_of
from scripts.jobs import Job

KINDS = {  # of the fields of a yaml
    **dict.fromkeys(("protocol", "command", "cfg"), str),
    **dict.fromkeys(("methods", "presets", "seeds", "sweeps", "cells"), list),
    **dict.fromkeys(("datasets", "orders", "grid"), dict),
    "whole": bool,
}
WORLDS = ("toy", "public")
ZERO_SHOT = "ZEROSHOT_CFG"  # in a sweep's cell: CFG of zero-shot CLIP; as CFG and STAGE1_CFG, no config key


def plan(args) -> list[list[Job]]:
    """The groups of a command line, each run in the first that has it: no two processes meet in one folder.

    UserError for two runs of one folder that differ.
    """
    if getattr(args, "others", False) and OTHERS_KEY not in args.set:
        args.set = [OTHERS_KEY, "auto", *args.set]
    if getattr(args, "sweep", ""):
        table = SimpleNamespace(sweeps=[args.sweep])
    else:
        table = read_table(args.table) if getattr(args, "table", "") else main_table(args)
    groups, first = table_groups(table, args), {}
    for job in itertools.chain(*groups):
        other = first.setdefault(job.folder, job)
        if other is not job and (words := job.program) != (before := other.program):
            differ = [word for word in before if word not in words], [word for word in words if word not in before]
            both = " and ".join(" ".join(some) or "nothing" for some in differ)
            raise UserError(f"{job.folder} would be the folder of two runs: {job} with {both}")
    return [[job for job in group if first[job.folder] is job] for group in groups]


def main_table(args) -> SimpleNamespace:
    """What --trainer, --protocol and --all stand for, as a table."""
    protocol = args.protocol or (plans.find_pair(args.trainer).protocols[0] if args.trainer else "base2new")
    check_availability(protocol, list(plans.PROTOCOLS), "--protocol")
    names = [pair.name for pair in plans.listed_pairs() if protocol in pair.protocols]
    if not args.all:
        names = [plans.find_pair(args.trainer, protocol).name if args.trainer else names[0]]
    fields = {"methods": names, "presets": [], "datasets": {"toy": plans.sources(protocol)}, "seeds": [1, 2, 3]}
    return SimpleNamespace(protocol=protocol, **fields, name="the main job")


def chosen(grid: SimpleNamespace, args, kind: str = "datasets") -> Iterable[tuple[int, str]]:
    """(seed, data set or order) of all groups: what a command line names, else all of the grid's world. UserError for
    one that there is not, and where neither has any."""
    world = WORLDS[bool(args.data)]
    names = [word for word in args.words if not word.isdecimal()] or getattr(grid, kind).get(world, [])
    if not names:
        hint = f" of {', '.join(names_in('datasets'))}" if kind == "datasets" else ""
        hint += "" if args.data else ", or give --data DIR"
        raise UserError(f"{grid.name} has no {world} {kind}: name some{hint}")
    for name in names:
        if kind == "orders":
            tasks_of(name)
        else:
            what = "DATASET" if name in args.words else f"{grid.name}: a data set"
            check_availability(name, names_in("datasets"), what)
    seeds = [int(word) for word in args.words if word.isdecimal()]
    return itertools.product(seeds or grid.seeds, names)


def read_fields(path: str | Path, needed: Sequence[str], optional: Sequence[str] = ()) -> SimpleNamespace:
    """The fields of a yaml file, empty where an optional one is missing, and its name; `all` data sets by their names.
    UserError for a field that is missing, unknown or of another kind."""
    tree = read_yaml(path)
    for key, value in tree.items():
        check_availability(key, [*needed, *optional], f"{path}: a field")
        if not isinstance(value, KINDS[key]):
            raise UserError(f"{path}: {key} is {value!r}, expected a {KINDS[key].__name__}")
    if lacking := [key for key in needed if key not in tree]:
        raise UserError(f"{path}: {', '.join(lacking)} missing; expected {', '.join(needed)}")
    for seed in tree.get("seeds", []):
        if not isinstance(seed, int) or seed < 1:
            raise UserError(f"{path}: seed {seed!r}, expected a positive whole number")
    for world, names in (tree.get("datasets") or tree.get("orders") or {}).items():
        check_availability(world, list(WORLDS), f"{path}: one of")
        if names == "all" and "datasets" in tree:
            tree["datasets"][world] = plans.toy_sets() if world == "toy" else plans.PUBLIC
        elif not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: {world} is {names!r}, expected a list{' or all' * ('datasets' in tree)} of names")
    return SimpleNamespace(**{key: KINDS[key]() for key in optional} | tree, name=Path(path).name)


def read_sweep(path: str | Path) -> SimpleNamespace:
    """The fields of a sweep. cells: {KEY or argument: value} each; whole: they change zero-shot and stage 1 too."""
    sweep = read_fields(path, ("command", "cfg", "datasets", "seeds"), ("grid", "cells", "whole"))
    if bool(sweep.grid) == bool(sweep.cells):
        raise UserError(f"{path}: expected command, cfg, datasets, seeds, and either grid or cells")
    know([sweep.command])
    known = [name for name, command in COMMANDS.items() if command.stage1 and name == command.named("base2new_train")]
    check_availability(sweep.command, known)
    if sweep.grid:
        sweep.cells = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    sweep.cells = [{key: str(value) for key, value in cell.items()} for cell in sweep.cells]
    for cell in sweep.cells:
        checked_pairs(pairs_of(cell))  # refuses what a script says itself
    return sweep


def pairs_of(cell: dict[str, str]) -> tuple[str, ...]:
    """The config keys of a cell as KEY VALUE words; its arguments of scripts have no dot in their name."""
    return tuple(word for key, value in cell.items() if "." in key for word in (key, value))


def label(cell: dict[str, str]) -> str:
    """A folder's name for a cell, e.g. LAMBDA_8.0_BETA_0.5."""
    words = [f"{key.rpartition('.')[2]}_{value}" for key, value in cell.items() if key not in ("STAGE1_CFG", ZERO_SHOT)]
    return re.sub(r"[^\w.+-]+", "-", "_".join(words))


def sweep_jobs(sweep: SimpleNamespace, dataset: str, seed: int, pairs: Sequence[str] = ()) -> list[Job]:
    """All runs of a data set and seed: zero-shot CLIP, stage 1, and the command in every cell.

    pairs: KEY VALUE words for every run. UserError: one that the cells differ in.
    """
    where, pairs = {"DATASET": dataset, "SEED": str(seed)}, tuple(checked_pairs(pairs))
    if shared := {key for cell in sweep.cells for key in cell}.intersection(pairs[::2]):
        raise UserError(f"{', '.join(sorted(shared))}: the cells of {sweep.name} differ in it; change the yaml")
    jobs = [] if sweep.whole else plans.with_keys(references(sweep.command, where, {}), pairs)
    for cell in sweep.cells:
        arguments = {"COOP_LMC": "True"} | recipe(COMMANDS[sweep.command], cell.get("CFG", sweep.cfg)) | where
        place = f"sweeps/{Path(sweep.name).stem}/{label(cell)}"
        if not sweep.whole:  # a cell's keys are in the name of its folder
            keys = (*pairs_of(cell), "TRAINER.MODAL", "sweep")
            jobs += plans.with_keys(halves(sweep.command, arguments | {"SWEEP": place}, keys), pairs)
            continue
        first = dict(where)
        if cell:
            first |= {"OUTPUT": str(Path(folder("OUTPUT", "output"), place))}
            arguments |= first | {key: value for key, value in cell.items() if key == "STAGE1_CFG"}
        every = references(sweep.command, first, cell) + halves(sweep.command, arguments)
        jobs += plans.with_keys(every, pairs_of(cell) + pairs)
    return jobs


def halves(name: str, arguments: Arguments, pairs: tuple[str, ...] = ()) -> list[Job]:
    """A training and both its tests."""
    return [Job(COMMANDS[name].named(what), arguments, pairs) for what in ("base2new_train", *TESTS)]


def references(name: str, where: Arguments, cell: dict[str, str]) -> list[Job]:
    """Zero-shot CLIP and the stage 1 of a command."""
    zero_shot = where | ({"CFG": cell[ZERO_SHOT]} if ZERO_SHOT in cell else {})
    first = where | ({"CFG": cell["STAGE1_CFG"]} if "STAGE1_CFG" in cell else {})
    return [Job(f"zsclip/{what}", zero_shot) for what in TESTS] + halves(stage1_command(COMMANDS[name]), first)


def read_table(path: str | Path) -> SimpleNamespace:
    """The fields of a table, or `sweeps` alone. UserError for a name that there is not."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such table; configs/tables has {', '.join(names_in('tables'))}")
    tree = read_yaml(path)
    if "sweeps" in tree:
        table, known = read_fields(path, ("sweeps",)), {}
        for name in table.sweeps:
            check_availability(name, names_in("sweeps"), f"{path}: a sweep")
        table.sweeps = [ROOT / "configs" / "sweeps" / f"{name}.yaml" for name in table.sweeps]
    else:
        check_availability(tree.get("protocol"), [*plans.PROTOCOLS, *plans.STREAMS], f"{path}: protocol")
        kind = "orders" if tree["protocol"] in plans.STREAMS else "datasets"
        table = read_fields(path, ("protocol", "methods", kind, "seeds"), ("presets",))
        known = {"methods": plans.TUNINGS, "presets": []}
        if kind == "datasets":
            pairs = [plans.find_pair(name, table.protocol) for name in table.methods]
            known = {"presets": sorted({name for pair in pairs for name in presets_of(pair.stage2, False)})}
    for field, names in known.items():
        for name in getattr(table, field):
            check_availability(name, list(names), f"{path}: {field}")
    return table


def table_groups(table: SimpleNamespace, args) -> list[list[Job]]:
    """The pairs of one data set and seed are one group, for they share runs; of streams, each tuning, order and seed,
    for they share nothing."""
    if hasattr(table, "sweeps"):
        sweeps = map(read_sweep, table.sweeps)
        return [sweep_jobs(sweep, name, seed, args.set) for sweep in sweeps for seed, name in chosen(sweep, args)]
    if table.protocol not in plans.STREAMS:
        one = [(name, table.protocol) for name in table.methods]
        return [
            [job for words in one for job in plans.pair_jobs(*words, dataset, seed, args.set, table.presets)]
            for seed, dataset in chosen(table, args)
        ]
    flags = OVERWRITE * args.overwrite  # a stream does again itself what was run otherwise
    every = itertools.product(chosen(table, args, "orders"), table.methods)
    return [plans.stream(table.protocol, name, order, seed, args.set, flags) for (seed, order), name in every]
