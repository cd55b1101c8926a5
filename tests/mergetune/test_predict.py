"""Images through finished runs whose data set is gone: the evaluation's own logits, other classes, exports."""

import json
import shutil
import sys
from functools import reduce
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors import safe_open

import train
from dassl.clip import build_clip
from dassl.engine import TRAINER_REGISTRY, build_trainer, load_config
from dassl.utils import UserError, set_random_seed
from mergetune import path_card
from mergetune.predict import Predictor, main
from tests.fixtures.any_trainer import line

BASE, NEW = ["abyssinian", "beagle", "bengal"], ["boxer", "great_pyrenees", "pug"]
RUNS = {  # trainer -> words that it needs; after those it starts from
    "CoOp": [],
    "CoOp_LMC": ["--resume-coop", "CoOp"],
    "CoOp_Average": ["--resume-coop", "CoOp", "--eval-only"],
    "ZeroshotCLIP": ["--eval-only"],
    "ZeroshotCLIP2": ["--eval-only"],
    "MultiModalAdapter": [],
    "MMA_LMC": ["--resume-coop", "MultiModalAdapter"],
    "PromptSRC": [],
    "PromptKD": [],
    "PromptKD_LMC": ["--resume-coop", "PromptKD"],
    "LinearProbe": [],
    "FineTune": [],
}
HEADS = ("LinearProbe", "FineTune")


@pytest.fixture(scope="module")
def world(pets_root, tmp_path_factory):
    """A folder with a finished run of each trainer, `data/` of which has been moved to `elsewhere/` since."""
    out = tmp_path_factory.mktemp("runs")
    shutil.copytree(pets_root, out / "data")
    for name, words in RUNS.items():
        words = [out / word if word in RUNS else word for word in words]
        train.main(line(name, out / "data", out / name, *words, FEATURES__DIR=out / "features"))
    train.main(line("CoOp", out / "data", out / "CSC", TRAINER__COOP__CSC=True, FEATURES__DIR=out / "features"))
    shutil.move(out / "data", out / "elsewhere")
    return out


@pytest.fixture(scope="module")
def evaluated(world):
    """`evaluated(name, subset)`: what a run's own evaluation computes: {image: logits}."""

    def go(name, subset):
        folder = world / "scores" / name / subset
        words = ["--resume-coop", world / "CoOp"] if name == "CoOp_Average" else []
        words = line(name, world / "elsewhere", folder, *words, subset=subset, FEATURES__DIR=world / "features")
        set_random_seed(1)
        trainer = build_trainer(train.setup_cfg(train.build_parser().parse_intermixed_args(words)))
        trainer.load_model("" if "--eval-only" in RUNS[name] else str(world / name))
        with trainer.cached_classifier():
            trainer.output_test()
        rows = json.loads((folder / "output.json").read_text())
        return {path: torch.tensor(row["predict"]) for path, row in rows.items()}

    return go


@pytest.mark.parametrize("name", RUNS)
def test_logits_are_the_evaluations_own(world, evaluated, name):
    expected = evaluated(name, "base")
    model = Predictor(world / name)
    assert model.classnames == BASE
    found = model.logits(list(expected))
    torch.testing.assert_close(found, torch.stack(list(expected.values())), rtol=0, atol=1e-5)
    assert len(found) > 5 and found.std() > 0.01


@pytest.mark.parametrize("name", [name for name in RUNS if name not in HEADS])
def test_other_classes_score_as_in_a_run_on_them(world, evaluated, name):
    expected = evaluated(name, "new")
    found = Predictor(world / name, NEW).logits(list(expected))
    torch.testing.assert_close(found, torch.stack(list(expected.values())), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_knows_its_own_classes_in_any_order(world, evaluated, name):
    expected = evaluated(name, "base")
    found = Predictor(world / name, BASE[::-1]).logits(list(expected))
    torch.testing.assert_close(found.flip(1), torch.stack(list(expected.values())), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=r"3 classes \(abyssinian \.\. bengal\).*\(boxer"):
        Predictor(world / name, NEW)


def test_class_specific_prompts_know_no_other_classes(world):
    assert Predictor(world / "CSC", BASE).classnames == BASE
    for names in (NEW, BASE[::-1], BASE[:2]):
        with pytest.raises(UserError, match="CSC knows only its own 3 classes: its prompts are class-specific"):
            Predictor(world / "CSC", names)


@pytest.fixture
def image(world):
    return str(sorted((world / "elsewhere").rglob("*.png"))[0])


def test_labels_come_ranked_with_probabilities(world, image):
    model = Predictor(world / "CoOp")
    ranked = model([image])[0]
    probabilities = model.logits([image]).softmax(1)[0]
    assert [p for _, p in ranked] == sorted(probabilities.tolist(), reverse=True)
    assert sum(p for _, p in ranked) == pytest.approx(1, abs=1e-6)
    assert ranked[0][0] == BASE[probabilities.argmax()]
    assert model([image], top=2) == [ranked[:2]]
    assert model([]) == []


@pytest.mark.parametrize("name", ["CoOp", "ZeroshotCLIP", "LinearProbe"])
def test_exported_embeddings_classify_without_the_run(world, image, tmp_path, name):
    model = Predictor(world / name)
    model.export(tmp_path / "classes.safetensors")
    with safe_open(tmp_path / "classes.safetensors", "pt") as file:
        vectors, facts = file.get_tensor("class_embeddings"), file.metadata()
    clip = build_clip(facts["backbone"])
    assert facts["backbone_digest"] == clip.digest and json.loads(facts["classnames"]) == BASE
    assert vectors.shape == (3, clip.dim) and vectors.dtype == torch.float32
    pixels = model.transform(Image.open(image).convert("RGB"))
    features = F.normalize(clip.encode_image(pixels[None]), dim=-1)
    logits = float(facts["logit_scale"]) * features @ vectors.t()
    torch.testing.assert_close(logits, model.logits([image]), rtol=0, atol=1e-4)


def test_the_command_prints_labels_or_json_and_nothing_else(world, image, capsys, tmp_path):
    main([str(world / "CoOp"), image, "--top", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == image and len(lines) == 3
    main([str(world / "CoOp"), image, "--classes", "cat, great white shark", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in found] == [image]
    assert {row["label"] for row in found[0]["labels"]} == {"cat", "great white shark"}
    main([str(world / "CoOp"), "--export", str(tmp_path / "x.safetensors")])
    assert "3 class embeddings" in capsys.readouterr().out


def test_a_folder_is_its_images_and_a_broken_one_keeps_none_from_being_answered(world, image, tmp_path, capsys):
    files = [tmp_path / name for name in ("b.png", "deep/er/A.PNG", "deep/er/c.png")]
    files[1].parent.mkdir(parents=True)
    for file in files:
        shutil.copy(image, file)
    for name in ("notes.txt", ".hidden.png"):
        (tmp_path / name).write_text("no image")
    words = [str(world / "CoOp"), str(tmp_path), image, image, "--top", "1"]
    main(words)
    out, err = capsys.readouterr()
    assert out.splitlines()[::2] == [*map(str, files), image] and len(set(out.splitlines()[1::2])) == 1
    assert err == f"Left out: 2 files ({tmp_path}/.hidden.png, {tmp_path}/notes.txt), by name no image\n"
    files[1].write_text("no image")
    for more in ([], ["--json"]):
        with pytest.raises(UserError, match=r"1 of 4 images cannot be read: .*A\.PNG"):
            main([*words, *more])
    rows = json.loads(capsys.readouterr().out.partition("[")[2].join(["[", ""]))
    assert [row["image"] for row in rows if "labels" in row] == [str(files[0]), str(files[2]), image]
    assert [row["image"] for row in rows if "error" in row] == [str(files[1])]
    with pytest.raises(UserError, match="A.PNG"):
        Predictor(world / "CoOp")(files)


def test_bad_input_is_one_error_that_names_it(world, image, tmp_path):
    run = str(world / "CoOp")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    old = tmp_path / "old"
    shutil.copytree(world / "CoOp", old)
    (old / "classes.json").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, match in (
        ([run], "Nothing to do"),
        ([run, "nowhere.jpg", image], "No image at nowhere.jpg"),
        ([run, str(broken)], "broken.png.*cannot be read"),
        ([run, image, "--top", "0"], "--top is 0"),
        ([run, image, "--classes", "cat,,dog"], "expected a list of names"),
        ([run, image, "--classes", "cat,dog,cat"], "names cat more than once"),
        ([run, str(empty)], "No image in .*empty, but 0 other files"),
        ([str(empty), image], "is no run folder: it holds no config.yaml"),
        ([str(old), image], "no classes.json.*--classes"),
        ([str(world / "scores"), image], "no run folder"),
    ):
        with pytest.raises(UserError, match=match):
            main(words)
    assert Predictor(old, BASE).classnames == BASE


def test_a_trainer_that_asks_for_its_data_is_refused_in_one_line(world, image, monkeypatch):
    class Counts(TRAINER_REGISTRY.get("CoOp")):
        def build_model(self):
            self.images = len(self.dm.dataset.train_x)

    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "CoOp", Counts)
    with pytest.raises(UserError, match="Counts cannot be built without its data set .*train_x.*--eval-only"):
        main([str(world / "CoOp"), image])


def test_the_command_works_in_a_process_of_its_own(world, image, clone):
    """Nothing has imported the trainers, the data sets or train.py before it."""
    done = clone(sys.executable, "-m", "mergetune.predict", world / "CoOp_LMC", image, "--top", "1")
    assert done.stderr == "" and done.stdout.split()[0] == image and len(done.stdout.splitlines()) == 2


@pytest.fixture
def changed(world, tmp_path):
    """`changed(run, KEY=value)`: a copy of a run in whose config.yaml those keys have those values."""

    def go(name, **keys):
        folder = Path(shutil.copytree(world / name, tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"))
        tree = yaml.safe_load((folder / "config.yaml").read_text())
        for key, value in keys.items():
            *parents, leaf = key.split("__")
            reduce(lambda node, part: node.setdefault(part, {}), parents, tree)[leaf] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        results = json.loads((folder / "results.json").read_text())
        del results["recipe"]  # by which another run's config.yaml is told
        (folder / "results.json").write_text(json.dumps(results))
        return folder

    return go


READERS = {"predict": lambda run: Predictor(run).cfg, "path_card": path_card.read_cfg, "load_config": load_config}


@pytest.mark.parametrize("reader", READERS)
def test_a_run_is_read_though_other_trainers_have_changed_since(changed, reader):
    gone = {"TRAINER__GONE__DEEP__KEY": 1, "TRAINER__PROMPTKD__GONE": [1], "TRAINER__HEAD__PREC": {"A": 2}}
    run = changed("CoOp_LMC", **gone, TRAINER__MMADAPTER__ADAPTER_DIM="wide", TRAINER__LMC__TAU=0.7)
    cfg = READERS[reader](run)
    assert cfg.TRAINER.LMC.TAU == 0.7 and "GONE" not in cfg.TRAINER
    assert cfg.TRAINER.MMADAPTER.ADAPTER_DIM == 32 and isinstance(cfg.TRAINER.HEAD.PREC, str)


@pytest.mark.parametrize("reader", READERS)
def test_a_run_of_a_trainer_that_is_gone_or_has_lost_a_key_is_refused(changed, reader):
    for keys, match in (
        ({"TRAINER__NAME": "CoOp_Gone"}, r"config.yaml: TRAINER.NAME is 'CoOp_Gone', expected one of .*CoOp_LMC"),
        ({"TRAINER__NAME": ["CoOp"]}, r"TRAINER.NAME is \['CoOp'\]"),
        ({"TRAINER__COOP__GONE": 1}, "unknown config key TRAINER.COOP.GONE"),  # of its base class
        ({"TRAINER__LMC__TAU": "much"}, "TRAINER.LMC.TAU = 'much'"),
        ({"INPUT__GONE": 1}, "unknown config key INPUT.GONE"),
    ):
        with pytest.raises(UserError, match=match):
            READERS[reader](changed("CoOp_LMC", **keys))


def test_an_evaluation_folder_holds_no_model(world, image, tmp_path):
    words = ("--eval-only", "--model-dir", world / "CoOp")
    train.main(line("CoOp", world / "elsewhere", tmp_path / "test", *words, FEATURES__DIR=world / "features"))
    with pytest.raises(UserError, match="Model not found"):
        Predictor(tmp_path / "test")


@pytest.mark.parametrize("content", [[], None, {}, {"classnames": []}, {"classnames": ["a", 1]}, {"classnames": "cat"}])
def test_a_broken_list_of_classes_is_one_line(world, image, tmp_path, content):
    run = shutil.copytree(world / "CoOp", tmp_path / "run")
    (run / "classes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="class names"):
        main([str(run), image])


def test_another_runs_files_are_refused(world, image, tmp_path):
    for name, match in (("classes.json", "classes.json is not of the run"), ("config.yaml", "config.yaml is not of"),
                        ("classes.json template", "classes.json is not of the run"),
                        ("prompt_learner", "model.pth.tar-.* is not of the run")):  # fmt: skip
        run = shutil.copytree(world / "CoOp", tmp_path / name)
        if name.startswith("classes.json"):
            own = json.loads((run / "classes.json").read_text())
            other = {"classnames": NEW} if name == "classes.json" else {"template": "a {}."}
            (run / "classes.json").write_text(json.dumps(own | other))
        elif name == "config.yaml":
            text = (run / name).read_text()
            (run / name).write_text(text.replace("CLASS_TOKEN_POSITION: end", "CLASS_TOKEN_POSITION: front"))
        else:
            (file,) = (run / name).glob("model.pth.tar-*")
            content = torch.load(file, weights_only=True)
            content["state_dict"]["ctx"] += 1
            torch.save(content, file)
        with pytest.raises(UserError, match=match):
            main([str(run), image])


def test_a_run_that_is_not_finished_is_said_and_recorded(world, image, tmp_path, capsys):
    run = shutil.copytree(world / "CoOp", tmp_path / "run")
    (run / "results.json").unlink()
    main([str(run), image, "--export", str(tmp_path / "x.safetensors")])
    line = f"{run}: epochs 1 of 1, unfinished\n"
    assert capsys.readouterr().err == line
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert f"{run}: {file.metadata()['unfinished']}\n" == line


def test_a_stage_1_that_has_moved_is_named_by_a_flag(world, image, tmp_path, capsys):
    run = shutil.copytree(world / "CoOp_Average", tmp_path / "run")
    for name in ("config.yaml", "results.json"):
        (run / name).write_text((run / name).read_text().replace(str(world / "CoOp"), str(tmp_path / "gone")))
    with pytest.raises(UserError, match="No stage-1 checkpoint in .*gone: .*--set RESUME_COOP FOLDER"):
        main([str(run), image])
    main([str(run), image, "--set", "RESUME_COOP", str(world / "CoOp")])
    main([str(world / "CoOp_Average"), image])
    lines = capsys.readouterr().out.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
