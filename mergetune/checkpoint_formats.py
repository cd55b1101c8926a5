"""Other people's checkpoints, told apart by their keys: whose they are, what in them was trained, what it becomes.

Pure: from state dicts to state dicts, no files and no config. What is missing or of another shape says the strict load
of the trainer that is to run it.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, strided

from dassl.utils import UserError, strip_module
from mergetune.models.deep_prompts import keep_prompts

META_NET = r"(^|\.)meta_net\."


@dataclass(frozen=True)
class Format:
    """One family of files. Several have a meta_net for their mark: its shapes tell them apart (`format_of`)."""

    name: str
    mark: str  # a file is of this format if this pattern is found in one of its keys
    trained: str = ""  # pattern of the keys that were trained
    trainers: dict[str, str] = field(default_factory=dict)  # ours that run it, the usual first -> checkpoint folder
    pairs: Callable[..., dict] = lambda found: {}  # config keys that follow from the file
    note: str = ""  # of its report
    refused: str = ""  # why such a file cannot be used


def _words(found, node: str, pairs: dict) -> dict:
    """The recipes' words are four tokens, and words set the number of context vectors."""
    pairs |= {} if found.size("N") == 4 else {"CTX_INIT": False}
    return {f"TRAINER.{node}.{key}": value for key, value in pairs.items()}


def _adapter_pairs(found) -> dict:
    width, blocks = found.size("R"), found.layers(r"(?:shared|text|visual)_adapter\.(\d+)\.")
    pairs = {"ADAPTER_START": min(blocks), "ADAPTER_END": max(blocks), "ADAPTER_DIM": width}
    return {f"TRAINER.MMADAPTER.{key}": value for key, value in pairs.items()}


def _student_pairs(found) -> dict:
    depth = 1 + max(found.layers(r"image_encoder.*\.(\d+)\.VPT_shallow"), default=0)
    return {"TRAINER.PROMPTKD.N_CTX_VISION": found.size("n"), "TRAINER.PROMPTKD.PROMPT_DEPTH_VISION": depth}


def _prompt_pairs(found) -> dict:
    """Of deep prompts: the first block's stand outside the layers, and numbers start at 1 (MaPLe's at 0)."""
    coupled = 2 + max(found.layers(r".*compound_prompts_text\.(\d+)"), default=-1)
    image, text = (max(found.layers(rf"{tower}_encoder.*\.(\d+)\.VPT_shallow"), default=0) + 1
                   for tower in ("image", "text"))  # fmt: skip
    pairs = {"N_CTX_VISION": found.sizes.get("n") or found.size("N"), "PROMPT_DEPTH_VISION": max(coupled, image),
             "N_CTX_TEXT": found.size("N"), "PROMPT_DEPTH_TEXT": max(coupled, text)}  # fmt: skip
    return _words(found, "PROMPTSRC", pairs)


ATTRIBUTES = "its prompts have another form, with words of attributes or anchors among the context vectors"
REFUSED = {  # name -> mark, and why nothing here can run what was trained
    "ATPrompt": (r"(^|\.)(ctx_att\d+|token_middle\d*)$", ATTRIBUTES),
    "AnchorOPT (ATPrompt)": (r"(^|\.)(anchor_ctx_\d+|token_of)$", ATTRIBUTES),
    "CoCoOp": (META_NET, "its prompts depend on the image, so there are no class vectors to continue from or to merge"),
    "TCP": (META_NET, "half of what makes its class vectors is its meta_net, within the text tower, and no context"),
    "unknown meta_net": (META_NET, "its context alone may not be all that was trained"),
}
FORMATS = (
    *(Format(name, mark, refused=why) for name, (mark, why) in REFUSED.items()),
    Format(
        "MMA",
        mark=r"^(shared|text|visual)_adapter\.",
        trained=r"^(shared|text|visual)_adapter\.",
        trainers={"MultiModalAdapter": "adapter_learner", "MMA_LMC": "adapter_learner"},
        pairs=_adapter_pairs,
    ),
    Format(
        "MaPLe",
        mark=r"compound_prompt",
        trained=r"^prompt_learner\.(ctx$|proj\.|compound_prompt)",
        trainers={"PromptSRC": "VLPromptLearner"},
        pairs=_prompt_pairs,
        note="image prompts are linear functions of the text prompts: written out as their values, fp32",
    ),
    Format(
        "PromptKD",
        mark=r"^VPT_image_trans\.",
        trained=r"^VPT_image_trans\.|VPT(_shallow)?$",
        trainers={"PromptKD": "VLPromptLearner", "PromptKD_LMC": "VLPromptLearner"},
        pairs=_student_pairs,
        note="a run names its teacher, of joint width E, by TRAINER.PROMPTKD.TEACHER_NAME and TEACHER_DIR",
    ),
    Format(
        "PromptSRC",
        mark=r"VPT",
        trained=r"^prompt_learner\.ctx$|VPT(_shallow)?$",
        trainers={"PromptSRC": "VLPromptLearner"},
        pairs=_prompt_pairs,
    ),
    Format(
        "CoOp",
        mark=r"^(ctx|token_prefix|token_suffix)$",
        trained=r"^ctx$",
        trainers={name: "prompt_mid_learner" if name.endswith("LMC") else "prompt_learner"
                  for name in ("CoOp", "KgCoOp", "CoOp_LMC", "KgCoOp_LMC", "KgCoOp_COOP_LMC")},
        pairs=lambda found: _words(found, "COOP", {"N_CTX": found.size("N"), "CSC": found.class_specific}),
    ),
)  # fmt: skip

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
# Sizes that a file tells: (letter, key, its axes, which one of them). N text context vectors, n image ones, W text
# width, V image width, D joint width, E that of a teacher, R adapter width, P pixels of a patch, C classes.
SIZES = (
    ("C", r"(.*\.)?token_suffix|tokenized_prompts", (2, 3), 0),
    ("N", r"(.*\.)?ctx", (2, 3), -2),
    ("W", r"(.*\.)?(ctx|token_suffix|token_embedding)", (2, 3), -1),
    ("W", r"text_adapter\.\d{1,3}\.up\.weight", (2,), 0),
    ("n", r"image_encoder\.VPT", (2,), 0),
    ("V", r"image_encoder\.VPT", (2,), 1),
    ("V", r"visual_adapter\.\d{1,3}\.up\.weight|prompt_learner\.proj\.weight", (2,), 0),
    ("D", r"image_encoder\.proj|text_encoder\.text_projection|VPT_image_trans\.conv1\.0\.weight", (2, 4), 1),
    ("E", r"VPT_image_trans\.conv1\.0\.weight", (4,), 0),
    ("R", r"text_adapter\.\d{1,3}\.down\.0\.weight", (2,), 0),
    ("P", r"image_encoder\.conv1\.weight", (4,), -1),
)
CLIPS = {
    "RN50": {"W": 512, "D": 1024},
    "RN101": {"W": 512, "D": 512},
    "RN50x4": {"W": 640, "D": 640},
    "RN50x16": {"W": 768, "D": 768},
    "RN50x64": {"W": 1024, "D": 1024},
    "ViT-B/32": {"W": 512, "V": 768, "D": 512, "P": 32},
    "ViT-B/16": {"W": 512, "V": 768, "D": 512, "P": 16},
    "ViT-L/14": {"W": 768, "V": 1024, "D": 768, "P": 14},
    "tiny": {"W": 128, "V": 128, "D": 128},
}


@dataclass
class Found:
    """What `recognise` says of one file."""

    format: Format
    name: str  # the method, as precisely as the file says
    state: dict[str, Tensor]
    sizes: dict[str, int]
    keys: dict[str, tuple[str, str]]  # key -> mapped, ignored or unknown; why

    def of(self, status: str) -> list[str]:
        """The keys of a status."""
        return [key for key in self.keys if self.keys[key][0] == status]

    @property
    def class_specific(self) -> bool:
        return self.format.name == "CoOp" and self.state["ctx"].dim() == 3

    @property
    def backbones(self) -> list[str]:
        """Names of the CLIPs that have the file's widths."""
        seen = {letter: self.sizes[letter] for letter in "WVDP" if letter in self.sizes}
        return [name for name, widths in CLIPS.items() if seen.items() <= widths.items()]

    def size(self, letter: str) -> int:
        """One of `sizes`. UserError where no tensor of the file has it."""
        if letter not in self.sizes:
            patterns = " or ".join(f"{key} of {axes} axes" for own, key, axes, _ in SIZES if own == letter)
            raise UserError(f"a {self.name} file that cannot be used: it has no {patterns}")
        return self.sizes[letter]

    def layers(self, pattern: str) -> set[int]:
        """The numbers of layers in its trained keys: what the pattern's group matches, up to three digits."""
        found = (re.match(pattern, key) for key in self.of("mapped"))
        return {int(number[1]) for number in found if number and len(number[1]) < 4}


def recognise(state: dict[str, Tensor], folder: str = "") -> Found:
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
    found = Found(kind, name, state, _sizes(state), keys)
    if not found.of("mapped"):
        raise UserError(f"a {found.name} file without what was trained ({kind.trained}): {shortened(list(state))}")
    return found


def _sizes(state: dict[str, Tensor]) -> dict[str, int]:
    sizes = {}
    for letter, pattern, axes, axis in SIZES:
        for key, value in state.items():
            if letter not in sizes and re.fullmatch(pattern, key) and isinstance(value, Tensor) and value.dim() in axes:
                sizes[letter] = value.shape[axis]
    return sizes


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


def _unusable(value: object) -> str:
    if not isinstance(value, Tensor) or value.layout != strided or value.is_meta or value.is_quantized:
        return f"is no plain tensor but a {type(value).__name__}"
    value = value.float() if value.element_size() == 1 else value  # 8-bit floats know little
    return "" if value.isfinite().all() else "holds infinite numbers or NaN"


def weights(found: Found) -> dict[str, Tensor]:
    """The trained weights under our trainers' keys, in fp32. UserError names every tensor that cannot be used.

    MaPLe's image prompts (arXiv 2210.03117) are linear functions of text prompts and of nothing else, so after
    training they are constants: deep prompts of both towers, exact up to MaPLe's own rounding of them to fp16.
    """
    given = {key: found.state[key] for key in found.of("mapped")}
    problems = "; ".join(f"{key} {problem}" for key, value in given.items() if (problem := _unusable(value)))
    if not problems:
        given = {key: value.float() if value.is_floating_point() else value for key, value in given.items()}
        try:
            return keep_prompts({key: value.detach() for key, value in given.items()})
        except RuntimeError as error:  # shapes of MaPLe's that do not go together
            problems = str(error).splitlines()[0]
    raise UserError(f"a {found.name} file that cannot be used: {problems}")


def rows(found: Found) -> list[dict[str, str]]:
    """Every key of the file: status (mapped, ignored, unknown), key, shape, note; what was trained first."""
    shapes = {key: str(tuple(getattr(value, "shape", ()))) for key, value in found.state.items()}
    rows = [{"status": s, "key": key, "shape": shapes[key], "note": note} for key, (s, note) in found.keys.items()]
    return sorted(rows, key=lambda row: ("mapped", "ignored", "unknown").index(row["status"]))


def to_text(found: Found) -> str:
    """The report: what the file is, its keys with shapes. Ignored keys go by their reason."""
    lines = [
        f"method    {found.name}",
        f"sizes     {', '.join(f'{letter} {size}' for letter, size in found.sizes.items()) or 'none'}",
        f"CLIP      of these widths: {', '.join(found.backbones) or 'none known here'}",
    ]
    table, reasons = [], defaultdict(list)
    for row in rows(found):
        (reasons[row["note"]] if row["status"] == "ignored" else table).append(row)
    for group in reasons.values():
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        table.append(group[0] | {"key": group[0]["key"] + more})
    width = max(len(row["key"]) for row in table)
    lines += [f"{r['status']:8}  {r['key']:{width}}  {r['shape']:16}  {r['note']}".rstrip() for r in table]
    return "\n".join(lines + [f"note      {note}" for note in [found.format.note] if note])
