"""Training a stream of tasks: `ConDU` is one session of it, `ConDU_Expert` an expert by itself (arXiv 2503.10705).

A session adds the task's expert to the stream's state and forgets it; only the store of experts, if there is
one, keeps it.
"""

import os

from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.engine.recipe import changed, recipe
from dassl.utils import UserError, digest, get_logger
from dassl.utils.distributed import barrier, is_main

from .evaluation import Evaluator, ExpertCache
from .expert import ConDU_Expert
from .snapshot import TestSet, snapshot_of
from .state import ExpertStore, Stream, Task, sessions
from .voting import vote_rule

__all__ = ["ConDU", "ConDU_Expert"]

log = get_logger()


@TRAINER_REGISTRY.register()
class ConDU(ConDU_Expert):
    """One session of a stream: trains the task's expert, or takes it from the store, and fuses it.

    Tests the task through the decoupled expert. With --eval-only, --model-dir is the folder of a stream.
    """

    _evaluates = False  # a stream, in place of training a session of it
    stream: Stream

    def check_cfg(self, cfg: CN) -> None:
        super().check_cfg(cfg)
        if cfg.TRAINER.CONDU.START:
            raise UserError("TRAINER.CONDU.START is for ConDU_Expert: a session starts from the pretrained weights")

    @property
    def store(self) -> ExpertStore | None:
        return ExpertStore(self.settings.EXPERTS) if self.settings.EXPERTS else None

    @property
    def folder(self) -> str:
        """Of the stream."""
        return self.settings.STREAM or os.path.join(self.output_dir, "stream")

    def identity(self) -> dict:
        """What all sessions of a stream share."""
        backbone = {"name": self.pretrained.name, "digest": self.pretrained.digest}
        return {"backbone": backbone, "space": self.space.metadata(), "scale": self.settings.SCALE}

    def load_previous_session(self) -> bool:
        identity = self.identity()
        there = sessions(self.folder)
        # a session whose record was lost is read off its own state again, whatever came after it
        kept = self.settings.SESSION if self.settings.SESSION in there else None
        self.stream = Stream.load(self.folder, kept, **identity) if there else Stream(**identity)
        names = self.stream.names()
        self.learned = names[-1:] == [self.task]
        if self.learned:
            if lines := changed(self.stream.tasks[-1].recipe, self.recipe()):
                raise UserError(
                    f"{self.task} is the last task of the stream in {self.folder}, by another training: "
                    f"{'; '.join(lines)}"
                )
        elif self.task in names:
            raise UserError(
                f"{self.task} is session {names.index(self.task)} of the stream in {self.folder} already "
                f"({', '.join(names)}); a task is learned once"
            )
        session = len(names) - self.learned
        if self.settings.SESSION not in (-1, session):
            known = f"{len(names)} tasks ({', '.join(names)})" if names else "no task"
            raise UserError(
                f"TRAINER.CONDU.SESSION is {self.settings.SESSION}, but the stream in {self.folder} has {known}: "
                f"{self.task} would be session {session}"
            )
        return self.learned or super().load_previous_session()

    def save_expert(self) -> None:
        """Fuse the expert, save the stream, and make the decoupled expert what is tested."""
        if not self.learned:
            delta, prototypes = self.expert()
            task = Task(self.task, self.classnames, self.prompts, self.recipe(), preset=self.cfg.PRESET)
            self.stream.add(task, delta, prototypes)
            if is_main():
                self.stream.save(self.folder, self.settings.HISTORY, self.settings.HALF)
            if self.settings.HALF:
                barrier()
                self.stream = Stream.load(self.folder)  # what is tested is what the next session finds
        self.deploy(lambda parameters: self.space.fill_task(self.stream.fusion, self.task, parameters))

    def trained_facts(self, folder: str) -> dict:
        """Nothing: a stream says itself, once it is loaded, what it was trained by."""
        return {}

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """A stream's state: the last session, or SESSION where its state was kept."""
        if epoch is not None:
            raise UserError("A stream has sessions, not epochs: in place of --load-epoch give TRAINER.CONDU.SESSION")
        session = None if self.settings.SESSION < 0 else self.settings.SESSION
        self.stream = Stream.load(directory, session, **self.identity())
        self._evaluates = True

    def test(self, split: str | None = None) -> float:
        if not self._evaluates:
            return super().test(split)
        self.space.release()
        snapshot = snapshot_of(self.stream, self.space)
        test = TestSet(self.task, self.classnames, self.prompts, self.test_loader)
        experts = ExpertCache(self.pretrained, self.settings.RESIDENT)
        evaluator = Evaluator(self.pretrained, experts, self.precision.autocast, self.settings.CHUNK)
        place = None if self.settings.TASK_AGNOSTIC else snapshot.place(self.task)
        self._by_vote = place is None
        if self._by_vote:
            labels = self.settings.LABELS
            correct = evaluator.votes(snapshot, test, {"": vote_rule(self.settings.VOTE)}, (labels,))["", labels]
        else:
            correct = evaluator.known(snapshot.members[place], test)
        results = {"accuracy": 100 * correct / len(test)}
        log.info(f"Evaluating on {self.task}\nTop-1 accuracy: {results['accuracy']:.2f}")
        self.evaluator.correct, self.evaluator.total, self.evaluator.results = correct, len(test), results
        return results["accuracy"]

    def metadata(self) -> dict:
        """Also the stream's, and how it answered; an evaluation tells the recipe that the task was learned by."""
        facts, settings, names = super().metadata(), self.settings, self.stream.names()
        vote = {key.lower(): value for key, value in settings.VOTE.items()}
        condu = facts["condu"] | {"scale": settings.SCALE, "half": settings.HALF, "vote": vote}
        facts |= {"session": self.stream.session, "stream_tasks": names}
        if self._evaluates:
            condu |= {"answer": "vote" if self._by_vote else "expert", "labels": settings.LABELS}
            learned = dict(zip(names, self.stream.tasks, strict=True)).get(self.task)
            facts["recipe"] = recipe(self.cfg, "eval") | (learned.recipe if learned else {})
            facts |= {"data_seen": f"the tasks {', '.join(names)}"} | self.stream.trained_facts()
        else:
            facts["stream_digest"] = digest(self.stream.metadata(settings.HALF))
        return facts | {"condu": condu}
