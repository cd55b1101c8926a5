"""The authors' commands, as a shell runs them."""

import json

import pytest

from tests.conftest import ROOT

LMC = ["10.0", "cosine", "True", "1.0", "1", "vit_b16_ep100_ctxv1"]
COMMANDS = {
    "coop/base2new_train.sh": ["1"],
    "coop/base2new_test.sh": ["1"],
    "coop/base2base_test.sh": ["1"],
    "coop_LMC/base2new_train_coop.sh": LMC,
    "coop_LMC/base2new_test_coop.sh": LMC,
    "coop_LMC/base2base_test_coop.sh": LMC,
}
FOLDERS = {
    "coop/base2new_train.sh": "output_coop/train_base/imagenet/shots_16/CoOp/vit_b16_ep100_ctxv1/seed1",
    "coop/base2new_test.sh": "output_coop/evaluate/test_new/imagenet/shots_16/CoOp/vit_b16_ep100_ctxv1/seed1",
    "coop/base2base_test.sh": "output_coop/evaluate/test_base/imagenet/shots_16/CoOp/vit_b16_ep100_ctxv1/seed1",
}
for _script, _part in (
    ("base2new_train", "train_base"),
    ("base2new_test", "evaluate/test_new"),
    ("base2base_test", "evaluate/test_base"),
):
    FOLDERS[f"coop_LMC/{_script}_coop.sh"] = (
        f"output_KgCoOp_COOP_LMC/CoOp/{_part}/imagenet/cosine/shots_16_10.0_1.0/KgCoOp_COOP_LMC/"
        "vit_b16_ep100_ctxv1/seed1"
    )
# the tiny CLIP in the place of ViT-B/16, one epoch
SMALL = ["MODEL.BACKBONE.NAME", "tiny", "INPUT.SIZE", "(32,32)", "OPTIM.MAX_EPOCH", "1"]
SMALL += ["DATALOADER.NUM_WORKERS", "0", "TRAINER.COOP.PREC", "fp32"]


@pytest.mark.parametrize("script", COMMANDS)
def test_each_command_writes_where_the_authors_did(clone, tmp_path, script):
    done = clone("bash", f"scripts/{script}", "imagenet", *COMMANDS[script], output=tmp_path, DRY_RUN="1")
    assert f"--output-dir {tmp_path / FOLDERS[script]} " in done.stdout
    assert not any(tmp_path.iterdir())


def test_commands_run_from_mergetune_and_from_anywhere(clone, tmp_path):
    words = ["imagenet", "1"]
    at_root = clone("bash", "scripts/coop/base2new_train.sh", *words, DRY_RUN="1").stdout
    inside = clone("sh", "scripts/coop/base2new_train.sh", *words, cwd=ROOT / "mergetune", DRY_RUN="1").stdout
    away = clone("bash", ROOT / "scripts/coop/base2new_train.sh", *words, cwd=tmp_path, DRY_RUN="1").stdout
    assert at_root == inside == away
    assert str(ROOT / "output") in at_root and str(ROOT / "data") in at_root


@pytest.mark.parametrize("script", COMMANDS)
@pytest.mark.parametrize("words", [[], ["imagenet"], ["imagenet", *LMC, "more"], ["imagenet", "1", "--", "KEY"]])
def test_wrong_arguments_print_the_usage(clone, script, words):
    done = clone("bash", f"scripts/{script}", *words, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: scripts/{script} ")


def test_unknown_data_set_names_the_known_ones(clone):
    done = clone("bash", "scripts/coop/base2new_train.sh", "imagenette", "1", check=False)
    assert done.returncode == 2
    assert "imagenette" in done.stderr and "caltech101" in done.stderr


def test_missing_stage1_names_the_command_that_makes_it(clone, imagenet_root, tmp_path):
    done = clone(
        "bash", "scripts/coop_LMC/base2new_train_coop.sh", "imagenet", *LMC,
        data=imagenet_root, output=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "bash scripts/coop/base2new_train.sh imagenet 1" in done.stderr
    assert not any(tmp_path.iterdir())


def test_the_sequence_runs_on_a_small_imagenet(clone, imagenet_root, tmp_path):
    for script, words in COMMANDS.items():
        clone("bash", f"scripts/{script}", "imagenet", *words, "--", *SMALL, data=imagenet_root, output=tmp_path)
        results = json.loads((tmp_path / FOLDERS[script] / "results.json").read_text())
        assert results["dataset"] == "ImageNet"
        assert results["subset"] == ("new" if "new_test" in script else "base")
        assert results["total"] == 6  # 2 of the 4 classes, 3 pictures each
        assert results["seed"] == 1
    trained = tmp_path / FOLDERS["coop_LMC/base2new_train_coop.sh"]
    assert (trained / "prompt_mid_learner" / "checkpoint").is_file()
    assert "Finish training" in (trained / "log.txt").read_text()
    again = clone("bash", "scripts/coop/base2new_train.sh", "imagenet", "1", data=imagenet_root, output=tmp_path)
    assert "finished: skipped" in again.stdout
    table = clone("bash", "-c", f'"$VIRTUAL_ENV/bin/python" -m mergetune.report {tmp_path}').stdout
    assert "CoOp" in table and "ImageNet" in table
