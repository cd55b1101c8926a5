"""What keeps the processes of one run in step (dassl.utils.distributed); nothing here acts in a single one.

Each loss counts by the share of the batch that its process saw, so that gradients and printed numbers are those
of the whole batch, also where it does not divide evenly. Batch norms in training mode take the statistics of the
whole batch if they are those of dassl.modeling.ops.batch_norm; torch's own take those of their part.
"""

import torch

from dassl.data.shards import next_share, sharded_loader
from dassl.modeling.ops.batch_norm import set_share, takes_own_part
from dassl.utils import UserError, get_logger
from dassl.utils.distributed import broadcast, broadcast_tensors, is_main, rank, world_size

from .base import TrainerBase
from .state import plain, rng_state, set_rng_state

_LOADERS = ("train_loader_x", "train_loader_u")


def start_together(trainer: TrainerBase) -> None:
    """Right before the first epoch: the same epoch and weights everywhere, training batches divided.
    UserError: the processes have not resumed from the same epoch."""
    if world_size() == 1:
        return
    epoch = broadcast(trainer.start_epoch)
    if epoch != trainer.start_epoch:
        raise UserError(
            f"Process {rank()} goes on after {trainer.start_epoch} epochs and the main process after {epoch}: "
            f'"{trainer.output_dir}" must be one folder that all of them see'
        )
    for model in trainer._models.values():
        broadcast_tensors(value for value in model.state_dict().values() if isinstance(value, torch.Tensor))
    for name in _LOADERS:
        setattr(trainer, name, sharded_loader(getattr(trainer, name, None)))


def start_epoch_together(trainer: TrainerBase) -> None:
    """All draw the same order of images: every random state becomes the main process's."""
    if world_size() == 1:
        return
    state = broadcast(plain(rng_state()))
    if not is_main():
        set_rng_state(state | {"cuda": []})
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"][0])  # the main process's GPU is the first
    for name, model in trainer._models.items() if trainer.epoch == trainer.start_epoch else ():
        if any(module.training for module in model.modules() if takes_own_part(module)):
            get_logger().warning(
                f"{name} has batch norms in training mode: each of the {world_size()} processes normalises by its "
                "own part of a batch, so the result is not that of one process; BatchNorm1d and BatchNorm2d of "
                "dassl.modeling.ops take the whole batch"
            )


def batch_share(trainer: TrainerBase) -> float:
    """Share (0 to 1) of the batch just drawn that falls to this process; the models' batch norms are told.
    UserError: it has unequal shares of a labelled and an unlabelled batch."""
    drawn = (next_share(getattr(trainer, name, None)) for name in _LOADERS)
    shares = {share for share in drawn if share is not None}
    if len(shares) > 1:
        raise UserError(
            f"{world_size()} processes cannot divide pairs of batches unless both sizes, DATALOADER.TRAIN_X.BATCH_SIZE "
            "and TRAIN_U's, are multiples of their number"
        )
    share = shares.pop() if shares else 1 / world_size()
    for model in trainer._models.values():
        set_share(model, share)
    return share
