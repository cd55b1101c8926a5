"""Zero-shot accuracy beside the published one: are weights, templates, class names and transform as they should be?"""

import time

import torch
from yacs.config import CfgNode as CN

from dassl.clip import build_clip_from_cfg, cosine_logits, is_clip, text_classifier
from dassl.data import build_data_loader
from dassl.data.datasets import DatasetBase
from dassl.data.shards import loader_like
from dassl.data.transforms import build_transform
from dassl.report.protocols.against import Published, load_published
from dassl.utils.logger import quiet

from .build import published_files
from .precision import Precision

SECONDS = 40.0


@torch.no_grad()
def anchor(cfg: CN, dataset: DatasetBase, precision: Precision, findings, seconds: float = SECONDS) -> None:
    """Zero-shot accuracy on as many test images as `seconds` suffice for, beside the published one.

    They are drawn evenly, always the same ones first. findings: dry_run.Findings.
    """
    name, size = cfg.MODEL.BACKBONE.NAME, cfg.DATALOADER.TEST.BATCH_SIZE
    if not is_clip(name):
        findings.say(f"anchor: none, {name or 'no backbone'} is no CLIP")
        return
    half = "fp16" if precision.dtype == torch.float16 else "fp32"
    clip = build_clip_from_cfg(cfg, half, device=precision.device, cached=True)
    template = getattr(dataset, "templates", {}).get("coop") or getattr(dataset, "template", "a photo of a {}.")
    text = text_classifier(clip, dataset.classnames, getattr(dataset, "prompts", None) or [template]).float()
    with quiet():  # the transform is logged
        transform = build_transform(cfg, is_train=False)
    loader = build_data_loader(cfg, data_source=dataset.test, batch_size=size, tfm=transform, is_train=False)
    order = torch.randperm(len(dataset.test), generator=torch.Generator().manual_seed(0))
    right = seen = 0
    started = time.perf_counter()
    for batch in loader_like(loader, [some.tolist() for some in order.split(size)]):
        with precision.autocast():
            features = clip.encode_image(batch["img"].to(clip.device))
        logits = cosine_logits(features.float(), text, clip.logit_scale.float())
        right += int((logits.argmax(dim=-1).cpu() == batch["label"]).sum())
        seen += len(logits)
        if time.perf_counter() - started > seconds:
            break
    findings.values["image_s"] = (time.perf_counter() - started) / seen
    compare_anchor(cfg, right, seen, len(dataset.test), findings)


def compare_anchor(cfg: CN, right: int, seen: int, count: int, findings) -> None:
    """Say the accuracy; a problem where the published one is out of the band around its interval."""
    low = high = accuracy = 100 * right / seen
    words = f"anchor: zero-shot {accuracy:.2f} on all {count:,} test images"
    if seen < count:
        from scipy.stats import binomtest  # a second of start-up, so not at import

        low, high = (100 * bound for bound in binomtest(right, seen).proportion_ci(method="wilson"))
        words = f"anchor: zero-shot {accuracy:.2f} on {seen:,} of {count:,} test images"
        words += f" (95 %: {low:.1f} to {high:.1f})"
    published = published_zero_shot(cfg)
    beside = "nothing published for this data set, classes and backbone"
    if published:
        beside = f"published {published.value:.2f} ({published.source})"
    findings.say(f"{words}; {beside}", anchor=accuracy, anchor_seen=seen)
    band = published.band(cfg.DATASET.NAME) if published else 0.0
    if published and not low - band <= published.value <= high + band:
        findings.problem(
            f"the zero-shot anchor is {accuracy:.2f}, published is {published.value:.2f}: look at weights, templates, "
            "class names and the images' transform before training"
        )


def published_zero_shot(cfg: CN) -> Published | None:
    """Published zero-shot accuracy of the data set, classes and backbone; None if there is none."""
    key = ("ZeroshotCLIP", "", cfg.MODEL.BACKBONE.NAME, cfg.DATASET.NAME)
    table, subset = load_published(published_files()), cfg.DATASET.SUBSAMPLE_CLASSES
    if subset != "all":
        return next(iter(table.get(("base2new", *key, subset), [])), None)
    return next((one for name in ("cross", "dg", "mtil") for one in table.get((name, *key, ""), [])), None)
