"""The harness of faults: kills in every phase, and all else that can happen to a run. About half an hour on 2 cores.

    python tests/faults/run.py [--kills 50] [--out FILE] [--only NAME...] [--seed N]

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
from tests.faults.child import PHASES  # noqa: E402
from tests.faults.kills import Campaign  # noqa: E402
from tests.faults.warm import Warm  # noqa: E402
from tests.faults.world import World  # noqa: E402

CASES = {
    "SIGTERM": stops.sigterm,
    "SIGINT": stops.sigint,
    "SIGTERM in each phase": stops.signals_in_phases,
    "two processes on one folder": stops.two_processes,
    "loader worker killed": stops.worker_killed,
    "one process of two killed": stops.one_of_two,
    "NaN": stops.nan,
    "no file may grow": places.no_file_may_grow,
    "full file system": places.full_file_system,
    "read-only data": places.read_only_data,
    "files from the future": places.clock_set_back,
    "clock set back": places.clock_runs_backwards,
}
KILLS = "kills"
NEEDS = {"full file system": "root", "clock set back": "faketime"}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs, a tenth of them in each phase at least")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; default: the clock")
    parser.add_argument("--out", default="output/faults.json", help="where the JSON goes")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=[KILLS, *CASES], help=f"{KILLS}, {', '.join(CASES)}"
    )
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


def kill(campaign, number):
    """The campaign's kills -> the line of the table."""
    campaign.prepare()
    campaign.run(number, number // 10, say=lambda line: print(f"     {line}", flush=True))
    facts = campaign.report()
    if facts["problems"]:
        raise AssertionError("\n".join(facts["problems"]))
    few = [phase for phase, count in facts["by_phase"].items() if count < number // 10]
    if few:
        raise AssertionError(f"too few kills inside {', '.join(few)}: {facts['by_phase']}")
    return f"{sum(facts['by_phase'].values())} inside {', '.join(f'{p} {n}' for p, n in facts['by_phase'].items())}"


def main(argv=None):
    """Everything that was asked for -> exit status."""
    args = parse_args(argv)
    out = Path(args.out).absolute()
    names = args.only or [KILLS, *CASES]
    print(f"seed {args.seed}; phases: {', '.join(PHASES)}", flush=True)
    rows, campaign = [], None
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, Warm(Path(folder, "events")) as warm:
        os.chmod(folder, 0o755)  # for the case of another user
        if KILLS in names:
            world = World(Path(folder, "kills"))
            campaign = Campaign(world, warm, world.jobs(), args.seed)
            rows.append(attempt(KILLS, kill, campaign, args.kills))
        bench = Bench(World(Path(folder, "cases")), warm)
        rows += [attempt(name, CASES[name], bench) for name in names if name != KILLS]
    facts = {"seed": args.seed, "rows": rows} | ({"kills": campaign.report()} if campaign else {})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n")
    print("\n" + "\n".join(f"{'ok  ' if row['ok'] else 'FAIL'} {row['name']:28} {row['note']}" for row in rows))
    print(f"Wrote {out}")
    return int(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
