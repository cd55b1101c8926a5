"""Reading the stage-1 solution that continued fine-tuning starts from.

Accepts our run folders and those of the released code, whose checkpoints carry the prompts' fixed
embeddings (`token_prefix`, `token_suffix`) beside what was trained.
"""

from pathlib import Path

from torch import Tensor
from yacs.config import CfgNode

from dassl.config import leaves
from dassl.engine.checkpoint import LAST, find_model
from dassl.engine.recipe import content_digest, finished
from dassl.engine.results import run_facts
from dassl.utils import MissingFile, UserError, get_logger, is_plain_tensor, load_weights
from mergetune.checkpoint_formats import unused_keys

log = get_logger()

INPUTS = ("RESUME_COOP", "TRAINER.PROMPTKD.TEACHER_DIR")  # that a trained model is read with


def find_checkpoint(folder: str | Path, model_name: str, key: str = "RESUME_COOP") -> Path:
    """The last numbered checkpoint of a run folder or a model folder, else its best one; or the file itself. key: of
    the config that names the folder."""
    try:
        return Path(find_model(str(folder), model_name, None if Path(folder).is_file() else LAST))
    except MissingFile as error:
        what = str(error).rpartition('": ')[2]
        flag = "--resume-coop" if key == "RESUME_COOP" else key
        if not Path(folder).exists():
            what += f". Has it moved? --set {key} FOLDER says where, in train.py {flag} FOLDER"
        raise MissingFile(f"No stage-1 checkpoint in {folder}: {what}") from None


def check_begun_from(run: str | Path, cfg: CfgNode) -> None:
    """UserError if what lies where a finished run's stage 1 or teacher was, or has moved to, is not what it used."""
    values = dict(leaves(cfg))
    for key, before in finished(run).get("inputs", {}).items():
        value = values.get(key)
        if key in INPUTS and value and content_digest(value) not in ("", before):
            raise UserError(f"{run}: {key} {value} holds something else than the run began from")


def load_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint as its method uses it; never runs code that a file brings."""
    return used_keys(path, load_weights(path).state_dict)


def used_keys(path: str | Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of anybody's without what its method never used, and under the method's own names.

    UserError for a method of which nothing here can run what was trained; names it.
    """
    state = {name.removeprefix("prompts."): value for name, value in state.items()}  # of the released merges
    try:
        unused = unused_keys(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if unused:
        log.info(f"{path}: {', '.join(unused)} left out, which KgCoOp never uses")
    return {name: value for name, value in state.items() if name not in unused}


def check_names(path: str | Path, key: str, stored: Tensor, expected: Tensor) -> None:
    """Hold what a foreign checkpoint has of its class names under `key` against this run's: tokens (C, L), or their
    embeddings (C, L, W). It may go on with padding.

    The embeddings are of the stage-1 backbone's table, so another class list or another backbone shows. 2e-3 covers
    fp16 storage of embeddings of size 0.01 to 1.
    """
    length = expected.shape[1]
    if not is_plain_tensor(stored) or stored.dim() != expected.dim() or stored.shape[1] < length:
        raise UserError(f"{path}: {key} is no plain tensor with {expected.dim()} axes, of {length} tokens or more")
    if len(stored) != len(expected):
        raise UserError(f"{path} was trained on {len(stored)} classes, this run has {len(expected)}")
    stored, expected = stored[:, :length].float().cpu(), expected.float().cpu()
    other = len(expected)
    if stored.shape == expected.shape:
        other = ((stored - expected).abs().flatten(1).amax(1) > 2e-3).sum().item()
    if other:
        raise UserError(
            f"{path} was trained with another class list or backbone: "
            f"the names of {other} of {len(expected)} classes differ ({key})"
        )


def run_fact(checkpoint: Path, name: str, kind: type = dict) -> dict | str:
    """One of `run_facts`; an empty one where there is none of that kind."""
    fact = run_facts(checkpoint).get(name)
    return fact if isinstance(fact, kind) else kind()


def data_seen(checkpoint: Path) -> str:
    """What a checkpoint was trained on, as far as its own run says."""
    return run_fact(checkpoint, "data_seen", str) or "unknown: no results.json beside the checkpoint"


def check_backbone(checkpoint: Path, facts: dict) -> None:
    """Refuse a stage-1 run of ours on other weights, naming both."""
    before, now = run_fact(checkpoint, "backbone"), facts["backbone"]
    if before.get("digest") and before["digest"] != now["digest"]:
        raise UserError(
            f"{checkpoint} was trained on {before['name']} ({before['digest'][:12]}), "
            f"this run uses {now['name']} ({now['digest'][:12]})"
        )
