"""The kept experts of a stream looked at in other ways: baselines, ablations, other orders, figures, and costs.

All are counted on the same test images by the same evaluator. Whatever its place, an expert starts from the pretrained
weights, so no other order needs training; but a continual learner keeps no experts: an analysis, outside the protocol.

zero_shot    the pretrained CLIP
sequential   one CLIP, fine-tuned on task after task
experts      each learned task by its own fine-tuned CLIP, the others by the pretrained one: no forgetting at all
average      pretrained weights + mean of the experts' deltas so far (Ilharco et al., arXiv 2212.04089)
wise_ft      pretrained weights + half the sequential delta (WiSE-FT, arXiv 2109.01903)

All but `experts` have one model for all tasks. An ablation leaves out or replaces a piece of ConDU: unless its title
says so, the scale is that of the CFG, prototypes come from the pretrained CLIP, and the vote is the paper's.
Letters: T tasks of the stream, D joint width, C classes, N images of a task.
"""

import copy
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import train
from condu.delta import SCALES, unify
from condu.evaluation import Evaluator
from condu.fusion import Fusion
from condu.metrics import AccuracyMatrix
from condu.snapshot import Member, Snapshot, TestSet, ordered_loader, prototypes_of, snapshot_of
from condu.state import ExpertStore, Stream, Task
from condu.voting import PRESETS, Vote
from dassl.clip import ClipBackbone, tensor_digest
from dassl.engine.checkpoint import finished
from dassl.merging.methods import average, wise_ft
from dassl.utils import read_json, write_json
from dassl.utils.progress import progress
from scripts.condu.evaluate import StreamEvaluation, load_experts, vote_facts
from scripts.condu.sessions import Run, in_order, keys, train_stream

Delta = Mapping[str, Tensor]

TITLES = {
    "zero_shot": "Zero-shot CLIP",
    "sequential": "Sequential fine-tuning",
    "wise_ft": "WiSE-FT of it, alpha 0.5",
    "average": "Weight average of the experts",
    "experts": "Separate experts (upper bound)",
}
PAPER, RELEASED = PRESETS["paper"], PRESETS["released"]
SHOWN = 40  # images of a task in a t-SNE; more make it slow and no clearer


def train_experts(bench: StreamEvaluation) -> None:
    """The stream itself."""
    train_stream(bench.run)


def sequential_store(run: Run) -> ExpertStore:
    """The weights after each task of sequential fine-tuning, as deltas from the pretrained ones."""
    return ExpertStore(run.baselines / "sequential" / "experts")


def train_sequential(bench: StreamEvaluation) -> None:
    """Fine-tune through all tasks, each from where the one before ended; what is finished is skipped."""
    run, store = bench.run, sequential_store(bench.run)
    files, argvs = [store.path(name) for name in bench.names], []
    for index, task in enumerate(run.tasks):
        folder = store.folder.parent / "sessions" / f"{index}_{task}"
        start = {"START": str(files[index - 1])} if index else {}
        more = keys({"EXPERTS": str(store.folder)} | start)
        argvs.append([*run.base_argv(task, folder, "ConDU_Expert"), *more, *run.pairs])
    in_order(
        run,
        argvs,
        lambda index, memo: train.differences(argvs[index], memo),
        lambda index: files[index].unlink(missing_ok=True),
    )


def member(bench: StreamEvaluation, delta: Delta | None) -> Member:
    """The model of a delta; None: the pretrained one."""
    key = Evaluator.PRETRAINED if delta is None else tensor_digest(dict(delta))
    return Member(key, lambda parameters: bench.space.fill(delta, parameters))


def one_model(bench: StreamEvaluation, deltas: Iterable[Delta | None]) -> AccuracyMatrix:
    """Of one model for all tasks that is another after each session."""
    return bench.evaluator.models([[member(bench, delta)] * len(bench.names) for delta in deltas], bench.tests)


def matrix_of(bench: StreamEvaluation, kind: str) -> AccuracyMatrix:
    """The matrix of one baseline, by its name in TITLES."""
    size = len(bench.names)
    if kind == "zero_shot":
        return one_model(bench, [None] * size)
    if kind in ("sequential", "wise_ft"):
        deltas = [delta for delta, _ in load_experts(sequential_store(bench.run), bench.names).values()]
        if kind == "wise_ft":
            unchanged = {name: torch.zeros_like(value) for name, value in deltas[0].items()}
            deltas = [wise_ft(unchanged, delta, 0.5) for delta in deltas]
        return one_model(bench, deltas)
    deltas = [delta for delta, _ in bench.experts.values()]
    if kind == "average":
        return one_model(bench, [average(deltas[: index + 1]) for index in range(size)])
    pretrained, experts = member(bench, None), [member(bench, delta) for delta in deltas]
    rows = [[experts[j] if j <= i else pretrained for j in range(size)] for i in range(size)]
    return bench.evaluator.models(rows, bench.tests)


def evaluate_baselines(bench: StreamEvaluation, command: str = "") -> dict[str, AccuracyMatrix]:
    """All of them by title, each with its results.json; what is finished is read."""
    matrices = {}
    for kind, title in progress(TITLES.items(), "baselines"):
        facts = {"trainer": kind, "title": title, "scale": None, "command": command}
        matrices |= bench.results(
            {title: bench.run.baselines / kind}, {title: facts}, lambda kind=kind: [matrix_of(bench, kind)]
        )
    return matrices


def fuse(bench: StreamEvaluation, order: Sequence[str], scale: str = "") -> list[Snapshot]:
    """The stream after each of its sessions, fused in this order."""
    stream = Stream(**bench.identity | ({"scale": scale} if scale else {}))
    tests, snapshots = {test.name: test for test in bench.tests}, []
    for name in order:
        stream.add(Task(name, tests[name].classnames, tests[name].prompts), *bench.experts[name])
        snapshots.append(snapshot_of(copy.deepcopy(stream), bench.space))
    return snapshots


def by_votes(bench: StreamEvaluation, snapshots: list[Snapshot], rules: Mapping[str, Vote], order: Sequence[str] = ()):
    """The matrix of each vote; order: of the tasks, where it is not the stream's."""
    tests = {test.name: test for test in bench.tests}
    matrices, _ = bench.evaluator.sweep(snapshots, [tests[name] for name in order or tests], rules)
    return matrices.values()


def evaluate_orders(
    bench: StreamEvaluation, orders: dict[int, Sequence[str]], command: str = ""
) -> dict[str, dict[int, AccuracyMatrix]]:
    """Fuse and evaluate numbered orders -> {vote: {number: matrix}}; what is finished is read."""
    rules, matrices = bench.rules(), {}
    for number, order in progress(orders.items(), "orders"):
        folders = {rule: bench.run.out / "orders" / f"{number:02d}_{rule}" for rule in rules}
        facts = {
            rule: {"order": ",".join(order), "vote": vote_facts(rule, rules[rule]), "command": command}
            for rule in rules
        }
        measured = bench.results(folders, facts, lambda order=order: by_votes(bench, fuse(bench, order), rules, order))
        for rule, matrix in measured.items():
            matrices.setdefault(rule, {})[number] = matrix
    return matrices


# ablations


def own_prototypes(bench: StreamEvaluation, clip_of: Callable[[str], ClipBackbone]) -> list[Tensor]:
    """Of each task (C, D), by the features of the CLIP that its name gives."""
    rows = []
    for cfg, dataset, test in zip(bench.cfgs, bench.datasets, bench.tests, strict=True):
        loader = ordered_loader(cfg, dataset.train_x)
        rows.append(prototypes_of(clip_of(test.name), loader, test.classnames, test.prompts, bench.autocast))
    return rows


def expert_prototypes(bench: StreamEvaluation, snapshots: list[Snapshot]) -> list[Snapshot]:
    """Prototypes from each expert's own features, and similarities by the expert that answers."""

    def clip_of(name: str) -> ClipBackbone:
        expert = member(bench, bench.experts[name][0])
        return bench.evaluator.experts.clip(expert.key, expert.fill)

    rows = own_prototypes(bench, clip_of)
    return [replace(s, prototypes=rows[: len(s.tasks)], prototype_source="expert") for s in snapshots]


def without_decoupling(bench: StreamEvaluation) -> list[AccuracyMatrix]:
    """Each session unifies the last unified delta itself with the new one: no triggers, one model for all tasks."""
    unified: list[Delta] = []
    for delta, _ in bench.experts.values():
        unified.append(unify([unified[-1], delta])[0] if unified else delta)
    return [one_model(bench, unified)]


def evaluate_ablations(bench: StreamEvaluation, command: str = "") -> dict[str, AccuracyMatrix]:
    """All rows by title, each with its results.json; what is finished is read."""
    snapshots = functools.cache(lambda scale="": fuse(bench, bench.names, scale))
    counts = range(1, len(bench.names) + 1)
    rules = {"ConDU": PAPER} | {f"k = {k}": replace(PAPER, k=k) for k in counts}
    rules |= {f"with CLIP's vote, uniform, k = {k}": replace(RELEASED, k=k) for k in counts}
    votes = {title: {"vote": vote_facts("paper" if title == "ConDU" else "", rule)} for title, rule in rules.items()}
    others = [scale for scale in SCALES if scale != bench.cfg.TRAINER.CONDU.SCALE]
    alone = {"scale": None, "vote": None}  # one model for all tasks
    paper = functools.partial(by_votes, bench, rules={"": PAPER})
    parts: list[tuple[dict[str, dict], Callable[[], Iterable[AccuracyMatrix]]]] = [
        (votes, lambda: by_votes(bench, snapshots(), rules)),
        *(({f"scale {scale}": {"scale": scale}}, lambda scale=scale: paper(snapshots(scale))) for scale in others),
        ({"prototypes of the experts": {}}, lambda: paper(expert_prototypes(bench, snapshots()))),
        ({"plain average": alone}, lambda: [matrix_of(bench, "average")]),
        ({"unified without decoupling": alone}, lambda: without_decoupling(bench)),
    ]
    matrices = {}
    for rows, measure in progress(parts, "ablations"):
        names = {title: "".join(c if c.isalnum() else "_" for c in title) for title in rows}
        folders = {title: bench.run.out / "ablations" / name for title, name in names.items()}
        shared = {"vote": vote_facts("paper", PAPER), "command": command}
        matrices |= bench.results(folders, {t: shared | {"ablation": t} | rows[t] for t in rows}, measure)
    return matrices


# figures


@torch.no_grad()
def features_of(bench: StreamEvaluation, model: Member, test: TestSet) -> tuple[Tensor, Tensor]:
    """Unit features (N, D) and labels (N,) of some test images, spread over the set."""
    pixels, labels = next(iter(test.chunks(bench.evaluator.chunk, bench.clip.device)))
    rows = torch.linspace(0, len(labels) - 1, min(SHOWN, len(labels))).long()
    clip = bench.evaluator.experts.clip(model.key, model.fill)
    with bench.autocast():
        features = clip.encode_image(pixels[rows])
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu(), labels[rows].cpu()


def draw_figures(bench: StreamEvaluation) -> list[str]:
    """Accuracy matrices, the spread over orders, and every task's images through its own expert and through that of the
    last session (tsne.json) -> the image files, anew each time: they are made of the results alone."""
    from dassl.report.figures.all import all_figures
    from dassl.report.figures.tsne import SCATTER_FILE, write_scatter
    from dassl.report.records import load_results
    from mergetune.report import METHODS

    out = bench.run.out
    if bench.run.overwrite or not (out / SCATTER_FILE).is_file():
        last = bench.snapshots()[-1]
        points, about = [], []
        for test in bench.tests:
            expert = member(bench, bench.experts[test.name][0])
            for kind, model in (("expert", expert), ("reconstructed", last.members[last.place(test.name)])):
                features, labels = features_of(bench, model, test)
                points.append(features)
                about += [(test.name, kind, test.classnames[label]) for label in labels.tolist()]
        title = f"Experts and their reconstructions after {len(bench.tests)} tasks"
        write_scatter(out / SCATTER_FILE, torch.cat(points).numpy(), about, title)
    drawn = all_figures([out], load_results(out), Path(out, "figures"), METHODS)
    return [str(path) for path in drawn if path.suffix == ".png"]


# costs


def stages(bench: StreamEvaluation) -> list[dict]:
    """[{"stage", "seconds", "bytes"}], kept in stages.json. Measured on one thread or whatever the process has.

    seconds: of one task, on average, or of what the stage's name says; bytes: what the stage leaves.
    """
    file = bench.run.out / "stages.json"
    if file.is_file() and not bench.run.overwrite:
        return read_json(file)
    size, rows = len(bench.names), []

    def row(stage: str, seconds: float | None, tensors: Iterable[Tensor] = (), left: int | None = None) -> None:
        left = left or sum(tensor.nbytes for tensor in tensors) or None
        rows.append({"stage": stage, "seconds": seconds, "bytes": left})

    deltas = [delta for delta, _ in bench.experts.values()]
    walls = [finished(bench.run.session(index))["wall_s"] for index in range(size)]
    row("a session: the expert's delta", sum(walls) / size, deltas[0].values())
    seconds = _seconds(lambda: own_prototypes(bench, lambda _: bench.clip)) / size
    left = sum(prototypes.nbytes for _, prototypes in bench.experts.values()) / size
    row("prototypes of a task", seconds, left=round(left))
    fusion = Fusion(bench.cfg.TRAINER.CONDU.SCALE)
    absorbing = [_seconds(fusion.absorb, name, delta) for name, (delta, _) in bench.experts.items()]
    row("absorb a task: its mask", sum(absorbing) / size, fusion.masks[-1].values())
    row(f"absorb the last of {size} tasks: the unified delta", absorbing[-1], fusion.unified.values())
    weights = {name: value.detach().clone() for name, value in bench.clip.module.named_parameters()}
    filling = [_seconds(bench.space.fill_task, fusion, name, weights) for name in fusion.tasks]
    row("materialise an expert", sum(filling) / size, weights.values())
    state = bench.run.stream / f"session_{size - 1}.safetensors"
    row("the state on disk", None, left=state.stat().st_size)
    for what, folder in (("known and unseen tasks", "mtil_paper"), ("task-agnostic", "agnostic_target_paper")):
        wall_s = finished(bench.run.out / folder)["wall_s"]
        row(f"evaluate {size} sessions, all votes, {what}", wall_s)
    write_json(rows, file)
    return rows


def _seconds(call: Callable, *arguments) -> float:
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started
