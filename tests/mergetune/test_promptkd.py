"""PromptKD and PromptKD_LMC: teacher from the bank, base validation, closed-form path; pets and the tiny CLIP."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

import train
from dassl.engine import build_trainer
from dassl.utils import UserError, set_random_seed
from mergetune.lmc import line_of_logits
from mergetune.models.student import distillation
from mergetune.trainers.promptkd_lmc import PromptKD_LMC
from tests.fixtures.any_trainer import line


@pytest.fixture(scope="module")
def world(pets_root, tmp_path_factory):
    """A teacher and a student that learned from it, two epochs each."""
    folder = tmp_path_factory.mktemp("promptkd")
    train.main(command(pets_root, folder, "PromptSRC", "teacher"))
    train.main(command(pets_root, folder, "PromptKD", "student"))
    return pets_root, folder


def command(root, folder, trainer, name, *words, **keys):
    fixed = {"FEATURES__DIR": folder / "features", "FEATURES__VIEWS": 2, "OPTIM__MAX_EPOCH": 2}
    if trainer != "PromptSRC":
        fixed |= {"DATASET__NUM_SHOTS": 0, "TRAINER__PROMPTKD__TEACHER_DIR": folder / "teacher"}
    keys = {"subset": "base" if trainer == "PromptSRC" else "all"} | fixed | keys
    return line(trainer, root, folder / name, *words, **keys)


@pytest.fixture
def words(world, tmp_path):
    """`words(trainer, ...)`: a command line that writes to tmp_path; stage 2 continues the student."""
    root, folder = world

    def give(trainer, *flags, **keys):
        if trainer == "PromptKD_LMC" and not flags:
            flags = ("--resume-coop", folder / "student")
        return [*command(root, folder, trainer, "x", *flags, **keys), "OUTPUT_DIR", str(tmp_path / "out")]

    return give


@pytest.fixture
def built(words):
    """A trainer of a command line, ready to train."""
    made = []

    def give(trainer, *flags, **keys):
        set_random_seed(1)
        cfg = train.setup_cfg(train.build_parser().parse_intermixed_args(words(trainer, *flags, **keys)))
        made.append(build_trainer(cfg))
        made[-1].before_train()
        return made[-1]

    yield give
    for trainer in made:
        trainer.close_writer()


def student_file(world, name="model.pth.tar-2"):
    return world[1] / "student" / "VLPromptLearner" / name


def test_distillation_is_the_divergence_over_the_number_of_logits():
    """Logits (0, ln 3) and (0, 0): 1/4 ln(1/2) + 3/4 ln(3/2) = 0.130812, over 2 logits."""
    teacher, student = torch.tensor([[1.0, 3.0]]).log(), torch.zeros(1, 2)
    assert distillation(teacher, student).item() == pytest.approx(0.130812 / 2, abs=1e-6)
    torch.manual_seed(0)
    teacher, path = torch.randn(4, 5), torch.randn(3, 4, 5)
    mean = torch.stack([distillation(teacher, student, 2.0) for student in path]).mean()
    torch.testing.assert_close(distillation(teacher, path, 2.0), mean)
    p, q = (teacher / 2).softmax(-1), (path[0] / 2).softmax(-1)
    torch.testing.assert_close(distillation(teacher, path[0], 2.0), 4 * (p * (p / q).log()).sum() / 20)


def test_logits_of_mixed_features_are_mixed_logits():
    torch.manual_seed(0)
    x2, x, text = (F.normalize(torch.randn(n, 8), dim=-1) for n in (4, 4, 5))
    points = torch.tensor([0.1, 0.5, 1.0])
    loop = torch.stack([7.0 * ((1 - t) * x2 + t * x) @ text.T for t in points])
    torch.testing.assert_close(line_of_logits(7 * x2 @ text.T, 7 * x @ text.T, points), loop)


@pytest.mark.parametrize("views", [2, 0])
def test_pixels_and_teacher_are_of_the_same_view(built, views):
    """VIEWS 2: epoch 2 sees the view of epoch 0 again, in both. VIEWS 0: every epoch its own."""
    trainer = built("PromptKD_LMC", FEATURES__VIEWS=views, OPTIM__MAX_EPOCH=3)
    loader, seen = trainer.train_loader_x, []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        images = {}
        for batch in loader:
            torch.testing.assert_close(
                batch["teacher"], trainer.teacher.tower.encode_image(batch["img"]), rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(batch["stage1"], trainer.student2(batch["img"]), rtol=1e-4, atol=1e-4)
            images |= dict(zip(batch["impath"], batch["img"], strict=True))
        assert len(images) == 108  # all 18 training images of all 6 breeds
        seen.append(images)
    path = next(iter(seen[0]))
    assert not torch.equal(seen[0][path], seen[1][path])
    assert torch.equal(seen[0][path], seen[2][path]) == (views == 2)


def count_passes(trainer):
    """One step's image and text passes; teacher, student and stage 1 share one CLIP here."""
    trainer.epoch_batches()
    trainer.set_model_mode("train")
    batch, seen = next(iter(trainer.train_loader_x)), {"image": 0, "text": 0}
    module = trainer.clip.module
    assert trainer.teacher.clip.module is module

    def count(name):
        return lambda *_: seen.update({name: seen[name] + 1})

    handles = [
        module.visual.register_forward_hook(count("image")),
        module.transformer.register_forward_hook(count("text")),
    ]
    trainer.batch_idx = 0
    trainer.forward_backward(batch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", ["PromptKD", "PromptKD_LMC"])
def test_a_step_is_one_pass_of_the_student_and_none_of_the_teacher(built, name):
    assert count_passes(built(name)) == {"image": 1, "text": 0}


def test_stage_1_trains_prompts_and_projection_alone(world):
    state = torch.load(student_file(world), weights_only=True)["state_dict"]
    trans = "VPT_image_trans.conv1."
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert sorted(state) == sorted(
        [
            "image_encoder.VPT",
            *(f"image_encoder.transformer.resblocks.{j}.VPT_shallow" for j in (1, 2)),
            *(f"{trans}{layer}.{part}" for layer in (0, 3) for part in ("weight", "bias")),
            *(f"{trans}1.{part}" for part in norm),
        ]
    )
    assert state[f"{trans}0.weight"].shape == (128, 128, 1, 1)
    found = json.loads((world[1] / "student" / "results.json").read_text())
    assert found["subset"] == "all" and found["total"] == 24
    assert found["teacher"]["file"].endswith("teacher/VLPromptLearner/model.pth.tar-2")
    assert found["data_seen"] == "all training images of all classes, without labels; teacher: 4 shots of base classes"


def test_validation_is_about_base_classes(built):
    trainer = built("PromptKD", TEST__FINAL_MODEL="best_val")
    shapes, inference = [], trainer.model_inference
    trainer.model_inference = lambda images: shapes.append(inference(images)) or shapes[-1]
    trainer.test("val")
    assert {tuple(row.shape) for row in shapes} == {(15, 3)}  # 5 images each of 3 of the 6 breeds
    assert {item.label for item in trainer.val_loader.dataset.data_source} == {0, 1, 2}
    shapes.clear()
    trainer.test("test")
    assert shapes[0].shape == (24, 6)


def test_each_half_is_evaluated_among_its_own_classes(words, world, tmp_path):
    found = {}
    for half in ("base", "new"):
        flags = ("--eval-only", "--model-dir", world[1] / "student")
        found[half] = train.main([*words("PromptKD", *flags, subset=half), "OUTPUT_DIR", str(tmp_path / half)])
        assert found[half]["total"] == 12 and found[half]["classes"]["count"] == 3
    assert found["new"]["source_subset"] == "all" and found["new"]["data_seen"].startswith("all training images")


def test_a_student_of_another_teacher_is_refused(words, world):
    flags = ("--eval-only", "--model-dir", world[1] / "student")
    with pytest.raises(UserError, match=r"learned from the teacher tiny .*teacher/VL.*this run has tiny \("):
        train.main(words("PromptKD", *flags, TRAINER__PROMPTKD__TEACHER_DIR=""))
    with pytest.raises(UserError, match=r"learned from the teacher"):
        train.main(words("PromptKD_LMC", TRAINER__PROMPTKD__TEACHER_DIR=""))


def test_without_a_prompted_teacher_clip_teaches(built, tmp_path):
    trainer = built("PromptKD", TRAINER__PROMPTKD__TEACHER_DIR="")
    clip = trainer.clip
    texts = clip.encode_text(clip.tokenize([trainer.template.format(n.replace("_", " ")) for n in trainer.classnames]))
    torch.testing.assert_close(trainer.teacher.text, F.normalize(texts, dim=-1))
    assert trainer.metadata()["teacher"]["digest"] == clip.digest
    assert trainer.metadata()["data_seen"].endswith("teacher: none")


def test_the_loss_of_stage_2_is_the_released_one(built):
    """Against the mixture of features written out, student in training mode, w2 in evaluation mode."""
    trainer = built("PromptKD_LMC", TRAINER__PROMPTKD__KD_WEIGHT=1000)
    with torch.no_grad():
        for value in trainer.model.parameters():
            value.add_(0.01 * torch.randn_like(value))
    trainer.set_model_mode("train")
    batch = next(iter(trainer.train_loader_x))
    losses = trainer.losses(batch)
    text, scale = trainer.teacher.text, trainer.clip.logit_scale
    teacher = scale * F.normalize(trainer.teacher.tower.encode_image(batch["img"]), dim=-1) @ text.T
    x = F.normalize(trainer.model(batch["img"]), dim=-1)
    x2 = F.normalize(trainer.student2(batch["img"]), dim=-1)
    path = [distillation(teacher, scale * ((1 - t) * x2 + t * x) @ text.T) for t in [0.1 * i for i in range(1, 11)]]
    gaps = [(value - trainer.w2[name]).flatten() for name, value in trainer.model.named_parameters()]
    expected = {
        "kd": 1000 * distillation(teacher, scale * x @ text.T),
        "anchor": 100 * torch.cat(gaps).square().mean(),
        "lmc": 50 * torch.stack(path).mean(),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-3, atol=1e-6)


def test_stage_2_starts_at_stage_1_with_its_batch_statistics(built, world):
    trainer = built("PromptKD_LMC")
    stage1 = torch.load(student_file(world), weights_only=True)["state_dict"]
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, stage1[name])
    trainer.set_model_mode("eval")
    losses = trainer.losses(next(iter(trainer.train_loader_x)))
    torch.testing.assert_close(losses["lmc"] / 50, losses["kd"] / 1000, rtol=1e-3, atol=1e-7)
    assert losses["anchor"] == 0
    norm = "VPT_image_trans.conv1.1.num_batches_tracked"
    count_passes(trainer)
    assert trainer.model.state_dict()[norm] == stage1[norm] + 1  # once a step
    assert trainer.student2.state_dict()[norm] == stage1[norm] and not trainer.student2.training


def test_the_path_between_students(built):
    trainer = built("PromptKD_LMC")
    with torch.no_grad():
        trainer.model.image_encoder.VPT.normal_()
    trainer.set_model_mode("eval")
    images, points = next(iter(trainer.test_loader))["img"], torch.tensor([0.0, 0.5, 1.0])
    for space in ("features", "weights"):
        ends = trainer.solutions(space)
        logits = trainer.path_logits(space, ends["fine_tuned"], ends["ours"], points, images)
        torch.testing.assert_close(logits[2], trainer.model_inference(images).detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            logits[0], trainer.logits(F.normalize(trainer.student2(images), dim=-1)), rtol=1e-4, atol=1e-4
        )
        middle = (logits[0] + logits[2]) / 2
        assert torch.allclose(logits[1], middle, atol=1e-4) == (space == "features")


def test_a_student_that_does_not_load_is_an_error(words, world, tmp_path):
    with pytest.raises(UserError, match="--resume-coop"):
        train.main(words("PromptKD_LMC", "--seed", "1"))
    with pytest.raises(UserError, match="No stage-1 checkpoint in .*nowhere"):
        train.main(words("PromptKD_LMC", "--resume-coop", tmp_path / "nowhere"))
    state = torch.load(student_file(world), weights_only=True)
    for change, match in (
        (lambda s: s.pop("image_encoder.VPT"), r"lacks image_encoder\.VPT"),
        (lambda s: s.update(more=torch.zeros(1)), "besides more"),
        (lambda s: s.update({"image_encoder.VPT": torch.zeros(2, 128)}), "mismatch for image_encoder.VPT"),
    ):
        broken = state | {"state_dict": dict(state["state_dict"])}
        change(broken["state_dict"])
        torch.save(broken, tmp_path / "student.pth.tar")
        with pytest.raises(UserError, match=match):
            train.main(words("PromptKD_LMC", "--resume-coop", tmp_path / "student.pth.tar"))


def test_a_released_file_continues(built, world, tmp_path):
    """The authors' files hold the student's whole tower."""
    state = torch.load(student_file(world), weights_only=True)
    state["state_dict"] |= {"image_encoder.conv1.weight": torch.zeros(3), "logit_scale": torch.zeros(())}
    torch.save(state, tmp_path / "student.pth.tar")
    trainer = built("PromptKD_LMC", "--resume-coop", tmp_path / "student.pth.tar")
    torch.testing.assert_close(trainer.w2["image_encoder.VPT"], state["state_dict"]["image_encoder.VPT"])


def test_the_authors_keys_set_ours(words, world):
    old = {"LAMBDA_REG": 3.0, "BETA_LMC": 4.0, "NUM_SAMPLES": 7, "USE_LMC": False}
    old |= {"PRETRAINED_STUDENT_PATH": world[1] / "student"}
    keys = {f"TRAINER__PROMPTKD__{key}": value for key, value in old.items()}
    cfg = train.setup_cfg(train.build_parser().parse_intermixed_args(words("PromptKD_LMC", "--seed", "2", **keys)))
    own = cfg.TRAINER.LMC
    assert (own.LAMBDA, own.BETA, own.NUM_SAMPLES, own.ENABLED) == (3.0, 4.0, 7, False)
    assert str(world[1] / "student") == cfg.RESUME_COOP


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("LMC__TAU", 0.3, "TAU is 0.3, expected 1.0.*no zero-shot end"),
        ("LMC__SPACE", "weights", "SPACE is 'weights'"),
        ("LMC__PATH_TO", "zero_shot", "PATH_TO"),
        ("PROMPTKD__CE_WEIGHT", 1.0, "CE_WEIGHT = 1.0, expected float, at least 0, at most 0"),
        ("PROMPTKD__PROJECT_LAYER", 1, "expected int, at least 2, at most 2"),
        ("PROMPTKD__TEMPERATURE", 0.0, "above 0"),
        ("PROMPTKD__PROMPT_DEPTH_VISION", 9, "up to 9.*has 6"),
    ],
)
def test_values_that_do_not_go_together_are_refused(words, key, value, match):
    with pytest.raises(UserError, match=match):
        train.main(words("PromptKD_LMC", **{f"TRAINER__{key}": value}))


def test_batches_of_one_image_are_refused_before_training(built):
    with pytest.raises(UserError, match="PromptKD has a batch norm, which needs two images a batch, and has 1"):
        built("PromptKD", DATALOADER__TRAIN_X__BATCH_SIZE=1)


def test_presets():
    def values(name):
        argv = ["--trainer", "PromptKD_LMC", "--config-file", f"configs/trainers/PromptKD_LMC/{name}.yaml"]
        cfg = train.setup_cfg(train.build_parser().parse_intermixed_args(argv))
        own, kd = cfg.TRAINER.LMC, cfg.TRAINER.PROMPTKD
        path = own.LAMBDA, own.BETA, own.NUM_SAMPLES, own.GRID, own.TAU
        return cfg.PRESET, path, kd.KD_WEIGHT, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.DATALOADER.TRAIN_X.BATCH_SIZE

    schedule = (1000.0, 0.005, 20, 128)
    assert values("released") == ("released", (100.0, 50.0, 10, "released", 1.0), *schedule)
    assert values("vit_b16_c2_ep20_batch8_4+4ctx") == values("released")
    assert values("paper") == ("paper", (8.0, 500.0, 10, "uniform", 1.0), *schedule)
    assert values("continued") == ("continued", (0.0, 0.0, 10, "released", 1.0), *schedule)


def test_stage_2_trains_and_resumes_to_the_same_end(words, tmp_path, monkeypatch):
    found = train.main(words("PromptKD_LMC"))
    assert found["chosen_on"] == "validation" and found["lmc"]["BETA"] == 50.0
    assert (found["lmc"]["DISTANCE"], found["lmc"]["ANCHOR"]) == ("l2sq", "stage1")
    folder = tmp_path / "out" / "VLPromptLearner"
    whole = torch.load(folder / "model.pth.tar-2", weights_only=True)["state_dict"]
    shutil.rmtree(tmp_path / "out")
    go_on = PromptKD_LMC.run_epoch

    def stop(self):
        if self.epoch == 1:
            raise KeyboardInterrupt
        go_on(self)

    monkeypatch.setattr(PromptKD_LMC, "run_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train.main(words("PromptKD_LMC"))
    monkeypatch.setattr(PromptKD_LMC, "run_epoch", go_on)
    train.main(words("PromptKD_LMC"))
    halves = torch.load(folder / "model.pth.tar-2", weights_only=True)["state_dict"]
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
