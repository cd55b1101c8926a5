"""A run from its config to results.json. What train.py does after reading its command line.

A run folder holds .lock while it is in use, log.txt, config.yaml, subset.json (the images drawn), the models'
folders, tensorboard/, resume.pt until training ends, and at the very end classes.json and results.json.

Under torchrun several processes make one run: the main one owns the folder and writes, all train and evaluate.
"""

import contextlib
import functools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from yacs.config import CfgNode as CN

from dassl.config import dump_yaml
from dassl.utils import UserError, WriteFailed, collect_env_info, memory_errors, set_random_seed
from dassl.utils import distributed as dist
from dassl.utils.device import choose_device
from dassl.utils.files import RunLock, atomic_write, write_json
from dassl.utils.logger import Logger, get_logger, logging_to
from dassl.utils.memory import reset_peak

from .base import dataset_of
from .build import build_trainer, checked_class
from .checkpoint import CONFIG, LAST, MERGE, RESULTS, RESUME, finished, last_epoch
from .lint import counts, opening
from .others import asked, lacks, other_sets, score_others
from .recipe import GO_ON, begun_from, differences, input_digests, unfinished
from .results import UNKNOWN, check_classes, write_results
from .signals import sigterm_ends
from .state import stop_workers
from .trainer import SimpleTrainer

log = get_logger()

_FIRST = (".lock", CONFIG, "subset.json", "tensorboard")  # and the log: what a run has before its first step
# What it leaves and another must not take for its own, an evaluation the first three; the finished marker goes first
_LEFT = (RESULTS, "path.json", "output.json", "resume.pt", "*/checkpoint", "*/model*.pth.tar*")


class AlreadyFinished(UserError):
    """The output folder holds the results of a finished run."""


def run(
    cfg: CN,
    *,
    eval_only: bool = False,
    model_dir: str = "",
    load_epoch: int | str | None = None,
    no_train: bool = False,
    overwrite: bool = False,
    command: str = "",
    recipe: CN | None = None,
    row: dict | None = None,
) -> dict:
    """Train, or evaluate the model in `model_dir`, into cfg.OUTPUT_DIR -> the content of results.json.

    An interrupted training goes on where it stopped. The process is afterwards as before: any number of runs fit in.

    load_epoch: of the evaluated model, or "last"; default the best one, or the last. no_train: build all, return {}.
    overwrite: remove what a finished run left. recipe: the config of the yaml files alone. row: what results.json says
    of the evaluated model; default what its own folder does.

    AlreadyFinished: results.json is there; where it lacks only what TEST.OTHERS names, it gets that. UserError: bad
    config or data, folder in use, nothing to evaluate, no space. PeerFailure: another process of this run failed.
    """
    started = time.monotonic()  # a clock may be set back
    kind, folder = "eval" if evaluates(cfg, eval_only, model_dir) else "train", cfg.OUTPUT_DIR
    check = functools.partial(check_folder, cfg, kind, overwrite, model_dir=model_dir, load_epoch=load_epoch)
    with dist.process_group(), dist.own_device(cfg.USE_CUDA), sigterm_ends(), backend(cfg), _own(folder, check) as left:
        before = dist.broadcast(finished(folder) if left is None else {})  # which gets what it lacks of others alone
        log.debug(f"***************\n** Arguments **\n***************\n{command}")
        trainer = _begin(cfg, kind, recipe)
        if no_train:
            return {}
        last = lambda: f" (last good checkpoint: {trainer.last_checkpoint()})"  # noqa: E731
        # twice: each worker that is killed raises, the second one in the midst of what the first one's end needs
        with memory_errors(last), _released(trainer), memory_errors(last):
            epoch = load_trained(trainer, model_dir, load_epoch, row) if eval_only else None
            for path in left or ():  # not before: what is refused until here leaves the folder as it was
                path.unlink(missing_ok=True)
            dist.barrier()
            what = _evaluate(trainer, model_dir, epoch, before) if eval_only else _train(trainer)
        if before:
            results = before | {"others": what[1]}
            if dist.is_main():
                write_json(results, os.path.join(folder, RESULTS))
            return results
        wall_s = time.monotonic() - started + trainer._progress.seconds
        results = write_results(folder, trainer, cfg, wall_s, command, kind, epoch, *what)
        trainer._progress.drop()  # not before: a run that is killed here would lose its history
        return results


def _begin(cfg: CN, kind: str, recipe: CN | None):
    """The trainer, with what the run begins from."""
    trainer = build_run(cfg, recipe)
    trainer._progress.inputs = input_digests(cfg, kind, trainer)
    if line := begun_from(cfg):
        log.warning(f"This run begins from what is not finished: {line}")
        trainer.trained = trainer.trained | {"unfinished": line}
    return trainer


def _evaluate(trainer, folder: str, epoch: int | None, before: dict) -> tuple[float, dict | None]:
    """(accuracy, entry of results.json on other data sets) of a loaded model. before: what results.json has already.

    UserError where nobody recorded which weights that is of, and these give another result.
    """
    sets = other_sets(trainer.cfg)  # what is not there ends the run before it begins
    accuracy = trainer.test()
    now, then = ([facts.get("correct"), facts.get("total")] for facts in (vars(trainer.evaluator), before))
    if before and not before.get("weights", {}).get("digest") and now != then:
        what = '"{}" recorded {} of {} correct, the same evaluation now has {} of {}'
        reason = "of other weights, or on another machine; --overwrite does it again"
        raise UserError(f"{what.format(trainer.cfg.OUTPUT_DIR, *then, *now)}: {reason}")
    return accuracy, score_others(trainer, sets, folder, epoch, before) if asked(trainer.cfg) else None


def evaluates(cfg: CN, eval_only: bool, model_dir: str) -> bool:
    """`eval_only`. UserError for a trainer that needs a model to evaluate, where none is named, or for a bad config."""
    cls = checked_class(cfg)
    if eval_only and not model_dir and cls.needs_checkpoint:
        raise UserError(f"Nothing to evaluate: --model-dir names the folder of a trained {cls.__name__}")
    return eval_only


def check_folder(cfg: CN, kind: str, overwrite: bool = False, **scores) -> list[Path] | None:
    """The files in cfg.OUTPUT_DIR that this run begins without, the finished marker first: all that a run leaves, where
    it is to be done again or cannot go on. None: it is finished, but for what TEST.OTHERS names.

    UserError if the folder holds a finished run, the half of another one than this, or merged weights.
    """
    folder = cfg.OUTPUT_DIR
    left = [path for pattern in _LEFT[: None if kind == "train" else 3] for path in Path(folder).glob(pattern)]
    if overwrite:
        return left
    lines = differences(folder, cfg, eval_only=kind == "eval", **scores)
    if results := finished(folder):
        if lines:
            ways = "--overwrite starts it again, another --output-dir keeps both"
            raise AlreadyFinished(f'"{folder}" holds a finished run of another recipe: {"; ".join(lines)}. {ways}')
        if kind == "eval" and lacks(results, asked(cfg)):
            return None
        raise AlreadyFinished(f'"{folder}" holds a finished run; --overwrite starts it again')
    if lines and not cfg.RESUME:
        raise UserError(f'"{folder}" holds half a run of another recipe: {"; ".join(lines)}. {GO_ON}')
    there = [name for name in (CONFIG, RESUME, MERGE) if os.path.isfile(os.path.join(folder, name))]
    if kind == "train" and MERGE in there:
        raise UserError(f'"{folder}" holds merged weights: choose another --output-dir')
    if kind == "eval" or there != [CONFIG] or not left:
        return []
    log.info(f'What is left in "{folder}" of a run without {RESUME} goes: this run starts afresh')
    return left


@contextlib.contextmanager
def _own(folder, check):
    """The main process locks the folder, checks it and logs into it; the others wait for that -> what `check` gives."""
    stale = []
    with contextlib.ExitStack() as held:
        if dist.is_main():
            held.enter_context(_locked(folder))
            stale = check()
            file = os.path.join(folder, "log.txt")  # where only others are missing, it stays that of the evaluation
            held.enter_context(contextlib.redirect_stdout(Logger()) if stale is None else logging_to(file))
        dist.barrier()
        yield stale


@contextlib.contextmanager
def _locked(folder):
    """Own the folder. A run that is refused before it has made anything leaves none of its files there, unless one has
    been in it before."""
    place = Path(folder)
    existed, before = place.is_dir(), set(place.glob("*"))
    with RunLock(folder):
        try:
            yield
        except UserError:
            new, logs = set(place.glob("*")) - before, set(place.glob("log*"))
            if not logs & before and all(path.name in _FIRST for path in new - logs):
                for path in new:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                if not existed:
                    place.rmdir()
            raise


def build_run(cfg: CN, recipe: CN | None = None) -> SimpleTrainer:
    """Seed, build the trainer, keep the config and the images it drew; a few lines of it are for the screen."""
    if dist.is_main():
        log.debug(f"************\n** Config **\n************\n{cfg}")
        log.debug(f"Collecting env info ...\n** System info **\n{collect_env_info()}\n")
        log.info(opening(cfg, recipe))
    if cfg.SEED >= 0:
        log.debug(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    elif dist.world_size() > 1:
        set_random_seed(dist.broadcast(int.from_bytes(os.urandom(4), "big")))  # any, but one for all
    with dist.main_process_first():  # a data set may keep on disk what it draws
        trainer = build_trainer(cfg)
    dataset = dataset_of(trainer)
    drawn = getattr(dataset, "drawn", None)
    if dist.is_main():
        log.info(counts(dataset))
        with atomic_write(os.path.join(cfg.OUTPUT_DIR, CONFIG), "w") as file:
            file.write(dump_yaml(cfg))
        if drawn is not None:
            write_json(drawn, os.path.join(cfg.OUTPUT_DIR, "subset.json"))
    return trainer


def load_trained(
    trainer: SimpleTrainer, folder: str, epoch: int | str | None = None, row: dict | None = None
) -> int | None:
    """Load a trained model, and take from its folder what describes it, for results.json, unless `row` does -> epoch,
    a number where LAST was asked for.

    UserError for one that knows its own classes only, and has others to score.
    """
    if folder:
        names = getattr(dataset_of(trainer), "classnames", None)
        if names and (reason := getattr(trainer, "bound_to_classes", "")):
            check_classes(folder, names, reason)
        trainer.trained = trainer.trained | (UNKNOWN | row if row else trainer.trained_facts(folder))
    if epoch == LAST:
        models = trainer.get_model_names() if folder else []
        epoch = next((last_epoch(folder, name) for name in models), None)
    epoch = None if epoch is None else int(epoch)
    trainer.load_model(folder, epoch=epoch)
    if folder and (line := unfinished(folder, trainer._loaded[1] if trainer._loaded else None)):
        log.warning(f"{folder}: {line}")
        before = trainer.trained.get("unfinished")
        trainer.trained["unfinished"] = "; ".join(dict.fromkeys(filter(None, [line, before])))
    return epoch


def _train(trainer):
    """(what `train` returns,) of a training; an interruption says what is left to go on from."""
    data = dataset_of(trainer)
    if getattr(data, "test_only", False) and trainer.get_model_names():
        raise UserError(f"{trainer.cfg.DATASET.NAME} is only tested on: its training images are its test images")
    trainer._progress.hold = True
    try:
        return (trainer.train(),)
    except WriteFailed as error:
        raise WriteFailed(f"{error} (last good checkpoint: {trainer.last_checkpoint()})") from error
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, dist.PeerFailure):
            log.info(f"Failed in {error.reason}")
        log.info(f"Interrupted (last good checkpoint: {trainer.last_checkpoint()}); the same command goes on")
        raise


@contextlib.contextmanager
def _released(trainer):
    """Afterwards the trainer holds no open file and no process. TensorBoard's thread ends in silence if the disk is
    full: what counts says so itself."""
    before = threading.excepthook

    def hook(args):
        if not (issubclass(args.exc_type, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        trainer.close_writer()
        stop_workers(trainer)
        threading.excepthook = before


@contextlib.contextmanager
def backend(cfg: CN) -> Iterator[None]:
    """cuDNN's tuner, or deterministic algorithms where cfg asks for them; afterwards as before. Peaks start anew."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    if cfg.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only so
    cuda = choose_device(cfg.USE_CUDA).type == "cuda"
    reset_peak(cuda)
    cudnn.benchmark = cuda and not cfg.DETERMINISTIC
    torch.use_deterministic_algorithms(cfg.DETERMINISTIC or before[1])
    try:
        yield
    finally:
        cudnn.benchmark = before[0]
        torch.use_deterministic_algorithms(before[1])
