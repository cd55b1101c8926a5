"""CoOp, CoOp_LMC and their controls, through train.py, on images from files and the tiny CLIP."""

import shutil

import pytest
import torch

import train
from dassl.utils import UserError
from mergetune.lmc import anchor_distance, line_loss
from tests.fixtures import coop_runs
from tests.fixtures.coop_runs import CONFIGS, built, context, results
from tests.fixtures.pages import PAGES, blocks

run, shared, stage1 = coop_runs.run, coop_runs.shared, coop_runs.stage1  # fixtures


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


def test_at_its_start_the_path_costs_what_the_task_costs(run, stage1):
    trainer = built(run, "CoOp_LMC", "--resume-coop", stage1)
    torch.testing.assert_close(trainer.model.ctx.detach(), context(stage1))
    trainer.model.train()
    losses = trainer.losses(next(iter(trainer.train_loader_x)))
    assert set(losses) == {"ce", "anchor", "lmc"}
    torch.testing.assert_close(losses["lmc"], losses["ce"], rtol=1e-5, atol=1e-6)  # BETA is 1, w = w2
    assert losses["anchor"] > 0


def test_the_anchor_vanishes_where_prompt_and_template_agree(run, stage1):
    """With the template "a photo of a {}." the zero-shot vectors are those of the untrained prompt."""
    trainer = built(run, "CoOp_LMC", "--resume-coop", stage1)
    trainer.start_at(trainer.zero_shot_weights())
    trainer.f1 = trainer.class_vectors()
    loss = trainer.anchor(trainer.text_features())
    gradient = torch.autograd.grad(loss, trainer.model.ctx)[0]
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max().item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_tau_blends_the_start(run, tau, stage1):
    trainer = built(run, "CoOp_LMC", "--resume-coop", stage1, TRAINER__LMC__TAU=tau)
    w1, w2 = trainer.zero_shot_weights()["ctx"], context(stage1)
    torch.testing.assert_close(trainer.model.ctx.detach(), (1 - tau) * w1 + tau * w2)


def test_weight_space_anchors_and_walks_between_contexts(run, stage1):
    keys = {"TRAINER__LMC__SPACE": "weights", "TRAINER__LMC__DISTANCE": "l2sq", "TRAINER__LMC__LAMBDA": 2.0}
    trainer = built(run, "CoOp_LMC", "--resume-coop", stage1, **keys)
    batch = next(iter(trainer.train_loader_x))
    losses = trainer.losses(batch)
    w1, w2 = trainer.zero_shot_weights()["ctx"], context(stage1)
    torch.testing.assert_close(losses["anchor"], 2 * (w2 - w1).square().sum())
    torch.testing.assert_close(losses["lmc"], losses["ce"], rtol=1e-5, atol=1e-6)
    folder = run("CoOp_LMC", "trained", "--resume-coop", stage1, **keys)
    assert not torch.equal(context(folder, "prompt_mid_learner"), w2)


def test_the_one_sided_path_runs_to_the_zero_shot_head(run, stage1):
    """Raw current vectors at t = 0, normalised zero-shot ones at t = 1; here against the loop."""
    trainer = built(run, "CoOp_LMC", "--resume-coop", stage1, TRAINER__LMC__PATH_TO="zero_shot")
    images, labels = trainer.parse_batch_train(next(iter(trainer.train_loader_x)))
    image, text = trainer.image_features(images), trainer.text_features()
    ends = text, torch.nn.functional.normalize(trainer.f1, dim=-1)
    slow = line_loss(lambda head: trainer.cross_entropy(image, head, labels), *ends, trainer.line)
    torch.testing.assert_close(trainer.feature_path(image, text, labels), slow)


def test_solutions_and_the_line_between_them(run, stage1):
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


def test_an_evaluation_says_where_its_weights_come_from(run, stage1):
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


def test_old_name_and_old_keys_train_the_same_run(run, stage1):
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


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SPACE", "pixels", "features, weights"),
        ("DISTANCE", "manhattan", "cosine, l2, l2sq"),
        ("GRID", "log", "released, uniform"),
        ("PATH_TO", "nowhere", "stage1, zero_shot"),
        ("TAU", 1.5, "at least 0, at most 1"),
        ("NUM_SAMPLES", 0, "at least 1"),
    ],
)
def test_values_that_do_not_go_together_are_refused(run, key, value, message):
    with pytest.raises(UserError, match=message):
        built(run, "CoOp_LMC", **{f"TRAINER__LMC__{key}": value})


def test_average_is_the_mean_of_both_ends(run, stage1):
    trainer = built(run, "CoOp_Average", "--resume-coop", stage1)
    reference = built(run, "CoOp_LMC", "--resume-coop", stage1)
    torch.testing.assert_close(trainer.text_features(), (reference.f1 + reference.f2) / 2)
    for subset in ("base", "new"):  # the new classes have no stage 1 of their own
        words = ("--eval-only", "--resume-coop", stage1)
        folder = run("CoOp_Average", subset, *words, DATASET__SUBSAMPLE_CLASSES=subset)
        assert results(folder)["subset"] == subset
        assert results(folder)["data_seen"] == "16 shots of base classes"


def test_best_val_chooses_on_validation_and_says_so(run, tmp_path, stage1):
    folder = run("CoOp_LMC", "best", "--resume-coop", stage1)
    assert results(folder)["chosen_on"] == "validation"
    assert (folder / "prompt_mid_learner" / "model-best.pth.tar").is_file()
    test = run("CoOp_LMC", "test", "--eval-only", "--model-dir", folder)
    assert "model-best.pth.tar" in (test / "log.txt").read_text()


def test_a_third_trainer_is_one_class(run, tmp_path):
    """The README's example, as it stands there."""
    code = next(block for block in blocks(PAGES["README.md"], "python") if "MyCoOp" in block)
    scope: dict = {}
    exec(code, scope)  # noqa: S102
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
        vectors += torch.nn.functional.normalize(trainer.clip.encode_text(trainer.clip.tokenize(texts)), dim=-1) / 8
    torch.testing.assert_close(trainer.text_features(), vectors)
    assert results(run("ZeroshotCLIP2", "two", "--eval-only"))["templates"] == trainer.templates()
