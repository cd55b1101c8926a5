"""The path card of a stage-2 run: loss and accuracy along zero-shot -> ours -> fine-tuned (the paper's Figure 2).

    python -m mergetune.path_card RUN [--space features|weights|both] [--plane] [--others] [--figure] [--images N]

Beside that path: the straight line zero-shot -> fine-tuned, and the barrier of every straight line, which is the
largest loss above the line between the losses at its ends (dassl.report.stats.barrier), or accuracy below it. In
the space of features class vectors are interpolated and image features come from the bank, so a card costs
seconds; in the space of weights the model runs anew at every point. t runs from 0 (zero-shot) over 1 (ours) to 2
(fine-tuned); a method without a zero-shot solution starts at 1.
Letters: B images, C classes, D joint width, S line points.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.config import with_values
from dassl.engine import build_trainer, load_config, trainer_class
from dassl.report.protocols.paths import FORMAT, OTHERS, QUANTITIES, SOLUTIONS, SPACES, SUBSETS
from dassl.report.protocols.paths import PATH_FILE as FILE
from dassl.report.stats import barrier, harmonic_mean
from dassl.report.table import Table
from dassl.utils import UserError, command_parser, errors_in_one_line, get_logger, quiet, read_json, write_json
from dassl.utils.progress import progress
from dassl.utils.torchrun import one_process

if TYPE_CHECKING:
    from mergetune.plane import Batches

log = get_logger()

LEG_POINTS = 21  # on each straight line, ends included
CHUNK = {"features": 1024, "weights": 8192}  # features (B, D) from the bank, scored together
HALVES, WHOLE = SUBSETS[:2], SUBSETS[2:3]

EPILOG = """\
Loss in nats, accuracy in percent, on the test images. Barrier: largest loss above the straight line between the losses
at both ends, or accuracy below it. The space of weights runs the model at 63 points.
"""


def walk(trainer, space: str, solutions: dict, batches: Batches) -> dict:
    """Every straight line of one subset -> {"t", "loss", "accuracy", "direct": {...}}."""
    import torch

    from mergetune.plane import score

    points = torch.linspace(0, 1, LEG_POINTS, device=trainer.device)
    ts = [round(t, 6) for t in points.tolist()]
    names = list(solutions)
    first = SOLUTIONS.index(names[0])  # where the path starts on the axis of t
    path: dict = {"t": [], "loss": [], "accuracy": []}
    lines = list(zip(names, names[1:], strict=False))
    if len(names) == len(SOLUTIONS):
        lines.append((names[0], names[-1]))
    for i, (a, b) in enumerate(lines):
        found = score(trainer, space, solutions[a], solutions[b], points, batches)
        if i == len(names) - 1:
            path["direct"] = {"t": ts, **found}
            continue
        keep = slice(1 if i else 0, None)  # pieces share a point
        path["t"] += [round(first + i + t, 6) for t in ts[keep]]
        for quantity, values in found.items():
            path[quantity] += values[keep]
    return path


def mean_of(parts: Sequence):
    """The mean of numbers, lists of them, or dicts of either."""
    import numpy as np

    if isinstance(parts[0], dict):
        return {name: mean_of([part[name] for part in parts]) for name in parts[0]}
    return np.mean(parts, axis=0).tolist()


def barriers(path: dict, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """{line: {quantity: height}} of a path of `walk` through these solutions."""
    lines = {}
    for i, line in enumerate(map("_to_".join, zip(names, names[1:], strict=False))):
        lines[line] = {q: path[q][i * (LEG_POINTS - 1) :][:LEG_POINTS] for q in QUANTITIES}
    lines |= {f"{names[0]}_to_{names[-1]}": path["direct"]} if "direct" in path else {}
    ts = range(LEG_POINTS)
    return {line: {q: barrier(ts, own[q], q == "loss") for q in QUANTITIES} for line, own in lines.items()}


def batches_of(trainer, images: int | None = None, chunk: int = CHUNK["features"]) -> Batches:
    """The test split as `path_logits` takes it; features from the bank in parts of `chunk`.

    images: take so many, evenly spaced over the split, instead of all.
    """
    import torch

    trainer.use_feature_bank_for("test")
    total = len(trainer.test_loader.dataset)
    wanted = total if images is None else min(images, total)
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[torch.arange(wanted) * total // max(wanted, 1)] = True
    batches, seen = [], 0
    for batch in progress(trainer.test_loader, "reading images"):
        pixels, labels = trainer.parse_batch_test(batch)
        keep = chosen[seen : seen + len(labels)].to(labels.device)
        seen += len(labels)
        if keep.any():
            batches.append((pixels[keep], labels[keep]))
    if batches and batches[0][0].dim() == 2:
        joined, labels = (torch.cat(part) for part in zip(*batches, strict=True))
        batches = list(zip(joined.split(chunk), labels.split(chunk), strict=True))
    return batches


def read_cfg(run: Path, pairs: Sequence[str] = (), others: Sequence[str] = ()):
    """The frozen config of a stage-2 run. pairs: KEY, VALUE, ... of what has moved since. others: TEST.OTHERS."""
    from mergetune.stage1 import check_begun_from
    from mergetune.stage2 import MergeTune

    cfg = load_config(run, {"VERBOSE": False, "TEST.OTHERS": list(others)}, pairs=pairs)
    if not (cfg.RESUME_COOP and issubclass(trainer_class(cfg.TRAINER.NAME), MergeTune)):
        raise UserError(f"{run} is no stage-2 run: {cfg.TRAINER.NAME} continues no stage 1")
    check_begun_from(run, cfg)
    return cfg


def on_subset(cfg, subset: str):
    """A config on another subset of the classes."""
    return with_values(cfg, {"DATASET.SUBSAMPLE_CLASSES": subset})


@contextmanager
def loaded(run: Path, cfg, build: Callable = build_trainer) -> Iterator:
    """The trainer of a run with its weights, as an evaluation of this config would have it."""
    import torch

    from dassl.engine.state import stop_workers

    trainer = build(cfg)
    trainer.load_model(str(run))
    trainer.set_model_mode("eval")
    try:
        with torch.no_grad(), trainer.precision.autocast():
            yield trainer
    finally:
        stop_workers(trainer)


def subsets_of(cfg) -> tuple[str, ...]:
    """base and new where classes were split for the run, else all of them; class-specific prompts have one half."""
    if cfg.DATASET.SUBSAMPLE_CLASSES in HALVES and cfg.TRAINER.COOP.CSC:
        return (cfg.DATASET.SUBSAMPLE_CLASSES,)
    split = cfg.DATASET.SUBSAMPLE_CLASSES in HALVES or cfg.TRAINER.MODAL == "base2novel"
    return HALVES if split else WHOLE


@contextmanager
def image_features_once(trainer, space: str) -> Iterator[None]:
    """In the space of features all lines are scored on the same image features: compute those of a batch once."""
    if space == "features":
        trainer.image_features = functools.cache(trainer.image_features)
    try:
        yield
    finally:
        vars(trainer).pop("image_features", None)


def path_card(
    run: str | Path,
    spaces: tuple[str, ...] = SPACES[:1],
    plane: bool = False,
    images: int | None = None,
    pairs: Sequence[str] = (),
    others: Sequence[str] = (),
    others_in: tuple[str, ...] = SPACES[:1],
) -> dict:
    """Compute RUN/path.json from the run's config, its stage 1 and its checkpoint -> its content.

    The space of features is always there; "weights" adds the other under that name; plane: the plane through the
    three solutions, in the last of `spaces`. images: of each subset, evenly spaced, instead of all. others: names as in
    TEST.OTHERS, whose mean is a curve too, in the spaces `others_in`. What an earlier call found and this one leaves
    out is kept, its others made again. pairs: KEY, VALUE, ... of what has moved since.
    """
    from dassl.engine.others import build_other, other_sets
    from dassl.engine.recipe import unfinished, weights_digest

    run = Path(run)
    earlier = read_json(run / FILE) if (run / FILE).is_file() else {}
    earlier = earlier if isinstance(earlier, dict) else {}
    entry = earlier.get(OTHERS)
    others = list(others) or (entry.get("asked", []) if isinstance(entry, dict) else [])
    cfg = read_cfg(run, pairs, others)
    sets = other_sets(on_subset(cfg, HALVES[1])) if others else {}
    wanted = [space for space in SPACES if space in spaces or space == SPACES[0]]
    card: dict = {space: {"space": space, "images": {}, "barrier": {}, "seconds": 0} for space in wanted}
    plane_card: dict = {"space": spaces[-1]}
    for space, own in card.items():
        on = plane_card if plane and space == spaces[-1] else None
        for subset in subsets_of(cfg):
            trainer = _score(own, subset, run, [on_subset(cfg, subset)], images, on)
        own["zero_shot_template"] = trainer.zero_shot_prompt(space)
        if space == SPACES[0] and trainer.path_note:
            own["note"] = trainer.path_note
        if others and space in others_in:
            bound = trainer.bound_to_classes
            own[OTHERS] = {"asked": others, "sets": []} | ({"bound": bound} if bound else {"sets": list(sets)})
            if own[OTHERS]["sets"]:
                trainer = _score(own, OTHERS, run, sets.values(), images, build=build_other)
                own[OTHERS]["zero_shot_template"] = trainer.zero_shot_prompt(space)
    own = {"digest": weights_digest(trainer._files)}  # whose card it is
    own |= {"unfinished": line} if (line := unfinished(run, trainer._loaded[1])) else {}
    found = {"format": FORMAT, **own, **card.pop(SPACES[0]), **card} | ({"plane": plane_card} if plane else {})
    if earlier.get("digest", own["digest"]) != own["digest"]:
        earlier = {}  # of other weights
    kept = {name: earlier[name] for name in (SPACES[1], "plane") if name in earlier and name not in found}
    write_json(found | kept, str(run / FILE))
    return found | kept


def _score(own: dict, subset: str, run: Path, cfgs: Iterable, images, plane: dict | None = None, build=build_trainer):
    """Into `own` one subset of its space, the mean over configs, and into `plane` its plane -> the last trainer."""
    from mergetune.plane import add_plane

    began, paths, own["images"][subset] = time.perf_counter(), [], 0
    for cfg in cfgs:
        with loaded(run, cfg, build) as trainer, image_features_once(trainer, own["space"]):
            batches, solutions = batches_of(trainer, images, CHUNK[own["space"]]), trainer.solutions(own["space"])
            paths.append(walk(trainer, own["space"], solutions, batches))
            if plane is not None:
                add_plane(plane, subset, trainer, solutions, batches)
        own["images"][subset] += sum(len(labels) for _, labels in batches)
    path = mean_of(paths)
    own["solutions"], own["t"] = list(solutions), paths[0]["t"]
    own[subset] = own.get(subset, {}) | {q: path[q] for q in QUANTITIES}
    for line, heights in barriers(path, own["solutions"]).items():
        own["barrier"].setdefault(line, {})[subset] = heights
    if "direct" in path:
        direct = own.setdefault("direct", {"t": paths[0]["direct"]["t"]})
        direct[subset] = {q: path["direct"][q] for q in QUANTITIES}
    own["seconds"] = round(own["seconds"] + time.perf_counter() - began, 3)
    return trainer


def card_table(own: dict) -> Table:
    """One space of a card -> Table: loss and accuracy at each solution, then the barrier of each line."""
    subsets = [subset for subset in SUBSETS if subset in own["images"]]
    halves = [subset for subset in HALVES if HALVES[0] in subsets and HALVES[1] in subsets]
    rows = []
    for i, name in enumerate(own["solutions"]):
        k = own["t"].index(float(SOLUTIONS.index(own["solutions"][0]) + i))
        cells = [f"{own[subset][q][k]:.{_digits(q)}f}" for subset in subsets for q in QUANTITIES]
        mean = [f"{harmonic_mean(*(own[subset]['accuracy'][k] for subset in halves)):.2f}"] if halves else []
        template = own.get("zero_shot_template") if name == SOLUTIONS[0] else ""
        rows.append([name.replace("_", "-") + (f" ({template})" if template else ""), *cells, *mean])
    for line, heights in own["barrier"].items():
        cells = [f"{heights[subset][q]:.{_digits(q)}f}" for subset in subsets for q in QUANTITIES]
        rows.append([f"barrier {line.replace('_to_', ' to ').replace('_', '-')}", *cells, *([""] if halves else [])])
    notes = [] if len(own["solutions"]) == len(SOLUTIONS) else ["This method has no zero-shot solution."]
    notes += [own["note"].capitalize() + "."] if "note" in own else []
    if OTHERS in own:
        reason = own[OTHERS].get("bound", "none of the sets is there")
        over = f"Others: mean over all classes of {', '.join(own[OTHERS]['sets'])}."
        notes.append(over if OTHERS in subsets else f"No others: {reason}.")
    columns = ["", *(f"{subset} {q}" for subset in subsets for q in QUANTITIES), *(["H"] if halves else [])]
    counts = ", ".join(f"{own['images'][subset]} {subset}" for subset in subsets)
    return Table(f"Space of {own['space']} (test pictures: {counts}; {own['seconds']:.1f} s)", columns, rows, notes)


def _digits(quantity: str) -> int:
    return 4 if quantity == "loss" else 2


def main(argv: list[str] | None = None) -> None:
    """One command line."""
    about = "Print the path card of a finished stage-2 run and write it to RUN/path.json."
    parser = command_parser("mergetune.path_card", about, EPILOG, ("--set",))
    add = parser.add_argument
    add("run", type="path", metavar="RUN", help="folder of a finished stage-2 training run")
    add("--space", choices=[*SPACES, "both"], default=SPACES[0], help="what is interpolated")
    add("--plane", action="store_true", help="the plane through the three solutions too")
    add("--figure", action="store_true", help="draw the card into RUN/figures")
    words = "other data sets, the mean over all their classes: names as in TEST.OTHERS; alone: auto"
    add("--others", nargs="*", metavar="SET", help=words)
    add("--others-in-weights", action="store_true", help="in the space of weights too: a text pass a point and set")
    add("--images", type=int, metavar="N", help="N test pictures of each subset, not all")
    args = parser.parse_args(argv)
    if args.images is not None and args.images < 1:
        raise UserError(f"--images is {args.images}, expected at least 1")
    if args.others_in_weights and args.space == SPACES[0]:
        raise UserError("--others-in-weights is about the space of weights: add --space weights or both")
    from dassl.engine.others import AUTO

    spaces = SPACES if args.space == "both" else (args.space,)
    with quiet():
        others = () if args.others is None and not args.others_in_weights else args.others or [AUTO]
        others_in = SPACES if args.others_in_weights else SPACES[:1]
        card = path_card(args.run, spaces, args.plane, args.images, args.pairs, others, others_in)
    log.info("\n\n".join(card_table(card if space == SPACES[0] else card[space]).text() for space in spaces))
    if "unfinished" in card:
        log.warning(f"{args.run}: {card['unfinished']}")
    if "missing" in card.get("plane", {}):
        log.warning(f"Warning: no plane: {card['plane']['missing']}")
    if args.figure:
        from dassl.report.figures.paths import card_figures
        from mergetune.report import METHODS

        log.info("Wrote " + "\n      ".join(map(str, card_figures([args.run], Path(args.run, "figures"), METHODS))))


if __name__ == "__main__":
    with errors_in_one_line(), one_process():
        main()
