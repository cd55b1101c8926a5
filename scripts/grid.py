"""What a command line of the main job, a sweep or a table stands for: groups of jobs that need each other.

Two kinds of yaml say a grid: a sweep (configs/sweeps; its fields: `sweep.py --help`), and a table of the paper
(configs/tables): `protocol`, `methods` (pairs of `plans.py`; FT and LoRA of ConDU's streams), `presets` of stage 2,
`seeds`, and `datasets` or, of streams, `orders`; or `sweeps` alone. `datasets` and `orders` are {toy, public}, each a
list or `all`. What a command line names wins.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from scripts.commands import COMMANDS, SCRIPTS, folder, stage1_command
from scripts.commands.base2new import TESTS, Scripts
from scripts.commands.command import OTHERS_KEY, OVERWRITE, ROOT, Arguments, checked_pairs, names_in, recipe
from scripts.commands.registered import know, presets_of
from scripts.jobs import Job, program
from scripts.plans import (
    PRESETS,
    PROTOCOLS,
    PUBLIC,
    STREAMS,
    TUNINGS,
    find_pair,
    listed_pairs,
    pair_jobs,
    sources,
    stream,
    toy_sets,
    with_keys,
)

OF_SWEEP = {"command": str, "cfg": str, "datasets": dict, "seeds": list, "grid": dict, "cells": list, "whole": bool}
OF_STREAMS = {"protocol": str, "methods": list, "orders": dict, "seeds": list}
OF_TABLE = {"protocol": str, "methods": list, "presets": list, "datasets": dict, "seeds": list}
WORLDS = ("toy", "public")
ZERO_SHOT = "ZEROSHOT_CFG"  # in a sweep's cell: CFG of zero-shot CLIP; as CFG and STAGE1_CFG, no config key


def plan(args) -> list[list[Job]]:
    """The groups of a command line, each run in the first that has it: no two processes meet in one folder.

    UserError for two runs of one folder that differ.
    """
    from dassl.utils import UserError

    if getattr(args, "others", False) and OTHERS_KEY not in args.set:
        args.set = [OTHERS_KEY, "auto", *args.set]
    if getattr(args, "sweep", ""):
        groups = sweep_groups(read_sweep(args.sweep), args)
    elif getattr(args, "table", ""):
        groups = table_groups(read_table(args.table), args)
    else:
        groups = job_groups(args)
    first = {}
    for run in itertools.chain(*groups):
        other = first.setdefault(run.folder, run)
        if other is not run and (ours := program(*run.words)) != (theirs := program(*other.words)):
            differ = [word for word in theirs if word not in ours], [word for word in ours if word not in theirs]
            both = " and ".join(" ".join(words) or "nothing" for words in differ)
            raise UserError(f"{run.folder} would be the folder of two runs: {run} with {both}")
    return [[job for job in group if first[job.folder] is job] for group in groups]


def chosen(args, names: Sequence[str], seeds: Sequence[int], kind: str = "datasets") -> tuple[list[str], list[int]]:
    """Data sets (or orders) and seeds of a command line, each known; those given, where it names none."""
    from dassl.utils import UserError

    words = [word for word in args.words if not word.isdecimal()]
    for word in words:
        check_subject(kind, word, "DATASET")
    if args.data and not (words or names):
        raise UserError(f"--data DIR needs a data set's name, one of {', '.join(names_in('datasets'))}")
    return words or list(names), [int(word) for word in args.words if word.isdecimal()] or list(seeds)


def check_subject(kind: str, name: str, what: str) -> None:
    """UserError for a data set or an order that there is not."""
    from condu.orders import tasks_of
    from dassl.utils import check_availability

    if kind == "orders":
        tasks_of(name)
    else:
        check_availability(name, names_in("datasets"), what)


def job_groups(args) -> list[list[Job]]:
    """Of the main job: the pairs of one data set and seed are one group, for they share runs."""
    from dassl.utils import check_availability

    protocol = args.protocol or (find_pair(args.trainer).protocols[0] if args.trainer else "base2new")
    check_availability(protocol, list(PROTOCOLS), "--protocol")
    names = [pair.name for pair in listed_pairs() if protocol in pair.protocols]
    if not args.all:
        names = [find_pair(args.trainer, protocol).name if args.trainer else names[0]]
    datasets, seeds = chosen(args, [] if args.data else sources(protocol), [1, 2, 3])
    return protocol_groups(protocol, names, datasets, seeds, args.set)


def protocol_groups(protocol, names, datasets, seeds, pairs, presets=()) -> list[list[Job]]:
    return [
        [job for name in names for job in pair_jobs(name, protocol, dataset, seed, pairs, presets)]
        for seed in seeds
        for dataset in datasets
    ]


def read_fields(path: str | Path, fields: Mapping[str, type], optional: Sequence[str] = ()) -> SimpleNamespace:
    """The fields of a yaml file, and its name. UserError for one that is missing, unknown or of another kind."""
    from dassl.config import read_yaml
    from dassl.utils import UserError, check_availability

    tree = read_yaml(path)
    for key, value in tree.items():
        check_availability(key, list(fields), f"{path}: a field")
        if not isinstance(value, fields[key]):
            raise UserError(f"{path}: {key} is {value!r}, expected a {fields[key].__name__}")
    if lacking := [key for key in fields if key not in tree and key not in optional]:
        raise UserError(f"{path}: {', '.join(lacking)} missing; expected {', '.join(fields)}")
    for seed in tree.get("seeds", []):
        if not isinstance(seed, int) or seed < 1:
            raise UserError(f"{path}: seed {seed!r}, expected a positive whole number")
    return SimpleNamespace(**tree, name=Path(path).stem)


def subjects(path: str | Path, worlds: Mapping[str, object], kind: str = "datasets") -> dict[str, list[str]]:
    """The data sets or orders of each world, each known; `all` becomes their names."""
    from dassl.utils import UserError, check_availability

    subjects, may = {}, " or all" if kind == "datasets" else ""
    for world, names in worlds.items():
        check_availability(world, list(WORLDS), f"{path}: {kind} of")
        if names == "all" and may:
            names = toy_sets() if world == "toy" else PUBLIC
        if isinstance(names, str):
            raise UserError(f"{path}: {world} is {names!r}, expected a list{may}")
        subjects[world] = list(map(str, names))
        for name in subjects[world]:
            check_subject(kind, name, f"{path}: a data set")
    return subjects


def chosen_of(grid: SimpleNamespace, args, kind: str = "datasets") -> tuple[list[str], list[int]]:
    """What a command line chooses of a sweep or a table: by default all of its world. UserError if it has none."""
    from dassl.utils import UserError

    world = WORLDS[bool(args.data)]
    names = getattr(grid, kind).get(world, [])
    if not names and all(word.isdecimal() for word in args.words):
        hint = "name some, or give --data DIR" if world == "toy" else "name some"
        raise UserError(f"{grid.name}.yaml has no {world} form: {hint}")
    return chosen(args, names, grid.seeds, kind)


def scripts_with(script: str) -> Scripts:
    """A method's scripts, by that of its training."""
    return next(scripts for scripts in SCRIPTS.values() if scripts.script("base2new_train") == script)


def read_sweep(path: str | Path) -> SimpleNamespace:
    """The fields of a sweep. cells: {KEY or argument: value} each; whole: they change zero-shot and stage 1 too."""
    from dassl.utils import UserError, check_availability

    sweep = read_fields(path, OF_SWEEP, ("grid", "cells", "whole"))
    if hasattr(sweep, "grid") == hasattr(sweep, "cells"):
        raise UserError(f"{path}: expected command, cfg, datasets, seeds, and either grid or cells")
    know([sweep.command])
    check_availability(sweep.command, [own.script("base2new_train") for own in SCRIPTS.values() if own.train.stage1])
    if hasattr(sweep, "grid"):
        sweep.cells = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    sweep.cells = [{key: str(value) for key, value in cell.items()} for cell in sweep.cells]
    for cell in sweep.cells:
        checked_pairs(pairs_of(cell))  # refuses what a script says itself
    sweep.whole, sweep.datasets = getattr(sweep, "whole", False), subjects(path, sweep.datasets)
    return sweep


def pairs_of(cell: dict[str, str]) -> tuple[str, ...]:
    """The config keys of a cell as KEY VALUE words; its arguments of scripts have no dot in their name."""
    return tuple(word for key, value in cell.items() if "." in key for word in (key, value))


def label(cell: dict[str, str]) -> str:
    """A folder's name for a cell, e.g. LAMBDA_8.0_BETA_0.5."""
    words = [f"{key.rpartition('.')[2]}_{value}" for key, value in cell.items() if key not in ("STAGE1_CFG", ZERO_SHOT)]
    return re.sub(r"[^\w.+-]+", "-", "_".join(words))


def sweep_groups(sweep: SimpleNamespace, args) -> list[list[Job]]:
    datasets, seeds = chosen_of(sweep, args)
    return [sweep_jobs(sweep, dataset, seed, args.set) for seed in seeds for dataset in datasets]


def sweep_jobs(sweep: SimpleNamespace, dataset: str, seed: int, pairs=()) -> list[Job]:
    """All runs of a data set and seed: zero-shot CLIP, stage 1, and the command in every cell.

    pairs: KEY VALUE words for every run. UserError: one that the cells differ in.
    """
    from dassl.utils import UserError

    own, pairs = {"DATASET": dataset, "SEED": str(seed)}, tuple(checked_pairs(pairs))
    if shared := {key for cell in sweep.cells for key in cell}.intersection(pairs[::2]):
        raise UserError(f"{', '.join(sorted(shared))}: the cells of {sweep.name} differ in it; change the yaml")
    scripts = scripts_with(sweep.command)
    jobs = [] if sweep.whole else with_keys(references(scripts, own, {}), pairs)
    for cell in sweep.cells:
        arguments = {"COOP_LMC": "True"} | recipe(COMMANDS[sweep.command], cell.get("CFG", sweep.cfg)) | own
        place = f"sweeps/{sweep.name}/{label(cell)}"
        if not sweep.whole:  # a cell's keys are in the name of its folder
            keys = (*pairs_of(cell), "TRAINER.MODAL", "sweep")
            jobs += with_keys(halves(scripts, arguments | {"SWEEP": place}, keys), pairs)
            continue
        first = dict(own)
        if cell:
            first |= {"OUTPUT": str(Path(folder("OUTPUT", "output"), place))}
            arguments |= first | {key: value for key, value in cell.items() if key == "STAGE1_CFG"}
        jobs += with_keys(references(scripts, first, cell) + halves(scripts, arguments), pairs_of(cell) + pairs)
    return jobs


def halves(scripts: Scripts, arguments: Arguments, pairs: tuple[str, ...] = ()) -> list[Job]:
    """Training and both tests."""
    return [Job(scripts.script(what), arguments, pairs=pairs) for what in ("base2new_train", *TESTS)]


def references(scripts: Scripts, own: Arguments, cell: dict[str, str]) -> list[Job]:
    """Zero-shot CLIP and the stage 1 of a method."""
    zero_shot = own | ({"CFG": cell[ZERO_SHOT]} if ZERO_SHOT in cell else {})
    first = own | ({"CFG": cell["STAGE1_CFG"]} if "STAGE1_CFG" in cell else {})
    stage1 = scripts_with(stage1_command(scripts.train))
    return [Job(f"zsclip/{what}", zero_shot) for what in TESTS] + halves(stage1, first)


def table_methods(protocol: str) -> list[str]:
    """The pairs of the paper's table of a protocol; needs no PyTorch."""
    from dassl.config import read_yaml

    return read_yaml(ROOT / "configs" / "tables" / f"{protocol}.yaml")["methods"]


def read_table(path: str | Path) -> SimpleNamespace:
    """The fields of a table, or `sweeps` alone. UserError for a name that there is not."""
    from dassl.config import read_yaml
    from dassl.utils import UserError, check_availability

    if not Path(path).is_file():
        raise UserError(f"{path}: no such table; configs/tables has {', '.join(names_in('tables'))}")
    tree = read_yaml(path)
    if "sweeps" in tree:
        table = read_fields(path, {"sweeps": list})
        for name in table.sweeps:
            check_availability(name, names_in("sweeps"), f"{path}: a sweep")
        return table
    check_availability(tree.get("protocol"), [*PROTOCOLS, *STREAMS], f"{path}: protocol")
    table = read_fields(path, OF_STREAMS if tree["protocol"] in STREAMS else OF_TABLE, ("presets",))
    table.presets = getattr(table, "presets", [])
    if table.protocol in STREAMS:
        for name in table.methods:
            check_availability(name, list(TUNINGS), f"{path}: methods")
        table.orders = subjects(path, table.orders, "orders")
        return table
    pairs = [find_pair(name, table.protocol) for name in table.methods]
    presets = {*PRESETS, *(name for pair in pairs for name in presets_of(pair.stage2, False))}
    for name in table.presets:
        check_availability(name, sorted(presets), f"{path}: presets")
    table.datasets = subjects(path, table.datasets)
    return table


def table_groups(table: SimpleNamespace, args) -> list[list[Job]]:
    """Of streams, each tuning, order and seed is a group: they share nothing."""
    if hasattr(table, "sweeps"):
        sweeps = [read_sweep(ROOT / "configs" / "sweeps" / f"{name}.yaml") for name in table.sweeps]
        return [group for sweep in sweeps for group in sweep_groups(sweep, args)]
    if table.protocol not in STREAMS:
        datasets, seeds = chosen_of(table, args)
        return protocol_groups(table.protocol, table.methods, datasets, seeds, args.set, table.presets)
    orders, seeds = chosen_of(table, args, "orders")
    every = itertools.product(seeds, orders, table.methods)
    flags = OVERWRITE * args.overwrite  # a stream does again itself what was run otherwise
    return [stream(table.protocol, name, order, seed, args.set, flags) for seed, order, name in every]
