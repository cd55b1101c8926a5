"""SIGTERM in an epoch of training: saved after the step under way, and no step of it is taken again."""

import contextlib
import os
import signal
import time

import pytest
import torch

from dassl.engine import signals
from dassl.engine.launch import run
from dassl.engine.signals import defer_sigterm, should_stop, sigterm_ends
from dassl.engine.state import stop_workers
from dassl.utils import MetricMeter, UserError
from tests.dassl.engine.test_resume import CASES, EACH, FIRST, assert_same_run, build, losses_of, root  # noqa: F401  (fixture)
from tests.fixtures.dassl_style_world import style_config


def told_at(trainer, epoch, batch):
    """Train; in that step (both from 0) SIGTERM comes -> the steps that were taken, as (epoch, batch)."""
    step, taken = trainer.forward_backward, []

    def telling(*args):
        taken.append((trainer.epoch, trainer.batch_idx))
        if taken[-1] == (epoch, batch):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    trainer.forward_backward = telling
    with sigterm_ends(), pytest.raises(SystemExit) as ended:
        trainer.train()
    assert ended.value.code == 143
    trainer.close_writer()
    stop_workers(trainer)
    return taken


def watched(trainer):
    """Train to the end -> the steps that were taken."""
    step, taken = trainer.forward_backward, []
    trainer.forward_backward = lambda *args: (taken.append((trainer.epoch, trainer.batch_idx)), step(*args))[1]
    trainer.train()
    return taken


PLACES = [(0, 0), (0, -1), (3, 1)]  # -1: the last batch
CHOSEN = [(case, place) for case in CASES for place in (PLACES if case is CASES[0] else PLACES[-1:])]


@pytest.mark.parametrize(("case", "place"), CHOSEN, ids=[f"{case[2]} {place}" for case, place in CHOSEN])
def test_the_step_under_way_is_the_last_and_none_is_repeated(case, place, root, tmp_path):  # noqa: F811
    name, pairs, _ = case
    whole = build(root, tmp_path / "whole", name, pairs)
    steps = watched(whole)
    epoch, batch = place[0], place[1] % whole.num_batches
    taken = told_at(build(root, tmp_path / "halves", name, pairs), epoch, batch)
    assert taken == steps[: steps.index((epoch, batch)) + 1]  # with ACCUMULATE 2, batch 1 ends a step
    state = torch.load(tmp_path / "halves" / "resume.pt", weights_only=True)
    assert (state["epoch"], state["within"]["batches"]) == (epoch, batch + 1)
    halves = build(root, tmp_path / "halves", name, pairs)
    assert taken + watched(halves) == steps
    assert_same_run(whole, halves)


def test_a_step_of_several_batches_is_ended_first(root, tmp_path):  # noqa: F811
    pairs = ["TRAIN.ACCUMULATE", "2"]
    for batch, last in ((0, 1), (2, 2)):  # the third batch of the epoch is a step of its own
        assert told_at(build(root, tmp_path / str(batch), "ShortLosses", pairs), 0, batch)[-1] == (0, last)


def test_told_again_and_again(root, tmp_path):  # noqa: F811
    """Twice in one epoch, once before its first step; the log tells of each batch once, and what it told otherwise."""
    keys = {"OPTIM__MAX_EPOCH": 3}
    whole = run(style_config(root, tmp_path / "whole", "ShortLosses", **keys))
    cfg = style_config(root, tmp_path / "halves", "ShortLosses", **keys)
    for place in ((1, 0), (1, 1), (2, 2)):
        _told_run(cfg, *place)
    halves = run(cfg)
    assert halves["history"] == whole["history"] and halves["metrics"] == whole["metrics"]
    assert losses_of(tmp_path / "halves") == losses_of(tmp_path / "whole")
    said = "".join(path.read_text() for path in sorted((tmp_path / "halves").glob("log*.txt")))
    assert said.count("Told to stop: saved after batch 2 of epoch 2") == 1
    assert said.count("1 epochs are done and 2 batches of the next") == 1
    assert said.count(f"last good checkpoint: {tmp_path}/halves/resume.pt); the same command goes on") == 3


def _told_run(cfg, epoch, batch):
    """launch.run with a trainer to which SIGTERM comes in that step."""
    from dassl.engine import TRAINER_REGISTRY

    cls = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    plain = cls.losses

    def telling(self, *args):
        if (self.epoch, self.batch_idx) == (epoch, batch):
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *args)

    cls.losses = telling
    try:
        with pytest.raises(SystemExit):
            run(cfg)
    finally:
        cls.losses = plain


@pytest.mark.parametrize("hook", ["before_epoch", "run_epoch"])
def test_an_epoch_that_cannot_be_saved_halfway_is_done_again(hook, root, tmp_path):  # noqa: F811
    """That of a trainer with a hook that would be called twice."""

    def prepare(folder):
        trainer = build(root, folder, pairs=EACH)
        plain = getattr(type(trainer), hook)
        trainer.__class__ = type("Hooked", (type(trainer),), {hook: lambda self: plain(self)})
        return trainer

    whole, halves = prepare(tmp_path / "whole"), tmp_path / "halves"
    steps = watched(whole)
    told_at(prepare(halves), 2, 1)
    state = torch.load(halves / "resume.pt", weights_only=True)
    assert state["epoch"] == 2 and "within" not in state
    again = prepare(halves)
    assert watched(again) == steps[6:]
    assert_same_run(whole, again)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"config": None}, "resume.pt does not fit this run, or is damaged"),
        ({"within": "x"}, "resume.pt does not fit this run, or is damaged"),
        ({"models": {"head": 3}}, "resume.pt does not fit this run, or is damaged"),
        ({"rng": {"python": 3}}, "resume.pt does not fit this run, or is damaged"),
        ({"epoch": "2"}, "resume.pt does not fit this run, or is damaged"),
    ],
)
def test_a_damaged_file_is_refused(change, match, root, tmp_path):  # noqa: F811
    told_at(build(root, tmp_path), 0, 1)
    path = tmp_path / "resume.pt"
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(UserError, match=match):
        build(root, tmp_path).train()


@pytest.mark.parametrize(("hook", "epochs"), [("after_epoch", 3), ("before_epoch", None), ("test", 5)])
def test_what_follows_an_epoch_is_saved_first_and_all_else_ends_at_once(hook, epochs, root, tmp_path):  # noqa: F811
    whole = build(root, tmp_path / "whole")
    whole.train()
    trainer, reached = build(root, tmp_path / "halves", pairs=FIRST), []

    def told():
        if hook != "after_epoch" or trainer.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(True)

    setattr(trainer, hook, told)
    with sigterm_ends(), pytest.raises(SystemExit, match="143"):
        trainer.train()
    assert reached == [True] * (hook == "after_epoch")
    file = tmp_path / "halves" / "resume.pt"
    assert (torch.load(file, weights_only=True)["epoch"] if file.exists() else None) == epochs
    trainer.close_writer()
    halves = build(root, tmp_path / "halves")
    assert len(watched(halves)) == 3 * (5 - (epochs or 0))
    assert_same_run(whole, halves)


@pytest.mark.parametrize("when", ["saved", "batches"])
def test_no_finished_epoch_is_lost_between_steps(when, root, tmp_path):  # noqa: F811
    """Told once the second epoch has found that nothing is due, or while the third one begins its batches."""
    trainer = build(root, tmp_path, "ShortLosses", ["TRAIN.RESUME_SECONDS", "1000.0"])
    owner, name = (trainer._progress, "save") if when == "saved" else (trainer, "epoch_batches")
    plain, calls = getattr(owner, name), []

    def telling():
        done = plain()
        calls.append(1)
        if len(calls) == (2 if when == "saved" else 3):
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    setattr(owner, name, telling)
    with sigterm_ends(), pytest.raises(SystemExit):
        trainer.train()
    trainer.close_writer()
    stop_workers(trainer)
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert state["epoch"] == 2 and state.get("within", {"batches": 0})["batches"] == (0 if when == "saved" else 1)


def test_a_signal_whose_exception_comes_to_nothing_is_heard_by_the_next_step():
    with sigterm_ends():
        with contextlib.suppress(SystemExit):  # as a finaliser or the hooks of a fork do
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit, match="143"), defer_sigterm():
            pass


def test_a_second_signal_is_heard_at_once_unless_it_is_an_echo(monkeypatch):
    def tell_twice(between):
        with sigterm_ends(), pytest.raises(SystemExit, match="143"), defer_sigterm():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(between)
            heard.append(should_stop())

    heard = []
    tell_twice(0)
    assert heard == [True]
    monkeypatch.setattr(signals, "PATIENCE", 0.01)
    tell_twice(0.02)
    assert heard == [True]
    with sigterm_ends():
        assert not should_stop()  # forgotten with the run that was told


def test_a_meter_goes_on_where_it_stopped():
    whole, first, rest = MetricMeter(), MetricMeter(), MetricMeter()
    for meter, values in ((whole, (0.1, 0.7, 0.3)), (first, (0.1, 0.7))):
        for value in values:
            meter.update({"loss": value, "acc": torch.tensor(100 * value)})
    rest.load_state_dict(first.state_dict())
    assert str(rest) == str(first)
    rest.update({"loss": 0.3, "acc": torch.tensor(30.0)})
    assert rest.state_dict() == whole.state_dict()


def test_signals_to_the_runs_group_do_not_reach_its_loaders_workers(root, tmp_path):  # noqa: F811
    trainer = build(root, tmp_path, pairs=["DATALOADER.NUM_WORKERS", "1"])
    batches = iter(trainer.train_loader_x)
    next(batches)  # the workers have begun
    assert [os.getpgid(worker.pid) for worker in batches._workers] == [worker.pid for worker in batches._workers]
