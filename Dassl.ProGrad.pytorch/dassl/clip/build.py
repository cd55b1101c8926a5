"""Names to CLIPs.

| name | what |
|---|---|
| `tiny` | the built-in one |
| `ViT-B/16`, `RN50`, ... | OpenAI's weights, as `clip.available_models()` names them |
| a path | a file in OpenAI's layout |
| `open_clip:MODEL/TAG` | what open_clip knows, e.g. `ViT-B-16-SigLIP2/webli`, `EVA02-B-16/merged2b_s8b_b131k` |
| `open_clip:...` | also `MODEL/FILE`, a folder as open_clip's on the hub, `hf-hub:ORG/REPO` |

Another backend is a function registered in CLIP_REGISTRY: `open_clip:X` calls the one named `open_clip` with model "X":
`backend(model, *, path, device, precision) -> ClipBackbone`. model: what follows the colon of the name ("" if nothing
does); path: a weights file or a folder of them ("": the backend's usual places); precision: "fp16" casts the towers to
half, every other mode keeps them in fp32. It raises UserError for a model or file that it cannot use, and returns the
CLIP frozen, in evaluation mode.
"""

import functools
import os
from typing import Any

import torch
from yacs.config import CfgNode as CN

from dassl.utils import UserError, get_logger
from dassl.utils.device import choose_device

from . import hub  # noqa: F401  registers open_clip
from .backbone import CLIP_REGISTRY, ClipBackbone, Device
from .compiling import compile_towers, has_compiler
from .openai import openai, weights_table
from .tiny import load  # noqa: F401  registers tiny

PRECISIONS = ("fp32", "fp16", "amp", "bf16")


def build_clip(name: str, *, path: str = "", device: Device = "cpu", precision: str = "fp32") -> ClipBackbone:
    """The CLIP called `name` (the table above), frozen, in evaluation mode. Draws no random number.
    UserError: unknown name or precision (with the nearest and the available ones), or weights that cannot be used."""
    if precision not in PRECISIONS:
        raise UserError(f'unknown precision "{precision}", expected one of {", ".join(PRECISIONS)}')
    backend, _, model = name.partition(":")
    build, model = (CLIP_REGISTRY.get(backend), model) if backend in CLIP_REGISTRY else (openai, name)
    return build(model, path=path, device=device, precision=precision).freeze()


def is_clip(name: str) -> bool:
    """Is it a name that `build_clip` knows, or a file?"""
    return name.partition(":")[0] in CLIP_REGISTRY or os.path.exists(name) or name in weights_table()


def _build(name, path, device, precision, compiled):
    clip = build_clip(name, path=path, device=device, precision=precision)
    return compile_towers(clip) if compiled else clip


_cached = functools.lru_cache(maxsize=4)(_build)


def cached_clip(name: str, *, path: str = "", device: Device = "cpu", precision: str = "fp32") -> ClipBackbone:
    """`build_clip`, once per process and set of arguments: for those who only read (no hooks left, no
    training)."""
    return _cached(name, str(path), str(device), precision, False)


def check_input(cfg: CN, backbone: ClipBackbone) -> None:
    """Compare INPUT with how the weights were trained: another size is refused, other values are pointed out.
    UserError: INPUT.SIZE is not the backbone's; the message has the keys to add."""
    trained = backbone.preprocess
    expected: dict[str, Any] = {"SIZE": (trained.size,) * 2, "PIXEL_MEAN": trained.mean, "PIXEL_STD": trained.std}
    expected |= {"INTERPOLATION": trained.interpolation, "RESIZE": trained.resize}
    differ = {key: value for key, value in expected.items() if _rounded(cfg.INPUT[key]) != _rounded(value)}
    if "SIZE" in differ:
        pairs = " ".join(f'INPUT.{key} "{value}"' for key, value in differ.items())
        size = tuple(cfg.INPUT.SIZE)
        raise UserError(f"INPUT.SIZE is {size}, but {backbone.name} takes {expected['SIZE']}; add {pairs}")
    if differ:
        rows = [f"{key} {_rounded(cfg.INPUT[key])} (trained with {_rounded(value)})" for key, value in differ.items()]
        get_logger().warning(f"{backbone.name} was trained on other pixels: INPUT has {'; '.join(rows)}")


def _rounded(value):
    return value if isinstance(value, str) else tuple(round(number, 4) for number in value)


def build_clip_from_cfg(
    cfg: CN, precision: str = "fp32", *, device: Device | None = None, cached: bool = False
) -> ClipBackbone:
    """`build_clip` of MODEL.BACKBONE.NAME and PATH; on the GPU where USE_CUDA and there is one.

    MODEL.TEXT_CHUNK, CHECKPOINT_BLOCKS and COMPILE are those of what is returned alone, also where the CLIP is shared.
    """
    device = choose_device(cfg.USE_CUDA) if device is None else device
    compiles = cfg.MODEL.COMPILE and has_compiler(torch.device(device).type)
    what = cfg.MODEL.BACKBONE.NAME, str(cfg.MODEL.BACKBONE.PATH), str(device), precision, compiles
    clip = (_cached if cached else _build)(*what)
    for tower in ("image", "text") if cfg.MODEL.CHECKPOINT_BLOCKS else ():
        if not getattr(clip, f"{tower}_blocks"):
            get_logger().warning(
                f"MODEL.CHECKPOINT_BLOCKS: {clip.name} has no blocks to run again in its {tower} tower"
            )
    return clip.saving_memory(cfg.MODEL.TEXT_CHUNK, cfg.MODEL.CHECKPOINT_BLOCKS)
