"""Other people's checkpoints: recognised, reported, refused, and used by our trainers."""

import json
import os
import re

import pytest
import torch

import train
from dassl.engine import build_trainer
from dassl.report.records import load_results
from dassl.utils import UserError, sha256_file
from mergetune.checkpoint_formats import recognise, to_text
from mergetune.import_checkpoint import check_fit, main, runnable
from mergetune.predict import Predictor
from tests.fixtures import foreign_checkpoints as theirs
from tests.fixtures.any_trainer import data_words, line, pairs

SIZES = theirs.Sizes()
every_file = pytest.mark.parametrize("make", theirs.FILES)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def keys_of(found, status):
    return [row["key"] for row in found.rows if row["status"] == status]


@every_file
def test_files_are_told_apart_and_every_key_has_its_place(make):
    state = make(SIZES)
    found = recognise(state)
    assert found.name == theirs.FILES[make][0]
    assert theirs.FILES[make][1] in runnable(found.format)
    assert {row["key"] for row in found.rows} == set(state)
    assert {row["status"] for row in found.rows} <= {"mapped", "ignored"}
    weights = found.weights
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights.values())
    if make is not theirs.maple:
        assert all(torch.equal(value, state[key]) for key, value in weights.items())


@every_file
def test_keys_of_a_data_parallel_wrapper_and_half_precision_are_read(make):
    state = make(SIZES)
    half = {f"module.{key}": value.half() if value.is_floating_point() else value for key, value in state.items()}
    weights = recognise(half).weights
    for key, value in recognise(state).weights.items():
        torch.testing.assert_close(weights[key], value, rtol=2e-3, atol=1e-4)


@every_file
def test_tensors_that_cannot_be_used_are_named(make):
    state = make(SIZES)
    for key in keys_of(recognise(state), "mapped"):
        broken = (("no plain", "words"), ("infinite", state[key].float() / 0), ("no plain", state[key].to("meta")))
        for match, value in broken:
            with pytest.raises(UserError, match=f"{key} .*{match}"):
                recognise(state | {key: value})


@every_file
def test_each_dropped_renamed_or_reshaped_key_is_refused_by_the_trainer(make, pets_root, tmp_path):
    """By its name; MaPLe's, which become others, by either name."""
    state = fixture_for(make, pets_root)
    trainer = built(theirs.FILES[make][1], pets_root, **recognise(state).config)
    for key in keys_of(recognise(state), "mapped"):
        rest = {name: value for name, value in state.items() if name != key}
        named = "VPT|ctx|prompt_learner|size|shape" if make is theirs.maple else re.escape(key)
        twice = torch.cat([state[key]] * 2) if state[key].dim() else state[key].expand(2)
        for changed in (rest, rest | {f"{key}_new": state[key]}, state | {key: twice}):
            with pytest.raises(UserError, match=named):
                check_fit(tmp_path, recognise(changed), trainer)


def test_a_net_that_was_never_called_is_left_out():
    state = theirs.kgcoop_with_unused_net(SIZES)
    found = recognise(state)
    assert (found.name, keys_of(found, "unknown"), set(found.weights)) == ("KgCoOp", [], {"ctx"})
    assert "meta_net.linear1.weight" in to_text(found) and "KgCoOp's, never used" in to_text(found)


@pytest.mark.parametrize("make", theirs.REFUSED)
def test_what_cannot_be_run_here_is_refused_by_its_name(make):
    for below in ("", "module.", "prompts.", "prompt_learner."):
        with pytest.raises(UserError, match=f"^a file of {theirs.REFUSED[make]}.* is recognised and refused"):
            recognise({f"{below}{key}": value for key, value in make(SIZES).items()})


def test_foreign_keys_and_empty_files_are_refused():
    with pytest.raises(UserError, match="no known method.*PromptKD.*weight"):
        recognise({"weight": torch.zeros(2)})
    with pytest.raises(UserError, match="no weights"):
        recognise({})


def test_class_specific_contexts_and_the_released_mergetune_are_told_apart():
    found = recognise(theirs.coop_class_specific(SIZES))
    assert found.config["TRAINER.COOP.CSC"] is True
    assert recognise(theirs.kgcoop(SIZES), "prompt_mid_learner").name == "MERGETUNE"


def test_sizes_become_config_keys():
    def keys(state):
        return recognise(state).config

    assert keys(theirs.coop(theirs.Sizes(N=16))) == {
        "TRAINER.COOP.N_CTX": 16,
        "TRAINER.COOP.CSC": False,
        "TRAINER.COOP.CTX_INIT": False,
    }
    assert keys(theirs.mma(theirs.Sizes(first=5, last=12, R=32))) == {
        "TRAINER.MMADAPTER.ADAPTER_START": 5,
        "TRAINER.MMADAPTER.ADAPTER_END": 12,
        "TRAINER.MMADAPTER.ADAPTER_DIM": 32,
    }
    deep = keys(theirs.maple(theirs.Sizes(N=2, depth=9)))
    assert deep["TRAINER.PROMPTSRC.N_CTX_VISION"] == deep["TRAINER.PROMPTSRC.N_CTX_TEXT"] == 2
    assert deep["TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT"] == 9


def test_coupled_prompts_are_written_out():
    """Each image prompt is its text prompt through that layer's matrix and bias, prompt k at block k + 1."""
    state = theirs.maple(SIZES)
    weights = recognise(state).weights
    assert set(weights) == set(theirs.image_prompts(SIZES)) | {"prompt_learner.ctx"} | {
        f"text_encoder.transformer.resblocks.{j}.VPT_shallow" for j in (1, 2)
    }
    below = "prompt_learner"
    for j in range(SIZES.depth):
        text = state[f"{below}.compound_prompts_text.{j - 1}" if j else f"{below}.ctx"]
        layer = f"{below}.compound_prompt_projections.{j - 1}" if j else f"{below}.proj"
        image = torch.stack([state[f"{layer}.weight"] @ row + state[f"{layer}.bias"] for row in text])
        block = f"transformer.resblocks.{j}.VPT_shallow"
        torch.testing.assert_close(weights[f"image_encoder.{block}" if j else "image_encoder.VPT"], image)
        assert torch.equal(weights[f"text_encoder.{block}" if j else "prompt_learner.ctx"], text)


def write(make, folder, sizes=SIZES, epoch=50, name=None):
    return theirs.write(make(sizes), folder / theirs.FILES[make][2] / (name or f"model.pth.tar-{epoch}"), epoch)


def imported(source, out, *words):
    return main([str(source), "--out", str(out), *map(str, words)])


@pytest.mark.parametrize("place", ["", "prompt_learner", "prompt_learner/model.pth.tar-50"])
def test_a_run_folder_a_model_folder_and_a_file_are_found(place, tmp_path):
    path = write(theirs.coop, tmp_path / "run")
    write(theirs.coop, tmp_path / "run", epoch=5)
    write(theirs.coop, tmp_path / "run", name="model-best.pth.tar")
    facts = imported(tmp_path / "run" / place, tmp_path / "out")
    assert facts["sha256"] == sha256_file(path)  # the last epoch
    state = torch.load(tmp_path / "out" / "prompt_learner" / "model.pth.tar-50", weights_only=True)
    assert state["epoch"] == 50 and set(state["state_dict"]) == {"ctx", "token_prefix", "token_suffix"}


def test_a_bare_state_dict_of_no_known_epoch_is_read(tmp_path):
    torch.save(theirs.mma(SIZES), tmp_path / "adapters.pt")
    assert imported(tmp_path / "adapters.pt", tmp_path / "out")["method"] == "MMA"
    assert (tmp_path / "out" / "adapter_learner" / "model.pth.tar-0").is_file()


def test_what_was_trained_on_is_unknown_unless_given(tmp_path):
    path = write(theirs.kgcoop, tmp_path / "run")
    imported(path, tmp_path / "a")
    imported(path, tmp_path / "b", "--data-seen", "16 shots of base classes", "--trainer", "CoOp")
    found = [json.loads((tmp_path / name / "results.json").read_text()) for name in "ab"]
    assert [row["data_seen"] for row in found] == [
        "imported from model.pth.tar-50: unknown",
        "imported from model.pth.tar-50: 16 shots of base classes",
    ]
    assert [row["trainer"] for row in found] == ["KgCoOp", "CoOp"]
    assert {row["kind"] for row in found} == {"import"} and len(load_results(tmp_path)) == 2


def test_the_released_mergetune_is_a_stage_2_run_or_by_name_a_stage_1(pets_root, tmp_path):
    state = fixture_for(theirs.kgcoop, pets_root)
    path = theirs.write(state, tmp_path / "run" / "prompt_mid_learner" / "model-best.pth.tar")
    facts = imported(path, tmp_path / "a", *options("CoOp_LMC", pets_root, tmp_path))
    assert facts["trainer"] == "CoOp_LMC" and set(facts["scores"]["new"]) == {"CoOp_LMC", "ZeroshotCLIP"}
    assert (tmp_path / "a" / "prompt_mid_learner" / "model.pth.tar-50").is_file()
    imported(tmp_path / "run", tmp_path / "b", "--trainer", "KgCoOp")
    assert (tmp_path / "b" / "prompt_learner" / "model.pth.tar-50").is_file()


def refused(match, source, out, *words):
    with pytest.raises(UserError, match=match):
        imported(source, out, *words)
    assert not (out / "results.json").exists()


class Killed(BaseException):
    """Stands for a signal that nothing can catch: the files are as they were at that moment."""


def test_an_import_that_is_killed_before_any_of_its_files_is_made_again(pets_root, tmp_path, monkeypatch):
    path = theirs.write(fixture_for(theirs.coop, pets_root), tmp_path / "theirs.pth")
    words = options("CoOp", pets_root, tmp_path, DATASET__SUBSAMPLE_CLASSES="base")
    facts = imported(path, tmp_path / "whole", *words)
    replace, out, marker = os.replace, tmp_path / "out", []

    def replace_some(source, target):
        if os.path.basename(target) in marker:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_some)
    for name in ("classes.json", "model.pth.tar-50", "checkpoint", "config.yaml", "results.json", "import.json"):
        marker[:] = [name]  # each goes on from what the last kill left
        with pytest.raises(Killed):
            imported(path, out, *words)
    marker.clear()
    assert imported(path, out, *words) == facts
    names = [{p.relative_to(place) for p in place.rglob("*.[jpy]*")} for place in (tmp_path / "whole", out)]
    assert names[0] == names[1]


def test_bad_input_is_one_error_that_names_it(tmp_path):
    path, out = write(theirs.coop, tmp_path / "run"), tmp_path / "out"
    write(theirs.mma, tmp_path / "both")
    write(theirs.promptkd, tmp_path / "both")
    theirs.write(theirs.cocoop(SIZES), tmp_path / "co" / "prompt_learner" / "model.pth.tar-1")
    (tmp_path / "empty").mkdir()
    refused("No stage-1 checkpoint in .*nowhere.*found no model file", tmp_path / "nowhere", out)
    refused("No stage-1 checkpoint in .*empty.*found no model file", tmp_path / "empty", out)
    refused("several models.*adapter_learner.*VLPromptLearner", tmp_path / "both", out)
    refused("prompt_learner/model.pth.tar-1: a file of CoCoOp is recognised", tmp_path / "co", out)
    refused("--trainer MMA_LMC cannot run a CoOp file, CoOp, .*KgCoOp", path, out, "--trainer", "MMA_LMC")
    refused("give --config-file", path, out, "OPTIM.LR", "1")
    refused("Scoring needs all of", path, out, "--root", tmp_path)
    imported(path, out)
    with pytest.raises(UserError, match="holds a finished run"):
        imported(path, out)


class Harmful:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_file_that_would_run_code_is_refused_by_the_name_of_that_code(tmp_path):
    marker = str(tmp_path / "executed")
    path = tmp_path / "run" / "prompt_learner" / "model.pth.tar-1"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": theirs.coop(SIZES), "scheduler": Harmful(marker)}, path)
    refused(r"posix\.mkdir", tmp_path / "run", tmp_path / "out")
    assert not os.path.exists(marker)
    torch.load(path, weights_only=False)
    assert os.path.exists(marker)  # else the file was harmless, and the test shows nothing


def fixture_for(make, pets_root):
    """A file of the tiny CLIP's widths, with the class names' true embeddings where a file has them."""
    trainer = built("CoOp", pets_root)
    clip, fixed = trainer.clip, trainer.model.fixed
    sizes = theirs.tiny_sizes(clip, len(fixed))
    state = make(sizes)
    suffix = torch.zeros(len(fixed), sizes.L - 1 - sizes.N, clip.width)
    suffix[:, : fixed.shape[1] - 5] = fixed[:, 5:]
    # behind the end of the longest text the file goes on with the padding's embedding, which nothing reads
    state |= {key: suffix for key in state if key.endswith("token_suffix")}
    if "tokenized_prompts" in state:
        texts = [f"a photo of a {name.replace('_', ' ')}." for name in trainer.classnames]
        state["tokenized_prompts"] = clip.tokenize(texts)
    own = clip.module.visual.state_dict()
    frozen = [key for key in state if key.startswith("image_encoder.") and "VPT" not in key]
    for key in frozen:
        del state[key]
    if frozen:
        state |= {f"image_encoder.{key}": own[key].half() for key in ("conv1.weight", "ln_pre.weight", "proj")}
    return state


def built(trainer, root, **changed):
    words = train.build_parser().parse_intermixed_args(line(trainer, root, "unused", **changed))
    return build_trainer(train.setup_cfg(words))


def options(trainer, root, tmp_path, **changed):
    return [*data_words(trainer, root), *pairs(FEATURES__DIR=tmp_path / "features", **changed)]


STAGE2 = {"CoOp": "CoOp_LMC", "KgCoOp": "KgCoOp_LMC", "MultiModalAdapter": "MMA_LMC", "PromptKD": "PromptKD_LMC"}


@every_file
def test_an_imported_file_evaluates_and_is_continued(make, pets_root, tmp_path):
    _, trainer, folder = theirs.FILES[make]
    state = fixture_for(make, pets_root)
    path = theirs.write(state, tmp_path / "theirs" / folder / "model.pth.tar-50")
    out = tmp_path / "imported"
    facts = main([str(tmp_path / "theirs"), "--out", str(out), *options(trainer, pets_root, tmp_path)])
    assert facts["trainer"] == trainer and facts["sha256"] == sha256_file(path)
    assert json.loads((out / "import.json").read_text()) == facts
    assert set(facts["scores"]) == {"base", "new"}
    subset = "all" if trainer == "PromptKD" else "base"  # what it trains on
    model = built(trainer, pets_root, FEATURES__DIR=tmp_path / "features", **facts["config"])
    model.load_model(str(out))
    for key, value in recognise(state).weights.items():
        assert torch.equal(model.model.state_dict()[key], value), key
    assert model.test() == facts["scores"]["base"][trainer]
    assert Predictor(out).classnames == built("ZeroshotCLIP", pets_root, subset=subset).classnames
    test = json.loads((out / "evaluate" / "test_new" / trainer / "results.json").read_text())
    assert test["data_seen"] == "imported from model.pth.tar-50: unknown" and test["subset"] == "new"
    if trainer in STAGE2:
        words = line(
            STAGE2[trainer], pets_root, tmp_path / "lmc", "--resume-coop", out, subset=subset, **facts["config"]
        )
        results = train.main([*words, "FEATURES.DIR", str(tmp_path / "features")])
        assert results["kind"] == "train" and results["epochs"] == 1


@pytest.mark.parametrize(
    ("make", "change", "match"),
    [
        (theirs.coop, lambda s: {**s, "token_suffix": s["token_suffix"].flip(0)}, "the names of 2 of 3 classes differ"),
        (theirs.mma, lambda s: {**s, "tokenized_prompts": s["tokenized_prompts"].flip(0)}, r"2 of 3 .*tokenized"),
        (theirs.ivlp, lambda s: {**s, "image_encoder.proj": s["image_encoder.proj"] + 0.1}, "backbone than tiny.*proj"),
        (
            theirs.promptkd,
            lambda s: {**s, "image_encoder.ln_pre.weight": torch.ones(128)},
            "backbone than tiny.*ln_pre",
        ),
    ],
)
def test_a_file_of_other_classes_or_another_backbone_is_refused(make, change, match, pets_root, tmp_path):
    state = change(fixture_for(make, pets_root))
    path = theirs.write(state, tmp_path / "run" / theirs.FILES[make][2] / "model.pth.tar-1")
    trainer = theirs.FILES[make][1]
    refused(match, path, tmp_path / "out", *options(trainer, pets_root, tmp_path))
    assert not list((tmp_path / "out").rglob("*.json")) and not list((tmp_path / "out").rglob("model*"))
