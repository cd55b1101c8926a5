"""MODEL.COMPILE: torch.compile for what runs in every step and no method changes for the length of a call: the MLPs of
CLIP's blocks, in place, and functions of tensors alone. Sizes are marked dynamic; a deep copy of a CLIP runs as usual.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from dassl.utils import get_logger

BACKEND = "inductor"


@functools.cache
def has_compiler(kind: str) -> bool:
    """Does torch.compile work on this kind of device? Tried once; where it does not, a line says why."""
    try:
        import torch._dynamo.config
        import torch._inductor.config

        torch._dynamo.config.skip_nnmodule_hook_guards = False  # hooks inside an MLP, as LoRA's, come and go
        torch._inductor.config.compile_threads = 1  # no processes of its own
        torch.compile(lambda x: x.sin() + 1, backend=BACKEND)(torch.ones(2, device=kind))
    except Exception as error:  # whatever the compiler of a machine ends with
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        get_logger().warning(f"MODEL.COMPILE has no effect on {kind}, where torch.compile fails: {reason}")
        return False
    return True


def compile_towers(clip: Any) -> Any:
    """The MLPs of both towers' blocks, in place: names, hooks and weights stay -> the ClipBackbone."""
    for block in (*clip.image_blocks, *clip.text_blocks):
        if (mlp := getattr(block.module, "mlp", None)) is not None:
            mlp.compile(dynamic=True, backend=BACKEND)
    clip.compiled = True
    return clip


def compiled(function: Callable, clip: Any) -> Callable:
    """A function of tensors, compiled where `clip` is; once a process."""
    return _compiled(function, BACKEND) if clip.compiled else function


@functools.cache
def _compiled(function, backend):
    return torch.compile(function, dynamic=True, backend=backend)
