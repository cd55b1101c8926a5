"""Accuracy of a stream of experts on test sets, in one pass over the images (ConDU, arXiv 2503.10705).

A task that the stream has learned is classified by its own decoupled expert. A task that it has not, and any
image of unknown origin, by a vote: the similarity of the image to each task's prototypes, in the feature
space of the pretrained CLIP, says which experts see it.

Every image is decoded once and encoded once by the pretrained CLIP, whatever the number of sessions, vote
rules and label spaces, and by those experts alone that some rule has chosen for it.

Letters: B images of a chunk, C classes of a label space, D joint width, T tasks.
"""

import contextlib
import copy
import functools
import itertools
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from condu.metrics import AccuracyMatrix
from condu.snapshot import LabelSpace, Member, Snapshot, TestSet, text_vectors
from condu.voting import Vote, similarity, vote
from dassl.clip import ClipBackbone, cosine_logits
from dassl.engine.results import FILE, FORMAT, versions
from dassl.utils import get_logger, write_json
from dassl.utils.device import device_name
from dassl.utils.distributed import all_reduce, is_main
from dassl.utils.memory import report_peak
from dassl.utils.moved import old_names
from dassl.utils.progress import progress

LABELS = ("target", "union")
BATCH = 128  # images a forward pass
KNOWN = "known"  # key of the answers of a task's own expert


class ExpertCache:
    """At most `capacity` experts at once; the one not used for longest gives way, and its memory to the next.

    An expert is kept nowhere as weights: it is filled into a copy of `pretrained`, which itself is never written to.
    filled: how often weights were written.
    """

    def __init__(self, pretrained: ClipBackbone, capacity: int = 1):
        self.pretrained, self.capacity, self.filled = pretrained, capacity, 0
        self._resident: OrderedDict[str, ClipBackbone] = OrderedDict()  # by key, the one used last at the end

    def clip(self, key: str, fill: Callable[[dict], None]) -> ClipBackbone:
        """The CLIP with the weights of `key`, frozen: right until another key is asked for.

        key: says what the weights are, so that equal keys are equal weights; fill(parameters) writes them
        into {name: Parameter} in place, every name that any other fill of this cache writes.
        """
        if key not in self._resident:
            if len(self._resident) < self.capacity:
                clip = copy.deepcopy(self.pretrained).freeze()
            else:
                clip = self._resident.popitem(last=False)[1]
            with torch.no_grad():
                fill(dict(clip.module.named_parameters()))  # if it fails, what it has half filled is under no key
            self.filled += 1
            self._resident[key] = clip
        self._resident.move_to_end(key)
        return self._resident[key]


@dataclass
class _Question:
    """What to count on one test set: answers of the snapshot's `expert` alone, votes of all its experts, or both."""

    snapshot: Snapshot
    expert: int | None = None
    rules: Mapping[str, Vote] = field(default_factory=dict)
    labels: Sequence[str] = ("target",)

    def keys(self) -> list:
        """KNOWN or (rule, label space) of each count."""
        return [*([] if self.expert is None else [KNOWN]), *itertools.product(self.rules, self.labels)]


def _alone(member: Member) -> _Question:
    """Of one model that never votes."""
    return _Question(Snapshot([], [], [member]), 0)


class Evaluator:
    """Counts correct answers.

    clip: the pretrained ClipBackbone. experts: where they are made (default: one resident). autocast: context
    of the forward passes; similarities, logits and votes are in float32 whatever it is. chunk: images held in
    memory at once (1,024 of 224 x 224 take 616 MB). image_passes: {model key: images encoded}.
    """

    PRETRAINED = "pretrained"  # key of `clip`

    def __init__(self, clip: ClipBackbone, experts=None, autocast=contextlib.nullcontext, chunk: int = 1024):
        self.clip = clip
        self.experts: ExpertCache = experts or ExpertCache(clip)
        self.device = torch.device(clip.device)
        self.autocast, self.chunk = autocast, chunk
        self.image_passes: Counter = Counter()
        self._texts: dict = {}  # (model key, class names, prompts) -> (C, D): 2.4 MB for 1,201 classes of width 512

    def known(self, member: Member, test: TestSet) -> int:
        """Correct answers of one model on `test`."""
        return self._count(test, [_alone(member)])[0][KNOWN]

    def votes(self, snapshot: Snapshot, test: TestSet, rules: Mapping[str, Vote], labels=("target",)) -> dict:
        """{(rule, label space): correct answers} of {rule: Vote}; labels: "target", "union" or both."""
        return self._count(test, [_Question(snapshot, None, rules, labels)])[0]

    def sweep(
        self, snapshots: Sequence[Snapshot], tests: Sequence[TestSet], rules: Mapping, agnostic: bool = False
    ) -> tuple[dict[tuple[str, str | None], AccuracyMatrix], list[list[float | None]]]:
        """All of a stream in one pass over the images -> ({(rule, label space): matrix}, known).

        snapshots[i]: after session i, T of them; tests: T, in the order of learning. A learned task is answered by its
        expert and the label space is None; agnostic: all tasks by the vote, in both label spaces. known: rows of
        percentages of the tasks' own experts, None for a task not learned yet. It logs the lines of the released code.
        """
        columns = [self._column(snapshots, test, rules, agnostic) for test in progress(tests, "evaluating")]
        names, totals = [test.name for test in tests], [len(test) for test in tests]
        matrices = {}
        for rule, labels in itertools.product(rules, LABELS if agnostic else (None,)):
            key = (rule, labels or "target")
            correct = [[c[KNOWN] if labels is None and KNOWN in c else c[key] for c in row] for row in columns]
            matrices[rule, labels] = AccuracyMatrix(names, torch.tensor(correct).T, totals)
        known = [
            [100 * c[KNOWN] / total if KNOWN in c else None for c, total in zip(row, totals, strict=True)]
            for row in zip(*columns, strict=True)
        ]
        return matrices, known

    def models(self, rows: Sequence[Sequence[Member]], tests: Sequence[TestSet]) -> AccuracyMatrix:
        """Of models that never vote: the Member rows[i][j] answers for task j after session i.

        Equal members are run once a test set, whose images are decoded once.
        """
        columns = []
        for test, column in zip(progress(tests, "evaluating"), zip(*rows, strict=True), strict=True):
            questions = {member.key: _alone(member) for member in column}
            counts = dict(zip(questions, self._count(test, list(questions.values())), strict=True))
            columns.append([counts[member.key][KNOWN] for member in column])
        return AccuracyMatrix([test.name for test in tests], torch.tensor(columns).T, [len(test) for test in tests])

    def _column(self, snapshots: Sequence[Snapshot], test: TestSet, rules: Mapping, agnostic: bool) -> list[dict]:
        """The counts of each snapshot, all on `test`."""
        questions = []
        for snapshot in snapshots:
            place = snapshot.place(test.name)
            voting = agnostic or place is None
            questions.append(_Question(snapshot, place, rules if voting else {}, LABELS if agnostic else ("target",)))
        columns, write = self._count(test, questions), get_logger().info
        for snapshot, counts in zip(snapshots, columns, strict=True):
            after = f" after {len(snapshot.tasks)} of {len(snapshots)} tasks" if len(snapshots) > 1 else ""
            write(f"Evaluating on {test.name}{after}")
            for key, correct in counts.items():
                who = " (own expert)" if key == KNOWN else f" (vote {key[0]}, {key[1]} classes)"
                write(f"Top-1 accuracy: {100 * correct / len(test):.2f}{who if len(counts) > 1 else ''}")
        return columns

    @torch.no_grad()
    def _count(self, test: TestSet, questions: Sequence[_Question]) -> list[dict]:
        """{KNOWN or (rule, label space): correct answers} a question. The images are decoded once for all of them, by
        one of several processes each."""
        counts = [Counter(dict.fromkeys(question.keys(), 0)) for question in questions]
        spaces = [
            {labels: LabelSpace(test, q.snapshot if labels == "union" else None, self.device) for labels in q.labels}
            for q in questions
        ]
        share = test.share(self.chunk)
        chunks = test.chunks(self.chunk, self.device, share)
        for pixels, labels in progress(chunks, test.name, total=-(-len(test) // self.chunk)):
            pretrained = functools.cache(functools.partial(self._encode, self.PRETRAINED, self.clip, pixels))
            for question, count, space in zip(questions, counts, spaces, strict=True):
                count.update(self._count_chunk(question, space, pixels, labels, pretrained))
        results = []
        for count in counts:
            correct = torch.tensor([int(value) for value in count.values()])
            if share is not None:  # each process has looked at its own
                correct = all_reduce(correct)
            results.append(dict(zip(count, correct.tolist(), strict=True)))
        return results

    def _count_chunk(
        self, question: _Question, spaces: dict[str, LabelSpace], pixels: Tensor, labels: Tensor, pretrained: Callable
    ) -> dict:
        """{key: right answers on these images}; pretrained: () -> their features (B, D)."""
        snapshot, expert, rules = question.snapshot, question.expert, question.rules
        models = [Member(self.PRETRAINED, lambda parameters: None), *snapshot.members]
        wanted = torch.zeros(len(labels), len(models), dtype=torch.bool)  # which model has to look at which image
        wanted[:, 0] = any(rule.include_pretrained for rule in rules.values())
        by_expert = snapshot.prototype_source == "expert"  # similarities are of their own features
        if rules and by_expert:
            wanted[:, 1:] = True
        elif rules:
            seen = similarity(pretrained(), snapshot.prototypes)  # (B, T)
            wanted[:, 1:] = torch.stack([rule.chosen(seen) for rule in rules.values()]).any(0).cpu()
        if expert is not None:
            wanted[:, 1 + expert] = True
        logits = {
            name: torch.zeros(len(models), len(labels), len(space.names), device=self.device)
            for name, space in spaces.items()
        }
        looks = []
        for i, (model, looking) in enumerate(zip(models, wanted.T, strict=True)):
            rows = looking.nonzero().flatten().to(self.device)
            if not len(rows):
                continue
            if model.key == self.PRETRAINED:
                clip, features = self.clip, pretrained()[rows]
            else:
                clip = self.experts.clip(model.key, model.fill)
                features = self._encode(model.key, clip, pixels[rows])
            if by_expert and i:
                looks.append(similarity(features, [snapshot.prototypes[i - 1]]))
            for name, space in spaces.items():
                logits[name][i, rows] = self._logits(model.key, clip, features, space)
        if by_expert:
            seen = torch.cat(looks, 1)
        correct = {}
        for name, space in spaces.items():
            right = space.right[labels]
            if expert is not None and name == "target":
                correct[KNOWN] = (logits[name][1 + expert].argmax(1) == right).sum()
            for rule, how in rules.items():
                correct[rule, name] = (vote(logits[name], seen, how).argmax(1) == right).sum()
        return correct

    def _encode(self, key: str, clip: ClipBackbone, pixels: Tensor) -> Tensor:
        """Features (B, D), float32."""
        self.image_passes[key] += len(pixels)
        with self.autocast():
            return torch.cat([clip.encode_image(part).float() for part in pixels.split(BATCH)])

    def _logits(self, key: str, clip: ClipBackbone, features: Tensor, space: LabelSpace) -> Tensor:
        """(B, C) scaled cosines in float32; the class vectors are of the model's own text tower, computed once."""
        parts = []
        for names, prompts, taken in space.blocks:
            if (key, names, prompts) not in self._texts:
                with self.autocast():
                    self._texts[key, names, prompts] = text_vectors(clip, names, prompts)
            parts.append(self._texts[key, names, prompts][taken])
        return cosine_logits(features, torch.cat(parts), clip.logit_scale.float())


def write_matrix(folder, matrix: AccuracyMatrix, facts: Mapping, device: torch.device | None = None) -> dict:
    """Write `folder`/results.json -> its content. Written last and whole, so its presence means finished.

    Every process of the run calls it, the main one writes.

    facts: trainer (a method or a baseline), protocol ("mtil" or "mtil_agnostic"), seed, backbone ({"name",
    "digest"}), wall_s (seconds), command; and as far as they apply preset, labels (None, "target" or "union"),
    order (name of the task order), vote, scale, space, shots, known (rows of percentages of the tasks' own
    experts), and whatever else. Without a transfer (one task) the metric is left out.
    """
    order = facts.get("order") or ",".join(matrix.tasks)
    results = {
        "format": FORMAT,
        "kind": "eval",
        "preset": "",
        "dataset": f"stream {order}",
        "subset": "all",
        **dict.fromkeys(("labels", "vote", "scale", "space", "shots", "known")),
        **facts,
        "order": order,
        "tasks": list(matrix.tasks),
        "matrix": matrix.to_json(),
        "metrics": {name: float(value) for name, value in matrix.summary().items() if value is not None},
        "versions": versions(),
        "device": None if device is None else device_name(device),
        "peak_mb": None if device is None else report_peak(device),
        "wall_s": round(facts["wall_s"], 3),
    }
    if is_main():
        write_json(results, os.path.join(folder, FILE))
    return results


__getattr__ = old_names(__name__)
