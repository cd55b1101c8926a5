"""The tables behind `foreign`: which keys and shapes each method's files have. Data, and what follows from sizes.

Letters: C classes, N text context vectors, n image ones, W text width, V image width, D joint width, E joint width
of a teacher, R adapter width, L tokens of a text, S of them behind the context.
"""

from collections.abc import Callable
from dataclasses import dataclass

IMAGE_BLOCK = "image_encoder.transformer.resblocks.{}.VPT_shallow"
TEXT_BLOCK = "text_encoder.transformer.resblocks.{}.VPT_shallow"
ADAPTER = {"down.0.weight": "R {0}", "down.0.bias": "R", "up.weight": "{0} R", "up.bias": "{0}"}
TOWERS = {f"{tower}_adapter.{{}}.{key}": shape.format(width)
          for tower, width in (("text", "W"), ("visual", "V")) for key, shape in ADAPTER.items()}  # fmt: skip
PROJECTION = {
    "0.weight": "E D 1 1", "0.bias": "E", "1.weight": "E", "1.bias": "E", "1.running_mean": "E",
    "1.running_var": "E", "1.num_batches_tracked": "", "3.weight": "E E 1 1", "3.bias": "E",
}  # fmt: skip
COUPLED = {
    "prompt_learner.compound_prompts_text.{}": "N W",
    "prompt_learner.compound_prompt_projections.{}.weight": "V W",
    "prompt_learner.compound_prompt_projections.{}.bias": "V",
}


@dataclass(frozen=True)
class Method:
    """One family of files. Shapes are letters, "" a single number; {} stands for the number of a layer.

    Several have a meta_net for their mark: its shapes tell them apart (`foreign.method_of`).
    """

    name: str
    mark: str  # a file is of this method if this pattern is found in one of its keys
    trainers: dict[str, str]  # those of ours that run it, the usual one first -> their checkpoint folder
    once: dict[str, str]  # trained keys -> shape
    layers: tuple[dict[str, str], ...] = ()  # trained keys of each layer, one group for each count of layers
    first: int | None = None  # number of the first layer; None: the lowest one in the file
    pairs: Callable[..., dict] = lambda found: {}  # config keys that follow from the file
    refused: str = ""  # why such a file cannot be used


def _no_words(found) -> dict:
    """The recipes' words are four tokens, and words set the number of context vectors."""
    return {} if found.sizes["N"] == 4 else {"CTX_INIT": False}


def _coop_pairs(found) -> dict:
    pairs = {"N_CTX": found.sizes["N"], "CSC": found.class_specific} | _no_words(found)
    return {f"TRAINER.COOP.{key}": value for key, value in pairs.items()}


def _adapter_pairs(found) -> dict:
    blocks = found.layers[0]
    pairs = {"ADAPTER_START": blocks[0], "ADAPTER_END": blocks[-1], "ADAPTER_DIM": found.sizes["R"]}
    return {f"TRAINER.MMADAPTER.{key}": value for key, value in pairs.items()}


def _prompt_pairs(found) -> dict:
    """Of deep prompts: the first block's stand outside the layers, and numbers start at 1 (MaPLe's at 0)."""
    depths = [len(layers) + 1 for layers in found.layers]
    pairs = {"N_CTX_VISION": found.sizes.get("n", found.sizes.get("N")), "PROMPT_DEPTH_VISION": depths[0]}
    node = "PROMPTKD"
    if "N" in found.sizes:
        node = "PROMPTSRC"
        pairs |= {"N_CTX_TEXT": found.sizes["N"], "PROMPT_DEPTH_TEXT": depths[-1]} | _no_words(found)
    return {f"TRAINER.{node}.{key}": value for key, value in pairs.items()}


META_NET = r"(^|\.)meta_net\."
ATTRIBUTES = "its prompts have another form, with words of attributes or anchors among the context vectors"
REFUSED = {  # name -> mark, and why nothing here can run what was trained
    "ATPrompt": (r"(^|\.)(ctx_att\d+|token_middle\d*)$", ATTRIBUTES),
    "AnchorOPT (ATPrompt)": (r"(^|\.)(anchor_ctx_\d+|token_of)$", ATTRIBUTES),
    "CoCoOp": (META_NET, "its prompts depend on the image, so there are no class vectors to continue from or to merge"),
    "TCP": (META_NET, "half of what makes its class vectors is its meta_net, within the text tower, and no context"),
    "unknown meta_net": (META_NET, "its context alone may not be all that was trained"),
}
METHODS = (
    *(Method(name, mark, {}, {}, refused=why) for name, (mark, why) in REFUSED.items()),
    Method(
        "MMA",
        r"^(shared|text|visual)_adapter\.",
        {"MultiModalAdapter": "adapter_learner", "MMA_LMC": "adapter_learner"},
        {},
        (TOWERS | {"shared_adapter.{}.0.weight": "R R", "shared_adapter.{}.0.bias": "R"},),
        pairs=_adapter_pairs,
    ),
    Method(
        "MaPLe",
        r"compound_prompt",
        {"PromptSRC": "VLPromptLearner"},
        {"prompt_learner.ctx": "N W", "prompt_learner.proj.weight": "V W", "prompt_learner.proj.bias": "V"},
        (COUPLED,),
        first=0,
        pairs=_prompt_pairs,
    ),
    Method(
        "PromptKD",
        r"^VPT_image_trans\.",
        {"PromptKD": "VLPromptLearner", "PromptKD_LMC": "VLPromptLearner"},
        {"image_encoder.VPT": "n V", **{f"VPT_image_trans.conv1.{key}": shape for key, shape in PROJECTION.items()}},
        ({IMAGE_BLOCK: "n V"},),
        first=1,
        pairs=_prompt_pairs,
    ),
    Method(
        "PromptSRC",
        r"VPT",
        {"PromptSRC": "VLPromptLearner"},
        {"prompt_learner.ctx": "N W", "image_encoder.VPT": "n V"},
        ({IMAGE_BLOCK: "n V"}, {TEXT_BLOCK: "N W"}),
        first=1,
        pairs=_prompt_pairs,
    ),
    Method(
        "CoOp",
        r"^(ctx|token_prefix|token_suffix)$",
        {
            "CoOp": "prompt_learner",
            "KgCoOp": "prompt_learner",
            "CoOp_LMC": "prompt_mid_learner",
            "KgCoOp_LMC": "prompt_mid_learner",
            "KgCoOp_COOP_LMC": "prompt_mid_learner",
        },
        {"ctx": "N W"},
        pairs=_coop_pairs,
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
# Untrained tensors whose sizes have letters too
WITNESSES = {
    r"(^|\.)token_prefix$": "C 1 W",
    r"(^|\.)token_suffix$": "C S W",
    r"^bias_vectors$": "1 W",
    r"^token_embedding$": "C L W",
    r"^tokenized_prompts$": "C L",
    r"^image_encoder\.ln_pre\.weight$": "V",
    r"^image_encoder\.proj$": "V D",
    r"^text_encoder\.text_projection$": "W D",
}
LENGTHS = (77, 64)  # tokens of a text: CLIP's, SigLIP's
DEPTHS = (9, 3)  # of deep prompts: within a data set, across data sets
PATCHES = "image_encoder.conv1.weight"  # (V, 3, pixels, pixels)
CLIPS = {  # letters that a file may show; P: pixels of a patch
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
