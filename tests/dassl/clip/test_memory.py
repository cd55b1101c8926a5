"""Less memory, the same numbers: texts in chunks, blocks that are run again, and the peak that a run reports."""

import functools
import json
import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import train
from condu.lora import Lora
from condu.tuning import LoraFactors, Tuning
from dassl.clip import build_clip, build_clip_from_cfg
from dassl.clip.tiny import random_tiny
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.engine.dry_run import less_memory
from dassl.utils import set_random_seed
from dassl.utils.memory import reset_peak, resident_peak_mb
from mergetune.lmc import interpolate
from mergetune.models.adapters import MultiModalAdapters
from mergetune.models.deep_prompts import DeepPromptedClip
from mergetune.models.prompts import PromptLearner
from mergetune.stage2 import swapped_parameters, trainable
from tests.benchmarks import classes
from tests.benchmarks.world import World
from tests.fixtures.any_trainer import line
from tests.fixtures.clip_files import openai_backbone
from tests.fixtures.live_memory import peak_of, saved_bytes
from tests.fixtures.open_clip_models import open_clip_folder  # noqa: F401  a fixture
from tests.fixtures.rounding import tower_rounding

NAMES = ["red star", "cat", "pale blue cat", "long and winding road", "green star"]
SMALL = {"dim": 32, "image_size": 32, "width": 32, "layers": 3, "heads": 2, "text_width": 32, "text_layers": 3}
SETTINGS = {"chunks": (3, False), "blocks": (0, True), "both": (2, True)}
OPEN = ("custom", "eva", "siglip")


@pytest.fixture(scope="module")
def clips(open_clip_folder):  # noqa: F811
    """`clips(kind)`: a small random CLIP, frozen, built once."""

    @functools.cache
    def build(kind):
        if kind in OPEN:
            return build_clip(f"open_clip:{open_clip_folder(kind)}")
        return {"openai": openai_backbone, "tiny": lambda: random_tiny(**SMALL)}[kind]()

    return lambda kind: build(kind).freeze()


def images(clip, count=2):
    side = clip.image_size
    count = count if side < 100 else 1
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def tokens(clip):
    return clip.shorten(clip.tokenize([f"a photo of a {name}." for name in NAMES]))


# Methods: a CLIP -> (what trains, a function that gives features (N, D))


def coop(clip):
    model = PromptLearner(clip, NAMES, n_ctx=4)
    return model, lambda: clip.encode_text_from_embeddings(model(), model.tokens)


def deep(clip):
    model = DeepPromptedClip(clip, NAMES, n_image=2, n_text=3, image_depth=2, text_depth=2)
    return model, lambda: torch.cat([model.encode_image(images(clip)), model.encode_classes()])


def mma(clip):
    model = MultiModalAdapters(clip, first=1, last=2, dim=8, scale=0.5)

    def features():
        with model.attached(clip):
            return torch.cat([clip.encode_image(images(clip)), clip.encode_text(tokens(clip))])

    return model, features


def mma_path(clip):
    """A point between the weights and others: nothing of it is left when the backward pass comes."""
    model, features = mma(clip)
    others = {name: value.detach() + 0.1 for name, value in trainable(model).items()}

    def between():
        with swapped_parameters(model, interpolate(others, trainable(model), 0.3)):
            return features()

    return model, between


def both_towers(clip):
    return torch.cat([clip.encode_image(images(clip)), clip.encode_text(tokens(clip))])


def lora(clip):
    space = LoraFactors(clip, dict(clip.module.named_parameters()), 2)
    return space.trained, lambda: both_towers(clip)


def full(clip):
    return Tuning(clip, dict(clip.module.named_parameters())).trained.train(), lambda: both_towers(clip)


def full_path(clip):
    """Two points of a path between towers, each run again as a whole, and its blocks again in that."""
    model = Tuning(clip, dict(clip.module.named_parameters())).trained
    others = {name: value.detach() * 1.1 for name, value in trainable(model).items()}

    def point(t):
        with swapped_parameters(model, interpolate(others, trainable(model), t)):
            return both_towers(clip)

    return model, lambda: torch.cat([checkpoint(point, t, use_reentrant=False) for t in (0.3, 0.7)])


CASES = [
    *(("openai", method) for method in (coop, deep, mma_path, lora)),
    *(("tiny", method) for method in (coop, deep, mma_path, full_path)),
    *(("custom", method) for method in (deep, mma_path)),
    ("eva", mma_path),
    *(("siglip", method) for method in (mma_path, full)),
]


def outcome(clip, method):
    """Unit features, and the gradients of a fixed mixture of them, by the names of what trains."""
    torch.manual_seed(1)
    model, features = method(clip)
    if model is not clip.module:
        with torch.no_grad():
            for value in trainable(model).values():
                value.add_(0.02 * torch.randn(value.shape))
    found = F.normalize(features(), dim=-1)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (found * weights).mean().backward()
    gradients = {name: value.grad for name, value in trainable(model).items() if value.grad is not None}
    clip.module.zero_grad()
    if isinstance(model, Lora):
        model.release()
    clip.freeze()
    return found.detach(), gradients


@pytest.mark.parametrize(("kind", "method"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_features_and_gradients_are_those_of_the_whole_pass(clips, kind, method):
    clip = clips(kind)
    whole, gradients = outcome(clip, method)
    assert any(value.abs().max() > 1e-4 for value in gradients.values())
    for name, settings in list(SETTINGS.items())[2 if kind == "eva" else 0 :]:  # its tower is a large one
        features, found = outcome(clip.saving_memory(*settings), method)
        layers = len(clip.text_blocks)
        assert (features - whole).abs().max() <= tower_rounding(whole, layers), name
        assert found.keys() == gradients.keys()
        for key, value in gradients.items():
            assert (found[key] - value).abs().max() <= 1e-6 + tower_rounding(value, layers), (name, key)


def test_random_numbers_stay_as_they_are_and_drops_are_drawn_again(clips):
    clip = clips("tiny").saving_memory(2, True)
    texts = tokens(clip)
    state = torch.get_rng_state()
    outcome(clips("tiny"), mma)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    outcome(clip, mma)
    assert torch.equal(torch.get_rng_state(), after)
    block = clip.text_blocks[0].module
    handle = block.mlp.register_forward_hook(lambda _module, _inputs, output: F.dropout(output, 0.5))
    try:
        embeddings = clip.embed(texts).requires_grad_()
        clip.module.train()
        clip.encode_text_from_embeddings(embeddings, texts).sum().backward()  # saved and made again must agree
    finally:
        handle.remove()
        clip.freeze()


# What is kept


def kept(clip, count):
    """A pass with gradient of `count` texts: what its graph keeps, and the most that is there at one time until the
    gradients are. In the embeddings of one text."""
    texts = clip.tokenize(["a photo of a pale blue star on a long road."] * count)[:, :12]
    embeddings = clip.embed(texts).requires_grad_()

    def encode():
        return clip.encode_text_from_embeddings(embeddings, texts).square().mean()

    unit = embeddings[0].numel() * embeddings.element_size()
    return saved_bytes(encode)[1] / unit, peak_of(lambda: encode().backward())[1] / unit


def test_memory_grows_with_the_chunk_and_not_with_the_number_of_texts(clips):
    clip = clips("tiny")
    (_, few), (saved, many) = kept(clip, 20), kept(clip, 80)
    assert many == pytest.approx(4 * few, rel=0.01) and many / 80 > 30  # embeddings of a text, for each text
    chunked = {size: [kept(clip.saving_memory(size), count) for count in (20, 80)] for size in (5, 10)}
    for size, ((_, few), (small, peak)) in chunked.items():
        assert small < 1.6 * 80 and small < saved / 20  # the embeddings and their tokens
        assert peak - few < 1.1 * 60  # the embeddings' gradients
        assert peak < 1.1 * (many * size / 80 + 80)
    assert chunked[10][1][1] - chunked[5][1][1] == pytest.approx(5 * many / 80, rel=0.1)
    assert kept(clip.saving_memory(5, True), 80)[1] < 0.75 * chunked[5][1][1]


def test_blocks_keep_their_inputs(clips):
    """A block of width W keeps more than ten times its input otherwise: 4 W alone in its MLP, twice."""
    clip, batch = clips("tiny"), images(clips("tiny"), 8)
    clip.module.visual.requires_grad_(True)
    saved = [saved_bytes(lambda on=on: clip.saving_memory(0, on).encode_image(batch))[1] for on in (False, True)]
    clip.freeze()
    one = len(batch) * 17 * SMALL["width"] * 4  # bytes of a block's input: 17 tokens
    assert saved[0] - saved[1] > 10 * SMALL["layers"] * one


def test_points_of_a_path_keep_nothing_of_their_blocks(clips):
    """Each point is run again as a whole: neither its weights nor its blocks' inputs may wait for that."""
    clip = clips("tiny").saving_memory(0, True)
    model = clip.module.visual.requires_grad_(True)
    others = {name: value.detach() * 1.1 for name, value in trainable(model).items()}

    def point(t):
        with swapped_parameters(model, interpolate(others, trainable(model), t)):
            return clip.encode_image(images(clip)).square().mean()

    def peak(points):
        model.zero_grad()
        return peak_of(lambda: sum(checkpoint(point, t, use_reentrant=False) for t in points).backward())[1]

    three, nine = peak([0.1, 0.2, 0.3]), peak([i / 10 for i in range(1, 10)])
    clip.module.zero_grad()
    clip.freeze()
    assert nine < 1.02 * three


# Runs


@pytest.fixture(scope="module")
def trained(pets_root, tmp_path_factory):
    """A folder with the finished run `CoOp`, and a bank of features."""
    folder = tmp_path_factory.mktemp("memory")
    found = train.main(line("CoOp", pets_root, folder / "CoOp", FEATURES__DIR=folder / "bank", **LESS))
    assert found["peak_mb"] > 0
    return folder


LESS = {"MODEL__TEXT_CHUNK": 2, "MODEL__CHECKPOINT_BLOCKS": True}
WEIGHTS = {"TRAINER__LMC__SPACE": "weights", "TRAINER__LMC__DISTANCE": "l2sq", "TRAINER__COOP__CTX_INIT": True}


def step(trainer, batches):
    """Gradients of the step that these batches make, by name."""
    trainer.set_model_mode("train")
    trainer.epoch, trainer.num_batches = 0, len(batches)
    for trainer.batch_idx, batch in enumerate(batches):
        trainer.forward_backward(batch)
    return {name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(
    ("name", "keys"),
    [("KgCoOp", {}), ("MultiModalAdapter", {}), ("PromptSRC", {}), ("FineTune", {}),
     ("CoOp_LMC", {}), ("CoOp_LMC", WEIGHTS)],
)  # fmt: skip
def test_halves_of_a_batch_with_less_memory_make_the_step_of_the_whole(pets_root, trained, tmp_path, name, keys):
    keys = keys | {"FEATURES__DIR": trained / "bank", "DATALOADER__TRAIN_X__BATCH_SIZE": 8}

    def built(**more):
        flags = ["--resume-coop", trained / "CoOp"] if name == "CoOp_LMC" else []
        argv = line(name, pets_root, tmp_path / "out", *flags, **keys, **more)
        set_random_seed(1)
        trainer = build_trainer(train.setup_cfg(train.build_parser().parse_intermixed_args(argv)))
        trainer.before_train()
        trainer.close_writer()
        return trainer

    plain = built()
    batch = next(iter(plain.train_loader_x))
    whole = step(plain, [batch])
    less = built(TRAIN__ACCUMULATE=2, **LESS)
    assert (less.clip.text_chunk, plain.clip.text_chunk) == (2, 0)
    halves = step(less, [{key: value[part] for key, value in batch.items()} for part in (slice(4), slice(4, 8))])
    assert whole.keys() == halves.keys() and any(value.abs().max() > 1e-4 for value in whole.values())
    for key, value in whole.items():
        assert (halves[key] - value).abs().max() <= 1e-6 + 1e-4 * value.abs().max(), key


def test_runs_that_share_a_clip_keep_their_own_settings():
    cfg = get_cfg_default()
    cfg.MODEL.BACKBONE.NAME, cfg.USE_CUDA = "tiny", False
    plain = build_clip_from_cfg(cfg, cached=True)
    cfg.MODEL.TEXT_CHUNK = 3
    chunked = build_clip_from_cfg(cfg, cached=True)
    assert chunked.module is plain.module and (plain.text_chunk, chunked.text_chunk) == (0, 3)


def test_every_run_logs_its_peak(pets_root, trained):
    flags = ["--eval-only", "--model-dir", trained / "CoOp"]
    train.main(line("CoOp", pets_root, trained / "eval", *flags, FEATURES__DIR=trained / "bank"))
    for name in ("CoOp", "eval"):
        said = (trained / name / "log.txt").read_text().splitlines()[-1]
        peak = json.loads((trained / name / "results.json").read_text())["peak_mb"]
        assert re.fullmatch(rf"Peak memory: {peak:,.0f} MB \(process\)", said)


def test_a_peak_is_that_of_its_run():
    large = torch.ones(64 << 20)
    assert reset_peak() is None
    with_it = resident_peak_mb()
    del large
    reset_peak()
    assert resident_peak_mb() < with_it - 200


def test_the_check_names_what_is_not_set():
    cfg = get_cfg_default()
    assert all(key in less_memory(cfg) for key in ("TEXT_CHUNK 100", "CHECKPOINT_BLOCKS True", "ACCUMULATE"))
    cfg.MODEL.TEXT_CHUNK, cfg.MODEL.CHECKPOINT_BLOCKS = 50, True
    assert less_memory(cfg) == "Less memory for the same steps: TRAIN.ACCUMULATE with a smaller batch"


def test_the_versions_of_the_benchmark_agree(tmp_path):
    world, threads = World(tmp_path, "small", 4, 6, 6, classes.names_of(6)).write(), torch.get_num_threads()
    rows = {name: classes.steps(world, 4, name, 2, 1, threads) for name in ("whole", "shared prefix", "chunks, blocks")}
    setting = {"classes": 6, "context": 4, "versions": rows}
    assert classes.compare(setting) == []
    whole = 6 * (1 + 4 + 4 + 2)  # start, context, up to 4 tokens of a name, full stop and end
    packed = 1 + 4 + (1 + 1 + 2 + 2 + 3 + 4) + 6 * 2
    assert [row["tokens"] for row in rows.values()] == [whole, packed, packed]
    rows["shared prefix"]["gradient"][-1] += 1e-4 * max(rows["whole"]["gradient"])
    rows["shared prefix"]["tokens"] = whole
    assert [fault.partition(": ")[2][:8] for fault in classes.compare(setting)] == ["gradient", "ran whol"]


def test_names_of_the_benchmark_are_as_long_as_they_say():
    names, clip = classes.names_of(1000), openai_backbone()
    assert len(set(names)) == 1000
    assert Counter(clip.token_counts(list(names))) == {length: 10 * many for length, many in classes.NAMES.items()}
