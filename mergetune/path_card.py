"""The path card of a stage-2 run: loss and accuracy along zero-shot -> ours -> fine-tuned (the paper's Figure 2).

    python -m mergetune.path_card RUN [--space features|weights|both] [--plane] [--others] [--figure] [--images N]

Beside that path: the straight line zero-shot -> fine-tuned, and the barrier of every straight line, which is the
largest loss above the line between the losses at its ends (dassl.report.frame.barrier), or accuracy below it. In
the space of features class vectors are interpolated and image features come from the bank, so a card costs
seconds; in the space of weights the model runs anew at every point. t runs from 0 (zero-shot) over 1 (ours) to 2
(fine-tuned); a method without a zero-shot solution starts at 1.
Letters: B images, C classes, D joint width, S line points.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dassl.report.frame import harmonic_mean
from dassl.report.protocols.paths import FORMAT, LINES, OTHERS, QUANTITIES, SOLUTIONS, SPACES, SUBSETS, run_barriers
from dassl.report.protocols.paths import PATH_FILE as FILE
from dassl.report.table import Table
from dassl.utils import ArgumentParser, UserError, command_parser, get_logger, quiet, write_json
from dassl.utils.progress import progress
from dassl.utils.torchrun import run_command

EPILOG = """\
Loss in nats, accuracy in percent, on the test images. Barrier: largest loss above the straight line between the losses
at both ends, or accuracy below it. The space of weights runs the model at 63 points.
"""


def build_parser() -> ArgumentParser:
    """The flags."""
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
    add("--images", type=int, metavar="N", help="N test images of each subset, not all")
    return parser


if __name__ == "__main__":  # --help and a wrong line need no PyTorch
    run_command(build_parser().parse_args)

import numpy as np
import torch

from dassl.config import with_values
from dassl.engine import build_trainer, load_config, trainer_class
from dassl.engine.checkpoint import finished, weights_digest
from dassl.engine.others import AUTO, build_other, other_sets
from dassl.engine.recipe import unfinished
from dassl.engine.state import stop_workers
from mergetune.plane import Batches, add_plane, score
from mergetune.stage1 import check_begun_from
from mergetune.stage2 import MergeTune

log = get_logger()

LEG_POINTS = 21  # on each straight line, ends included
CHUNK = {"features": 1024, "weights": 8192}  # features (B, D) from the bank, scored together
HALVES, WHOLE = SUBSETS[:2], SUBSETS[2:3]


def walk(trainer, space: str, solutions: dict, batches: Batches) -> dict:
    """Every straight line of one subset -> {"t", "loss", "accuracy", "direct": {...}}."""
    points = torch.linspace(0, 1, LEG_POINTS, device=trainer.device)
    ts, names = [round(t, 6) for t in points.tolist()], list(solutions)
    path: dict = {"t": [], **{q: [] for q in QUANTITIES}}
    for i, (a, b) in enumerate(itertools.pairwise(names), start=SOLUTIONS.index(names[0])):
        leg = {"t": [round(i + t, 6) for t in ts]}
        leg |= score(trainer, space, solutions[a], solutions[b], points, batches)
        path = {name: values + leg[name][bool(values) :] for name, values in path.items()}  # legs share a point
    if len(names) == len(SOLUTIONS):
        ends = solutions[names[0]], solutions[names[-1]]
        path["direct"] = {"t": ts, **score(trainer, space, *ends, points, batches)}
    return path


def mean_of(parts: Sequence):
    """The mean of lists of numbers, or of dicts of them, as arrays."""
    if isinstance(parts[0], dict):
        return {name: mean_of([part[name] for part in parts]) for name in parts[0]}
    return np.mean(parts, axis=0)


def batches_of(trainer, images: int | None = None, chunk: int = CHUNK["features"]) -> Batches:
    """The test split as `path_logits` takes it; features from the bank in parts of `chunk`.

    images: take so many, evenly spaced over the split, instead of all.
    """
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
    run, earlier = Path(run), finished(run, FILE, "images")
    others = list(others) or earlier.get(OTHERS, {}).get("asked", [])
    cfg = read_cfg(run, pairs, others)
    sets = other_sets(on_subset(cfg, HALVES[1])) if others else {}
    cards: dict = {space: {"space": space, "images": {}, "barrier": {}, "seconds": 0}
                   for space in SPACES if space in (SPACES[0], *spaces)}  # fmt: skip
    plane_card: dict = {"space": spaces[-1]}
    for space, card in cards.items():
        for subset in subsets_of(cfg):
            on = plane_card if plane and space == spaces[-1] else None
            trainer = _score(card, subset, run, [on_subset(cfg, subset)], images, on)
        card["zero_shot_template"] = trainer.zero_shot_prompt(space)
        if space == SPACES[0] and trainer.path_note:
            card["note"] = trainer.path_note
        if others and space in others_in:
            bound = trainer.bound_to_classes
            card[OTHERS] = {"asked": others, "sets": []} | ({"bound": bound} if bound else {"sets": list(sets)})
            if card[OTHERS]["sets"]:
                trainer = _score(card, OTHERS, run, sets.values(), images, build=build_other)
                card[OTHERS]["zero_shot_template"] = trainer.zero_shot_prompt(space)
    whole = {"format": FORMAT, "digest": weights_digest(trainer._files)}  # whose card it is
    whole |= {"unfinished": line} if (line := unfinished(run, trainer._loaded[1])) else {}
    whole |= cards.pop(SPACES[0]) | cards | ({"plane": plane_card} if plane else {})
    if earlier.get("digest", whole["digest"]) == whole["digest"]:  # else of other weights
        whole |= {name: earlier[name] for name in (SPACES[1], "plane") if name in earlier and name not in whole}
    write_json(whole, str(run / FILE))
    return whole


def _score(card: dict, subset: str, run: Path, cfgs: Iterable, images, plane: dict | None = None, build=build_trainer):
    """Into `card` one subset of its space, the mean over configs, and into `plane` its plane -> the last trainer."""
    began, paths, space, card["images"][subset] = time.perf_counter(), [], card["space"], 0
    for cfg in cfgs:
        with loaded(run, cfg, build) as trainer:
            if space == "features":  # all lines are scored on the same ones
                trainer.image_features = functools.cache(trainer.image_features)
            batches, solutions = batches_of(trainer, images, CHUNK[space]), trainer.solutions(space)
            paths.append(walk(trainer, space, solutions, batches))
            if plane is not None:
                add_plane(plane, subset, trainer, solutions, batches)
            vars(trainer).pop("image_features", None)  # and the images with them
        card["images"][subset] += sum(len(labels) for _, labels in batches)
    card["solutions"], card["t"] = list(solutions), paths[0]["t"]
    path, curves = {"t": np.array(card["t"])}, mean_of(paths)
    path[subset], direct = {q: curves[q] for q in QUANTITIES}, curves.get("direct")
    card[subset] = card.get(subset, {}) | {q: values.tolist() for q, values in path[subset].items()}
    if direct:
        path["direct"] = {"t": direct.pop("t"), subset: direct}
        card.setdefault("direct", {"t": paths[0]["direct"]["t"]})[subset] = {q: v.tolist() for q, v in direct.items()}
    for (line, _, quantity), height in run_barriers(path).items():
        name = LINES[line].replace(" ", "_").replace("-", "_")
        card["barrier"].setdefault(name, {}).setdefault(subset, {})[quantity] = height
    card["seconds"] = round(card["seconds"] + time.perf_counter() - began, 3)
    return trainer


def card_table(card: dict) -> Table:
    """One space of a card -> Table: loss and accuracy at each solution, then the barrier of each line."""
    subsets = [subset for subset in SUBSETS if subset in card["images"]]
    has_h, starts = set(HALVES) <= set(subsets), SOLUTIONS.index(card["solutions"][0])

    def cells(at: Callable[[str, str], float]) -> list[str]:
        return [f"{at(subset, q):.{4 if q == 'loss' else 2}f}" for subset in subsets for q in QUANTITIES]

    rows = []
    for i, name in enumerate(card["solutions"]):
        k = card["t"].index(float(starts + i))
        mean = [f"{harmonic_mean(*(card[subset]['accuracy'][k] for subset in HALVES)):.2f}"] if has_h else []
        template = card.get("zero_shot_template") if name == SOLUTIONS[0] else ""
        title = name.replace("_", "-") + (f" ({template})" if template else "")
        rows.append([title, *cells(lambda subset, q, k=k: card[subset][q][k]), *mean])
    for line, heights in card["barrier"].items():
        title = f"barrier {line.replace('_to_', ' to ').replace('_', '-')}"
        rows.append([title, *cells(lambda subset, q, heights=heights: heights[subset][q]), *([""] if has_h else [])])
    notes = [] if len(card["solutions"]) == len(SOLUTIONS) else ["This method has no zero-shot solution."]
    notes += [card["note"].capitalize() + "."] if "note" in card else []
    if OTHERS in subsets:
        notes.append(f"Others: mean over all classes of {', '.join(card[OTHERS]['sets'])}.")
    elif OTHERS in card:
        notes.append(f"No others: {card[OTHERS].get('bound', 'none of the sets is there')}.")
    columns = ["", *(f"{subset} {q}" for subset in subsets for q in QUANTITIES), *(["H"] if has_h else [])]
    counts = ", ".join(f"{card['images'][subset]} {subset}" for subset in subsets)
    return Table(f"Space of {card['space']} (test images: {counts}; {card['seconds']:.1f} s)", columns, rows, notes)


def main(argv: list[str] | None = None) -> None:
    """One command line."""
    args = build_parser().parse_args(argv)
    if args.images is not None and args.images < 1:
        raise UserError(f"--images is {args.images}, expected at least 1")
    if args.others_in_weights and args.space == SPACES[0]:
        raise UserError("--others-in-weights is about the space of weights: add --space weights or both")

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
        from dassl.report.figures.all import all_figures
        from mergetune.report import METHODS

        log.info("Wrote " + "\n      ".join(map(str, all_figures([args.run], [], Path(args.run, "figures"), METHODS))))


if __name__ == "__main__":
    run_command(main)
