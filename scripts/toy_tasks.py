"""Zero-shot CLIP and CoOp on the toy world's validation pictures: how its tasks were chosen and frozen.

    python scripts/toy_tasks.py [ToyName ...]       prints the table of dassl/clip/tiny/README.md

Seeds 11 to 13 and validation pictures only; no MERGETUNE or ConDU run, no test picture. A task serves for
base-to-new if zero-shot lies between 1.5 x chance and 85 % on both halves and CoOp gains 3 points on base.
Whether CoOp loses on the new classes is no criterion: choosing by it would flatter any second training.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

SEEDS = (11, 12, 13)
GAIN, FLOOR, CEILING = 3.0, 1.5, 85.0


def on_validation(trainer) -> float:
    """Accuracy in percent on all validation pictures of the trainer's classes."""
    from dassl.data import build_data_loader, subsample_classes
    from dassl.data.transforms import build_transform

    cfg, dataset = trainer.cfg, trainer.dm.dataset
    train, val, _ = dataset.read()
    _, val = subsample_classes(train, val, subset=cfg.DATASET.SUBSAMPLE_CLASSES)
    trainer.test_loader = build_data_loader(
        cfg, data_source=val, batch_size=200, tfm=build_transform(cfg, is_train=False), is_train=False
    )
    return trainer.test()


def measure(name: str, seed: int, data: str) -> dict:
    """One task and seed: {"classes", "zs_base", "zs_new", "coop_base", "coop_new"}."""
    import torch

    torch.set_num_threads(1)
    import train
    from dassl.engine import build_trainer
    from datasets.toy.world import WORLD
    from scripts.commands import COMMANDS
    from scripts.steps import train_argv

    folder, found = WORLD[name].folder, {"classes": len(WORLD[name].classnames)}
    with tempfile.TemporaryDirectory() as output:
        os.environ |= {"DATA": data, "OUTPUT": output}

        def argv(command: str, subset: str) -> list[str]:
            arguments = COMMANDS[command].complete({"DATASET": folder, "SEED": str(seed)})
            return [*train_argv(command, arguments, []), "DATASET.SUBSAMPLE_CLASSES", subset]

        def trainer(command: str, subset: str):
            return build_trainer(train.setup_cfg(train.build_parser().parse_intermixed_args(argv(command, subset))))

        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            train.main([*argv("coop/base2new_train", "base"), "TEST.NO_TEST", "True"])
            for subset in ("base", "new"):
                found[f"zs_{subset}"] = on_validation(trainer("zsclip/base2base_test", subset))
                coop = trainer("coop/base2new_train", subset)
                coop.load_model(coop.cfg.OUTPUT_DIR, epoch=coop.cfg.OPTIM.MAX_EPOCH)
                found[f"coop_{subset}"] = on_validation(coop)
    return found


def main() -> None:
    from datasets.toy.world import STRENGTHS, WORLD

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=WORLD, metavar="ToyName", help="default: the base-to-new ones")
    names = parser.parse_args().names or [name for name, toy in WORLD.items() if toy.base_to_new]
    if os.environ.get("DRY_RUN") == "1":
        print(*(f"{name}: zero-shot CLIP and CoOp, seeds {SEEDS}" for name in names), sep="\n")
        return
    print("| task | classes | strength | zero-shot base | new | CoOp base | new | serves |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    with tempfile.TemporaryDirectory() as data, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        runs = {name: [pool.submit(measure, name, seed, data) for seed in SEEDS] for name in names}
        for name, futures in runs.items():
            found = [future.result() for future in futures]
            mean = {key: statistics.mean(row[key] for row in found) for key in found[0]}
            floor = FLOOR * 100 / (mean["classes"] / 2)
            zero_shot = (mean["zs_base"], mean["zs_new"])
            fits = all(floor <= value <= CEILING for value in zero_shot) and mean["coop_base"] - mean["zs_base"] >= GAIN
            accuracies = [f"{value:.1f}" for value in (*zero_shot, mean["coop_base"], mean["coop_new"])]
            cells = [name, f"{mean['classes']:.0f}", f"{STRENGTHS[name]:.2f}", *accuracies, "yes" if fits else "no"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
