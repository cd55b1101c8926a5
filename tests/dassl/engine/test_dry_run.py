"""train.py --check: what it says of good and bad runs, that it leaves nothing, and its peak memory beside the run's."""

import json
import shutil

import pytest
import torch

import train
from condu.state import sessions
from dassl.config import get_cfg_default
from dassl.engine import dry_run as module
from dassl.engine.dry_run import FirstBatches, clock, compare_anchor, dry_run
from dassl.report.protocols.against import Published
from dassl.utils import UserError
from tests.fixtures.any_trainer import line
from tests.fixtures.condu_runs import runs as stream_runs  # noqa: F401  a fixture
from tests.fixtures.condu_runs import toy_root  # noqa: F401  a fixture
from tests.fixtures.dassl_style_world import style_config, write_images
from tests.fixtures.interpreter import python


@pytest.fixture
def check(pets_root, tmp_path, capsys):
    """`check(trainer, *words, root=, **keys)` -> (numbers, lines); nothing may be left."""

    def go(trainer, *words, root=pets_root, **keys):
        before = everything(tmp_path)
        capsys.readouterr()
        keys = {"FEATURES__DIR": tmp_path / "features"} | keys
        values = train.main(line(trainer, root, tmp_path / "out", *words, "--check", **keys))
        assert everything(tmp_path) == before
        return values, capsys.readouterr().out.splitlines()

    go.run = lambda trainer, name, *words, **keys: train.main(
        line(trainer, pets_root, tmp_path / name, *words, **{"FEATURES__DIR": tmp_path / "features"} | keys)
    )
    return go


def everything(folder):
    """Every file below it, with its time."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def starting(lines, word):
    return [text.removeprefix(f"{word}: ") for text in lines if text.startswith(f"{word}: ")]


@pytest.mark.parametrize("trainer", ["CoOp", "KgCoOp", "MultiModalAdapter", "PromptSRC", "PromptKD", "LinearProbe"])
def test_a_stage_1_method_is_tried_out(check, trainer):
    values, lines = check(trainer, OPTIM__MAX_EPOCH=2)
    assert values["steps"] == 6  # 12 images in batches of 4
    assert values["seconds"] == pytest.approx(sum(values["phases"].values()))
    assert values["anchor_seen"] == 12
    first, *further = starting(lines, "data")
    assert first == "OxfordPets, 3 classes, 12 train, 12 val, 12 test images"
    assert any("not as published: 6 classes instead of 37" in text for text in further)
    assert "nothing published" in starting(lines, "anchor")[0]


def test_end_to_end_tuning_encodes_pixels_and_needs_no_bank(check):
    values, lines = check("FineTune")
    assert values["steps"] == 3
    assert not any("features" in name for name in values["phases"]) and not starting(lines, "feature bank")


@pytest.mark.parametrize(("first", "second"), [("CoOp", "CoOp_LMC"), ("MultiModalAdapter", "MMA_LMC")])
def test_stage_2_needs_stage_1_and_is_tried_out_on_it(check, tmp_path, first, second):
    with pytest.raises(UserError, match="continues a stage-1 run: name its folder with --resume-coop"):
        check(second)
    check.run(first, "stage1")
    values, lines = check(second, "--resume-coop", tmp_path / "stage1", DATASET__NUM_SHOTS=2)
    assert values["steps"] > 0
    assert "stage 1 was another run: DATASET.NUM_SHOTS 4, asked for 2" in starting(lines, "recipe")


def test_zero_shot_has_no_training_part(check):
    values, lines = check("ZeroshotCLIP", "--eval-only")
    assert values["steps"] == 0 and "steps" not in values["phases"]
    with pytest.raises(UserError, match="nothing to train; add --eval-only"):
        check("ZeroshotCLIP")


def test_an_evaluation_is_tried_out_on_its_model(check, tmp_path):
    check.run("CoOp", "trained")
    values, _ = check("CoOp", "--eval-only", "--model-dir", tmp_path / "trained", subset="new")
    assert values["steps"] == 0 and values["phases"]["test"] > 0
    with pytest.raises(UserError, match="Nothing to evaluate: --model-dir"):
        check("CoOp", "--eval-only")


def test_validation_after_each_epoch_counts(check):
    values, _ = check("CoOp", OPTIM__MAX_EPOCH=3, TEST__FINAL_MODEL="best_val")
    assert values["phases"]["ends of epochs"] > 0 and values["steps"] == 9


def test_only_missing_rounds_of_the_bank_count(check):
    keys = {"FEATURES__VIEWS": 3, "OPTIM__MAX_EPOCH": 3}
    _, lines = check("CoOp", **keys)
    assert starting(lines, "feature bank")[0].startswith("48 images to encode")  # 3 x 12, and 12 for the test
    check.run("CoOp", "first", **keys | {"FEATURES__VIEWS": 2})
    _, lines = check("CoOp", **keys)
    assert starting(lines, "feature bank")[0].startswith("12 images")
    check.run("CoOp", "second", **keys)
    values, lines = check("CoOp", **keys)
    assert not starting(lines, "feature bank") and not any("features" in name for name in values["phases"])


def test_the_anchor_equals_zero_shot(check):
    zero_shot = check.run("ZeroshotCLIP", "zs", "--eval-only")
    values, _ = check("ZeroshotCLIP", "--eval-only")
    assert values["anchor"] == pytest.approx(zero_shot["metrics"]["accuracy"])


def test_a_finished_run_stays_as_it_is_and_is_pointed_out(check):
    check.run("CoOp", "out")
    _, lines = check("CoOp")
    assert "finished run" in starting(lines, "note")[0]


def test_what_the_recipe_says_otherwise_is_listed(check):
    _, lines = check("CoOp", OPTIM__LR=0.5, TRAINER__LMC__LAMBDA=3.0)
    recipe = "\n".join(starting(lines, "recipe"))
    assert "OPTIM.LR: 0.002 -> 0.5" in recipe and "OPTIM.MAX_EPOCH: 100 -> 1" in recipe
    assert "TRAINER.LMC.LAMBDA: 10.0 -> 3.0 has no effect: this trainer reads TRAINER.COOP" in recipe
    assert "OUTPUT_DIR" not in recipe and "SEED" not in recipe


def test_what_the_run_would_warn_of_is_said(check, imagenet_root):
    _, lines = check("CoOp", INPUT__INTERPOLATION="nearest")
    assert any("trained on other pixels" in text for text in lines)


# problems


def test_broken_images_stop_the_check_before_anything_is_tried(check, pets_root, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(pets_root, root)
    for image in (root / "oxford_pets" / "images").glob("abyssinian_*.png"):
        image.write_bytes(b"<html>")
    with pytest.raises(UserError, match="--check found: .* images opened cannot be read; the first: .*abyssinian"):
        check("CoOp", root=root)
    said = capsys.readouterr().out
    assert "PROBLEM" in said and "estimate" not in said


@pytest.mark.parametrize(("value", "fine"), [(0.0, False), (None, True)])
def test_an_anchor_out_of_the_band_is_a_problem(check, monkeypatch, value, fine):
    accuracy = check("ZeroshotCLIP", "--eval-only")[0]["anchor"]
    value = accuracy + 0.9 if value is None else accuracy + 30
    monkeypatch.setattr(module, "published_zero_shot", lambda cfg: Published(value, None, "a paper"))
    if fine:
        _, lines = check("ZeroshotCLIP", "--eval-only")
        assert f"published {value:.2f} (a paper)" in starting(lines, "anchor")[0]
    else:
        with pytest.raises(UserError, match=f"--check found: the zero-shot anchor is .*, published is {value:.2f}"):
            check("ZeroshotCLIP", "--eval-only")


def test_published_values_are_found_by_data_set_classes_and_backbone(check, argv):
    def of(*words):
        words = [*words, "MODEL.BACKBONE.NAME", "ViT-B/16"]
        args = train.build_parser().parse_intermixed_args(argv(*words))
        return module.published_zero_shot(train.setup_cfg(args))

    assert of("DATASET.SUBSAMPLE_CLASSES", "base").value == 91.17
    assert of("DATASET.SUBSAMPLE_CLASSES", "new").value == 97.26
    assert of("DATASET.SUBSAMPLE_CLASSES", "all") is None  # published as an average alone
    assert of("DATASET.SUBSAMPLE_CLASSES", "all", "DATASET.NAME", "ImageNet").value == 66.73
    assert of("DATASET.SUBSAMPLE_CLASSES", "all", "DATASET.NAME", "MtilDTD").value == 44.6


def test_the_interval_of_some_of_the_images_is_that_of_the_textbook(caplog):
    """81 of 263: (0.2553, 0.3662), method 3 of Newcombe, Statistics in Medicine 17 (1998)."""
    compare_anchor(get_cfg_default(), 81, 263, 300)
    assert "zero-shot 30.80 on 263 of 300 test images (95 %: 25.5 to 36.6)" in caplog.text


def test_seconds_in_words():
    assert [clock(s) for s in (0.04, 59.94, 185, 7800)] == ["0.0 s", "59.9 s", "3 min 05 s", "2 h 10 min"]


# other trainers


def test_an_expert_counts_iterations_and_leaves_no_store(stream_runs):  # noqa: F811
    words = ["TRAINER.CONDU.ITERATIONS", "5", "TRAINER.CONDU.ROUND", "2", "--check"]
    for trainer in ("ConDU_Expert", "ConDU"):
        values = train.main(stream_runs.argv("shapes", trainer, *words, trainer=trainer))
        assert values["steps"] == 5
    assert (
        not stream_runs.experts.exists()
        and not stream_runs.stream.exists()
        and not (stream_runs.folder / "ConDU").exists()
    )


def test_a_session_is_checked_against_the_stream_which_stays_as_it_is(stream_runs):  # noqa: F811
    stream_runs.go("shapes")
    stream_runs.go("digits")
    before = everything(stream_runs.folder)
    train.main(stream_runs.argv("colours", "third", "--check"))
    with pytest.raises(UserError, match="a task is learned once"):
        train.main(stream_runs.argv("shapes", "again", "--check"))
    values = train.main(
        stream_runs.argv("digits", "digits", "--check", "--eval-only", "--model-dir", str(stream_runs.stream))
    )
    assert values["steps"] == 0 and values["seconds"] > 0
    assert everything(stream_runs.folder) == before and sessions(stream_runs.stream)


@pytest.mark.parametrize("trainer", ["StylePrompt", "StyleContinued", "ShortPairs"])
def test_a_trainer_in_dassls_own_style(tmp_path, trainer):
    cfg = style_config(write_images(str(tmp_path / "data")), tmp_path / "out", trainer)
    cfg.freeze()
    assert dry_run(cfg)["steps"] == 6
    assert not (tmp_path / "out").exists()


# memory and pace


def test_the_peak_is_that_of_the_run(pets_root, tmp_path):
    """Separate processes, so that each peak is its own."""
    code = "import json, sys, train; print(json.dumps(train.main(sys.argv[1:])['peak_mb']))"
    keys = {"FEATURES__DIR": tmp_path / "bank", "FEATURES__VIEWS": 2, "OPTIM__MAX_EPOCH": 4}
    peaks = {}
    for words in (("--check",), ()):
        argv = line("MultiModalAdapter", pets_root, tmp_path / "out", *words, **keys)
        done = python(code, *argv)
        assert done.returncode == 0, done.stderr
        peaks[words] = float(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "out" / "results.json").read_text())["peak_mb"] == peaks[()]
    assert 1 / 1.5 < peaks["--check",] / peaks[()] < 1.5


def test_of_a_few_batches_the_length_is_theirs_and_each_is_timed():
    loader = torch.utils.data.DataLoader(list(range(100)), batch_size=1)
    few = FirstBatches(loader, 4)
    assert len(list(few)) == len(few) == len(few.times) == 4 and few.batch_size == 1
    few.times = [9.0, 1.0, 2.0, 6.0]
    assert few.left_out == 96 * 3.0  # the first warms up
