"""What an evaluation looks at: a stream after some session, its experts, and the test sets (arXiv 2503.10705).

Letters: B images, C classes, C_i classes of task i, D joint width, T tasks.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from yacs.config import CfgNode as CN

from condu.state import Stream, Task
from condu.tuning import Tuning
from condu.voting import prototypes
from dassl.clip import ClipBackbone, tensor_digest, text_classifier
from dassl.data import build_data_loader, transforms
from dassl.data.shards import share_of_batches
from dassl.utils import UserError, digest
from dassl.utils.distributed import gather_batches, is_collective


def task_of(dataset) -> str:
    """A dataset's name in streams and stores."""
    return getattr(dataset, "task", "") or type(dataset).__name__


def prompts_of(dataset) -> list[str]:
    """Templates; the first one trains, evaluation averages over all."""
    return list(getattr(dataset, "prompts", None) or [dataset.template])


def ordered_loader(cfg: CN, items: Sequence) -> DataLoader:
    """Batches of images under the test transform, in their order."""
    transform, batch_size = transforms.build_transform(cfg, is_train=False), cfg.DATALOADER.TEST.BATCH_SIZE
    return build_data_loader(cfg, data_source=items, batch_size=batch_size, tfm=transform, is_train=False)


@dataclass(frozen=True)
class Member:
    """One model.

    key: equal for equal weights only; "pretrained" is the pretrained model, which is not filled. fill: writes the
    weights into {name: Parameter}, in place.
    """

    key: str
    fill: Callable[[dict], None]


@dataclass
class Snapshot:
    """A stream after some session; lists have one entry a task, in the order of learning.

    prototypes: (C_i, D) each. prototype_source: whose features they and the similarity are made of, the
    "pretrained" model's or, an ablation that costs every image T passes, each "expert"'s own.
    """

    tasks: list[Task]
    prototypes: list[Tensor]
    members: list[Member]
    prototype_source: str = "pretrained"

    def place(self, task: str) -> int | None:
        """0 .. T-1 of a learned task, None of any other."""
        return next((place for place, known in enumerate(self.tasks) if known.name == task), None)


def snapshot_of(stream: Stream, space: Tuning) -> Snapshot:
    """The Snapshot of a Stream as it is now, whatever it learns later."""
    fusion = copy.copy(stream.fusion)  # `absorb` replaces what a fusion holds and writes to nothing
    tensors, facts = fusion.state()
    content = digest(tensor_digest(tensors), facts, stream.backbone, stream.space)
    members = [Member(digest(content, name), partial(space.fill_task, fusion, name)) for name in fusion.tasks]
    return Snapshot(list(stream.tasks), list(stream.prototypes), members)


@dataclass(eq=False)
class TestSet:
    """Test images of one task.

    loader: batches of {"img" (B, 3, H, W), "label" (B,)}, of the test transform.
    """

    __test__ = False  # pytest takes the name for a class of tests

    name: str
    classnames: list[str]
    prompts: list[str]
    loader: DataLoader

    def __len__(self) -> int:
        return len(self.loader.dataset)

    def batches(self, size: int) -> int:
        """How many make a chunk of at most `size` images."""
        return max(1, size // (self.loader.batch_size or 1))

    def share(self, size: int) -> DataLoader | None:
        """Of several processes side by side: the batches of this one's chunks. None where all look at every image."""
        return share_of_batches(self.loader, self.batches(size)) if is_collective() else None

    def chunks(self, size: int, device, share: DataLoader | None = None) -> Iterator[tuple[Tensor, ...]]:
        """(pixels, labels) on `device`, at most `size` images or one batch at a time; those of a `share`, or all."""
        batches = iter(self.loader if share is None else share)
        while chunk := list(islice(batches, self.batches(size))):
            if "img" not in chunk[0]:
                raise UserError(f"test set {self.name}: features in place of images, set FEATURES.TEST to False")
            parts = ([batch[key].to(device, non_blocking=True) for batch in chunk] for key in ("img", "label"))
            yield tuple(map(torch.cat, parts))


class LabelSpace:
    """The classes that a image of `test` may be given, each name once however many tasks have it.

    A name's class vector is that of the first task of `snapshot` (None: no task) that has it; the test set's own
    names come last. blocks: (class names, prompts, rows taken) a source; right: (classes of test,) label -> column.
    """

    def __init__(self, test: TestSet, snapshot: Snapshot | None = None, device="cpu"):
        column, self.blocks = {}, []
        for source in (*(snapshot.tasks if snapshot else ()), test):
            taken = []
            for row, name in enumerate(map(_plain, source.classnames)):
                if name not in column:
                    column[name] = len(column)
                    taken.append(row)
            if taken:
                rows = torch.tensor(taken, device=device)
                self.blocks.append((tuple(source.classnames), tuple(source.prompts), rows))
        self.names = list(column)
        self.right = torch.tensor([column[_plain(name)] for name in test.classnames], device=device)


def _plain(name: str) -> str:
    return name.replace("_", " ")  # as a prompt has it


def text_vectors(clip: ClipBackbone, classnames: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """(C, D) float32: the mean over prompts of unit text features, not unit itself where prompts are several."""
    vectors = text_classifier(clip, classnames, prompts).float()
    return F.normalize(vectors, dim=-1) if len(prompts) == 1 else vectors


@torch.no_grad()
def prototypes_of(
    clip: ClipBackbone, loader: DataLoader, classnames: Sequence[str], prompts: Sequence[str], autocast=nullcontext
) -> Tensor:
    """(C, D), unit rows: what the classes look like to `clip`, from the images of `loader` and all `prompts`.

    clip: the pretrained model (or, for the ablation, the expert). loader: each image that the task may use
    once, under the test transform; nothing else is looked at, so few-shot prototypes are few-shot. Of several
    processes side by side each encodes a share of them.
    """
    share = share_of_batches(loader) if is_collective() else None
    features, labels = [], []
    for batch in loader if share is None else share:
        with autocast():
            features.append(clip.encode_image(batch["img"].to(clip.device, non_blocking=True)).float())
        labels.append(batch["label"].to(clip.device, non_blocking=True))
    with autocast():
        text = text_vectors(clip, classnames, prompts)
    if share is not None:
        features, labels = gather_batches(features), gather_batches(labels)
    return prototypes(torch.cat(features).to(text.device), torch.cat(labels), text)
