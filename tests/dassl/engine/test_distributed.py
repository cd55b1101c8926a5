"""Several processes against one, at the same global batch: the same steps, one set of files, one word when it fails.

Gloo, two real processes. All that goes well happens in one launch of them, for starting costs seconds.
"""

import json

import pytest
import torch

from dassl.data.shards import ShardedBatches, next_share, sharded_loader
from dassl.engine import build_trainer, signals
from dassl.engine.distributed import batch_share, start_epoch_together
from dassl.utils import UserError, distributed
from dassl.utils.distributed import average_gradients, broadcast, is_main, process_group, rank, shard, world_size
from tests.fixtures import distributed_jobs
from tests.fixtures.dassl_style_world import style_config, write_images
from tests.fixtures.distributed_jobs import INTERRUPTED, TESTED, TRAINED, differences, seen

folders = distributed_jobs.folders  # fixture
# of a loss: its logits are up to 100 times a cosine, whose rounding, eps, they carry; the parts of a batch round apart
LOGITS = 4 * 100 * torch.finfo(torch.float32).eps

@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_make_the_steps_of_one(name, folders):
    one, two = (seen(folder, name) for folder in folders)
    assert len(one["losses"]) == len(two["losses"]) >= 4
    for mine, theirs in zip(one["losses"], two["losses"], strict=True):
        assert theirs == pytest.approx(mine, abs=LOGITS)  # the printed accuracy too
    moved = max(value.max() for value in differences(one["weights"], one["start"]).values())
    assert moved > 5e-5  # 50 times what may differ
    other = seen(folders[1], name, 1)
    assert other["losses"] == two["losses"]
    for parts in (two, other):
        differ = differences(one["weights"], parts["weights"])
        if name == "adamw":
            # divides by the size of the gradient: of one that is rounding alone, as of a key's bias, the step is a full
            # one to either side. Ten steps of 1e-5 at most; of a thousand numbers one may be such
            assert max(value.max() for value in differ.values()) <= 2 * 10 * 1e-5
            every = torch.cat([value.flatten() for value in differ.values()])
            assert (every > 1e-6).float().mean() < 1e-3
        else:
            assert max(value.max() for value in differ.values()) < 1e-6, differ
    assert all(torch.equal(two["weights"][key], value) for key, value in other["weights"].items())


@pytest.mark.parametrize("name", ["uneven", "single", "path", "sgd", "streams"])
def test_each_batch_is_divided(name, folders):
    parts = [seen(folders[1], name, number)["images"] for number in (0, 1)]
    whole = [] if name == "streams" else seen(folders[0], name)["images"]
    passes = {}
    for i, ((epoch, share, mine), (_, rest, theirs)) in enumerate(zip(*parts, strict=True)):
        assert share + rest == 1
        both = mine + theirs if rest else mine
        if rest:
            assert share == pytest.approx(len(mine) / len(both))
        if whole:
            assert both == whole[i][2]
        passes.setdefault(epoch, []).extend(both)
    if name != "sgd":  # there an epoch is no pass
        assert all(len(set(images)) == len(images) for images in passes.values())


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_run_goes_on_to_the_same_bits(name, folders):
    for number in (0, 1):
        whole, told, ended = (seen(folders[1], part, number) for part in (name, f"{name} told", f"{name} ended"))
        assert all(torch.equal(value, ended["weights"][key]) for key, value in whole["weights"].items())
        epoch = whole["images"].index(told["images"][0])  # killed in the second, which begins anew
        assert whole["losses"][epoch:] == told["losses"] + ended["losses"]
        # one process was told, in the third step; both ask, every 2 steps or 10, and at the end of the epoch
        assert epoch > 0 and len(told["losses"]) in ((3,) if name == "adamw" else (3, 4))
        assert len(told["losses"]) == len(seen(folders[1], f"{name} told", 1 - number)["losses"])
    metrics = [json.loads((folders[1] / "runs" / part / "results.json").read_text())["metrics"]
               for part in (name, f"{name} halves")]  # fmt: skip
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("name", TRAINED + TESTED)
def test_one_set_of_files_the_main_process_s(name, folders):
    one, two = (
        sorted(str(p.relative_to(folder)) for p in (folder / "runs" / name).rglob("*") if "tfevents" not in p.name)
        for folder in folders
    )
    assert two == one
    assert len(list((folders[1] / "runs" / name).rglob("*tfevents*"))) == (name in TRAINED)
    assert any(f"{name}/" in path for path in seen(folders[1], name, 0)["written"])
    assert not seen(folders[1], name, 1)["written"]
    results = [json.loads((folder / "runs" / name / "results.json").read_text()) for folder in folders]
    assert results[1]["processes"] == 2 and "processes" not in results[0]
    for key in ("metrics", "correct", "total"):
        assert results[1][key] == results[0][key]


# Failures


def raised(folders, name):
    """What the processes that lived to tell it raised: a list of (type, text) by rank."""
    files = sorted(folders[1].glob(f"{name}-*.json"))
    return [tuple(json.loads(file.read_text()).values()) for file in files]


def test_a_failure_in_one_process_ends_the_others_without_a_word(folders):
    """PeerFailure is a SystemExit: nothing but the status, 1, is seen of it."""
    assert raised(folders, "error") == [("PeerFailure", "1"), ("UserError", "this process has a bad day")]
    run = folders[1] / "runs" / "error"
    log = (run / "log.txt").read_text()
    assert "Failed in process 1: this process has a bad day" in log
    assert "Interrupted (last good checkpoint: none); the same command goes on" in log
    assert not (run / "results.json").exists()


def test_a_process_that_is_lost_is_reported_by_another(folders):
    ((kind, text),) = raised(folders, "killed")
    assert kind == "UserError" and text.startswith("Another process of this run was lost") and "\n" not in text


def test_what_all_find_wrong_is_said_once(folders):
    found = raised(folders, "config")
    assert sorted(kind for kind, _ in found) == ["PeerFailure", "UserError"]
    assert any("no such" in text for _, text in found)


def test_a_finished_folder_is_refused_once(folders):
    """Only the main process looks into the folder; the others must not wait for it."""
    (kind, text), (other, _) = raised(folders, "finished")
    assert (kind, other) == ("AlreadyFinished", "PeerFailure") and "holds a finished run" in text


# The pieces


def test_exchanges_between_two(folders):
    for number in (0, 1):
        seen = torch.load(folders[1] / f"exchanges-{number}.pt")
        assert [None if grad is None else float(grad.mean()) for grad in seen["grads"]] == [5, 0.5, 7, None, 40000]
        assert all(grad is None or grad.shape == (3, 2) for grad in seen["grads"])
        assert seen["max"] == [1, 0]
        assert seen["said"].pop("what").tolist() == [0, 1, 2]
        assert seen["said"] == {"who": "process 0", "none": None}
        assert [weight.tolist() for weight in seen["weights"]] == [[[0, 0], [0, 0]], [True]]
        assert seen["rank"] == (number, 2, number == 0)
        assert seen["part"] == ([0, 1, 2], [3, 4])[number]


def test_losses_on_a_device_are_read_together_and_name_the_first_bad_batch_of_all(folders):
    """Of a loss 4 i in process 0 and 4 i + 1 in process 1 the whole batch has 4 i + 1 / 4."""
    for number in (0, 1):
        points, said, waits = torch.load(folders[1] / f"exchanges-{number}.pt")["log"]
        means = [("train/loss", 0.25, 0), ("train/loss", 2.25, 1), ("train/number", 2, 0), ("train/number", 2, 1)]
        assert sorted(point for point in points if point[0] != "train/lr") == means
        assert said == [("Loss is infinite or NaN!", ", batch 3")] and waits == ["cpu"] * 2


def test_processes_ask_each_other_every_few_steps_or_seconds(monkeypatch):
    """With a clock that the test moves: when two processes ask each other, and what they agree on."""
    now, asked, others = [0.0], [], [0.0, 0.0]
    monkeypatch.setattr(signals, "world_size", lambda: 2)
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])

    def all_reduce(mine, op):
        assert op == "max"
        asked.append(step)
        return torch.maximum(mine, torch.tensor(others))

    monkeypatch.setattr(signals, "all_reduce", all_reduce)
    flag = signals.StopFlag(10)
    for step in range(1, 41):
        now[0] += 0.01 if step <= 30 else 2.0
        others[1] = 0.0 if step <= 20 else 1.0  # the other one's pace
        assert not flag.heard(last=step == 40)
    # at once; at a pace of 10 ms every 10 steps; at 1 s, the other one's, every 5; at 2 s, once it is known, every 2
    assert asked == [1, 11, 21, 26, 31, 36, 38, 40]
    others[0] = 1.0
    step = 41
    flag._next = 41
    assert flag.heard()


def test_one_process_is_left_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # a cluster's own variable
    with process_group():
        assert (rank(), world_size(), is_main()) == (0, 1, True)
    for name, value in {"RANK": "first", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="torchrun's environment is damaged.*'RANK': 'first'"), process_group():
        pass
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), 3.0)
    grad = weight.grad
    average_gradients([torch.optim.SGD([weight], lr=1.0)])
    assert weight.grad is grad and grad.tolist() == [3, 3]
    assert broadcast({"a": 1}) == {"a": 1}
    loader = torch.utils.data.DataLoader(range(4))
    assert sharded_loader(loader) is loader


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 64])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_parts_cover_everything_once(count, processes, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    parts = []
    for number in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        parts.append(list(range(count))[shard(count)])
    assert sum(parts, []) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts[0]) == max(map(len, parts))


def test_shares_follow_the_batches(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 2)
    batches = ShardedBatches(torch.utils.data.BatchSampler(range(8), 6, drop_last=False))
    loader = torch.utils.data.DataLoader(range(8), batch_sampler=batches)
    for _ in range(2):
        found = [(batch.tolist(), next_share(loader)) for batch in loader]
        assert found == [([4, 5], 2 / 6), ([6], 0.0)]  # a copy of the first one, that counts for nothing
    next(iter(loader))  # broken off: what it queued is not the next pass's
    assert [next_share(loader) for _ in loader] == [2 / 6, 0.0]


def test_what_cannot_be_divided_is_refused(monkeypatch, tmp_path):
    class Pair:
        _models = {}
        train_loader_x, train_loader_u = (
            torch.utils.data.DataLoader(range(8), batch_sampler=ShardedBatches(None)) for _ in range(2)
        )

    for share in (1 / 2, 1 / 2, 2 / 3):
        Pair.train_loader_x.batch_sampler.shares.append(1 / 2)
        Pair.train_loader_u.batch_sampler.shares.append(share)
        if share == 1 / 2:
            assert batch_share(Pair) == 1 / 2
    with pytest.raises(UserError, match="TRAIN_X.BATCH_SIZE and TRAIN_U's, are multiples of their number"):
        batch_share(Pair)
    trainer = build_trainer(style_config(write_images(tmp_path), tmp_path / "out", "StyleContinued"))
    monkeypatch.setattr("dassl.engine.trainer.world_size", lambda: 2)
    with pytest.raises(UserError, match=r"torchrun needs a trainer with losses\(\); StyleContinued steps by itself"):
        trainer.before_train()


def test_batch_norms_of_parts_are_warned_of(monkeypatch, capsys):
    class Trainer:
        epoch = start_epoch = 0
        _models = {"still": torch.nn.BatchNorm1d(2).eval(), "moving": torch.nn.BatchNorm1d(2)}

    monkeypatch.setattr("dassl.engine.distributed.world_size", lambda: 2)
    monkeypatch.setattr("dassl.engine.distributed.broadcast", lambda value: value)
    start_epoch_together(Trainer)
    assert "moving has batch norms in training mode: each of the 2 processes" in capsys.readouterr().out
    Trainer.epoch = 1  # said once
    start_epoch_together(Trainer)
    assert capsys.readouterr().out == ""
