"""The path card of a stage-2 run: loss and accuracy along zero-shot -> ours -> fine-tuned (the paper's Figure 2).

    python -m mergetune.path_card RUN [--space features|weights|both] [--plane] [--figure] [--images N]

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.engine import build_trainer, trainer_class
from dassl.engine.others import AUTO, build_other, other_sets
from dassl.engine.state import stop_workers
from dassl.report.paths import FORMAT, OTHERS, QUANTITIES, SOLUTIONS, SPACES, SUBSETS
from dassl.report.paths import PATH_FILE as FILE
from dassl.report.stats import barrier, harmonic_mean
from dassl.report.tables import Table
from dassl.utils import ArgumentParser, UserError, errors_in_one_line, get_logger, read_json, write_json
from dassl.utils.progress import progress
from dassl.utils.torchrun import one_process

if TYPE_CHECKING:
    from mergetune.plane import Batches

log = get_logger()

LEG_POINTS = 21  # on each straight line, ends included
Scores = dict[tuple[str, str], dict[str, list[float]]]  # {(start, end): {quantity: (S,)}}
CHUNK = {"features": 1024, "weights": 8192}  # features (B, D) from the bank, scored together
HALVES, WHOLE = SUBSETS[:2], SUBSETS[2:3]


def walk(trainer, space: str, solutions: dict, batches: Batches) -> dict:
    """Every straight line of one subset -> {"t", "loss", "accuracy", "direct": {...}, "barrier": {line: {...}}}."""
    return join(score_lines(trainer, space, solutions, batches))


def score_lines(trainer, space: str, solutions: dict, batches: Batches) -> Scores:
    """Loss and accuracy on each straight line between solutions, the direct one last."""
    import torch

    from mergetune.plane import score

    points, names = torch.linspace(0, 1, LEG_POINTS, device=trainer.device), list(solutions)
    lines = list(zip(names, names[1:], strict=False))
    if len(names) == len(SOLUTIONS):
        lines.append((names[0], names[-1]))
    return {(a, b): score(trainer, space, solutions[a], solutions[b], points, batches) for a, b in lines}


def mean_lines(sets: Sequence[Scores]) -> Scores:
    """The mean over several sets of pictures, which all count alike."""
    import numpy as np

    return {
        line: {q: np.mean([scores[line][q] for scores in sets], axis=0).tolist() for q in QUANTITIES}
        for line in sets[0]
    }


def join(lines: Scores) -> dict:
    """The lines as `walk` gives them."""
    ts = [round(k / (LEG_POINTS - 1), 6) for k in range(LEG_POINTS)]
    path: dict = {"t": [], "loss": [], "accuracy": [], "barrier": {}}
    for (a, b), found in lines.items():
        path["barrier"][f"{a}_to_{b}"] = {q: barrier(ts, found[q], q == "loss") for q in QUANTITIES}
        if (a, b) == (SOLUTIONS[0], SOLUTIONS[-1]):
            path["direct"] = {"t": ts, **found}
            continue
        keep = slice(1 if path["t"] else 0, None)  # pieces share a point
        path["t"] += [round(SOLUTIONS.index(a) + t, 6) for t in ts[keep]]
        for quantity, values in found.items():
            path[quantity] += values[keep]
    return path


def batches_of(trainer, images: int | None = None, chunk: int = CHUNK["features"]) -> Batches:
    """The test split as `path_logits` takes it; features from the bank in parts of `chunk`.

    images: take so many, evenly spaced over the split, instead of all.
    """
    import torch

    trainer.route_split("test")
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


def read_cfg(run: Path, subset: str = "", pairs: Sequence[str] = (), others: Sequence[str] = ()):
    """The frozen config of a stage-2 run, on another subset of the classes if one is named.

    pairs: KEY, VALUE, ... of what has moved since. others: TEST.OTHERS, which an evaluation on new classes reads.
    """
    import train  # the command line is the one place that knows the data sets
    from mergetune.continued import Continued
    from mergetune.stage1 import check_begun_from

    changes = {"VERBOSE": False, "TEST.OTHERS": list(others)} | (
        {"DATASET.SUBSAMPLE_CLASSES": subset} if subset else {}
    )
    cfg = train.folder_cfg(run, changes, pairs=pairs)
    if not (cfg.RESUME_COOP and issubclass(trainer_class(cfg.TRAINER.NAME), Continued)):
        raise UserError(f"{run} is no stage-2 run: {cfg.TRAINER.NAME} continues no stage 1")
    check_begun_from(run, cfg)
    return cfg


@contextmanager
def loaded(run: Path, subset: str, pairs: Sequence[str] = ()) -> Iterator:
    """The trainer of a run with its weights, as an evaluation of this subset would have it."""
    with having_weights(build_trainer(read_cfg(run, subset, pairs)), run) as trainer:
        yield trainer


@contextmanager
def having_weights(trainer, run: Path) -> Iterator:
    """A trainer with a run's weights, to be scored."""
    import torch

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
    three solutions, in the last of `spaces`. images: of each subset, evenly spaced, instead of all. others: data sets
    as TEST.OTHERS names them, whose mean is drawn too in the spaces `others_in`. What an earlier call found and this
    one leaves out is kept or, of others, made again. pairs: KEY, VALUE, ... of what has moved since.
    """
    from dassl.engine.recipe import unfinished, weights_digest
    from mergetune.plane import add_plane

    run = Path(run)
    earlier = read_json(run / FILE) if (run / FILE).is_file() else {}
    earlier = earlier if isinstance(earlier, dict) else {}
    others = list(others) or (earlier.get(OTHERS) or {}).get("asked", [])
    sets = other_sets(read_cfg(run, HALVES[1], pairs, others)) if others else {}
    subsets = subsets_of(read_cfg(run, pairs=pairs))
    wanted = [space for space in SPACES if space in spaces or space == SPACES[0]]
    card: dict = {space: {"space": space, "images": {}, "barrier": {}, "seconds": 0} for space in wanted}
    plane_card: dict = {"space": spaces[-1]}
    for subset in subsets:
        with loaded(run, subset, pairs) as trainer:
            for space in wanted:
                with timed(card[space]):
                    batches = batches_of(trainer, images, CHUNK[space])
                    solutions = trainer.solutions(space)
                    with image_features_once(trainer, space):
                        _add(card[space], subset, walk(trainer, space, solutions, batches), count(batches))
                        if plane and space == spaces[-1]:
                            add_plane(plane_card, subset, trainer, solutions, batches)
                card[space] |= {"solutions": list(solutions), "zero_shot_template": trainer.zero_shot_prompt(space)}
                if space == SPACES[0] and trainer.path_note:
                    card[space]["note"] = trainer.path_note
    for space in (space for space in wanted if others and space in others_in):
        with timed(card[space]):
            _add_others(card[space], run, others, sets, trainer.bound_to_classes, images)
    own = {"digest": weights_digest(trainer._files)}  # whose card it is
    own |= {"unfinished": line} if (line := unfinished(run, trainer._loaded[1])) else {}
    found = {"format": FORMAT, **own, **card.pop(SPACES[0]), **card} | ({"plane": plane_card} if plane else {})
    if earlier.get("digest", own["digest"]) != own["digest"]:
        earlier = {}  # of other weights
    kept = {name: earlier[name] for name in (SPACES[1], "plane") if name in earlier and name not in found}
    write_json(found | kept, str(run / FILE))
    return found | kept


@contextmanager
def timed(own: dict) -> Iterator[None]:
    """Add the seconds that a part of a card takes."""
    began = time.perf_counter()
    yield
    own["seconds"] = round(own["seconds"] + time.perf_counter() - began, 3)


def count(batches: Batches) -> int:
    """Images."""
    return sum(len(labels) for _, labels in batches)


def _add(own: dict, subset: str, path: dict, images: int) -> None:
    """One subset of one space, as path.json holds it."""
    own["t"] = path["t"]
    own[subset] = {q: path[q] for q in QUANTITIES}
    own["images"][subset] = images
    for line, heights in path["barrier"].items():
        own["barrier"].setdefault(line, {})[subset] = heights
    if "direct" in path:
        own.setdefault("direct", {"t": path["direct"]["t"]})[subset] = {q: path["direct"][q] for q in QUANTITIES}


def _add_others(own: dict, run: Path, asked: Sequence[str], sets: dict, bound: str, images: int | None) -> None:
    """The mean over other data sets, all classes of each, where the model has vectors of their classes."""
    entry, lines, total = {"asked": list(asked), "sets": [] if bound else list(sets)}, [], 0
    for cfg in progress([] if bound else sets.values(), "other data sets"):
        with having_weights(build_other(cfg), run) as trainer:
            batches = batches_of(trainer, images, CHUNK[own["space"]])
            with image_features_once(trainer, own["space"]):
                lines.append(score_lines(trainer, own["space"], trainer.solutions(own["space"]), batches))
        total += count(batches)
    if lines:
        _add(own, OTHERS, join(mean_lines(lines)), total)
    own[OTHERS] = own.get(OTHERS, {}) | entry | ({"bound": bound} if bound else {})


def card_table(own: dict) -> Table:
    """One space of a card -> Table: loss and accuracy at each solution, then the barrier of each line."""
    subsets = [subset for subset in SUBSETS if "loss" in own.get(subset, {})]
    halves = [subset for subset in subsets if subset in HALVES]
    halves = halves if len(halves) == len(HALVES) else []
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
    notes += [others_note(own[OTHERS])] if OTHERS in own else []
    columns = ["", *(f"{subset} {q}" for subset in subsets for q in QUANTITIES), *(["H"] if halves else [])]
    counts = ", ".join(f"{own['images'][subset]} {subset}" for subset in subsets)
    return Table(f"Space of {own['space']} (test pictures: {counts}; {own['seconds']:.1f} s)", columns, rows, notes)


def others_note(entry: dict) -> str:
    """Which data sets the columns of others are over, or why there are none."""
    if "bound" in entry:
        return f"No others: {entry['bound']}."
    return f"Others: mean over all classes of {', '.join(entry['sets']) or 'no data set, for none is there'}."


def _digits(quantity: str) -> int:
    return 4 if quantity == "loss" else 2


def main(argv: list[str] | None = None) -> None:
    """One command line."""
    parser = ArgumentParser(
        prog="python -m mergetune.path_card",
        description="Print the path card of a finished stage-2 run and write it to RUN/path.json.",
        epilog="Loss in nats, accuracy in percent, on the test pictures. Barrier: largest loss above the straight line "
        "between the losses at both ends, or accuracy below it. The space of weights runs the model at 63 points.",
    )
    add = parser.add_argument
    add("run", type="path", metavar="RUN", help="folder of a finished stage-2 training run")
    add("--space", choices=[*SPACES, "both"], default=SPACES[0], help="what is interpolated")
    add("--plane", action="store_true", help="the plane through the three solutions too")
    add("--figure", action="store_true", help="draw the card into RUN/figures")
    words = "other data sets' mean too, auto (alone: auto) for all of the protocol; an earlier card's are made again"
    add("--others", nargs="*", metavar="SET", help=words)
    add("--others-in-weights", action="store_true", help="in the space of weights too: a text pass a point and set")
    add("--images", type=int, metavar="N", help="N test pictures of each subset, not all")
    add("--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="what has moved: RESUME_COOP")
    args = parser.parse_args(argv)
    if args.images is not None and args.images < 1:
        raise UserError(f"--images is {args.images}, expected at least 1")
    from mergetune.predict import quiet

    spaces = SPACES if args.space == "both" else (args.space,)
    with quiet():
        others = () if args.others is None else args.others or [AUTO]
        others_in = SPACES if args.others_in_weights else SPACES[:1]
        card = path_card(args.run, spaces, args.plane, args.images, sum(args.set, []), others, others_in)
    log.info("\n\n".join(card_table(card if space == SPACES[0] else card[space]).text() for space in spaces))
    if "unfinished" in card:
        log.warning(f"{args.run}: {card['unfinished']}")
    if "missing" in card.get("plane", {}):
        log.warning(f"Warning: no plane: {card['plane']['missing']}")
    if args.figure:
        from dassl.report.figures import card_figures
        from mergetune.report import METHODS

        log.info("Wrote " + "\n      ".join(map(str, card_figures([args.run], Path(args.run, "figures"), METHODS))))


if __name__ == "__main__":
    with errors_in_one_line(), one_process():
        main()
