"""A whole ConDU stream (arXiv 2503.10705): its training, session by session, and the evaluation of all sessions.

    python -m scripts.condu.stream train --order I --cfg mtil_ft --seed 1 --root data --out output/mtil/...
    python -m scripts.condu.stream eval-mtil --order I --cfg mtil_ft --run output/mtil/... --out .../mtil

scripts/condu/*.sh call it. Evaluation is one run for all sessions: every test image is decoded once. Of several
processes (torchrun --nproc_per_node N -m scripts.condu.stream eval-mtil ...) each looks at a share. It leaves
OUT_<vote>/results.json, task-agnostic OUT_<labels>_<vote>/results.json.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from dassl import utils  # noqa: E402
from dassl.utils import ArgumentParser, check_availability, errors_in_one_line  # noqa: E402
from scripts.condu.sessions import Run, other_session, program, train_stream  # noqa: E402

PROTOCOLS = {"eval-mtil": False, "eval-agnostic": True}  # to: is the task unknown at test time?


def build_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m scripts.condu.stream", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("action", choices=("train", *PROTOCOLS), help="train the stream, or evaluate all of its sessions")
    add("--order", default="I", help="I, II, toy, or data sets of configs/datasets/mtil as a,b,c; default I")
    add("--cfg", default="mtil_ft", help="a yaml of configs/trainers/ConDU, without its ending")
    add("--seed", type=int, default=1)
    add("--gpus", type=int, default=1, help="processes of a session, under torchrun if more than one")
    add("--root", type="path", default="data", help="folder of all data sets")
    add("--out", type="path", required=True, help="train: the stream's folder; eval: what results' folders begin with")
    add("--run", type="path", default="", help="eval: folder of the trained stream")
    add(
        "--keep-experts",
        action="store_true",
        help="keep every expert beside the stream, to fuse them in other orders: for analysis, outside the protocol",
    )
    add("--overwrite", action="store_true", help="do again what was made otherwise, and what came of it")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys that win over all else")
    return parser


def read(argv: list[str]) -> tuple[argparse.Namespace, Run]:
    """A command line and the run it is about. UserError for an unknown order, data set or CFG."""
    args = build_parser().parse_intermixed_args(argv)
    yamls = (ROOT / "configs" / "trainers" / "ConDU").glob("[!_]*.yaml")
    check_availability(args.cfg, sorted(path.stem for path in yamls), "CFG")
    out = Path(args.out if args.action == "train" else args.run or Path(args.out).parent).absolute()
    experts = str(out.parent.parent / "experts" / f"seed{args.seed}") if args.keep_experts else ""
    root, pairs = os.path.abspath(args.root), tuple(args.opts)
    command = shlex.join(["python", "-m", "scripts.condu.stream", *argv])
    run = Run(out, args.order, args.cfg, args.seed, root, experts, pairs, args.overwrite, command)
    run.tasks  # noqa: B018  refuses unknown names
    return args, run


def session_lines(argv: list[str]) -> list[list[str]]:
    """The command line of each session."""
    args, run = read(argv)
    return [program(run.argv(index), args.gpus) for index in range(len(run.tasks))]


def differences(argv: list[str], memo: dict | None = None) -> list[str]:
    """Lines on what the sessions of a stream, or the results of its evaluation, have otherwise than this command line
    would; [] where none has begun. memo: of `dassl.engine.recipe.differences`."""
    args, run = read(argv)
    if args.action == "train":
        return [line for index in range(len(run.tasks)) for line in other_session(run, index, memo)]
    from scripts.condu.evaluate import StreamEvaluation, rows_of

    bench = StreamEvaluation(run, memo)
    return bench.differs(rows_of(bench.rules(), args.out, PROTOCOLS[args.action]))


def main(argv: list[str] | None = None) -> None:
    """Run one command line."""
    args, run = read(sys.argv[1:] if argv is None else argv)
    processes = utils.distributed  # torchrun's, if it started this process
    with processes.process_group() if args.gpus <= 1 else processes.one_process():
        if args.action == "train":
            train_stream(run, args.gpus)
            return
        from scripts.condu.evaluate import StreamEvaluation, config, evaluate_stream

        with processes.own_device(config(run, run.tasks[0]).USE_CUDA):
            evaluate_stream(StreamEvaluation(run), args.out, PROTOCOLS[args.action])


if __name__ == "__main__":
    with errors_in_one_line():
        main()
