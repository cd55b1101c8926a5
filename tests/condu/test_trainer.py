"""Sessions of a stream: what they leave on disk, how a stream is evaluated, and what is refused before training."""

import pytest
import torch
from torch.nn import functional as F

from condu.expert import ConDU_Expert
from condu.state import ExpertStore, Stream
from dassl.clip import text_classifier
from dassl.utils import UserError
from tests.fixtures.condu_runs import EXPERT, runs, same_tensors, steps_counted, toy_root  # noqa: F401  fixtures

pytestmark = pytest.mark.filterwarnings("error:resume.pt does not hold")


def within(some, all_of_it):
    """Has the second dictionary all that is in the first?"""
    return all_of_it | some == all_of_it


@pytest.mark.parametrize("config", ["toy_ft", "toy_lora"])
def test_sessions_fuse_experts_and_test_the_decoupled_ones(config, runs):  # noqa: F811
    first = runs.go("digits", "TRAINER.CONDU.SESSION", 0, config=config)
    second = runs.go("colours", "TRAINER.CONDU.SESSION", 1, config=config)
    assert (first["session"], second["session"]) == (0, 1)
    assert second["stream_tasks"] == ["ToyDigits", "ToyColours"] and second["protocol"] == "mtil"
    assert second["condu"]["scale"] == "l1" and second["condu"]["iterations"] == 5
    assert second["preset"].startswith("paper, changed: OPTIM.") and "STREAM" not in second["preset"]
    stream = Stream.load(runs.stream)
    assert [task.name for task in stream.tasks] == ["ToyDigits", "ToyColours"]
    assert within(stream.tasks[0].recipe, first["recipe"]) and stream.tasks[1].prompts == second["prompts"]
    alone = runs.other("alone")
    again = alone.go("digits", config=config)  # one task: its decoupled expert is the expert itself
    fused = Stream.load(alone.stream).fusion.decouple("ToyDigits")
    for name, value in alone.expert("digits")[0].items():
        torch.testing.assert_close(fused[name], value, rtol=1e-5, atol=1e-8)
    assert again["correct"] == alone.go("digits", name="own", config=config, **EXPERT)["correct"]
    assert again["correct"] == first["correct"]


def test_prototypes_come_from_the_pretrained_features_of_the_training_images(runs):  # noqa: F811
    runs.go("digits", "DATASET.NUM_SHOTS", 2)
    trainer = runs.built("digits", "DATASET.NUM_SHOTS", 2)
    clip, items = trainer.pretrained, trainer.dm.dataset.train_x
    transform = trainer.test_loader.dataset.transform
    rows = []
    text = F.normalize(text_classifier(clip, trainer.classnames, trainer.prompts), dim=-1)
    for label in range(10):
        images = torch.stack([transform(item.load_image()) for item in items if item.label == label])
        assert len(images) == 2
        image = F.normalize(clip.encode_image(images), dim=-1).mean(0)
        rows.append(F.normalize((image + text[label]) / 2, dim=0))
    stored = Stream.load(runs.stream).prototypes[0]
    torch.testing.assert_close(stored, torch.stack(rows).detach(), rtol=1e-4, atol=1e-5)


def test_another_order_is_fused_without_training(runs, monkeypatch):  # noqa: F811
    steps = steps_counted(monkeypatch)
    for task in ("digits", "colours"):
        runs.go(task)
    assert steps == ["ToyDigits"] * 5 + ["ToyColours"] * 5
    for task in ("colours", "digits"):
        runs.go(task, "TRAINER.CONDU.STREAM", runs.folder / "turned", name=f"turned_{task}")
    assert len(steps) == 10
    one, two = Stream.load(runs.stream), Stream.load(runs.folder / "turned")
    assert [task.name for task in two.tasks] == ["ToyColours", "ToyDigits"]
    assert {task.expert for task in one.tasks} == {task.expert for task in two.tasks}


def test_a_stream_is_evaluated_known_tasks_by_their_expert_others_by_the_vote(runs, capsys):  # noqa: F811
    trained = runs.go("digits")
    runs.go("colours", "TRAINER.CONDU.HISTORY", "True")
    evaluate = ("--eval-only", "--model-dir", runs.stream)
    known = runs.go("digits", *evaluate, "TRAINER.CONDU.SESSION", 0, name="known0")
    assert known["correct"] == trained["correct"] and known["total"] == 20  # session 0 included
    assert known["condu"]["answer"] == "expert" and known["stream_tasks"] == ["ToyDigits"]
    assert f"Evaluating on ToyDigits\nTop-1 accuracy: {trained['metrics']['accuracy']:.2f}" in capsys.readouterr().out
    unseen = runs.go("shapes", *evaluate, name="unseen")
    assert unseen["condu"]["answer"] == "vote" and unseen["total"] == 32 and "lr" not in unseen["recipe"]
    union = ("TRAINER.CONDU.TASK_AGNOSTIC", "True", "TRAINER.CONDU.LABELS", "union")
    agnostic = runs.go("digits", *evaluate, *union, name="agnostic")
    assert agnostic["condu"]["answer"] == "vote" and agnostic["condu"]["labels"] == "union"
    assert within(Stream.load(runs.stream).tasks[0].recipe, agnostic["recipe"])
    assert agnostic["preset"] == trained["preset"]
    own = runs.go("digits", "--eval-only", "--model-dir", runs.experts, name="own", **EXPERT)
    assert own["correct"] == trained["correct"]


def test_half_is_what_the_next_session_finds(runs):  # noqa: F811
    runs.go("digits", "TRAINER.CONDU.HALF", "True")
    trained = runs.results("digits")
    known = runs.go("digits", "--eval-only", "--model-dir", runs.stream, name="known")
    unified = Stream.load(runs.stream).fusion.unified
    assert known["correct"] == trained["correct"]
    assert all(torch.equal(value, value.bfloat16().float()) for value in unified.values())


@pytest.fixture
def untrained(monkeypatch):
    """Fails the test if a step is made."""
    return lambda: monkeypatch.setattr(ConDU_Expert, "forward_backward", lambda *args: pytest.fail("it trained"))


def test_a_session_that_does_not_fit_the_stream_is_refused(runs, untrained):  # noqa: F811
    runs.go("digits")
    runs.go("colours")
    untrained()
    for match, task, *words in (
        (r"SESSION is 1, but the stream .* has 2 tasks \(ToyDigits, ToyColours\): ToyShapes would be session 2",
         "shapes", "TRAINER.CONDU.SESSION", 1),
        (r"ToyDigits is session 0 of the stream in .* already \(ToyDigits, ToyColours\)", "digits"),
        ("ToyColours is the last task .* by another training: lr 0.001, asked for 0.01", "colours", "OPTIM.LR", 0.01),
        ("space .*full.*, asked for .*lora_factors", "shapes", "TRAINER.CONDU.SPACE", "lora"),
        ("scale 'l1', asked for 'tensor_mean'", "shapes", "TRAINER.CONDU.SCALE", "tensor_mean"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=match):
            runs.go(task, *words, name="refused")
    with pytest.raises(UserError, match="scale 'l1', asked for 'none'"):
        runs.go("digits", "--eval-only", "--model-dir", runs.stream, "TRAINER.CONDU.SCALE", "none", name="refused")
    with pytest.raises(UserError, match="sessions, not epochs"):
        runs.go("digits", "--eval-only", "--model-dir", runs.stream, "--load-epoch", 1, name="refused")
    with pytest.raises(UserError, match="no expert of ToyShapes; there: ToyColours, ToyDigits"):
        runs.go("shapes", "--eval-only", "--model-dir", runs.experts, name="refused", **EXPERT)
    assert [task.name for task in Stream.load(runs.stream).tasks] == ["ToyDigits", "ToyColours"]


def test_an_expert_of_another_recipe_is_not_taken(runs, untrained):  # noqa: F811
    runs.go("digits", **EXPERT)
    untrained()
    with pytest.raises(UserError, match=r"trained otherwise.*iterations 5, asked for 6"):
        runs.go("digits", "TRAINER.CONDU.ITERATIONS", 6, name="refused")
    assert ExpertStore(runs.experts).names() == ["ToyDigits"]


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ('"Aircraft" is no "Task=rate"', ["TRAINER.CONDU.LR_OF", "['Aircraft']"]),
        ('"Aircraft=fast" is no', ["TRAINER.CONDU.LR_OF", "['Aircraft=fast']"]),
        ('"=1e-3" is no', ["TRAINER.CONDU.LR_OF", "['=1e-3']"]),
        ('"Aircraft=-1" is no', ["TRAINER.CONDU.LR_OF", "['Aircraft=-1']"]),
        ("A has two rates, 0.1 and 0.2", ["TRAINER.CONDU.LR_OF", "['A=0.1', 'A=0.2']"]),
        ("ITERATIONS = 0", ["TRAINER.CONDU.ITERATIONS", "0"]),
        ("LABEL_SMOOTHING = 1.0", ["TRAINER.CONDU.LABEL_SMOOTHING", "1.0"]),
        ("PREC", ["TRAINER.CONDU.PREC", "fp16"]),
        ("LR_SCHEDULER", ["OPTIM.LR_SCHEDULER", "cosine"]),
        ("no validation", ["TEST.FINAL_MODEL", "best_val"]),
        ("VIEW_SEEDS", ["INPUT.VIEW_SEEDS", "False"]),
        ("K_TRANSFORMS", ["DATALOADER.K_TRANSFORMS", "2"]),
        ("VOTE.K = 0, expected", ["TRAINER.CONDU.VOTE.K", "0"]),
        ("give --seed", ["SEED", "-1"]),
        ("START is for ConDU_Expert", ["TRAINER.CONDU.START", "experts/ToyDigits"]),
    ],
)
def test_bad_settings_are_refused(match, words, runs, untrained):  # noqa: F811
    untrained()
    with pytest.raises(UserError, match=match):
        runs.go("digits", *words)
