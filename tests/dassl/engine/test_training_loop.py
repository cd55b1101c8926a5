"""The trainers' loop: order of calls, printed lines, checkpoints, evaluation, what breaks it."""

import os
import re

import pytest
import torch

from dassl.engine import (
    TRAINER_REGISTRY,
)
from dassl.utils import UserError, load_checkpoint
from tests.fixtures import dassl_style_world
from tests.fixtures.dassl_style_world import build, style_config

root = dassl_style_world.root  # a fixture


def test_order_of_the_hooks(root, tmp_path):
    calls = []

    class Recorder(TRAINER_REGISTRY.get("ShortLosses")):
        def forward_backward(self, *batch):
            calls.append(("batch", self.epoch, self.batch_idx, self.num_batches))
            return super().forward_backward(*batch)

        def before_train(self):
            calls.append("before_train")
            super().before_train()

        def before_epoch(self):
            calls.append(("before", self.epoch))

        def after_epoch(self):
            calls.append(("after", self.epoch))
            super().after_epoch()

        def save_model(self, epoch, directory, **options):
            calls.append(("save", epoch, options.get("model_name", "")))
            super().save_model(epoch, directory, **options)

        def test(self, split=None):
            calls.append(("test", split))
            return super().test(split)

        def load_model(self, directory, epoch=None):
            calls.append("load")
            super().load_model(directory, epoch)

        def after_train(self):
            calls.append("after_train")
            super().after_train()

    keys = {"TEST__FINAL_MODEL": "best_val", "OPTIM__LR": 1e-9}
    Recorder(style_config(root, tmp_path, "ShortLosses", **keys)).train()
    first, last = (
        [("before", e), *(("batch", e, b, 3) for b in range(3)), ("after", e), ("test", "val")] for e in (0, 1)
    )
    assert calls == [
        "before_train", *first, ("save", 0, "model-best.pth.tar"), *last, ("save", 1, ""),
        "after_train", "load", ("test", None),
    ]  # fmt: skip


def test_printed_lines(root, tmp_path, capsys):
    build(root, tmp_path, TRAIN__PRINT_FREQ=2, DATALOADER__TRAIN_X__BATCH_SIZE=4).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch [")]
    number = r"\d+\.\d{4} \(\d+\.\d{4}\)"
    line = re.compile(
        r"epoch \[(\d)/2\] batch \[(\d)/6\] time [\d.]+ \([\d.]+\) data [\d.]+ \([\d.]+\) "
        rf"loss {number} ce {number} decay {number} acc {number} lr (\d\.\d{{4}}e-\d\d) eta \d:\d\d:\d\d"
    )
    found = [line.fullmatch(text).groups() for text in lines]
    assert [(e, b) for e, b, _ in found] == [(e, b) for e in "12" for b in "246"]
    # the schedule has stepped when an epoch's last line is printed: 1 epoch of warm-up, then the base rate
    assert [lr for _, _, lr in found[:4]] == ["1.0000e-05", "1.0000e-05", "2.0000e-02", "2.0000e-02"]


def test_few_batches_are_all_printed_and_the_end_is_marked(root, tmp_path, capsys):
    build(root, tmp_path).train()
    out = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("epoch [") for line in out) == 6
    end = out.index("Finish training")
    assert out[end + 1] == "Finished training"
    result = out.index("=> result")
    assert result > end
    assert [line.split(":")[0] for line in out[result + 1 : result + 6]] == [
        "* total", "* correct", "* accuracy", "* error", "* macro_f1",
    ]  # fmt: skip
    assert any(re.fullmatch(r"Elapsed: \d:\d\d:\d\d", line) for line in out[result:])


@pytest.mark.parametrize(
    ("keys", "files"),
    [
        ({}, {"model.pth.tar-6"}),
        ({"TEST__FINAL_MODEL": "best_val"}, {"model.pth.tar-6", "model-best.pth.tar"}),
        ({"TRAIN__CHECKPOINT_FREQ": 4}, {"model.pth.tar-4", "model.pth.tar-6"}),
    ],
    ids=["last_step", "best_val", "every 4"],
)
def test_files_after_six_epochs(keys, files, root, tmp_path):
    build(root, tmp_path, OPTIM__MAX_EPOCH=6, **keys).train()
    assert set(os.listdir(tmp_path)) == {"head", "tensorboard"}
    assert set(os.listdir(tmp_path / "head")) == {*files, "checkpoint"}
    assert (tmp_path / "head" / "checkpoint").read_text() == "model.pth.tar-6\n"
    state = torch.load(tmp_path / "head" / "model.pth.tar-6")
    assert set(state) == {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}
    assert (state["epoch"], state["val_result"]) == (6, None)
    assert set(state["state_dict"]) == {"1.weight", "1.bias"}
    if "model-best.pth.tar" in files:
        assert isinstance(torch.load(tmp_path / "head" / "model-best.pth.tar")["val_result"], float)


def test_tensorboard_scalars(root, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    build(root, tmp_path, TEST__FINAL_MODEL="best_val").train()
    assert len(os.listdir(tmp_path / "tensorboard")) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    train = dict.fromkeys(["train/loss", "train/ce", "train/decay", "train/acc", "train/lr"], list(range(6)))
    names = ("accuracy", "error_rate", "macro_f1")
    assert steps == train | {f"val/{n}": [0, 1] for n in names} | {f"test/{n}": [1] for n in names}


def test_best_val_without_validation_never_sees_the_test_set(root, tmp_path):
    built = build(root, tmp_path, TEST__FINAL_MODEL="best_val", OPTIM__MAX_EPOCH=3)
    built.val_loader = None
    splits = []
    plain = built.test
    built.test = lambda split=None: splits.append((built.epoch, split)) or plain(split)
    built.train()
    assert splits == [(2, None)]
    files = ("model-best.pth.tar", "model.pth.tar-3")
    best, last = (load_checkpoint(tmp_path / "head" / file)["state_dict"] for file in files)
    assert torch.equal(best["1.weight"], last["1.weight"])


def test_no_test(root, tmp_path, capsys):
    build(root, tmp_path, TEST__NO_TEST=True, TEST__FINAL_MODEL="best_val").train()
    assert "=> result" not in capsys.readouterr().out
    assert (tmp_path / "head" / "model.pth.tar-2").is_file()
    assert not (tmp_path / "head" / "model-best.pth.tar").exists()


def test_each_epoch_asks_for_its_own_view(root, tmp_path):
    built = build(root, tmp_path, DATALOADER__TRAIN_X__SAMPLER="SequentialSampler")
    seen = []
    built.losses = lambda batch, plain=built.losses: seen.append(batch["img"].clone()) or plain(batch)
    built.train()
    assert not torch.equal(seen[0], seen[3])
    again = build(root, tmp_path / "again", DATALOADER__TRAIN_X__SAMPLER="SequentialSampler")
    for again.epoch in (1, 0):  # as a loop of a trainer's own sets it, that begins where it was resumed
        assert torch.equal(next(iter(again.train_loader_x))["img"], seen[3 * again.epoch])


def test_nan_names_the_place_and_the_last_checkpoint(root, tmp_path):
    built = build(root, tmp_path, OPTIM__MAX_EPOCH=4, TRAIN__RESUME_SECONDS=0.0)
    plain = built.losses

    def losses(batch):
        found = plain(batch)
        if (built.epoch, built.batch_idx) == (2, 1):
            found["ce"] = found["ce"] * float("nan")
        return found

    built.losses = losses
    message = r"Loss is infinite or NaN! \(epoch 3, batch 2; .*resume\.pt\)"
    with pytest.raises(FloatingPointError, match=message) as error:
        built.train()
    assert isinstance(error.value, UserError)
    assert torch.load(tmp_path / "resume.pt")["epoch"] == 2


def test_weights_that_a_last_step_ruined_are_not_saved(root, tmp_path):
    built = build(root, tmp_path, OPTIM__MAX_EPOCH=4)
    plain = built.update_lr

    def ruin():
        plain()
        if built.epoch == 1:
            built.linear.weight.data[0, 0] = float("inf")

    built.update_lr = ruin
    with pytest.raises(FloatingPointError, match=r"Weight 1.weight of head .*epoch 2; .*resume\.pt"):
        built.train()
    assert torch.load(tmp_path / "resume.pt")["models"]["head"]["model"]["1.weight"].isfinite().all()


@pytest.mark.parametrize(
    ("warmup", "skip", "best"), [(1, False, 1), (1, True, 3), (2, True, 3), (4, True, 4), (9, True, 4), (-1, True, 1)]
)
def test_epochs_of_the_warm_up_may_be_left_out_of_the_choice(root, tmp_path, warmup, skip, best):
    keys = {"TEST__FINAL_MODEL": "best_val", "TEST__SKIP_WARMUP": skip, "OPTIM__WARMUP_EPOCH": warmup}
    built = build(root, tmp_path, OPTIM__MAX_EPOCH=4, **keys)
    plain, scores = built.test, iter([90.0, 50.0, 60.0, 40.0])
    built.test = lambda split=None: next(scores) if split == "val" else plain(split)
    built.train()
    assert load_checkpoint(tmp_path / "head" / "model-best.pth.tar")["epoch"] == best  # the last, where all are warm-up
    assert [entry["val_accuracy"] for entry in built._history] == [90.0, 50.0, 60.0, 40.0]
