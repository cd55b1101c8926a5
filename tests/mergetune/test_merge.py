"""`python -m mergetune.merge` and train.py's flags for merged files, on runs of the tiny CLIP."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from dassl.engine import build_trainer
from dassl.merging import lora, methods
from dassl.merging.records import METHODS
from dassl.utils import UserError, set_random_seed
from mergetune import merge
from mergetune.merge import evaluate, merge_run
from mergetune.merge_job import row_name
from tests.fixtures.command_line import one_error
from tests.fixtures.interpreter import Python

TINY = ["INPUT.SIZE", "(32,32)", "DATALOADER.NUM_WORKERS", "0", "MODEL.BACKBONE.NAME", "tiny"]
TINY += ["DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "2", "OPTIM.LR", "0.02"]
TINY += [word for node in ("COOP", "MMADAPTER", "HEAD") for word in (f"TRAINER.{node}.PREC", "fp32")]
TINY += ["TRAINER.MMADAPTER.ADAPTER_START", "2", "TRAINER.MMADAPTER.ADAPTER_END", "4"]
CONFIGS = {
    "CoOp": "CoOp/vit_b16_ep100_ctxv1",
    "CoOp_LMC": "CoOp_LMC/paper",
    "ZeroshotCLIP": "ZeroshotCLIP/vit_b16",
    "MultiModalAdapter": "MultiModalAdapter/vit_b16_ep5",
    "LinearProbe": "LinearProbe/toy",
    "FineTune": "FineTune/toy",
}


@pytest.fixture(scope="module")
def line(pets_root, tmp_path_factory):
    """`line(trainer, out, *words)`: a command line of train.py on the pets."""
    features = tmp_path_factory.mktemp("features")

    def words(trainer, out, *words):
        return [
            *("--root", str(pets_root), "--seed", "1", "--trainer", trainer, "--output-dir", str(out)),
            *("--dataset-config-file", "configs/datasets/oxford_pets.yaml"),
            *("--config-file", f"configs/trainers/{CONFIGS[trainer]}.yaml"),
            *(*TINY, "FEATURES.DIR", str(features), *map(str, words)),
        ]

    return words


@pytest.fixture(scope="module")
def runs(line, tmp_path_factory):
    """`runs(trainer, *words)`: the folder of a training run; made once."""
    made = {}

    def run(trainer="CoOp", *words):
        key = trainer, words
        if key not in made:
            out = tmp_path_factory.mktemp("run") / trainer
            train.main(line(trainer, out, *words))
            made[key] = out
        return made[key]

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "merged"


def weights(folder):
    """The state dict of a merged run."""
    (file,) = folder.glob("*/model-best.pth.tar")
    return torch.load(file, weights_only=True)["state_dict"]


def last(folder):
    (file,) = folder.glob("*/model.pth.tar-2")
    return torch.load(file, weights_only=True)["state_dict"]


def results(folder):
    return json.loads((folder / "results.json").read_text())


def zero_shot(run, tmp_path):
    """CLIP among the weights of a run's trainer."""
    return weights(merge_run("wise_ft", [run], tmp_path / "zero_shot", alpha=0.0))


def test_the_command_writes_a_run_folder_and_evaluates_it(runs, line, out, tmp_path):
    run = runs()
    merge.main(
        ["--method", "ties", "--density", "0.2", "--scale", "0.7", str(run), "--out", str(out), "--eval", "base", "new"]
    )
    torch.testing.assert_close(weights(out), methods.ties(zero_shot(run, tmp_path), [last(run)], 0.2, 0.7))
    found = results(out / "eval_new")
    assert found["preset"] == "TIES (density 0.2, scale 0.7)" and found["trainer"] == "CoOp"
    assert found["merge"]["method"] == "ties" and found["merge"]["values"] == {"density": 0.2, "scale": 0.7}
    assert found["alpha_chosen_on"] == "given" and found["chosen_on"] == "last_step" and found["epochs"] == 2
    assert found["source_subset"] == "base" and found["subset"] == "new" and found["kind"] == "eval"
    assert found["data_seen"] == results(run)["data_seen"]
    train.main(line("CoOp", tmp_path / "eval", "--eval-only", "--model-dir", out))
    again, first = results(tmp_path / "eval"), results(out / "eval_base")
    assert {k: again[k] for k in ("correct", "preset", "merge")} == {
        k: first[k] for k in ("correct", "preset", "merge")
    }
    (parent,) = json.loads((out / "merge.json").read_text())["parents"]
    assert parent["trainer"] == "CoOp" and len(parent["sha256"]) == 64 and parent["epoch"] == 2


@pytest.mark.parametrize("trainer", ["CoOp", "MultiModalAdapter", "LinearProbe", "FineTune"])
def test_the_line_of_weights_ends_in_zero_shot_clip_and_in_the_run(runs, line, out, tmp_path, trainer):
    run = runs(trainer)
    merge_run("wise_ft", [run], out, alpha=1.0)
    torch.testing.assert_close(weights(out), last(run), rtol=0, atol=0)
    assert evaluate(out, "base")["correct"] == results(run)["correct"]
    state = zero_shot(run, tmp_path)
    assert state.keys() == last(run).keys()
    assert any(not torch.equal(state[name], value) for name, value in last(run).items())
    if trainer in ("LinearProbe", "FineTune"):  # the others have words of their own around a class name
        found = train.main(line("ZeroshotCLIP", tmp_path / "clip", "--eval-only"))
        assert evaluate(tmp_path / "zero_shot", "base")["correct"] == found["correct"]


def test_zero_shot_is_a_parent_too(runs, out, tmp_path):
    run = runs()
    merge_run("average", ["zero-shot", run], out)
    half = merge_run("wise_ft", [run], tmp_path / "half", alpha=0.5)
    torch.testing.assert_close(weights(out), weights(half))
    assert json.loads((out / "merge.json").read_text())["row"]["preset"] == "Average (with zero-shot)"


def test_stage_1_and_stage_2_merge(runs, out):
    stage1 = runs()
    stage2 = runs("CoOp_LMC", "--resume-coop", stage1)
    merge_run("slerp", [stage1, stage2], out, t=0.25)
    torch.testing.assert_close(weights(out), methods.slerp(last(stage1), last(stage2), 0.25))
    found = evaluate(out, "base")
    assert found["trainer"] == "CoOp" and found["preset"] == "SLERP (t 0.25; with CoOp_LMC)"
    merge_run("emr", [stage2, stage1], out, task=2, overwrite=True)
    assert not (out / "eval_base" / "results.json").exists()  # of the weights before
    assert evaluate(out, "new")["trainer"] == "CoOp_LMC"


def test_a_merge_can_be_continued_and_merged_again(runs, line, out, tmp_path):
    run = runs()
    merge_run("wise_ft", [run], out, alpha=0.5)
    again = merge_run("wise_ft", [out], tmp_path / "again", alpha=0.5)
    quarter = merge_run("wise_ft", [run], tmp_path / "quarter", alpha=0.25)
    torch.testing.assert_close(weights(again), weights(quarter))
    train.main(line("CoOp_LMC", tmp_path / "lmc", "--resume-coop", out))
    facts = json.loads((out / "merge.json").read_text())
    facts["backbone"] |= {"name": "ViT-B/16", "digest": "5" * 64}
    (out / "merge.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"ViT-B/16 \(555555555555\)"):
        train.main(line("CoOp_LMC", tmp_path / "refused", "--resume-coop", out))


def test_validation_chooses_among_several_values(runs, out):
    merge.main(["--method", "wise_ft", "--alpha", "0,0.5,1", str(runs()), "--out", str(out), "--eval", "new"])
    facts = json.loads((out / "merge.json").read_text())
    assert [entry["alpha"] for entry in facts["tried"]] == [0, 0.5, 1]
    best = max(facts["tried"], key=lambda entry: entry["val"])
    assert facts["values"] == {"alpha": best["alpha"]}
    same = merge_run("wise_ft", [runs()], out.parent / "same", alpha=best["alpha"])
    torch.testing.assert_close(weights(out), weights(same), rtol=0, atol=0)
    found = results(out / "eval_new")
    assert found["alpha_chosen_on"] == "validation" and found["preset"] == f"WiSE-FT (alpha {best['alpha']:g})"


def test_the_usual_values_of_a_method_are_searched(runs, out):
    merge.main(["--method", "ties", "--sweep", "--density", "0.5", str(runs()), "--out", str(out)])
    tried = json.loads((out / "merge.json").read_text())["tried"]
    assert [(entry["density"], entry["scale"]) for entry in tried] == [
        (0.5, s) for s in METHODS["ties"].sweep["scale"]
    ]
    with pytest.raises(UserError, match="average has no values to search"):
        merge.main(["--method", "average", "--sweep", "zero-shot", str(runs()), "--out", str(out)])


def test_names_of_rows():
    assert row_name("ties", {"density": 0.2, "scale": 1.0}) == "TIES (density 0.2, scale 1)"
    dare = {"density": 0.1, "scale": 1.0, "seed": 3, "then": "average"}
    assert row_name("dare", dare) == "DARE (density 0.1, scale 1)"
    assert row_name("dare", dare | {"then": "ties"}, ["KgCoOp"]) == "DARE (density 0.1, scale 1, ties; with KgCoOp)"
    assert row_name("average", {"weights": [0.3, 0.7]}, ["CoOp"]) == "Average (weights 0.3 0.7; with CoOp)"
    assert row_name("emr", {"task": 1}) == "EMR"


def changed(run, tmp_path, **facts):
    """A copy of a run whose results.json says something else."""
    copy = shutil.copytree(run, tmp_path / "copy")
    found = results(run)
    for name, value in facts.items():
        found[name] = found[name] | value
    (copy / "results.json").write_text(json.dumps(found))
    if "classes" in facts:
        (copy / "classes.json").unlink()
    return copy


@pytest.mark.parametrize(
    ("fact", "match"),
    [
        (
            {"digest": "5" * 64},
            r"other backbones: .*CoOp has tiny \(a7281c8da7ee\) and .*copy has tiny \(555555555555\)",
        ),
        ({"activation": "quickgelu"}, "other activation: .*has gelu and .*copy has quickgelu"),
        ({"preprocess": {"size": 224}}, r"other preprocess: .*has \{'size': 32.* and .*copy has \{'size': 224\}"),
    ],
)
def test_parents_of_another_clip_are_refused_naming_both(runs, out, tmp_path, fact, match):
    with pytest.raises(UserError, match=match):
        merge_run("average", [runs(), changed(runs(), tmp_path, backbone=fact)], out)
    assert not out.exists()


def test_other_classes_matter_where_weights_hold_classes(runs, out, tmp_path):
    other = {"digest": "0" * 32, "first": "boxer", "last": "pug"}
    merge_run("average", [runs(), changed(runs(), tmp_path, classes=other)], out)
    for run in (runs("LinearProbe"), runs("CoOp", "TRAINER.COOP.CSC", "True")):
        shutil.rmtree(tmp_path / "copy")
        copy = changed(run, tmp_path, classes=other)
        with pytest.raises(UserError, match=r"3 \(abyssinian \.\. bengal\) and .*copy has 3 \(boxer \.\. pug\)"):
            merge_run("average", [run, copy], out)


def test_what_does_not_fit_is_refused_before_anything_is_written(runs, out, tmp_path):
    run, probe = runs(), runs("LinearProbe")
    for parents, values, match in (
        ([run, probe], {}, r"ctx is in .*/CoOp, but not in .*/LinearProbe"),
        ([run], {}, "average merges 2 or more parents, given 1"),
        ([run, tmp_path / "nowhere"], {}, "No parent at .*nowhere"),
        (["zero-shot", "zero-shot"], {}, "every parent is zero-shot"),
        ([run, run], {"density": 0.1}, "average has no value 'density'; it has weights"),
        ([run, run], {"merge_space": "product"}, "is for LoRA"),
        ([run, run], {"merge_space": "sum"}, r"merge_space is expected .*\[factors, product\]"),
    ):
        with pytest.raises(UserError, match=match):
            merge_run("average", parents, out, **values)
    assert not out.exists()
    with pytest.raises(UserError, match="holds a run that is no merge"):
        merge_run("average", [run, run], run)
    assert results(run)["kind"] == "train"


def test_random_contexts_have_no_zero_shot_end(runs, out):
    run = runs("CoOp", "TRAINER.COOP.CTX_INIT", "False")
    with pytest.raises(UserError, match="CTX_INIT.* base start"):
        merge_run("ties", [run], out)
    merge_run("ties", [run], out, base="zeros", density=1.0)
    torch.testing.assert_close(weights(out), last(run))


def test_task_vectors_can_start_where_the_training_did(runs, line, out):
    words = "TRAINER.COOP.CTX_INIT", "False"
    run = runs("CoOp", *words)
    args = train.build_parser().parse_intermixed_args(line("CoOp", out, *words))
    before = torch.get_rng_state()
    merge_run("wise_ft", [run], out, base="start", alpha=0.0)
    assert torch.equal(torch.get_rng_state(), before)
    set_random_seed(1)
    untrained = build_trainer(train.setup_cfg(args)).model.ctx.detach()
    assert torch.equal(weights(out)["ctx"], untrained) and not torch.equal(untrained, last(run)["ctx"])
    assert json.loads((out / "merge.json").read_text())["row"]["preset"] == "WiSE-FT (alpha 0; from start)"


def test_files_of_weights_merge_without_a_run(runs, out, tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.pth"
    save_file({"w": torch.zeros(3)}, one)
    torch.save({"state_dict": {"module.w": torch.ones(3)}}, two)
    merge_run("average", [one, two], out, weights=[1.0, 3.0])
    assert load_file(out / "merged.safetensors")["w"].tolist() == [0.75] * 3
    merge_run("task_arithmetic", [two], out, base=one, scale=0.5, overwrite=True)
    assert load_file(out / "merged.safetensors")["w"].tolist() == [0.5] * 3
    for values, match in (
        ({}, "no parent is a run folder"),
        ({"base": one, "scale": [0.1, 0.2]}, "no parent is a run"),
    ):
        with pytest.raises(UserError, match=match):
            merge_run("task_arithmetic", [two], out, **values, overwrite=True)
    assert load_file(out / "merged.safetensors")["w"].tolist() == [0.5] * 3  # the old result goes for a new one alone
    torch.save({"w": torch.tensor([1.0, float("nan"), 0.0])}, two)
    with pytest.raises(UserError, match="two.pth: w is infinite or NaN"):
        merge_run("average", [one, two], out)


def peft(folder, seed, r=2, **config):
    """An adapter as peft saves it."""
    generator = torch.Generator().manual_seed(seed)
    name = "base_model.model.text.q_proj"
    state = {
        f"{name}.lora_A.weight": torch.randn(r, 5, generator=generator),
        f"{name}.lora_B.weight": torch.randn(6, r, generator=generator),
    }
    folder.mkdir()
    save_file(state, folder / "adapter_model.safetensors")
    own = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "base_model_name_or_path": "clip"} | config
    (folder / "adapter_config.json").write_text(json.dumps(own))
    return folder


def update(folder):
    """The change of a weight that a peft folder stands for."""
    own = json.loads((folder / "adapter_config.json").read_text())
    (found,) = lora.products(load_file(folder / "adapter_model.safetensors"), own["lora_alpha"] / own["r"]).values()
    return found


def test_lora_merges_by_product_or_by_factors(out, tmp_path):
    one, two = peft(tmp_path / "one", 1), peft(tmp_path / "two", 2, r=3, lora_alpha=3)
    merge_run("average", [one, two], out, merge_space="product", rank=5)
    torch.testing.assert_close(update(out), (update(one) + update(two)) / 2, rtol=1e-4, atol=1e-5)
    merge_run("task_arithmetic", [one, two], out, merge_space="product", rank=0, scale=1.0, overwrite=True)
    found = load_file(out / "merged.safetensors")["base_model.model.text.q_proj.lora_delta.weight"]
    torch.testing.assert_close(found, update(one) + update(two), rtol=1e-4, atol=1e-5)
    same = peft(tmp_path / "same", 3)
    merge_run("ties", [one, same], out, density=1.0, overwrite=True)
    states = [load_file(folder / "adapter_model.safetensors") for folder in (one, same)]
    zeros = {name: torch.zeros_like(value) for name, value in states[0].items()}
    torch.testing.assert_close(load_file(out / "adapter_model.safetensors"), methods.ties(zeros, states, 1.0))
    (same / "adapter_config.json").write_text((same / "adapter_config.json").read_text().replace("4", "2"))
    (one / "adapter_config.json").write_text((same / "adapter_config.json").read_text())
    with pytest.raises(UserError, match="of another request: peft"):
        merge_run("ties", [one, same], out, density=1.0)
    (out / "adapter_config.json").write_text((same / "adapter_config.json").read_text())
    with pytest.raises(UserError, match="adapter_config.json is not of the run of .*merge.json"):
        merge_run("ties", [out], tmp_path / "more")
    for other, match in (
        (two, r"lora_A\.weight is float32 \(2, 5\) in .*one and float32 \(3, 5\) in .*two"),
        (peft(tmp_path / "alpha", 4, lora_alpha=1), "scale their LoRA updates differently"),
        (peft(tmp_path / "clip2", 4, base_model_name_or_path="clip2"), "one has clip and .*clip2 has clip2"),
    ):
        with pytest.raises(UserError, match=match):
            merge_run("average", [one, other], tmp_path / "more")


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    words = ["nowhere", "--out", str(tmp_path / "o"), "--method"]
    for more, match in (
        (["tie"], "invalid choice: 'tie'"),
        (["ties", "--density", "x"], "float, or several with commas"),
    ):
        with pytest.raises(SystemExit):
            merge.main([*words, *more])
        assert match in capsys.readouterr().err
    assert one_error(Python(["-m", "mergetune.merge", *words, "emr"])).startswith("No parent at nowhere")
