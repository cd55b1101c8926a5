"""A minute before a night: data, zero-shot anchor, time and memory of a run, and what it changes in its recipe.

Nothing is left behind, and nothing has to be there but what the run itself needs.
"""

import contextlib
import io
import os
import shutil
import tempfile
import time

import torch

from dassl.clip import build_clip_from_cfg, cosine_logits, is_clip, text_classifier
from dassl.clip.feature_bank import SAMPLED, bank_folder, feature_loader
from dassl.data import build_data_loader
from dassl.data.shards import loader_like
from dassl.data.transforms import build_transform
from dassl.data.wrapper import image_reading
from dassl.report.protocols.against import load_published
from dassl.utils import UserError, get_logger
from dassl.utils.distributed import world_size
from dassl.utils.memory import available_mb

from .results import FILE as RESULTS
from .signals import sigterm_ends
from .trial import OTHERS, trial

ANCHOR_SECONDS = 40.0
OPENED = 200  # pictures decoded to see whether they can be


class Findings:
    """What a check found, logged as it comes. problems: why the run should not start; values: numbers by name."""

    def __init__(self):
        self.problems, self.values = [], {}

    def say(self, line, **values):
        self.values |= values
        get_logger().info(line)

    def problem(self, line):
        self.problems.append(line)
        self.say(f"PROBLEM: {line}")


def preflight(cfg, *, evaluates=None, recipe=(), data_check=None):
    """Check the run of a config -> Findings.

    evaluates: (model folder, epoch or None) instead of a training. recipe: lines on what differs from it. data_check: a
    function of cfg that looks at the data set -> (lines, problems).

    Raises:
        UserError: what the run itself would stop with: no data, no weights, no stage 1, bad config.
    """
    if world_size() > 1:
        raise UserError("--check runs in one process; its estimate is that of one process")
    found = Findings()
    if os.path.isfile(os.path.join(cfg.OUTPUT_DIR, RESULTS)):
        found.say(f'note: "{cfg.OUTPUT_DIR}" holds a finished run, which is only started again by --overwrite')
    with sigterm_ends(), tempfile.TemporaryDirectory(prefix="preflight-") as folder, trial(cfg, folder) as made:
        dataset = made.dataset
        check_data(cfg, dataset, found, data_check)
        if not found.problems:
            estimate(made, evaluates, found)
            if dataset is not None:
                anchor(cfg, dataset, made.trainer.precision, found)
        for line in made.warnings:
            found.say(f"warning: {line}")
    for line in recipe or ["nothing changed"]:
        found.say(f"recipe: {line}")
    return found


# the pictures


def check_data(cfg, dataset, found, data_check=None):
    """The sizes of the data set, and what is wrong with its pictures."""
    if dataset is None:
        found.say("data: the trainer's own, not looked at")
        return
    lists = {"train": dataset.train_x, "val": dataset.val or [], "test": dataset.test}
    counts = ", ".join(f"{len(items):,} {name}" for name, items in lists.items())
    tested = {item.label for item in dataset.test}
    without = [name for label, name in sorted(dataset.lab2cname.items()) if label not in tested]
    note = f"; no test picture of {len(without)} classes ({without[0]}, ...)" if without else ""
    found.say(f"data: {cfg.DATASET.NAME}, {dataset.num_classes:,} classes, {counts} pictures{note}")
    check_pictures([item for items in lists.values() for item in items], found, **image_reading(cfg))
    for kind, lines in zip((found.say, found.problem), data_check(cfg) if data_check else ((), ()), strict=True):
        for line in lines:
            kind(f"data: {line}")


def check_pictures(items, found, **reading):
    """Every file is there; OPENED of them, evenly spaced, can be decoded. reading: as of Datum.picture."""
    items = list({item.impath: item for item in items}.values())
    missing = [item for item in items if not os.path.isfile(item.file)]
    if missing:
        found.problem(f"{len(missing):,} of {len(items):,} pictures are not there, the first is {missing[0].file}")
    gone, broken = {item.impath for item in missing}, []
    opened = [item for item in items[:: max(1, len(items) // OPENED)] if item.impath not in gone]
    for item in opened:
        try:
            item.picture(**reading)
        except (UserError, OSError) as error:
            broken.append(error)
    if broken:
        found.problem(f"{len(broken)} of the {len(opened)} pictures opened cannot be read; the first: {broken[0]}")
    found.values |= {"pictures": len(items), "missing": len(missing), "opened": len(opened), "broken": len(broken)}


# time and memory


def estimate(made, evaluates, found):
    """What the run will take, from its beginning."""
    try:
        made.run(evaluates)
    except torch.OutOfMemoryError as error:
        found.problem(f"the GPU's memory is too small for this batch size and model ({str(error).splitlines()[0]})")
        found.say(less_memory(made.trainer.cfg))
        return
    parts = [f"{name} {clock(value)}" for name, value in made.phases.items() if value >= 0.05]
    steps = f"{made.steps:,} steps of {1000 * made.step:.0f} ms; " if made.steps else ""
    numbers = {"seconds": made.seconds, "steps": made.steps, "step_s": made.step, "peak_mb": made.peak_mb}
    found.say(
        f"estimate: {clock(made.seconds)} ({', '.join(parts)}); {steps}peak memory {made.peak_mb:,.0f} MiB",
        **numbers,
        phases=made.phases,
    )
    if made.others:
        found.say(others_line(made.others, sum(made.phases[phase] for phase in OTHERS)), others=made.others)
    there = available_mb(made.trainer.device)
    if made.peak_mb > there:
        found.say(f"note: {there:,.0f} MiB are there. {less_memory(made.trainer.cfg)}")
    if made.pictures:
        size = made.bank_bytes / 2**20
        found.say(f"feature bank: {made.pictures:,} pictures to encode, {size:,.1f} MiB on disk")
        place = next(place for place in made.bank_folder.resolve().parents if place.is_dir())
        if (free := shutil.disk_usage(place).free / 2**20) < size:
            found.problem(f"{place} has {free:,.0f} MiB left, the bank needs {size:,.0f} MiB")


def others_line(others, seconds):
    """What scoring other data sets takes. others: {data set: test images}."""
    return f"others: {clock(seconds)} of it, for {sum(others.values()):,} test images of {', '.join(others)}"


def less_memory(cfg):
    """What to set for less memory, of what is not set."""
    ways = [
        "TRAIN.ACCUMULATE with a smaller batch",
        *([] if cfg.MODEL.TEXT_CHUNK else ["MODEL.TEXT_CHUNK 100 for many classes"]),
        *([] if cfg.MODEL.CHECKPOINT_BLOCKS else ["MODEL.CHECKPOINT_BLOCKS True where towers carry gradients"]),
    ]
    return f"Less memory for the same steps: {', '.join(ways)}"


def clock(seconds):
    """Seconds in words: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


# the anchor


@torch.no_grad()
def anchor(cfg, dataset, precision, found, seconds=ANCHOR_SECONDS):
    """Zero-shot accuracy on the test pictures, beside the published one: all from the bank, or those that fit.

    seconds: for encoding; the pictures are drawn evenly, always the same ones first.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if not is_clip(name):
        found.say(f"anchor: none, {name or 'no backbone'} is no CLIP")
        return
    half = "fp16" if precision.dtype == torch.float16 else "fp32"
    clip = build_clip_from_cfg(cfg, half, device=precision.device, cached=True)
    text = text_classifier(clip, dataset.classnames, zero_shot_prompts(dataset)).float()
    right = seen = 0
    started = time.perf_counter()
    for batch in anchor_loader(cfg, dataset, clip, precision):
        with precision.autocast():
            features = batch["feature"] if "feature" in batch else clip.encode_image(batch["img"].to(clip.device))
        logits = cosine_logits(features.to(clip.device).float(), text, clip.logit_scale.float())
        right += int((logits.argmax(dim=-1).cpu() == batch["label"]).sum())
        seen += len(logits)
        if time.perf_counter() - started > seconds:
            break
    compare_anchor(cfg, right, seen, len(dataset.test), found)


def anchor_loader(cfg, dataset, clip, precision):
    """All test features where the bank has them, else the pictures in a random order that is always the same."""
    size, absent = cfg.DATALOADER.TEST.BATCH_SIZE, []
    with contextlib.redirect_stdout(io.StringIO()):  # the transform is logged
        transform = build_transform(cfg, is_train=False)
    pixels = build_data_loader(cfg, data_source=dataset.test, batch_size=size, tfm=transform, is_train=False)
    SAMPLED[pixels.dataset] = lambda bank, rounds: absent.extend(rounds)
    options = {"folder": bank_folder(cfg), "autocast": precision.autocast, "strict": cfg.FEATURES.STRICT}
    stored = feature_loader(pixels, clip, is_train=False, batch_size=size, **options)
    order = torch.randperm(len(dataset.test), generator=torch.Generator().manual_seed(0))
    return loader_like(pixels, [some.tolist() for some in order.split(size)]) if absent else stored


def compare_anchor(cfg, right, seen, count, found):
    """Say the accuracy; a problem where the published one is out of the band around its interval."""
    low = high = accuracy = 100 * right / seen
    if seen < count:
        from scipy.stats import binomtest  # a second of start-up, so not at import

        low, high = (100 * bound for bound in binomtest(right, seen).proportion_ci(method="wilson"))
    words = f"anchor: zero-shot {accuracy:.2f} on {f'{seen:,} of' if seen < count else 'all'} {count:,} test pictures"
    words += f" (95 %: {low:.1f} to {high:.1f})" if seen < count else ""
    published = published_zero_shot(cfg)
    beside = "nothing published for this data set, classes and backbone"
    if published is not None:
        beside = f"published {published.value:.2f} ({published.source})"
    found.say(f"{words}; {beside}", anchor=accuracy, anchor_seen=seen)
    band = published.band(cfg.DATASET.NAME) if published else 0.0
    if published and not low - band <= published.value <= high + band:
        found.problem(
            f"the zero-shot anchor is {accuracy:.2f}, published is {published.value:.2f}: look at weights, templates, "
            "class names and the pictures' transform before training"
        )


def zero_shot_prompts(dataset):
    """CoOp's zero-shot template of the data set, or its list of prompts, or the plain one."""
    template = getattr(dataset, "templates", {}).get("coop") or getattr(dataset, "template", "a photo of a {}.")
    return getattr(dataset, "prompts", None) or [template]


def published_zero_shot(cfg):
    """Published zero-shot accuracy of the data set, classes and backbone; None if there is none."""
    key = ("ZeroshotCLIP", "", cfg.MODEL.BACKBONE.NAME, cfg.DATASET.NAME)
    table, subset = load_published(), cfg.DATASET.SUBSAMPLE_CLASSES
    if subset != "all":
        return next(iter(table.get(("base2new", *key, subset), [])), None)
    return next((one for name in ("cross", "dg", "mtil") for one in table.get((name, *key, ""), [])), None)
