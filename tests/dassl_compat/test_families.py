"""Public trainer families and data sets, as such projects write them, trained, saved, loaded and tested unmodified."""

import os
import pickle
import random
import subprocess
import sys

import pytest
import torch

from dassl.data.datasets import build_dataset
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import load_checkpoint, set_random_seed
from tests.conftest import ROOT
from tests.fixtures import dialect_train
from tests.fixtures.dassl_style_world import CLASSES, write_images
from tests.fixtures.interpreter import Python

PAIRS = [
    *("USE_CUDA", "False", "DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "8"),
    *("INPUT.SIZE", "(8, 8)", "INPUT.TRANSFORMS", '("random_resized_crop", "random_flip", "normalize")'),
    *("DATASET.NAME", "DialectDescribed", "DATASET.NUM_SHOTS", "4", "TRAINER.MODAL", "fewshot"),
    *("OPTIM.NAME", "sgd", "OPTIM.LR", "0.02", "OPTIM.MAX_EPOCH", "2", "OPTIM.LR_SCHEDULER", "cosine"),
    *("OPTIM.WARMUP_EPOCH", "1", "OPTIM.WARMUP_TYPE", "constant", "OPTIM.WARMUP_CONS_LR", "1e-5"),
]
MODELS = {
    "DialectCoOp": ["prompt_learner"],
    "DialectCoCoOp": ["prompt_learner"],
    "DialectKgCoOp": ["prompt_learner"],
    "DialectProGrad": ["prompt_learner"],
    "DialectMaPLe": ["MultiModalPromptLearner"],
    "DialectPromptSRC": ["VLPromptLearner"],
    "DialectAdapter": ["adapter_learner"],
    "DialectPromptKD": ["VLPromptLearner"],
    "DialectMeanTeacher": ["model", "teacher"],
}
KEYS = {
    "DialectKgCoOp": {"DATASET.NAME": "DialectLarge"},
    "DialectAdapter": {"TEST.SPLIT": "val"},  # where its own end of training tests
    "DialectPromptKD": {"DATASET.NAME": "DialectWhole", "TRAINER.MODAL": "base2novel", "DATASET.NUM_SHOTS": 0},
    "DialectMeanTeacher": {"DATASET.NAME": "DialectStyles", "DATALOADER.K_TRANSFORMS": 2, "DATASET.NUM_SHOTS": 3},
}
USED = """cfg device dm _models batch_idx num_batches get_model_names register_model update_lr epoch evaluator
    model_backward_and_update set_model_mode test_loader val_loader write_scalar prograd_backward_and_update
    output_dir time_start close_writer train_loader"""
OVERRIDDEN = """build_model check_cfg forward_backward parse_batch_train parse_batch_test load_model model_inference
    test after_train __init__ build_data_loader"""
END_LINES = {"upstream": "Finish training", "fork": "Finished training"}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.cuda.amp:FutureWarning",
    "ignore:.*CUDA is not available:UserWarning",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def words(root, tmp_path):
    """`words(trainer, name, *more, **keys)` -> the command line of the client's train.py."""

    def made(trainer, name, *more, **keys):
        backbone = "dialect_pooled" if trainer == "DialectMeanTeacher" else "ViT-B/16"
        pairs = KEYS.get(trainer, {}) | {key.replace("__", "."): value for key, value in keys.items()}
        return [
            *("--source-domains", "even", "--target-domains", "odd", "--backbone", backbone),
            *("--root", str(root), "--seed", "1", "--trainer", trainer, "--output-dir", str(tmp_path / name), *more),
            *PAIRS, *[str(word) for pair in pairs.items() for word in pair],
        ]  # fmt: skip

    return made


@pytest.fixture
def client(words, tmp_path, monkeypatch):
    """`client(trainer, name, *more, **keys)` runs it in this process -> its log."""

    def run(trainer, name, *more, **keys):
        monkeypatch.setattr(sys, "stdout", sys.stdout)  # setup_logger puts a tee there
        dialect_train.main(dialect_train.build_parser().parse_args(words(trainer, name, *more, **keys)))
        sys.stdout.flush()
        return (tmp_path / name / "log.txt").read_text()

    return run


def built(words, trainer, **keys):
    cfg = dialect_train.setup_cfg(dialect_train.build_parser().parse_args(words(trainer, "built", **keys)))
    set_random_seed(cfg.SEED)
    return build_trainer(cfg)


def parsed(log, signal, keyword="accuracy"):
    """What a client's parse_test_res.py reads: the last such line after a line equal to the signal."""
    value, heard = None, False
    for line in map(str.strip, log.splitlines()):
        heard = heard or line == signal
        if heard and line.startswith(f"* {keyword}: "):
            value = float(line.removeprefix(f"* {keyword}: ").rstrip("%"))
    return value


def weights(folder, model, epoch=2):
    return load_checkpoint(folder / model / f"model.pth.tar-{epoch}")["state_dict"]


@pytest.mark.parametrize("trainer", MODELS)
def test_trains_saves_loads_and_tests(trainer, client, tmp_path):
    log = client(trainer, "train")
    assert sorted(p.name for p in (tmp_path / "train").iterdir() if p.is_dir()) == [*MODELS[trainer], "tensorboard"]
    for name in MODELS[trainer]:
        folder = tmp_path / "train" / name
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "model.pth.tar-2"]
        assert (folder / "checkpoint").read_text() == "model.pth.tar-2\n"
    found = {name: parsed(log, signal) for name, signal in END_LINES.items()}
    assert found["upstream"] == found["fork"] is not None
    tested = client(trainer, "test", "--eval-only", "--model-dir", str(tmp_path / "train"), "--load-epoch", "2")
    assert parsed(tested, "=> result") == found["fork"]
    assert parsed(tested, "=> result", "macro_f1") == parsed(log, "Finished training", "macro_f1")
    assert not (tmp_path / "train" / "resume.pt").exists()


def test_the_fixtures_use_and_override_what_public_trainers_do():
    """Members that the public trainers' classes name, most often first."""
    text = "".join(
        (ROOT / "tests" / "fixtures" / f"dialect_{part}.py").read_text() for part in ("prompts", "deep", "unlabelled")
    )
    assert [name for name in USED.split() if f"self.{name}" not in text] == []
    assert [name for name in OVERRIDDEN.split() if f"    def {name}(self" not in text] == []


def test_swapped_in_averages_are_what_is_kept(words, tmp_path):
    """PromptSRC changes its weights in the last forward_backward of all; the file is written after that."""
    trainer = built(words, "DialectPromptSRC")
    trainer.train()
    kept = weights(tmp_path / "built", "VLPromptLearner")
    assert kept.keys() == trainer.swapped_in.keys()
    assert all(torch.equal(kept[key], trainer.swapped_in[key]) for key in kept)


def test_a_teacher_is_read_from_another_runs_file(client, words, tmp_path):
    client("DialectMaPLe", "teacher")
    file = tmp_path / "teacher" / "MultiModalPromptLearner" / "model.pth.tar-2"
    trainer = built(words, "DialectPromptKD", TRAINER__DIALECT__TEACHER=file)
    ctx = weights(tmp_path / "teacher", "MultiModalPromptLearner")["prompt_learner.ctx"]
    assert torch.equal(trainer.model_teacher.prompt_learner.ctx, ctx)
    assert not torch.equal(trainer.model.prompt_learner.ctx, ctx)


def test_base_to_new_and_the_best_epoch(client, tmp_path):
    """Amp with the trainer's own scaler; the best epoch is loaded on other classes, buffers left out."""
    keys = {"TRAINER__DIALECT__PREC": "amp", "TEST__FINAL_MODEL": "best_val"}
    client("DialectCoOp", "base", DATASET__SUBSAMPLE_CLASSES="base", **keys)
    folder = tmp_path / "base" / "prompt_learner"
    assert {path.name for path in folder.iterdir()} == {"checkpoint", "model.pth.tar-2", "model-best.pth.tar"}
    log = client(
        "DialectCoOp", "new", "--eval-only", "--model-dir", str(tmp_path / "base"), DATASET__SUBSAMPLE_CLASSES="new"
    )
    assert parsed(log, "=> result") is not None
    assert "Loading weights to prompt_learner" in log


def test_a_trainer_without_models(client, words):
    log = client("DialectZeroshot", "zeroshot", "--eval-only")
    assert "load_model() is skipped" in log
    trainer = built(words, "DialectZeroshot")
    trainer.set_model_mode("train")
    assert trainer.test(split="val") >= 0 and trainer.get_model_names() == []
    assert parsed(log, "=> result") == pytest.approx(trainer.test(), abs=0.01)


def test_a_clients_train_py_in_a_process_of_its_own_and_both_parsers_on_its_log(words, tmp_path):
    process = Python(["tests/fixtures/dialect_train.py", *words("DialectProGrad", "seed1")])
    printed, said = process.communicate()
    assert process.returncode == 0, said
    log = (tmp_path / "seed1" / "log.txt").read_text()
    assert "Setting fixed seed: 1" in printed and "Setting fixed seed" not in log  # said before the tee is there
    assert "SUBSAMPLE_CLASSES: all" in log and "Pillow (" in log
    accuracy = parsed(log, "Finished training")
    tool = ROOT / "Dassl.ProGrad.pytorch" / "tools" / "parse_test_res.py"
    done = subprocess.run([sys.executable, tool, tmp_path], capture_output=True, text=True)
    assert f"* accuracy: {accuracy:.2f}% +- 0.00%" in done.stdout, done.stderr


# Data sets


def dataset(words, name, **keys):
    keys = {"DATASET__NAME": name} | keys
    cfg = dialect_train.setup_cfg(dialect_train.build_parser().parse_args(words("DialectCoOp", "data", **keys)))
    return build_dataset(cfg)


def test_few_shot_lists_are_drawn_once_and_read_from_their_pickle(words, root):
    set_random_seed(3)
    drawn = dataset(words, "DialectDescribed", SEED=3)
    file = root / "style_pets" / "split_fewshot_described" / "shot_4-seed_3.pkl"
    with open(file, "rb") as content:
        kept = pickle.load(content)
    assert [item.impath for item in kept["train"]] == [item.impath for item in drawn.train_x]
    random.seed(99)
    again = dataset(words, "DialectDescribed", SEED=3)
    assert [item.impath for item in again.val] == [item.impath for item in drawn.val]
    assert again.classnames == list(CLASSES) and len(again.train_x) == 24


def test_class_names_of_a_text_file_and_validation_that_is_the_test(words):
    found = dataset(words, "DialectLarge", DATASET__NUM_SHOTS=-1, DATASET__SUBSAMPLE_CLASSES="new")
    assert found.classnames == [f"the {name}" for name in CLASSES[3:]]
    assert found.val is found.test and len(found.test) == 3 * 6


def test_all_classes_trained_halves_tested(words):
    found = dataset(words, "DialectWhole", DATASET__NUM_SHOTS=0, TRAINER__MODAL="base2novel")
    assert found.classnames == list(CLASSES)
    assert {item.label for item in found.val} == {item.label for item in found.test} == {0, 1, 2}
    assert {item.classname for item in found.test} == set(CLASSES[3:])


def test_domains_and_an_unlabelled_part(words):
    found = dataset(words, "DialectStyles", DATASET__NUM_SHOTS=3)
    assert (len(found.train_x), len(found.train_u), len(found.test)) == (18, 30, 12)
    assert found.val is None
    assert all(int(os.path.basename(item.impath)[:2]) % 2 == 0 for item in found.train_x)
    with pytest.raises(ValueError, match="Input domain must belong to"):
        dataset(words, "DialectStyles", DATASET__TARGET_DOMAINS='["third"]')


def test_every_fixture_is_registered_under_its_own_name():
    assert set(MODELS) | {"DialectZeroshot"} <= set(TRAINER_REGISTRY.registered_names())
