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
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

import dassl  # noqa: E402, F401  it says which Python and which packages are needed


def build_parser() -> argparse.ArgumentParser:
    """Dassl's flags, MERGETUNE's, and ours."""
    from dassl.config import leaves
    from dassl.utils import ArgumentParser

    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.keys = lambda: dict(leaves(every_key()))
    add, path = parser.add_argument, functools.partial(parser.add_argument, type="path", default="")
    path("--root", help="folder of all data sets")
    path("--output-dir", help="where log, checkpoints and results.json go")
    path("--resume", help="another run's folder to resume from (an interrupted run needs none)")
    path("--resume-coop", help="stage-1 folder that a stage-2 trainer continues from")
    path("--subset", help="an earlier run's subset.json: its few-shot draw instead of one by the seed")
    add("--seed", type=int, default=None, help="0 and above seed everything; -1 (default) nothing")
    add("--source-domains", nargs="+", help="source domains for DA/DG")
    add("--target-domains", nargs="+", help="target domains for DA/DG")
    add("--transforms", nargs="+", help="data augmentation, by name")
    path("--config-file", help="the method's yaml")
    path("--dataset-config-file", help="the data set's yaml")
    add("--trainer", default="", help="registered name of the trainer")
    path("--backbone", help="name of the backbone, e.g. ViT-B/16, RN50, tiny")
    add("--head", default="", help="name of the head")
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
    add("--deterministic", action="store_true", help="bit-equal runs on a GPU, at some cost in speed")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys that win over all else")
    return parser


def epochs(word: str) -> int | str:
    """A number of them, or `last`."""
    return word if word == "last" else int(word)


def every_key():
    """The default config with the keys of all trainers."""
    import condu.trainer  # noqa: F401  registers them
    import mergetune.trainers  # noqa: F401  registers them
    from dassl.engine import TRAINER_REGISTRY

    return _every_key(tuple(map(TRAINER_REGISTRY.get, TRAINER_REGISTRY.registered_names()))).clone()


@functools.lru_cache(maxsize=1)
def _every_key(trainers: tuple[type, ...]):
    """Of these trainers; a main job asks some hundred times."""
    from dassl.config import get_cfg_default
    from dassl.engine import add_trainer_nodes

    cfg = get_cfg_default()
    add_trainer_nodes(cfg)
    return cfg


def folder_cfg(folder: str | Path, changes: dict[str, object] | None = None, root: str = "", pairs: Sequence[str] = ()):
    """The frozen config of a run folder, with other values of some keys. root: where the data sets lie, if they have
    moved; pairs: KEY, VALUE, ... as typed."""
    import datasets
    from dassl.config import merge_pairs, merge_tree
    from dassl.engine import read_run_cfg

    datasets.register_all()
    every_key()  # registers all trainers
    cfg = read_run_cfg(folder)
    merge_tree(cfg, (changes or {}) | ({"DATASET.ROOT": os.path.abspath(root)} if root else {}), "a command")
    merge_pairs(cfg, list(pairs))
    cfg.freeze()
    return cfg


def setup_cfg(args: argparse.Namespace):
    """The frozen config of a command line."""
    return read_cfg(args)[0]


def read_cfg(args: argparse.Namespace):
    """The frozen config of a command line, and that of its yaml files alone."""
    import datasets
    from dassl.config import merge_pairs, merge_tree, merge_yaml
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY
    from dassl.utils import UserError, check_availability

    datasets.register_all()
    cfg = every_key()
    if args.trainer:
        check_availability(args.trainer, TRAINER_REGISTRY.registered_names(), "--trainer")
    aliases = getattr(TRAINER_REGISTRY.get(args.trainer), "ALIASES", {}) if args.trainer else {}
    final = {}
    if args.dataset_config_file:
        final = merge_yaml(cfg, args.dataset_config_file, aliases)
    named = cfg.DATASET.NAME
    if args.config_file:
        merge_yaml(cfg, args.config_file, aliases)
        if cfg.DATASET.NAME and args.dataset_config_file and not named:
            raise UserError(
                f"--config-file {args.config_file} names a data set, --dataset-config-file {args.dataset_config_file} "
                "none: are they swapped?"
            )
    merge_tree(cfg, final, args.dataset_config_file, aliases)
    recipe = cfg.clone()
    merge_tree(cfg, {key: value for key, value in flags(args).items() if value is not None}, "command line")
    merge_pairs(cfg, args.opts, aliases)
    merge_pairs(cfg, extra_opts(), aliases)
    if cfg.DATASET.NAME:
        check_availability(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names(), "DATASET.NAME")
    if not cfg.TRAINER.NAME:
        known = ", ".join(TRAINER_REGISTRY.registered_names())
        raise UserError(f"No trainer: give --trainer, one of {known}")
    if args.config_file:
        cfg.PRESET = preset_name(recipe, cfg)
    cfg.freeze()
    return cfg, recipe


def extra_opts() -> list[str]:
    """KEY VALUE pairs of the environment variable EXTRA_OPTS, as if typed behind all others of each train.py line.
    UserError for quotes that do not close."""
    from dassl.utils import UserError

    text = os.environ.get("EXTRA_OPTS", "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"EXTRA_OPTS is {text!r}: {error}") from error


def flags(args: argparse.Namespace) -> dict:
    """Config keys that flags set -> their values, None where the flag was not given."""
    return {
        "DATASET.ROOT": os.path.abspath(args.root) if args.root else None,
        "OUTPUT_DIR": args.output_dir or None,
        "RESUME": args.resume or None,
        "RESUME_COOP": args.resume_coop or None,
        "SEED": args.seed,
        "DATASET.SUBSET": os.path.abspath(args.subset) if args.subset else None,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer or None,
        "MODEL.BACKBONE.NAME": args.backbone or None,
        "MODEL.HEAD.NAME": args.head or None,
        "DETERMINISTIC": args.deterministic or None,
    }


def preset_name(recipe, cfg) -> str:
    """The preset's name, with the keys that a command line changed, so no table calls it the recipe."""
    from dassl.engine.lint import changed_keys
    from dassl.engine.recipe import is_read, own_nodes, role
    from dassl.engine.results import with_changes

    # precision and protocol results.json says by itself, as it does how a model is evaluated; a folder is no value
    nodes, named = own_nodes(cfg), ("TRAINER.", "OPTIM.", "MODEL.INIT_WEIGHTS", "TEST.SKIP_WARMUP")
    changed = [key for key, _, _ in changed_keys(recipe, cfg) if key.startswith(named) and is_read(key, nodes)]
    said = ("PREC", "TRAINER.MODAL", "_DIR", "CONDU.ROUND")  # rounds change where half a run stands, not what it learns
    return with_changes(cfg.PRESET, [k for k in changed if role(k) != "evaluation" and not k.endswith(said)])


def main(argv: list[str] | None = None) -> dict:
    """Run one command line; returns what results.json holds."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_intermixed_args(argv)
    from dassl.config import KEYS
    from dassl.utils import UserError, get_logger
    from dassl.utils.distributed import one_process, process_group

    if extra := extra_opts():
        get_logger().info(f"EXTRA_OPTS appends {shlex.join(extra)}")
        argv = [*argv, *extra]
    with one_process() if args.check else process_group():  # torchrun's, if it started this process
        cfg, recipe = read_cfg(args)
        named = args.output_dir or args.check or any(word.startswith("OUTPUT_DIR") for word in args.opts)
        if not named and KEYS["OUTPUT_DIR"].default == cfg.OUTPUT_DIR:
            raise UserError("Where do results go? --output-dir names the run's folder")
        return run_config(args, cfg, recipe, argv)


def differences(argv: list[str], memo: dict | None = None) -> list[str]:
    """Lines on what the run in the folder of a command line has otherwise than this line would; as
    `dassl.engine.recipe.differences`, which says of `memo`. [] where no run has begun there."""
    from dassl.engine import recipe

    args = build_parser().parse_intermixed_args(argv)
    cfg = read_cfg(args)[0]
    if not recipe.record(cfg.OUTPUT_DIR):
        return []
    eval_only, model_dir, _ = evaluated(args)
    scored = {"model_dir": model_dir, "load_epoch": args.load_epoch}
    return recipe.differences(cfg.OUTPUT_DIR, cfg, eval_only=eval_only, memo=memo, **scored)


def check_public(cfg) -> list[str]:
    """Lines on a data set that tables are made of: is it the one that others have?"""
    from datasets.tools.check import check as check_dataset
    from datasets.tools.known import KNOWN

    if cfg.DATASET.NAME not in KNOWN:
        return []
    row = check_dataset(cfg.DATASET.NAME, cfg.DATASET.ROOT, decode="none")  # opened by us
    return [f"not as published: {line}" for line in row.problems] + row.notes


def run_config(args: argparse.Namespace, cfg, recipe, argv: list[str]) -> dict:
    """Train, evaluate or check as the arguments say."""
    from dassl.engine.launch import evaluates, run

    eval_only, model_dir, row = evaluated(args)
    if args.check:
        from dassl.engine.dry_run import dry_run
        from dassl.engine.lint import lint
        from dassl.utils import UserError

        alone = (model_dir, args.load_epoch) if evaluates(cfg, eval_only, model_dir) else None
        findings = dry_run(cfg, evaluates=alone, recipe=lint(recipe, cfg), data_check=check_public)
        if findings.problems:
            raise UserError(f"--check found: {'; '.join(findings.problems)}")
        return findings.values
    return run(
        cfg,
        eval_only=eval_only,
        model_dir=model_dir,
        load_epoch=None if row else args.load_epoch,
        no_train=args.no_train,
        overwrite=args.overwrite,
        recipe=recipe,
        row=row,
        command=shlex.join(["python", "train.py", *argv]),
    )


def evaluated(args: argparse.Namespace) -> tuple[bool, str, dict | None]:
    """Whether a line trains nothing, the model that it evaluates, and of a file in --model-dir that was merged
    elsewhere what results.json says."""
    from dassl.utils import UserError, get_logger
    from mergetune.merge_sources import find_merged, merged_row

    if not (args.eval_only_merge or args.eval_only_merge_dare):
        return args.eval_only, args.model_dir, None
    if not args.model_dir:
        raise UserError("Nothing to evaluate: --model-dir names the folder of the merged weights")
    if args.eval_only_merge and args.eval_only_merge_dare:
        raise UserError("--eval-only-merge and --eval-only-merge-dare exclude each other")
    method = "ties" if args.eval_only_merge else "dare"
    file = find_merged(args.model_dir, method, value=args.lambda_val, prefix=args.model_prefix, name=args.model_name)
    get_logger().info(f"Merged weights: {file}")
    return True, str(file), merged_row(file, method)


if __name__ == "__main__":
    from dassl.utils import errors_in_one_line

    with errors_in_one_line():
        main()
