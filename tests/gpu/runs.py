"""Whole runs in processes of their own: resumed to the bit, on several processes, and what they say of memory."""

import functools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from dassl.utils.device import device_name
from tests.benchmarks.world import BREEDS
from tests.fixtures import any_trainer
from tests.fixtures.image_folders import write_pets
from tests.fixtures.interpreter import Python
from tests.gpu.row import Place, Row, apart, clock, too_far

STOPPED = {"CoOp": "amp", "MultiModalAdapter": "bf16"}  # trainer: precision
TOGETHER = 1e-3  # of the trained weights, relative: the parts of a batch round apart


def words(place: Place, name: str, folder: str, mode: str, **keys) -> list[str]:
    """Arguments of train.py: three epochs of six steps."""
    data = place.folder / "pets"
    if not data.exists():
        write_pets(data, classes=BREEDS[:6], counts=(4, 2, 2))
    node = {"CoOp": "COOP", "MultiModalAdapter": "MMADAPTER"}[name]
    keys = {f"TRAINER__{node}__PREC": mode, "USE_CUDA": place.device.type != "cpu", "OPTIM__MAX_EPOCH": 3} | keys
    keys |= {"FEATURES__DIR": place.folder / "features"}
    return any_trainer.line(name, data, place.folder / "runs" / folder, subset="all", **keys)


def go(place: Place, *line: object, status: int = 0) -> float:
    """Seconds of `python LINE`. RuntimeError, with what it said last, for another exit status."""
    started = time.monotonic()
    process = Python(line)
    out, errors = process.communicate(timeout=300)
    if process.returncode != status:
        said = (errors or out).strip().splitlines()[-1:]
        raise RuntimeError(f"python {line[0]} ended with status {process.returncode}, expected {status}: {said}")
    return time.monotonic() - started


def weights(place: Place, folder: str) -> torch.Tensor:
    """What a run has trained, at its end, in one row."""
    (file,) = (place.folder / "runs" / folder).glob("*/model.pth.tar-3")
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    return torch.cat([value.flatten().float() for value in state.values()])


def resume(place: Place) -> Iterator[Row]:
    """With --deterministic a run that was stopped in the midst of an epoch ends with the bits of one that was not."""
    for name, mode in list(STOPPED.items())[: 1 if place.quick else None]:
        line = {what: ["--deterministic", *words(place, name, f"{name} {what}", mode)] for what in ("whole", "halves")}
        seconds = go(place, "train.py", *line["whole"])
        go(place, "-m", "tests.gpu.stopped", *line["halves"], status=143)
        go(place, "train.py", *line["halves"])
        one, two = (weights(place, f"{name} {what}") for what in ("whole", "halves"))
        fault = "" if torch.equal(one, two) else f"{int((one != two).sum())} of {len(one)} weights differ"
        yield Row("resume to the bit", f"{name}, {mode}, --deterministic", seconds, fault=fault)


@functools.cache
def plain_run(place: Place) -> tuple[float, Path]:
    """(seconds, folder) of a run by itself, done once."""
    line = words(place, "CoOp", "one", "fp32", DATALOADER__TRAIN_X__BATCH_SIZE=6)
    return go(place, "train.py", *line), place.folder / "runs" / "one"


def peak_line(place: Place) -> Iterator[Row]:
    """What a run says last of its memory, and that results.json says the same of it and of the device."""
    seconds, folder = plain_run(place)
    found = re.search(r"Peak memory: ([\d,]+) MB \((.*)\)", (folder / "log.txt").read_text())
    results = json.loads((folder / "results.json").read_text())
    said, where = (float(found[1].replace(",", "")), found[2]) if found else (0.0, "nothing")
    expected = r"cuda:0; reserved [\d,]+ MB" if place.cuda else "process"
    fault = "" if re.fullmatch(expected, where) and said > 0 else f"the log says {where}"
    if abs(results["peak_mb"] - said) > 1 or results["device"] != device_name(place.device):
        fault = f"results.json says {results['peak_mb']} MB on {results['device']}"
    yield Row("peak-memory line", f"CoOp, fp32: {where}", seconds, said, fault=fault)


def processes(place: Place) -> Iterator[Row]:
    """The collectives in a group of one, then a run on two processes against one, where there are two cards."""
    kind = "nccl" if place.cuda else "gloo"
    yield group_of_one(place, kind)
    cards = torch.cuda.device_count() if place.cuda else 2
    if cards < 2:
        yield Row("two processes", f"{kind}: left out, there is one card")
        return
    _, alone = plain_run(place)
    line = words(place, "CoOp", "two", "fp32", DATALOADER__TRAIN_X__BATCH_SIZE=6)
    seconds = go(place, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "train.py", *line)
    far = apart(weights(place, "two"), weights(place, alone.name))
    yield Row("two processes", f"{kind}, CoOp, fp32, against one", seconds, None, far, too_far(far, TOGETHER))


def group_of_one(place: Place, kind: str) -> Row:
    """all_reduce and broadcast change nothing where there is one process."""
    dist.init_process_group(kind, store=dist.HashStore(), rank=0, world_size=1)
    try:
        values = torch.arange(1 << 20, dtype=torch.float32, device=place.device)
        before = values.clone()

        def exchange() -> None:
            dist.all_reduce(values)
            dist.broadcast(values, 0)

        exchange()
        seconds = clock(exchange, place.device)
    finally:
        dist.destroy_process_group()
    return Row("one process", f"{kind}, 4 MB", seconds, fault="" if torch.equal(values, before) else "values changed")
