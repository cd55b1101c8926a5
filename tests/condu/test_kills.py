"""A session that is killed anywhere goes on to the same bits, and trains nothing twice."""

import shutil
import signal

import pytest
import torch

from condu.state import Stream
from condu.trainer import ConDU
from dassl.clip import tensor_digest
from dassl.engine import launch
from dassl.engine.resume import ResumeState
from dassl.utils import UserError, load_checkpoint
from tests.fixtures.condu_runs import Killed, Runs, runs, steps_counted, toy_root  # noqa: F401  fixtures

pytestmark = pytest.mark.filterwarnings("error:resume.pt does not hold")


# place -> (method, end before or after it, at which call)
PLACES = {
    "in a round": (ConDU, "losses", "before", 4),  # the second step of the second round
    "after training": (ConDU, "save_expert", "before", 1),
    "before the stream": (Stream, "save", "before", 1),
    "after the stream": (Stream, "save", "after", 1),
    "in the test": (ConDU, "model_inference", "before", 1),
    "after resume.pt": (ResumeState, "end", "after", 1),
    "before results.json": (launch, "write_results", "before", 1),
}


def kill_at(place, monkeypatch):
    """End the next run there."""
    owner, name, when, number = PLACES[place]
    plain, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        calls.append(place)
        if when == "before" and len(calls) == number:
            raise Killed
        result = plain(*args, **kwargs)
        if when == "after" and len(calls) == number:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize(
    ("config", "place"),
    [*(("toy_ft", place) for place in PLACES), ("toy_lora", "in a round"), ("toy_lora", "after the stream")],
)
def test_a_killed_session_goes_on_to_the_same_bits(config, place, whole, runs, monkeypatch):  # noqa: F811
    state, results = whole(config, runs)
    steps = steps_counted(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(place, patch)
        runs.go("digits", config=config)
    found = runs.go("digits", config=config)
    # nothing is trained twice but the round that was broken off: one step, and the one of the kill itself
    assert len(steps) == (5 + 2 if place == "in a round" else 5)
    assert stream_state(runs) == state
    assert {key: found[key] for key in results} == results
    assert not (runs.folder / "digits" / "resume.pt").exists()
    assert len(list(runs.stream.glob("session_*"))) == 1


def test_half_a_session_is_not_gone_on_with_in_rounds_of_another_length(runs, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at("in a round", patch)
        runs.go("digits", config="toy_lora")
    with pytest.raises(UserError, match="half a run of another recipe: TRAINER.CONDU.ROUND 2, asked for 5"):
        runs.go("digits", "TRAINER.CONDU.ROUND", 5, config="toy_lora")


def test_a_flipped_bit_in_half_a_session_is_noticed_or_changes_nothing(runs, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at("in a round", patch)
        runs.go("digits", config="toy_lora")
    path = runs.folder / "digits" / "resume.pt"
    good, whole = path.read_bytes(), repr_of(load_checkpoint(path))
    noticed = 0
    for number in range(40):
        place = len(good) * number // 40 + number
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << number % 8]) + good[place + 1 :])
        try:
            assert repr_of(load_checkpoint(path)) == whole
        except UserError as error:
            noticed += str(path) in str(error)
    assert noticed > 30  # others lie between the records
    place = good.index(b"data/") + 4000
    path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
    with pytest.raises(UserError, match="resume.pt.*damaged"):
        runs.go("digits", config="toy_lora")
    assert not runs.stream.exists()


def repr_of(content):
    """A checkpoint's content in a form to compare, tensors by their bits."""
    if isinstance(content, torch.Tensor):
        return tensor_digest({"": content})
    if isinstance(content, dict):
        return {key: repr_of(value) for key, value in content.items()}
    return [repr_of(value) for value in content] if isinstance(content, list | tuple) else repr(content)


def stream_state(runs):  # noqa: F811
    stream = Stream.load(runs.stream)
    tensors, facts = stream.fusion.state()
    return tensor_digest(tensors), facts, stream.tasks, [tensor_digest({"": p}) for p in stream.prototypes]


@pytest.fixture(scope="module")
def whole(toy_root, tmp_path_factory):  # noqa: F811
    """`whole(config, runs)`: gives `runs` a first session; the state and results of a second that nobody killed."""
    found = {}

    def make(config, runs):  # noqa: F811
        if config not in found:
            first = Runs(toy_root, tmp_path_factory.mktemp("whole"))
            first.go("colours", config=config)
            second = first.other("second")
            copy_state(first, second)
            results = second.go("digits", config=config)
            keys = ("correct", "total", "metrics", "recipe", "session", "stream_tasks", "condu")
            found[config] = first, stream_state(second), {key: results[key] for key in keys}
        first, state, results = found[config]
        copy_state(first, runs)
        return state, results

    return make


def copy_state(ours, theirs):
    for name in ("stream", "experts"):
        shutil.copytree(ours.folder / name, theirs.folder / name)


def test_a_session_killed_by_the_system_goes_on_in_another_process(runs, whole):  # noqa: F811
    code = """
import os, signal
from condu.trainer import ConDU
plain, calls = ConDU.losses, []
def losses(self, batch):
    calls.append(batch)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, batch)
ConDU.losses = losses
"""
    state, _ = whole("toy_ft", runs)
    died = runs.process(code, *runs.argv("digits", "digits"))
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert torch.load(runs.folder / "digits" / "resume.pt", weights_only=True)["epoch"] == 1
    runs.go("digits")
    assert stream_state(runs) == state
