"""Ensembles of zero-shot CLIP and a fine-tuned run, over a sweep of alpha: `python -m mergetune.ensemble RUN`.

    weight   theta = (1 - alpha) theta_0 + alpha theta_1     WiSE-FT (arXiv 2109.01903)
    output   y = (1 - alpha) y_0 + alpha y_1, y the models' probabilities (VRF, arXiv 2411.06966) or their logits

Alpha is chosen by accuracy on the run's own validation images; shifted data sets are only tested on.
Letters: N images, C classes.
"""

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dassl.utils import ArgumentParser, RunLock, UserError, check_availability, command_parser, get_logger
from dassl.utils.files import atomic_files, write_json
from dassl.utils.progress import progress
from dassl.utils.torchrun import run_command

KINDS = {"weight": "wise_ft", "output": "output_ensemble"}  # to the method's name in results.json
OUTPUTS = ("probabilities", "logits")
EPILOG = """\
Written below OUT (default RUN/ensemble_KIND): a folder with results.json for the run's own test images and for each
--test data set, at the chosen alpha; and sweep.json, accuracy at every alpha.

examples:
  python -m mergetune.ensemble output/robust/seed1 --test toy_objects_sketch toy_objects_noise
  python -m mergetune.ensemble output/robust/seed1 --kind output --outputs logits
  python -m mergetune.ensemble output/robust/seed1 --alphas 0.5
"""


def build_parser() -> ArgumentParser:
    """The flags."""
    about = "Blend a fine-tuned run with zero-shot CLIP; alpha is chosen on validation images."
    parser = command_parser("mergetune.ensemble", about, EPILOG, ("--root", "--set", "--overwrite"))
    add = parser.add_argument
    add("run", type="path", metavar="RUN", help="run folder of LinearProbe, FineTune or their _LMC")
    add("--alphas", default="0:1:0.1", help="FIRST:LAST:STEP, or numbers with commas; one is taken as it is")
    add("--kind", default="weight", choices=list(KINDS), help="blend weights or outputs")
    add("--outputs", default=OUTPUTS[0], choices=OUTPUTS, help="what an output ensemble blends")
    words = "shifted data sets of the same classes to test on"
    add("--test", dest="tests", nargs="+", default=[], metavar="DATASET", help=words)
    add("--out", type="path", default="", metavar="DIR", help="where results go")
    return parser


if __name__ == "__main__":  # --help and a wrong line need no PyTorch
    run_command(build_parser().parse_args)

import torch
from torch import Tensor

from dassl.config import read_yaml
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import build_trainer, load_config, trainer_class
from dassl.engine.checkpoint import RESULTS, find_model
from dassl.engine.launch import AlreadyFinished, load_trained
from dassl.engine.recipe import build_lists, data_digest
from dassl.engine.results import write_results
from dassl.merging.methods import wise_ft
from dassl.utils.plain_pickle import checkpoint_digest
from mergetune.merge_job import SWEEP, already, compared
from mergetune.stage2 import swapped_parameters, trainable

log = get_logger()

CONFIGS = Path(__file__).parent.parent / "configs" / "datasets"


def read_alphas(text: str) -> list[float]:
    """ "0:1:0.1" (first, last and step), "0.2,0.5", or one number -> values in [0, 1], ascending."""
    try:
        if ":" in text:
            first, last, step = map(float, text.split(":"))
            count = round((last - first) / step)
            values = [round(first + i * step, 10) for i in range(count + 1)]
        else:
            values = [float(word) for word in text.split(",")]
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"--alphas is {text!r}, expected FIRST:LAST:STEP or numbers with commas") from error
    if not values or min(values) < 0 or max(values) > 1:
        raise UserError(f"--alphas is {text!r}, expected values from 0 (zero-shot) to 1 (fine-tuned)")
    return sorted(set(values))


def mix_outputs(zero_shot: Tensor, fine_tuned: Tensor, alpha: float, outputs: str = "probabilities") -> Tensor:
    """(1 - alpha) y_0 + alpha y_1 of two models' logits (N, C) -> (N, C)."""
    check_availability(outputs, OUTPUTS, "What an output ensemble mixes")
    if outputs == "probabilities":
        zero_shot, fine_tuned = zero_shot.softmax(-1), fine_tuned.softmax(-1)
    return (1 - alpha) * zero_shot + alpha * fine_tuned


def choose(alphas: Sequence[float], accuracies: Sequence[float]) -> float:
    """The alpha of the highest accuracy; of equal ones the smallest, nearest to zero-shot."""
    return -max((accuracy, -alpha) for alpha, accuracy in zip(alphas, accuracies, strict=True))[1]


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Per cent; scores (N, C), labels (N,)."""
    return 100 * (scores.argmax(1) == labels).cpu().double().mean().item()


def logits_at(trainer, split: str, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,) of a trainer's "val" or "test" images with these trainable weights."""
    trainer.use_feature_bank_for(split)
    loader = trainer.val_loader if split == "val" else trainer.test_loader
    with torch.no_grad(), swapped_parameters(trainer.model, weights), trainer.cached_classifier():
        batches = map(trainer.parse_batch_test, progress(loader, "logits"))
        pairs = [(trainer.model_inference(images).float(), labels) for images, labels in batches]
    return tuple(map(torch.cat, zip(*pairs, strict=True)))


def curve(
    trainer, split: str, ends: Sequence[dict[str, Tensor]], asked: Mapping, alpha: float | None = None
) -> list[float]:
    """Accuracy in per cent at each alpha that is asked for, on a split of this trainer's data; its evaluator then holds
    what `alpha` scored. ends: the trainable weights of zero-shot CLIP and of the run."""
    outputs = [logits_at(trainer, split, weights) for weights in ends] if asked["kind"] == "output" else []
    accuracies = []
    for value in asked["alphas"]:
        if outputs:
            (first, labels), (last, _) = outputs
            scores = mix_outputs(first, last, value, asked["outputs"])
        else:
            scores, labels = logits_at(trainer, split, wise_ft(*ends, value))
        accuracies.append(accuracy(scores, labels))
        if value == alpha:
            trainer.evaluator.reset()
            trainer.evaluator.process(scores, labels)
            trainer.evaluator.results = trainer.evaluator.evaluate()
            log.info(f"{trainer.cfg.DATASET.NAME}: {accuracies[-1]:.2f}% at alpha {alpha:g}")
    return accuracies


def dataset_name(word: str) -> str:
    """The registered name of a data set, given that or its yaml's name below configs/datasets."""
    file = CONFIGS / f"{word}.yaml"
    name = read_yaml(file)["DATASET"]["NAME"] if file.is_file() else word
    check_availability(name, DATASET_REGISTRY, "--test")
    return name


def request(
    run: str | Path, *, alphas: Sequence[float], kind: str = "weight", outputs: str = "probabilities",
    tests: Sequence[str] = (), root: str = "", pairs: Sequence[str] = (), out: str | Path = ""
) -> tuple[Path, dict, dict]:  # fmt: skip
    """The folder of an ensemble, {registered name: config} of its data sets, and what a finished one is compared by.

    root: where the data sets lie, if they have moved; pairs: KEY, VALUE, ... of what else has.
    """
    check_availability(kind, list(KINDS), "--kind")
    cfg = load_config(run, {"RESUME_COOP": ""}, root, pairs)
    names = dict.fromkeys([cfg.DATASET.NAME, *map(dataset_name, tests)])
    cfgs = {name: load_config(run, {"RESUME_COOP": "", "DATASET.NAME": name}, root, pairs) for name in names}
    asked = {"kind": kind, "outputs": outputs if kind == "output" else None, "alphas": list(alphas)}
    asked["tests"] = list(cfgs)
    asked["weights"] = checkpoint_digest(find_model(str(run), trainer_class(cfg.TRAINER.NAME).model_name))
    data = [data_digest(build_lists(cfg), name) for name, cfg in cfgs.items()]
    return Path(out or Path(run, f"ensemble_{kind}")), cfgs, asked | ({"data": data} if all(data) else {})


def ensemble(run: str | Path, *, overwrite: bool = False, command: str = "", **how) -> dict:
    """Choose alpha on the run's validation images and test it there and on `tests` -> the content of sweep.json.

    how: of `request`. One alpha alone is taken as it is. UserError: several, and the run's data set has no validation
    images.
    """
    out, cfgs, asked = request(run, **how)
    with RunLock(str(out)):
        if already(out, SWEEP, asked, overwrite):
            raise AlreadyFinished(f'"{out}" holds a finished ensemble; --overwrite starts it again')
        earlier = compared(out, SWEEP, asked)[0].get("test", {}).keys() & set(DATASET_REGISTRY)
        with atomic_files(out, SWEEP, [f"{name}/{RESULTS}" for name in earlier]) as folder:
            facts = {"format": 1, "run": str(run), "kind": asked["kind"], "alphas": asked["alphas"]}
            facts |= mixed(Path(run), cfgs, asked, Path(folder), command) | {"command": command, "asked": asked}
            write_json(facts, os.path.join(folder, SWEEP))
    return facts


def differences(argv: Sequence[str], memo: dict | None = None) -> list[str]:
    """Lines on what the finished ensemble in the folder of a command line has otherwise than this line would; [] where
    there is none. MissingFile: its run is gone."""
    args = read(argv)
    del args["overwrite"]
    out, _, asked = request(**args)
    return compared(out, SWEEP, asked)[1]


def mixed(run: Path, cfgs: Mapping, asked: Mapping, folder: Path, command: str) -> dict:
    """Choose alpha, and write the results of each data set below `folder`, the run's own first -> what comes of it."""

    def opened(cfg):
        trainer = build_trainer(cfg)
        load_trained(trainer, str(run))
        return trainer

    started, alphas, kind = time.monotonic(), asked["alphas"], asked["kind"]
    first, *_ = cfgs
    trainer = opened(cfgs[first])
    ends = [trainer.zero_shot_weights(), trainable(trainer.model)]
    ends = [{name: value.detach().clone() for name, value in weights.items()} for weights in ends]
    alpha, validation = alphas[0], None
    if len(alphas) > 1:
        if not trainer.has_validation():
            raise UserError(
                f"{first} has no validation images to choose alpha on, and the test images must not: "
                "give one value, e.g. --alphas 0.5"
            )
        validation = curve(trainer, "val", ends, asked)
        alpha = choose(alphas, validation)
    preset, title = trainer.trained["preset"], f"{kind} ens."
    merge = {"method": KINDS[kind], "title": title, "alpha": alpha, "preset": preset}
    merge |= {"outputs": asked["outputs"]} if asked["outputs"] else {}
    row = {"preset": f"{preset} + {title}" if preset else title, "merge": merge}
    row["alpha_chosen_on"] = "given" if validation is None else "validation"
    row |= {name: trainer.trained[name] for name in ("unfinished",) if name in trainer.trained}
    tested = {}
    for name, cfg in cfgs.items():
        trainer = trainer if name == first else opened(cfg)
        fitting = [trainer.fit_classes(str(run), weights) for weights in ends]
        tested[name] = curve(trainer, "test", fitting, asked, alpha)
        trainer.trained = trainer.trained | row
        seconds = time.monotonic() - started
        write_results(str(folder / name), trainer, trainer.cfg, wall_s=seconds, command=command, kind="eval")
    return {"alpha": alpha, **row, "validation": validation, "test": tested}


def read(argv: Sequence[str]) -> dict:
    """The arguments of `ensemble` of a command line."""
    args = vars(build_parser().parse_args(argv))
    return args | {"alphas": read_alphas(args["alphas"])}


def main(argv: list[str] | None = None) -> dict:
    """Run one command line; returns the content of sweep.json."""
    argv = sys.argv[1:] if argv is None else argv
    return ensemble(**read(argv), command=shlex.join(["python", "-m", "mergetune.ensemble", *argv]))


if __name__ == "__main__":
    run_command(main)
