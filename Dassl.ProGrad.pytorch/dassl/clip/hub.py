"""Where open_clip's models come from (optional: pip install open_clip_torch; SigLIP and Hugging Face texts
also need transformers).

From open_clip's tags, the Hugging Face hub, a local folder (with `open_clip_config.json`, as the hub has it)
or a file. Tokeniser, activation and preprocessing come with the weights. What is in the folder or in the
hub's cache is read without asking the network.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dassl.utils import MissingFile, UserError, check_kind, check_records, closest, get_logger, read_json, sha256_file

from .backbone import CLIP_REGISTRY, Device, Preprocess
from .open_clip import OpenClip, OpenClipForeignText

LOCAL, HUB = "local-dir:", "hf-hub:"
CONFIG = "open_clip_config.json"
TOKENISERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
PIXELS = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Source:
    """What to load. name: for open_clip, with its prefix; weights: a tag or a file, "" if the name brings its own;
    tag: what open_clip knows of the tag."""

    name: str
    weights: str = ""
    tag: dict = field(default_factory=dict)

    @property
    def repo(self) -> str:
        """The hub's repository that the name says, or ""."""
        return self.name.removeprefix(HUB) if self.name.startswith(HUB) else ""

    @property
    def folder(self) -> Path | None:
        """The folder in which files of the user lie, or None."""
        if self.name.startswith(LOCAL):
            return Path(self.name.removeprefix(LOCAL))
        return Path(self.weights).parent if os.path.isfile(self.weights) else None


@CLIP_REGISTRY.register()
def open_clip(model: str, *, path: str, device: Device, precision: str) -> OpenClip:
    """`MODEL/TAG`, `MODEL/FILE`, a folder, `local-dir:FOLDER` or `hf-hub:ORG/REPO` -> OpenClip.

    path: a weights file for MODEL, or a local folder. open_clip's own initialisation does not touch the
    global random stream here.
    UserError: no package, unknown model or tag, no weights named, or weights that cannot be had or read.
    """
    try:
        import open_clip as package
    except ImportError as error:
        raise UserError(f"open_clip is not installed ({error}): pip install open_clip_torch") from error
    source = resolve(package, model, path)
    text = text_config(package, source)
    lacking = missing_files(package, source, text)
    unreachable = no_network() if lacking else ""
    try:
        with nullcontext() if lacking and not unreachable else offline(), torch.random.fork_rng(devices=[]):
            module = _build(package, source, text, device, precision)
            tokenizer = _tokeniser(package, source, text)
            digest = sha256_file(_weights_file(package, source))
    except Exception as error:  # many kinds: no network, a damaged file, another architecture, no tokeniser
        reason, advice = unreachable or str(error), ""
        if lacking:
            repos = " ".join(dict.fromkeys(name.rpartition("/")[0] for name in lacking))
            advice = (
                f". Not in the Hugging Face cache: {', '.join(lacking)}. Run `hf download` of {repos} where there is a "
                f"network, or let MODEL.BACKBONE.PATH name a folder that holds them"
            )
        raise UserError(f'open_clip cannot load "{model or path}" ({reason}){advice}') from error
    backbone = _wrap(package, module.eval(), tokenizer, name=f"open_clip:{model or path}", digest=digest)
    get_logger().info(str(backbone))
    return backbone


def _build(package, source, text, device, precision):
    """open_clip's model. A Hugging Face text tower is built from the folder's own config.json where there is one."""
    if source.folder and (file := _weights_file(package, source)):
        check_kind(file)
        check_records(file)
    options = {}
    foreign = text.get("hf_model_name")
    if foreign and _text_model_config(package, source):
        options["text_cfg"] = text | {"hf_model_name": str(source.folder), "hf_model_pretrained": False}
    if precision == "fp16":  # open_clip's fp16 keeps norms in fp32, which a Hugging Face tower does not expect
        options["precision"] = "pure_fp16" if foreign else "fp16"
    if os.path.isfile(source.weights):
        options["force_preprocess_cfg"] = published_pixels(package, source.name)
    return package.create_model(
        source.name,
        pretrained=source.weights or None,
        device=device,
        force_quick_gelu=bool(source.tag.get("quick_gelu")),
        require_pretrained=True,
        pretrained_text=False,
        **options,
    )


def published_pixels(package: ModuleType, name: str) -> dict[str, Any]:
    """How the published weights of an architecture saw images, for a file of it, which does not say."""
    tags = package.list_pretrained_tags_by_model(name)
    known = [package.pretrained.get_pretrained_cfg(name, tag) for tag in tags]
    published = [{key: cfg[key] for key in PIXELS if key in cfg} for cfg in known]
    if any(pixels != published[0] for pixels in published):
        get_logger().warning(f"{name}: its published weights differ in preprocessing; that of {tags[0]} is assumed")
    return published[0] if published else {}


def _tokeniser(package, source, text):
    """open_clip's tokeniser of the model, read as a folder where its files are on this machine.

    transformers asks the hub for a config.json beside a tokeniser, which open_clip's repositories lack.
    """
    folder = tokeniser_folder(source, text)
    if not folder:
        return package.get_tokenizer(source.name)
    return package.tokenizer.HFTokenizer(
        str(folder),
        context_length=text.get("context_length", package.tokenizer.DEFAULT_CONTEXT_LENGTH),
        tokenizer_mode=text.get("tokenizer_mode"),
        **text.get("tokenizer_kwargs", {}),
    )


def tokeniser_folder(source: Source, text: Mapping[str, Any]) -> Path | None:
    """Where the tokeniser's files lie: beside the user's weights, else in the cache; None if neither or not needed."""
    repo = text.get("hf_tokenizer_name")
    if not repo or source.name.startswith(LOCAL):
        return None
    if source.folder is not None and any((source.folder / name).is_file() for name in TOKENISERS):
        return source.folder
    files = [cached(repo, name) for name in TOKENISERS] if cached(repo, "tokenizer_config.json") else []
    return next((Path(file).parent for file in files if file), None)


def _weights_file(package, source):
    """The file that create_model has just read: its digest does not depend on the precision asked for."""
    if source.name.startswith(LOCAL):
        return package.factory._find_checkpoint_in_dir(source.folder)
    if source.repo:
        return package.pretrained.download_pretrained_from_hf(source.repo)
    return package.pretrained.download_pretrained(source.tag) if source.tag else source.weights


def _wrap(package, module, tokenizer, *, name, digest):
    facts = package.model.get_model_preprocess_cfg(module)
    size = facts["size"] if isinstance(facts["size"], int) else facts["size"][0]
    pixels = tuple(facts["mean"]), tuple(facts["std"]), facts["interpolation"], facts["resize_mode"]
    preprocess = Preprocess(size, *pixels)
    quick = any(isinstance(part, package.transformer.QuickGELU) for part in module.modules())
    kind = OpenClip if hasattr(getattr(module, "text", module), "token_embedding") else OpenClipForeignText
    return kind(
        module, tokenizer, name=name, digest=digest, preprocess=preprocess, activation="quickgelu" if quick else "gelu"
    )


# names


def resolve(package: ModuleType, model: str, path: str = "") -> Source:
    """A name behind `open_clip:`, and MODEL.BACKBONE.PATH -> Source. UserError as `open_clip`."""
    if model.startswith((LOCAL, HUB)):
        return Source(model)
    folder = next((place for place in (path, model) if place and Path(place).expanduser().is_dir()), None)
    if folder and (Path(folder).expanduser() / CONFIG).is_file():
        return Source(f"{LOCAL}{Path(folder).expanduser()}")
    if folder:
        raise UserError(
            f'"{folder}" has no {CONFIG}; a folder is read in the layout of open_clip\'s models on the hub, '
            f"e.g. hf-hub:timm/ViT-B-16-SigLIP2, not in that of transformers"
        )
    name, _, weights = model.partition("/")
    known = package.list_models()
    if name not in known:
        raise UserError(
            f'unknown open_clip model "{name}" (nearest: {", ".join(closest(name, known))}); '
            f"{len(known)} are available, see open_clip.list_models(); local folders need an {CONFIG}"
        )
    weights = str(Path(path or weights).expanduser()) if path or "/" in weights else weights
    tags = package.list_pretrained_tags_by_model(name)
    if not weights:
        raise UserError(f"open_clip:{name} names no weights; write open_clip:{name}/TAG, available: {', '.join(tags)}")
    if weights in tags or os.path.isfile(weights):
        return Source(name, weights, package.pretrained.get_pretrained_cfg(name, weights))
    if "/" in weights:
        raise MissingFile(f'weights "{weights}" for open_clip:{name} are not there')
    raise UserError(
        f'unknown weights "{weights}" for open_clip:{name} '
        f"(nearest: {', '.join(closest(weights, tags))}); available: {', '.join(tags)}"
    )


def text_config(package: ModuleType, source: Source) -> dict[str, Any]:
    """open_clip's `text_cfg` of a source; {} where it is not on this machine or cannot be read."""
    try:
        with offline():
            return package.get_model_config(source.name).get("text_cfg", {})
    except (OSError, ValueError, AttributeError):  # open_clip reads it again and says what is wrong
        return {}


def _text_model_config(package, source):
    """Is there a config.json of a text tower that open_clip can build in the source's folder?"""
    try:
        kind = read_json(source.folder / "config.json")["model_type"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return kind in package.hf_configs.arch_dict


# the network


def cached(repo: str, name: str) -> str:
    """Path of the hub's file in the local cache, or of a file of the folder `repo`; "" if it is in neither."""
    from huggingface_hub import try_to_load_from_cache

    if os.path.isdir(repo):
        return os.path.join(repo, name) if os.path.isfile(os.path.join(repo, name)) else ""
    try:
        file = try_to_load_from_cache(repo, name)
    except ValueError:  # no name of a repository
        return ""
    return file if isinstance(file, str) else ""


def missing_files(package: ModuleType, source: Source, text: Mapping[str, Any]) -> list[str]:
    """What loading has to fetch from the hub -> list of "REPO/FILE", empty where everything is on this machine."""
    needs = []
    if source.repo:
        needs += [(source.repo, (CONFIG,)), (source.repo, _weights_names(package, ""))]
    elif source.tag.get("hf_hub"):
        repo, name = os.path.split(source.tag["hf_hub"])
        needs.append((repo, _weights_names(package, name)))
    if text.get("hf_model_name") and not _text_model_config(package, source):
        needs.append((text["hf_model_name"], ("config.json",)))
    absent = [f"{repo}/{names[0]}" for repo, names in needs if not any(cached(repo, name) for name in names)]
    repo = text.get("hf_tokenizer_name")
    if repo and not source.name.startswith(LOCAL) and not tokeniser_folder(source, text):
        absent.append(f"{repo}/tokenizer.json")
    return absent


def _weights_names(package, name):
    """File names under which open_clip looks for weights called `name` ("": the usual ones)."""
    name = name or package.constants.HF_WEIGHTS_NAME
    return (*package.pretrained._get_safe_alternatives(name), name)


def no_network() -> str:
    """Why the hub cannot be reached, or "": huggingface_hub alone would retry each file for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)  # any answer will do
    except Exception as error:  # of its client's kinds; HF_HUB_OFFLINE is one of the reasons
        return f"{constants.ENDPOINT} cannot be reached: {error}"
    return ""


@contextmanager
def offline() -> Iterator[None]:
    """HF_HUB_OFFLINE for one load: the hub would ask for newer versions, and wait where there is no network."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True  # the variable is read once, on import
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
