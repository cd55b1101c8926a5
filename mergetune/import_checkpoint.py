"""Other people's checkpoints as stage-1 folders of ours: `python -m mergetune.import_checkpoint FOLDER --out RUN`."""

import argparse
import contextlib
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dassl.utils import ArgumentParser, RunLock, UserError, command_parser, get_logger, sha256_file
from dassl.utils.files import atomic_write, write_json
from dassl.utils.torchrun import run_command

EPILOG = """\
Recognised by their keys: CoOp, KgCoOp, MMA, PromptKD, PromptSRC, IVLP, MaPLe (as deep prompts of both towers)
and the released MERGETUNE. CoCoOp, TCP and ATPrompt are recognised and refused. Nothing of a file is executed.

With --config-file, --dataset-config-file and --root the file is also held against the backbone and the class
names, and scored: accuracy on base and new classes beside zero-shot CLIP's. Give the data that it was trained on.

examples:
  python -m mergetune.import_checkpoint theirs/seed1 --out output/imported/coop
  python -m mergetune.import_checkpoint model-best.pth.tar --out output/imported/mma --root data \\
      --config-file configs/trainers/MultiModalAdapter/vit_b16_ep5.yaml \\
      --dataset-config-file configs/datasets/dtd.yaml --data-seen "16 shots of base classes"
  python train.py --trainer MMA_LMC --resume-coop output/imported/mma ...
"""


def build_parser() -> ArgumentParser:
    """The flags."""
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


if __name__ == "__main__":  # --help and a wrong line need no PyTorch
    run_command(build_parser().parse_intermixed_args)

from yacs.config import CfgNode

from dassl.config import dump_yaml, with_values
from dassl.engine import TRAINER_REGISTRY, build_config, build_trainer
from dassl.engine.checkpoint import RESULTS
from dassl.engine.launch import run
from dassl.engine.results import write_classes
from dassl.utils.torchtools import is_plain_tensor, load_weights, save_checkpoint
from mergetune import stage1
from mergetune.checkpoint_formats import FORMATS, Format, Recognised, recognise, to_text
from mergetune.stage1 import run_fact
from mergetune.stage2 import method_pairs

log = get_logger()

KEPT = ("token_prefix", "token_suffix")  # no weights, but stage 2 holds its class names against them
FACTS = "import.json"
USUAL = {"KgCoOp": "KgCoOp", "MERGETUNE": "CoOp_LMC"}  # trainer of a method, where that is not its format's first
# what check_fit holds true of a file; another fact of the run, its teacher or its LMC values, a file does not tell
CHECKED = ("classes", "backbone", "source", "source_subset")


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    args = build_parser().parse_intermixed_args(argv)
    if args.opts and not args.config_file:
        raise UserError("KEY VALUE pairs change a config, and there is none: give --config-file")
    if bool(args.root) != bool(args.dataset_config_file) or (args.root and not args.config_file):
        raise UserError("Scoring needs all of --config-file, --dataset-config-file and --root")
    return args


def find_source(source: str | Path) -> tuple[Path, str]:
    """The checkpoint of a run folder, a model folder or a file, and the name of its model folder."""
    names = {"MultiModalPromptLearner"}.union(*(runnable(kind).values() for kind in FORMATS if kind.trainer))
    models = [name for name in sorted(names, key=str.lower) if Path(source, name).is_dir()]
    if len(models) > 1:
        folders = ", ".join(str(Path(source, name)) for name in models)
        raise UserError(f"{source} holds several models: name one of {folders}")
    file = stage1.find_checkpoint(source, "".join(models))
    return file, file.absolute().parent.name


def read(path: Path, folder: str) -> tuple[Recognised, int | None]:
    """What is in a file that lay in a model folder of that name, and the epochs that it was trained for if it says.
    UserError names the file."""
    state, epoch, _ = load_weights(path)
    try:
        return recognise(state, folder), epoch
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_fit(path: Path, checkpoint: Recognised, trainer) -> None:
    """Hold a file against a built trainer: class names and backbone by the untrained tensors in it, and then by the
    trainer's own strict load."""
    state, prompts = checkpoint.state, getattr(trainer.model, "prompt_learner", trainer.model)
    suffixes = [value for key, value in state.items() if key.rpartition(".")[2] == "token_suffix"]
    if suffixes and hasattr(prompts, "fixed"):
        names = prompts.fixed[:, trainer.clip.start_tokens + prompts.n_ctx :]
        stage1.check_names(path, "token_suffix", suffixes[0], names)
    if "tokenized_prompts" in state and hasattr(trainer, "tokens"):
        stage1.check_names(path, "tokenized_prompts", state["tokenized_prompts"], trainer.tokens)
    visual = getattr(trainer.clip.module, "visual", None)
    tower = {} if visual is None else {f"image_encoder.{key}": value for key, value in visual.state_dict().items()}
    for key in filter(tower.__contains__, state):
        value, expected = state[key], tower[key].float().cpu()
        # fp16 storage rounds by 5e-4 of the value
        alike = is_plain_tensor(value) and value.shape == expected.shape
        if not (alike and value.float().allclose(expected, rtol=1e-3, atol=1e-4)):
            raise UserError(f"{path} was trained on another backbone than {trainer.clip.name}: {key} differs")
    trainer._load_weights(trainer.get_model_names()[0], path, checkpoint.weights)


def score(cfg: CfgNode, subsets: Sequence[str], out: Path, command: str) -> dict[str, dict[str, float]]:
    """Accuracy in percent of the imported model and of zero-shot CLIP -> {subset: {trainer: accuracy}}."""
    scores, trained = {}, cfg.TRAINER.NAME
    for subset in subsets:
        for trainer, model in ((trained, str(out)), ("ZeroshotCLIP", "")):
            place = str(out / "evaluate" / f"test_{subset}" / trainer)
            values = {"TRAINER.NAME": trainer, "DATASET.SUBSAMPLE_CLASSES": subset, "OUTPUT_DIR": place}
            with contextlib.redirect_stdout(io.StringIO()):  # it is in the evaluation's own log.txt
                test = with_values(cfg, values)
                results = run(test, eval_only=True, model_dir=model, overwrite=True, command=command)
            scores.setdefault(subset, {})[trainer] = results["metrics"]["accuracy"]
        log.info(f"{subset:4}  " + "  ".join(f"{name} {value:.1f} %" for name, value in scores[subset].items()))
    return scores


def runnable(kind: Format) -> dict[str, str]:
    """The trainers that can run a file of a format, the usual one first -> their model folders: all that derive from
    the usual one."""
    usual = TRAINER_REGISTRY.get(kind.trainer)
    classes = [cls for cls in map(TRAINER_REGISTRY.get, TRAINER_REGISTRY) if issubclass(cls, usual)]
    return {c.__name__: c.model_name for c in [usual, *classes] if c.needs_checkpoint}


def import_checkpoint(args: argparse.Namespace, command: str = "") -> dict:
    """Do what the command line says -> the content of import.json."""
    out = Path(args.out)
    begun = run_fact(out / "model", "kind", str) == "import" and not (out / FACTS).is_file()
    if (out / RESULTS).is_file() and not begun:
        raise UserError(f"{out} holds a finished run: choose another --out")
    path, folder = find_source(args.source)
    checkpoint, epoch = read(path, folder)
    log.info(f"file      {path}\n{to_text(checkpoint)}")
    models = runnable(checkpoint.format)
    trainer = args.trainer or USUAL.get(checkpoint.name) or next(iter(models))
    if trainer not in models:
        raise UserError(f"--trainer {trainer} cannot run a {checkpoint.name} file, {', '.join(models)} can")
    facts = {"format": 1, "source": str(path.resolve()), "sha256": sha256_file(path), "method": checkpoint.name}
    facts |= {"trainer": trainer, "config": checkpoint.config, "keys": checkpoint.rows}
    results = {"format": 1, "kind": "import", "trainer": trainer, "preset": "", "dataset": "", "protocol": "",
               "subset": "", "seed": -1, "metrics": {}, "command": command,
               "data_seen": f"imported from {path.name}: {args.data_seen or 'unknown'}"}  # fmt: skip
    state = checkpoint.weights | {key: checkpoint.state[key] for key in KEPT if key in checkpoint.state}
    content = {"state_dict": state, "epoch": epoch, "optimizer": None, "scheduler": None, "val_result": None}
    with RunLock(args.out):
        cfg = build_cfg(args, trainer, checkpoint) if args.config_file else None
        if args.root:
            results |= checked(path, checkpoint, cfg, args.out)
        save_checkpoint(content, str(out / models[trainer]), model_name=f"model.pth.tar-{epoch or 0}")
        if cfg is not None:
            with atomic_write(str(out / "config.yaml"), "w") as file:
                file.write(dump_yaml(cfg))
        write_json(results, str(out / RESULTS))
        if args.root:
            one = "DATASET.SUBSAMPLE_CLASSES" in args.opts or checkpoint.config.get("TRAINER.COOP.CSC")
            subsets = (cfg.DATASET.SUBSAMPLE_CLASSES,) if one else ("base", "new")
            facts["scores"] = score(cfg, subsets, out, command)
        write_json(facts, str(out / FACTS))
    log.info(f"Wrote {out}, for {trainer}")
    for name in (pair.stage2 for pair in method_pairs().values() if pair.stage1 == trainer):
        words = ["--trainer", name, "--resume-coop", args.out, *pair_words(checkpoint.config)]
        log.info(f"Continue it with: python train.py {shlex.join(words)} ...")
    return facts


def checked(path: Path, checkpoint: Recognised, cfg: CfgNode, out: str) -> dict:
    """What results.json says of the run that a file is held against, see `check_fit`; and its classes.json."""
    trainer = build_trainer(cfg)
    check_fit(path, checkpoint, trainer)
    write_classes(out, trainer)
    facts = {"dataset": cfg.DATASET.NAME, "subset": cfg.DATASET.SUBSAMPLE_CLASSES, "seed": cfg.SEED}
    return facts | {name: value for name, value in trainer.metadata().items() if name in CHECKED}


def build_cfg(args: argparse.Namespace, trainer: str, checkpoint: Recognised) -> CfgNode:
    """The imported run's config; what follows from the file gives way to KEY VALUE pairs."""
    pairs = {} if trainer.startswith("PromptKD") else {"DATASET.SUBSAMPLE_CLASSES": "base"}  # it sees all
    flags = {"TRAINER.NAME": trainer, "OUTPUT_DIR": args.out}
    flags |= {"DATASET.ROOT": os.path.abspath(args.root)} if args.root else {}
    files = {"dataset_file": args.dataset_config_file, "config_file": args.config_file}
    return build_config(**files, flags=flags, pairs=[*pair_words(pairs | checkpoint.config), *args.opts])[0]


def pair_words(pairs: dict[str, object]) -> list[str]:
    """KEY VALUE ... as a command line has them."""
    return [str(word) for pair in pairs.items() for word in pair]


def main(argv: list[str] | None = None) -> dict:
    """Entry point; bad input ends with one line on stderr and exit code 1."""
    argv = sys.argv[1:] if argv is None else argv
    return import_checkpoint(parse_args(argv), shlex.join(["python", "-m", "mergetune.import_checkpoint", *argv]))


if __name__ == "__main__":
    run_command(main)
