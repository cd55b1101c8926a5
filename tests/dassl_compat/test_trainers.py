"""Other people's trainers and data sets, in Dassl's own style, run on the engine as they are."""

import json
import pickle
import random

import pytest
import torch
from yacs.config import CfgNode as CN

from dassl.config import leaves
from dassl.data import DataManager, DatasetWrapper
from dassl.data.datasets import build_dataset
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.engine.launch import run
from dassl.utils import MissingFile, load_checkpoint, set_random_seed
from tests.fixtures import dassl_defaults
from tests.fixtures.dassl_style_world import CLASSES, style_config, write_images

STYLES = ["StylePrompt", "StyleTwoLosses", "StyleContinued"]
OVERRIDDEN = {
    "check_cfg", "build_model", "forward_backward", "parse_batch_train", "parse_batch_test", "load_model",
    "model_inference", "test", "after_train",
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.cuda.amp:FutureWarning")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def weights(folder, name, file):
    return load_checkpoint(folder / name / file)["state_dict"]


def test_the_fixtures_cover_what_public_trainers_override():
    own = {name for style in [*STYLES, "StyleZeroshot"] for name in vars(TRAINER_REGISTRY.get(style))}
    assert own >= OVERRIDDEN


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("final", ["last_step", "best_val"])
def test_trains_saves_loads_and_tests(style, final, root, tmp_path):
    cfg = style_config(root, tmp_path / "train", style, TEST__FINAL_MODEL=final)
    trained = run(cfg)
    best = ["model-best.pth.tar"] if final == "best_val" else []
    files = {path.name for path in (tmp_path / "train" / "prompt_learner").iterdir()}
    assert files == {"checkpoint", "model.pth.tar-2", *best}
    assert not (tmp_path / "train" / "resume.pt").exists()

    cfg = style_config(root, tmp_path / "test", style)
    split = "val" if style == "StyleContinued" else "test"  # its own after_train tests there
    cfg.TEST.SPLIT = split
    epoch = None if best else 2
    tested = run(cfg, eval_only=True, model_dir=str(tmp_path / "train"), load_epoch=epoch)
    assert tested["metrics"] == trained["metrics"]
    assert (tested["correct"], tested["total"]) == (trained["correct"], trained["total"])


@pytest.mark.parametrize("style", STYLES)
def test_training_teaches_something(style, root, tmp_path):
    cfg = style_config(root, tmp_path, style, OPTIM__MAX_EPOCH=12, OPTIM__LR=0.3)
    cfg.INPUT.TRANSFORMS = ("normalize",)
    set_random_seed(1)
    trainer = build_trainer(cfg)
    step, losses = trainer.forward_backward, []

    def noted(batch):
        summary = step(batch)
        losses.append(next(iter(summary.values())))
        return summary

    trainer.forward_backward = noted
    trainer.train()
    assert len(losses) == 36
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert trainer.get_current_lr() < 0.05 * cfg.OPTIM.LR  # stepped by the trainer each epoch


@pytest.mark.parametrize("style", STYLES)
def test_resumes_where_it_was_stopped(style, root, tmp_path):
    """The state in registered models goes on bit for bit; StyleTwoLosses' own count is announced as lost."""
    results = {}
    for name, stop in (("whole", None), ("halves", 2)):
        cfg = style_config(root, tmp_path / name, style, OPTIM__MAX_EPOCH=4, TEST__FINAL_MODEL="best_val")
        if stop:
            set_random_seed(1)
            with pytest.raises(KeyboardInterrupt):
                interrupt(build_trainer(cfg), stop).train()
        results[name] = run(cfg)
    assert results["halves"]["metrics"] == results["whole"]["metrics"]
    for file in ("model.pth.tar-4", "model-best.pth.tar"):
        whole, halves = (weights(tmp_path / name, "prompt_learner", file) for name in results)
        assert whole.keys() == halves.keys()
        assert all(torch.equal(whole[key], halves[key]) for key in whole)


def interrupt(trainer, epoch, batch=1):
    """The trainer, made to raise KeyboardInterrupt before that batch (both from 0)."""
    step = trainer.forward_backward

    def stopping(*args):
        if (trainer.epoch, trainer.batch_idx) == (epoch, batch):
            raise KeyboardInterrupt
        return step(*args)

    trainer.forward_backward = stopping
    return trainer


def bare_config(root, output, **keys):
    """The config of a repository that brings its own copy of Dassl's defaults, frozen."""
    ours, cfg = style_config(root, output, "StylePrompt", **keys), dassl_defaults.get_cfg_default()
    cfg.TRAINER.STYLEPROMPT, cfg.DATASET.SUBSAMPLE_CLASSES = CN(), "all"  # its extend_cfg
    values = dict(leaves(ours))
    for name, _ in leaves(cfg):
        cfg.merge_from_list([name, values[name]])
    cfg.TRAINER.STYLEPROMPT = CN({"PREC": "fp32"})
    cfg.freeze()
    return cfg


def test_a_repository_may_bring_its_own_copy_of_dassls_defaults(root, tmp_path):
    cfg = bare_config(root, tmp_path / "bare")
    assert "RESIZE" not in cfg.INPUT
    bare, ours = run(cfg), run(style_config(root, tmp_path / "ours", "StylePrompt"))
    assert bare["metrics"] == ours["metrics"]
    file = "model.pth.tar-2"
    assert torch.equal(*(weights(tmp_path / name, "prompt_learner", file)["ctx"] for name in ("bare", "ours")))
    assert run(bare_config(root, tmp_path / "eval"), eval_only=True, model_dir=str(tmp_path / "bare"), load_epoch=2)


@pytest.mark.parametrize(
    "entry",
    [
        build_trainer,
        lambda cfg: TRAINER_REGISTRY.get("StylePrompt")(cfg),
        DataManager,
        build_dataset,
        build_transform,
        lambda cfg: DatasetWrapper(cfg, [], is_train=True),
    ],
)
def test_each_entry_point_takes_a_config_without_our_keys(entry, root, tmp_path):
    assert entry(bare_config(root, tmp_path)) is not None


def test_a_trainer_without_models_evaluates(root, tmp_path):
    trainer = build_trainer(style_config(root, tmp_path, "StyleZeroshot"))
    assert trainer.get_model_names() == []
    trainer.load_model("")
    trainer.set_model_mode("eval")
    assert 0 <= trainer.test() <= 100
    assert trainer.resume_model_if_exist(str(tmp_path)) == 0


def test_a_second_trainer_inside_shares_nothing(root, tmp_path):
    trainer = build_trainer(style_config(root, tmp_path, "StyleContinued"))
    assert isinstance(trainer.zs, TrainerX)
    assert trainer.zs.get_model_names() == []
    assert trainer.get_model_names() == ["prompt_learner", "adapter_learner"]
    assert trainer.zs.test_loader is not trainer.test_loader


def test_a_save_model_as_the_fork_has_it_keeps_the_best(root, tmp_path):
    """Dassl 0.5 knows no val_result."""

    class StyleSaves(TRAINER_REGISTRY.get("StylePrompt")):
        def save_model(self, epoch, directory, is_best=False, model_name=""):
            self.saved = [*getattr(self, "saved", []), model_name]
            super().save_model(epoch, directory, is_best=is_best, model_name=model_name)

    cfg = style_config(root, tmp_path, "StylePrompt", TEST__FINAL_MODEL="best_val")
    set_random_seed(1)
    trainer = StyleSaves(cfg)
    trainer.train()
    assert trainer.saved[0] == "model-best.pth.tar" and trainer.saved[-1] == ""
    assert weights(tmp_path, "prompt_learner", "model-best.pth.tar")


def test_registered_part_alone_is_switched_and_saved(root, tmp_path):
    trainer = build_trainer(style_config(root, tmp_path, "StylePrompt"))
    trainer.set_model_mode("eval")
    assert trainer.model.training
    assert not trainer.model.prompt_learner.training
    trainer.save_model(0, str(tmp_path))
    saved = weights(tmp_path, "prompt_learner", "model.pth.tar-1")
    assert set(saved) == {"ctx", "token_prefix", "token_suffix"}


def test_amp_trainer_with_its_own_scaler(root, tmp_path):
    cfg = style_config(root, tmp_path, "StylePrompt", TRAINER__STYLEPROMPT__PREC="amp")
    result = run(cfg)
    assert result["precision"] == "amp"
    assert (tmp_path / "prompt_learner" / "model.pth.tar-2").is_file()


def test_checkpoint_of_one_class_list_loads_on_another(root, tmp_path):
    """Base to new: the class-name buffers change, the context stays."""
    cfg = style_config(root, tmp_path / "base", "StylePrompt", DATASET__SUBSAMPLE_CLASSES="base")
    run(cfg)
    context = weights(tmp_path / "base", "prompt_learner", "model.pth.tar-2")["ctx"]
    for style in ("StylePrompt", "StyleTwoLosses"):  # its own load_model, the engine's
        cfg = style_config(root, tmp_path / style, style, DATASET__SUBSAMPLE_CLASSES="new")
        trainer = build_trainer(cfg)
        trainer.load_model(str(tmp_path / "base"), epoch=2)
        assert torch.equal(trainer.model.prompt_learner.ctx, context)
        assert trainer.dm.dataset.classnames == list(CLASSES[3:])
    with pytest.raises(FileNotFoundError):
        trainer.load_model(str(tmp_path / "base"), epoch=3)
    with pytest.raises(MissingFile, match=r"found model\.pth\.tar-2"):
        trainer.load_model(str(tmp_path / "base"), epoch=3)


def test_data_set_draws_by_the_global_random_and_pickles_its_lists(root, tmp_path):
    cfg = style_config(root, tmp_path, "StylePrompt", SEED=5, DATASET__NUM_SHOTS=2)
    set_random_seed(5)
    drawn = build_dataset(cfg)
    split = json.loads((root / "style_pets" / "split_mine.json").read_text())
    random.seed(5)
    first_class = [row[0] for row in split["train"] if row[1] == split["train"][0][1]]
    expected = random.sample(first_class, 2)
    assert [item.impath.split("images/")[1] for item in drawn.train_x[:2]] == expected
    assert (len(drawn.train_x), len(drawn.val), len(drawn.test)) == (12, 12, 24)
    cached = build_dataset(cfg)  # from the pickle, whatever the generator's state
    assert [i.impath for i in cached.train_x] == [i.impath for i in drawn.train_x]
    with open(root / "style_pets" / "split_fewshot" / "shot_2-seed_5.pkl", "rb") as file:
        datum = pickle.load(file)["train"][0]
    assert type(datum).__module__ == "dassl.data.datasets.base_dataset"
    assert set(vars(datum)) == {"_impath", "_label", "_domain", "_classname"}


@pytest.mark.parametrize(("subset", "names"), [("base", CLASSES[:3]), ("new", CLASSES[3:]), ("all", CLASSES)])
def test_data_set_cuts_classes_by_hand(subset, names, root, tmp_path):
    data = build_dataset(style_config(root, tmp_path, "StylePrompt", DATASET__SUBSAMPLE_CLASSES=subset))
    assert data.classnames == list(names)
    assert {item.label for item in data.test} == set(range(len(names)))
