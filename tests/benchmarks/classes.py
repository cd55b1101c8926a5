"""A CoOp step with many classes: whole prompts against packed ones, whose shared prefix runs once.

    python tests/benchmarks/classes.py

The text tower of a random ViT-B/16, batch 32, image features from the bank, 2 threads, fp32: about 12 minutes on two
quiet cores, 13 GiB for the largest whole pass; `--model small` is a matter of seconds. Each measure is a process of its
own, one at a time, so a peak is its own; what would not fit in memory is left out with a line. The most classes with
the shortest context also run in chunks, and with blocks run again. Names are as long as ImageNet's by a model of them,
NAMES. Fails where features or gradient differ from those of whole prompts by more than 1e-5 of the largest.
"""

import argparse
import gc
import multiprocessing
import os
import platform
import shlex
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.benchmarks.step import LIMIT, PATH, seconds  # noqa: E402

FULL, QUICK = "text_b16", "small"
SIZES = {FULL: {"classes": [20, 100, 500, 1000], "chunk": 100}, QUICK: {"classes": [20, 60], "chunk": 10}}
BATCH = 32
NAMES = {1: 22, 2: 34, 3: 22, 4: 11, 5: 6, 6: 3, 7: 1, 9: 1}  # tokens of a name: so many names of 100
# version: packed or not, chunks or not, blocks run again or not
VERSIONS = {
    "whole": (False, False, False),
    "shared prefix": (True, False, False),
    "chunks": (True, True, False),
    "blocks": (True, False, True),
    "chunks, blocks": (True, True, True),
}
# how many times less time and memory in the full setting from MANY classes on: the shared prefix, by context; others
LEAST, OTHERS = {4: (2.2, 2), 16: (3, 3)}, {"chunks": (None, 5), "blocks": (None, 4), "chunks, blocks": (None, 6)}
MANY, FEW = 500, 20  # with no more than FEW a shared prefix is not slower
COLUMNS = "{:50}{:>14}{:>16}{:>8}{:>14}"
LEGEND = """
tokens: positions that run through the text tower. step: median wall time. memory: what a step adds, at its peak, to
the process's resident memory. chunks: with TEXT_CHUNK {chunk}; blocks: with CHECKPOINT_BLOCKS."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add, (full, small) = parser.add_argument, SIZES.values()
    add("--model", choices=tuple(SIZES), default=FULL)
    add("--classes", type=int, nargs="+", help=f"default: {full['classes']}, of the small model {small['classes']}")
    add("--contexts", type=int, nargs="+", default=list(LEAST), help="vectors before a name")
    add("--chunk", type=int, help=f"classes at once; default: {full['chunk']}, of the small model {small['chunk']}")
    add("--steps", type=int, default=3, help="timed steps; of few classes more")
    add("--threads", type=int, default=2)
    add("--markdown", action="store_true", help="also print the tables of docs/costs.md and docs/scale.md")
    add("--out", type=Path, default=Path(os.environ.get("OUTPUT") or "output") / "benchmarks" / "classes.json")
    args = parser.parse_args(argv)
    for name, value in SIZES[args.model].items():
        setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
    args.classes, args.contexts = sorted(set(args.classes)), sorted(set(args.contexts))
    for name in ("classes", "contexts", "chunk", "steps", "threads"):
        value, least = getattr(args, name), 2 if name == "classes" else 1  # of one class the loss is 0
        if min(value if isinstance(value, list) else [value]) < least:
            parser.error(f"--{name} is {value}, expected at least {least}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; the exit status."""
    return 1 if run(argv)["faults"] else 0


def gather(quick: bool, folder: Path) -> tuple[list, list[str]]:
    """(rows of table.py, faults): tokens, time and memory of whole prompts over those of each other version."""
    found = run([*(("--model", QUICK, "--steps", "1") if quick else ()), "--out", str(folder / "classes.json")])
    rows = [rows_of(setting, found["settings"]["model"]) for setting in found["measured"]]
    return [row for some in rows for row in some], found["faults"]


def run(argv: list[str] | None) -> dict:
    """Measure, print, write; what the JSON holds."""
    args = parse(argv)
    path = os.pathsep.join([*PATH, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ |= {"PYTHONPATH": path, "OMP_NUM_THREADS": str(args.threads)}  # before torch loads, here and there
    from dassl.utils import write_json

    print(f"{args.model}, batch {BATCH}, {args.threads} threads, fp32\n")
    print(COLUMNS.format("", "whole", "shared prefix", "ratio", "expected"))
    measured, faults = [], []
    with tempfile.TemporaryDirectory() as folder:
        for context in args.contexts:
            smaller = {}  # version: what its last measure in this context found
            for classes in args.classes:
                setting = {"classes": classes, "context": context, "versions": {}, "left_out": []}
                measure(setting, smaller, Path(folder), args)
                faults += compare(setting)
                print_setting(setting, args.model)
                measured.append(setting)
    print(LEGEND.format(chunk=args.chunk))
    found = report(argv, args, measured, faults)
    write_json(found, str(args.out))
    if args.markdown:
        print("", *markdown(measured, args.chunk), sep="\n")
    print(f"\n{args.out}")
    for fault in faults:
        print(f"error: {fault}")
    return found


def measure(setting: dict, smaller: dict, folder: Path, args: argparse.Namespace) -> None:
    """Fill in the versions of a setting, each from a process of its own that ends before the next begins."""
    import torch

    from dassl.utils.memory import available_mb
    from tests.benchmarks import classes, worker  # by this name also where the file is run as a script
    from tests.benchmarks.world import World

    count, context = setting["classes"], setting["context"]
    world = World(folder, args.model, BATCH, count, count, names_of(count)).write()
    server = multiprocessing.get_context("forkserver")  # forks a process that has only imported
    server.set_forkserver_preload([worker.__name__])
    most = count == args.classes[-1] and context == args.contexts[0]
    for version in VERSIONS if most else list(VERSIONS)[:2]:
        if less := smaller.get(version):
            needed = less["before_mb"] + less["step_mb"] * count / less["classes"]
            free = available_mb(torch.device("cpu"))
            if needed > free:
                setting["left_out"].append(f"{version}: left out, about {needed:,.0f} MB, {free:,.0f} MB are free")
                continue
        with ProcessPoolExecutor(1, server) as pool:
            steps = args.steps * max(1, min(5, 100 // count))
            row = pool.submit(classes.steps, world, context, version, args.chunk, steps, args.threads).result()
        setting["versions"][version] = smaller[version] = row | {"classes": count}


def names_of(count: int) -> tuple[str, ...]:
    """Class names of single tokens, as many of each length as NAMES says; each begins with a word of its own."""
    from dassl.clip.openai import clip_package

    lengths = [length for length, many in NAMES.items() for _ in range(many)]
    entries = clip_package().simple_tokenizer.SimpleTokenizer().encoder  # common ones first
    words = [entry.removesuffix("</w>") for entry in entries if entry.endswith("</w>") and len(entry) > 7]
    words = [word for word in words if word.isascii() and word.isalpha()][: count + max(lengths)]
    return tuple(" ".join(words[i : i + lengths[i * len(lengths) // count]]) for i in range(count))


def steps(world, context: int, version: str, chunk: int, count: int, threads: int) -> dict:
    """In the version's process: one step for its features and gradient, then `count` for time and peak memory."""
    import torch

    from tests.benchmarks.memory import peak_mb, reset_peak, resident_mb
    from tests.benchmarks.task import gradient_of
    from tests.benchmarks.worker import quiet
    from tests.benchmarks.world import first_batch

    torch.set_num_threads(threads)
    times = []
    with quiet():
        trainer = build(world, context, version, chunk)
        batch, encode, seen = first_batch(trainer.train_loader_x), trainer.text_features, []

        def step() -> float:
            return float(trainer.forward_backward(batch)["loss"])

        trainer.text_features = lambda: seen.append(encode()) or seen[-1]
        loss, gradient = gradient_of([trainer.model.ctx], step)
        features, trainer.text_features = seen.pop().detach().flatten().tolist(), encode
        gc.collect()
        before = resident_mb()
        reset_peak()
        for _ in range(count):
            started = time.perf_counter(), time.process_time()
            step()
            times.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    wall, cpu = (median(some) for some in zip(*times, strict=True))
    added = max(peak_mb() - before, 1)  # below a MB the pages of threads decide
    return {
        "loss": loss, "features": features, "gradient": gradient, "tokens": tokens_of(trainer),
        "wall_s": wall, "cpu_s": cpu, "times": times, "before_mb": before, "step_mb": added,
    }  # fmt: skip


def build(world, context: int, version: str, chunk: int):
    """CoOp on its stored features, from a context of random vectors that are the same in all versions."""
    import torch

    from tests.benchmarks.coop import CONFIGS

    packed, chunks, blocks = VERSIONS[version]
    keys = {"N_CTX": context, "CTX_INIT": False, "PREC": "fp32"}
    keys = {f"TRAINER__COOP__{key}": value for key, value in keys.items()}
    keys |= {"FEATURES__VIEWS": 1, "MODEL__TEXT_CHUNK": chunks * chunk, "MODEL__CHECKPOINT_BLOCKS": blocks}
    trainer = world.trainer("CoOp", CONFIGS["CoOp"], **keys)
    trainer.clip.share_prefix = packed
    vectors = torch.randn(trainer.model.ctx.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        trainer.model.ctx.copy_(0.02 * vectors)
    trainer.use_feature_bank("train_loader_x", is_train=True)
    return trainer


def tokens_of(trainer) -> int:
    """Positions of all texts that run through the text tower."""
    from dassl.clip.shared_prefix import layout_of

    layout = layout_of(trainer.clip, trainer.model.tokens, trainer.model.shared)
    if layout is None:
        return trainer.model.tokens.numel()
    return layout.shared + sum(len(part.index) for part in layout.parts)


def compare(setting: dict) -> list[str]:
    """Note differences to whole prompts -> what is too far apart, and what was to run packed and did not."""
    faults, what, whole = [], title(setting), setting["versions"].get("whole")
    for version, row in setting["versions"].items() if whole else ():
        row["differences"] = {key: apart(row[key], whole[key]) for key in ("features", "gradient")}
        faults += [
            f"{what}, {version}: {key} differ from those of whole prompts by {found:.1e}, allowed {LIMIT:.0e}"
            for key, found in row["differences"].items()
            if not found <= LIMIT
        ]
        if VERSIONS[version][0] and row["tokens"] >= whole["tokens"]:
            faults.append(f"{what}, {version}: ran whole prompts")
    return faults


def apart(ours: list[float], plain: list[float]) -> float:
    """The largest difference, over the largest value of the plain way."""
    return max(abs(a - b) for a, b in zip(ours, plain, strict=True)) / max(map(abs, plain))


def title(setting: dict) -> str:
    return f"{setting['classes']:,} classes x {setting['context']}"


def rows_of(setting: dict, model: str) -> list:
    """Rows of table.py: tokens, time and memory of each version against whole prompts; none where those are not."""
    from tests.benchmarks.table import Row

    rows, whole, classes = [], setting["versions"].get("whole"), setting["classes"]
    for version, ours in setting["versions"].items() if whole else ():
        what, least = title(setting) + (f", {version}" if version in OTHERS else ""), (None, None)
        if model == FULL and classes >= MANY:
            least = OTHERS.get(version) or LEAST.get(setting["context"], least)
        elif model == FULL and classes <= FEW and version == "shared prefix":
            least = (1, None)
        if version != "whole":
            rows += [
                Row(f"{what}: tokens", "", ours["tokens"], whole["tokens"]),
                Row(f"{what}: step", "s", ours["wall_s"], whole["wall_s"], least[0]),
                Row(f"{what}: memory", "MB", ours["step_mb"], whole["step_mb"], least[1]),
            ]
    return rows


def print_setting(setting: dict, model: str) -> None:
    for row in rows_of(setting, model):
        name, ours, plain, *rest = row.cells()
        print(COLUMNS.format(name, plain, ours, *rest))
    versions, what = setting["versions"], title(setting)
    for version, row in versions.items():
        if row is versions.get("whole"):
            continue
        if "differences" in row:
            apart = ", ".join(f"{key} {found:.1e}" for key, found in row["differences"].items())
            said = f"{versions['whole']['cpu_s'] / row['cpu_s']:.1f} times less CPU time; differences: {apart}"
        else:
            said = f"{row['tokens']:,} tokens, step {seconds(row['wall_s'])}, memory {row['step_mb']:,.0f} MB"
        print(f"  {what}, {version}: {said}")
    for line in setting["left_out"]:
        print(f"  {what}, {line}")
    sys.stdout.flush()


def markdown(measured: list[dict], chunk: int) -> list[str]:
    """Rows of the tables of docs/costs.md, a setting each, and of docs/scale.md, a version each."""
    lines = []
    for setting in measured:
        whole, ours = (setting["versions"].get(version) for version in list(VERSIONS)[:2])
        cells = [f"{setting['classes']:,}", str(setting["context"])]
        for key, form in (("tokens", "{:,}".format), ("wall_s", seconds), ("step_mb", "{:,.0f} MB".format)):
            cells += [form(row[key]) if row else "" for row in (whole, ours)]
            cells.append(f"{whole[key] / ours[key]:.1f}" if whole and ours else "")
        lines.append(f"| {' | '.join(cells)} |")
    for versions in (setting["versions"] for setting in measured if len(setting["versions"]) > 2):
        lines.append("")
        first = next(iter(versions.values()))
        for version, row in versions.items():
            peak, less = row["before_mb"] + row["step_mb"], row["wall_s"] / first["wall_s"]
            name = version.replace("chunks", f"`TEXT_CHUNK {chunk}`").replace("blocks", "`CHECKPOINT_BLOCKS`")
            lines.append(f"| {name} | {peak:,.0f} MB | {row['step_mb']:,.0f} MB | {less:.2f} |")
    return lines


def report(argv: list[str] | None, args: argparse.Namespace, measured: list[dict], faults: list[str]) -> dict:
    """What the JSON holds."""
    import torch

    for row in (row for setting in measured for row in setting["versions"].values()):
        del row["features"], row["gradient"]
    words = sys.argv[1:] if argv is None else argv
    return {
        "format": 2,
        "command": shlex.join(["python", "tests/benchmarks/classes.py", *words]),
        "settings": {key: value for key, value in vars(args).items() if key != "out"} | {"batch": BATCH},
        "packages": {"torch": torch.__version__, "python": platform.python_version()},
        "cores": os.cpu_count(),
        "measured": measured,
        "faults": faults,
    }


if __name__ == "__main__":
    sys.exit(main())
