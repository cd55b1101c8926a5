"""A training step never waits for its device, which tensors count here: only a due line is read, with all before it.

What comes of it is compared with the same run on a CPU, which reads and checks each step: the same numbers to the bit.
"""

import re

import pytest
import torch

from dassl.engine.losses import project_conflicting
from dassl.engine.resume import ResumeState
from dassl.utils import UserError
from tests.dassl.engine.test_cost import bench  # noqa: F401  (fixture)
from tests.fixtures.counted_device import DEVICE, Counted, move, on_device, own_clips
from tests.fixtures.dassl_style_world import build, write_images


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root of small PNGs; a first trainer is built of it, as some imports draw random numbers."""
    folder = tmp_path_factory.mktemp("images")
    build(write_images(folder), folder / "first")
    return folder


WEIGHTS = {"TRAINER__LMC__SPACE": "weights", "TRAINER__LMC__DISTANCE": "l2sq", "TRAINER__COOP__CTX_INIT": "True"}
CASES = {
    "CoOp": ("CoOp", {}),
    "bf16": ("CoOp", {"TRAINER__COOP__PREC": "bf16"}),
    "kgcoop": ("KgCoOp", {"TRAINER__COOP__PREC": "bf16"}),
    "features": ("CoOp_LMC", {"TRAIN__ACCUMULATE": 2}),
    "features bf16": ("CoOp_LMC", {"TRAINER__COOP__PREC": "bf16"}),
    "weights": ("CoOp_LMC", WEIGHTS | {"TRAINER__LMC__TAU": 0.5}),
    "probe": ("LinearProbe", {"OPTIM__NAME": "adamw"}),
    "probe lmc": ("LinearProbe_LMC", {"TRAINER__HEAD__PREC": "bf16"}),
    "mma": ("MultiModalAdapter", {}),
    "promptsrc": ("PromptSRC", {}),
    "promptkd": ("PromptKD", {"OPTIM__NAME": "adam"}),
    "promptkd lmc": ("PromptKD_LMC", {"TRAINER__PROMPTKD__PREC": "bf16"}),
}
EVERY = 4  # PRINT_FREQ


def watched(trainer, counter=None):
    """Train, all epochs on the device that counts -> [what was waited for in each]."""
    waits = []
    after = trainer.after_epoch

    def before():
        if trainer.device != DEVICE:
            move(trainer)
            if hasattr(trainer, "text_features"):  # the order in which the texts run is read once
                trainer.text_features()
        counter.waits.clear()

    if counter:
        trainer.before_epoch = before
    trainer.after_epoch = lambda: (waits.append(list(counter.waits) if counter else []), after())
    trainer.train()
    return waits


def told(capsys):
    """The lines of batches, without their times."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch [")]
    return [re.sub(r"time .*? \(.*?\) data .*? \(.*?\)|eta .*", "", line) for line in lines]


def points(folder):
    """{tag: [(step, value), ...]} of TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("case", CASES)
def test_a_run_waits_only_where_a_line_is_due(case, bench, capsys, tmp_path, monkeypatch):  # noqa: F811
    """In bf16 the tiny CLIP computes otherwise on a CPU: there the other run is one that reads each batch."""
    own_clips(monkeypatch)
    name, more = CASES[case]
    keys = {"TRAIN__PRINT_FREQ": EVERY, "OPTIM__MAX_EPOCH": 2, "TEST__NO_TEST": True, "FEATURES__VIEWS": 1}
    keys |= {"DATALOADER__TRAIN_X__BATCH_SIZE": 2} | more
    bench.words(name, "stage1")  # which it makes the first time, and draws for
    bf16 = "bf16" in more.values()
    plain = bench.built(name, tmp_path / "plain", **keys | ({"TRAIN__PRINT_FREQ": 1} if bf16 else {}))
    with Counted() as counter:
        waits = watched(plain, counter if bf16 else None)
    assert waits == [["cpu"] * plain.num_batches * bf16] * 2
    lines = [line for line in told(capsys) if int(re.search(r"batch \[(\d+)", line)[1]) % EVERY == 0]
    trainer = bench.built(name, tmp_path / "counted", **keys)
    with Counted() as counter:
        waits = watched(trainer, counter)
    assert trainer.num_batches == 6  # a line at 4, the end of the epoch
    assert waits == [["cpu"] * 2] * 2
    assert told(capsys) == lines and len(lines) == 2
    assert trainer._history == plain._history
    found = points(tmp_path / "counted")
    assert found == points(tmp_path / "plain") and len(found["train/loss"]) == 2 * trainer.num_batches
    there, expected = (part.model.state_dict() for part in (trainer, plain))
    for key, value in expected.items():
        assert torch.equal(there[key].held, getattr(value, "held", value)), key


def short(root, folder, counted=False, **keys):
    """ShortLosses, 2 epochs of 6 batches, with lines every 4."""
    keys = {"TRAIN__PRINT_FREQ": EVERY, "DATALOADER__TRAIN_X__BATCH_SIZE": 4} | keys
    trainer = build(root, folder, **keys)
    if counted:
        move(trainer)
    return trainer


def test_few_batches_are_told_at_the_end_of_the_epoch(root, tmp_path, capsys):
    keys = {"TRAIN__PRINT_FREQ": 10, "TEST__NO_TEST": True}
    short(root, tmp_path / "plain", **keys).train()
    lines = told(capsys)
    with Counted() as counter:
        assert watched(short(root, tmp_path / "counted", True, **keys), counter) == [["cpu"]] * 2
    assert told(capsys) == lines and len(lines) == 12


def ruined(trainer, epoch, batches):
    """Its loss is no number in these batches of that epoch."""
    plain = trainer.losses

    def losses(batch):
        found = plain(batch)
        if trainer.epoch == epoch and trainer.batch_idx in batches:
            found["ce"] = found["ce"] * float("nan")
        return found

    trainer.losses = losses
    return trainer


@pytest.mark.parametrize("batches", [[0], [1, 2], [3], [4], [5]])
@pytest.mark.parametrize("keys", [{}, {"TRAIN__ACCUMULATE": 2}], ids=["", "accumulated"])
def test_nan_names_its_own_batch_and_nothing_is_written_after_it(batches, keys, root, tmp_path):
    """All later losses are none either: the first is named."""
    errors, trainers = [], []
    for counted in (False, True):
        with Counted(), pytest.raises(UserError) as error:
            trainers.append(ruined(short(root, tmp_path / str(counted), counted, **keys), 1, batches))
            trainers[-1].train()
        trainers[-1].close_writer()
        errors.append(str(error.value).replace(str(tmp_path / str(counted)), ""))
    place = f"epoch 2, batch {batches[0] + 1}; last good checkpoint: /resume.pt"
    assert errors[0] == errors[1] == f"Loss is infinite or NaN! ({place})"
    written = points(tmp_path / "True")
    assert written == points(tmp_path / "False")
    assert written["train/loss"][-1][0] == 6 + batches[0] - 1
    states = [torch.load(tmp_path / folder / "resume.pt", weights_only=False)["epoch"] for folder in ("False", "True")]
    assert states == [1, 1]


@pytest.mark.parametrize("write", ["save_model", "resume.pt"])
def test_a_loss_is_read_before_anything_is_written(write, root, tmp_path):
    """Weights are whole there, for the step that would ruin them is not taken yet."""
    with Counted():
        trainer = ruined(short(root, tmp_path, True), 0, [1])
        plain = trainer.model_zero_grad

        def zero_grad():
            if trainer.batch_idx == 1:
                if write == "save_model":
                    trainer.save_model(0, str(tmp_path))
                ResumeState.save(trainer._progress)
            plain()

        trainer.model_zero_grad = zero_grad
        with pytest.raises(UserError, match="epoch 1, batch 2;"):
            trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tensorboard"]


def test_what_stops_within_an_epoch_saves_the_losses_so_far(root, tmp_path, monkeypatch):
    """After batch 3, of which no line has told."""
    kept = {}
    monkeypatch.setattr("dassl.engine.trainer.stop", lambda: (_ for _ in ()).throw(SystemExit))
    for counted in (False, True):
        with Counted(), pytest.raises(SystemExit):
            trainer = short(root, tmp_path / str(counted), counted)
            monkeypatch.setattr(
                "dassl.engine.signals.should_stop", lambda trainer=trainer: getattr(trainer, "batch_idx", 0) == 2
            )
            trainer.train()
        kept[counted] = torch.load(tmp_path / str(counted) / "resume.pt", weights_only=False)["within"]
        assert len(points(tmp_path / str(counted))["train/loss"]) == 3
    assert kept[True]["losses"] == kept[False]["losses"] and kept[True]["batches"] == 3


def test_a_trainer_that_steps_by_itself_gives_numbers_and_tensors(root, tmp_path, capsys):
    """What it does itself waits; its tensors may change once they were given, and nothing but them is read."""
    lines = []
    for counted in (False, True):
        with Counted() as counter:
            trainer = short(root, tmp_path / str(counted), counted, TEST__NO_TEST=True)
            total = torch.zeros(1, dtype=torch.float64)
            total = on_device(total) if counted else total

            def step(batch, trainer=trainer, total=total):
                losses = trainer.losses(batch)
                trainer.model_backward_and_update(losses["ce"])
                total.add_(losses["ce"].detach())
                trainer.update_lr() if trainer.batch_idx + 1 == trainer.num_batches else None
                if trainer.batch_idx == 4:
                    return None
                more = {"odd": 7} if trainer.batch_idx % 2 else {}
                return {"loss": losses["ce"], "total": total, "number": losses["ce"].item() / 2, **more}

            trainer.forward_backward = step
            waits = watched(trainer, counter if counted else None)
        lines.append(told(capsys))
    reads = ["_local_scalar_dense"]
    assert waits == [[*reads * 4, "cpu", *reads, "cpu"]] * 2
    assert lines[0] == lines[1] != []


def test_what_is_no_number_is_refused(root, tmp_path):
    for counted in (False, True):
        with Counted():
            trainer = short(root, tmp_path / str(counted), counted)
            trainer.log_metrics = lambda trainer=trainer, **_: trainer.step_metrics.update(acc=trainer.linear.weight[0])
            with pytest.raises(ValueError, match="A meter takes one number, but got a tensor of shape"):
                trainer.train()
            trainer.close_writer()


def test_gradients_that_part_are_projected_without_a_look_at_them():
    with Counted() as counter:
        for b in ([1.0, 0.0], [-1.0, 1.0], [0.0, 0.0], [float("nan"), 1.0]):
            a, b = torch.tensor([1.0, 0.5]), torch.tensor(b)
            found = project_conflicting(on_device(a), on_device(b))
            assert torch.equal(found.held, project_conflicting(a, b))
        along = project_conflicting(torch.tensor([1.0, 0.5]), torch.tensor([-1.0, 0.0]))
        assert not counter.waits and along.tolist() == [0.0, 0.5]


def test_the_device_counts():
    """What would wait on a GPU does so here."""
    waiting = {
        "_local_scalar_dense": [lambda x: x[0].item(), lambda x: float(x[0]), lambda x: bool(x[0] > 0)],
        "tolist": [lambda x: x.tolist()],
        "to": [lambda x: x.to("cpu"), lambda x: x.to(torch.device("cpu"), torch.float64)],
        "cpu": [lambda x: x.cpu()],
        "index": [lambda x: x[x > 0]],
        "nonzero": [lambda x: x.nonzero()],
        "to the device": [lambda x: x + torch.ones(3).to(x.device)],
        "copy_ between host and device": [lambda x: torch.zeros(3).copy_(x), lambda x: x.copy_(torch.zeros(3))],
    }
    with Counted() as counter:
        for name, calls in waiting.items():
            for call in calls:
                counter.waits.clear()
                call(on_device(torch.ones(3)))
                assert counter.waits == [name]
        counter.waits.clear()
        x = on_device(torch.ones(3, requires_grad=True)).requires_grad_()
        (x * torch.ones(3).to(x.device, non_blocking=True)).square().sum().backward()
        assert counter.waits == [] and x.grad.held.tolist() == [2, 2, 2]
        with pytest.raises(AssertionError, match="mul of two devices"):
            x * torch.ones(3)
