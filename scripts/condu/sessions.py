"""Where a stream's runs lie, and the train.py line of each session.

<out>/stream/                       the state (condu.state)
<out>/sessions/<t>_<data set>/      one run of train.py each
<out>/../../experts/seed<k>/        the experts, if they are kept: shared by all orders of a CFG
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import condu
import train
from condu.orders import FOLDER, label_of, tasks_of
from dassl import engine
from dassl.utils import UserError, get_logger
from dassl.utils.progress import progress
from scripts.stopping import call

log = get_logger()


@dataclass(frozen=True)
class Run:
    """A stream to train or to evaluate. pairs: KEY VALUE words for every session; experts: "" keeps none; overwrite:
    what was made otherwise than asked for is made again, and what came of it; command: the line that asks for it, for
    results.json; datasets: folder of the tasks' yamls."""

    out: Path
    order: str
    cfg: str
    seed: int
    root: str
    experts: str = ""
    pairs: Sequence[str] = field(default=())
    overwrite: bool = False
    command: str = ""
    datasets: str = FOLDER

    @property
    def tasks(self) -> tuple[str, ...]:
        return tasks_of(self.order)

    @property
    def label(self) -> str:
        return label_of(self.order)

    @property
    def stream(self) -> Path:
        return self.out / "stream"

    def session(self, index: int) -> Path:
        return self.out / "sessions" / f"{index}_{self.tasks[index]}"

    @property
    def baselines(self) -> Path:
        return self.out / "baselines"

    def base_argv(self, task: str, folder: str | Path, trainer: str = "ConDU") -> list[str]:
        """Words of train.py for one data set, without the keys of a session."""
        return [
            *("--root", self.root, "--seed", str(self.seed), "--trainer", trainer),
            *("--dataset-config-file", f"{self.datasets}/{task}.yaml"),
            *("--config-file", f"configs/trainers/ConDU/{self.cfg}.yaml", "--output-dir", str(folder)),
        ]

    def argv(self, index: int) -> list[str]:
        """Words of train.py for a session. Every session's state is kept, for evaluation afterwards."""
        values = {"STREAM": str(self.stream), "EXPERTS": self.experts, "SESSION": str(index), "HISTORY": "True"}
        return [*self.base_argv(self.tasks[index], self.session(index)), *keys(values), *self.pairs]


def keys(values: Mapping[str, str]) -> list[str]:
    """KEY VALUE words of the node TRAINER.CONDU."""
    return [word for key, value in values.items() for word in (f"TRAINER.CONDU.{key}", value)]


def program(argv: Sequence[str], gpus: int = 1) -> list[str]:
    """The command line of a session: Python's train.py, under torchrun for several GPUs."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"] if gpus > 1 else []
    return ["python", *launcher, "train.py", *argv]


def train_stream(run: Run, gpus: int = 1) -> None:
    """Every session that has no results yet; each goes on where it was killed.

    One process: all in this one, so that CLIP and start-up are paid once. Several: torchrun for each session.
    """

    def again(index: int) -> None:
        task = engine.checkpoint.finished(run.session(index)).get("task")
        if task and run.experts and train.differences(run.argv(index)):
            condu.state.ExpertStore(run.experts).path(task).unlink(missing_ok=True)
        condu.state.forget(run.stream, index)

    argvs = [run.argv(index) for index in range(len(run.tasks))]
    in_order(run, argvs, lambda index, memo: other_session(run, index, memo), again, gpus)


def other_session(run: Run, index: int, memo: dict | None) -> list[str]:
    """Lines on what a session, or what it has left in the stream, is otherwise than asked for."""
    left = engine.checkpoint.finished(run.session(index)).get("stream_digest")
    try:
        holds = left is None or left == condu.state.session_digest(run.stream, index)
    except UserError:  # gone or damaged; HISTORY False keeps the last one only
        holds = any("CONDU.HISTORY" in word for word in run.pairs) and index < len(run.tasks) - 1
    lost = [] if holds else [f"{run.stream} no longer holds what it left"]
    return lost or train.differences(run.argv(index), memo)


def in_order(
    run: Run,
    argvs: Sequence[Sequence[str]],
    differs: Callable[[int, dict], list[str]],
    again: Callable[[int], None],
    gpus: int = 1,
) -> None:
    """A run of train.py for each task, of which each needs the one before; what is finished is skipped.

    differs: (number, memo of train.differences) -> lines on what is otherwise than asked for. UserError for those,
    before the first run begins, unless run.overwrite: then such a run is done again, after `again(number)`, and so are
    those that came of it.
    """
    folders, memo = [Path(argv[argv.index("--output-dir") + 1]) for argv in argvs], {}
    said = [f"{folders[i]}: {'; '.join(lines)}" for i in range(len(argvs)) if (lines := differs(i, memo))]
    if said and not run.overwrite:
        raise UserError(
            f"{len(said)} of {len(argvs)} sessions were run otherwise: {'. '.join(said)}. --overwrite does them and "
            "what came of them again, another OUTPUT keeps both"
        )
    for index, task in enumerate(progress(run.tasks, "sessions")):
        if run.overwrite and (lines := differs(index, {})):
            log.info(f"session {index} ({task}) is done again: {'; '.join(lines)}")
            again(index)
            start([*argvs[index], "--overwrite"], gpus)
        elif engine.checkpoint.finished(folders[index]):
            log.info(f"session {index} ({task}) is finished: skipped")
        else:
            log.info(f"session {index} of {len(run.tasks)}: {task}")
            start(argvs[index], gpus)


def start(argv: Sequence[str], gpus: int = 1) -> None:
    """One run of train.py, to its end. UserError if a run under torchrun fails."""
    words = program(argv, gpus)
    if gpus <= 1:
        train.main(list(argv))
    elif status := call(words[1:]):
        raise UserError(f"exit status {status} of: {shlex.join(words)}")
