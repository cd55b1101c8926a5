"""A run that was interrupted goes on to the same bits as one that was not."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from dassl.config import merge_pairs
from dassl.engine import build_trainer
from dassl.engine.launch import run
from dassl.engine.state import plain, rng_state, stop_workers
from dassl.utils import UserError, load_checkpoint, set_random_seed
from tests.fixtures.dassl_style_world import style_config, until_waiting, victim, write_images

BEST_VAL = ["TEST.FINAL_MODEL", "best_val"]
EACH, FIRST = ["TRAIN.RESUME_SECONDS", "0"], ["TRAIN.RESUME_SECONDS", "1e6"]  # epochs whose resume.pt a kill leaves
PAIRS = ["DATALOADER.TRAIN_X.SAMPLER", "RandomClassSampler", "DATALOADER.TRAIN_X.N_INS", "2"]
PERSISTENT = ["DATALOADER.NUM_WORKERS", "1", "DATALOADER.PERSISTENT", "True", *BEST_VAL]
CASES = [  # trainer, keys and values, what they are about
    ("ShortLosses", ["INPUT.VIEW_SEEDS", "False"], "global augmentation"),
    ("ShortLosses", PERSISTENT, "persistent"),
    ("ShortLosses", ["OPTIM.WARMUP_EPOCH", "3", "OPTIM.NAME", "radam"], "in warm-up"),
    ("ShortLosses", ["TRAIN.ACCUMULATE", "2", "TRAIN.CHECKPOINT_FREQ", "2"], "accumulation"),
    ("ShortPairs", PAIRS, "pairs"),
    ("ShortTeacher", ["OPTIM.LR_SCHEDULER", "multi_step", "OPTIM.STEPSIZE", "(1, 3)"], "teacher"),
    ("StyleTwoLosses", BEST_VAL, "prograd"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_images(tmp_path_factory.mktemp("images"))
    build(root, root)  # leaves the data set's own caches, so that no later run draws them
    return root


def configure(root, output, name, pairs=()):
    cfg = style_config(root, output, name, OPTIM__MAX_EPOCH=5)
    merge_pairs(cfg, list(pairs))
    return cfg


def build(root, output, name="ShortLosses", pairs=()):
    set_random_seed(1)
    return build_trainer(configure(root, output, name, pairs))


def stop_at(trainer, epoch, batch=1):
    """Train until that batch (both from 0), then break off."""
    step = trainer.forward_backward

    def stopping(*args):
        if (trainer.epoch, trainer.batch_idx) == (epoch, batch):
            raise KeyboardInterrupt
        return step(*args)

    trainer.forward_backward = stopping
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.close_writer()
    stop_workers(trainer)


def same(a, b):
    """Equal to the bit, through dictionaries and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def checkpoints(folder):
    """Every checkpoint file below a run: weights, optimizer, scheduler, epoch, validation result."""
    files = sorted(Path(folder).glob("*/model*.pth.tar*"))
    return {str(file.relative_to(folder)): load_checkpoint(file) for file in files}


def assert_same_run(whole, halves):
    """Two trainers that have trained: everything that a run leaves, and the random states after it."""
    assert same(checkpoints(whole.output_dir), checkpoints(halves.output_dir))
    assert whole.best_result == halves.best_result
    assert [entry["epoch"] for entry in whole._history] == [1, 2, 3, 4, 5]
    assert whole._history == halves._history
    assert not os.path.exists(os.path.join(halves.output_dir, "resume.pt"))


def kill(root, output, name, epoch, pairs=()):
    """Start the run in another process and kill it, with SIGKILL, in the middle of that epoch."""
    process = victim(root, output, name, epoch, ["OPTIM.MAX_EPOCH", "5", *pairs])
    until_waiting(process)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def losses_of(folder):
    """What the log says of each batch, times left out: {(epoch, batch): text}."""
    lines = [line for log in sorted(Path(folder).glob("log*.txt")) for line in log.read_text().splitlines()]
    pattern = re.compile(r"epoch \[(\d+)/\d+\] batch \[(\d+)/\d+\] .*?data \S+ \(\S+\) (.*) eta")
    return {found.group(1, 2): found[3] for line in lines if (found := pattern.match(line))}


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("ShortLosses", BEST_VAL),
        ("ShortLosses", ["TRAINER.SHORT.PREC", "bf16", "OPTIM.NAME", "adam", *BEST_VAL]),
        ("StyleContinued", BEST_VAL),
    ],
    ids=["losses fp32", "losses bf16", "Dassl style"],
)
@pytest.mark.parametrize(("each", "epochs"), [(EACH, 2), (FIRST, 1)], ids=["each epoch", "the first"])
def test_a_killed_run_goes_on_to_the_same_bits(name, pairs, each, epochs, root, tmp_path):
    kill(root, tmp_path / "halves", name, 2, [*pairs, *each])
    assert torch.load(tmp_path / "halves" / "resume.pt")["epoch"] == epochs
    assert not (tmp_path / "halves" / "results.json").exists()

    results, states = {}, {}
    torch.set_num_threads(1)  # as in the other process: more threads sum in another order
    for half in ("whole", "halves"):
        results[half] = run(configure(root, tmp_path / half, name, pairs))
        states[half] = plain(rng_state())
    assert same(states["whole"], states["halves"])
    assert same(checkpoints(tmp_path / "whole"), checkpoints(tmp_path / "halves"))
    assert len(checkpoints(tmp_path / "whole")) == 2 * (2 if name == "StyleContinued" else 1)
    for field in ("metrics", "correct", "total", "chosen_on", "epochs", "history"):
        assert results["whole"][field] == results["halves"][field]
    whole = losses_of(tmp_path / "whole")
    assert len(whole) == 15
    assert losses_of(tmp_path / "halves") == whole
    assert not (tmp_path / "halves" / "resume.pt").exists()


@pytest.mark.parametrize(("name", "pairs"), [case[:2] for case in CASES], ids=[case[2] for case in CASES])
@pytest.mark.parametrize(("epoch", "each"), [(1, EACH), (3, EACH), (3, FIRST)])
def test_an_interrupted_run_goes_on_to_the_same_bits(name, pairs, epoch, each, root, tmp_path):
    whole = build(root, tmp_path / "whole", name, pairs)
    whole.train()
    stop_at(build(root, tmp_path / "halves", name, [*pairs, *each]), epoch)
    halves = build(root, tmp_path / "halves", name, pairs)
    halves.train()
    assert_same_run(whole, halves)
    assert halves.start_epoch == epoch  # also where resume.pt was not due: an error leaves the last finished epoch
    if name == "ShortTeacher":
        for part in ("teacher", "scale"):
            assert same(getattr(whole, part).state_dict(), getattr(halves, part).state_dict())
        assert same(whole.others[0].state_dict(), halves.others[0].state_dict())
        assert whole.count == halves.count == 15 and same(whole.running, halves.running)


def test_curves_have_each_step_once(root, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points = {}
    for half in ("whole", "halves"):
        if half == "halves":
            stop_at(build(root, tmp_path / half, "ShortLosses", EACH), 3)
        build(root, tmp_path / half, "ShortLosses").train()
        events = EventAccumulator(str(tmp_path / half / "tensorboard"))
        events.Reload()
        points[half] = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in points["whole"]] == list(range(15)) and points["halves"] == points["whole"]


def test_two_interruptions(root, tmp_path):
    """What the first half had changed is kept even if the second did not touch it."""
    whole = build(root, tmp_path / "whole", "ShortTeacher")
    whole.train()
    for epoch in (2, 3):
        stop_at(build(root, tmp_path / "halves", "ShortTeacher", EACH), epoch, batch=0)
    halves = build(root, tmp_path / "halves", "ShortTeacher")
    halves.train()
    assert_same_run(whole, halves)
    assert same(whole.teacher.state_dict(), halves.teacher.state_dict())


def test_killed_after_the_last_epoch(root, tmp_path):
    whole = build(root, tmp_path / "whole", pairs=BEST_VAL)
    whole.train()
    result = whole.test()
    halves = build(root, tmp_path / "halves", pairs=BEST_VAL)

    def die():
        raise KeyboardInterrupt

    halves.after_train = die
    with pytest.raises(KeyboardInterrupt):
        halves.train()
    halves = build(root, tmp_path / "halves", pairs=BEST_VAL)
    halves.train()
    assert_same_run(whole, halves)
    assert (halves.epoch, halves.test()) == (4, result)


def test_only_what_changes_is_kept_and_it_loads_without_code(root, tmp_path):
    stop_at(build(root, tmp_path, "ShortTeacher"), 2)
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert list(state["models"]) == ["head"]
    # self.model and self.linear hold the registered head and a frozen layer: nothing of their own
    assert {name: set(part) for name, part in state["attributes"].items() if part} == {
        "teacher": {"weight", "bias"},
        "scale": {"weight", "bias"},
        "others.0": {"state", "param_groups"},
    }
    assert state["values"].keys() == {"count", "running"}


def test_plain_attributes_go_on_where_they_were(root, tmp_path):
    """What training does not change stays as the new process has it; parameters and aliases stay the same memory."""

    def made(folder):
        trainer = build(root, tmp_path / folder)
        trainer.seen, trainer.words, losses = {"sum": torch.zeros(2), "all": [0]}, "none", trainer.losses
        trainer.own = nn.Parameter(torch.ones(1))
        trainer.alias, trainer.own_alias, trainer.folder = trainer.linear.weight.data, trainer.own, folder

        def counted(batch):
            trainer.seen["sum"] += 1
            trainer.seen["all"].append((trainer.epoch, trainer.batch_idx))
            trainer.words = f"epoch {trainer.epoch}"
            trainer.own.data += 1
            return losses(batch)

        trainer.losses = counted
        return trainer

    whole = made("whole")
    whole.train()
    stop_at(made("halves"), 2)
    halves = made("halves")
    halves.train()
    assert_same_run(whole, halves)
    assert same(whole.seen, halves.seen) and len(halves.seen["all"]) == 16
    assert (halves.words, halves.folder, halves.own.item()) == ("epoch 4", "halves", 1 + 15)
    assert halves.own is halves.own_alias and halves.alias.data_ptr() == halves.linear.weight.data_ptr()


def test_state_that_is_not_plain_is_named(root, tmp_path):
    class Odd:
        def state_dict(self):
            return {"me": self}

        def load_state_dict(self, state):
            raise AssertionError("nothing was saved")

    trainer = build(root, tmp_path)
    trainer.odd = Odd()
    with pytest.warns(UserWarning, match="resume.pt does not hold odd, .*: a Odd is no plain value"):
        stop_at(trainer, 2)
    build(root, tmp_path).train()


def test_that_a_run_without_a_seed_may_differ_is_said(root, tmp_path, capsys):
    stop_at(build(root, tmp_path, pairs=["SEED", "-1"]), 1)
    build(root, tmp_path, pairs=["SEED", "-1"]).train()
    assert "This run has no seed, so its data may be drawn anew" in capsys.readouterr().out


def test_a_run_of_another_config_is_not_continued(root, tmp_path, capsys):
    stop_at(build(root, tmp_path / "a"), 2)
    with pytest.raises(UserError, match=r"OPTIM.LR 0.02, asked for 0.5; TRAINER.SHORT.NOISE 0.01, asked for 0.0"):
        build(root, tmp_path / "a", pairs=["OPTIM.LR", "0.5", "TRAINER.SHORT.NOISE", "0.0"]).train()
    # where and how it runs may change
    build(root, tmp_path / "a", pairs=["TRAIN.PRINT_FREQ", "1", "DATALOADER.NUM_WORKERS", "1"]).train()

    stop_at(build(root, tmp_path / "b", pairs=EACH), 2)
    chosen = build(root, tmp_path / "c", pairs=["RESUME", str(tmp_path / "b"), "OPTIM.MAX_EPOCH", "6"])
    chosen.train()
    assert "OPTIM.MAX_EPOCH 5, asked for 6" in capsys.readouterr().out
    assert chosen.start_epoch == 2
    assert (tmp_path / "b" / "resume.pt").exists()
    assert os.listdir(tmp_path / "c" / "head") != []


def test_a_trainer_added_meanwhile_does_not_stop_a_run(root, tmp_path):
    stop_at(build(root, tmp_path, pairs=EACH), 2)
    cfg = configure(root, tmp_path, "ShortLosses")
    cfg.TRAINER.ADDED = type(cfg)({"KEY": 1})  # as registering one more trainer does
    again = build_trainer(cfg)
    again.train()
    assert again.start_epoch == 2


def test_resume_from_nowhere_is_an_error(root, tmp_path):
    with pytest.raises(UserError, match=f'Nothing to resume in "{tmp_path}/nowhere": no such folder'):
        build(root, tmp_path / "out", pairs=["RESUME", str(tmp_path / "nowhere")]).train()


@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_damaged_resume_file_is_named(kept, root, tmp_path):
    stop_at(build(root, tmp_path), 2)
    path = tmp_path / "resume.pt"
    os.truncate(path, int(kept * path.stat().st_size))
    with pytest.raises(UserError, match=re.escape(str(path))):
        build(root, tmp_path).train()


def test_a_resume_file_of_other_models_is_refused(root, tmp_path):
    stop_at(build(root, tmp_path), 2)
    path = tmp_path / "resume.pt"
    state = torch.load(path)
    torch.save(state | {"models": {"tail": state["models"]["head"]}}, path)
    with pytest.raises(UserError, match=r"holds the models \['tail'\], this run has \['head'\]"):
        build(root, tmp_path).train()
    state["models"]["head"]["model"]["1.weight"] = torch.zeros(2, 2)
    torch.save(state, path)
    with pytest.raises(UserError, match=r"resume.pt does not fit this run"):
        build(root, tmp_path).train()
    torch.save({"format": 2}, path)
    with pytest.raises(UserError, match="expected resume format 1, found 2"):
        build(root, tmp_path).train()


def test_without_resume_file_the_pointers_are_followed(root, tmp_path, capsys):
    """As Dassl resumes: weights, optimizer, scheduler and epoch, from each model's folder."""
    pairs = ["TRAIN.CHECKPOINT_FREQ", "2"]
    stop_at(build(root, tmp_path, "StyleContinued", pairs), 3)
    (tmp_path / "resume.pt").unlink()
    again = build(root, tmp_path, "StyleContinued", pairs)
    again.before_train()
    saved = load_checkpoint(tmp_path / "adapter_learner" / "model.pth.tar-2")
    assert again.start_epoch == 2
    assert same(dict(saved["state_dict"]), dict(again.adapter.state_dict()))
    assert same(saved["optimizer"], again.optim2.state_dict())
    assert "will resume training" in capsys.readouterr().out
    again.close_writer()
    shutil.rmtree(tmp_path / "prompt_learner")
    fresh = build(root, tmp_path, "StyleContinued", pairs)
    fresh.before_train()
    assert fresh.start_epoch == 0
    assert "No checkpoint found, train from scratch" in capsys.readouterr().out
    fresh.close_writer()


def test_seconds_of_earlier_sessions_count(root, tmp_path):
    stop_at(build(root, tmp_path), 2)
    state = torch.load(tmp_path / "resume.pt")
    assert 0 < state["seconds"] < 60
    torch.save(state | {"seconds": 1000.0}, tmp_path / "resume.pt")
    assert 1000 < run(configure(root, tmp_path, "ShortLosses"))["wall_s"] < 1060
