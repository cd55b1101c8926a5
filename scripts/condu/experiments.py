"""The kept experts of a stream looked at in other ways: baselines, ablations, and the same experts in other orders.

All are counted on the same test images by the same evaluator. Whatever its place, an expert starts from the pretrained
weights, so no other order needs training; but a continual learner keeps no experts: an analysis, outside the protocol.

zero_shot    the pretrained CLIP
sequential   one CLIP, fine-tuned on task after task
experts      each learned task by its own fine-tuned CLIP, the others by the pretrained one: no forgetting at all
average      pretrained weights + mean of the experts' deltas so far (Ilharco et al., arXiv 2212.04089)
wise_ft      pretrained weights + half the sequential delta (WiSE-FT, arXiv 2109.01903)

All but `experts` have one model for all tasks. An ablation leaves out or replaces a piece of ConDU: unless its title
says so, the scale is that of the CFG, prototypes come from the pretrained CLIP, and the vote is the paper's.
Letters: T tasks of the stream, D joint width, C classes.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from condu.delta import SCALES, unify
from condu.evaluation import Evaluator
from condu.metrics import AccuracyMatrix
from condu.snapshot import Member, Snapshot, prototypes_of, snapshot_of
from condu.store import ExpertStore
from condu.stream import Stream, Task
from condu.voting import PRESETS
from dassl.clip import tensor_digest
from dassl.utils.progress import progress
from scripts.condu.bench import StreamEvaluation, load_experts, vote_facts
from scripts.condu.sessions import Run, in_order, keys, train_stream

Delta = Mapping[str, Tensor]

TITLES = {
    "zero_shot": "Zero-shot CLIP",
    "sequential": "Sequential fine-tuning",
    "wise_ft": "WiSE-FT of it, alpha 0.5",
    "average": "Weight average of the experts",
    "experts": "Separate experts (upper bound)",
}
WISE_ALPHA = 0.5
PAPER, RELEASED = PRESETS["paper"], PRESETS["released"]


def train_experts(bench: StreamEvaluation) -> None:
    """The stream itself."""
    train_stream(bench.run)


def sequential_store(run: Run) -> ExpertStore:
    """The weights after each task of sequential fine-tuning, as deltas from the pretrained ones."""
    return ExpertStore(run.baselines / "sequential" / "experts")


def sequential_argv(run: Run, index: int, names: Sequence[str]) -> list[str]:
    """Words of train.py for one task of sequential fine-tuning. names: of all tasks."""
    store = sequential_store(run)
    task = run.tasks[index]
    folder = store.folder.parent / "sessions" / f"{index}_{task}"
    before = {"START": str(store.path(names[index - 1]))} if index else {}
    more = keys({"EXPERTS": str(store.folder)} | before)
    return [*run.base_argv(task, folder, "ConDU_Expert"), *more, *run.pairs]


def train_sequential(bench: StreamEvaluation) -> None:
    """Fine-tune through all tasks, each from where the one before ended; what is finished is skipped."""
    import train

    argvs = [sequential_argv(bench.run, index, bench.names) for index in range(len(bench.names))]
    files = [sequential_store(bench.run).path(name) for name in bench.names]
    in_order(
        bench.run,
        argvs,
        lambda index, memo: train.differences(argvs[index], memo),
        lambda index: files[index].unlink(missing_ok=True),
    )


def mean_of(deltas: Sequence[Delta]) -> dict[str, Tensor]:
    """{name: mean over the deltas}."""
    return {name: sum(delta[name] for delta in deltas) / len(deltas) for name in deltas[0]}


def member(bench: StreamEvaluation, delta: Delta | None) -> Member:
    """The model of a delta; None: the pretrained one."""
    if delta is None:
        return Member(Evaluator.PRETRAINED, lambda parameters: bench.space.fill(None, parameters))
    return Member(tensor_digest(dict(delta)), lambda parameters: bench.space.fill(delta, parameters))


def one_model(bench: StreamEvaluation, deltas: Iterable[Delta]) -> AccuracyMatrix:
    """Of one model for all tasks that is another after each session."""
    return bench.evaluator.models([[member(bench, delta)] * len(bench.names) for delta in deltas], bench.tests)


def matrix_of(bench: StreamEvaluation, kind: str) -> AccuracyMatrix:
    """The matrix of one baseline, by its name in TITLES."""
    size = len(bench.names)
    if kind == "zero_shot":
        return one_model(bench, [None] * size)
    if kind in ("sequential", "wise_ft"):
        alpha = WISE_ALPHA if kind == "wise_ft" else 1
        stored = load_experts(sequential_store(bench.run), bench.names).values()
        return one_model(bench, [{name: alpha * value for name, value in delta.items()} for delta, _ in stored])
    deltas = [delta for delta, _ in bench.experts.values()]
    if kind == "average":
        return one_model(bench, [mean_of(deltas[: index + 1]) for index in range(size)])
    pretrained, experts = member(bench, None), [member(bench, delta) for delta in deltas]
    rows = [[experts[j] if j <= i else pretrained for j in range(size)] for i in range(size)]
    return bench.evaluator.models(rows, bench.tests)


def evaluate_baselines(bench: StreamEvaluation, command: str = "") -> dict[str, AccuracyMatrix]:
    """All of them by title, each with its results.json; what is finished is read."""
    found = {}
    for kind, title in progress(TITLES.items(), "baselines"):
        facts = {"trainer": kind, "title": title, "scale": None, "command": command}
        found |= bench.results(
            {title: bench.run.baselines / kind}, {title: facts}, lambda kind=kind: [matrix_of(bench, kind)]
        )
    return found


def fuse(bench: StreamEvaluation, order: Sequence[str], scale: str = "") -> list[Snapshot]:
    """The stream after each of its sessions, fused in this order."""
    scale = scale or bench.cfg.TRAINER.CONDU.SCALE
    stream = Stream.new(backbone=bench.backbone, space=bench.space.metadata(), scale=scale)
    tests, snapshots = {test.name: test for test in bench.tests}, []
    for name in order:
        stream.add(Task(name, tests[name].classnames, tests[name].prompts), *bench.experts[name])
        snapshots.append(snapshot_of(copy.deepcopy(stream), bench.space))
    return snapshots


def evaluate_orders(
    bench: StreamEvaluation, orders: dict[int, Sequence[str]], command: str = ""
) -> dict[str, dict[int, AccuracyMatrix]]:
    """Fuse and evaluate numbered orders -> {vote: {number: matrix}}; what is finished is read."""
    rules, found = bench.rules(), {}
    tests = {test.name: test for test in bench.tests}

    def measure(order: Sequence[str]) -> Iterable[AccuracyMatrix]:
        return bench.evaluator.matrix(fuse(bench, order), [tests[name] for name in order], rules).values()

    for number, order in progress(orders.items(), "orders"):
        folders = {rule: bench.run.out / "orders" / f"{number:02d}_{rule}" for rule in rules}
        facts = {
            rule: {"order": ",".join(order), "vote": vote_facts(rule, rules[rule]), "command": command}
            for rule in rules
        }
        for rule, matrix in bench.results(folders, facts, functools.partial(measure, order)).items():
            found.setdefault(rule, {})[number] = matrix
    return found


# ablations


def by_paper(bench: StreamEvaluation, snapshots: list[Snapshot]) -> list[AccuracyMatrix]:
    """The matrix by the paper's vote."""
    return list(bench.evaluator.matrix(snapshots, bench.tests, {"": PAPER}).values())


def expert_prototypes(bench: StreamEvaluation, snapshots: list[Snapshot]) -> list[AccuracyMatrix]:
    """Prototypes (C, D) from each expert's own features, and similarities by the expert that answers."""
    found = []
    for cfg, dataset, test in zip(bench.cfgs, bench.datasets, bench.tests, strict=True):
        expert = member(bench, bench.experts[test.name][0])
        clip = bench.evaluator.slots.clip(expert.key, expert.fill)
        loader = bench.loader(cfg, dataset.train_x)
        found.append(prototypes_of(clip, loader, test.classnames, test.prompts, bench.autocast))
    own = [replace(s, prototypes=found[: len(s.tasks)], prototype_source="expert") for s in snapshots]
    return by_paper(bench, own)


def without_decoupling(bench: StreamEvaluation) -> list[AccuracyMatrix]:
    """Each session unifies the last unified delta itself with the new one: no triggers, one model for all tasks."""
    unified: list[Delta] = []
    for delta, _ in bench.experts.values():
        unified.append(unify([unified[-1], delta])[0] if unified else delta)
    return [one_model(bench, unified)]


def evaluate_ablations(bench: StreamEvaluation, command: str = "") -> dict[str, AccuracyMatrix]:
    """All rows by title, each with its results.json; what is finished is read."""
    snapshots = functools.cache(lambda: fuse(bench, bench.names))
    counts = range(1, len(bench.names) + 1)
    rules = {"ConDU": PAPER} | {f"k = {k}": replace(PAPER, k=k) for k in counts}
    rules |= {f"with CLIP's vote, uniform, k = {k}": replace(RELEASED, k=k) for k in counts}
    votes = {title: {"vote": vote_facts("paper" if title == "ConDU" else "", rule)} for title, rule in rules.items()}
    others = [scale for scale in SCALES if scale != bench.cfg.TRAINER.CONDU.SCALE]
    alone = {"scale": None, "vote": None}  # one model for all tasks
    parts: list[tuple[dict[str, dict], Callable[[], Iterable[AccuracyMatrix]]]] = [
        (votes, lambda: bench.evaluator.matrix(snapshots(), bench.tests, rules).values()),
        *(
            ({f"scale {scale}": {"scale": scale}}, lambda scale=scale: by_paper(bench, fuse(bench, bench.names, scale)))
            for scale in others
        ),
        ({"prototypes of the experts": {}}, lambda: expert_prototypes(bench, snapshots())),
        ({"plain average": alone}, lambda: [matrix_of(bench, "average")]),
        ({"unified without decoupling": alone}, lambda: without_decoupling(bench)),
    ]
    found = {}
    for rows, measure in progress(parts, "ablations"):
        names = {title: "".join(c if c.isalnum() else "_" for c in title) for title in rows}
        folders = {title: bench.run.out / "ablations" / name for title, name in names.items()}
        own = {"vote": vote_facts("paper", PAPER), "command": command}
        found |= bench.results(folders, {t: own | {"ablation": t} | rows[t] for t in rows}, measure)
    return found
