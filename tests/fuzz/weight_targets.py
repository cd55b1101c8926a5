"""Readers of weights: checkpoints, safetensors, streams, released sessions, CLIPs."""

import contextlib
import io
import json
import pickle
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace

import clip.model
import torch
from safetensors.torch import save

from condu import fusion, released, state
from dassl.clip import openai
from dassl.engine.base import load_exactly
from dassl.utils import (
    checkpoints,
    load_checkpoint,
    load_tensors,
    load_weights,
    read_facts,
    restricted_load,
    save_tensors,
    tensorfile,
    torchtools,
)  # fmt: skip
from mergetune import checkpoint_formats, import_checkpoint, merge_sources, stage1
from tests.fixtures import foreign_checkpoints as theirs
from tests.fixtures.released_condu import random_deltas, write_session
from tests.fixtures.streams import BACKBONE, SHAPES, rows, small
from tests.fuzz import hostile
from tests.fuzz.lines import relative
from tests.fuzz.mutate import mutated, tree, value
from tests.fuzz.oracle import Files, Target


def saved(content, old: bool = False) -> bytes:
    """A torch checkpoint's bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def folder_files(write) -> Files:
    """What `write(folder)` leaves there."""
    with tempfile.TemporaryDirectory() as place:
        write(Path(place))
        return {str(p.relative_to(place)): p.read_bytes() for p in sorted(Path(place).rglob("*")) if p.is_file()}


# checkpoints of prompt learners

SIZES = theirs.Sizes(C=2, N=2, n=2, W=8, V=8, D=8, E=8, R=2, L=9, P=2, depth=2, first=1, last=2)


@cache
def states() -> list[dict]:
    torch.manual_seed(0)
    return [make(SIZES) for make in (*theirs.FILES, theirs.cocoop, theirs.coop_class_specific)]


def odd_tensor(rng: Random):
    """Tensors that no weights are."""
    kinds = [
        lambda: torch.ones(1).expand(1 << 20, 1 << 20), lambda: torch.empty(1 << 40, device="meta"),
        lambda: torch.full((2, 8), float("nan")), lambda: torch.zeros(0), lambda: torch.tensor(1), lambda: "words",
        lambda: torch.ones(2, 8).to_sparse(), lambda: torch.ones(2, 8, dtype=torch.complex64), lambda: {"a": 1},
        lambda: torch.ones(2, 8, dtype=torch.bool), lambda: torch.ones(2, 8).half(), lambda: torch.ones(1, 1, 1, 1, 1, 1),  # noqa: E501
        lambda: torch.quantize_per_tensor(torch.ones(2, 8), 1.0, 0, torch.quint8), lambda: value(rng), lambda: [1] * 3,
        lambda: torch.nn.Parameter(torch.ones(2, 8)), lambda: torch.ones(2, 8).to(torch.float8_e4m3fn),
        lambda: torch.randint(2, (2, 8)), lambda: torch.ones(8, 2).T,
    ]  # fmt: skip
    return rng.choice(kinds)()


def make_checkpoint(rng: Random) -> Files:
    if rng.random() < 0.25:
        return {"model.pth.tar-1": hostile.checkpoints(rng)}
    state = dict(rng.choice(states()))
    for _ in range(rng.choice((0, 1, 1, 3))):
        key = rng.choice(list(state))
        if rng.random() < 0.3:
            state[rng.choice((key + "x", "module." + key, str(value(rng)), key.replace("1", "1000000000")))] = (
                state.pop(key)
            )
        else:
            state[key] = odd_tensor(rng)
    content = {"state_dict": state, "epoch": rng.choice((1, 50, "x", None, [], float("nan"))), "optimizer": None}
    if rng.random() < 0.1:
        content = rng.choice(
            (state, [state], state | {1: 2}, {"state_dict": [1]}, {"state_dict": {1: 2}}, 3, content | {"x": {1}})
        )
    try:
        return {"model.pth.tar-1": saved(content, old=rng.random() < 0.2)}
    except (NotImplementedError, RuntimeError, pickle.PicklingError, AttributeError, TypeError):
        return {"model.pth.tar-1": saved({})}


def each(*readers):
    """One reader after the other; the first refusal counts."""

    def read(folder):
        first = None
        for reader in readers:
            try:
                reader(folder / "model.pth.tar-1")
            except (ValueError, OSError) as error:
                if not isinstance(error, CHECKPOINT.errors):
                    raise
                first = first or error
        if first:
            raise first

    return read


def read_foreign(path: Path):
    found, _ = import_checkpoint.read(path, "prompt_learner")
    checkpoint_formats.to_text(found)


def read_stage1(path: Path):
    model = torch.nn.Module()
    model.ctx = torch.nn.Parameter(torch.ones(2, 8))
    state = stage1.load_state(stage1.find_checkpoint(path.parent, "prompt_learner"))
    load_exactly(model, "prompt_learner", path, state)
    if "token_suffix" in state:
        stage1.check_names(path, "token_suffix", state["token_suffix"], torch.ones(2, 6, 8))


CHECKPOINT = Target(
    "checkpoint", make_checkpoint, each(load_checkpoint, restricted_load, merge_sources.read_state),
    (relative(checkpoints), relative(torchtools)), weight=3,
)  # fmt: skip
IMPORT = Target(
    "import", make_checkpoint, each(read_foreign), (relative(checkpoint_formats), relative(import_checkpoint)), weight=3
)
STAGE1 = Target("stage1", make_checkpoint, each(read_stage1), (relative(stage1),), weight=2)


# safetensors, streams, sessions


def make_tensors(rng: Random) -> Files:
    if rng.random() < 0.4:
        return {"a.safetensors": hostile.lying_safetensors(rng)}
    about = {"crc32": value(rng), "facts": tree(rng, {"lr": 1e-5, "names": ["a", {"b": 1}]})}
    whole = save({"w": torch.ones(2, 3)}, {"about": json.dumps(about)})
    return {"a.safetensors": rng.choice((whole, good_tensors()))}


@cache
def good_tensors() -> bytes:
    content = {"w": torch.ones(2, 3), "bits": torch.arange(9, dtype=torch.uint8)}
    return folder_files(lambda folder: save_tensors(folder / "a", content, {"lr": 1}))["a"]


def read_tensors(folder: Path):
    read_facts(folder / "a.safetensors")
    return load_tensors(folder / "a.safetensors")


def make_stream(rng: Random) -> Files:
    """A stream whose facts are changed and sealed again, so that they are believed."""

    def changed(folder: Path) -> None:
        small(2).save(folder)
        path = folder / "session_1.safetensors"
        tensors, facts, _ = load_tensors(path)
        if rng.random() < 0.7:
            for _ in range(rng.choice((1, 1, 2))):
                facts = tree(rng, facts)
        with contextlib.suppress(TypeError, ValueError, RecursionError, AttributeError, KeyError):
            save_tensors(path, tensors, facts)

    files = folder_files(changed)
    return {name: content for name, content in files.items() if not name.endswith(".lock")}


def read_stream(folder: Path):
    state.sessions(folder)
    return state.Stream.load(folder, backbone=BACKBONE)


CLASSES = {f"Task{number}": [f"class {label}" for label in range(2 + number)] for number in range(2)}


@cache
def good_session() -> Files:
    deltas = random_deltas(SHAPES, 2, ())
    return folder_files(lambda f: write_session(f / "session_1", list(CLASSES), deltas, [rows(0), rows(1)], cuda=False))


def make_session(rng: Random) -> Files:
    files = dict(good_session())
    name = rng.choice(list(files))
    if rng.random() < 0.3:
        files[name] = hostile.checkpoints(rng)
    elif rng.random() < 0.8:
        content = torch.load(io.BytesIO(files[name]), weights_only=True)
        key = rng.choice(list(content))
        content[key] = rng.choice((odd_tensor(rng), value(rng), {"visual.proj": odd_tensor(rng)}, [odd_tensor(rng)]))
        if rng.random() < 0.2:
            content[value(rng).__repr__()] = content.pop(key)
        with contextlib.suppress(NotImplementedError, RuntimeError, pickle.PicklingError, AttributeError, TypeError):
            files[name] = saved(content)
    return files


@cache
def small_clip() -> SimpleNamespace:
    module = torch.nn.ParameterDict({name.replace(".", "_"): torch.zeros(shape) for name, shape in SHAPES.items()})
    named = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    module.named_parameters = lambda: named.items()
    return SimpleNamespace(module=module, name="tiny", digest="0")


def read_session(folder: Path):
    return released.stream_of(folder / "session_1", list(CLASSES), CLASSES, small_clip())


# CLIPs

CLIP = {"embed_dim": 4, "image_resolution": 4, "vision_layers": 1, "vision_width": 64, "vision_patch_size": 2,
        "context_length": 3, "vocab_size": 5, "transformer_width": 64, "transformer_heads": 1, "transformer_layers": 1}  # fmt: skip  # noqa: E501


@cache
def clip_state() -> dict:
    torch.manual_seed(0)
    return {name: value.half() for name, value in clip.model.CLIP(**CLIP).state_dict().items()}


@cache
def clip_script() -> bytes:
    module = torch.nn.Module()
    for name, content in clip_state().items():
        *path, leaf = name.split(".")
        inner = module
        for part in path:
            inner = getattr(inner, part, None) or inner.add_module(part, torch.nn.Module()) or getattr(inner, part)
        inner.register_buffer(leaf, content)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


def make_clip(rng: Random) -> Files:
    kind = rng.randrange(5)
    if kind == 0:
        return {"clip.pt": hostile.script(rng) if rng.random() < 0.7 else hostile.checkpoints(rng)}
    if kind == 1:
        return {"clip.pt": mutated(rng, "clip.pt", clip_script()) if rng.random() < 0.8 else clip_script()}
    state = dict(clip_state())
    for _ in range(rng.choice((0, 1, 2))):
        key = rng.choice([*state, "positional_embedding", "text_projection", "visual.proj", "visual.conv1.weight"])
        if rng.random() < 0.3 and key in state:
            state[rng.choice(("transformer.resblocks", "visual.layer1.0.conv1.weight", "x", "module." + key))] = (
                state.pop(key)
            )
        else:
            state[key] = odd_tensor(rng)
    with contextlib.suppress(NotImplementedError, RuntimeError, pickle.PicklingError, AttributeError, TypeError):
        return {"clip.pt": saved(rng.choice((state, {"state_dict": state}, [state])))}
    return {"clip.safetensors": hostile.lying_safetensors(rng)}


def read_clip(folder: Path):
    file = next(iter(sorted(folder.iterdir())), folder / "clip.pt")
    return openai.build_module(load_weights(file, scripts=True).state_dict, file)


WEIGHTS = [
    CHECKPOINT,
    IMPORT,
    STAGE1,
    Target("tensors", make_tensors, read_tensors, (relative(tensorfile),), weight=6),
    Target("stream", make_stream, read_stream, (relative(state), relative(fusion)), weight=3),
    Target("released", make_session, read_session, (relative(released),), weight=2),
    Target("clip", make_clip, read_clip, (relative(openai), relative(checkpoints)), weight=1),
]
