"""What a stream is compared with, on the same test pictures and counted by the same evaluator.

zero_shot    the pretrained CLIP
sequential   one CLIP, fine-tuned on task after task
experts      each learned task by its own fine-tuned CLIP, the others by the pretrained one: no forgetting at all
average      pretrained weights + mean of the experts' deltas so far (Ilharco et al., arXiv 2212.04089)
wise_ft      pretrained weights + half the sequential delta (WiSE-FT, arXiv 2109.01903)

All but `experts` have one model for all tasks. Letters: T tasks of the stream.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from condu.evaluation import Evaluator, Member
from condu.metrics import AccuracyMatrix
from condu.store import ExpertStore
from dassl.clip import tensor_digest
from dassl.utils import UserError
from dassl.utils.progress import progress
from scripts.condu.bench import Bench, finished, read_matrix
from scripts.condu.sessions import Run, keys, start

Delta = Mapping[str, Tensor]

TITLES = {
    "zero_shot": "Zero-shot CLIP",
    "sequential": "Sequential fine-tuning",
    "wise_ft": "WiSE-FT of it, alpha 0.5",
    "average": "Weight average of the experts",
    "experts": "Separate experts (upper bound)",
}
WISE_ALPHA = 0.5


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


def train_sequential(run: Run, names: Sequence[str]) -> None:
    """Fine-tune through all tasks, each from where the one before ended; what is finished is skipped."""
    done = set(sequential_store(run).names())
    for index, name in enumerate(progress(names, "tasks in sequence")):
        argv = sequential_argv(run, index, names)
        if not (name in done and finished(Path(argv[argv.index("--output-dir") + 1]))):
            start(argv)


def deltas_of(store: ExpertStore, names: Sequence[str]) -> list[Delta]:
    """The stored deltas of all tasks. UserError for one that is not there."""
    found = [store.load(name) for name in names]
    missing = [name for name, expert in zip(names, found, strict=True) if expert is None]
    if missing:
        raise UserError(f"{store.folder} has no expert of {', '.join(missing)}; there: {', '.join(store.names())}")
    return [expert[0] for expert in found]


def mean_of(deltas: Sequence[Delta]) -> dict[str, Tensor]:
    """{name: mean over the deltas}."""
    return {name: sum(delta[name] for delta in deltas) / len(deltas) for name in deltas[0]}


def member(bench: Bench, delta: Delta | None) -> Member:
    """The model of a delta; None: the pretrained one."""
    if delta is None:
        return Member(Evaluator.PRETRAINED, lambda parameters: bench.space.fill(None, parameters))
    return Member(tensor_digest(dict(delta)), lambda parameters: bench.space.fill(delta, parameters))


def measure(bench: Bench, rows: Sequence[Sequence[Member]]) -> AccuracyMatrix:
    """The matrix of T rows of T models, that of task j after session i at [i][j]; equal models are run once."""
    return bench.evaluator.models(rows, bench.tests)


def one_model(bench: Bench, deltas: Sequence[Delta]) -> AccuracyMatrix:
    """Of one model for all tasks that is another after each session."""
    rows = [[member(bench, delta)] * len(deltas) for delta in deltas]
    return measure(bench, rows)


def separate(bench: Bench, deltas: Sequence[Delta]) -> AccuracyMatrix:
    """Of the experts themselves."""
    pretrained, experts = member(bench, None), [member(bench, delta) for delta in deltas]
    size = len(deltas)
    return measure(bench, [[experts[j] if j <= i else pretrained for j in range(size)] for i in range(size)])


def matrix_of(bench: Bench, kind: str) -> AccuracyMatrix:
    """The matrix of one baseline, by its name in TITLES."""
    names = bench.names
    if kind == "zero_shot":
        return measure(bench, [[member(bench, None)] * len(names)] * len(names))
    if kind in ("sequential", "wise_ft"):
        deltas = deltas_of(sequential_store(bench.run), names)
        if kind == "wise_ft":
            deltas = [{name: WISE_ALPHA * value for name, value in delta.items()} for delta in deltas]
        return one_model(bench, deltas)
    deltas = deltas_of(ExpertStore(bench.run.experts), names)
    if kind == "experts":
        return separate(bench, deltas)
    return one_model(bench, [mean_of(deltas[: index + 1]) for index in range(len(deltas))])


def evaluate_baselines(bench: Bench, command: str = "") -> dict[str, AccuracyMatrix]:
    """All of them, each with its results.json; what is finished is read."""
    found = {}
    for kind, title in progress(TITLES.items(), "baselines"):
        folder, started = bench.run.baselines / kind, time.monotonic()
        if not finished(folder):
            bench.record(
                folder, matrix_of(bench, kind), started, trainer=kind, title=title, scale=None, command=command
            )
        found[title] = read_matrix(folder)
    return found
