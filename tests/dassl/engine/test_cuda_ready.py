"""A training step and an evaluation on a GPU, played through without one.

Torch's fake tensors have a device and a shape but no values. Two devices in one operation are an error, and so is
reading a value back, for which a real step would wait. Only steps are played: what is done once may read values.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import train
from dassl.engine import build_trainer
from tests.fixtures.counted_device import move, own_clips

WEIGHTS = ["TRAINER.LMC.SPACE", "weights", "TRAINER.LMC.DISTANCE", "l2sq", "TRAINER.LMC.TAU", "0.5"]


def to_fake_gpu(tensor):
    """A tensor of this shape and type on a GPU; to be called in FakeTensorMode."""
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


@pytest.fixture
def build(argv, monkeypatch):
    own_clips(monkeypatch)

    def go(trainer, *words):
        args = train.build_parser().parse_intermixed_args(argv(*MMA, *KD, *words, trainer=trainer))
        return build_trainer(train.setup_cfg(args))

    return go


def played(build, tmp_path, name, words, half):
    """A trainer on a CLIP of its own, continued from a fresh stage 1 where it is a stage 2."""
    if name in STAGE1:
        stage1 = build(STAGE1[name])
        stage1.save_model(0, str(tmp_path / "stage1"))
        words = ["--resume-coop", str(tmp_path / "stage1"), *words]
    trainer = build(name, *words)
    if half:  # as PREC fp16 keeps the towers
        trainer.clip.module.half()
        if hasattr(trainer.model, "fixed"):
            trainer.model.fixed = trainer.model.fixed.half()
    return trainer


STAGE1 = {"CoOp_LMC": "CoOp", "MMA_LMC": "MultiModalAdapter", "PromptKD_LMC": "PromptKD"}
MMA = ["TRAINER.MMADAPTER.ADAPTER_START", "2", "TRAINER.MMADAPTER.ADAPTER_END", "4", "TRAINER.MMADAPTER.PREC", "fp32"]
KD = ["TRAINER.PROMPTKD.PREC", "fp32", "TRAINER.PROMPTKD.TEACHER_NAME", "tiny"]
KD += ["TRAINER.PROMPTKD.PROMPT_DEPTH_VISION", "3", "TRAINER.LMC.DISTANCE", "l2sq"]
FROM_THE_BANK = [("CoOp", []), ("KgCoOp", []), ("CoOp_LMC", []), ("CoOp_LMC", WEIGHTS)]
FROM_PIXELS = [("MultiModalAdapter", []), ("MMA_LMC", []), ("MMA_LMC", WEIGHTS), ("PromptKD", []), ("PromptKD_LMC", [])]


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    ("source", "name", "words"),
    [("feature", *case) for case in FROM_THE_BANK] + [("img", *case) for case in FROM_THE_BANK + FROM_PIXELS],
)
def test_a_step_stays_on_its_device_and_waits_for_nothing(build, tmp_path, source, name, words, half):
    trainer = played(build, tmp_path, name, words, half)
    batch = next(iter(trainer.train_loader_x))
    count = len(batch["label"])
    if source == "feature":
        batch["feature"] = torch.zeros(count, trainer.clip.dim)
        del batch["img"]
    batch |= {tower: torch.zeros(count, trainer.clip.dim) for tower in ("teacher", "stage1")}  # as PromptKD's loader
    with FakeTensorMode() as mode:
        move(trainer, to_fake_gpu, torch.device("cuda"))
        batch = {key: mode.from_tensor(value) if torch.is_tensor(value) else value for key, value in batch.items()}
        losses = trainer.losses(batch)
        logits = trainer.model_inference(trainer.parse_batch_test(batch)[0])
        found = [*losses.values(), *trainer.step_metrics.values(), logits]
    assert losses.keys() <= {"ce", "kg", "kd", "anchor", "lmc"}
    assert {(value.device.type, value.dtype) for value in found} == {("cuda", torch.float32)}
