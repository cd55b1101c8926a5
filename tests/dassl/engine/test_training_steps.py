"""Single steps of a trainer, pairs of batches, loading, testing."""

import os
import re

import pytest
import torch
from torch import nn

from dassl.engine import SimpleTrainer, TrainerBase, TrainerX, TrainerXU, build_trainer
from dassl.utils import MissingFile, UserError, load_checkpoint, read_json, set_random_seed
from tests.fixtures import dassl_style_world
from tests.fixtures.dassl_style_world import build, style_config

root = dassl_style_world.root  # a fixture


# Steps


def accumulated(root, output, batch_size, accumulate):
    """Weights after 2 epochs over the images in order."""
    cfg = style_config(root, output, "ShortLosses", TRAIN__ACCUMULATE=accumulate, OPTIM__WARMUP_EPOCH=0)
    cfg.DATALOADER.TRAIN_X.SAMPLER = "SequentialSampler"
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = batch_size
    cfg.TRAINER.SHORT.NOISE = 0.0
    set_random_seed(1)
    built = build_trainer(cfg)
    built.model[2][0].p = 0.0
    built.train()
    return built.linear.weight.detach()


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_accumulated_gradients_equal_the_large_batch(accumulate, root, tmp_path):
    large = accumulated(root, tmp_path / "large", 4 * accumulate, 1)
    small = accumulated(root, tmp_path / "small", 4, accumulate)
    torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(small, accumulated(root, tmp_path / "each", 4, 1), rtol=1e-3)


def test_a_short_rest_makes_a_step_of_its_own(root, tmp_path):
    """6 batches by 4: steps on 4 and on 2 of them, each a mean."""
    built = build(root, tmp_path, DATALOADER__TRAIN_X__BATCH_SIZE=4, TRAIN__ACCUMULATE=4, OPTIM__MAX_EPOCH=1)
    steps = []
    built.optim.register_step_post_hook(lambda *_: steps.append(built.batch_idx))
    built.train()
    assert steps == [3, 5]


def test_accumulation_is_refused_where_the_trainer_steps(root, tmp_path):
    with pytest.raises(UserError, match="StylePrompt steps by itself"):
        build(root, tmp_path, "StylePrompt", TRAIN__ACCUMULATE=2).train()
    with pytest.raises(UserError, match="ACCUMULATE = 0, expected int, at least 1"):
        build(root, tmp_path, TRAIN__ACCUMULATE=0).train()


class Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.idle = nn.Parameter(torch.ones(1))  # in no loss


def prograd(b, lambda_=1):
    """Minus the update that gradients a = (1, 1) and `b` give with SGD of rate 1."""
    base, model = TrainerBase(), Vector()
    base.register_model("model", model, torch.optim.SGD(model.parameters(), lr=1.0))
    base.register_model("frozen", nn.Linear(1, 1))
    base.prograd_backward_and_update(model.w.sum(), (model.w * torch.tensor(b)).sum(), lambda_)
    return (-model.w).tolist()


@pytest.mark.parametrize(
    ("b", "lambda_", "update"),
    [
        ((1.0, 0.0), 1, [1, 1]),
        ((-1.0, 0.0), 1, [0, 1]),
        ((-3.0, 0.0), 1, [0, 1]),
        ((-1.0, 0.0), 0.5, [0.5, 1]),
        ((0.0, 0.0), 1, [1, 1]),
    ],
)
def test_prograd_step(b, lambda_, update):
    assert prograd(b, lambda_) == update


def test_prograd_refuses_either_loss_if_it_is_nan():
    base, model = TrainerBase(), Vector()
    base.register_model("model", model, torch.optim.SGD(model.parameters(), lr=1.0))
    for a, b in ((1.0, float("nan")), (float("inf"), 1.0)):
        with pytest.raises(FloatingPointError, match="Loss is infinite or NaN!"):
            base.prograd_backward_and_update((model.w + 1).sum() * a, (model.w + 1).sum() * b)
    assert model.w.tolist() == [0, 0]


# Labelled and unlabelled batches


@pytest.mark.parametrize(("count", "batches"), [("train_x", 3), ("train_u", 6), ("smaller_one", 3)])
def test_pairs_of_batches(count, batches, root, tmp_path):
    keys = {"DATALOADER__TEST__BATCH_SIZE": 4, "TRAIN__COUNT_ITER": count, "OPTIM__MAX_EPOCH": 1}
    built = build(root, tmp_path, "ShortPairs", **keys)
    built.train()
    assert built.num_batches == len(built.seen) == batches
    unlabelled = [paths for _, paths in built.seen]
    assert len(set(unlabelled)) == batches  # the longer loader is not restarted
    labelled = [path for paths, _ in built.seen for path in paths]
    assert len(set(labelled[:24])) == 24
    if batches == 6:
        assert set(labelled[24:]) == set(labelled[:24])  # the shorter one is


def test_unknown_count_is_refused(root, tmp_path):
    with pytest.raises(ValueError, match="smaller_one"):
        build(root, tmp_path, "ShortPairs", TRAIN__COUNT_ITER="smaller").train()


# Loading and testing


def test_load_model_finds_both_spellings_the_best_and_the_last(root, tmp_path, capsys):
    built = build(root, tmp_path, TRAIN__CHECKPOINT_FREQ=1, OPTIM__MAX_EPOCH=3)
    built.train()
    head = tmp_path / "head"
    (head / "model.pth.tar-1").rename(head / "model-1.pth.tar")
    for epoch, file in ((1, "model-1.pth.tar"), (2, "model.pth.tar-2"), (None, "model.pth.tar-3")):
        built.load_model(str(tmp_path), epoch=epoch)
        assert torch.equal(built.linear.weight, load_checkpoint(head / file)["state_dict"]["1.weight"])
    built.save_model(0, str(tmp_path), val_result=12.5, model_name="model-best.pth.tar")
    built.load_model(str(tmp_path))
    assert "model-best.pth.tar to head (epoch=1, val_result=12.50)" in capsys.readouterr().out
    message = "looked for model.pth.tar-9 .*found model-1.pth.tar, model-best.pth.tar"
    with pytest.raises(MissingFile, match=message):
        built.load_model(str(tmp_path), epoch=9)
    with pytest.raises(FileNotFoundError, match="no model file"):
        built.load_model(str(tmp_path / "nowhere"))
    built.load_model("")
    assert "load_model() is skipped" in capsys.readouterr().out


def test_load_model_takes_what_fits_and_nothing_else(root, tmp_path):
    built = build(root, tmp_path)
    weight, bias = torch.full((6, 16), 0.5), torch.zeros(6)
    cases = {
        "foreign": ({"other": weight}, "lacks 1.bias, 1.weight; it has besides other"),
        "partial": ({"1.weight": weight}, "lacks 1.bias; it has besides nothing"),
        "shape": ({"1.weight": weight[:4], "1.bias": bias[:4]}, r"head: .*size mismatch"),
    }
    for name, (state, message) in cases.items():
        (tmp_path / name / "head").mkdir(parents=True)
        torch.save({"state_dict": state, "epoch": 1}, tmp_path / name / "head" / "model-best.pth.tar")
        with pytest.raises(UserError, match=re.compile(message, re.DOTALL)):
            built.load_model(str(tmp_path / name))
    (tmp_path / "good" / "head").mkdir(parents=True)
    state = {"module.1.weight": weight, "module.1.bias": bias, "token_prefix": torch.zeros(3)}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "good" / "head" / "model-best.pth.tar")
    built.load_model(str(tmp_path / "good"))
    assert torch.equal(built.linear.weight, weight)


def test_output_test_is_test_with_a_file(root, tmp_path):
    built = build(root, tmp_path)
    assert built.output_test() == built.test()
    rows = read_json(tmp_path / "output.json")
    assert len(rows) == 24
    correct = sum(row["predict"].index(max(row["predict"])) == row["gt"] for row in rows.values())
    assert correct == built.evaluator.correct
    assert all(os.path.isfile(path) for path in rows)


def test_splits(root, tmp_path):
    built = build(root, tmp_path)
    built.test(split="val")
    assert built.evaluator.total == 18
    built.test("test")
    assert built.evaluator.total == 24
    built.val_loader = None
    built.test(split="val")
    assert built.evaluator.total == 24
    with pytest.raises(UserError, match="vall"):
        built.test("vall")


def test_abstract_methods_say_so(root, tmp_path):
    for verb in ("run_epoch", "test"):
        with pytest.raises(NotImplementedError):
            getattr(TrainerBase(), verb)()
    assert not hasattr(SimpleTrainer, "losses")

    def build_model(self):
        model = nn.Linear(1, 1)
        self.register_model("m", model, torch.optim.SGD(model.parameters(), lr=0.1))

    for base in (TrainerX, TrainerXU):
        trainer = type("Nothing", (base,), {"build_model": build_model})(style_config(root, tmp_path, "Nothing"))
        trainer.train_loader_u = trainer.train_loader_x
        with pytest.raises(NotImplementedError, match="Nothing defines neither losses"):
            trainer.train()
