"""Every registered trainer: the logits of a batch and the losses of a few steps, in each precision, against the CPU's
in fp32; both begin at the same weights. Small pets, the built-in CLIP."""

import copy
import functools
from collections.abc import Iterator
from itertools import islice
from statistics import median

import torch

import train
from dassl.engine import TRAINER_REGISTRY, build_trainer, full_config
from dassl.engine.precision import MODES
from dassl.utils import set_random_seed
from tests.benchmarks.world import BREEDS
from tests.fixtures import any_trainer, distributed_worker
from tests.fixtures.image_folders import write_pets
from tests.gpu.row import CPU, Place, Row, apart, clock, exact, one_line, quiet, too_far

STEPS = 4
# of logits and losses, relative; fp32 without TF32, for the halves three times what a CPU's bf16 is apart at most
ALLOWED = {"fp32": 1e-3, "amp": 0.15, "bf16": 0.15, "fp16": 0.15}
STAGE1 = {
    "CoOp_Average": "CoOp", "CoOp_LMC": "CoOp", "KgCoOp_COOP_LMC": "KgCoOp", "KgCoOp_LMC": "KgCoOp",
    "MMA_LMC": "MultiModalAdapter", "PromptKD_LMC": "PromptKD", "LinearProbe_LMC": "LinearProbe",
    "FineTune_LMC": "FineTune",
}  # fmt: skip
OWN_WEIGHTS = ("FineTune", "FineTune_LMC", "ConDU", "ConDU_Expert")  # they train CLIP itself, and refuse fp16
ZERO_SHOT = ("ZeroshotCLIP", "ZeroshotCLIP2")
UNTRAINED = (*ZERO_SHOT, "CoOp_Average")
FROM_SCRATCH = {"Vanilla": "toy_dg", "SourceOnly": "toy_da", "SupBaseline": "toy_ssl", "FixMatch": "toy_ssl"}


def trainers(place: Place) -> Iterator[Row]:
    """A row a trainer and precision."""
    data = place.folder / "pets"
    write_pets(data, classes=BREEDS[:6], counts=(4, 2, 2))
    for name in place.trainers or every_trainer():
        reference = functools.cache(functools.partial(on_the_cpu, place, name))
        for mode in modes(name, place):
            try:
                with quiet():
                    row = of_trainer(place, name, mode, *reference())
            except Exception as error:  # the others are still of interest
                row = Row("a trainer's steps", f"{name}, {mode}", fault=one_line(error))
            yield row


def every_trainer() -> list[str]:
    """The registered names, plugins of others left out."""
    full_config()  # the registry knows every trainer
    ours = ("dassl.", "mergetune.", "condu.")
    names = sorted(TRAINER_REGISTRY.registered_names())
    return [name for name in names if TRAINER_REGISTRY.get(name).__module__.startswith(ours)]


def modes(name: str, place: Place) -> tuple[str, ...]:
    """The precisions that a trainer has; fp16 trains on CUDA alone, and no tower's own weights."""
    if name in (*FROM_SCRATCH, *ZERO_SHOT):
        return MODES[:1]
    return tuple(mode for mode in MODES if mode != "fp16" or place.cuda and name not in OWN_WEIGHTS)


def on_the_cpu(place: Place, name: str) -> tuple[dict[str, dict], torch.Tensor, torch.Tensor]:
    """(weights of each model at the start, logits, losses) in fp32."""
    trainer = build(place, name, "fp32", CPU)
    start = copy.deepcopy({part: model.state_dict() for part, model in trainer._models.items()})
    return start, *played(trainer, name)[:2]


def of_trainer(place: Place, name: str, mode: str, start: dict, logits: torch.Tensor, losses: torch.Tensor) -> Row:
    """Logits and losses on the device, against those of the CPU from the same start."""
    with exact():
        here = build(place, name, mode, place.device)
        for part, state in start.items():
            here._models[part].load_state_dict(state)
        ours, own, seconds = played(here, name)
    far = max(apart(ours, logits), apart(own, losses) if len(losses) else 0.0)
    return Row("a trainer's steps", f"{name}, {mode}", seconds, None, far, too_far(far, ALLOWED[mode]))


def build(place: Place, name: str, mode: str, device: torch.device):
    """A trainer as its command line makes it, on a stage 1 where it continues one."""
    words = list(argv(place, name, device))
    nodes = full_config().TRAINER
    words += [word for node in nodes if "PREC" in (nodes[node] or {}) for word in (f"TRAINER.{node}.PREC", mode)]
    if name in STAGE1:
        words += ["--resume-coop", str(stage1(place, STAGE1[name]))]
    set_random_seed(1)
    trainer = build_trainer(train.setup_cfg(train.build_parser().parse_intermixed_args(words)))
    if trainer.precision.mode != mode or trainer.device.type != device.type:
        raise AssertionError(f"it runs in {trainer.precision.mode} on {trainer.device}")
    return trainer


def argv(place: Place, name: str, device: torch.device) -> list[str]:
    """Arguments of train.py."""
    own = ["USE_CUDA", str(device.type != "cpu"), "TEST.NO_TEST", "True"]
    data, out = place.folder / "pets", place.folder / "run"
    if name in FROM_SCRATCH:
        files = f"configs/datasets/{FROM_SCRATCH[name]}.yaml", f"configs/trainers/{name}/toy.yaml"
        flags = ["--root", str(place.folder / "toys"), "--seed", "1", "--trainer", name, "--output-dir", str(out)]
        return [*flags, "--dataset-config-file", files[0], "--config-file", files[1], *own]
    if name in distributed_worker.OTHERS:
        words = distributed_worker.words(data, place.folder, "run", name, "DATALOADER.TRAIN_X.BATCH_SIZE", 4)
        return [*words, "DATASET.NUM_SHOTS", "4", *own]
    return [*any_trainer.line(name, data, out, FEATURES__DIR=place.folder / "features"), *own]


def stage1(place: Place, name: str):
    """A stage-1 folder, as it is before the first step."""
    folder = place.folder / "stage1" / name
    if not folder.exists():
        build(place, name, "fp32", CPU).save_model(0, str(folder))
    return folder


def played(trainer, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(logits of a test batch, losses of STEPS steps, median seconds of a step) of a trainer that has steps; of another
    (logits, none, seconds of the logits)."""
    trainer.set_model_mode("eval")
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    with torch.no_grad(), trainer.precision.autocast():
        logits = trainer.model_inference(images).float().cpu()
        if name in UNTRAINED:
            return logits, torch.empty(0), clock(lambda: trainer.model_inference(images), trainer.device)
    trainer.before_train()
    trainer.set_model_mode("train")
    losses, times = [], []

    def step(batch: tuple) -> None:
        losses.append(float(trainer.forward_backward(*batch)["loss"]))

    torch.manual_seed(1)
    for number, batch in enumerate(islice(trainer.epoch_batches(), STEPS)):
        trainer.batch_idx = number
        times.append(clock(functools.partial(step, batch), trainer.device))
    trainer.close_writer()
    return logits, torch.tensor(losses), median(times[1:] or times)
