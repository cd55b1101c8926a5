"""The kept experts of a stream looked at in other ways: baselines, ablations, other orders, features for a t-SNE.

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

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import train
from condu.delta import SCALES, unify
from condu.evaluation import Evaluator
from condu.metrics import AccuracyMatrix
from condu.snapshot import Member, Snapshot, TestSet, ordered_loader, prototypes_of, snapshot_of
from condu.state import ExpertStore, Stream, Task
from condu.voting import PRESETS, Vote
from dassl.clip import tensor_digest
from dassl.merging.methods import average, wise_ft
from dassl.report.figures.tsne import SCATTER_FILE, write_scatter
from dassl.utils.progress import progress
from scripts.condu.evaluate import Rows, StreamEvaluation, vote_facts
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


def all_results(
    bench: StreamEvaluation, what: str, parts: Sequence[tuple[Rows, Callable[[], Iterable[AccuracyMatrix]]]]
) -> dict:
    """{key: matrix} of parts that are measured together each; what is finished is read."""
    matrices = {}
    for rows, measure in progress(parts, what):
        matrices |= bench.results(rows, measure)
    return matrices


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
        deltas = [sequential_store(bench.run).load(name)[0] for name in bench.names]
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


def evaluate_baselines(bench: StreamEvaluation) -> dict[str, AccuracyMatrix]:
    """All of them by title, each with its results.json."""
    parts = []
    for kind, title in TITLES.items():
        facts = {"trainer": kind, "title": title, "scale": None}
        parts.append(({title: (bench.run.baselines / kind, facts)}, lambda kind=kind: [matrix_of(bench, kind)]))
    return all_results(bench, "baselines", parts)


def fuse(bench: StreamEvaluation, order: Sequence[str], scale: str = "") -> list[Snapshot]:
    """The stream after each of its sessions, fused in this order."""
    stream = Stream(**bench.identity | ({"scale": scale} if scale else {}))
    tests, snapshots = {test.name: test for test in bench.tests}, []
    for name in order:
        stream.add(Task(name, tests[name].classnames, tests[name].prompts), *bench.experts[name])
        snapshots.append(snapshot_of(stream, bench.space))
    return snapshots


def by_votes(bench: StreamEvaluation, snapshots: list[Snapshot], rules: Mapping[str, Vote]) -> list[AccuracyMatrix]:
    """The matrix of each vote."""
    tests = {test.name: test for test in bench.tests}
    matrices, _ = bench.evaluator.sweep(snapshots, [tests[task.name] for task in snapshots[-1].tasks], rules)
    return list(matrices.values())


def evaluate_orders(
    bench: StreamEvaluation, orders: Mapping[int, Sequence[str]]
) -> dict[tuple[str, int], AccuracyMatrix]:
    """Fuse and evaluate numbered orders -> {(vote, number): matrix}."""
    rules, parts, home = bench.rules(), [], bench.run.out / "orders"
    for number, order in orders.items():
        facts = {rule: {"order": ",".join(order)} | vote_facts(rule, how) for rule, how in rules.items()}
        rows = {(rule, number): (home / f"{number:02d}_{rule}", facts[rule]) for rule in rules}
        parts.append((rows, lambda order=order: by_votes(bench, fuse(bench, order), rules)))
    return all_results(bench, "orders", parts)


# ablations


def expert_prototypes(bench: StreamEvaluation, snapshots: list[Snapshot]) -> list[Snapshot]:
    """Prototypes from each expert's own features, and similarities by the expert that answers."""
    rows = []
    for cfg, dataset, test in zip(bench.cfgs, bench.datasets, bench.tests, strict=True):
        expert = member(bench, bench.experts[test.name][0])
        clip, loader = bench.evaluator.experts.clip(expert.key, expert.fill), ordered_loader(cfg, dataset.train_x)
        rows.append(prototypes_of(clip, loader, test.classnames, test.prompts, bench.evaluator.autocast))
    return [replace(s, prototypes=rows[: len(s.tasks)], prototype_source="expert") for s in snapshots]


def without_decoupling(bench: StreamEvaluation) -> list[AccuracyMatrix]:
    """Each session unifies the last unified delta itself with the new one: no triggers, one model for all tasks."""
    unified: list[Delta] = []
    for delta, _ in bench.experts.values():
        unified.append(unify([unified[-1], delta])[0] if unified else delta)
    return [one_model(bench, unified)]


def evaluate_ablations(bench: StreamEvaluation) -> dict[str, AccuracyMatrix]:
    """All rows by title, each with its results.json."""
    snapshots = functools.cache(lambda scale="": fuse(bench, bench.names, scale))
    counts = range(1, len(bench.names) + 1)
    rules = {"ConDU": PAPER} | {f"k = {k}": replace(PAPER, k=k) for k in counts}
    rules |= {f"with CLIP's vote, uniform, k = {k}": replace(RELEASED, k=k) for k in counts}
    votes = {title: vote_facts("paper" if title == "ConDU" else "", rule) for title, rule in rules.items()}
    scales = [scale for scale in SCALES if scale != bench.settings.SCALE]
    alone = {"scale": None, "vote": None}  # one model for all tasks
    paper = functools.partial(by_votes, bench, rules={"": PAPER})
    parts: list[tuple[dict[str, dict], Callable[[], Iterable[AccuracyMatrix]]]] = [
        (votes, lambda: by_votes(bench, snapshots(), rules)),
        *(({f"scale {scale}": {"scale": scale}}, lambda scale=scale: paper(snapshots(scale))) for scale in scales),
        ({"prototypes of the experts": {}}, lambda: paper(expert_prototypes(bench, snapshots()))),
        ({"plain average": alone}, lambda: [matrix_of(bench, "average")]),
        ({"unified without decoupling": alone}, lambda: without_decoupling(bench)),
    ]

    def row(title: str, facts: dict) -> tuple[Path, dict]:
        folder = "".join(c if c.isalnum() else "_" for c in title)
        return bench.run.out / "ablations" / folder, vote_facts("paper", PAPER) | {"ablation": title} | facts

    named = [({title: row(title, facts) for title, facts in rows.items()}, measure) for rows, measure in parts]
    return all_results(bench, "ablations", named)


# figures


@torch.no_grad()
def features_of(bench: StreamEvaluation, model: Member, test: TestSet) -> tuple[Tensor, Tensor]:
    """Unit features (N, D) and labels (N,) of some test images, spread over the set."""
    pixels, labels = next(iter(test.chunks(bench.evaluator.chunk, bench.clip.device)))
    rows = torch.linspace(0, len(labels) - 1, min(SHOWN, len(labels))).long()
    clip = bench.evaluator.experts.clip(model.key, model.fill)
    with bench.evaluator.autocast():
        features = clip.encode_image(pixels[rows])
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu(), labels[rows].cpu()


def write_features(bench: StreamEvaluation) -> None:
    """Every task's images through its own expert and through that of the last session, for a t-SNE (tsne.json)."""
    file = bench.run.out / SCATTER_FILE
    if file.is_file() and not bench.run.overwrite:
        return
    last, points, about = bench.snapshots()[-1], [], []
    for test in bench.tests:
        expert = member(bench, bench.experts[test.name][0])
        for kind, model in (("expert", expert), ("reconstructed", last.members[last.place(test.name)])):
            features, labels = features_of(bench, model, test)
            points.append(features)
            about += [(test.name, kind, test.classnames[label]) for label in labels.tolist()]
    title = f"Experts and their reconstructions after {len(bench.tests)} tasks"
    write_scatter(file, torch.cat(points).numpy(), about, title)
