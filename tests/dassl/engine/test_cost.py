"""What each method costs, counted: a change that makes something slower fails here, and no clock is asked.

Needed, not done again: image features of a frozen tower come from the bank, or take one pass without a graph. Class
vectors that train take one text pass with a graph, in which what all prompts begin with runs once. MERGETUNE's path is
a line between class vectors (or image features) and takes no pass of its own, where the released code takes one a
point.
Letters: C classes, L tokens of the longest prompt, D joint width.
"""

import pytest

import train
from condu.fusion import Fusion
from dassl.engine import build_trainer
from dassl.utils import load_checkpoint, set_random_seed
from tests.fixtures.any_trainer import CONFIGS, line
from tests.fixtures.counts import counted, files, resident
from tests.fixtures.deltas import random_deltas

CONFIGS |= {"LinearProbe_LMC": "LinearProbe_LMC/paper"}
NONE, ONCE, TRAINED = (0, 0), (1, 0), (1, 1)  # (passes, those with a graph)
# C = 3 texts, not of 77 tokens each: start and 4 vectors or words of context once, then "abyssinian", "beagle" and
# "bengal", spelled in 10, 6 and 6 letters between the ends of a word, each with a full stop and end. Where the context
# is words, tokens alone say what is shared: one of the names' own as well, that where a word begins.
TOKENS = 1 + 4 + (10 + 4) + (6 + 4) + (6 + 4)
WORDS = dict.fromkeys(("MultiModalAdapter", "MMA_LMC"), TOKENS - 2)
# trainer: stage 1, {FEATURES.VIEWS: passes of a step over images, over texts}, of an evaluation over texts
STEPS = {
    "CoOp": ("", {0: (ONCE, TRAINED), 1: (NONE, TRAINED)}, ONCE),
    "CoOp_LMC": ("CoOp", {0: (ONCE, TRAINED), 1: (NONE, TRAINED)}, ONCE),
    "KgCoOp": ("", {0: (ONCE, TRAINED), 1: (NONE, TRAINED)}, ONCE),
    "KgCoOp_LMC": ("KgCoOp", {0: (ONCE, TRAINED), 1: (NONE, TRAINED)}, ONCE),
    # adapters and prompts in the image tower train: one pass with a graph, whatever the bank holds
    "MultiModalAdapter": ("", {0: (TRAINED, TRAINED), 1: (TRAINED, TRAINED)}, ONCE),
    "MMA_LMC": ("MultiModalAdapter", {0: (TRAINED, TRAINED), 1: (TRAINED, TRAINED)}, ONCE),
    # the teacher's image features come from the bank, even of fresh views; its class vectors are computed once
    "PromptKD": ("", {0: (TRAINED, NONE), 1: (TRAINED, NONE)}, NONE),
    "PromptKD_LMC": ("PromptKD", {0: (TRAINED, NONE), 1: (TRAINED, NONE)}, NONE),
    # the classifier is what trains
    "LinearProbe": ("", {0: (ONCE, NONE), 1: (NONE, NONE)}, NONE),
    "LinearProbe_LMC": ("LinearProbe", {0: (ONCE, NONE), 1: (NONE, NONE)}, NONE),
}


class Bench:
    """Trainers on the pets and the tiny CLIP, built, and given a stage 1 that was saved untrained."""

    def __init__(self, root, folder):
        self.root, self.folder = root, folder

    def words(self, name, out, *flags, **keys):
        stage1 = STEPS.get(name, ("",))[0]
        if stage1:
            flags = (*flags, "--resume-coop", self.saved(stage1))
        keys = {"FEATURES__DIR": self.folder / "features", "TRAINER__HEAD__TEMPLATES": "dataset"} | keys
        return line(name, self.root, self.folder / out, *flags, **keys)

    def built(self, name, out="built", **keys):
        set_random_seed(1)
        words = self.words(name, out, **keys)
        return build_trainer(train.setup_cfg(train.build_parser().parse_intermixed_args(words)))

    def saved(self, name):
        folder = self.folder / f"stage1_{name}"
        if not folder.exists():
            self.built(name).save_model(0, str(folder))
        return folder


@pytest.fixture(scope="module")
def bench(pets_root, tmp_path_factory):
    return Bench(pets_root, tmp_path_factory.mktemp("counts"))


def ready(trainer):
    """The trainer in the middle of an epoch, and a batch of its own."""
    trainer.before_train()
    trainer.close_writer()
    trainer.set_model_mode("train")
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 100
    return trainer, next(iter(trainer.train_loader_x))


@pytest.mark.parametrize("views", [0, 1])
@pytest.mark.parametrize("name", STEPS)
def test_passes_of_a_step_and_of_an_evaluation(bench, name, views):
    (_, steps, texts), tokens = STEPS[name], WORDS.get(name, TOKENS)
    trainer, batch = ready(bench.built(name, FEATURES__VIEWS=views, FEATURES__TEST=bool(views)))
    with counted(trainer.clip) as step:
        trainer.forward_backward(batch)
    assert (step.passes["image"], step.passes["text"]) == steps[views]
    assert step.tokens == tokens * steps[views][1][0] and step.steps == 1
    stored = views and trainer.frozen_image_tower
    with counted(trainer.clip) as test:
        trainer.test("test")
    batches = 0 if stored else len(trainer.test_loader)
    assert test.passes == {"image": (batches, 0), "text": texts} and test.tokens == tokens * texts[0]
    assert test.decoded == test.images == (0 if stored else len(trainer.test_loader.dataset))


def test_a_path_between_weights_encodes_the_images_once(bench):
    """Images once for all of the path; texts at its 5 points .1 .3 .5 .7 .9, and at w itself."""
    keys = {"TRAINER__LMC__SPACE": "weights", "TRAINER__LMC__DISTANCE": "l2sq", "FEATURES__VIEWS": 0}
    trainer, batch = ready(bench.built("CoOp_LMC", **keys))
    with counted(trainer.clip) as step:
        trainer.forward_backward(batch)
    assert step.passes == {"image": ONCE, "text": (6, 6)} and step.images == len(batch["label"]) == 4


@pytest.mark.parametrize(("seconds", "times"), [(1e6, 2), (0, 9)])
def test_resume_pt_is_written_after_the_first_and_the_last_epoch_and_by_the_clock(bench, seconds, times):
    keys = {"OPTIM__MAX_EPOCH": 9, "TRAIN__RESUME_SECONDS": seconds}
    with counted() as work:
        train.main(bench.words("CoOp", f"every{seconds}", **keys))
    assert work.written["resume.pt"] == times


def test_a_run_writes_what_it_has_to_and_a_second_model_reads_no_image(bench):
    """3 epochs of 3 steps on 12 images; as many test images, which the bank keeps for every later model."""
    keys = {"FEATURES__DIR": bench.folder / "own", "OPTIM__MAX_EPOCH": 3, "TRAIN__RESUME_SECONDS": 1e6}
    clip, run = bench.built("CoOp").clip, bench.folder / "run"
    with counted(clip) as work:
        train.main(bench.words("CoOp", "run", **keys))
    assert (work.steps, work.decoded, work.images) == (9, 36 + 12, 36 + 12)
    assert work.passes == {"image": (9 + 1, 0), "text": (9 + 1, 9)}
    once = ("config.yaml", "subset.json", "bank.json", "round-00000.safetensors", "checkpoint", "classes.json",
            "results.json", "model.pth.tar-3")  # fmt: skip
    assert work.written == dict.fromkeys(once, 1) | {"resume.pt": 2}
    kept = {"config.yaml", "subset.json", "classes.json", "results.json", ".lock", "log.txt"}
    kept |= {"prompt_learner/checkpoint", "prompt_learner/model.pth.tar-3"}
    left = {name: size for name, size in files(run).items() if not name.startswith("tensorboard/")}
    assert left.keys() == kept
    # the context: 4 x 128 numbers, and as many of the optimiser's momentum; the tiny CLIP alone would be 7 MB
    ctx = 4 * 128 * 4
    checkpoint = load_checkpoint(run / "prompt_learner" / "model.pth.tar-3")
    assert sum(value.nbytes for value in checkpoint["state_dict"].values()) == ctx
    assert 2 * ctx < left["prompt_learner/model.pth.tar-3"] < 2 * ctx + 4096
    assert work.sizes["resume.pt"] < 2 * (2 * ctx + 32_000)  # torch's random state is 5 kB, tables of names the rest
    assert 12 * clip.dim * 4 < work.sizes["round-00000.safetensors"] < 12 * clip.dim * 4 + 1024
    assert sum(left.values()) < 48_000

    with counted(clip) as second:
        train.main(bench.words("CoOp", "second", "--eval-only", "--model-dir", run, **keys))
    assert second.passes == {"image": NONE, "text": ONCE} and second.tokens == TOKENS
    assert second.decoded == second.images == second.steps == 0
    assert sum(second.sizes.values()) < 16_000 and "round-00000.safetensors" not in second.written


def test_steps_leave_no_tensor_behind(bench):
    trainer, batch = ready(bench.built("CoOp_LMC", FEATURES__VIEWS=1))
    trainer.forward_backward(batch)  # makes the optimiser's momentum
    before = resident()
    for _ in range(4):
        trainer.forward_backward(batch)
    assert resident() == before


def test_a_second_trainer_shares_the_clip(bench):
    first = bench.built("CoOp")
    weights = sum(value.nbytes for value in first.clip.module.state_dict().values())
    before = resident()
    second = bench.built("MultiModalAdapter")
    assert second.clip.module is first.clip.module
    assert resident() - before < weights / 2  # its adapters


def test_fusion_holds_one_delta_and_a_bit_a_task_and_value():
    """4 bytes a value, whatever T is, and ceil(n / 8) bytes a task and tensor of n values."""
    shapes = {"matrix": (40, 25), "vector": (13,), "one": ()}
    values, masks = 1000 + 13 + 1, 125 + 2 + 1
    deltas = random_deltas(0, 11, shapes=shapes)
    fusion, before = Fusion(), resident()
    for tasks, delta in enumerate(deltas, 1):
        fusion.absorb(str(tasks), delta)
        if tasks in (1, 5, 11):
            assert resident() - before == 4 * values + tasks * masks
    tensors, _ = fusion.state()
    assert sum(value.nbytes for value in tensors.values()) == 4 * values + 11 * masks
