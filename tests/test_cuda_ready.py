"""A training step and an evaluation on a GPU, played through without one.

Torch's fake tensors have a device and a shape but no values. Two devices in one operation are an error, and so is
reading a value back, for which a real step would wait. Only steps are played: what is done once may read values.
"""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import train
from dassl.engine import build_trainer

WEIGHTS = ["TRAINER.LMC.SPACE", "weights", "TRAINER.LMC.DISTANCE", "l2sq", "TRAINER.LMC.TAU", "0.5"]


def to_fake_gpu(tensor):
    """A tensor of this shape and type on a GPU; to be called in FakeTensorMode."""
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def move(trainer):
    """All tensors that a step uses to the fake GPU."""
    trainer.device = torch.device("cuda")
    for module in (*trainer.clip.module.modules(), *trainer.model.modules()):
        for group in (module._parameters, module._buffers):
            group.update({name: to_fake_gpu(value) for name, value in group.items() if value is not None})
    for name, value in list(vars(trainer).items()):
        if isinstance(value, torch.Tensor):
            setattr(trainer, name, to_fake_gpu(value))
        elif isinstance(value, dict) and any(isinstance(part, torch.Tensor) for part in value.values()):
            setattr(trainer, name, {key: to_fake_gpu(part) for key, part in value.items()})


@pytest.fixture
def build(argv):
    def go(trainer, *words):
        args = train.build_parser().parse_intermixed_args(argv(*words, trainer=trainer))
        return build_trainer(train.setup_cfg(args))

    return go


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("source", ["img", "feature"])
@pytest.mark.parametrize(("name", "words"), [("CoOp", []), ("KgCoOp", []), ("CoOp_LMC", []), ("CoOp_LMC", WEIGHTS)])
def test_a_step_stays_on_its_device_and_waits_for_nothing(build, tmp_path, name, words, source, half):
    if name == "CoOp_LMC":
        stage1 = build("CoOp")
        stage1.save_model(0, str(tmp_path / "stage1"))
        words = ["--resume-coop", str(tmp_path / "stage1"), *words]
    trainer = build(name, *words)
    batch = next(iter(trainer.train_loader_x))
    if source == "feature":
        batch["feature"] = torch.zeros(len(batch.pop("img")), trainer.clip.dim)
    trainer.clip = copy.deepcopy(trainer.clip)  # other runs share it
    if half:  # as PREC fp16 keeps the towers
        trainer.clip.module.half()
        trainer.model.fixed = trainer.model.fixed.half()
    with FakeTensorMode() as mode:
        move(trainer)
        batch = {key: mode.from_tensor(value) if torch.is_tensor(value) else value for key, value in batch.items()}
        losses = trainer.losses(batch)
        found = [*losses.values(), *trainer.notes.values(), trainer.model_inference(trainer.parse_batch_test(batch)[0])]
    assert {"ce", "kg", "anchor", "lmc"} >= set(losses) >= {"ce"}
    assert {(value.device.type, value.dtype) for value in found} == {("cuda", torch.float32)}
