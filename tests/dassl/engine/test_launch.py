"""A run from config to results.json, and the ways in which it can go wrong."""

import json
import logging
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from yacs.config import CfgNode as CN

from dassl.config import merge_pairs
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.engine.launch import AlreadyFinished, run
from dassl.utils import MissingFile, RunLock, UserError, load_checkpoint, set_random_seed
from tests.fixtures.dassl_style_world import style_config, write_images

FIELDS = {
    "format", "kind", "trainer", "preset", "dataset", "protocol", "subset", "shots", "seed", "metrics", "correct",
    "total", "split_digest", "backbone", "templates", "data_seen", "chosen_on", "alpha_chosen_on", "versions",
    "device", "precision", "wall_s", "peak_mb", "command", "epochs", "max_epoch", "recipe", "inputs",
    "classes", "weights", "warmup",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_images(tmp_path_factory.mktemp("images"))
    build_trainer(style_config(root, root, "ShortLosses"))  # leaves the data set's own caches
    return root


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """Folder of a finished ShortLosses run."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    run(style_config(root, folder, "ShortLosses", DATASET__SUBSAMPLE_CLASSES="base"), command="python train.py")
    return folder


# What a run says, and leaves


def test_before_its_first_step_a_run_fills_no_screen_and_its_log_has_it_all(root, tmp_path, capsys):
    cfg = style_config(root, tmp_path, "ShortLosses", DATASET__SUBSAMPLE_CLASSES="base", OPTIM__LR=0.25, VERBOSE=True)
    recipe = cfg.clone()
    recipe.OPTIM.LR = 0.5
    run(cfg, command="python train.py --seed 1", recipe=recipe)
    screen, _, _ = capsys.readouterr().out.partition("epoch [1/")
    assert sum(-(-len(line) // 100) or 1 for line in screen.splitlines()) <= 24
    facts = ("ShortLosses", "StylePets", "3 classes", "12 training", "12 test", "on the CPU", "seed 1", str(tmp_path))
    assert all(fact in screen for fact in facts)
    assert "OPTIM.LR 0.25" in screen and "OPTIM.LR 0.25 (0.5)" in screen and "TRAINER.CG" not in screen
    log, _, _ = (tmp_path / "log.txt").read_text().partition("epoch [1/")
    for line in ("** Arguments **", "python train.py --seed 1", "** Config **", "  WARMUP_RECOUNT: True",
                 "** System info **", "Setting fixed seed: 1", "Loading trainer: ShortLosses", "# train_x  12",
                 "Building transform_train", *screen.splitlines()):  # fmt: skip
        assert line in log.splitlines(), line



def test_a_training_run_leaves_its_record(trained):
    assert {path.name for path in trained.iterdir()} == {
        ".lock", "log.txt", "config.yaml", "classes.json", "results.json", "head", "tensorboard",
    }  # fmt: skip
    classes = json.loads((trained / "classes.json").read_text())
    assert classes["dataset"] == "StylePets" and len(classes["classnames"]) == 3
    results = json.loads((trained / "results.json").read_text())
    assert set(results) == FIELDS | {"history"}
    assert [entry["epoch"] for entry in results["history"]] == [1, 2]
    expected = {
        "format": 1,
        "kind": "train",
        "trainer": "ShortLosses",
        "dataset": "StylePets",
        "protocol": "base2new",
        "subset": "base",
        "shots": 4,
        "seed": 1,
        "total": 12,
        "backbone": {"name": "linear", "digest": "0"},  # the trainer's own facts
        "data_seen": "few labelled images",
        "chosen_on": "last_step",
        "precision": "fp32",
        "command": "python train.py",
        "epochs": 2,
    }
    assert {name: results[name] for name in expected} == expected
    assert results["metrics"]["accuracy"] == 100 * results["correct"] / results["total"]
    assert set(results["metrics"]) == {"accuracy", "error_rate", "macro_f1"}
    assert results["versions"]["torch"] == torch.__version__.split("+")[0]
    assert results["wall_s"] > 0
    assert results["peak_mb"] > 10
    newest = max((path for path in trained.rglob("*") if path.name != "log.txt"), key=lambda p: p.stat().st_mtime_ns)
    assert newest in (trained, trained / "results.json")


def test_the_log_holds_config_and_both_end_lines(trained):
    log = (trained / "log.txt").read_text()
    lines = log.splitlines()
    for line in ("** Config **", "** System info **", "Setting fixed seed: 1", "Finish training", "Finished training"):
        assert line in lines
    assert "Pillow (" in log
    assert "=> result" in lines[lines.index("Finished training") :]


def test_the_kept_config_makes_the_same_run(root, trained, tmp_path):
    cfg = style_config(root, tmp_path, "ShortLosses")
    cfg.merge_from_file(str(trained / "config.yaml"))
    assert str(trained) == cfg.OUTPUT_DIR
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.freeze()
    run(cfg)
    weights = [load_checkpoint(d / "head" / "model.pth.tar-2")["state_dict"] for d in (trained, tmp_path)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_evaluation(root, trained, tmp_path):
    results = json.loads((trained / "results.json").read_text())
    for epoch in (2, "last", None):
        place = tmp_path / str(epoch)
        cfg = style_config(root, place, "ShortLosses", DATASET__SUBSAMPLE_CLASSES="base")
        found = run(cfg, eval_only=True, model_dir=str(trained), load_epoch=epoch)
        assert (found["kind"], found["metrics"], found["epochs"]) == ("eval", results["metrics"], 2)
        assert found["chosen_on"] == "last_step"  # what training itself takes, whatever names it
        assert found == json.loads((place / "results.json").read_text())
        assert set(found) == FIELDS
        assert not (place / "head").exists()


def test_what_chose_the_weights_is_recorded(root, tmp_path):
    keys = {"TEST__FINAL_MODEL": "best_val"}
    trained = run(style_config(root, tmp_path / "train", "ShortLosses", **keys))
    cfg = style_config(root, tmp_path / "eval", "ShortLosses")
    evaluated = run(cfg, eval_only=True, model_dir=str(tmp_path / "train"))
    best = load_checkpoint(tmp_path / "train" / "head" / "model-best.pth.tar")
    assert (trained["chosen_on"], evaluated["chosen_on"]) == ("validation", "validation")
    assert (trained["epochs"], evaluated["epochs"]) == (2, best["epoch"])
    cfg = style_config(root, tmp_path / "zero-shot", "StyleZeroshot")
    assert run(cfg, eval_only=True, model_dir="any")["epochs"] is None


def test_a_data_set_that_says_what_it_drew(root, tmp_path):
    class Drawing(TRAINER_REGISTRY.get("ShortLosses")):
        def build_data_loader(self):
            super().build_data_loader()
            data = self.dm.dataset
            data.drawn, data.split_digest, data.template = {"train": ["a.png"]}, "f00d", "a photo of a {}."

    try:
        TRAINER_REGISTRY.register(Drawing)
        results = run(style_config(root, tmp_path, "Drawing"))
    finally:
        del TRAINER_REGISTRY._obj_map["Drawing"]
    assert json.loads((tmp_path / "subset.json").read_text()) == {"train": ["a.png"]}
    assert (results["split_digest"], results["templates"]) == ("f00d", "a photo of a {}.")


def test_no_train_builds_and_stops(root, tmp_path):
    assert run(style_config(root, tmp_path, "ShortLosses"), no_train=True) == {}
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "log.txt", "config.yaml"}


def test_an_own_test_that_passes_the_evaluator_by(root, tmp_path):
    """And names of ours that it uses for something else, as its data set does."""

    class Own(TRAINER_REGISTRY.get("StyleZeroshot")):
        needs_checkpoint = False

        def test(self, split=None):
            self.metadata = self.dm.dataset.metadata = {"made": "by somebody"}
            return 42.0

    try:
        TRAINER_REGISTRY.register(Own)
        results = run(style_config(root, tmp_path, "Own"), eval_only=True)
    finally:
        del TRAINER_REGISTRY._obj_map["Own"]
    assert results["metrics"] == {"accuracy": 42.0}


def test_precision_of_a_trainer_in_dassl_style(root, tmp_path):
    cfg = style_config(root, tmp_path, "StyleZeroshot")
    cfg.TRAINER.STYLEZEROSHOT = CN({"PREC": "fp16"})
    assert run(cfg, eval_only=True, model_dir="any")["precision"] == "fp16"


# Seeds


def test_zero_is_a_seed_and_minus_one_is_none(root, tmp_path):
    weights = {}
    for name, seed in (("0", 0), ("0 again", 0), ("1", 1)):
        # without noise, as the data set draws from the same stream unless its cache is there
        run(style_config(root, tmp_path / name, "ShortLosses", SEED=seed, TRAINER__SHORT__NOISE=0.0))
        weights[name] = load_checkpoint(tmp_path / name / "head" / "model.pth.tar-2")["state_dict"]["1.weight"]
        assert f"Setting fixed seed: {seed}" in (tmp_path / name / "log.txt").read_text()
    assert torch.equal(weights["0"], weights["0 again"])
    assert not torch.equal(weights["0"], weights["1"])
    torch.manual_seed(5)
    run(style_config(root, tmp_path / "none", "ShortLosses", SEED=-1), no_train=True)
    assert "Setting fixed seed" not in (tmp_path / "none" / "log.txt").read_text()


def test_the_few_shots_are_the_first_draws_after_the_seed(root, tmp_path):
    """The launcher must not draw between seeding and building the data."""
    cfg = style_config(root, tmp_path / "run", "ShortLosses", SEED=77, DATASET__NUM_SHOTS=3)
    set_random_seed(77)
    expected = [item.impath for item in build_trainer(cfg).dm.dataset.train_x]
    (root / "style_pets" / "split_fewshot" / "shot_3-seed_77.pkl").unlink()
    run(cfg, no_train=True)
    assert [item.impath for item in build_trainer(cfg).dm.dataset.train_x] == expected


# Refusals


def test_a_finished_folder_is_refused_and_overwritten_on_demand(root, tmp_path):
    cfg = style_config(root, tmp_path, "ShortLosses", OPTIM__MAX_EPOCH=3, TRAIN__CHECKPOINT_FREQ=1)
    run(cfg)
    (tmp_path / "path.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    for eval_only, other in ((False, ""), (True, " of another recipe: kind train, asked for eval")):
        with pytest.raises(AlreadyFinished, match=f'"{tmp_path}" holds a finished run{other}[;.] --overwrite'):
            run(cfg, eval_only=eval_only, model_dir=str(tmp_path))
    assert issubclass(AlreadyFinished, UserError)
    assert sorted(path.name for path in tmp_path.iterdir()) == before

    cfg = style_config(root, tmp_path, "ShortLosses", SEED=2)
    assert run(cfg, overwrite=True)["seed"] == 2
    assert {path.name for path in (tmp_path / "head").iterdir()} == {"checkpoint", "model.pth.tar-2"}
    assert not (tmp_path / "path.json").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.glob("log*.txt"))) == 2


def test_evaluating_nothing_is_an_error_and_never_trains(root, tmp_path):
    cfg = style_config(root, tmp_path / "run", "ShortLosses")
    with pytest.raises(UserError, match="Nothing to evaluate: --model-dir"):
        run(cfg, eval_only=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(MissingFile, match="Model not found"):
        run(cfg, eval_only=True, model_dir=str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_bad_names_leave_no_results(root, tmp_path):
    for key, value, message in (
        ("TRAINER.NAME", "ShortLosse", "do you mean .ShortLosses."),
        ("DATASET.NAME", "StylePet", "do you mean .StylePets."),
        ("OPTIM.NAME", "sdg", "sgd"),
        ("TEST.SPLIT", "tset", "do you mean .test."),
        ("INPUT.TRANSFORMS", ["random_flop"], "random_flip"),
    ):
        cfg = style_config(root, tmp_path / key, "ShortLosses")
        merge_pairs(cfg, [key, value])
        with pytest.raises(UserError, match=message):
            run(cfg)
        assert not (tmp_path / key / "results.json").exists()
        with RunLock(tmp_path / key):  # released
            pass


@pytest.mark.parametrize("content", [b"", b"\x89PNG broken"])
def test_an_unreadable_image_is_named(content, tmp_path):
    root = write_images(tmp_path / "data")
    for image in (root / "style_pets" / "images" / "bee").iterdir():
        image.write_bytes(content)
    with pytest.raises(UserError, match=r"images/bee/\d\d\.png"):
        run(style_config(root, tmp_path / "run", "ShortLosses"))
    assert not (tmp_path / "run" / "results.json").exists()


def test_nan_stops_the_run_and_keeps_the_last_good_state(root, tmp_path):
    cfg = style_config(root, tmp_path, "ShortLosses", OPTIM__MAX_EPOCH=4, OPTIM__LR=1e30)
    with pytest.raises(FloatingPointError, match=r"\(epoch \d.*last good checkpoint: .*resume\.pt\)"):
        run(cfg)
    weights = torch.load(tmp_path / "resume.pt")["models"]["head"]["model"]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not (tmp_path / "results.json").exists()
    assert "infinite or NaN" in (tmp_path / "log.txt").read_text()


# Many runs in one process


def state_of_process():
    handlers = [*logging.getLogger().handlers, *logging.getLogger("dassl").handlers]
    files = {os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()}
    return {
        "stdout": sys.stdout,
        "showwarning": warnings.showwarning,
        "excepthook": sys.excepthook,
        "sigterm": signal.getsignal(signal.SIGTERM),
        "handlers": handlers,
        "files": {name for name in files if "pytest-of" in name},
        "threads": threading.active_count(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tuner": torch.backends.cudnn.benchmark,
    }


def test_runs_leave_the_process_as_it_was(root, tmp_path, capsys):
    run(style_config(root, tmp_path / "first", "ShortLosses"))  # tensorboard's and torch's own threads have started
    before = state_of_process()
    keys = {"TEST__FINAL_MODEL": "best_val", "DATALOADER__NUM_WORKERS": 1, "DATALOADER__PERSISTENT": True}
    run(style_config(root, tmp_path / "good", "ShortLosses", DETERMINISTIC=True, **keys))
    run(style_config(root, tmp_path / "eval", "ShortLosses", **keys), eval_only=True, model_dir=str(tmp_path / "good"))
    with pytest.raises(FloatingPointError):
        run(style_config(root, tmp_path / "bad", "ShortLosses", OPTIM__LR=1e30, OPTIM__MAX_EPOCH=4))
    with pytest.raises(UserError):
        run(style_config(root, tmp_path / "worse", "ShortLosses", INPUT__TRANSFORMS=["nothing"]))
    assert state_of_process() == before
    capsys.readouterr()
    print("on the console alone")
    assert capsys.readouterr().out == "on the console alone\n"
    for name in ("good", "eval", "bad"):  # nothing is left of the other
        log = (tmp_path / name / "log.txt").read_text()
        assert log.count("** Config **") == 1
        assert "console alone" not in log


def test_a_run_beside_the_main_thread(root, tmp_path):
    """No signal handler can be set there; the run works all the same."""
    found = []
    thread = threading.Thread(target=lambda: found.append(run(style_config(root, tmp_path, "ShortLosses"))))
    thread.start()
    thread.join()
    assert found[0]["metrics"]
