"""The harness of faults: kills, damaged and exchanged files, and all else that can happen to a run.

    python tests/faults/run.py [--only NAME...] [--scenes NAME...] [--share 8] [--rounds 1] [--out FILE] [--seed N]

`kills` kills each scene (of world.py) before every change of a file, one of so many as --share says, and types the
same lines again; `damage` spoils one file of each kind that a scene reads, in each way, once a round; `links` plants
links in the place of locks and temporary names. What comes of it is held against the undisturbed scene and counted in
a table. About an hour on 2 cores.

Prints one table and writes JSON. Exit status 1 if anything was lost, repeated, left half written or said badly. A
full file system and a read-only mount need root; faketime's clock needs Debian's package of that name.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from tests.faults import places, stops  # noqa: E402
from tests.faults.bench import Bench  # noqa: E402
from tests.faults.damage import FAULT, Stage, table  # noqa: E402
from tests.faults.warm import Warm  # noqa: E402
from tests.faults.world import World  # noqa: E402

CASES = {
    "SIGTERM": stops.sigterm,
    "SIGINT": stops.sigint,
    "SIGTERM in each phase": stops.signals_in_phases,
    "two processes on one folder": stops.two_processes,
    "loader worker killed": stops.worker_killed,
    "one process of two killed": stops.one_of_two,
    "main job": stops.main_job,
    "sweep": stops.sweep,
    "workflow": stops.workflow,
    "NaN": stops.nan,
    "no file may grow": places.no_file_may_grow,
    "full file system": places.full_file_system,
    "read-only data": places.read_only_data,
    "files from the future": places.clock_set_back,
    "clock set back": places.clock_runs_backwards,
}
ON_SCENES = ("kills", "damage", "links")
EVERY = [*ON_SCENES, *CASES]
NEEDS = {"full file system": "root", "clock set back": "faketime"}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; default: the clock")
    parser.add_argument("--out", default="output/faults.json", help="where the JSON goes")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=EVERY, help=", ".join(EVERY))
    parser.add_argument("--rounds", type=int, default=1, help="of damage")
    parser.add_argument("--share", type=int, default=8, help="of the moments for kills, one in so many is tried")
    parser.add_argument("--scenes", nargs="+", default=[], metavar="NAME", help="these alone of the scenes of world.py")
    return parser.parse_args(argv)


def lacking(name):
    """What this machine lacks for a case, "" if nothing."""
    need = NEEDS.get(name)
    has = {"root": os.geteuid() == 0, "faketime": Path(places.FAKETIME).is_file(), None: True}
    return "" if has[need] else f"needs {need}"


def attempt(name, case, *args):
    """One row of the table: what came of a case."""
    started = time.monotonic()
    row = {"name": name, "ok": True, "problems": []}
    try:
        row["note"] = lacking(name) and f"not tried: {lacking(name)}" or case(*args)
    except Exception as error:  # the others are tried all the same
        row |= {"ok": False, "note": "", "problems": [f"{type(error).__name__}: {error}"]}
    row["seconds"] = round(time.monotonic() - started, 1)
    show(row)
    return row


def show(row):
    print(f"{'ok  ' if row['ok'] else 'FAIL'} {row['name']:28} {row['seconds']:7.1f} s  {row['note']}", flush=True)
    for problem in row["problems"]:
        print(f"     {problem}", flush=True)


def on_scenes(stage, what, args):
    """Damages, kills at each change, or links, of all scenes -> the line of the table."""
    first, names = len(stage.rows), args.scenes or list(stage.scenes)
    for name in names:
        if what == "links":
            stage.links(name)
        elif what == "kills":
            for moment in range(1 + args.seed % args.share, len(stage.moments(name)) + 1, args.share):
                stage.kill(name, moment)
        else:
            for number in range(args.rounds):
                for trial in stage.trials(name, number):
                    stage.spoil(*trial, number)
        for row in stage.rows[first:]:
            if row["scene"] == name and row["outcome"] == FAULT:
                print(f"     {row['scene']}, {row['damage']}: {row['what']}: {row['detail']}", flush=True)
    rows = stage.rows[first:]
    print("\n".join(table(rows)), flush=True)
    faults = [row for row in rows if row["outcome"] == FAULT]
    if faults:
        raise AssertionError(f"{len(faults)} faults of {len(rows)} trials")
    return f"{len(rows)} trials"


def main(argv=None):
    """Everything that was asked for -> exit status."""
    args = parse_args(argv)
    out = Path(args.out).absolute()
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, Warm(Path(folder, "events")) as warm:
        os.chmod(folder, 0o755)  # for the case of another user
        stage, bench = Stage(World(Path(folder, "scenes")), warm, args.seed), Bench(World(Path(folder, "cases")), warm)
        rows = [
            attempt(name, on_scenes, stage, name, args) if name in ON_SCENES else attempt(name, CASES[name], bench)
            for name in args.only or EVERY
        ]
    facts = {"seed": args.seed, "rows": rows, "scenes": stage.rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n")
    print("\n" + "\n".join(f"{'ok  ' if row['ok'] else 'FAIL'} {row['name']:28} {row['note']}" for row in rows))
    print(f"Wrote {out}")
    return int(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
