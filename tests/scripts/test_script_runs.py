"""The commands run for real, the first of them through the shell: small data, one epoch."""

import json
import re

import pytest

from dassl.utils import UserError
from mergetune import report
from scripts.commands import COMMANDS
from scripts.run import check_needs, main, parse
from scripts.workers import run_one_job
from tests.conftest import ROOT

LMC = ["10.0", "cosine", "True", "1.0", "1", "vit_b16_ep100_ctxv1"]
COOP = {
    "coop/base2new_train": ["1"],
    "coop/base2new_test": ["1"],
    "coop/base2base_test": ["1"],
    "coop_LMC/base2new_train_coop": LMC,
    "coop_LMC/base2new_test_coop": LMC,
    "coop_LMC/base2base_test_coop": LMC,
}
# the tiny CLIP in the place of ViT-B/16, one epoch
SMALL = ["MODEL.BACKBONE.NAME", "tiny", "INPUT.SIZE", "(32,32)", "OPTIM.MAX_EPOCH", "1"]
SMALL += ["DATALOADER.NUM_WORKERS", "0", "TRAINER.COOP.PREC", "fp32"]
ONE_EPOCH = ["OPTIM.MAX_EPOCH", "1", "FEATURES.VIEWS", "1", "DATASET.NUM_SHOTS", "2", "TEST.OTHERS", "[]"]
PROMPTKD = "vit_b16_c2_ep20_batch8_4+4ctx"
# one chain a method: stage 1, stage 2, and a test of it
CHAINS = {
    "KgCoOp": [
        "kgcoop/base2new_train toy_digits 8.0 1",
        "kgcoop/base2new_test toy_digits 1",
        "kgcoop_LMC/base2new_train_kgcoop toy_digits 10.0 1.0 1 vit_b16_ep100_ctxv1",
        "kgcoop_LMC/base2base_test_kgcoop toy_digits 10.0 1.0 1 vit_b16_ep100_ctxv1",
    ],
    "MMA": [
        "mma/base2new_train toy_digits 1 vit_b16_ep5",
        "mma_LMC/base2new_train_mma toy_digits 10.0 vit_b16_ep5 1",
        "mma_LMC/base2new_test_mma toy_digits 10.0 vit_b16_ep5 1",
    ],
    "PromptKD": [
        "promptsrc/base2new_train toy_digits 1",
        "promptkd/base2new_train toy_digits 1",
        "promptkd_LMC/base2new_train_promptkd toy_digits 1 {STUDENT} 10.0",
        "promptkd_LMC/base2new_test_promptkd toy_digits 1 {STUDENT} 10.0",
    ],
    "across data sets": [
        "coop/xd_train toy_digits 1",
        "coop/xd_test toy_letters 1 toy_digits",
    ],
}


def script(name):
    return ROOT / "scripts" / f"{name}.sh"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`command(name, words, pairs, data)`: a script's run, in this process."""

    def run(name, words, pairs, data):
        monkeypatch.setenv("DATA", str(data))
        job, *_ = parse(name, [*words, *(["--", *pairs] if pairs else [])])
        check_needs(job)
        run_one_job(job)

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OUTPUT", str(tmp_path))
    return run


def test_commands_run_from_mergetune_and_from_anywhere(clone, tmp_path):
    words = ["imagenet", "1"]
    at_root = clone("bash", "scripts/coop/base2new_train.sh", *words, DRY_RUN="1").stdout
    inside = clone("sh", "scripts/coop/base2new_train.sh", *words, cwd=ROOT / "mergetune", DRY_RUN="1").stdout
    away = clone("bash", script("coop/base2new_train"), *words, cwd=tmp_path, DRY_RUN="1").stdout
    assert at_root == inside == away
    assert str(ROOT / "output") in at_root and str(ROOT / "data") in at_root


@pytest.mark.parametrize("words", [[], ["imagenet"], ["imagenet", *LMC, "more"], ["imagenet", "1", "--", "KEY"]])
@pytest.mark.parametrize("name", ["coop/base2new_train", "coop_LMC/base2new_test_coop"])
def test_wrong_arguments_print_the_usage(clone, name, words):
    done = clone("bash", script(name), *words, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: scripts/{name}.sh ")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("coop/base2new_train imagenette 1", ["imagenette", "caltech101"]),
        ("coop/base2new_train caltech101 one", ["SEED is 'one'"]),
        ("coop/base2new_train caltech101 ²", ["SEED is '²'"]),
        ("mma/base2new_train caltech101 1 vit_b16_ep6", ["vit_b16_ep6", "vit_b16_ep5"]),
        ("merge/base2new ties copp caltech101 1", ["copp", "kgcoop"]),
        ("coop/base2new_train caltech101 1 SWEEP=../../x", ["does not lie below OUTPUT"]),
        ("kgcoop/base2new_train caltech101 ../../../../../../../x 1", ["does not lie below OUTPUT"]),
    ],
)
def test_an_unknown_name_is_told_with_the_known_ones(clone, line, told):
    name, *words = line.split()
    done = clone("bash", script(name), *words, check=False)
    assert done.returncode == 2
    assert all(text in done.stderr for text in told) and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"coop_LMC/base2new_train_coop imagenet {' '.join(LMC)}", "bash scripts/coop/base2new_train.sh imagenet 1"),
        ("kgcoop/base2new_test imagenet 1", "bash scripts/kgcoop/base2new_train.sh imagenet 8.0 1"),
        ("coop/xd_test dtd 1", "bash scripts/coop/xd_train.sh imagenet 1"),
        ("promptkd/base2new_train dtd 1", "no teacher in"),
        ("promptkd_LMC/base2new_train_promptkd dtd 1 /no/student 10.0", "/no/student"),
        ("coop/dg_test imagenet_a 1", "bash scripts/coop/xd_train.sh imagenet 1"),
    ],
)
def test_what_is_missing_is_told_with_the_command_that_makes_it(monkeypatch, tmp_path, line, told):
    monkeypatch.setenv("OUTPUT", str(tmp_path))
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=re.escape(told)):
        main(line.split())
    assert not any(tmp_path.iterdir())


def test_the_sequence_runs_on_a_small_imagenet(clone, command, imagenet_root, tmp_path, capsys):
    for name, words in COOP.items():
        if name == "coop/base2new_train":
            first = ["bash", script(name), "imagenet", *words, "--", *SMALL]
            clone(*first, data=imagenet_root, output=tmp_path)
        else:
            command(name, ["imagenet", *words], SMALL, imagenet_root)
        results = results_of(name, "imagenet", *words)
        assert results["dataset"] == "ImageNet"
        assert results["subset"] == ("new" if "new_test" in name else "base")
        assert results["total"] == 6  # 2 of the 4 classes, 3 images each
        assert results["seed"] == 1
    trained = folder_of("coop_LMC/base2new_train_coop", "imagenet", *LMC)
    assert (trained / "prompt_mid_learner" / "checkpoint").is_file()
    assert "Finish training" in (trained / "log.txt").read_text()
    assert "finished: skipped" in clone(*first, data=imagenet_root, output=tmp_path).stdout
    with pytest.raises(UserError, match="MAX_EPOCH 1, asked for 3. --overwrite does .* another OUTPUT keeps"):
        main(["coop/base2new_train", "imagenet", "1", "--", *SMALL, "OPTIM.MAX_EPOCH", "3"])
    assert main(["coop/base2new_train", "imagenet", "1", "--overwrite", "--", *SMALL, "OPTIM.MAX_EPOCH", "2"]) == 0
    assert results_of("coop/base2new_train", "imagenet", "1")["max_epoch"] == 2
    with pytest.raises(UserError, match="are others than those that were scored"):  # stage 1's, by its evaluation
        main(["coop/base2new_test", "imagenet", "1", "--", *SMALL])
    report.main([str(tmp_path)])
    table = capsys.readouterr().out
    assert "CoOp" in table and "ImageNet" in table


def folder_of(name, *words):
    return parse(name, list(words))[0].folder


def results_of(name, *words):
    return json.loads((folder_of(name, *words) / COMMANDS[name].marker).read_text())


@pytest.mark.parametrize("chain", CHAINS)
def test_each_method_runs_from_its_first_command_to_its_test(command, toy_data, chain):
    student = folder_of("promptkd/base2new_train", "toy_digits", "1", "SHOTS=2")
    for line in CHAINS[chain]:
        name, *words = line.format(STUDENT=student).split()
        declared = COMMANDS[name]
        pairs = [] if declared.module else ONE_EPOCH
        command(name, words, pairs, toy_data)
        results = results_of(name, *words, "SHOTS=2")  # the folder says the shots that are set
        assert 0 <= results["metrics"]["accuracy"] <= 100
        if not declared.module:
            assert results["subset"] == declared.subset
            assert results["kind"] == ("eval" if declared.evaluates else "train")
            assert results["protocol"] == declared.protocol.replace("base2novel", "base2new")
