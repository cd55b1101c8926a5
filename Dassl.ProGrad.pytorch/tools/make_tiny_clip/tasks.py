"""Zero-shot CLIP and CoOp on the toy world's validation images: how its tasks were chosen and frozen.

    python Dassl.ProGrad.pytorch/tools/make_tiny_clip/tasks.py [ToyName ...]    the table of dassl/clip/tiny/README.md

Seeds 11 to 13 and validation images only; no MERGETUNE or ConDU run, no test image. A task serves for
base-to-new if zero-shot lies between 1.5 x chance and 85 % on both halves and CoOp gains 3 points on base.
Whether CoOp loses on the new classes is no criterion: choosing by it would flatter any second training.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

import train  # noqa: E402
from dassl.engine import build_trainer  # noqa: E402
from datasets.toy.world import STRENGTHS, WORLD  # noqa: E402
from scripts.commands import COMMANDS  # noqa: E402
from scripts.jobs import train_argv  # noqa: E402

SEEDS = (11, 12, 13)
GAIN, FLOOR, CEILING = 3.0, 1.5, 85.0


def on_validation(trainer) -> float:
    """Accuracy in percent on all validation images of the trainer's classes."""
    from dassl.data import build_data_loader, subsample_classes  # late: --help needs no PyTorch
    from dassl.data.transforms import build_transform

    cfg, dataset = trainer.cfg, trainer.dm.dataset
    everything, val, _ = dataset.read()
    _, val = subsample_classes(everything, val, subset=cfg.DATASET.SUBSAMPLE_CLASSES)
    transform = build_transform(cfg, is_train=False)
    trainer.test_loader = build_data_loader(cfg, data_source=val, batch_size=200, tfm=transform, is_train=False)
    return trainer.test()


def measure(name: str, seed: int) -> dict[str, float]:
    """One task and seed: {"zs_base", "zs_new", "coop_base", "coop_new"}."""
    accuracies = {}

    def argv(command: str, subset: str) -> list[str]:
        arguments = COMMANDS[command].complete({"DATASET": WORLD[name].folder, "SEED": str(seed)})
        return [*train_argv(command, arguments, []), "DATASET.SUBSAMPLE_CLASSES", subset]

    def trainer(command: str, subset: str):
        return build_trainer(train.setup_cfg(train.build_parser().parse_intermixed_args(argv(command, subset))))

    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        train.main([*argv("coop/base2new_train", "base"), "TEST.NO_TEST", "True"])
        for subset in ("base", "new"):
            accuracies[f"zs_{subset}"] = on_validation(trainer("zsclip/base2base_test", subset))
            coop = trainer("coop/base2new_train", subset)
            coop.load_model(coop.cfg.OUTPUT_DIR, epoch=coop.cfg.OPTIM.MAX_EPOCH)
            accuracies[f"coop_{subset}"] = on_validation(coop)
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=WORLD, metavar="ToyName", help="default: the base-to-new ones")
    names = parser.parse_args().names or [name for name, toy in WORLD.items() if toy.base_to_new]
    print("| task | classes | strength | zero-shot base | new | CoOp base | new | serves |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"DATA": f"{folder}/data", "OUTPUT": f"{folder}/output"}
        for name in names:
            rows = [measure(name, seed) for seed in SEEDS]
            mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
            classes = len(WORLD[name].classnames)
            zero_shot = mean["zs_base"], mean["zs_new"]
            fits = all(FLOOR * 200 / classes <= value <= CEILING for value in zero_shot)
            fits = fits and mean["coop_base"] - mean["zs_base"] >= GAIN
            accuracies = [f"{value:.1f}" for value in (*zero_shot, mean["coop_base"], mean["coop_new"])]
            cells = [name, str(classes), f"{STRENGTHS[name]:.2f}", *accuracies, "yes" if fits else "no"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
