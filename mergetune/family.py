"""The parents of one merge with what they start from, brought into one space, and the folder that is made of them."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.engine import build_trainer, trainer_class
from dassl.engine.base import BEST
from dassl.engine.results import CLASSES
from dassl.engine.state import rng_state, set_rng_state
from dassl.utils import UserError, atomic_write, save_checkpoint, set_random_seed, write_json
from mergetune import lora, stage1
from mergetune.merging import SPACES, START, ZERO_SHOT, ZEROS, check_alike, is_weight
from mergetune.parents import PEFT_CONFIG, PEFT_FILES, Parent, check_origin, read_parent

State = dict[str, Tensor]
JOINED = ("source", "source_subset", "data_seen")  # facts of which the merge has all


def run_config(folder: str | Path, *words: str) -> CfgNode:
    """The frozen config of a run folder, with flags and KEY VALUE pairs of train.py; stage 1 is not read again."""
    import train  # the command line is the one place that knows the data sets

    return train.setup_cfg(train.build_parser().parse_intermixed_args([*words, "RESUME_COOP", ""]), folder)


@dataclass
class Family:
    """parents: as given, None for zero-shot CLIP; states and base: as they are merged, products of LoRA included."""

    parents: list[Parent | None]
    base_name: str
    merge_space: str
    root: str
    origin: Parent | None = None  # the parent that is the base
    states: list[State] = field(default_factory=list)
    base: State | None = None
    untrained: State = field(default_factory=dict)  # what the first run's seed draws; known with the trainer

    @classmethod
    def read(
        cls, parents: Sequence, base, merge_space: str, root: str, *, needs_base: bool, keep: Sequence[str]
    ) -> "Family":
        """Read and check everything. UserError or ValueError for what does not fit together."""
        if merge_space not in SPACES:
            raise UserError(f"merge_space is {merge_space!r}, expected one of {', '.join(SPACES)}")
        found = [None if str(spec) == ZERO_SHOT else read_parent(spec) for spec in parents]
        if not any(found):
            raise UserError(f"Nothing to merge: every parent is {ZERO_SHOT}")
        own = cls(found, str(base), merge_space, root)
        if needs_base and own.base_name not in (ZERO_SHOT, START, ZEROS):
            own.origin = read_parent(base)
        own.check()
        own.states = [own.in_space(own.zero_shot if parent is None else parent.state, parent) for parent in found]
        labels = own.names
        if needs_base:
            own.base, labels = own.in_space(own.start(), own.origin), [*labels, f"the base {own.base_name}"]
        check_alike([*own.states, *([own.base] if needs_base else [])], labels, keep)
        return own

    @property
    def known(self) -> list[Parent]:
        """Parents that were read, the base last."""
        return [parent for parent in (*self.parents, self.origin) if parent is not None]

    @property
    def first(self) -> Parent:
        """The parent that lends its config, or the first one if none has any."""
        return next((parent for parent in self.known if parent.run), self.known[0])

    @property
    def names(self) -> list[str]:
        return [ZERO_SHOT if parent is None else parent.spec for parent in self.parents]

    @property
    def others(self) -> list[str]:
        """The parents beside the first, in a table's words."""
        rest = [parent for parent in self.parents if parent is not self.first]
        return [ZERO_SHOT if p is None else p.facts.get("trainer", Path(p.spec).name) for p in rest]

    @property
    def has_lora(self) -> bool:
        return any(lora.is_factor(name) for name in self.first.state)

    def check(self) -> None:
        """Refuse other backbones and classes, and in the space of factors LoRAs of another scaling."""
        check_origin(self.known)
        if self.merge_space == "product" and not self.has_lora:
            raise UserError(f"merge_space product is for LoRA, and {self.first.spec} has no lora_A and lora_B")
        if self.merge_space == "factors" and self.has_lora:
            for other in self.known:
                if other.scaling() != self.first.scaling() and lora.ranks(other.state) == lora.ranks(self.first.state):
                    raise UserError(
                        f"{self.first.spec} and {other.spec} scale their LoRA updates differently "
                        "(lora_alpha / r), so their factors cannot be merged: use merge_space product"
                    )

    def in_space(self, state: State, parent: Parent | None) -> State:
        """A state as it is merged."""
        if self.merge_space == "factors":
            return state
        return lora.products(state, (parent or self.first).scaling())

    @cached_property
    def trainer(self):
        """The trainer of the first run, with that run's weights."""
        if self.first.run is None:
            raise UserError(
                f"{ZERO_SHOT} and validation images are those of a run, and no parent is a run folder: "
                f"add one, or give a file or {ZEROS} as the base"
            )
        cfg = run_config(self.first.run, "--root", self.root, "TEST.COMPUTE_CMAT", "False", "VERBOSE", "False")
        before = rng_state()
        set_random_seed(max(cfg.SEED, 0))
        trainer = build_trainer(cfg)
        set_rng_state(before)
        stage1.check_backbone(self.first.file, trainer.facts())
        state = trainer.drop_keys(OrderedDict(trainer.model.state_dict()))
        self.untrained = {name: value.detach().cpu().clone() for name, value in state.items()}
        self.put(self.first.state, trainer)
        return trainer

    def put(self, state: State, trainer) -> None:
        """Copy a state into the trainer's model; UserError for another model's."""
        trainer._load_weights(trainer.model_name, str(self.first.file), state)

    @cached_property
    def zero_shot(self) -> State:
        """CLIP itself; where a model has parts that zero-shot leaves open, they are those of the first run."""
        own = self.first.state
        if self.first.run is None and own and all(map(lora.is_factor, own)):
            return self.zeros()
        try:
            weights = self.trainer.zero_shot_weights()
        except UserError as error:
            raise UserError(f"{error}. Task vectors can also start where the training did: base {START}") from error
        return own | {name: value.detach().cpu().to(own[name].dtype) for name, value in weights.items()}

    def zeros(self) -> State:
        """No weight at all; what is no weight stays."""
        own = self.first.state
        return {name: torch.zeros_like(v) if is_weight(name, v) else v.clone() for name, v in own.items()}

    def start(self) -> State:
        """Where task vectors start, as the parents hold it."""
        if self.origin is not None:
            return self.origin.state
        if self.base_name == START:
            return self.first_start()
        return self.zeros() if self.base_name == ZEROS else self.zero_shot

    def first_start(self) -> State:
        """The weights that the first run's training started from: its seed gives them again."""
        config = self.trainer.cfg
        if config.SEED < 0:
            raise UserError(f"{self.first.run} trained without a seed, so nobody knows where it started")
        own = self.first.state
        drawn = {name: value for name, value in self.untrained.items() if is_weight(name, value)}
        return own | {name: value.to(own[name].dtype) for name, value in drawn.items()}

    def validate(self, state: State) -> float:
        """Accuracy in percent on the validation images of the first run."""
        if not self.trainer.has_validation():
            raise UserError(f"{self.first.run} has no validation images, so its data cannot choose between values")
        self.put(self.thin(state, None), self.trainer)
        return self.trainer.test("val")

    def thin(self, state: State, rank: int | None) -> State:
        """A merged state with its products as factors again; rank None: the first parent's, 0: as it is."""
        if self.merge_space == "factors" or rank == 0:
            return state
        return lora.factors(state, lora.ranks(self.first.state) if rank is None else rank)

    def write(self, out: Path, state: State, rank: int | None, score: float | None) -> None:
        """A run folder, a peft folder, or a file of weights, as the parents are."""
        state = {name: value.contiguous() for name, value in self.thin(state, rank).items()}
        for name, value in state.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise UserError(f"The merged {name} is infinite or NaN")
        first = self.first
        if first.run is not None:
            self._write_run(out, state, score)
        elif first.peft and rank != 0:
            _write_tensors(state, out / PEFT_FILES[0])
            write_json(first.peft | self._peft(rank), str(out / PEFT_CONFIG))
        else:
            _write_tensors(state, out / "merged.safetensors")

    def _write_run(self, out: Path, state: State, score: float | None) -> None:
        text = (self.first.run / "config.yaml").read_text(encoding="utf-8")
        name = trainer_class(CfgNode.load_cfg(text).TRAINER.NAME).model_name
        checkpoint = {"epoch": self.first.epoch, "optimizer": None, "scheduler": None, "val_result": score}
        save_checkpoint({"state_dict": state, **checkpoint}, str(out / name), model_name=BEST)
        for file in ("config.yaml", CLASSES):
            if (self.first.run / file).is_file():
                with atomic_write(str(out / file)) as target:
                    target.write((self.first.run / file).read_bytes())

    def _peft(self, rank: int | None) -> dict:
        """What of adapter_config.json changes: factors of a product have the scaling 1."""
        if self.merge_space == "factors":
            return {}
        found = lora.ranks(self.first.state) if rank is None else {}
        top = rank or max(found.values())
        own = {module: r for module, r in found.items() if r != top}
        modules = {name.removeprefix("base_model.model."): r for name, r in own.items()}
        return {"r": top, "lora_alpha": top, "use_rslora": False, "rank_pattern": modules, "alpha_pattern": modules}

    def facts(self) -> dict:
        """What a later run asks of the weights' origin, see `stage1.run_fact`."""
        own = dict(self.first.facts)
        for name in JOINED:
            values = [parent.facts[name] for parent in self.known if parent.facts.get(name)]
            own[name] = " + ".join(dict.fromkeys(values))
        return own


def _write_tensors(state: State, file: Path) -> None:
    from safetensors.torch import save

    with atomic_write(str(file)) as target:
        target.write(save(state))
