"""Other people's checkpoints, told apart by their keys: whose they are, what in them was trained, what it becomes.

Pure: from state dicts to state dicts, no files and no config. What is missing or of another shape says the strict load
of the trainer that is to run it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from dassl.utils import UserError, check_weights, strip_module
from dassl.utils.moved import old_names
from mergetune.models.deep_prompts import keep_prompts, prompt_sizes

State = Mapping[str, Tensor]
META_NET = r"(^|\.)meta_net\."


@dataclass(frozen=True)
class Format:
    """One family of files."""

    name: str
    mark: str  # a file is of the first format whose pattern is found in one of its keys
    trained: str = ""  # pattern of the keys that were trained
    trainer: str = ""  # ours that, and whose subclasses, can run it
    config: Callable[[State], dict[str, object]] = lambda weights: {}  # keys that follow from `Recognised.weights`
    refused: str = ""  # why such a file cannot be used


@dataclass
class Recognised:
    """What `recognise` says of one file."""

    format: Format
    name: str  # the method, as precisely as the file says
    state: dict[str, Tensor]
    rows: list[dict[str, str]]  # of every key: status (mapped, ignored, unknown), key, shape, note; the trained first
    weights: dict[str, Tensor]  # the trained ones under our trainers' keys, in fp32
    config: dict[str, object]  # config keys that follow from them


def _context(node: str, count: int, **pairs: object) -> dict[str, object]:
    """Pairs of prompts. The recipes' words are four tokens, and words set the number of context vectors."""
    pairs |= {} if count == 4 else {"CTX_INIT": False}
    return {f"TRAINER.{node}.{key}": value for key, value in pairs.items()}


def _coop(weights: State) -> dict[str, object]:
    context = weights["ctx"]
    return _context("COOP", context.shape[-2], N_CTX=context.shape[-2], CSC=context.dim() == 3)


def _adapters(weights: State) -> dict[str, object]:
    blocks = {int(key.split(".")[1]) for key in weights}
    width = len(weights[f"text_adapter.{min(blocks)}.down.0.weight"])
    pairs = {"ADAPTER_START": min(blocks), "ADAPTER_END": max(blocks), "ADAPTER_DIM": width}
    return {f"TRAINER.MMADAPTER.{key}": value for key, value in pairs.items()}


def _student(weights: State) -> dict[str, object]:
    depth = 1 + sum(key.endswith(".VPT_shallow") for key in weights)
    pairs = {"N_CTX_VISION": len(weights["image_encoder.VPT"]), "PROMPT_DEPTH_VISION": depth}
    return {f"TRAINER.PROMPTKD.{key}": value for key, value in pairs.items()}


def _deep_prompts(weights: State) -> dict[str, object]:
    sizes = prompt_sizes(weights)
    pairs = {"N_CTX_VISION": sizes["n_image"], "PROMPT_DEPTH_VISION": sizes["image_depth"]}
    pairs |= {"N_CTX_TEXT": sizes["n_text"], "PROMPT_DEPTH_TEXT": sizes["text_depth"]}
    return _context("PROMPTSRC", sizes["n_text"], **pairs)


WORDS = "words of attributes or anchors stand among the context vectors of its prompts"
FORMATS = (
    Format("ATPrompt", r"(^|\.)(ctx_att\d+|token_middle\d*)$", refused=WORDS),
    Format("AnchorOPT (ATPrompt)", r"(^|\.)(anchor_ctx_\d+|token_of)$", refused=WORDS),
    Format("CoCoOp", META_NET, refused="its prompts depend on the image, so it has no class vectors"),
    Format("TCP", META_NET, refused="half of what makes its class vectors is its meta_net, within the text tower"),
    Format("an unknown meta_net", META_NET, refused="its context alone may not be all that was trained"),
    Format("MMA", r"^(shared|text|visual)_adapter\.", r"^(shared|text|visual)_adapter\.\d{1,3}\.", "MultiModalAdapter",
           _adapters),
    Format("MaPLe", "compound_prompt", r"^prompt_learner\.(ctx$|proj\.|compound_prompt)", "PromptSRC", _deep_prompts),
    Format("PromptKD", r"^VPT_image_trans\.", r"^VPT_image_trans\.|VPT(_shallow)?$", "PromptKD", _student),
    Format("PromptSRC", r"\.ZS_image_encoder\.", r"^prompt_learner\.ctx$|VPT(_shallow)?$", "PromptSRC", _deep_prompts),
    Format("PromptSRC or IVLP", "VPT", r"^prompt_learner\.ctx$|VPT(_shallow)?$", "PromptSRC", _deep_prompts),
    Format("KgCoOp", "^bias_vectors$", "^ctx$", "CoOp", _coop),
    Format("CoOp", "^(ctx|token_prefix|token_suffix)$", "^ctx$", "CoOp", _coop),
)  # fmt: skip

# What is in the files beside the trained weights: pattern -> why it is left out
IGNORED = {
    r"(^|\.)(token_(prefix|suffix|midfix)2?|tokenized_prompts)$|^token_embedding$": "made of the class names",
    rf"(^|\.)bias_vectors$|{META_NET}": "KgCoOp's, never used",
    r"^((prompt_learner\.ZS_)?image|text)_encoder\.(?!.*VPT)|^(clip_model\.)?logit_scale$": "frozen CLIP",
}


def recognise(state: dict[str, Tensor], folder: str = "") -> Recognised:
    """Whose file a state dict is, and what is in it. `folder`: name of the model folder that it lay in.

    MaPLe's image prompts (arXiv 2210.03117) are linear functions of text prompts and of nothing else, so after
    training they are constants: deep prompts of both towers, exact up to MaPLe's own rounding of them to fp16.

    UserError for a file of no known format, or of one that cannot be used, or a tensor that cannot be, with the reason.
    """
    if not all(isinstance(key, str) for key in state):
        raise UserError("the file has keys that are no names")
    state = strip_module({key.removeprefix("prompts."): value for key, value in state.items()})
    if not state:
        raise UserError("the file holds no weights")
    unused_keys(state)
    kind = format_of(state)
    if kind is None:
        names = ", ".join(known.name for known in FORMATS)
        raise UserError(f"its keys are of no known method ({names}): {shortened(list(state))}")
    name = "MERGETUNE" if kind.trainer == "CoOp" and folder == "prompt_mid_learner" else kind.name
    trained = {key: value for key, value in state.items() if re.search(kind.trained, key)}
    if not trained:
        raise UserError(f"a {name} file without what was trained ({kind.trained}): {shortened(list(state))}")
    rows = []
    for key in state:
        why = "" if key in trained else next((why for mark, why in IGNORED.items() if re.search(mark, key)), "left out")
        status = "mapped" if not why else "unknown" if why == "left out" else "ignored"
        rows.append({"status": status, "key": key, "shape": str(tuple(getattr(state[key], "shape", ()))), "note": why})
    rows.sort(key=lambda row: ("mapped", "ignored", "unknown").index(row["status"]))
    where = f"a {name} file that cannot be used"
    check_weights(where, trained)
    weights = {key: value.detach().float() if value.is_floating_point() else value for key, value in trained.items()}
    try:
        weights = keep_prompts(weights)
        return Recognised(kind, name, state, rows, weights, kind.config(weights))
    except (KeyError, IndexError, TypeError, RuntimeError) as error:  # from which sizes follow, or MaPLe's own shapes
        raise UserError(f"{where}: it lacks, or has of another shape, {str(error).splitlines()[0]}") from None


def format_of(state: State) -> Format | None:
    """The format whose mark a state dict has, None for another's."""
    owner, unused = _owner_of_meta_net(state), _unused_net(state)
    marked = (m for m in FORMATS if any(re.search(m.mark, key) for key in state if key not in unused))
    return next((m for m in marked if m.mark != META_NET or m.name == owner), None)


def _owner_of_meta_net(state: State) -> str:
    """Whose a meta_net is, if it is used, by its layers."""
    shapes = {key.rpartition("meta_net.")[2]: tuple(getattr(value, "shape", ())) for key, value in state.items()}
    context = [shape[-1:] for key, shape in shapes.items() if key.rpartition(".")[2] == "ctx"]
    match shapes.get("linear1.weight"), shapes.get("linear2.weight"):
        case (narrow, width), (_, _) if narrow == width // 16:
            return "CoCoOp"
        case (narrow, width), (wide, _) if narrow == width // 4 and (wide / 4,) in context:
            return "TCP"
    return "an unknown meta_net"


def _unused_net(state: State) -> list[str]:
    """Keys of the meta_net that KgCoOp makes and never calls: one square layer beside its bias_vectors."""
    net = {key: tuple(getattr(value, "shape", ())) for key, value in state.items() if re.search(META_NET, key)}
    layers = {key.rpartition("meta_net.")[2]: shape for key, shape in net.items()}
    first = layers.pop("linear1.weight", ())
    square = len(first) == 2 and first[0] == first[1] and layers.keys() <= {"linear1.bias"}
    return list(net) if square and any(key.rpartition(".")[2] == "bias_vectors" for key in state) else []


def unused_keys(state: State) -> list[str]:
    """Keys of trained layers that their method never calls: KgCoOp's meta_net. UserError for a method that is known
    and refused: what of it could be loaded here is not what was trained."""
    kind = format_of(state)
    if kind is not None and kind.refused:
        raise UserError(f"a file of {kind.name} is recognised and refused: {kind.refused}")
    return _unused_net(state)


def shortened(names: list[str], most: int = 8) -> str:
    """The first names and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def to_text(checkpoint: Recognised) -> str:
    """The report: what the file is, its keys with shapes. Ignored keys go by their reason."""
    lines, ignored = [f"method    {checkpoint.name}"], {}
    width = max(len(row["key"]) for row in checkpoint.rows if row["status"] != "ignored")
    for row in checkpoint.rows:
        if row["status"] == "ignored":
            ignored.setdefault(row["note"], []).append(row["key"])
        else:
            lines.append(f"{row['status']:8}  {row['key']:{width}}  {row['shape']}  {row['note']}".rstrip())
    return "\n".join([*lines, *(f"ignored   {shortened(keys, 2)}: {why}" for why, keys in ignored.items())])


__getattr__ = old_names(__name__)
