"""Image features of a test set from the bank against images read and encoded each time, in one run on the CPU.

    python tests/benchmarks/bank.py
    python tests/benchmarks/bank.py --views 20         # the loading side alone: a minute

100 images through ViT-B/16 with random weights, on 2 threads: 2 minutes on two quiet cores; `--model small` is a
matter of seconds. First use builds the bank, later uses find it by its key and read it. Fails where the features
differ by more than 1e-5.

--views V: V views of each of 50 JPEGs of 500 x 375 pixels by the presets' training transform (a random crop resized to
224 pixels bicubically, a flip), without a tower: an image decoded once, against view after view of the whole list, in
turns, in this process and from two workers. Fails where a number differs.
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
    parser.add_argument("--views", type=int, default=0, help="of the loading side, which is measured alone")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # before torch loads
    from tests.benchmarks.table import lines

    if args.views:
        rows, faults = of_loading(args.views, args.repeats)
    else:
        rows, faults = of_model(args.model, args.repeats, args.threads)
    of = "loading" if args.views else args.model
    print("\n".join((*lines({of: rows}), *(f"error: {fault}" for fault in faults))))
    return 1 if faults else 0


def gather(quick: bool, folder: Path) -> tuple[list, list[str]]:
    """(rows of table.py, faults); writes nothing into `folder`."""
    rows, faults = of_model("small" if quick else "vit_b16", 1 if quick else 3, threads=2)
    more, others = of_loading(2, 1, images=10) if quick else of_loading(20, 1)
    return rows + more, faults + others


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


def of_loading(count: int, repeats: int, images: int = 50) -> tuple[list, list[str]]:
    """(rows of table.py, faults) of the seconds of `count` views of `images` JPEGs, medians of `repeats` turns."""
    import torch

    from tests.benchmarks.table import Row

    torch.set_num_threads(1)
    rows, faults, batches = [], [], torch.arange(images).split(25)
    with tempfile.TemporaryDirectory() as place:
        pixels = jpegs(Path(place), images)
        ours = [(batch, range(count)) for batch in batches]
        plain = [(batch, [view]) for view in range(count) for batch in batches]
        for workers in (0, 2):
            times, busy = ([], []), ([], [])
            for _ in range(repeats):
                first = clock(partial(load, pixels, ours, workers, busy[0]), times[0])
                if first != clock(partial(load, pixels, plain, workers, busy[1]), times[1]):
                    faults.append(f"other numbers with {workers} workers")
            what, took = f"{count} views of {images} JPEGs, {workers} workers", list(map(median, times))
            rows.append(Row(what, "s", *took, 1.3 if count >= 20 else None))
            each = [f"{1000 * median(seconds) / count / images:.2f} ms" for seconds in busy]
            rates = [f"{count * images / seconds:,.0f}" for seconds in took]
            print(f"{what}: {rates[0]} views a second, plain {rates[1]}; of a core a view takes {' and '.join(each)}")
        times = []
        for item in pixels.data_source:
            times.append(-time.process_time())
            item.load_image()
            times[-1] += time.process_time()
        print(f"decoding an image: {1000 * median(times):.2f} ms of a core")
    return rows, faults


def load(pixels, work, workers: int, busy: list[float]) -> float:
    """A sum over the bits of all numbers of these views, in whatever order they come; the seconds that processors were
    busy with it, in all processes, are added to `busy`."""
    import torch

    from dassl.data.data_manager import Loader
    from dassl.data.views import ViewBatches

    began = sum(os.times()[:4])
    loaded = Loader(ViewBatches(pixels, work), None, num_workers=workers)
    total = sum(int(part["img"].view(torch.int64).sum()) for part in loaded if part)
    busy.append(sum(os.times()[:4]) - began)
    return total


def jpegs(folder: Path, count: int):
    """A training set of noisy JPEGs of about 70 kB with the presets' transform."""
    import numpy as np
    from PIL import Image

    from dassl.config import get_cfg_default
    from dassl.data.data_manager import DatasetWrapper
    from dassl.data.datasets import Datum
    from dassl.data.transforms import build_transform

    draw, paths = np.random.default_rng(0), [folder / f"{i:03d}.jpg" for i in range(count)]
    for path in paths:
        coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.asarray(coarse) + draw.normal(0, 8, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    cfg = get_cfg_default()
    cfg.merge_from_list(["INPUT.TRANSFORMS", ("random_resized_crop", "random_flip", "normalize")])
    cfg.merge_from_list(["INPUT.SIZE", (224, 224), "INPUT.INTERPOLATION", "bicubic"])
    source = [Datum(str(path)) for path in paths]
    return DatasetWrapper(cfg, source, build_transform(cfg, is_train=True), is_train=True)


def clock(call, times: list[float]):
    """What a call returns; its seconds are added to `times`."""
    start = time.perf_counter()
    value = call()
    times.append(time.perf_counter() - start)
    return value


if __name__ == "__main__":
    sys.exit(main())
