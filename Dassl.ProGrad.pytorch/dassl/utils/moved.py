"""Names of earlier versions: modules, classes and methods. Each warns and gives what has its place now.

One release later they are gone. Dassl's own names are none of them: they stay.
"""

import functools
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_IN = {  # package -> its modules that moved, and where to
    "condu": "expert_cache evaluation, iterations dassl.data.samplers, merge fusion, packing bitpack, "
    "results evaluation, settings expert, slots evaluation, space tuning, store state, stream state",
    "datasets": "few_labels base, imagenet_shifts imagenet, official mtil, protocol base, subset base",
    "dassl.clip": "features feature_bank, rounds feature_bank",
    "dassl.data": "wrapper data_manager",
    "dassl.data.transforms": "augment transforms",
    "dassl.engine": "anchor dry_run, classify network, earlier resume, loops trainer, preflight dry_run, "
    "processes distributed, prograd base, simple trainer, stopping signals, trial dry_run",
    "dassl.report": "against protocols.against, base2new protocols.base2new, drawing figures.drawing, "
    "epochs figures.epochs, fewshot protocols.fewshot, grid frame, mtil protocols.mtil, mtil_figures figures.mtil, "
    "others protocols.base2new, paired protocols.paired, path_figures figures.paths, paths protocols.paths, "
    "results records, stamps disclosures, stats frame, sweeps protocols.sweeps, tables table, "
    "transfer protocols.transfer, tsne figures.tsne",
    "mergetune": "adapters models.adapters, continued stage2, deep_prompts models.deep_prompts, "
    "distil models.student, foreign checkpoint_formats, frozen clip_trainer, heads models.heads, "
    "lora dassl.merging.lora, merge_files merge_sources, merge_methods dassl.merging.records, "
    "merged_files merge_sources, merging dassl.merging.methods, parents merge_sources, prompts models.prompts, "
    "templates models.templates, weights stage2",
    "dassl.utils": "atomic files, lock files, restricted checkpoints",
}
MOVED = {
    f"{package}.{old}": new if new.startswith("dassl.") else f"{package}.{new}"
    for package, pairs in _IN.items()
    for old, new in (pair.split() for pair in pairs.split(", "))
}
CLASSES = {
    "condu.evaluation": {"Slots": "ExpertCache"},
    "condu.tuning": {"Space": "Tuning", "FullSpace": "Tuning"},
    "dassl.report.table": {"Sheet": "Report"},
    "dassl.utils.distributed": {
        "Elsewhere": "PeerFailure",
        "in_turn": "main_process_first",
        "part": "shard",
        "side_by_side": "is_collective",
    },
    "mergetune.checkpoint_formats": {"Found": "Recognised"},
    "mergetune.clip_trainer": {"FrozenClipTrainer": "ClipTrainer"},
    "mergetune.merge_sources": {"Parent": "Source", "read_parent": "read_source"},
    "mergetune.stage2": {"Continued": "MergeTune", "at": "swapped_parameters"},
}
METHODS = {
    "classifier_held": "cached_classifier",
    "facts": "metadata",
    "hosting": "attached_modules",
    "note": "log_metrics",
    "route": "use_feature_bank",
    "route_split": "use_feature_bank_for",
    "tokenise": "tokenize",
}


class MovedModules:
    """Finder and loader of MOVED, to be appended to sys.meta_path."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None  # type: ignore[arg-type]  # a loader by its methods

    def create_module(self, spec: ModuleSpec) -> None:
        """An empty one, which `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        warnings.warn(f"{name} is now {MOVED[name]}", FutureWarning, stacklevel=2)
        sys.modules[name] = import_module(MOVED[name])


def old_names(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module that has CLASSES: what had another name in an earlier version."""

    def __getattr__(name: str):
        new = CLASSES[module].get(name)
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now {new}", FutureWarning, stacklevel=2)
        return getattr(sys.modules[module], new)

    return __getattr__


class OldMethods:
    """Base of a class whose METHODS had other names: calls of an old one arrive, an override by its old name counts."""

    def __init_subclass__(cls, **options) -> None:
        super().__init_subclass__(**options)
        for base in cls.__mro__:  # a mixin of ours need not have this base
            inherited = {name for other in base.__mro__[1:] for name in vars(other)}
            for old, new in METHODS.items():
                if old in vars(base) and new in inherited and new not in vars(base):
                    warnings.warn(f"{base.__name__}.{old} is now {new}", FutureWarning, stacklevel=2)
                    setattr(base, new, vars(base)[old])
                elif new in vars(base) and old not in vars(base):
                    setattr(base, old, _old(old, new, vars(base)[new]))


def _old(old: str, new: str, method):
    @functools.wraps(method)
    def call(self, *args, **options):
        warnings.warn(f"{type(self).__name__}.{old} is now {new}", FutureWarning, stacklevel=2)
        return method(self, *args, **options)

    return call
