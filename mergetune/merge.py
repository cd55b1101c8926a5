"""Merge trained weights without training: `python -m mergetune.merge --method ties PARENT... --out FOLDER`."""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dassl.merging.records import METHODS, SPACES, START, ZERO_SHOT, ZEROS
from dassl.utils import ArgumentParser, RunLock, UserError, atomic_files, command_parser, get_logger, write_json
from dassl.utils.files import begun
from dassl.utils.torchrun import run_command

SUBSETS = ("base", "new", "all")
KINDS = {name: type(value) for method in METHODS.values() for name, value in method.values.items()} | {"weights": float}

EPILOG = f"""\
A PARENT is a run folder, a file of weights (.pth, .pth.tar, .safetensors), a peft folder, or the word {ZERO_SHOT}:
CLIP itself, as the trainer of the first run among the parents gives it (a prompt: the embeddings of its words).
--base is what task vectors start from: {ZERO_SHOT} (default; for LoRA files no update), {START} (the weights with
which the first run's training began, from its seed: for models that no values of their weights make CLIP), {ZEROS}, or
a parent.

Parents must agree in names, shapes and dtypes, in backbone, activation and preprocessing, and where weights hold one
entry a class, in the classes. FOLDER becomes a run folder that `python train.py --eval-only --model-dir FOLDER`
evaluates; without a run among the parents it gets merged.safetensors, or a peft adapter.

Several values with commas are a search: all are tried, and the validation images of the first run choose.

examples:
  python -m mergetune.merge --method ties --density 0.2 --scale 1 RUN --out output/ties --eval base new
  python -m mergetune.merge --method wise_ft --alpha 0.2,0.4,0.6,0.8 RUN --out output/wise_ft --eval base new
  python -m mergetune.merge --method average {ZERO_SHOT} RUN1 RUN2 --out output/average
  python -m mergetune.merge --method dare --merge-space product --rank 8 LORA1 LORA2 --out output/lora
"""


def _values(name: str, kind: type):
    """How a flag of a method's value is read: "0.1,0.2" -> a list, one word -> a value (of `weights` a list)."""

    def read(text: str) -> object:
        values = [kind(word) for word in text.split(",")]
        return values if len(values) > 1 or name == "weights" else values[0]

    read.__name__ = f"{kind.__name__}, or several with commas"
    return read


def build_parser() -> ArgumentParser:
    """The flags."""
    about = "Merge trained weights without training, and evaluate what comes of it."
    parser = command_parser("mergetune.merge", about, EPILOG, ("--root", "--set", "--overwrite"))
    add = parser.add_argument
    add("parents", type="path", nargs="+", metavar="PARENT", help="weights to merge, see below")
    add("--method", required=True, choices=METHODS, help="how")
    add("--out", type="path", required=True, metavar="FOLDER", help="the folder to write")
    add("--base", type="path", default=ZERO_SHOT, metavar="PARENT", help="where task vectors start")
    add("--keep", default="", metavar="NAME,...", help="no weights: these differ, and the first parent's are taken")
    add("--merge-space", default="factors", choices=SPACES, help="of LoRA: its two factors, or their product")
    add("--rank", type=int, help="of the factors made of a product; default the first parent's, 0 leaves the product")
    add("--sweep", action="store_true", help="search the method's usual values where none are given")
    add("--eval", nargs="+", default=[], choices=SUBSETS, help="evaluate on these classes into FOLDER/eval_SUBSET")
    add("--others", metavar="NAMES", help="of --eval new: other data sets to score, as TEST.OTHERS")
    for name, kind in KINDS.items():
        users = [f"{key} ({method.values[name]})" for key, method in METHODS.items() if name in method.values]
        words = {"metavar": "VALUE,...", "default": argparse.SUPPRESS, "help": f"of {', '.join(users)}"}
        add(f"--{name}", type=_values(name, kind), **words)
    return parser


if __name__ == "__main__":  # --help and a wrong line need no PyTorch
    run_command(build_parser().parse_args)

from yacs.config import CfgNode

from dassl.engine import load_config, recipe
from dassl.engine.checkpoint import MERGE, finished
from dassl.engine.launch import run
from dassl.engine.others import asked, lacks
from mergetune.merge_job import LEFT, MergeJob, compared, is_finished

log = get_logger()


@contextmanager
def user_errors() -> Iterator[None]:
    """What the maths refuses is the user's to mend."""
    try:
        yield
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(str(error)) from None


@user_errors()
def merge_run(
    method: str, parents: Sequence[str | Path], out: str | Path, *, overwrite: bool = False, command: str = "", **how
) -> Path:
    """Merge `parents` by a method of METHODS into the folder `out`, which is returned.

    how: base, keep, merge_space, rank, root, pairs and the method's own values, see `merge_job.MergeJob`. overwrite:
    make it again where `out` holds a merge, which is left as it is if it is this one, and refused if it is another.
    UserError for parents that do not fit together, values that do not exist, and a folder that holds another run.
    """
    out, job = Path(out), MergeJob(method, parents, **how)
    if not (out / MERGE).is_file():
        job.states  # noqa: B018  refuses what does not fit, before the folder is made
    with RunLock(str(out)):
        asked = job.asked()
        if is_finished(out, asked, overwrite):
            log.info(f"{out} holds this merge: nothing to do (--overwrite makes it again)")
            return out
        state, choice, tried = job.search()
        earlier = (out / MERGE).is_file() or begun(out, MERGE)
        with atomic_files(out, MERGE, LEFT if earlier else ()) as folder:
            files = job.write(Path(folder), state, max((entry["val"] for entry in tried), default=None))
            facts = job.describe(choice, tried, command) | {"asked": asked, "weights": {"files": files}}
            write_json(facts, os.path.join(folder, MERGE))
    log.info(f"{facts['row']['preset']}: {out}")
    return out


@user_errors()
def differences(argv: Sequence[str], memo: dict | None = None) -> list[str]:
    """Lines on what the finished merge in the folder of a command line, and its evaluations, have otherwise than this
    line would; [] where there is none. memo: of `dassl.engine.recipe.differences`. MissingFile: a parent is gone."""
    tests, args = read(argv)
    out, _ = Path(args.pop("out")), args.pop("overwrite")
    if not finished(out, MERGE, "row"):
        return []
    lines = compared(out, MERGE, MergeJob(**args).asked())[1]
    for test in tests:
        cfg = evaluation(out, **test)
        lines += recipe.differences(cfg.OUTPUT_DIR, cfg, eval_only=True, model_dir=str(out), memo=memo)
    return lines


def evaluation(folder: str | Path, subset: str, others: str | None = None, **moved) -> CfgNode:
    """The config of `evaluate`."""
    changes = {"OUTPUT_DIR": str(Path(folder, f"eval_{subset}")), "DATASET.SUBSAMPLE_CLASSES": subset}
    changes |= {} if others is None else {"TEST.OTHERS": others}
    return load_config(folder, changes | {"RESUME_COOP": ""}, **moved)


def evaluate(folder: str | Path, subset: str, *, command: str = "", others: str | None = None, **moved) -> dict:
    """Evaluate a merged (or any) run folder on a subset of its classes, in FOLDER/eval_SUBSET -> results.json.

    others: TEST.OTHERS; default that of the folder. moved: `root` and `pairs` of `merge_run`. If the folder holds this
    very evaluation, it is not done again; if another, that is AlreadyFinished.
    """
    cfg = evaluation(folder, subset, others, **moved)
    results = finished(cfg.OUTPUT_DIR)
    left = not results or lacks(results, asked(cfg))
    if not left and not recipe.differences(cfg.OUTPUT_DIR, cfg, eval_only=True, model_dir=str(folder)):
        return results
    return run(cfg, eval_only=True, model_dir=str(folder), command=command)


def read(argv: Sequence[str]) -> tuple[list[dict], dict]:
    """The arguments of each `evaluate`, and those of `merge_run`, of a command line."""
    args = vars(build_parser().parse_args(argv))
    subsets, sweep, others = (args.pop(name) for name in ("eval", "sweep", "others"))
    args["keep"] = [name for name in args["keep"].split(",") if name]
    if sweep:
        if not (usual := METHODS[args["method"]].sweep):
            raise UserError(f"--sweep: {args['method']} has no values to search")
        args = {**usual, **args}
    return [{"subset": s, "others": others, "root": args["root"], "pairs": args["pairs"]} for s in subsets], args


def main(argv: list[str] | None = None) -> Path:
    """Run one command line; returns the folder."""
    argv = sys.argv[1:] if argv is None else argv
    tests, args = read(argv)
    command = shlex.join(["python", "-m", "mergetune.merge", *argv])
    out = merge_run(**args, command=command)
    for test in tests:
        evaluate(out, **test, command=command)
    return out


if __name__ == "__main__":
    run_command(main)
