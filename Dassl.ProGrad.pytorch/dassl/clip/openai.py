"""OpenAI's CLIP (Radford et al., 2021, arXiv 2103.00020) through the `clip` package's own model and
tokeniser.

Names, addresses and hashes come from the package's table. Weights are read as tensors only, from the
TorchScript archives that OpenAI ships, from state dicts and from safetensors, and dimensions are read off
the tensors. The package's own loader would round every file to fp16 (features off by 6e-4 for an fp32
file); here a file keeps its precision and only `precision="fp16"` rounds.

Three distributions provide the module: clip-anytorch, openai-clip and github.com/openai/CLIP. PyPI's `clip`
is a clipboard manager.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dassl.utils import MissingFile, UserError, closest, download_url, get_logger, load_weights, sha256_file

from .backbone import CLIP_REGISTRY, ClipBackbone, Device, Preprocess

INSTALL = "pip install clip-anytorch (or git+https://github.com/openai/CLIP)"
CACHE = "~/.cache/clip"


def clip_package() -> ModuleType:
    """The module `clip`, if it is OpenAI's. Raises UserError with what to install."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports pkg_resources, which complains
            import clip

            with contextlib.suppress(ImportError):
                import clip.model
    except ImportError as error:
        if "pkg_resources" in str(error):
            raise UserError('the package "clip" needs pkg_resources: pip install "setuptools<81"') from error
        raise UserError(f'OpenAI\'s package "clip" is not installed ({error}): {INSTALL}') from error
    if not (hasattr(clip, "tokenize") and hasattr(getattr(clip, "model", None), "CLIP")):
        where = getattr(clip, "__file__", None) or "a folder named clip"
        raise UserError(
            f'the installed package "clip" ({where}) is not OpenAI\'s CLIP; PyPI\'s "clip" is a clipboard '
            f"manager: pip uninstall clip, then {INSTALL}"
        )
    return clip


def weights_table() -> dict[str, str]:
    """{name: address}; the last folder of an address is the file's sha256."""
    return clip_package().clip._MODELS


class OpenAIClip(ClipBackbone):
    """A `clip.model.CLIP`. Its blocks see (L, N, W); a ResNet image tower has none."""

    batch_first = False

    def to(self, device: Device) -> ClipBackbone:
        for block in self.text_blocks:  # no buffer: it would go to the GPU in every block of every call
            block.module.attn_mask = block.module.attn_mask.to(device)
        return super().to(device)

    def tokenize(self, texts: str | Sequence[str]) -> torch.Tensor:
        try:
            tokens = clip_package().tokenize(texts, context_length=self.context_length)
        except RuntimeError as error:  # "Input ... is too long for context length 77", names the text
            raise UserError(str(error)) from error
        return tokens.long().to(self.device)


@CLIP_REGISTRY.register()
def openai(name: str, *, path: str, device: Device, precision: str) -> ClipBackbone:
    """The OpenAI CLIP `name`, or whatever file of its layout `path` or `name` points to -> OpenAIClip.
    UserError: no such file, a wrong hash, a damaged file, or one that holds no CLIP."""
    file, digest = find_weights(name, path)
    state = load_weights(file, scripts=True).state_dict
    module = build_module(state, file)
    _warn_if_other_model(name, state, file)
    if precision == "fp16":
        clip_package().model.convert_weights(module)
    backbone = OpenAIClip(
        module,
        name=name or str(file),
        digest=digest,
        activation="quickgelu",
        preprocess=Preprocess(module.visual.input_resolution),
    ).to(device)
    get_logger().info(str(backbone))
    return backbone


def find_weights(name: str, path: str) -> tuple[Path, str]:
    """Where the weights lie -> (file, sha256). Looks at `path`, then in CACHE, then downloads into it.

    A file given by the user is taken as it is; one found under a known name must have that name's hash.
    """
    named = Path(path or name).expanduser()
    if named.is_file():
        return named, sha256_file(named)
    if path and not named.is_dir():
        raise MissingFile(f'MODEL.BACKBONE.PATH "{path}" is not there; expected a weights file or its folder')
    table = weights_table()
    if name not in table:
        names = [*table, "tiny"]
        raise UserError(
            f'unknown CLIP "{name}" (nearest: {", ".join(closest(name, names))}); '
            f"available: {', '.join(names)}, open_clip:MODEL/TAG, or a weights file"
        )
    address = table[name]
    file_name, expected = os.path.basename(address), address.split("/")[-2]
    files = [place / file_name for place in (*([named] if path else []), Path(CACHE).expanduser())]
    get_logger().info(f"CLIP {name}: looking for {', '.join(map(str, files))}, then {address}")
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        try:
            download_url(address, files[-1], sha256=expected)
        except UserError as error:
            raise UserError(f"{error}. Put the file at {files[-1]}, or name it in MODEL.BACKBONE.PATH") from error
        return files[-1], expected
    if (digest := sha256_file(file)) != expected:
        raise UserError(
            f'"{file}" is not OpenAI\'s {name}: sha256 {digest}, expected {expected}. Remove it '
            f"to have it downloaded again, or name it in MODEL.BACKBONE.PATH to use it as it is"
        )
    return file, expected


def build_module(state: dict[str, torch.Tensor], file: str | os.PathLike = "the state dict") -> Any:
    """{name: tensor} in OpenAI's layout -> `clip.model.CLIP` in fp32; the package reads dimensions off the tensors.

    Built without memory first, so nothing is drawn at random only to be overwritten.
    """
    weights = {
        key: value.float() if value.is_floating_point() else value
        for key, value in state.items()
        if key not in ("input_resolution", "context_length", "vocab_size")
    }
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package fills what has no memory
            module = clip_package().model.build_model(weights)
        module.load_state_dict(weights, assign=True)
    except (AssertionError, KeyError, IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error) or "its position embeddings are no square"
        raise UserError(f'"{file}" holds no CLIP in OpenAI\'s layout ({reason})') from error
    mask = module.build_attention_mask()  # a plain attribute of the text blocks, not among the weights
    for block in module.transformer.resblocks:
        block.attn_mask = mask
    return module.eval()


def _warn_if_other_model(name, state, file):
    """A file that the user points to may not hold what the name says, and results carry the name."""
    named = re.fullmatch(r"(?:ViT-\w+/(\d+)(?:@\d+px)?|RN\d+\w*)", name)
    patch = str(state["visual.conv1.weight"].shape[-1]) if "visual.proj" in state else None
    if named and named[1] != patch:
        kind = f"a ViT with patches of {patch} pixels" if patch else "a ResNet"
        get_logger().warning(f'MODEL.BACKBONE.NAME is {name}, but "{file}" holds {kind}')
