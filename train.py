"""Train or evaluate one trainer on one data set.

    python train.py --root data --seed 1 --trainer CoOp --dataset-config-file configs/datasets/caltech101.yaml \
        --config-file configs/trainers/CoOp/vit_b16_ep100_ctxv1.yaml --output-dir output/run \
        DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base

Several processes that train one model: torchrun --nproc_per_node 4 train.py ... (BATCH_SIZE is that of all together)

Later wins: engine defaults, trainers' own keys, data-set yaml, method yaml, flags, KEY VALUE pairs, those of
the environment variable EXTRA_OPTS.
"""

import argparse
import functools
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

import mergetune  # noqa: E402
from dassl import engine, utils  # noqa: E402  dassl says which Python and which packages are needed
from dassl.config import KEYS, leaves  # noqa: E402
from dassl.utils import ArgumentParser, UserError, errors_in_one_line, get_logger  # noqa: E402


def build_parser() -> argparse.ArgumentParser:
    """Dassl's flags, MERGETUNE's, and ours. Those that set a config key are in the namespace by its name."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.keys = lambda: dict(leaves(engine.full_config()))
    add, path = parser.add_argument, functools.partial(parser.add_argument, type="path", default="")
    path("--root", dest="DATASET.ROOT", help="folder of all data sets")
    path("--output-dir", dest="OUTPUT_DIR", help="where log, checkpoints and results.json go")
    path("--resume", dest="RESUME", help="another run's folder to resume from (an interrupted run needs none)")
    path("--resume-coop", dest="RESUME_COOP", help="stage-1 folder that a stage-2 trainer continues from")
    path("--subset", dest="DATASET.SUBSET", help="an earlier run's subset.json: its few-shot draw, not one by the seed")
    add("--seed", dest="SEED", type=int, help="0 and above seed everything; -1 (default) nothing")
    add("--source-domains", dest="DATASET.SOURCE_DOMAINS", nargs="+", help="source domains for DA/DG")
    add("--target-domains", dest="DATASET.TARGET_DOMAINS", nargs="+", help="target domains for DA/DG")
    add("--transforms", dest="INPUT.TRANSFORMS", nargs="+", help="data augmentation, by name")
    path("--config-file", help="the method's yaml")
    path("--dataset-config-file", help="the data set's yaml")
    add("--trainer", dest="TRAINER.NAME", help="registered name of the trainer")
    path("--backbone", dest="MODEL.BACKBONE.NAME", help="name of the backbone, e.g. ViT-B/16, RN50, tiny")
    add("--head", dest="MODEL.HEAD.NAME", help="name of the head")
    add("--eval-only", action="store_true", help="evaluate --model-dir, train nothing")
    path("--model-dir", help="run folder to evaluate")
    add("--load-epoch", type=epochs, help="epoch to evaluate, or last; default: the best one if kept, else the last")
    add("--eval-only-merge", action="store_true", help="evaluate PREFIX_ties_lambda_VALUE.pth in --model-dir")
    add("--eval-only-merge-dare", action="store_true", help="evaluate weights merged by DARE in --model-dir")
    add("--lambda-val", type=float, help="which lambda of such files")
    add("--model-prefix", default="", help="how the name of such a file begins")
    add("--model-name", default="", help="the name of such a file, or of a folder of them in --model-dir")
    add("--no-train", action="store_true", help="build everything, train nothing")
    add("--check", action="store_true", help="run nothing: check data, zero-shot anchor, time, memory and recipe")
    add("--overwrite", action="store_true", help="start a finished run again")
    deterministic = {"dest": "DETERMINISTIC", "action": "store_const", "const": True}
    add("--deterministic", **deterministic, help="bit-equal runs on a GPU, at some cost in speed")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys that win over all else")
    return parser


def epochs(word: str) -> int | str:
    """A number of them, or `last`."""
    return word if word == "last" else int(word)


def setup_cfg(args: argparse.Namespace):
    """The frozen config of a command line."""
    return read_cfg(args)[0]


def read_cfg(args: argparse.Namespace):
    """The frozen config of a command line, and that of its yaml files alone."""
    files = {"dataset_file": args.dataset_config_file, "config_file": args.config_file}
    return engine.build_config(**files, flags=flags(args), pairs=args.opts)


def flags(args: argparse.Namespace) -> dict:
    """{config key: value} of the flags that were given."""
    values = {key: value for key, value in vars(args).items() if key.isupper() and value not in ("", None)}
    return values | {key: os.path.abspath(values[key]) for key in ("DATASET.ROOT", "DATASET.SUBSET") if key in values}


def main(argv: list[str] | None = None) -> dict:
    """Run one command line: train, evaluate or check -> what results.json holds."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_intermixed_args(argv)
    if extra := engine.config.extra_opts():
        get_logger().info(f"EXTRA_OPTS appends {shlex.join(extra)}")
        argv = [*argv, *extra]
    processes = utils.distributed
    with processes.one_process() if args.check else processes.process_group():  # torchrun's, if it started this process
        cfg, recipe = read_cfg(args)
        named = args.OUTPUT_DIR or args.check or any(word.startswith("OUTPUT_DIR") for word in args.opts)
        if not named and KEYS["OUTPUT_DIR"].default == cfg.OUTPUT_DIR:
            raise UserError("Where do results go? --output-dir names the run's folder")
        eval_only, model_dir, row = evaluated(args)
        if args.check:
            loads = engine.launch.evaluates(cfg, eval_only, model_dir)
            return engine.dry_run.dry_run(cfg, recipe, evaluates=(model_dir, args.load_epoch) if loads else None)
        how = {"no_train": args.no_train, "overwrite": args.overwrite, "recipe": recipe, "row": row}
        how |= {"eval_only": eval_only, "model_dir": model_dir, "load_epoch": None if row else args.load_epoch}
        return engine.launch.run(cfg, command=shlex.join(["python", "train.py", *argv]), **how)


def differences(argv: list[str], memo: dict | None = None) -> list[str]:
    """Lines on what the run in the folder of a command line has otherwise than this line would; as
    `dassl.engine.recipe.differences`, which says of `memo`. [] where no run has begun there."""
    args = build_parser().parse_intermixed_args(argv)
    cfg = setup_cfg(args)
    if not engine.recipe.record(cfg.OUTPUT_DIR):
        return []
    eval_only, model_dir, _ = evaluated(args)
    scored = {"model_dir": model_dir, "load_epoch": args.load_epoch}
    return engine.recipe.differences(cfg.OUTPUT_DIR, cfg, eval_only=eval_only, memo=memo, **scored)


def evaluated(args: argparse.Namespace) -> tuple[bool, str, dict | None]:
    """Whether a line trains nothing, the model that it evaluates, and of a file in --model-dir that was merged
    elsewhere what results.json says."""
    if not (args.eval_only_merge or args.eval_only_merge_dare):
        return args.eval_only, args.model_dir, None
    if not args.model_dir:
        raise UserError("Nothing to evaluate: --model-dir names the folder of the merged weights")
    if args.eval_only_merge and args.eval_only_merge_dare:
        raise UserError("--eval-only-merge and --eval-only-merge-dare exclude each other")
    method = "ties" if args.eval_only_merge else "dare"
    words = {"value": args.lambda_val, "prefix": args.model_prefix, "name": args.model_name}
    file = mergetune.merge_sources.find_merged(args.model_dir, method, **words)
    get_logger().info(f"Merged weights: {file}")
    return True, str(file), mergetune.merge_sources.merged_row(file, method)


if __name__ == "__main__":
    with errors_in_one_line():
        main()
