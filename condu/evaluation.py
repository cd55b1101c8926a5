"""Accuracy of a stream of experts on test sets, in one pass over the pictures (ConDU, arXiv 2503.10705).

A task that the stream has learned is classified by its own decoupled expert. A task that it has not, and any
picture of unknown origin, by a vote: the similarity of the picture to each task's prototypes, in the feature
space of the pretrained CLIP, says which experts see it.

Every picture is decoded once and encoded once by the pretrained CLIP, whatever the number of sessions, vote
rules and label spaces, and by those experts alone that some rule has chosen for it.

Letters: B images of a chunk, C classes of a label space, D joint width, T tasks.
"""

import contextlib
import functools
import itertools
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch

from condu.expert_cache import ExpertCache
from condu.metrics import AccuracyMatrix
from condu.snapshot import LabelSpace, Member, Snapshot, text_vectors
from condu.voting import Vote, similarity, vote
from dassl.clip import cosine_logits
from dassl.utils import get_logger
from dassl.utils.distributed import all_reduce
from dassl.utils.progress import progress

LABELS = ("target", "union")
TEXTS_OF = 128  # models whose class vectors are kept: 2.4 MB each for 1,201 classes of width 512


@dataclass
class Cell:
    """Correct answers on one test set after one session.

    known: by the task's own expert, None for a task not learned; votes: {rule: {label space: correct}}.
    """

    total: int
    known: int | None = None
    votes: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class Sweep:
    """Cells of a stream: rows[i][j] is task j after session i, both in the order of learning; rules: their names."""

    tasks: list[str]
    rules: list[str]
    rows: list[list[Cell]] = field(default_factory=list)

    def mtil(self):
        """{rule: AccuracyMatrix}: learned tasks by their experts, the others by the vote."""
        return {
            rule: self._matrix(lambda cell, rule=rule: cell.votes[rule]["target"] if cell.known is None else cell.known)
            for rule in self.rules
        }

    def agnostic(self):
        """{rule: {label space: AccuracyMatrix}}: every task by the vote, of a sweep with agnostic=True."""
        return {
            rule: {
                labels: self._matrix(lambda cell, rule=rule, labels=labels: cell.votes[rule][labels])
                for labels in LABELS
            }
            for rule in self.rules
        }

    def known(self):
        """Rows of percentages of the tasks' own experts; None for a task not learned yet."""
        return [[None if cell.known is None else 100 * cell.known / cell.total for cell in row] for row in self.rows]

    def _matrix(self, count):
        correct = torch.tensor([[count(cell) for cell in row] for row in self.rows])
        return AccuracyMatrix(self.tasks, correct, torch.tensor([cell.total for cell in self.rows[0]]))


@dataclass
class _Job:
    """What to count on one test set: answers of `members[own]` alone, votes of `snapshot`, or both."""

    members: list[Member]
    own: int | None = None
    snapshot: Snapshot | None = None
    rules: dict[str, Vote] = field(default_factory=dict)
    labels: tuple = ("target",)
    spaces: dict[str, LabelSpace] = field(default_factory=dict)
    correct: Counter = field(default_factory=Counter)

    def cell(self, total):
        """The counts, brought to the CPU."""
        votes = {rule: {labels: int(self.correct[rule, labels]) for labels in self.labels} for rule in self.rules}
        return Cell(total, None if self.own is None else int(self.correct["known"]), votes)


class Evaluator:
    """Counts correct answers.

    clip: the pretrained ClipBackbone. slots: where experts are made (default: one resident). autocast: context
    of the forward passes; similarities, logits and votes are in float32 whatever it is. chunk: pictures held in
    memory at once (1,024 of 224 x 224 take 616 MB); batch: pictures a forward pass. image_passes: {model key:
    pictures encoded}.
    """

    PRETRAINED = "pretrained"  # key of `clip`

    def __init__(self, clip, slots=None, device=None, autocast=contextlib.nullcontext, chunk=1024, batch=128):
        self.clip = clip
        self.slots = slots or ExpertCache(clip)
        self.device = torch.device(device or clip.device)
        self.autocast, self.chunk, self.batch = autocast, chunk, batch
        self.image_passes = Counter()
        self._features = WeakKeyDictionary()  # test set -> {number of the chunk: (B, D)} of the pretrained model
        self._texts = OrderedDict()  # model key -> {(class names, prompts): (C, D)}

    def known(self, member, test):
        """Correct answers of one model on `test`."""
        return self._cells(test, [_Job([member], own=0)])[0].known

    def votes(self, snapshot, test, rules, labels=("target",)):
        """{rule: {label space: correct answers}} of {rule: Vote}; labels: "target", "union" or both."""
        return self._cells(test, [_Job(snapshot.members, None, snapshot, dict(rules), tuple(labels))])[0].votes

    def sweep(self, snapshots, tests, rules, agnostic=False, log=True):
        """All cells in one pass over the pictures -> Sweep.

        snapshots[i]: after session i, T of them; tests: T, in the order of learning; rules: {name: Vote}.
        agnostic: learned tasks go through the votes too, and all of them in both label spaces.
        """
        columns = [self._column(snapshots, test, rules, agnostic, log) for test in progress(tests, "evaluating")]
        return Sweep([test.name for test in tests], list(rules), [list(row) for row in zip(*columns, strict=True)])

    def matrix(self, snapshots, tests, rules, agnostic=False):
        """{rule: AccuracyMatrix}; agnostic: {rule: {label space: AccuracyMatrix}}. As `sweep`, without a log."""
        sweep = self.sweep(snapshots, tests, rules, agnostic, log=False)
        return sweep.agnostic() if agnostic else sweep.mtil()

    def models(self, rows, tests):
        """AccuracyMatrix of models that never vote: the Member rows[i][j] answers for task j after session i.

        Equal members are run once a test set, whose pictures are decoded once.
        """
        columns = []
        for test, column in zip(progress(tests, "evaluating"), zip(*rows, strict=True), strict=True):
            jobs = {member.key: _Job([member], own=0) for member in column}
            cells = dict(zip(jobs, self._cells(test, list(jobs.values())), strict=True))
            columns.append([cells[member.key].known for member in column])
        names, totals = [test.name for test in tests], [len(test) for test in tests]
        return AccuracyMatrix(names, torch.tensor(columns).T, torch.tensor(totals))

    def _column(self, snapshots, test, rules, agnostic, log):
        """One Cell a snapshot, all on `test`."""
        jobs = []
        for snapshot in snapshots:
            own = snapshot.place(test.name)
            if agnostic or own is None:
                jobs.append(_Job(snapshot.members, own, snapshot, rules, LABELS if agnostic else ("target",)))
            else:
                jobs.append(_Job([snapshot.members[own]], own=0))
        cells, write = self._cells(test, jobs), get_logger().info
        for snapshot, cell in zip(snapshots, cells, strict=True) if log else ():
            after = f" after {len(snapshot.tasks)} of {len(snapshots)} tasks" if len(snapshots) > 1 else ""
            write(f"Evaluating on {test.name}{after}")  # the lines of the released code
            answers = {} if cell.known is None else {"own expert": cell.known}
            answers |= {f"vote {rule}, {name} classes": n for rule, of in cell.votes.items() for name, n in of.items()}
            for who, correct in answers.items():
                note = f" ({who})" if len(answers) > 1 else ""
                write(f"Top-1 accuracy: {100 * correct / cell.total:.2f}{note}")
        return cells

    @torch.no_grad()
    def _cells(self, test, jobs):
        """One Cell a job. The pictures are decoded once for all of them, by one of several processes each."""
        for job in jobs:
            of = {"target": None, "union": job.snapshot}
            job.spaces = {labels: LabelSpace(test, of[labels], self.device) for labels in job.labels}
        share = test.share(self.chunk)
        chunks = progress(test.chunks(self.chunk, self.device, share), test.name, total=-(-len(test) // self.chunk))
        for number, (pixels, labels) in enumerate(chunks):
            pretrained = functools.partial(self._pretrained, test, number, pixels)
            for job in jobs:
                self._count_chunk(job, pixels, labels, pretrained)
        if share is not None:  # each process has looked at its own
            for job in jobs:
                keys = ["known", *itertools.product(job.rules, job.labels)]
                counts = all_reduce(torch.tensor([int(job.correct[key]) for key in keys]))
                job.correct = Counter(dict(zip(keys, counts.tolist(), strict=True)))
        return [job.cell(len(test)) for job in jobs]

    def _count_chunk(self, job, pixels, labels, pretrained):
        """Add the answers on these pictures; pretrained: () -> their features (B, D)."""
        by_expert = bool(job.rules) and job.snapshot.prototype_source == "expert"  # of their own features
        seen = None  # (B, T) similarities, where there are votes
        if job.rules and not by_expert:
            seen = similarity(pretrained(), job.snapshot.prototypes)
        wanted = torch.full((len(labels), len(job.members)), by_expert)  # which member has to look at which
        if seen is not None:
            wanted = torch.stack([rule.chosen(seen) for rule in job.rules.values()]).any(0).cpu()
        if job.own is not None:
            wanted[:, job.own] = True
        rows = [column.nonzero().flatten().to(self.device) for column in wanted.T]
        logits = {
            name: torch.zeros(1 + len(job.members), len(labels), len(space.names), device=self.device)
            for name, space in job.spaces.items()
        }
        if any(rule.include_pretrained for rule in job.rules.values()):
            for name, space in job.spaces.items():
                logits[name][0] = self._logits(self.PRETRAINED, self.clip, pretrained(), space)
        looks = []
        for i, member in enumerate(job.members):
            if not len(rows[i]):
                continue
            if member.key == self.PRETRAINED:
                clip, features = self.clip, pretrained()[rows[i]]
            else:
                clip = self.slots.clip(member.key, member.fill)
                features = self._encode(member.key, clip, pixels, rows[i])
            if by_expert:
                looks.append(similarity(features, [job.snapshot.prototypes[i]]))
            for name, space in job.spaces.items():
                logits[name][1 + i, rows[i]] = self._logits(member.key, clip, features, space)
        if by_expert:
            seen = torch.cat(looks, 1)
        for name, space in job.spaces.items():
            right = space.right[labels]
            if job.own is not None and name == "target":
                job.correct["known"] += (logits[name][1 + job.own].argmax(1) == right).sum()
            for rule, how in job.rules.items():
                job.correct[rule, name] += (vote(logits[name], seen, how).argmax(1) == right).sum()

    def _pretrained(self, test, number, pixels):
        """Features (B, D) of a chunk, computed once."""
        kept = self._features.setdefault(test, {})
        if number not in kept or len(kept[number]) != len(pixels):  # another evaluator's larger chunk may be kept
            rows = torch.arange(len(pixels), device=self.device)
            kept[number] = self._encode(self.PRETRAINED, self.clip, pixels, rows)
        return kept[number]

    def _encode(self, key, clip, pixels, rows):
        """Features (len(rows), D), float32, of some rows of the pixels."""
        self.image_passes[key] += len(rows)
        with self.autocast():
            return torch.cat([clip.encode_image(pixels[part]).float() for part in rows.split(self.batch)])

    def _logits(self, key, clip, features, space):
        """(B, C) scaled cosines in float32; the class vectors are of the model's own text tower."""
        parts = [self._vectors(key, clip, names, prompts)[taken] for names, prompts, taken in space.blocks]
        return cosine_logits(features, torch.cat(parts), clip.logit_scale.float())

    def _vectors(self, key, clip, classnames, prompts):
        """(C_i, D) of one data set, computed once a model."""
        kept = self._texts.setdefault(key, {})
        self._texts.move_to_end(key)
        if len(self._texts) > TEXTS_OF:
            self._texts.popitem(last=False)
        if (classnames, prompts) not in kept:
            with self.autocast():
                kept[classnames, prompts] = text_vectors(clip, classnames, prompts)
        return kept[classnames, prompts]
