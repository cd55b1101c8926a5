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
import hashlib
import os
import re
import urllib.request
import warnings
from pathlib import Path

import torch

from dassl.utils import (
    MissingFile,
    UserError,
    atomic_write,
    check_file,
    closest,
    get_logger,
    is_script_archive,
    load_weights,
    script_tensors,
    sha256_file,
)
from dassl.utils.progress import progress

from .backbone import Block, ClipBackbone, Preprocess

INSTALL = "pip install clip-anytorch (or git+https://github.com/openai/CLIP)"
CACHE = "~/.cache/clip"


def clip_package():
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


def weights_table():
    """{name: address}; the last folder of an address is the file's sha256."""
    return clip_package().clip._MODELS


class OpenAIClip(ClipBackbone):
    """A `clip.model.CLIP`. Its blocks see (L, N, W); a ResNet image tower has none."""

    @property
    def image_blocks(self):
        tower = getattr(self.module.visual, "transformer", None)
        return [] if tower is None else _blocks(tower)

    @property
    def text_blocks(self):
        return _blocks(self.module.transformer)

    def to(self, device):
        for block in self.text_blocks:  # no buffer: it would go to the GPU in every block of every call
            block.module.attn_mask = block.module.attn_mask.to(device)
        return super().to(device)

    def tokenize(self, texts):
        try:
            tokens = clip_package().tokenize(texts, context_length=self.context_length)
        except RuntimeError as error:  # "Input ... is too long for context length 77", names the text
            raise UserError(str(error)) from error
        return tokens.long().to(self.device)


def _blocks(tower):
    return [Block(block, block.ln_1, block.attn.embed_dim, False) for block in tower.resblocks]


def load_openai(name, *, path="", device="cpu", precision="fp32"):
    """The OpenAI CLIP `name`, or whatever file of its layout `path` or `name` points to -> OpenAIClip.

    Raises:
        UserError: no such file, a wrong hash, a damaged file, or one that holds no CLIP.
    """
    file, digest = find_weights(name, path)
    state = read_state_dict(file)
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


def find_weights(name, path="", *, cache=CACHE):
    """Where the weights lie -> (file, sha256). Looks at `path`, then in `cache`, then downloads into it.

    A file given by the user is taken as it is; one found under a known name must have that name's hash.
    """
    given = Path(path or name).expanduser()
    if given.is_file():
        return given, sha256_file(given)
    if path and not given.is_dir():
        raise MissingFile(f'MODEL.BACKBONE.PATH "{path}" is not there; expected a weights file or its folder')
    table = weights_table()
    if name not in table:
        raise UserError(
            f'unknown CLIP "{name}" (nearest: {", ".join(closest(name, table))}); '
            f"available: {', '.join(table)}, or a weights file"
        )
    address = table[name]
    file_name, expected = os.path.basename(address), address.split("/")[-2]
    places = [*([given] if path else []), Path(cache).expanduser()]
    searched = ", ".join(str(place / file_name) for place in places)
    get_logger().info(f"CLIP {name}: looking for {searched}, then {address}")
    for place in places:
        file = place / file_name
        if file.is_file():
            return file, _check_hash(file, expected, name)
    return _download(address, places[-1] / file_name, expected), expected


def _check_hash(file, expected, name):
    digest = sha256_file(file)
    if digest != expected:
        raise UserError(
            f'"{file}" is not OpenAI\'s {name}: sha256 {digest}, expected {expected}. Remove it '
            f"to have it downloaded again, or name it in MODEL.BACKBONE.PATH to use it as it is"
        )
    return digest


def _download(address, file, expected):
    sha = hashlib.sha256()
    try:
        with urllib.request.urlopen(address, timeout=30) as source, atomic_write(file) as target:
            total = int(source.headers.get("Content-Length") or 0)
            with progress(what=file.name, total=total, unit="B", unit_scale=True) as bar:
                while chunk := source.read(1 << 20):
                    target.write(chunk)
                    sha.update(chunk)
                    bar.update(len(chunk))
            if sha.hexdigest() != expected:
                raise OSError(f"what arrived has sha256 {sha.hexdigest()}, expected {expected}")
    except (OSError, UserError) as error:
        raise UserError(
            f"cannot download {address} ({error}). Put the file at {file}, or name it in MODEL.BACKBONE.PATH"
        ) from error
    return file


def read_state_dict(file):
    """TorchScript archive, torch checkpoint or .safetensors -> {name: tensor}.

    Nothing in the file is run: of an archive only the tensors are taken, a checkpoint is read as any (`load_weights`).

    Raises:
        MissingFile: no such file.
        UserError: truncated, hostile, or not one of the three.
    """
    check_file(file)
    return script_tensors(file) if is_script_archive(file) else load_weights(file).state_dict


def build_module(state, file="the state dict"):
    """{name: tensor} in OpenAI's layout -> `clip.model.CLIP` in fp32, dimensions from the tensors.

    Built without memory first, so nothing is drawn at random only to be overwritten.
    """
    model = clip_package().model
    weights = {
        key: value.float() if value.is_floating_point() else value
        for key, value in state.items()
        if key not in ("input_resolution", "context_length", "vocab_size")
    }
    try:
        with torch.device("meta"):
            module = model.CLIP(**_dimensions(weights))
        module.load_state_dict(weights, assign=True)
    except (KeyError, IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f'"{file}" holds no CLIP in OpenAI\'s layout ({reason})') from error
    mask = module.build_attention_mask()  # a plain attribute of the text blocks, not among the weights
    for block in module.transformer.resblocks:
        block.attn_mask = mask
    return module.eval()


def _dimensions(weights):
    """Arguments of `clip.model.CLIP`, from the shapes of {name: tensor}. ValueError, KeyError for what is none."""

    def shape(key, axes):
        found = tuple(weights[key].shape)
        if len(found) != axes:
            raise ValueError(f"{key} has the shape {found}, expected {axes} axes")
        return found

    def count(prefix, part):
        return len({key.split(".")[part] for key in weights if key.startswith(prefix)})

    if "visual.proj" in weights:
        vision_width, _, patch, _ = shape("visual.conv1.weight", 4)
        side = round((shape("visual.positional_embedding", 2)[0] - 1) ** 0.5) * patch
        layers = count("visual.transformer.resblocks.", 3)
    else:
        vision_width, patch = shape("visual.layer1.0.conv1.weight", 4)[0], None
        side = round((shape("visual.attnpool.positional_embedding", 2)[0] - 1) ** 0.5) * 32
        layers = tuple(count(f"visual.layer{stage}.", 2) for stage in (1, 2, 3, 4))
    context_length, width = shape("positional_embedding", 2)
    return {
        "embed_dim": shape("text_projection", 2)[1],
        "image_resolution": side,
        "vision_layers": layers,
        "vision_width": vision_width,
        "vision_patch_size": patch,
        "context_length": context_length,
        "vocab_size": shape("token_embedding.weight", 2)[0],
        "transformer_width": width,
        "transformer_heads": width // 64,
        "transformer_layers": count("transformer.resblocks.", 2),
    }


def _warn_if_other_model(name, state, file):
    """A file that the user points to may not hold what the name says, and results carry the name."""
    named = re.fullmatch(r"(?:ViT-\w+/(\d+)(?:@\d+px)?|RN\d+\w*)", name)
    patch = str(state["visual.conv1.weight"].shape[-1]) if "visual.proj" in state else None
    if named and named[1] != patch:
        found = f"a ViT with patches of {patch} pixels" if patch else "a ResNet"
        get_logger().warning(f'MODEL.BACKBONE.NAME is {name}, but "{file}" holds {found}')
