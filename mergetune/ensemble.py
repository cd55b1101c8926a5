"""Ensembles of zero-shot CLIP and a fine-tuned run, over a sweep of alpha: `python -m mergetune.ensemble RUN`.

    weight   theta = (1 - alpha) theta_0 + alpha theta_1     WiSE-FT (arXiv 2109.01903)
    output   y = (1 - alpha) y_0 + alpha y_1, y the models' probabilities (VRF, arXiv 2411.06966) or their logits

Alpha is chosen by accuracy on the run's own validation images; shifted data sets are only tested on.
Letters: N images, C classes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.config import read_yaml
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import build_trainer
from dassl.utils import (
    ArgumentParser,
    RunLock,
    UserError,
    check_availability,
    errors_in_one_line,
    get_logger,
    write_json,
)
from dassl.utils.progress import progress
from dassl.utils.torchrun import one_process
from mergetune.merging import wise_ft

if TYPE_CHECKING:
    from torch import Tensor

log = get_logger()

KINDS = {"weight": "wise_ft", "output": "output_ensemble"}  # to the method's name in results.json
OUTPUTS = ("probabilities", "logits")
FILE = "sweep.json"
CONFIGS = Path(__file__).parent.parent / "configs" / "datasets"

EPILOG = f"""\
Written below OUT (default RUN/ensemble_KIND): a folder with results.json for the run's own test images and for each
--test data set, at the chosen alpha; and {FILE}, accuracy at every alpha.

examples:
  python -m mergetune.ensemble output/robust/seed1 --test toy_objects_sketch toy_objects_noise
  python -m mergetune.ensemble output/robust/seed1 --kind output --outputs logits
  python -m mergetune.ensemble output/robust/seed1 --alphas 0.5
"""


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
    best = max(accuracies)
    return min(alpha for alpha, found in zip(alphas, accuracies, strict=True) if found == best)


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Per cent; scores (N, C), labels (N,)."""
    return 100 * (scores.argmax(1) == labels).double().mean().item()


def logits_at(trainer, split: str, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,) of a trainer's "val" or "test" images with these trainable weights."""
    import torch

    from mergetune.weights import at

    trainer.route_split(split)
    loader = trainer.val_loader if split == "val" else trainer.test_loader
    with torch.no_grad(), at(trainer.model, weights), trainer.classifier_held():
        pairs = [
            (trainer.model_inference(images).float(), labels)
            for images, labels in map(trainer.parse_batch_test, progress(loader, "logits"))
        ]
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])


@dataclass
class Ensemble:
    """Both ends of the sweep, as trainable weights, with the class names of the run that they come from."""

    zero_shot: dict[str, Tensor]
    fine_tuned: dict[str, Tensor]
    classnames: list[str]
    kind: str = "weight"
    outputs: str = "probabilities"

    @classmethod
    def of(cls, trainer, kind: str, outputs: str) -> Ensemble:
        """Of a trainer that has loaded its run."""
        from mergetune.weights import trainable

        weights = {name: value.detach().clone() for name, value in trainable(trainer.model).items()}
        zero_shot = {name: value.detach().clone() for name, value in trainer.zero_shot_weights().items()}
        return cls(zero_shot, weights, list(trainer.classnames), kind, outputs)

    def scorer(self, trainer, split: str) -> tuple[Callable[[float], Tensor], Tensor]:
        """alpha -> scores (N, C) on a split of this trainer's data, and its labels (N,)."""
        ends = [self.on(trainer, weights) for weights in (self.zero_shot, self.fine_tuned)]
        (first, labels), (last, _) = (logits_at(trainer, split, weights) for weights in ends)
        if self.kind == "output":
            return (lambda alpha: mix_outputs(first, last, alpha, self.outputs)), labels
        known = {0.0: first, 1.0: last}

        def score(alpha: float) -> Tensor:
            return known[alpha] if alpha in known else logits_at(trainer, split, wise_ft(*ends, alpha))[0]

        return score, labels

    def on(self, trainer, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights for a trainer's classes: of a head, the rows with their names."""
        from mergetune.heads import rows_for

        key = getattr(trainer, "head_key", None)
        if key is None or list(trainer.classnames) == self.classnames:
            return weights
        return weights | {key: weights[key][rows_for(self.classnames, trainer.classnames, "The run")]}


def data_set_name(word: str) -> str:
    """The registered name of a data set, given that or its yaml's name below configs/datasets."""
    file = CONFIGS / f"{word}.yaml"
    name = read_yaml(file)["DATASET"]["NAME"] if file.is_file() else word
    check_availability(name, DATASET_REGISTRY.registered_names(), "--test")
    return name


def opened(run: Path, root: str, out: Path, dataset: str):
    """The trainer of a run with its weights, on a data set, and its config."""
    from dassl.engine.launch import load_trained
    from mergetune.family import run_config

    cfg = run_config(run, "--root", root, "--output-dir", str(out), "DATASET.NAME", dataset)
    trainer = build_trainer(cfg)
    load_trained(trainer, str(run))
    return trainer, cfg


def ensemble(
    run: str | Path,
    *,
    alphas: Sequence[float],
    kind: str = "weight",
    outputs: str = "probabilities",
    tests: Sequence[str] = (),
    root: str = "",
    out: str | Path = "",
    overwrite: bool = False,
    command: str = "",
) -> dict:
    """Choose alpha on the run's validation images and test it there and on `tests` -> the content of sweep.json.

    One alpha alone is taken as it is. UserError: several, and the run's data set has no validation images.
    """
    from dassl.engine.launch import AlreadyFinished
    from mergetune.family import run_config

    check_availability(kind, list(KINDS), "--kind")
    run, out = Path(run), Path(out or Path(run, f"ensemble_{kind}"))
    with RunLock(str(out)):
        if (out / FILE).is_file() and not overwrite:
            raise AlreadyFinished(f'"{out}" holds a finished ensemble; --overwrite starts it again')
        (out / FILE).unlink(missing_ok=True)
        started = time.monotonic()
        own = run_config(run, "--root", root).DATASET.NAME
        names = [own, *(name for name in map(data_set_name, tests) if name != own)]
        trainer, cfg = opened(run, root, out / own, own)
        both = Ensemble.of(trainer, kind, outputs)
        validation = validate(both, trainer, alphas) if len(alphas) > 1 else None
        alpha = alphas[0] if validation is None else choose(alphas, validation)
        row = describe(trainer.trained["preset"], kind, outputs, alpha, "given" if validation is None else "validation")
        tested = {}
        for name in names:
            if name != own:
                trainer, cfg = opened(run, root, out / name, name)
            score, labels = both.scorer(trainer, "test")
            tested[name] = [accuracy(score(value), labels) for value in alphas]
            record(trainer, cfg, score(alpha), labels, row, out / name, time.monotonic() - started, command)
            log.info(f"{name}: {tested[name][list(alphas).index(alpha)]:.2f}% at alpha {alpha:g}")
        facts = {"format": 1, "run": str(run), "kind": kind, "alphas": list(alphas), "alpha": alpha, **row}
        facts |= {"validation": validation, "test": tested, "command": command}
        write_json(facts, str(out / FILE))
    return facts


def validate(both: Ensemble, trainer, alphas: Sequence[float]) -> list[float]:
    """Accuracy of each alpha on the validation images of the run's own data set."""
    if not trainer.has_validation():
        raise UserError(
            f"{trainer.cfg.DATASET.NAME} has no validation images to choose alpha on, and the test images must not: "
            "give one value, e.g. --alphas 0.5"
        )
    score, labels = both.scorer(trainer, "val")
    return [accuracy(score(alpha), labels) for alpha in alphas]


def describe(preset: str, kind: str, outputs: str, alpha: float, chosen_on: str) -> dict:
    """What results.json says of the ensemble."""
    title = f"{kind} ens."
    merge = {"method": KINDS[kind], "title": title, "alpha": alpha, "preset": preset}
    if kind == "output":
        merge["outputs"] = outputs
    return {
        "preset": f"{preset} + {title}" if preset else title,
        "merge": merge,
        "alpha_chosen_on": chosen_on,
    }


def record(trainer, cfg, scores: Tensor, labels: Tensor, row: dict, folder: Path, wall_s: float, command: str) -> None:
    """results.json of the scores (N, C), as of any evaluation."""
    from dassl.engine.results import write_results

    trainer.evaluator.reset()
    trainer.evaluator.process(scores, labels)
    trainer.evaluator.results = trainer.evaluator.evaluate()
    trainer.trained = trainer.trained | row
    write_results(str(folder), trainer, cfg, wall_s=wall_s, command=command, kind="eval")


def build_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m mergetune.ensemble",
        description="Blend a fine-tuned run with zero-shot CLIP; alpha is chosen on validation images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", type="path", metavar="RUN", help="run folder of LinearProbe, FineTune or their _LMC")
    add("--alphas", default="0:1:0.1", help="FIRST:LAST:STEP, or numbers with commas; one is taken as it is")
    add("--kind", default="weight", choices=list(KINDS), help="blend weights or outputs")
    add("--outputs", default=OUTPUTS[0], choices=OUTPUTS, help="what an output ensemble blends")
    add("--test", nargs="+", default=[], metavar="DATASET", help="shifted data sets of the same classes to test on")
    add("--root", type="path", default="", help="folder of all data sets, if it is not where the run found it")
    add("--out", type="path", default="", metavar="DIR", help="where results go")
    add("--overwrite", action="store_true", help="start a finished ensemble again")
    return parser


def main(argv: list[str] | None = None) -> dict:
    """Run one command line; returns the content of sweep.json."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    return ensemble(
        args.run,
        alphas=read_alphas(args.alphas),
        kind=args.kind,
        outputs=args.outputs,
        tests=args.test,
        root=args.root,
        out=args.out,
        overwrite=args.overwrite,
        command=shlex.join(["python", "-m", "mergetune.ensemble", *argv]),
    )


if __name__ == "__main__":
    with errors_in_one_line(), one_process():
        main()
