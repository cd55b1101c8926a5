"""Feature bank: what a frozen image tower says of a fixed list of images, computed once and kept on disk.

Test images are seen one way; training images in as many augmented views as asked for, each view from
its own random stream (dassl.data.views), so that a bank holds exactly what a run from pixels would have
computed. A bank is a folder named by a digest of all that its features depend on: weights, precision,
transform, seed, and the files with their sizes and times. It is therefore shared by whatever run can use
it, and never used by one that cannot.

In it lies one memory-mapped file a round, round r being what epoch r of a run from pixels sees. A later run
that asks for more rounds adds them. The rounds that are missing are built together, batch by batch, an image decoded
once; what is finished of them is in part files, from which a build goes on after a kill.

Letters: N images, D joint width, K transforms of one image in one round (cfg.DATALOADER.K_TRANSFORMS).
"""

import contextlib
import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset
from yacs.config import CfgNode as CN

from dassl.data import ViewBatches, relative_key, transforms
from dassl.data.data_manager import Loader, own_group
from dassl.utils import (
    UserError,
    check_file,
    digest,
    get_logger,
    is_deep_image,
    locked,
    sha256_file,
    tensor_checksum,
    write_json,
)
from dassl.utils.distributed import barrier, broadcast, gather, gather_to_main, is_collective, is_main, shard
from dassl.utils.progress import progress
from dassl.utils.tensorfile import opened, put_rows, read_safetensors

from .backbone import ClipBackbone
from .banks import default_folder

FORMAT = 1
LOOK_AGAIN = 60.0  # seconds for which the same data, kept by a process for its next models, are not looked at again
WORKERS_FROM = 512  # images to encode below which starting worker processes costs more than it saves


def bank_folder(cfg: CN) -> str:
    """Where banks lie: FEATURES.DIR, else below the environment's OUTPUT."""
    return cfg.FEATURES.DIR or default_folder()


def build_feature_loader(
    cfg: CN, loader: DataLoader, backbone: ClipBackbone, *, is_train: bool, autocast: Callable = contextlib.nullcontext
) -> DataLoader:
    """A loader of features with the batches, order and random draws of the pixel `loader`; `loader` itself where
    FEATURES in cfg wants pixels.

    Its batches have `feature` (B, D), raw, in the precision it was computed in, in place of `img`
    (`feature2` for `img2`, a list of K for a list of K), and label, domain, impath and index as they were.
    `dataset.bank` is the FeatureBank. In training, epoch e sees view e modulo FEATURES.VIEWS. autocast: the context in
    which the run from pixels would encode (Precision.autocast).

    Raises:
        UserError: the pixels are needed after all (no transform, RETURN_IMG0) or views have no streams of
        their own.
    """
    if not (cfg.FEATURES.VIEWS > 0 if is_train else cfg.FEATURES.TEST):
        return loader
    pixels = cast(Any, loader.dataset)  # a DatasetWrapper
    if loader.batch_size is None:
        raise UserError("feature bank: the loader has a batch sampler, expected a sampler and a size")
    if getattr(pixels, "return_img0", False):
        raise UserError("feature bank: DATALOADER.RETURN_IMG0 asks for pixels, set FEATURES.VIEWS to 0")
    if is_train and (getattr(pixels, "seed", None) is None or not hasattr(loader.sampler, "set_epoch")):
        raise UserError("feature bank: training views need INPUT.VIEW_SEEDS True")
    rounds = -(-cfg.FEATURES.VIEWS // pixels.k_tfm) if is_train else 1
    bank = FeatureBank(cfg, pixels, backbone, rounds=rounds, workers=loader.num_workers, autocast=autocast)
    return DataLoader(
        BankDataset(bank, pixels.data_source),
        batch_size=loader.batch_size,
        sampler=loader.sampler,
        drop_last=loader.drop_last,
        collate_fn=lambda batch: batch,
        pin_memory=loader.pin_memory,
    )


class FeatureBank:
    """Features of the images of `pixels` (a DatasetWrapper) in FEATURES.DIR/<key>, built where missing.

    Two runs may ask for the same bank: one builds, the other waits. The processes of one run build it together,
    in whole batches, and the main one writes. A damaged file is built again, with a warning. cfg: FEATURES, and the
    batch size of tests, in which the tower runs.
    """

    def __init__(self, cfg, pixels, backbone, *, rounds=1, workers=0, autocast=contextlib.nullcontext):
        if pixels.transform is None:
            raise UserError("feature bank: images without a transform cannot be encoded")
        if backbone.module.training:
            raise UserError(f"feature bank: {backbone.name} is in training mode, expected a frozen tower")
        self.pixels, self.backbone, self.autocast = pixels, backbone, autocast
        self.batch_size, self.workers = cfg.DATALOADER.TEST.BATCH_SIZE, workers
        self.header = self._describe(cfg.FEATURES.STRICT)
        self.key = digest(self.header)
        self.folder = Path(bank_folder(cfg)).expanduser() / self.key
        self._noted = self.folder / "parts.txt"  # what the part files hold
        self._rounds = {}
        self._ensure(range(rounds))

    def __len__(self):
        return len(self._rounds)

    def round(self, number: int = 0) -> dict[str, torch.Tensor]:
        """{"feature": (N, D), or (N, K, D) if K > 1}, memory-mapped; numbers beyond the last start over."""
        return self._rounds[number % len(self._rounds)]

    def _describe(self, strict):
        """All that the features depend on, as JSON."""
        pixels, backbone, kind = self.pixels, self.backbone, self.backbone.device.type
        with self.autocast():
            mixed = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""
        return {
            "format": FORMAT,
            "weights": backbone.digest,
            "activation": backbone.activation,
            "dtype": str(backbone.dtype),
            "autocast": mixed,
            "device": kind,
            "transform": transforms.describe_transform(pixels.transform),
            "transforms": pixels.k_tfm,
            "seed": pixels.seed if pixels.is_train else None,
            "images": len(pixels),
            "files": self._files(strict),
            **({"compiled": True} if backbone.compiled else {}),
            **({"exif_orientation": True} if getattr(pixels, "reading", {}).get("exif_orientation") else {}),
        }

    def _files(self, strict):
        """Digest of the images' names, and of their files' sizes and times, or contents."""
        pixels, now = self.pixels, time.monotonic()
        if pixels.looked.get(strict, (-math.inf,))[0] < now - LOOK_AGAIN:
            facts = functools.cache(functools.partial(_describe_file, strict=strict))  # many images may share a file
            files = [[relative_key(item.impath, pixels.root), *facts(item.file)] for item in pixels.data_source]
            pixels.looked[strict] = now, digest(files)
        return pixels.looked[strict][1]

    def _file(self, number):
        return self.folder / f"round-{number:05d}.safetensors"

    def _part(self, number):
        return self._file(number).with_suffix(".part")

    def _ensure(self, numbers):
        missing = [number for number in numbers if not self._open(number)]
        if missing and (sample := getattr(self.pixels, "sample_bank", None)):  # of --check
            sample(self, missing)
            return
        if is_collective() and (wanted := broadcast(missing)):  # of the main process: another may look too late
            self.fill(wanted, shared=True)
            barrier()  # they are written
            missing = [number for number in missing if not self._open(number)]  # all, on a disk of its own
        if missing:
            self.fill(missing)

    def fill(self, missing: list[int], shared: bool = False) -> None:
        """Build rounds that are not there. shared: by all processes of this run, of which the main one writes."""
        writes = is_main() or not shared
        with _turn(self.folder) if writes else contextlib.nullcontext():
            missing = [number for number in missing if not self._open(number, warn=writes)]
            missing = broadcast(missing) if shared else missing
            if missing and writes:  # else another run was first
                places = {os.path.dirname(os.path.abspath(item.impath)) for item in self.pixels.data_source}
                facts = {"backbone": self.backbone.name, "folder": os.path.commonpath(places)}
                write_json({**self.header, **facts}, self.folder / "bank.json")
            if missing:
                self._build(missing, shared)
                get_logger().info(f"Feature bank {self.folder}: {len(self.pixels)} images x {len(missing)}")

    def _facts(self, number, tensors):
        return {"format": str(FORMAT), "bank": self.key, "round": str(number), "crc32": tensor_checksum(tensors)}

    def _open(self, number, warn=False):
        """Map a round if its file is there and whole; whether it was."""
        file = self._file(number)
        if not file.is_file():
            return False
        try:
            tensors, metadata = read_safetensors(file)
            if metadata != self._facts(number, tensors):
                raise UserError(f'"{file}" is damaged: it belongs to another bank, or its checksum is wrong')
        except UserError as error:
            if warn:
                get_logger().warning(f"Feature bank: {error}; building it again")
            return False
        self._rounds[number] = tensors
        return True

    def _build(self, numbers, shared):
        """Encode and write rounds. Batches end with their round, so none depends on its neighbours.

        shared: every process of this run encodes its part of the batches, and the main one writes.
        """
        writes = is_main() or not shared
        batches = torch.arange(len(self.pixels)).split(self.batch_size)
        there = self._there(numbers, batches) if writes else set()
        there = broadcast(there) if shared else there
        work = [(batch, [number for number in numbers if (number, int(batch[0])) not in there]) for batch in batches]
        work = [(batch, rounds) for batch, rounds in work if rounds]
        work = work[shard(len(work))] if shared else work
        cells = [(number, int(batch[0])) for batch, rounds in work for number in rounds]
        bar = f"features of {len(self.pixels)} images x {len(numbers)}"
        images = zip(cells, self.images(work), strict=True)
        done = ((*cell, self._encode(batch)) for cell, batch in progress(images, bar, total=len(cells)))
        steps = range(max(gather(len(cells))) if shared else 0)
        for mine, _ in itertools.zip_longest(done, steps):  # processes exchange as often as the one with most has to
            for rows in filter(None, (gather_to_main(mine) or ()) if shared else (mine,)):
                self._keep(*rows)
        for number in numbers if writes else ():
            self._finish(number)

    def _there(self, numbers, batches):
        """{(round, first index of a batch)} of the rows that builders which were killed have left, whole."""
        noted = set(self._noted.read_bytes().splitlines()) if self._noted.is_file() else set()
        there = set()
        for number in numbers:
            with contextlib.suppress(UserError):
                tensors, _ = read_safetensors(self._part(number))
                for first in (int(batch[0]) for batch in batches):
                    rows = {name: value[first : first + self.batch_size] for name, value in tensors.items()}
                    there |= {(number, first)} if self._note(number, first, rows) in noted else set()
        return there

    def _note(self, number, first, rows):
        return f"{number} {first} {tensor_checksum(rows, {'bank': self.key})}".encode()

    def _keep(self, number, first, rows):
        put_rows(self._part(number), rows, first, len(self.pixels), self._facts(number, {}))
        with opened(self._noted, "ab") as file:
            file.write(b"\n" + self._note(number, first, rows))  # the line before may have been cut off

    def _finish(self, number):
        part, file = self._part(number), self._file(number)
        tensors, _ = read_safetensors(part)
        facts = self._facts(number, tensors)
        put_rows(part, {name: value[:0] for name, value in tensors.items()}, 0, len(self.pixels), facts)
        with opened(part, "r+b") as built:
            os.fsync(built.fileno())
            if file.exists() and not file.is_file():
                raise OSError(f"{file.name} is no plain file")
            os.replace(part, file)
        self._open(number)
        if not any(self.folder.glob("*.part")):
            self._noted.unlink(missing_ok=True)

    def loader(self, work: Sequence[tuple[torch.Tensor, Sequence[int]]]) -> Loader:
        """The transformed images of each of these batches of indices, in each of the rounds beside it, as a run from
        pixels sees them in those epochs; from each worker a part of every batch (ViewBatches)."""
        many = sum(len(batch) * len(rounds) for batch, rounds in work) >= WORKERS_FROM
        return Loader(
            ViewBatches(self.pixels, work),
            batch_size=None,
            generator=torch.Generator(),
            num_workers=self.workers if many else 0,
            pin_memory=self.backbone.device.type == "cuda",
            worker_init_fn=own_group,
        )

    def images(self, work: Sequence[tuple[torch.Tensor, Sequence[int]]]) -> Iterator[dict[str, Any]]:
        """The batches of `loader(work)`, whole and on the device."""
        loader, device = self.loader(work), self.backbone.device
        parts = iter(loader)
        for first in parts:
            every = first, *filter(None, itertools.islice(parts, max(loader.num_workers, 1) - 1))
            every = tree_map(lambda image: image.to(device, non_blocking=True), every)
            yield tree_map(lambda *some: torch.cat(some) if len(some) > 1 else some[0], *every)

    @torch.inference_mode()
    def _encode(self, batch):
        """{"img": (B, 3, H, W), or a list of K such, ...} -> {"feature": (B, D) or (B, K, D)} on the CPU."""
        features = {}
        for name, value in batch.items():
            views = value if isinstance(value, list) else [value]
            with self.autocast():
                rows = [self.backbone.encode_image(view).cpu() for view in views]
            name = name.replace("img", "feature")
            features[name] = torch.stack(rows, 1) if isinstance(value, list) else rows[0]
        return features


class BankDataset(Dataset):
    """Batches from a bank, a whole batch at a time: indices (with their epoch, if any, one) -> a dictionary."""

    def __init__(self, bank: FeatureBank, data_source: Sequence):
        self.bank, self.data_source = bank, data_source
        self.labels = torch.tensor([item.label for item in data_source])
        self.domains = torch.tensor([item.domain for item in data_source])

    def __len__(self):
        return len(self.data_source)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        rows = torch.tensor([int(index) for index in indices])
        (epoch,) = {getattr(index, "view", 0) for index in indices}  # a batch is of one
        batch: dict[str, Any] = {name: value[rows] for name, value in self.bank.round(epoch).items()}
        batch = {name: list(value.unbind(1)) if value.ndim == 3 else value for name, value in batch.items()}
        return {
            **batch,
            "label": self.labels[rows],
            "domain": self.domains[rows],
            "index": rows,
            "impath": [self.data_source[row].impath for row in rows.tolist()],
        }


def _describe_file(path, strict):
    facts = check_file(path)
    content = [sha256_file(path)] if strict else [facts.st_size, facts.st_mtime_ns]
    deep = _is_deep(path, facts.st_size, facts.st_mtime_ns)
    return [*content, "scaled"] if deep else content  # earlier versions clipped such an image


@functools.lru_cache(1 << 16)  # one process makes many runs of the same images
def _is_deep(path, size, mtime_ns):
    return is_deep_image(path)


def _turn(folder):
    """One builder at a time."""
    said = f"Feature bank: another process builds {folder}, waiting for it"
    return locked(folder / ".lock", lambda: get_logger().info(said))
