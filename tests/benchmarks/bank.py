"""Image features of a test set from the bank against images read and encoded each time, in one run on the CPU.

    python tests/benchmarks/bank.py

100 images through ViT-B/16 with random weights, on 2 threads: 2 minutes on two quiet cores; `--model small` is a
matter of seconds. First use builds the bank, later uses find it by its key and read it. Fails where the features
differ by more than 1e-5.
"""

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

LIMIT = 1e-5
LEAST = {"first": 0.8, "later": 50}  # expected ratios to the plain way: storing costs little, reading next to nothing


def main(argv: list[str] | None = None) -> int:
    """Run, print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("vit_b16", "small"), default="vit_b16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # before torch loads
    from tests.benchmarks.table import lines

    rows, faults = of_model(args.model, args.repeats, args.threads)
    print("\n".join((*lines({args.model: rows}), *(f"error: {fault}" for fault in faults))))
    return 1 if faults else 0


def gather(quick: bool, folder: Path) -> tuple[list, list[str]]:
    """(rows of table.py, faults); writes nothing into `folder`."""
    return of_model("small" if quick else "vit_b16", 1 if quick else 3, threads=2)


def of_model(model: str, repeats: int, threads: int) -> tuple[list, list[str]]:
    """`measure` of a random model on 100 images; something is expected of ViT-B/16 alone."""
    from tests.benchmarks.world import World

    with tempfile.TemporaryDirectory() as place:
        return measure(World(Path(place), model).write(), repeats, threads, LEAST if model == "vit_b16" else {})


def measure(world, repeats: int, threads: int, least: dict[str, float]) -> tuple[list, list[str]]:
    """(rows of table.py, faults): medians of `repeats` calls of the plain way and of both uses of the bank."""
    import torch

    from dassl.clip.feature_bank import build_feature_loader
    from tests.benchmarks.table import Row
    from tests.benchmarks.worker import quiet

    torch.set_num_threads(threads)
    times, faults = {"plain": [], "first": [], "later": []}, []
    with quiet(), torch.no_grad():
        trainer = world.trainer("ZeroshotCLIP", "ZeroshotCLIP/vit_b16")
        loader, clip = trainer.test_loader, trainer.clip

        def plain() -> torch.Tensor:
            return torch.cat([clip.encode_image(batch["img"]) for batch in loader])

        def banked(name: int) -> torch.Tensor:
            cfg = trainer.cfg.clone()
            cfg.merge_from_list(["FEATURES.TEST", True, "FEATURES.DIR", str(world.folder / f"bank_{name}")])
            stored = build_feature_loader(cfg, loader, clip, is_train=False)
            return torch.cat([batch["feature"] for batch in stored])

        for turn in range(repeats):
            calls = {"plain": plain, "first": partial(banked, turn), "later": partial(banked, turn)}
            own = [clock(call, times[name]) for name, call in calls.items()]
            apart = max(float((value - own[0]).norm() / own[0].norm()) for value in own[1:])
            if not apart <= LIMIT:
                faults.append(f"features differ by {apart:.1e}, allowed {LIMIT:.0e}")
    took, what = {name: median(values) for name, values in times.items()}, f"features of {len(own[0])} images"
    return [Row(f"{what}, {name} use", "s", took[name], took["plain"], least.get(name)) for name in LEAST], faults


def clock(call, times: list[float]):
    """What a call returns; its seconds are added to `times`."""
    start = time.perf_counter()
    value = call()
    times.append(time.perf_counter() - start)
    return value


if __name__ == "__main__":
    sys.exit(main())
