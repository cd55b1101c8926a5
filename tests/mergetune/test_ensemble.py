"""Weight and output ensembles: their ends are the parents, and validation alone chooses between them."""

import json

import pytest
import torch
import torch.nn.functional as F

from dassl.engine.launch import AlreadyFinished
from dassl.merging.methods import wise_ft
from dassl.utils import UserError
from mergetune.ensemble import (
    accuracy,
    choose,
    ensemble,
    logits_at,
    main,
    mix_outputs,
    read_alphas,
)
from mergetune.lmc import interpolate
from tests.fixtures.toy_objects import runs  # noqa: F401

ALPHAS = [0.0, 0.5, 1.0]


def two_models():
    g = torch.Generator().manual_seed(0)
    return (10 * torch.randn(9, 5, generator=g) for _ in range(2))


@pytest.mark.parametrize("outputs", ["probabilities", "logits"])
def test_output_ensembles_end_at_their_parents(outputs):
    first, last = two_models()
    for alpha, parent in ((0.0, first), (1.0, last)):
        mixed = mix_outputs(first, last, alpha, outputs)
        expected = parent.softmax(-1) if outputs == "probabilities" else parent
        torch.testing.assert_close(mixed, expected)
    half = mix_outputs(first, last, 0.5, outputs)
    torch.testing.assert_close(half, mix_outputs(last, first, 0.5, outputs))
    torch.testing.assert_close(mix_outputs(first, first, 0.3, outputs).argmax(1), first.argmax(1))


def test_of_a_linear_head_mixing_weights_is_mixing_logits():
    g = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(9, 16, generator=g), dim=-1)
    heads = [{"weight": torch.randn(5, 16, generator=g)} for _ in range(2)]
    by_weights = image @ wise_ft(*heads, 0.3)["weight"].t()
    by_logits = mix_outputs(*(image @ head["weight"].t() for head in heads), 0.3, "logits")
    torch.testing.assert_close(by_weights, by_logits)
    torch.testing.assert_close(wise_ft(*heads, 0.3), interpolate(*heads, 0.3))


def test_values_of_alpha():
    assert read_alphas("0:1:0.1") == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert read_alphas("0.5,0.2") == [0.2, 0.5] and read_alphas("0.3") == [0.3]
    for text in ("0:2:0.5", "half", "0:1:0", "1:0:0.1", "0:1"):
        with pytest.raises(UserError, match="--alphas"):
            read_alphas(text)


def test_the_best_alpha_and_of_equals_the_one_nearest_to_zero_shot():
    assert choose([0.0, 0.5, 1.0], [40.0, 42.0, 41.0]) == 0.5
    assert choose([0.0, 0.5, 1.0], [41.0, 42.0, 42.0]) == 0.5
    assert choose([0.0, 0.5, 1.0], [42.0, 42.0, 42.0]) == 0.0


@pytest.mark.parametrize("name", ["lp", "ft"])
@pytest.mark.parametrize("kind", ["weight", "output"])
def test_the_sweep_ends_at_both_parents(runs, name, kind):  # noqa: F811
    out = runs.folder / f"{kind}-{name}"
    found = ensemble(runs.folder / name, alphas=ALPHAS, kind=kind, tests=["toy_objects_sketch"], out=out)
    trainer = runs.built({"lp": "LinearProbe", "ft": "FineTune"}[name], "new")
    logits, labels = logits_at(trainer, "test", trainer.zero_shot_weights())
    trained = json.loads((runs.folder / name / "results.json").read_text())
    assert found["test"]["ToyObjects"][0] == accuracy(logits, labels)
    assert found["test"]["ToyObjects"][-1] == pytest.approx(trained["metrics"]["accuracy"])
    assert set(found["test"]) == {"ToyObjects", "ToyObjectsSketch"}
    place = ALPHAS.index(found["alpha"])
    for data_set, curve in found["test"].items():
        result = json.loads((out / data_set / "results.json").read_text())
        assert result["metrics"]["accuracy"] == pytest.approx(curve[place])
        assert result["dataset"] == data_set and result["source"] == "ToyObjects"
        assert result["trainer"] == trained["trainer"] and result["protocol"] == "robust"
        assert result["alpha_chosen_on"] == "validation" and result["preset"].endswith(f" + {kind} ens.")
        assert result["merge"]["alpha"] == found["alpha"] and result["data_seen"] == "all images of all classes"
    assert json.loads((out / "sweep.json").read_text()) == json.loads(json.dumps(found))


def test_alpha_is_chosen_by_validation_accuracy(runs):  # noqa: F811
    found = ensemble(runs.folder / "lp", alphas=ALPHAS, out=runs.folder / "chosen")
    trainer = runs.built("LinearProbe", "new")
    trainer.load_model(str(runs.folder / "lp"))
    zero_shot, fine_tuned = trainer.zero_shot_weights(), {"weight": trainer.model.weight.detach().clone()}
    with torch.no_grad():
        for alpha, measured in zip(ALPHAS, found["validation"], strict=True):
            trainer.model.weight.copy_(wise_ft(zero_shot, fine_tuned, alpha)["weight"])
            assert trainer.test("val") == pytest.approx(measured)
    assert found["alpha"] == choose(ALPHAS, found["validation"]) and found["alpha_chosen_on"] == "validation"


def test_the_test_images_cannot_choose(runs, monkeypatch):  # noqa: F811
    """Whatever is true of the test images, alpha stays; without validation images nothing is chosen."""
    import mergetune.ensemble as module

    seen, before = [], module.logits_at
    monkeypatch.setattr(module, "logits_at", lambda t, split, w: (seen.append(split), before(t, split, w))[1])
    chosen = ensemble(runs.folder / "ft", alphas=ALPHAS, out=runs.folder / "watched")["alpha"]
    assert seen[: seen.count("val")] == ["val"] * 3 and set(seen[3:]) == {"test"}
    assert chosen == json.loads((runs.folder / "watched" / "sweep.json").read_text())["alpha"]
    monkeypatch.setattr("dassl.engine.trainer.SimpleTrainer.has_validation", lambda self: False)
    with pytest.raises(UserError, match="no validation images to choose alpha on"):
        ensemble(runs.folder / "lp", alphas=ALPHAS, out=runs.folder / "no-val")
    given = ensemble(runs.folder / "lp", alphas=[0.5], out=runs.folder / "no-val")
    assert given["alpha"] == 0.5 and given["alpha_chosen_on"] == "given" and given["validation"] is None


def test_stage_2_and_its_command(runs):  # noqa: F811
    runs.run("LinearProbe_LMC", "lmc", "--resume-coop", runs.folder / "lp")
    found = main([str(runs.folder / "lmc"), "--alphas", "0,1", "--root", str(runs.folder / "data")])
    assert found["preset"].startswith("paper") and found["preset"].endswith(" + weight ens.")
    result = json.loads((runs.folder / "lmc" / "ensemble_weight" / "ToyObjects" / "results.json").read_text())
    assert result["trainer"] == "LinearProbe_LMC" and result["command"].startswith("python -m mergetune.ensemble ")
    with pytest.raises(AlreadyFinished, match="--overwrite"):
        main([str(runs.folder / "lmc"), "--alphas", "0,1"])


def test_bad_input_is_one_error_before_any_work(runs, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="no run folder"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match="--test.*ToyObjectsSketch"):
        main([str(runs.folder / "lp"), "--test", "toy_objects_sketsh", "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="knows no others"):
        main([str(runs.folder / "lp"), "--test", "toy_digits", "--alphas", "0.5", "--out", str(tmp_path / "out")])
