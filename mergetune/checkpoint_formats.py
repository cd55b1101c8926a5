"""Other people's checkpoints, told apart by their keys: whose they are, what in them was trained, what it becomes.

Pure: from state dicts to state dicts, no files and no config. What is missing or of another shape says the strict load
of the trainer that is to run it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dassl.utils import UserError, check_weights, strip_module
from dassl.utils.moved import old_names
from mergetune.models.deep_prompts import keep_prompts

META_NET = r"(^|\.)meta_net\."


@dataclass(frozen=True)
class Format:
    """One family of files. Several have a meta_net for their mark: its shapes tell them apart (`format_of`)."""

    name: str
    mark: str  # a file is of this format if this pattern is found in one of its keys
    trained: str = ""  # pattern of the keys that were trained
    trainer: str = ""  # ours that usually runs it
    pairs: Callable[..., dict] = lambda checkpoint: {}  # config keys that follow from the file
    note: str = ""  # of its report
    refused: str = ""  # why such a file cannot be used


@dataclass
class Recognised:
    """What `recognise` says of one file."""

    format: Format
    name: str  # the method, as precisely as the file says
    state: dict[str, Tensor]
    keys: dict[str, tuple[str, str]]  # key -> mapped, ignored or unknown; why

    def of(self, status: str) -> list[str]:
        """The keys of a status."""
        return [key for key in self.keys if self.keys[key][0] == status]

    @property
    def class_specific(self) -> bool:
        return self.format.name == "CoOp" and self.state["ctx"].dim() == 3

    def size(self, pattern: str, axis: int) -> int:
        """The length of an axis of the key that matches, counted from the last one. UserError where there is none."""
        shapes = (getattr(value, "shape", ()) for key, value in self.state.items() if re.fullmatch(pattern, key))
        shape = next((shape for shape in shapes if len(shape) in (2, 3)), None)
        if shape is None:
            raise UserError(f"a {self.name} file that cannot be used: it has no {pattern} of 2 or 3 axes")
        return shape[axis]

    def layers(self, pattern: str) -> set[int]:
        """The numbers of layers in its trained keys: what the pattern's group matches, up to three digits."""
        matches = (re.match(pattern, key) for key in self.of("mapped"))
        return {int(match[1]) for match in matches if match and len(match[1]) < 4}


def _context(checkpoint: Recognised, node: str, **pairs: object) -> dict[str, object]:
    """Pairs of prompts. The recipes' words are four tokens, and words set the number of context vectors."""
    pairs |= {} if checkpoint.size(CONTEXT, -2) == 4 else {"CTX_INIT": False}
    return {f"TRAINER.{node}.{key}": value for key, value in pairs.items()}


def _coop(checkpoint: Recognised) -> dict[str, object]:
    return _context(checkpoint, "COOP", N_CTX=checkpoint.size(CONTEXT, -2), CSC=checkpoint.class_specific)


def _adapters(checkpoint: Recognised) -> dict[str, object]:
    width = checkpoint.size(r"text_adapter\.\d{1,3}\.down\.0\.weight", -2)
    blocks = checkpoint.layers(r"(?:shared|text|visual)_adapter\.(\d+)\.")
    pairs = {"ADAPTER_START": min(blocks), "ADAPTER_END": max(blocks), "ADAPTER_DIM": width}
    return {f"TRAINER.MMADAPTER.{key}": value for key, value in pairs.items()}


def _depth(checkpoint: Recognised, tower: str) -> int:
    """Of deep prompts: the first block's stand outside the layers, and numbers start at 1."""
    return 1 + max(checkpoint.layers(rf"{tower}_encoder.*\.(\d+)\.VPT_shallow"), default=0)


def _student(checkpoint: Recognised) -> dict[str, object]:
    pairs = {"N_CTX_VISION": checkpoint.size(IMAGE_PROMPT, -2), "PROMPT_DEPTH_VISION": _depth(checkpoint, "image")}
    return {f"TRAINER.PROMPTKD.{key}": value for key, value in pairs.items()}


def _deep_prompts(checkpoint: Recognised) -> dict[str, object]:
    """MaPLe's numbers start at 0, and its image prompts are as many as the text's."""
    count = checkpoint.size(CONTEXT, -2)
    coupled = 2 + max(checkpoint.layers(r".*compound_prompts_text\.(\d+)"), default=-1)
    images = checkpoint.size(IMAGE_PROMPT, -2) if "image_encoder.VPT" in checkpoint.state else count
    image, text = (max(coupled, _depth(checkpoint, tower)) for tower in ("image", "text"))
    pairs = {"N_CTX_VISION": images, "PROMPT_DEPTH_VISION": image, "N_CTX_TEXT": count, "PROMPT_DEPTH_TEXT": text}
    return _context(checkpoint, "PROMPTSRC", **pairs)


CONTEXT, IMAGE_PROMPT = r"(.*\.)?ctx", r"image_encoder\.VPT"
ATTRIBUTES = "its prompts have another form, with words of attributes or anchors among the context vectors"
FORMATS = (
    Format("ATPrompt", r"(^|\.)(ctx_att\d+|token_middle\d*)$", refused=ATTRIBUTES),
    Format("AnchorOPT (ATPrompt)", r"(^|\.)(anchor_ctx_\d+|token_of)$", refused=ATTRIBUTES),
    Format(
        "CoCoOp",
        META_NET,
        refused="its prompts depend on the image, so there are no class vectors to continue from or to merge",
    ),
    Format(
        "TCP",
        META_NET,
        refused="half of what makes its class vectors is its meta_net, within the text tower, and no context",
    ),
    Format("unknown meta_net", META_NET, refused="its context alone may not be all that was trained"),
    Format(
        "MMA",
        mark=r"^(shared|text|visual)_adapter\.",
        trained=r"^(shared|text|visual)_adapter\.",
        trainer="MultiModalAdapter",
        pairs=_adapters,
    ),
    Format(
        "MaPLe",
        mark=r"compound_prompt",
        trained=r"^prompt_learner\.(ctx$|proj\.|compound_prompt)",
        trainer="PromptSRC",
        pairs=_deep_prompts,
        note="image prompts are linear functions of the text prompts: written out as their values, fp32",
    ),
    Format(
        "PromptKD",
        mark=r"^VPT_image_trans\.",
        trained=r"^VPT_image_trans\.|VPT(_shallow)?$",
        trainer="PromptKD",
        pairs=_student,
        note="a run names its teacher by TRAINER.PROMPTKD.TEACHER_NAME and TEACHER_DIR",
    ),
    Format(
        "PromptSRC",
        mark=r"VPT",
        trained=r"^prompt_learner\.ctx$|VPT(_shallow)?$",
        trainer="PromptSRC",
        pairs=_deep_prompts,
    ),
    Format(
        "CoOp",
        mark=r"^(ctx|token_prefix|token_suffix)$",
        trained=r"^ctx$",
        trainer="CoOp",
        pairs=_coop,
    ),
)

# What is in the files beside the trained weights: pattern -> why it is left out
IGNORED = {
    r"(^|\.)token_(prefix|suffix|midfix)2?$": "made of the class names",
    r"(^|\.)tokenized_prompts$|^token_embedding$": "made of the class names",
    r"(^|\.)bias_vectors$": "never used",
    META_NET: "KgCoOp's meta_net, never used",
    r"^prompt_learner\.ZS_image_encoder\.": "frozen CLIP, a second image tower",
    r"^image_encoder\.(?!.*VPT)": "frozen CLIP, image tower",
    r"^text_encoder\.(?!.*VPT)": "frozen CLIP, text tower",
    r"^(clip_model\.)?logit_scale$": "frozen CLIP",
}


def recognise(state: dict[str, Tensor], folder: str = "") -> Recognised:
    """Whose file a state dict is, and what is in it. `folder`: name of the model folder that it lay in.

    Raises UserError for a file of no known format, or of one that cannot be used, with the reason.
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
    keys = {}
    for key in state:
        why = next((why for pattern, why in IGNORED.items() if re.search(pattern, key)), "")
        trained = re.search(kind.trained, key)
        keys[key] = ("mapped", "") if trained else ("ignored", why) if why else ("unknown", "left out")
    name = kind.name
    if name == "CoOp":
        name = "KgCoOp" if "bias_vectors" in state else "CoOp"
        name = "MERGETUNE" if folder == "prompt_mid_learner" else name
    elif name == "PromptSRC" and not any(".ZS_image_encoder." in key for key in state):
        name = "PromptSRC or IVLP"
    checkpoint = Recognised(kind, name, state, keys)
    if not checkpoint.of("mapped"):
        raise UserError(f"a {name} file without what was trained ({kind.trained}): {shortened(list(state))}")
    return checkpoint


def format_of(state: dict[str, Tensor]) -> Format | None:
    """The format whose mark a state dict has, None for another's."""
    owner = _owner_of_meta_net(state)
    marked = (m for m in FORMATS if any(re.search(m.mark, key) for key in state))
    return next((m for m in marked if m.mark != META_NET or m.name == owner), None)


def _owner_of_meta_net(state: dict[str, Tensor]) -> str:
    """Whose a meta_net is by its layers: KgCoOp's (made and never called), CoCoOp's, TCP's; "" where there is none."""
    net = {key.rpartition("meta_net.")[2]: value for key, value in state.items() if re.search(META_NET, key)}
    if not net:
        return ""
    first, second = (tuple(getattr(net.get(f"linear{i}.weight"), "shape", ())) for i in (1, 2))
    context = next((value for key, value in state.items() if key.rpartition(".")[2] == "ctx"), None)
    if len(first) == 2 and net.keys() <= {"linear1.weight", "linear1.bias"} and first[0] == first[1]:
        return "KgCoOp" if any(key.rpartition(".")[2] == "bias_vectors" for key in state) else "unknown meta_net"
    if len(first) == len(second) == 2:
        if first[0] == first[1] // 16:
            return "CoCoOp"
        if first[0] == first[1] // 4 and isinstance(context, Tensor) and second[0] == 4 * context.shape[-1]:
            return "TCP"
    return "unknown meta_net"


def unused_keys(state: dict[str, Tensor]) -> list[str]:
    """Keys of trained layers that their method never calls: KgCoOp's meta_net. UserError for a method that is known
    and refused: what of it could be loaded here is not what was trained."""
    kind = format_of(state)
    if kind is not None and kind.refused:
        article = "an" if kind.name[0] in "Au" else "a"
        raise UserError(f"{article} {kind.name} file is recognised and refused: {kind.refused}")
    return [key for key in state if re.search(META_NET, key)]


def shortened(names: list[str], most: int = 8) -> str:
    """The first names and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def weights(checkpoint: Recognised) -> dict[str, Tensor]:
    """The trained weights under our trainers' keys, in fp32. UserError names a tensor that cannot be used.

    MaPLe's image prompts (arXiv 2210.03117) are linear functions of text prompts and of nothing else, so after
    training they are constants: deep prompts of both towers, exact up to MaPLe's own rounding of them to fp16.
    """
    where = f"a {checkpoint.name} file that cannot be used"
    state = {key: checkpoint.state[key] for key in checkpoint.of("mapped")}
    check_weights(where, state)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    try:
        return keep_prompts({key: value.detach() for key, value in state.items()})
    except RuntimeError as error:  # shapes of MaPLe's that do not go together
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None


def rows(checkpoint: Recognised) -> list[dict[str, str]]:
    """Every key of the file: status (mapped, ignored, unknown), key, shape, note; what was trained first."""
    shapes = {key: str(tuple(getattr(value, "shape", ()))) for key, value in checkpoint.state.items()}
    return [
        {"status": status, "key": key, "shape": shapes[key], "note": checkpoint.keys[key][1]}
        for status in ("mapped", "ignored", "unknown")
        for key in checkpoint.of(status)
    ]


def to_text(checkpoint: Recognised) -> str:
    """The report: what the file is, its keys with shapes. Ignored keys go by their reason."""
    lines, ignored = [f"method    {checkpoint.name}"], {}
    width = max(len(key) for key in checkpoint.of("mapped") + checkpoint.of("unknown"))
    for row in rows(checkpoint):
        if row["status"] == "ignored":
            ignored.setdefault(row["note"], []).append(row["key"])
        else:
            lines.append(f"{row['status']:8}  {row['key']:{width}}  {row['shape']}  {row['note']}".rstrip())
    lines += [f"ignored   {shortened(keys, 2)}: {why}" for why, keys in ignored.items()]
    return "\n".join([*lines, *[f"note      {note}" for note in [checkpoint.format.note] if note]])


__getattr__ = old_names(__name__)
