"""What costs: ViT-B/16's towers with random weights, steps, many classes, a fusion, a feature bank. Absolute times, and
the difference to the CPU in fp32 without TF32."""

import functools
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from dassl.clip import build_clip
from dassl.clip.compiling import has_compiler
from dassl.clip.feature_bank import FeatureBank
from dassl.engine.precision import MODES, Precision
from tests.benchmarks import coop
from tests.benchmarks.fusion_worker import Stream
from tests.benchmarks.task import gradient_of
from tests.benchmarks.worker import TASKS
from tests.benchmarks.world import World, class_names, first_batch
from tests.gpu.row import CPU, Place, Row, apart, clock, cost, exact, quiet, too_far

ALLOWED = {"fp32": 1e-3, "amp": 0.15, "bf16": 0.15, "fp16": 0.15}  # as of the trainers
STEPS = [("CoOp_LMC", "pixels"), ("CoOp_LMC", "bank"), ("MMA_LMC", "pixels"), ("PromptKD_LMC", "bank")]
NODES = ("COOP", "MMADAPTER", "PROMPTKD")
CHUNK = {"whole": (0, False), "TEXT_CHUNK": (100, False), "CHECKPOINT_BLOCKS": (0, True), "both": (100, True)}


def world(place: Place, model: str = "", **sizes: int) -> World:
    """Of ViT-B/16's shapes; quick: small ones."""
    model = "small" if place.quick else model or "vit_b16"
    return World(place.folder / model, model, **sizes).write()


@contextmanager
def on(device: torch.device, mode: str = "fp32", compiles: bool = False) -> Iterator[None]:
    """Trainers that are built inside are on the device, in a precision."""
    words = ["USE_CUDA", str(device.type != "cpu"), "MODEL.COMPILE", str(compiles)]
    words += [word for node in NODES for word in (f"TRAINER.{node}.PREC", mode)]
    before = os.environ.get("EXTRA_OPTS", "")
    os.environ["EXTRA_OPTS"] = " ".join(words)
    try:
        with quiet(), exact():
            yield
    finally:
        os.environ["EXTRA_OPTS"] = before
        gc.collect()


def modes(place: Place) -> list[str]:
    """Half weights are for CUDA alone."""
    return [mode for mode in MODES if mode != "fp16" or place.cuda]


def towers(place: Place) -> Iterator[Row]:
    """Both towers, a batch of images and of texts."""
    here, count, names = world(place), 4 if place.quick else 64, class_names(20)
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in names]
    with torch.no_grad(), quiet():
        clip = build_clip(str(here.weights))
        side = clip.preprocess.size
        images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
        expected = clip.encode_image(images[:4]), clip.encode_text(clip.tokenize(texts))
    del clip
    for mode in modes(place):
        with quiet(), exact():
            precision = Precision(mode, place.device)
            half = "fp16" if precision.dtype == torch.float16 else "fp32"
            clip = build_clip(str(here.weights), device=place.device, precision=half)
        moved, tokens = images.to(place.device), clip.tokenize(texts)
        for what, tower, batch, wanted in (
            (f"{count} images", clip.encode_image, moved, expected[0]),
            (f"{len(texts)} texts", clip.encode_text, tokens, expected[1]),
        ):
            call = functools.partial(tower, batch)
            with torch.no_grad(), exact(), precision.autocast():
                far = apart(call()[: len(wanted)].float(), wanted)
                seconds, memory = cost(call, place)
            yield Row(f"{here.model}: a tower", f"{what}, {mode}", seconds, memory, far, too_far(far, ALLOWED[mode]))
        del clip


def steps(place: Place) -> Iterator[Row]:
    """A training step of each method of tests/benchmarks/step.py that is ours; loss and gradient in fp32, in amp the
    loss, whose gradient is scaled."""
    for task, version in STEPS:
        sizes = {"batch": 4, "classes": 5, "test_batch": 10} if place.quick else {"batch": TASKS[task].batch}
        here = world(place, **sizes)
        with on(CPU):
            expected = TASKS[task].open(here, version).result()
        for mode in ("fp32", "amp"):
            with on(place.device, mode):
                runner = TASKS[task].open(here, version)
                found = runner.result()
                keys = ("loss", "gradient") if mode == "fp32" else ("loss",)
                far = max(apart(*(torch.tensor(part[key]) for part in (found, expected))) for key in keys)
                seconds, memory = cost(runner.call, place)
                del runner
            setting = f"{task}, {version}, batch {here.batch}, {mode}"
            yield Row(f"{here.model}: a step", setting, seconds, memory, far, too_far(far, ALLOWED[mode]))


def compiled(place: Place) -> Iterator[Row]:
    """A step with MODEL.COMPILE, which is to say that it compiles."""
    sizes = {"batch": 4, "classes": 5, "test_batch": 10} if place.quick else {"batch": 32}
    here, open_task = world(place, **sizes), TASKS["CoOp_LMC"].open
    with on(CPU):
        expected = open_task(here, "bank").result()
    with on(place.device, compiles=True):
        fault = "" if has_compiler(place.device.type) else "torch.compile does not work"
        runner = open_task(here, "bank")
        found = runner.result()
        far = max(apart(torch.tensor(found[key]), torch.tensor(expected[key])) for key in ("loss", "gradient"))
        seconds, memory = cost(runner.call, place)
    setting = f"CoOp_LMC, bank, batch {here.batch}, COMPILE, fp32"
    yield Row(f"{here.model}: a step", setting, seconds, memory, far, fault or too_far(far, ALLOWED["fp32"]))


def classes(place: Place) -> Iterator[Row]:
    """A CoOp_LMC step with 1,000 classes, fp32: all at once, in chunks, with blocks run again."""
    count = 20 if place.quick else 1000
    here = world(place, "text_b16", batch=4 if place.quick else 32, classes=count, test_batch=count)

    def opened(chunk: int, blocks: bool) -> tuple[Callable, float, list[float]]:
        trainer = coop.build(
            here, "CoOp_LMC", FEATURES__VIEWS=1, MODEL__TEXT_CHUNK=chunk, MODEL__CHECKPOINT_BLOCKS=blocks
        )
        trainer.use_feature_bank("train_loader_x", is_train=True)
        batch = first_batch(trainer.train_loader_x)
        call = lambda: float(trainer.forward_backward(batch)["loss"])  # noqa: E731
        return call, *gradient_of([trainer.model.ctx], call)

    with on(CPU):
        _, *expected = opened(*CHUNK["TEXT_CHUNK"])
    for name, keys in CHUNK.items():
        with on(place.device):
            call, *found = opened(*keys)
            pairs = zip(found, expected, strict=True)
            far = max(apart(torch.tensor(ours), torch.tensor(theirs)) for ours, theirs in pairs)
            seconds, memory = cost(call, place)
            del call
        setting = f"CoOp_LMC, {name}, fp32"
        yield Row(f"{here.model}: {count:,} classes", setting, seconds, memory, far, too_far(far, ALLOWED["fp32"]))


def fusion(place: Place) -> Iterator[Row]:
    """The third task of a stream of deltas of ViT-B/16's size: fused from the device, to the bit, and written there."""
    model = "tiny" if place.quick else "vit_b16"
    stream = Stream(model)
    stream.grow(2)
    before, delta = stream.fusion, stream.delta(3)
    stream.grow_by(before, delta)
    expected = stream.fusion.unified
    moved = {name: value.to(place.device) for name, value in delta.items()}
    stream.grow_by(before, moved)
    far = max(apart(stream.fusion.unified[name], value) for name, value in expected.items())
    seconds = clock(lambda: stream.grow_by(before, moved), place.device)
    yield Row(f"{model}: a fusion", "absorb, task 3, on the CPU", seconds, None, far, too_far(far, 0.0))
    task, here, there = stream.fusion.tasks[0], zeros(moved), zeros(delta)
    for pretrained, out in ((moved, here), (delta, there)):
        stream.fusion.add_to(task, pretrained, out)
    far = max(apart(here[name], value) for name, value in there.items())
    seconds, memory = cost(lambda: stream.fusion.add_to(task, moved, here), place)
    yield Row(f"{model}: a fusion", "an expert onto the device", seconds, memory, far, too_far(far, 1e-6))


def zeros(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(value) for name, value in state.items()}


def bank(place: Place) -> Iterator[Row]:
    """Building a feature bank of test images, whose batches a loader pins where the device is CUDA."""
    count = 10 if place.quick else 512
    here = world(place, classes=5, batch=5, test_batch=count)
    with on(place.device):
        trainer = here.trainer("ZeroshotCLIP", "ZeroshotCLIP/vit_b16", FEATURES__TEST=False)
        pixels, clip = trainer.test_loader.dataset, trainer.clip
        cfg = trainer.cfg.clone()
        cfg.merge_from_list(["FEATURES.DIR", str(here.folder / "gpu_bank"), "DATALOADER.TEST.BATCH_SIZE", 64])
        built, workers = [], 0 if place.quick else 4
        seconds = clock(lambda: built.append(FeatureBank(cfg, pixels, clip, workers=workers)), place.device)
        loader = built[0].loader([(half, [0]) for half in torch.arange(4).split(2)])
        batch = next(iter(loader))["img"]
        with torch.no_grad():
            expected = build_clip(str(here.weights)).encode_image(torch.stack([pixels[i]["img"] for i in range(4)]))
    far = apart(built[0].round()["feature"][:4], expected)
    fault = "" if batch.is_pinned() == place.cuda else f"a batch is {'' if batch.is_pinned() else 'not '}pinned"
    setting = f"{len(pixels)} images, fp32"
    yield Row(f"{here.model}: a feature bank", setting, seconds, None, far, fault or too_far(far, 1e-3))
