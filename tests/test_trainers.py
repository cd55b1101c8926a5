"""CoOp, CoOp_LMC and their controls, through train.py, on pictures from files and the tiny CLIP."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import train
from dassl.engine import build_trainer
from dassl.utils import UserError, set_random_seed
from mergetune.lmc import anchor_distance, line_loss

SMALL = ["INPUT.SIZE", "(32,32)", "DATALOADER.NUM_WORKERS", "0", "TRAINER.COOP.PREC", "fp32"]
SMALL += ["MODEL.BACKBONE.NAME", "tiny", "DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", "base"]
CONFIGS = {
    "CoOp": "CoOp/vit_b16_ep100_ctxv1",
    "CoOp_LMC": "CoOp_LMC/released",
    "ZeroshotCLIP": "ZeroshotCLIP/vit_b16",
}


@pytest.fixture
def run(pets_root, tmp_path):
    """`run(trainer, name, *words)` trains or evaluates into tmp_path/name; returns the folder."""

    def go(trainer, name, *words, config="", epochs=3, **keys):
        train.main(argv(trainer, name, *words, config=config, epochs=epochs, **keys))
        return tmp_path / name

    def argv(trainer, name, *words, config="", epochs=3, **keys):
        config = config or CONFIGS.get(trainer, "CoOp_LMC/released")
        pairs = [word for key, value in keys.items() for word in (key.replace("__", "."), str(value))]
        return [
            *("--root", str(pets_root), "--seed", "1", "--trainer", trainer, "--output-dir", str(tmp_path / name)),
            *("--dataset-config-file", "configs/datasets/oxford_pets.yaml"),
            *("--config-file", f"configs/trainers/{config}.yaml", *map(str, words)),
            *SMALL, *("FEATURES.DIR", str(tmp_path / "features"), "OPTIM.MAX_EPOCH", str(epochs)), *pairs,
        ]  # fmt: skip

    go.argv = argv
    return go


def context(folder, model="prompt_learner"):
    """The learned context of a run's last epoch."""
    files = sorted((Path(folder) / model).glob("model.pth.tar-*"))
    return torch.load(files[-1], weights_only=True)["state_dict"]["ctx"]


def built(run, trainer, *words, **keys):
    """A trainer of a command line, not yet trained."""
    args = train.build_parser().parse_intermixed_args(run.argv(trainer, "built", *words, **keys))
    set_random_seed(1)
    return build_trainer(train.setup_cfg(args))


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_coop_leaves_a_checkpoint_of_the_context_alone_and_its_results(run):
    folder = run("CoOp", "one")
    checkpoint = torch.load(folder / "prompt_learner" / "model.pth.tar-3", weights_only=True)
    assert list(checkpoint["state_dict"]) == ["ctx"]
    assert checkpoint["epoch"] == 3
    found = results(folder)
    assert found["backbone"]["name"] == "tiny" and len(found["backbone"]["digest"]) == 64
    assert found["classes"] == found["classes"] | {"count": 3, "first": "abyssinian", "last": "bengal"}
    assert found["total"] == 12
    test = run("CoOp", "two", "--eval-only", "--model-dir", folder)
    assert results(test)["correct"] == found["correct"]
    new = run("CoOp", "new", "--eval-only", "--model-dir", folder, DATASET__SUBSAMPLE_CLASSES="new")
    assert results(new)["data_seen"] == found["data_seen"] == "16 shots of base classes"


def test_the_bank_trains_what_pixels_train(run):
    pixels = context(run("CoOp", "pixels", epochs=4))
    bank = context(run("CoOp", "bank", epochs=4, FEATURES__VIEWS=4))
    again = context(run("CoOp", "again", epochs=4, FEATURES__VIEWS=4))
    fewer = context(run("CoOp", "fewer", epochs=4, FEATURES__VIEWS=1))
    torch.testing.assert_close(bank, pixels, rtol=0, atol=1e-5)
    assert torch.equal(bank, again)
    assert (fewer - pixels).abs().max() > 1e-5  # else the views were all alike and the test shows nothing


def test_zero_shot_scores_the_same_from_bank_and_pixels(run):
    folder = run("ZeroshotCLIP", "bank", "--eval-only")
    pixels = run("ZeroshotCLIP", "pixels", "--eval-only", FEATURES__TEST=False)
    assert results(folder)["correct"] == results(pixels)["correct"]
    assert results(folder)["templates"] == "a photo of a {}, a type of pet."


def test_at_its_start_the_path_costs_what_the_task_costs(run):
    stage1 = run("CoOp", "stage1")
    trainer = built(run, "CoOp_LMC", "--resume-coop", stage1)
    torch.testing.assert_close(trainer.model.ctx.detach(), context(stage1))
    trainer.model.train()
    losses = trainer.losses(next(iter(trainer.train_loader_x)))
    assert set(losses) == {"ce", "anchor", "lmc"}
    torch.testing.assert_close(losses["lmc"], losses["ce"], rtol=1e-5, atol=1e-6)  # BETA is 1, w = w2
    assert losses["anchor"] > 0


def test_the_anchor_vanishes_where_prompt_and_template_agree(run):
    """With the template "a photo of a {}." the zero-shot vectors are those of the untrained prompt."""
    stage1 = run("CoOp", "stage1")
    trainer = built(run, "CoOp_LMC", "--resume-coop", stage1)
    trainer.start_at(trainer.zero_shot_weights())
    trainer.f1 = trainer.class_vectors()
    loss = trainer.anchor(trainer.text_features())
    gradient = torch.autograd.grad(loss, trainer.model.ctx)[0]
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max().item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_tau_blends_the_start(run, tau):
    stage1 = run("CoOp", "stage1")
    trainer = built(run, "CoOp_LMC", "--resume-coop", stage1, TRAINER__LMC__TAU=tau)
    w1, w2 = trainer.zero_shot_weights()["ctx"], context(stage1)
    torch.testing.assert_close(trainer.model.ctx.detach(), (1 - tau) * w1 + tau * w2)


def test_weight_space_anchors_and_walks_between_contexts(run):
    stage1 = run("CoOp", "stage1")
    keys = {"TRAINER__LMC__SPACE": "weights", "TRAINER__LMC__DISTANCE": "l2sq", "TRAINER__LMC__LAMBDA": 2.0}
    trainer = built(run, "CoOp_LMC", "--resume-coop", stage1, **keys)
    batch = next(iter(trainer.train_loader_x))
    losses = trainer.losses(batch)
    w1, w2 = trainer.zero_shot_weights()["ctx"], context(stage1)
    torch.testing.assert_close(losses["anchor"], 2 * (w2 - w1).square().sum())
    torch.testing.assert_close(losses["lmc"], losses["ce"], rtol=1e-5, atol=1e-6)
    folder = run("CoOp_LMC", "trained", "--resume-coop", stage1, **keys)
    assert not torch.equal(context(folder, "prompt_mid_learner"), w2)


def test_the_one_sided_path_runs_to_the_zero_shot_head(run):
    """Raw current vectors at t = 0, normalised zero-shot ones at t = 1; here against the loop."""
    trainer = built(run, "CoOp_LMC", "--resume-coop", run("CoOp", "stage1"), TRAINER__LMC__PATH_TO="zero_shot")
    images, labels = trainer.parse_batch_train(next(iter(trainer.train_loader_x)))
    image, text = trainer.image_features(images), trainer.text_features()
    ends = text, torch.nn.functional.normalize(trainer.f1, dim=-1)
    slow = line_loss(lambda head: trainer.cross_entropy(image, head, labels), *ends, trainer.line)
    torch.testing.assert_close(trainer.feature_path(image, text, labels), slow)


def test_solutions_and_the_line_between_them(run):
    stage1 = run("CoOp", "stage1")
    trainer = built(run, "CoOp_LMC", "--resume-coop", stage1, TRAINER__LMC__TAU=0.5)
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    for space in ("features", "weights"):
        found = trainer.solutions(space)
        assert list(found) == ["zero_shot", "ours", "fine_tuned"]
        ends = trainer.path_logits(space, found["ours"], found["fine_tuned"], torch.tensor([0.0, 1.0]), images)
        torch.testing.assert_close(ends[0], trainer.model_inference(images))
        trainer_2 = built(run, "CoOp_LMC", "--resume-coop", stage1)  # TAU 1: starts at stage 1
        torch.testing.assert_close(ends[1], trainer_2.model_inference(images))
    assert torch.equal(found["zero_shot"]["ctx"], trainer.w1["ctx"])


def test_kgcoop_stays_nearer_to_zero_shot_than_coop(run):
    def distance(folder):
        trainer = built(run, "CoOp_LMC", "--resume-coop", folder)
        return anchor_distance(trainer.f2, trainer.f1, "cosine").item()

    keys = {"epochs": 8, "OPTIM__LR": 0.02}
    free = run("CoOp", "free", **keys)
    held = run("KgCoOp", "held", config="KgCoOp/vit_b16_ep100_ctxv1", **keys)
    none = run("KgCoOp", "none", config="KgCoOp/vit_b16_ep100_ctxv1", TRAINER__COOP__W=0.0, **keys)
    assert distance(held) < distance(none)
    assert "kg " in (held / "log.txt").read_text()
    free_batch = run("CoOp", "free128", DATALOADER__TRAIN_X__BATCH_SIZE=128, **keys)
    assert torch.equal(context(none), context(free_batch)) and not torch.equal(context(none), context(free))


def test_kgcoop_continues_like_coop(run):
    """One loss for both: from the same stage-1 file the two stage 2s are the same run."""
    stage1 = run("KgCoOp", "stage1", config="KgCoOp/vit_b16_ep100_ctxv1")
    ours = run("KgCoOp_LMC", "ours", "--resume-coop", stage1, config="KgCoOp_LMC/released")
    coop = run("CoOp_LMC", "coop", "--resume-coop", stage1)
    assert torch.equal(context(ours, "prompt_mid_learner"), context(coop, "prompt_mid_learner"))
    assert results(ours)["trainer"] == "KgCoOp_LMC"
    assert results(ours)["lmc"] == results(coop)["lmc"] and results(ours)["lmc"]["LAMBDA"] == 10.0


def test_an_evaluation_says_where_its_weights_come_from(run):
    stage1 = run("CoOp", "stage1")
    new = run("CoOp", "new", "--eval-only", "--model-dir", stage1, DATASET__SUBSAMPLE_CLASSES="new")
    assert (results(new)["source"], results(new)["source_subset"]) == ("OxfordPets", "base")
    assert results(new)["subset"] == "new"


def test_presets_are_the_papers_and_the_released_values(run):
    def lmc(name):
        args = train.build_parser().parse_intermixed_args(
            [*("--trainer", "CoOp_LMC", "--config-file", f"configs/trainers/CoOp_LMC/{name}.yaml")]
        )
        cfg = train.setup_cfg(args)
        own = cfg.TRAINER.LMC
        return (
            *(cfg.PRESET, own.TAU, own.DISTANCE, own.LAMBDA, own.BETA, own.NUM_SAMPLES, own.GRID),
            *(cfg.OPTIM.MAX_EPOCH, cfg.TEST.FINAL_MODEL, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.LR),
        )

    assert lmc("released") == (
        "released",
        1.0,
        "cosine",
        10.0,
        1.0,
        5,
        "released",
        100,
        "best_val",
        128,
        0.002,
    )
    assert lmc("vit_b16_ep100_ctxv1") == lmc("released")
    assert lmc("paper") == ("paper", 0.3, "l2sq", 8.0, 0.5, 5, "uniform", 50, "last_step", 128, 0.002)
    assert lmc("continued")[2:5] == ("cosine", 0.0, 0.0)


def test_old_name_and_old_keys_train_the_same_run(run):
    stage1 = run("CoOp", "stage1")
    new = {"TRAINER__LMC__LAMBDA": 8.0, "TRAINER__LMC__BETA": 0.5, "TRAINER__LMC__DISTANCE": "l2sq"}
    old = {"TRAINER__COOP__W": 8.0, "TRAINER__COOP__W_LMC": 0.5, "TRAINER__COOP__LOSS_TYPE": "l2sq"}
    ours = run("CoOp_LMC", "new", "--resume-coop", stage1, **new)
    theirs = run("KgCoOp_COOP_LMC", "old", "--resume-coop", stage1, **old)
    assert torch.equal(context(ours, "prompt_mid_learner"), context(theirs, "prompt_mid_learner"))
    changed = "released, changed: OPTIM.MAX_EPOCH, TRAINER.LMC.DISTANCE, TRAINER.LMC.LAMBDA, TRAINER.LMC.BETA"
    assert results(ours)["preset"] == results(theirs)["preset"] == changed
    off = built(run, "CoOp_LMC", "--resume-coop", stage1, TRAINER__COOP__COOP_LMC=False)
    assert off.beta == 0
    with pytest.raises(UserError, match=r"TRAINER\.COOP\.W = 8\.0 and TRAINER\.LMC\.LAMBDA = 9\.0"):
        built(run, "CoOp_LMC", TRAINER__COOP__W=8.0, TRAINER__LMC__LAMBDA=9.0)


def released_checkpoint(trainer, path, n_ctx=4, classes=None):
    """What the authors' code saves: the context with the prompts' fixed embeddings, a scheduler state."""
    fixed = trainer.model.fixed if classes is None else trainer.model.fixed[:classes]
    state = {
        "ctx": torch.randn(n_ctx, trainer.clip.width) * 0.02,
        "token_prefix": fixed[:, :1].clone(),
        "token_suffix": fixed[:, 1 + 4 :].clone(),
        "bias_vectors": torch.zeros(1, trainer.clip.width),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": 100, "optimizer": None, "scheduler": {"last_epoch": 100}}, path)
    return state["ctx"]


@pytest.mark.parametrize("name", ["model.pth.tar-100", "model-100.pth.tar", "model-best.pth.tar"])
def test_checkpoints_of_the_released_code_are_stage_1(run, tmp_path, name):
    plain = built(run, "CoOp")
    ctx = released_checkpoint(plain, tmp_path / "theirs" / "prompt_learner" / name)
    trainer = built(run, "CoOp_LMC", "--resume-coop", tmp_path / "theirs")
    torch.testing.assert_close(trainer.w2["ctx"], ctx)
    run("CoOp_LMC", "continued", "--resume-coop", tmp_path / "theirs", epochs=1)


def test_the_last_numbered_checkpoint_is_taken(run, tmp_path):
    plain = built(run, "CoOp")
    for name in ("model.pth.tar-9", "model-best.pth.tar", "model.pth.tar-50"):
        released_checkpoint(plain, tmp_path / "theirs" / "prompt_learner" / name)
    last = released_checkpoint(plain, tmp_path / "theirs" / "prompt_learner" / "model-100.pth.tar")
    torch.testing.assert_close(built(run, "CoOp_LMC", "--resume-coop", tmp_path / "theirs").w2["ctx"], last)


def refuse(run, stage1, match, **keys):
    """Training is refused with both sides named, and nothing is saved."""
    with pytest.raises(UserError, match=match):
        run("CoOp_LMC", "refused", "--resume-coop", stage1, **keys)
    assert not list(Path(run.argv("CoOp_LMC", "refused")[7]).glob("prompt_mid_learner/*"))


def test_a_stage_1_of_another_length_is_refused(run, tmp_path):
    released_checkpoint(built(run, "CoOp"), tmp_path / "theirs" / "prompt_learner" / "model.pth.tar-5", n_ctx=16)
    refuse(run, tmp_path / "theirs", r"N_CTX 16 x width 128.*N_CTX 4 x width 128")


def test_a_stage_1_of_other_classes_is_refused(run, tmp_path):
    released_checkpoint(built(run, "CoOp"), tmp_path / "theirs" / "prompt_learner" / "model.pth.tar-5", classes=2)
    refuse(run, tmp_path / "theirs", r"trained on 2 classes, this run has 3")
    other = built(run, "CoOp", DATASET__SUBSAMPLE_CLASSES="new")
    released_checkpoint(other, tmp_path / "new" / "prompt_learner" / "model.pth.tar-5")
    refuse(run, tmp_path / "new", r"the names of 3 of 3 classes differ")
    ours = run("CoOp", "ours", DATASET__SUBSAMPLE_CLASSES="new")
    refuse(run, ours, r"3 classes \(boxer \.\. pug\).*3 \(abyssinian \.\. bengal\)")


def test_a_stage_1_of_another_backbone_is_refused(run, tmp_path):
    stage1 = run("CoOp", "stage1")
    facts = results(stage1)
    facts["backbone"] |= {"name": "ViT-B/16", "digest": "5" * 64}
    (stage1 / "results.json").write_text(json.dumps(facts))
    refuse(run, stage1, r"trained on ViT-B/16 \(555555555555\), this run uses tiny")


def test_missing_and_foreign_stage_1_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="--resume-coop"):
        run("CoOp_LMC", "none")
    refuse(run, tmp_path / "nowhere", "No stage-1 checkpoint in .*nowhere.*no such folder")
    path = tmp_path / "cocoop" / "prompt_learner" / "model.pth.tar-1"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {"ctx": torch.zeros(4, 128), "meta_net.linear1.weight": torch.zeros(8, 128)}}, path)
    refuse(run, tmp_path / "cocoop", "CoCoOp")
    torch.save({"state_dict": {"text_adapter.5.down.0.weight": torch.zeros(8, 128)}}, path)
    refuse(run, tmp_path / "cocoop", "missing ctx; surplus text_adapter")


def test_the_zero_shot_end_needs_words(run):
    stage1 = run("CoOp", "random", TRAINER__COOP__CTX_INIT=False)
    keys = {"TRAINER__COOP__CTX_INIT": False}
    refuse(run, stage1, "CTX_INIT is False", TRAINER__LMC__TAU=0.5, **keys)
    run("CoOp_LMC", "fine", "--resume-coop", stage1, epochs=1, **keys)  # features with TAU 1 needs none


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SPACE", "pixels", "features, weights"),
        ("DISTANCE", "manhattan", "cosine, l2, l2sq"),
        ("GRID", "log", "released, uniform"),
        ("PATH_TO", "nowhere", "stage1, zero_shot"),
        ("TAU", 1.5, "0 .zero-shot. to 1"),
        ("NUM_SAMPLES", 0, "at least 1"),
    ],
)
def test_values_that_do_not_go_together_are_refused(run, key, value, message):
    with pytest.raises(UserError, match=message):
        built(run, "CoOp_LMC", **{f"TRAINER__LMC__{key}": value})


def test_average_is_the_mean_of_both_ends(run):
    stage1 = run("CoOp", "stage1")
    trainer = built(run, "CoOp_Average", "--resume-coop", stage1)
    reference = built(run, "CoOp_LMC", "--resume-coop", stage1)
    torch.testing.assert_close(trainer.text_features(), (reference.f1 + reference.f2) / 2)
    for subset in ("base", "new"):  # the new classes have no stage 1 of their own
        words = ("--eval-only", "--resume-coop", stage1)
        folder = run("CoOp_Average", subset, *words, DATASET__SUBSAMPLE_CLASSES=subset)
        assert results(folder)["subset"] == subset
        assert results(folder)["data_seen"] == "16 shots of base classes"


def test_best_val_chooses_on_validation_and_says_so(run, tmp_path):
    folder = run("CoOp_LMC", "best", "--resume-coop", run("CoOp", "stage1"))
    assert results(folder)["chosen_on"] == "validation"
    assert (folder / "prompt_mid_learner" / "model-best.pth.tar").is_file()
    test = run("CoOp_LMC", "test", "--eval-only", "--model-dir", folder)
    assert "model-best.pth.tar" in (test / "log.txt").read_text()


def test_a_third_trainer_is_one_class(run, tmp_path):
    """The README's example, as it stands there."""
    text = Path("README.md").read_text()
    code = text.split("```python\n@TRAINER_REGISTRY")[1].split("```")[0]
    names = "from dassl.engine import TRAINER_REGISTRY\nfrom mergetune.trainers.coop import CoOp\n"
    names += "from yacs.config import CfgNode as CN\n"
    scope: dict = {}
    exec(names + "@TRAINER_REGISTRY" + code, scope)  # noqa: S102
    folder = run("MyCoOp", "mine", config=CONFIGS["CoOp"], TRAINER__MINE__W=0.25)
    assert "mine " in (folder / "log.txt").read_text()
    shutil.rmtree(folder)


def test_prompt_ensembling_averages_unit_class_vectors(run):
    """Slow form: every template by itself. A second build has the same templates again."""
    for _ in range(2):
        trainer = built(run, "ZeroshotCLIP2", "--eval-only")
        assert trainer.templates()[-1] == "a photo of a {}, a type of pet." and len(trainer.templates()) == 8
    vectors = 0
    for template in trainer.templates():
        texts = [template.format(name.replace("_", " ")) for name in trainer.classnames]
        vectors += torch.nn.functional.normalize(trainer.clip.encode_text(trainer.clip.tokenise(texts)), dim=-1) / 8
    torch.testing.assert_close(trainer.text_features(), vectors)
    assert results(run("ZeroshotCLIP2", "two", "--eval-only"))["templates"] == trainer.templates()
