"""Other people's checkpoints, told apart by their keys: whose they are, what in them was trained, what it becomes.

Pure: from state dicts to state dicts, no files and no config. Shapes are the letters of `foreign_keys`; one letter
has one value in the whole file.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field

from torch import Tensor, strided

from dassl.utils import UserError, closest, strip_module
from mergetune.deep_prompts import keep_prompts
from mergetune.foreign_keys import (
    CLIPS,
    DEPTHS,
    IGNORED,
    IMAGE_BLOCK,
    LENGTHS,
    META_NET,
    METHODS,
    PATCHES,
    TEXT_BLOCK,
    WITNESSES,
    Method,
)


@dataclass
class Found:
    """What `recognise` says of one file."""

    method: Method
    name: str  # the method, as precisely as the file says
    state: dict[str, Tensor]
    expected: dict[str, str] = field(default_factory=dict)  # trained keys -> shape in letters
    layers: list[range] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)  # letter -> value
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # sentences
    ignored: dict[str, str] = field(default_factory=dict)  # key -> why
    unknown: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)  # sentences

    @property
    def class_specific(self) -> bool:
        return self.expected.get("ctx") == "C N W"

    @property
    def backbones(self) -> list[str]:
        """Names of the CLIPs that have the file's widths."""
        seen = {letter: self.sizes[letter] for letter in "WVDP" if letter in self.sizes}
        return [name for name, own in CLIPS.items() if seen.items() <= own.items()]

    @property
    def pairs(self) -> dict:
        """Config keys that follow from the file."""
        return self.method.pairs(self)

    def problems(self) -> list[str]:
        """Why the file cannot be used, as sentences; empty if it can."""
        found = []
        for key in self.missing:
            near = closest(key, self.unknown, 1)
            found.append(f"{key} is missing" + (f" (unknown in the file: {near[0]})" if near else ""))
        return found + self.wrong


def recognise(state: dict[str, Tensor], folder: str = "") -> Found:
    """Whose file a state dict is, and what is in it. `folder`: name of the model folder that it lay in.

    Raises UserError for a file of no known method, or of one that cannot be used, with the reason.
    """
    if not all(isinstance(key, str) for key in state):
        raise UserError("the file has keys that are no names")
    state = strip_module({key.removeprefix("prompts."): value for key, value in state.items()})
    if not state:
        raise UserError("the file holds no weights")
    unused_keys(state)
    method = method_of(state)
    if method is None:
        names = ", ".join(m.name for m in METHODS)
        raise UserError(f"its keys are of no known method ({names}): {shortened(list(state))}")
    found = Found(method, _precise_name(method, state, folder), dict(state))
    _expect(found)
    _sort_keys(found)
    _solve_shapes(found)
    _doubt(found)
    return found


def method_of(state: dict[str, Tensor]) -> Method | None:
    """The method whose mark a state dict has, None for another's."""
    owner = _owner_of_meta_net(state)
    marked = (m for m in METHODS if any(re.search(m.mark, key) for key in state))
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
    method = method_of(state)
    if method is not None and method.refused:
        article = "an" if method.name[0] in "Au" else "a"
        raise UserError(f"{article} {method.name} file is recognised and refused: {method.refused}")
    return [key for key in state if re.search(META_NET, key)]


def shortened(names: list[str], most: int = 8) -> str:
    """The first names and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _precise_name(method: Method, state: dict, folder: str) -> str:
    if method.name == "CoOp":
        if folder == "prompt_mid_learner":
            return "MERGETUNE"
        return "KgCoOp" if "bias_vectors" in state else "CoOp"
    if method.name == "PromptSRC" and not any(".ZS_image_encoder." in key for key in state):
        return "PromptSRC or IVLP"
    return method.name


def _expect(found: Found) -> None:
    """The trained keys that a whole file of this method has, judged by the layers that it mentions."""
    method, state = found.method, found.state
    found.expected = dict(method.once)
    ctx = state.get("ctx")
    if "ctx" in method.once and isinstance(ctx, Tensor) and ctx.dim() == 3:
        found.expected["ctx"] = "C N W"
    for group in method.layers:
        # three digits: towers have tens of layers, and every layer up to the last is expected below
        patterns = [re.escape(key).replace(r"\{\}", r"(\d{1,3})") for key in group]
        numbers = {int(m[1]) for key in state for pattern in patterns if (m := re.fullmatch(pattern, key))}
        first = min(numbers, default=0) if method.first is None else method.first
        layers = range(first, max(numbers, default=first - 1) + 1)
        found.layers.append(layers)
        found.expected |= {key.format(i): shape for i in layers for key, shape in group.items()}


def _sort_keys(found: Found) -> None:
    """Missing, ignored and unknown keys."""
    found.missing = [key for key in found.expected if key not in found.state]
    for key in found.state:
        if key in found.expected:
            continue
        why = next((why for pattern, why in IGNORED.items() if re.search(pattern, key)), None)
        if why is None:
            found.unknown.append(key)
        else:
            found.ignored[key] = why


def _solve_shapes(found: Found) -> None:
    """Sizes by majority over all keys; the keys that disagree are wrong."""
    shapes = {key: found.expected[key] for key in found.expected if key in found.state}
    for key in found.ignored:
        for pattern, shape in WITNESSES.items():
            if re.search(pattern, key):
                shapes[key] = shape
    votes: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key, shape in shapes.items():
        value, letters = found.state[key], shape.split()
        problem = _unusable(value)
        if not problem and value.dim() != len(letters):
            problem = f"is {tuple(value.shape)}, expected ({', '.join(letters)})"
        if problem:
            found.wrong.append(f"{key} {problem}")
            continue
        for letter, size in zip(letters, value.shape, strict=True):
            votes[letter][size].append(key)
    for letter, sizes in votes.items():
        usual = int(letter) if letter.isdigit() else max(sizes, key=lambda size: len(sizes[size]))
        if not letter.isdigit():
            found.sizes[letter] = usual
        for size, keys in sizes.items():
            if size == usual:
                continue
            rest = f"by {shortened(sizes[usual], 2)}" if usual in sizes else "always"
            found.wrong += [f"{key} is {tuple(found.state[key].shape)}: {letter} is {usual} {rest}" for key in keys]
    patches = found.state.get(PATCHES)
    if isinstance(patches, Tensor) and patches.dim() == 4 and len(patches) == found.sizes.get("V"):
        found.sizes["P"] = patches.shape[-1]


def _unusable(value: object) -> str:
    if not isinstance(value, Tensor) or value.layout != strided or value.is_meta or value.is_quantized:
        return f"is no plain tensor but a {type(value).__name__}"
    value = value.float() if value.element_size() == 1 else value  # 8-bit floats know little
    return "" if value.isfinite().all() else "holds infinite numbers or NaN"


def _doubt(found: Found) -> None:
    """What is odd but may be meant."""
    if found.unknown:
        found.doubts.append(f"unknown keys are left out: {shortened(found.unknown)}")
    sizes = found.sizes
    length = 1 + sizes["N"] + sizes["S"] if {"N", "S"} <= sizes.keys() else LENGTHS[0]
    if length not in LENGTHS:
        found.doubts.append(
            f"ctx and token_suffix make texts of {length} tokens, usual are {' or '.join(map(str, LENGTHS))}: "
            "has ctx another length than in training?"
        )
    if not found.backbones:
        widths = ", ".join(f"{letter} {sizes[letter]}" for letter in "WVDP" if letter in sizes)
        found.doubts.append(f"no CLIP known here has these widths: {widths}")
    if len(found.layers) == 2 and len(found.layers[0]) != len(found.layers[1]):
        shallow, deep = sorted(found.layers, key=len)
        key = (IMAGE_BLOCK, TEXT_BLOCK)[found.layers.index(shallow)]
        lacks = [key.format(i) for i in deep if i not in shallow]
        found.doubts.append(f"the towers' prompts differ in depth; if they should not, missing: {', '.join(lacks)}")
    for layers, group in zip(found.layers, found.method.layers, strict=True):
        if found.method.first is not None and len(layers) + 2 in DEPTHS:
            lacks = [key.format(layers.stop) for key in group]
            found.doubts.append(
                f"depth {len(layers) + 1}, usual is {len(layers) + 2}; then missing: {', '.join(lacks)}"
            )


def weights(found: Found) -> dict[str, Tensor]:
    """The trained weights under our trainers' keys, in fp32. UserError names every problem of the file.

    MaPLe's image prompts (arXiv 2210.03117) are linear functions of text prompts and of nothing else, so after
    training they are constants: deep prompts of both towers, exact up to MaPLe's own rounding of them to fp16.
    """
    problems = found.problems()
    if problems:
        raise UserError(f"a {found.name} file that cannot be used: {'; '.join(problems)}")
    given = {key: found.state[key].detach() for key in found.expected}
    given = {key: value.float() if value.is_floating_point() else value for key, value in given.items()}
    return keep_prompts(given)


def becomes(found: Found, key: str) -> str:
    """Where a trained key of the file goes, if not under its own name."""
    if found.method.name != "MaPLe":
        return ""
    kind, *rest = key.removeprefix("prompt_learner.").split(".")
    if kind == "ctx":
        return "prompt_learner.ctx, image_encoder.VPT"
    if kind == "proj":
        return "image_encoder.VPT"
    image, text = (name.format(int(rest[0]) + 1) for name in (IMAGE_BLOCK, TEXT_BLOCK))
    return image if kind == "compound_prompt_projections" else f"{text}, {image}"


def rows(found: Found) -> list[dict[str, str]]:
    """Every key of the file and every missing one: status (mapped, ignored, unknown, missing), key, shape, note."""

    def row(status: str, key: str, note: str = "") -> dict[str, str]:
        value = found.state.get(key)
        sizes = [str(found.sizes.get(letter, letter)) for letter in found.expected.get(key, "").split()]
        shape = str(tuple(value.shape)) if isinstance(value, Tensor) else f"({', '.join(sizes)})"
        return {"status": status, "key": key, "shape": shape, "note": note}

    mapped = [row("mapped", key, becomes(found, key)) for key in found.expected if key in found.state]
    ignored = [row("ignored", key, why) for key, why in found.ignored.items()]
    unknown = [row("unknown", key, "left out") for key in found.unknown]
    return mapped + ignored + unknown + [row("missing", key) for key in found.missing]


def to_text(found: Found) -> str:
    """The report: what the file is, its keys with shapes, what is wrong or odd. Ignored keys go by their reason."""
    sizes = ", ".join(f"{letter} {size}" for letter, size in found.sizes.items())
    head = [
        f"method    {found.name}",
        f"sizes     {sizes or 'none'}",
        f"CLIP      of these widths: {', '.join(found.backbones) or 'none known here'}",
    ]
    table, reasons = [], defaultdict(list)
    for row in rows(found):
        if row["status"] == "ignored":
            reasons[row["note"]].append(row)
        else:
            table.append(row)
    for why, group in reasons.items():
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        table.append(group[0] | {"key": group[0]["key"] + more, "note": why})
    width = max(len(row["key"]) for row in table)
    lines = [f"{r['status']:8}  {r['key']:{width}}  {r['shape']:16}  {r['note']}".rstrip() for r in table]
    tail = [f"wrong     {sentence}" for sentence in found.wrong] + [f"doubt     {s}" for s in found.doubts]
    if found.method.name == "MaPLe":
        tail.append(
            "note      image prompts are linear functions of the text prompts: written out as their values, fp32"
        )
    if found.method.name == "PromptKD":
        teachers = ", ".join(name for name, own in CLIPS.items() if own["D"] == found.sizes.get("E"))
        tail.append(
            f"note      its teacher's joint width is {found.sizes.get('E')} ({teachers or 'none known here'}); a run"
        )
        tail.append("          names the teacher by TRAINER.PROMPTKD.TEACHER_NAME and TEACHER_DIR")
    return "\n".join([*head, *lines, *tail])
