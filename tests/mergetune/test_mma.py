"""MultiModalAdapter and MMA_LMC through train.py, on images from files and the tiny CLIP."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

import train
from dassl.clip import cosine_logits, text_classifier
from dassl.engine import build_trainer
from dassl.utils import UserError, set_random_seed
from mergetune.stage2 import trainable
from tests.benchmarks.task import clip_towers, count_passes

TINY = ["TRAINER.MMADAPTER.PREC", "fp32", "TRAINER.MMADAPTER.ADAPTER_START", "2", "TRAINER.MMADAPTER.ADAPTER_END", "4"]
CONFIGS = {"MultiModalAdapter": "vit_b16_ep5", "MMA_LMC": "released"}


@pytest.fixture
def run(argv, tmp_path):
    """`run(trainer, name, *words, config=, KEY=)` trains or evaluates into tmp_path/name; returns the folder."""

    def line(trainer, name, *words, config="", **keys):
        where = f"configs/trainers/{trainer}/{config or CONFIGS[trainer]}.yaml"
        pairs = [str(word) for key, value in keys.items() for word in (key.replace("__", "."), value)]
        return argv("--config-file", where, *words, *TINY, *pairs, name=name, trainer=trainer)

    def go(*words, **keys):
        train.main(line(*words, **keys))
        return tmp_path / words[1]

    def built(*words, **keys):
        set_random_seed(1)
        return build_trainer(train.setup_cfg(train.build_parser().parse_intermixed_args(line(*words, **keys))))

    go.built = built
    return go


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("stage1") / "run"


@pytest.fixture
def stage1(run, kept):
    """A finished stage-1 run, the same for all tests here."""
    if not kept.exists():
        shutil.copytree(run("MultiModalAdapter", "stage1", OPTIM__LR=0.01), kept)
    return kept


def results(folder):
    return json.loads((folder / "results.json").read_text())


def weights(folder):
    """What the last epoch's checkpoint holds."""
    files = sorted((folder / "adapter_learner").glob("model.pth.tar-*"))
    return torch.load(files[-1], weights_only=True)["state_dict"]


def batch_of(trainer):
    trainer.set_model_mode("train")
    return next(iter(trainer.train_loader_x))


def passes(trainer, call):
    """{tower: (passes, those with a graph)} of a call."""
    with count_passes(clip_towers(trainer.clip.module)) as seen:
        call()
    return {name: tuple(counts) for name, counts in seen.items()}


def test_stage_1_saves_adapters_alone_and_is_evaluated_again(run, stage1):
    state = weights(stage1)
    parts = ("text_adapter", "visual_adapter", "shared_adapter")
    assert {key.split(".")[0] for key in state} == set(parts)
    assert {key.split(".")[1] for key in state} == {"2", "3", "4"}
    assert state["text_adapter.4.down.0.weight"].shape == (32, 128)
    test = run("MultiModalAdapter", "test", "--eval-only", "--model-dir", stage1)
    assert results(test)["correct"] == results(stage1)["correct"]
    new = run("MultiModalAdapter", "new", "--eval-only", "--model-dir", stage1, DATASET__SUBSAMPLE_CLASSES="new")
    assert results(new)["data_seen"] == "18 shots of base classes"
    assert results(new)["templates"] == "'a photo of a {}.' through adapters"


def test_training_reads_pixels_whatever_the_bank_holds(run, stage1):
    """Image features change with every step, so FEATURES is not for these trainers."""
    banked = run("MultiModalAdapter", "banked", OPTIM__LR=0.01, FEATURES__VIEWS=2)
    assert all(torch.equal(value, weights(stage1)[name]) for name, value in weights(banked).items())


def test_training_learns_and_leaves_the_shared_clip_as_it_was(run):
    trainer = run.built("MultiModalAdapter", "one", OPTIM__LR=0.005)
    batch = batch_of(trainer)
    zero_shot = text_classifier(trainer.clip, trainer.classnames, [trainer.template])
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 100
    losses = [float(trainer.forward_backward(batch)["loss"]) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert torch.equal(zero_shot, text_classifier(trainer.clip, trainer.classnames, [trainer.template]))
    assert all(not value.requires_grad and value.grad is None for value in trainer.clip.module.parameters())


def test_each_evaluation_encodes_the_texts_of_its_own_weights(run):
    """The released code kept those of the first evaluation."""
    trainer = run.built("MultiModalAdapter", "one")
    seen = []
    inference = trainer.model_inference
    trainer.model_inference = lambda images: seen.append(inference(images)) or seen[-1]
    counts = [passes(trainer, lambda: trainer.test("test"))["text"]]
    with torch.no_grad():
        for name, value in trainable(trainer.model).items():
            if name.startswith("text_adapter") and ".up." in name:
                value.mul_(500)
    counts.append(passes(trainer, lambda: trainer.test("test"))["text"])
    assert counts == [(1, 0), (1, 0)]
    assert not torch.allclose(seen[0], seen[1])
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    with torch.no_grad():
        torch.testing.assert_close(inference(images), seen[1])


def test_the_zero_shot_weights_are_clip_exactly(run, stage1):
    trainer = run.built("MMA_LMC", "one", "--resume-coop", stage1, config="paper")
    trainer.start_at(trainer.w1)
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    with torch.no_grad():
        raw = trainer.clip.encode_image(images)
        assert torch.equal(trainer.image_features(images), F.normalize(raw, dim=-1))
    assert torch.equal(trainer.class_vectors(), text_classifier(trainer.clip, trainer.classnames, ["a photo of a {}."]))


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_tau_blends_the_start(run, stage1, tau):
    """w1 differs from w2 in the up-projections alone, which are 0 there."""
    trainer = run.built("MMA_LMC", "one", "--resume-coop", stage1, TRAINER__LMC__TAU=tau)
    for name, value in weights(stage1).items():
        expected = tau * value if ".up." in name else value
        torch.testing.assert_close(trainable(trainer.model)[name].detach(), expected)


def away_from_stage_1(trainer):
    """Else the path loss would be the plain one."""
    torch.manual_seed(7)
    with torch.no_grad():
        for value in trainer.model.parameters():
            value.add_(0.1 * torch.randn_like(value))


def plain_terms(trainer, batch, start, end, points):
    """ce and the mean over the path, point by point, at the image features of the adapters being trained."""
    images, labels = trainer.parse_batch_train(batch)
    image, scale = trainer.image_features(images), trainer.clip.logit_scale
    ce = F.cross_entropy(cosine_logits(image, trainer.text_features(), scale), labels)
    rows = [F.cross_entropy(cosine_logits(image, start + t * (end - start), scale), labels) for t in points]
    return ce, torch.stack(rows).mean()


def test_the_papers_path_runs_from_the_stage_1_class_vectors(run, stage1):
    trainer = run.built("MMA_LMC", "one", "--resume-coop", stage1, config="paper", TRAINER__MMADAPTER__ADAPTER_SCALE=1)
    stage = run.built("MultiModalAdapter", "two", TRAINER__MMADAPTER__ADAPTER_SCALE=1)
    stage.model.load_state_dict(weights(stage1))
    away_from_stage_1(trainer)
    batch = batch_of(trainer)
    losses = trainer.losses(batch)
    assert set(losses) == {"ce", "anchor", "lmc"}
    f2, f = stage.class_vectors(), trainer.text_features()
    ce, path = plain_terms(trainer, batch, f2, f, [0, 0.2, 0.4, 0.6, 0.8])
    torch.testing.assert_close(losses["ce"], ce)
    torch.testing.assert_close(losses["lmc"], 0.5 * path)
    assert abs(path - ce) > 1e-4
    f1 = text_classifier(trainer.clip, trainer.classnames, [trainer.template])
    gap = (F.normalize(f, dim=-1) - F.normalize(f1, dim=-1)).square().sum(-1).mean()
    torch.testing.assert_close(losses["anchor"], 8 * gap)


def test_the_released_path_runs_to_the_normalised_zero_shot_class_vectors(run, stage1):
    trainer = run.built("MMA_LMC", "one", "--resume-coop", stage1)
    away_from_stage_1(trainer)
    batch = batch_of(trainer)
    losses = trainer.losses(batch)
    assert set(losses) == {"ce", "lmc"}
    f1 = text_classifier(trainer.clip, trainer.classnames, [trainer.template])
    ce, path = plain_terms(trainer, batch, trainer.text_features(), F.normalize(f1, dim=-1), [0.1, 0.3, 0.5, 0.7, 0.9])
    rounding = 4 * trainer.clip.logit_scale.item() * torch.finfo(torch.float32).eps  # of logits, up to scale x cosine
    torch.testing.assert_close(losses["ce"], ce, rtol=0, atol=rounding)
    torch.testing.assert_close(losses["lmc"], 10 * path, rtol=0, atol=10 * rounding)


@pytest.mark.parametrize("preset", ["released", "paper", "continued"])
def test_a_step_is_one_image_pass_and_one_text_pass(run, stage1, preset):
    trainer = run.built("MMA_LMC", "one", "--resume-coop", stage1, config=preset)
    batch = batch_of(trainer)
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 100
    for _ in range(2):
        seen = passes(trainer, lambda: trainer.forward_backward(batch))
        assert seen == {"image": (1, 1), "text": (1, 1)}


def test_weight_space_walks_between_adapters(run, stage1):
    keys = {"TRAINER__LMC__SPACE": "weights", "TRAINER__LMC__NUM_SAMPLES": 2}
    trainer = run.built("MMA_LMC", "one", "--resume-coop", stage1, config="paper", **keys)
    losses = trainer.losses(batch_of(trainer))
    gaps = [(0.3 * v).square().sum() for name, v in weights(stage1).items() if ".up." in name]
    torch.testing.assert_close(losses["anchor"], 8 * torch.stack(gaps).sum())
    folder = run("MMA_LMC", "two", "--resume-coop", stage1, config="paper", OPTIM__MAX_EPOCH=1, **keys)
    assert results(folder)["preset"].startswith("paper, changed: ")


def test_presets_are_the_papers_and_the_released_values():
    def lmc(name, trainer="MMA_LMC"):
        words = ["--trainer", trainer, "--config-file", f"configs/trainers/{trainer}/{name}.yaml"]
        cfg = train.setup_cfg(train.build_parser().parse_intermixed_args(words))
        own, optim, adapter = cfg.TRAINER.LMC, cfg.OPTIM, cfg.TRAINER.MMADAPTER
        assert (optim.LR, optim.WARMUP_EPOCH, optim.LR_SCHEDULER, adapter.ADAPTER_SCALE) == (0.0015, 0, "cosine", 0.001)
        assert (adapter.ADAPTER_START, adapter.ADAPTER_END, adapter.ADAPTER_DIM) == (5, 12, 32)
        line = (own.PATH_TO, own.LAMBDA, own.BETA, own.TAU, own.NUM_SAMPLES, own.GRID)
        return cfg.PRESET, *line, cfg.TEST.FINAL_MODEL, optim.MAX_EPOCH, cfg.DATALOADER.TRAIN_X.BATCH_SIZE

    one_sided = ("released", "zero_shot", 0.0, 10.0, 1.0, 5, "released", "best_val", 5)
    assert lmc("released") == lmc("vit_b16_ep5") == (*one_sided, 16)
    assert lmc("vit_b16_ep5_imnet") == (*one_sided, 128)
    assert lmc("paper") == ("paper", "stage1", 8.0, 0.5, 0.3, 5, "uniform", "last_step", 5, 16)
    assert lmc("continued")[2:4] == (0.0, 0.0)
    assert lmc("vit_b16_ep5", "MultiModalAdapter")[-2:] == (5, 16)
    assert lmc("vit_b16_ep5_imnet", "MultiModalAdapter")[-2:] == (5, 128)


def test_the_released_key_sets_beta(run, stage1):
    assert run.built("MMA_LMC", "one", "--resume-coop", stage1, TRAINER__COOP__W_LMC=4.0).beta == 4.0


def test_zero_shot_class_vectors_come_from_the_template_of_zero_shot_clip(run, stage1):
    """As released: for DTD that is not KgCoOp's."""
    trainer = run.built("MMA_LMC", "one", "--resume-coop", stage1)
    trainer.dm.dataset.templates = {"coop": "{} texture.", "kgcoop": "a photo of a {}, a type of texture."}
    expected = text_classifier(trainer.clip, trainer.classnames, ["{} texture."])
    torch.testing.assert_close(trainer.zero_shot_vectors(), expected)


def test_the_authors_file_is_stage_1_and_a_misfit_is_named(run, stage1, tmp_path):
    state = weights(stage1)
    buffers = {"token_embedding": torch.zeros(3, 77, 128), "tokenized_prompts": torch.zeros(3, 77, dtype=torch.long)}
    path = tmp_path / "theirs" / "adapter_learner" / "model.pth.tar-5"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": state | buffers, "epoch": 5}, path)
    trainer = run.built("MMA_LMC", "one", "--resume-coop", tmp_path / "theirs")
    assert all(torch.equal(trainer.w2[name], value) for name, value in state.items())
    evaluated = run("MultiModalAdapter", "test", "--eval-only", "--model-dir", tmp_path / "theirs")
    assert results(evaluated)["correct"] == results(stage1)["correct"]
    state["visual_adapter.5.up.bias"] = state.pop("visual_adapter.4.up.bias")
    torch.save({"state_dict": state, "epoch": 5}, path)
    message = r"lacks visual_adapter\.4\.up\.bias; it has besides visual_adapter\.5\.up\.bias"
    with pytest.raises(UserError, match=message):
        run("MMA_LMC", "two", "--resume-coop", tmp_path / "theirs")


def test_blocks_that_are_not_there_are_refused_before_training(run, tmp_path):
    keys = {"TRAINER__MMADAPTER__ADAPTER_START": 5, "TRAINER__MMADAPTER__ADAPTER_END": 12}
    with pytest.raises(UserError, match="Adapters in blocks up to 12, but the text tower of tiny has 4 blocks"):
        run("MultiModalAdapter", "one", **keys)
    assert not (tmp_path / "one" / "adapter_learner").exists()
    with pytest.raises(UserError, match="--resume-coop"):
        run("MMA_LMC", "two")


def test_the_toy_world_from_the_command_line(tmp_path):
    """Stage 1, stage 2 from its folder, and the new classes, by the yamls that the benchmark runs."""

    def call(trainer, config, name, *words, subset="base"):
        flags = f"--root {tmp_path / 'data'} --seed 11 --trainer {trainer} --output-dir {tmp_path / name}"
        files = f"--dataset-config-file configs/datasets/toy_arrows.yaml --config-file configs/trainers/{config}.yaml"
        pairs = f"DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES {subset} OPTIM.MAX_EPOCH 1"
        train.main([*flags.split(), *files.split(), *map(str, words), *pairs.split()])
        return results(tmp_path / name)

    first = call("MultiModalAdapter", "MultiModalAdapter/vit_b16_ep20", "stage1")
    second = call("MMA_LMC", "MMA_LMC/paper_ep20", "paper", "--resume-coop", tmp_path / "stage1")
    assert second["lmc"]["BETA"] == 0.5 and second["total"] == first["total"]
    assert weights(tmp_path / "paper").keys() == weights(tmp_path / "stage1").keys()
    new = ("--eval-only", "--model-dir", tmp_path / "paper")
    assert call("MMA_LMC", "MMA_LMC/paper_ep20", "new", *new, subset="new")["subset"] == "new"
