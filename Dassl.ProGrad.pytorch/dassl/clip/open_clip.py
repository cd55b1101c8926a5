"""Other CLIPs through open_clip (optional: pip install open_clip_torch): OpenAI's, LAION's, EVA, DFN,
SigLIP, ...

Models with a token embedding of their own, from open_clip's tags, the Hugging Face hub, a local folder
(with `open_clip_config.json`, as the hub has it) or a file. Tokeniser, activation and preprocessing come
with the weights.
"""

import os
from pathlib import Path

import torch

from dassl.utils import MissingFile, UserError, closest, get_logger, sha256_file

from .backbone import Block, ClipBackbone, Preprocess

SCHEMAS = ("hf-hub:", "local-dir:")


class OpenClip(ClipBackbone):
    """A model of open_clip with its tokeniser.

    Towers that attend to both sides (SigLIP), pool the last position or append a class token (CoCa) are not
    `causal` in the sense of the seam: texts keep their full length.
    """

    def __init__(self, module, tokenizer, **facts):
        self.tokenizer = tokenizer
        tower = getattr(module, "text", module)
        self.pooling = getattr(tower, "pool_type", None) or tower.text_pool_type
        self.causal = (
            getattr(tower, "attn_mask", None) is not None
            and self.pooling in ("argmax", "eos")
            and getattr(tower, "cls_emb", None) is None
        )
        super().__init__(module, **facts)
        first, second = self._raw_tokens(["a", "two"])
        self.start_tokens = int((first == second).int().cumprod(0).sum())  # what stands before any text
        empty = self._raw_tokens([""])[0]
        self._padding = int(empty[-1])
        self._specials = int(self._unpadded(empty[None], self._padding))  # start and end token

    @property
    def text_tower(self):
        return getattr(self.module, "text", self.module)

    @property
    def dim(self):
        projection = self.text_tower.text_projection
        if projection is None:
            return self.width
        return projection.out_features if isinstance(projection, torch.nn.Linear) else projection.shape[1]

    @property
    def context_length(self):
        return self.text_tower.context_length

    @property
    def dtype(self):
        return self.text_tower.transformer.get_cast_dtype()

    @property
    def image_blocks(self):
        visual = self.module.visual
        if hasattr(visual, "transformer"):
            return _blocks(visual.transformer)
        blocks = getattr(getattr(visual, "trunk", None), "blocks", None)  # timm
        if blocks is None or not all(hasattr(block, "norm1") for block in blocks):
            return []
        return [Block(block, block.norm1, block.norm1.normalized_shape[0], True) for block in blocks]

    @property
    def text_blocks(self):
        return _blocks(self.text_tower.transformer)

    def lengths(self, tokens):
        if self.pooling == "argmax":
            return super().lengths(tokens)
        if self.pooling == "eos":
            end = getattr(self.text_tower, "eos_id", None) or self.text_tower.text_eos_id
            return (tokens == end).int().argmax(dim=-1) + 1
        return self._unpadded(tokens, self._padding)

    def token_counts(self, texts):
        return (self._unpadded(self.tokenise(texts), self._padding) - self._specials).tolist()

    @staticmethod
    def _unpadded(tokens, padding):
        """(C, L) -> (C,) positions up to the last one that is no padding."""
        places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        return (places * (tokens != padding)).amax(dim=-1)

    def _raw_tokens(self, texts, length=None):
        return self.tokenizer(texts, context_length=length or self.context_length).long()

    def tokenise(self, texts):
        texts = [texts] if isinstance(texts, str) else list(texts)
        tokens = self._raw_tokens(texts)
        # open_clip cuts long texts without a word; with one position more the excess shows
        for text, last in zip(texts, self._raw_tokens(texts, self.context_length + 1)[:, -1], strict=True):
            if last != self._padding:
                raise UserError(f'"{text}" is too long for the {self.context_length} tokens of {self.name}')
        return tokens.to(self.device)


def _blocks(tower):
    return [Block(block, block.ln_1, block.ln_1.normalized_shape[0], tower.batch_first) for block in tower.resblocks]


def open_clip_package():
    """The module `open_clip`. Raises UserError with what to install."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError(f"open_clip is not installed ({error}): pip install open_clip_torch") from error
    return open_clip


def load_open_clip(model, *, path="", device="cpu", precision="fp32"):
    """`MODEL/TAG`, `MODEL/FILE`, a folder, `local-dir:FOLDER` or `hf-hub:ORG/REPO` -> OpenClip.

    path: a weights file for MODEL, or a local folder. open_clip's own initialisation does not touch the
    global random stream here.

    Raises:
        UserError: unknown model or tag, no weights named, weights that cannot be had or read, or no token
        embedding.
    """
    package = open_clip_package()
    name, weights = _resolve(package, model, path)
    tag = package.pretrained.get_pretrained_cfg(name, weights) if weights else {}
    try:
        with torch.random.fork_rng(devices=[]):
            module = package.create_model(
                name,
                pretrained=weights or None,
                precision="fp16" if precision == "fp16" else "fp32",
                device=device,
                force_quick_gelu=bool(tag.get("quick_gelu")),
                require_pretrained=True,
                pretrained_text=False,
            )
            tokenizer = package.get_tokenizer(name)
            digest = sha256_file(_weights_file(package, name, weights, tag))
    except Exception as error:  # many kinds: no network, a damaged file, another architecture, no tokeniser
        raise UserError(f'open_clip cannot load "{model or path}" ({error})') from error
    backbone = _wrap(package, module.eval(), tokenizer, name=f"open_clip:{model or path}", digest=digest)
    get_logger().info(str(backbone))
    return backbone


def _weights_file(package, name, weights, tag):
    """The file that create_model has just read: its digest does not depend on the precision asked for."""
    if name.startswith("local-dir:"):
        return package.factory._find_checkpoint_in_dir(Path(name.removeprefix("local-dir:")))
    if name.startswith("hf-hub:"):
        return package.pretrained.download_pretrained_from_hf(name.removeprefix("hf-hub:"))
    return package.pretrained.download_pretrained(tag) if tag else weights


def _wrap(package, module, tokenizer, *, name, digest):
    if not hasattr(getattr(module, "text", module), "token_embedding"):
        raise UserError(f"{name}: its text tower has no token_embedding to feed learned prompts to")
    facts = package.model.get_model_preprocess_cfg(module)
    size = facts["size"]
    preprocess = Preprocess(
        size if isinstance(size, int) else size[0],
        tuple(facts["mean"]),
        tuple(facts["std"]),
        facts["interpolation"],
        facts["resize_mode"],
    )
    quick = any(isinstance(part, package.transformer.QuickGELU) for part in module.modules())
    return OpenClip(
        module, tokenizer, name=name, digest=digest, preprocess=preprocess, activation="quickgelu" if quick else "gelu"
    )


def _resolve(package, model, path):
    """-> (name for create_model, pretrained tag or file, "" where the name brings its own)."""
    if model.startswith(SCHEMAS):
        return model, ""
    folder = next((place for place in (path, model) if place and Path(place).expanduser().is_dir()), None)
    if folder and (Path(folder).expanduser() / "open_clip_config.json").is_file():
        return f"local-dir:{Path(folder).expanduser()}", ""
    name, _, weights = model.partition("/")
    known = package.list_models()
    if name not in known:
        raise UserError(
            f'unknown open_clip model "{name}" (nearest: {", ".join(closest(name, known))}); '
            f"{len(known)} are available, see open_clip.list_models(); local folders need an "
            f"open_clip_config.json"
        )
    weights = str(Path(path or weights).expanduser()) if path or "/" in weights else weights
    tags = package.list_pretrained_tags_by_model(name)
    if not weights:
        raise UserError(f"open_clip:{name} names no weights; write open_clip:{name}/TAG, available: {', '.join(tags)}")
    if weights in tags or os.path.isfile(weights):
        return name, weights
    if "/" in weights:
        raise MissingFile(f'weights "{weights}" for open_clip:{name} are not there')
    raise UserError(
        f'unknown weights "{weights}" for open_clip:{name} '
        f"(nearest: {', '.join(closest(weights, tags))}); available: {', '.join(tags)}"
    )
