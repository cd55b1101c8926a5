"""Import paths of earlier versions: each warns and gives the module that has its content now.

One release later they are gone. Dassl's own paths are none of them: they stay.
"""

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec

_IN = {  # package -> its modules that moved, and where to
    "condu": "packing bitpack, space tuning, slots expert_cache",
    "datasets": "protocol base",
    "dassl.clip": "features feature_bank",
    "dassl.engine": "processes distributed, stopping signals",
    "dassl.report": "against protocols.against, base2new protocols.base2new, drawing figures.drawing, "
    "epochs figures.epochs, fewshot protocols.fewshot, grid frame, mtil protocols.mtil, mtil_figures figures.mtil, "
    "others protocols.others, paired protocols.paired, path_figures figures.paths, paths protocols.paths, "
    "results records, stamps disclosures, sweeps protocols.sweeps, tables table, transfer protocols.transfer, "
    "tsne figures.tsne",
    "mergetune": "adapters models.adapters, continued stage2, deep_prompts models.deep_prompts, "
    "distil models.student, foreign checkpoint_formats, frozen clip_trainer, heads models.heads, "
    "lora dassl.merging.lora, merged_files merge_files, merging dassl.merging.methods, parents merge_sources, "
    "prompts models.prompts, templates models.templates",
}
MOVED = {
    f"{package}.{old}": new if new.startswith("dassl.") else f"{package}.{new}"
    for package, pairs in _IN.items()
    for old, new in (pair.split() for pair in pairs.split(", "))
}


class MovedModules:
    """Finder and loader of MOVED, to be appended to sys.meta_path."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """An empty one, which `exec_module` replaces."""

    def exec_module(self, module) -> None:
        name = module.__name__
        warnings.warn(f"{name} is now {MOVED[name]}", FutureWarning, stacklevel=2)
        sys.modules[name] = import_module(MOVED[name])
