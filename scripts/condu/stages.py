"""What each stage of a stream costs, in seconds and bytes."""

import time
from collections.abc import Callable

from condu.fusion import Fusion
from condu.snapshot import prototypes_of
from dassl.engine.checkpoint import finished
from dassl.utils import read_json, write_json
from scripts.condu.bench import StreamEvaluation


def stages(bench: StreamEvaluation) -> list[dict]:
    """[{"stage", "seconds", "bytes"}], kept in stages.json. Measured on one thread or whatever the process has.

    seconds: of one task, on average, or of what the stage's name says; bytes: what the stage leaves.
    """
    file = bench.run.out / "stages.json"
    if file.is_file() and not bench.run.overwrite:
        return read_json(file)
    size = len(bench.names)
    rows = [_training(bench), _prototypes(bench)]
    fusion, seconds = Fusion(bench.cfg.TRAINER.CONDU.SCALE), []
    for name, (delta, _) in bench.experts.items():
        seconds.append(_seconds(lambda name=name, delta=delta: fusion.absorb(name, delta)))
    masks = sum(mask.nbytes for mask in fusion.masks[-1].values())
    rows.append(_row("absorb a task: its mask", sum(seconds) / size, masks))
    unified = sum(tensor.nbytes for tensor in fusion.unified.values())
    rows.append(_row(f"absorb the last of {size} tasks: the unified delta", seconds[-1], unified))
    rows.append(_materialise(bench, fusion))
    state = bench.run.stream / f"session_{size - 1}.safetensors"
    rows.append(_row("the state on disk", None, state.stat().st_size))
    for what, folder in (("known and unseen tasks", "mtil_paper"), ("task-agnostic", "agnostic_target_paper")):
        wall_s = finished(bench.run.out / folder)["wall_s"]
        rows.append(_row(f"evaluate {size} sessions, all votes, {what}", wall_s, None))
    write_json(rows, file)
    return rows


def _row(stage: str, seconds: float | None, size: int | None) -> dict:
    return {"stage": stage, "seconds": seconds, "bytes": size}


def _seconds(call: Callable) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _training(bench: StreamEvaluation) -> dict:
    """A whole session, as its run recorded it."""
    walls = [finished(bench.run.session(index))["wall_s"] for index in range(len(bench.names))]
    delta, _ = next(iter(bench.experts.values()))
    return _row("a session: the expert's delta", sum(walls) / len(walls), sum(t.nbytes for t in delta.values()))


def _prototypes(bench: StreamEvaluation) -> dict:
    sets = [*zip(bench.cfgs, bench.datasets, bench.tests, strict=True)]

    def compute() -> None:
        for cfg, dataset, test in sets:
            loader = bench.loader(cfg, dataset.train_x)
            prototypes_of(bench.clip, loader, test.classnames, test.prompts, bench.autocast)

    left = sum(tensor.nbytes for _, tensor in bench.experts.values()) / len(sets)
    return _row("prototypes of a task", _seconds(compute) / len(sets), round(left))


def _materialise(bench: StreamEvaluation, fusion: Fusion) -> dict:
    """An expert's weights from the unified delta, in a CLIP that is there already."""
    weights = {name: value.detach().clone() for name, value in bench.clip.module.named_parameters()}

    def fill() -> None:
        for name in fusion.tasks:
            bench.space.fill_task(fusion, name, weights)

    seconds = _seconds(fill) / len(fusion.tasks)
    return _row("materialise an expert", seconds, sum(tensor.nbytes for tensor in weights.values()))
