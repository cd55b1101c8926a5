"""Other people's checkpoints as stage-1 folders of ours: `python -m mergetune.import_checkpoint FOLDER --out RUN`."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.config import with_values
from dassl.engine import build_config, build_trainer
from dassl.utils import (
    RunLock,
    UserError,
    atomic_write,
    command_parser,
    errors_in_one_line,
    get_logger,
    sha256_file,
    write_json,
)
from dassl.utils.torchrun import one_process

if TYPE_CHECKING:
    from torch import Tensor
    from yacs.config import CfgNode

    from mergetune.checkpoint_formats import Found

log = get_logger()

MODEL_FOLDERS = (
    "prompt_learner",
    "prompt_mid_learner",
    "adapter_learner",
    "VLPromptLearner",
    "MultiModalPromptLearner",
)
KEPT = ("token_prefix", "token_suffix")  # no weights, but stage 2 holds its class names against them
FACTS = "import.json"
# what check_fit holds true of a file; another fact of the run, its teacher or its LMC values, a file does not tell
CHECKED = ("classes", "backbone", "source", "source_subset")

EPILOG = """\
Recognised by their keys: CoOp, KgCoOp, MMA, PromptKD, PromptSRC, IVLP, MaPLe (as deep prompts of both towers)
and the released MERGETUNE. CoCoOp is recognised and refused. Nothing that a file holds is executed.

With --config-file, --dataset-config-file and --root the file is also held against the backbone and the class
names, and scored: accuracy on base and new classes beside zero-shot CLIP's. Give the data that it was trained on.

examples:
  python -m mergetune.import_checkpoint theirs/seed1 --out output/imported/coop
  python -m mergetune.import_checkpoint model-best.pth.tar --out output/imported/mma --root data \\
      --config-file configs/trainers/MultiModalAdapter/vit_b16_ep5.yaml \\
      --dataset-config-file configs/datasets/dtd.yaml --data-seen "16 shots of base classes"
  python train.py --trainer MMA_LMC --resume-coop output/imported/mma ...
"""


def build_parser() -> argparse.ArgumentParser:
    about = "Make a stage-1 folder of a checkpoint that another code base wrote, and say what was in it."
    parser = command_parser("mergetune.import_checkpoint", about, EPILOG)
    add = parser.add_argument
    source = "run folder, its model folder, or the file; of a folder, the last epoch"
    add("source", type="path", metavar="FOLDER|FILE", help=source)
    add("--out", type="path", required=True, metavar="RUN", help="the folder to write")
    add("--trainer", default="", help="which of our trainers it is for, where several share the format")
    add("--data-seen", default="", metavar="TEXT", help="what it was trained on, for the tables")
    add("--root", type="path", default="", help="folder of all data sets")
    add("--config-file", type="path", default="", help="our yaml of that method")
    add("--dataset-config-file", type="path", default="", help="yaml of the data set that it was trained on")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys that win over all else")
    return parser


def find_source(source: str | Path) -> tuple[Path, str]:
    """The checkpoint of a run folder, a model folder or a file, and the name of its model folder."""
    from mergetune import stage1

    source = Path(source)
    there = [name for name in MODEL_FOLDERS if (source / name).is_dir()]
    if len(there) > 1:
        raise UserError(f"{source} holds several models: name one of {', '.join(str(source / name) for name in there)}")
    file = stage1.find_checkpoint(source, there[0] if there else "")
    return file, file.absolute().parent.name


def read(path: Path, folder: str) -> tuple[Found, int | None]:
    """What is in a file that lay in a model folder of that name, and the epochs that it was trained for if it says.
    UserError names the file."""
    from dassl.utils import load_weights
    from mergetune.checkpoint_formats import recognise, weights

    state, epoch, _ = load_weights(path)
    try:
        found = recognise(state, folder)
        weights(found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return found, epoch


def check_fit(path: Path, found: Found, trainer) -> None:
    """Hold a file against a built trainer: class names and backbone by the untrained tensors in it, and then by the
    trainer's own strict load."""
    from dassl.utils import is_plain_tensor
    from mergetune import stage1
    from mergetune.checkpoint_formats import weights

    prompts = getattr(trainer.model, "prompt_learner", trainer.model)
    suffix = next((value for key, value in found.state.items() if key.rpartition(".")[2] == "token_suffix"), None)
    if suffix is not None and hasattr(prompts, "fixed"):
        buffers = {"token_suffix": suffix}
        stage1.check_buffers(path, buffers, prompts.fixed, prompts.n_ctx, trainer.clip.start_tokens)
    if "tokenized_prompts" in found.state and hasattr(trainer, "tokens"):
        check_tokens(path, found.state["tokenized_prompts"], trainer.tokens)
    visual = getattr(trainer.clip.module, "visual", None)
    own = {} if visual is None else visual.state_dict()
    for key in found.of("ignored"):
        theirs, ours = found.state[key], own.get(key.removeprefix("image_encoder."))
        if ours is None:
            continue
        if not is_plain_tensor(theirs):
            raise UserError(f"{path}: {key} is no plain tensor")
        # fp16 storage rounds by 5e-4 of the value
        if ours.shape != theirs.shape or not theirs.float().allclose(ours.float().cpu(), rtol=1e-3, atol=1e-4):
            raise UserError(f"{path} was trained on another backbone than {trainer.clip.name}: {key} differs")
    trainer._load_weights(trainer.get_model_names()[0], path, weights(found))


def check_tokens(path: Path, theirs: Tensor, ours: Tensor) -> None:
    """Refuse other texts. ours (C, L) may be cut behind the longest."""
    from dassl.utils import is_plain_tensor

    if not is_plain_tensor(theirs) or theirs.dim() != 2 or theirs.shape[1] < ours.shape[1]:
        raise UserError(f"{path}: tokenized_prompts is no plain tensor of texts of {ours.shape[1]} tokens or more")
    if len(theirs) != len(ours):
        raise UserError(f"{path} was trained on {len(theirs)} classes, this run has {len(ours)}")
    differ = (theirs[:, : ours.shape[1]] != ours.cpu()).any(1).sum().item()
    if differ:
        raise UserError(f"{path} was trained with other texts: {differ} of {len(ours)} classes differ")


def score(cfg: CfgNode, subsets: Sequence[str], out: Path, command: str) -> dict[str, dict[str, float]]:
    """Accuracy in percent of the imported model and of zero-shot CLIP -> {subset: {trainer: accuracy}}."""
    from dassl.engine.launch import run

    found: dict[str, dict[str, float]] = {}
    for name in subsets:
        for trainer in (cfg.TRAINER.NAME, "ZeroshotCLIP"):
            values = {"TRAINER.NAME": trainer, "DATASET.SUBSAMPLE_CLASSES": name}
            values["OUTPUT_DIR"] = str(out / "evaluate" / f"test_{name}" / trainer)
            model = "" if trainer == "ZeroshotCLIP" else str(out)
            other = with_values(cfg, values)
            with contextlib.redirect_stdout(io.StringIO()):  # it is in the evaluation's own log.txt
                results = run(other, eval_only=True, model_dir=model, overwrite=True, command=command)
            found.setdefault(name, {})[trainer] = results["metrics"]["accuracy"]
    return found


def runnable(found: Found) -> dict[str, str]:
    """The trainers that can run a file, the usual one first -> their model folders: the format's, and what derives
    from its usual one."""
    from dassl.engine import TRAINER_REGISTRY

    known = found.format.trainers
    usual = TRAINER_REGISTRY.get(next(iter(known)))
    classes = [cls for cls in map(TRAINER_REGISTRY.get, TRAINER_REGISTRY) if issubclass(cls, usual)]
    return known | {c.__name__: c.model_name for c in classes if c.needs_checkpoint and c.__name__ not in known}


def import_checkpoint(args: argparse.Namespace, command: str = "") -> dict:
    """Do what the command line says -> the content of import.json."""
    from dassl.engine.checkpoint import RESULTS
    from mergetune.checkpoint_formats import rows, shortened, to_text
    from mergetune.stage1 import run_fact
    from mergetune.stage2 import method_pairs

    out = Path(args.out)
    begun = run_fact(out / "model", "kind", str) == "import" and not (out / FACTS).is_file()
    if (out / RESULTS).is_file() and not begun:
        raise UserError(f"{out} holds a finished run: choose another --out")
    if args.opts and not args.config_file:
        raise UserError("KEY VALUE pairs change a config, and there is none: give --config-file")
    if bool(args.root) != bool(args.dataset_config_file) or (args.root and not args.config_file):
        raise UserError("Scoring needs all of --config-file, --dataset-config-file and --root")
    path, folder = find_source(args.source)
    found, epoch = read(path, folder)
    log.info(f"file      {path}\n{to_text(found)}")
    known = runnable(found)
    if args.trainer and args.trainer not in known:
        raise UserError(f"--trainer {args.trainer} cannot run a {found.name} file, {', '.join(known)} can")
    usual = {"KgCoOp": "KgCoOp", "MERGETUNE": "CoOp_LMC"}.get(found.name) or next(iter(known))
    trainer = args.trainer or usual
    facts = {
        "format": 1,
        "source": str(path.resolve()),
        "sha256": sha256_file(path),
        "method": found.name,
        "trainer": trainer,
        "config": found.format.pairs(found),
        "sizes": found.sizes,
        "backbones": found.backbones,
        "doubts": [f"unknown keys are left out: {shortened(left)}" for left in [found.of("unknown")] if left],
        "keys": rows(found),
    }
    with RunLock(args.out):
        write_run(args, path, found, epoch, facts, command)
    log.info(f"Wrote {out}, for {trainer}")
    for name in (pair.stage2 for pair in method_pairs().values() if pair.stage1 == trainer):
        words = ["--trainer", name, "--resume-coop", args.out]
        words += [str(word) for pair in facts["config"].items() for word in pair]
        log.info(f"Continue it with: python train.py {shlex.join(words)} ...")
    return facts


def write_run(args: argparse.Namespace, path: Path, found: Found, epoch: int | None, facts: dict, command: str) -> None:
    """The folder: checkpoint, config, results.json, scores, and last import.json with `facts` and the scores.

    The checkpoint has the trained weights, and the class names' embeddings to check against.
    """
    from dassl.engine.checkpoint import RESULTS
    from dassl.engine.results import write_classes
    from dassl.utils import save_checkpoint
    from mergetune.checkpoint_formats import weights

    out, trainer = Path(args.out), facts["trainer"]
    results = {"format": 1, "kind": "import", "trainer": trainer, "preset": "", "dataset": "", "protocol": "",
               "subset": "", "seed": -1, "metrics": {}, "command": command}  # fmt: skip
    cfg = None
    if args.config_file:  # what follows from the file gives way to KEY VALUE pairs
        pairs = {} if trainer.startswith("PromptKD") else {"DATASET.SUBSAMPLE_CLASSES": "base"}  # a student sees all
        flags = {"TRAINER.NAME": trainer, "OUTPUT_DIR": args.out}
        flags |= {"DATASET.ROOT": os.path.abspath(args.root)} if args.root else {}
        words = [str(word) for pair in (pairs | facts["config"]).items() for word in pair]
        files = {"dataset_file": args.dataset_config_file, "config_file": args.config_file}
        cfg = build_config(flags=flags, pairs=[*words, *args.opts], **files)[0]
    if args.root:
        built = build_trainer(cfg)
        check_fit(path, found, built)
        write_classes(str(out), built)
        data = cfg.DATASET
        results |= {"dataset": data.NAME, "subset": data.SUBSAMPLE_CLASSES, "seed": cfg.SEED}
        results |= {name: value for name, value in built.metadata().items() if name in CHECKED}
    state = weights(found) | {key: found.state[key] for key in KEPT if key in found.state}
    content = {"state_dict": state, "epoch": epoch, "optimizer": None, "scheduler": None, "val_result": None}
    save_checkpoint(content, str(out / runnable(found)[trainer]), model_name=f"model.pth.tar-{epoch or 0}")
    if cfg is not None:
        with atomic_write(str(out / "config.yaml"), "w") as file:
            file.write(cfg.dump())
    seen = f"imported from {path.name}: {args.data_seen or 'unknown'}"
    write_json(results | {"data_seen": seen}, str(out / RESULTS))
    if args.root:
        own_only = "DATASET.SUBSAMPLE_CLASSES" in args.opts or found.class_specific
        subsets = (cfg.DATASET.SUBSAMPLE_CLASSES,) if own_only else ("base", "new")
        facts["scores"] = score(cfg, subsets, out, command)
        for name, scores in facts["scores"].items():
            log.info(f"{name:4}  " + "  ".join(f"{who} {value:.1f} %" for who, value in scores.items()))
    write_json(facts, str(out / FACTS))


def main(argv: list[str] | None = None) -> dict:
    """Entry point; bad input ends with one line on stderr and exit code 1."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_intermixed_args(argv)
    return import_checkpoint(args, shlex.join(["python", "-m", "mergetune.import_checkpoint", *argv]))


if __name__ == "__main__":
    with errors_in_one_line(), one_process():
        main()
