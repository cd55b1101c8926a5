"""Which commands make up a job: for a method pair, a protocol, a data set and a seed, in order."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from datasets import PUBLIC
from scripts.commands import COMMANDS
from scripts.commands.base2new import METHODS, TESTS, Method
from scripts.commands.command import ROOT, Arguments, checked_pairs, follow, recipe, yaml_values
from scripts.commands.condu import TRAINING
from scripts.commands.robust import ROBUST, shifts
from scripts.run import builds_on
from scripts.steps import Step

SHOTS = ("1", "2", "4", "8", "16")


@dataclass(frozen=True)
class Pair:
    """A stage-1 method and MERGETUNE on it. presets: CFGs of stage 2; toy: those of the built-in benchmark, where they
    are others; before: methods that teach stage 1."""

    stage1: str
    stage2: str
    presets: tuple[str, ...]
    toy: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    average: bool = False  # of class vectors
    merges: tuple[str, ...] = ()  # of weights; WiSE-FT at alpha 0.5 is the average
    ends: tuple[str, ...] = ()  # zero-shot CLIP of stage 2 where it may have other templates: CFGs of ZeroshotCLIP


PRESETS = ("released", "paper", "continued")  # what a pair's `presets` and `toy` stand for
_PROMPT = ("vit_b16_ep100_ctxv1", "paper", "continued")
_ANCHOR, _WORDS = "vit_b16_dataset", "vit_b16_photo"
PAIRS: dict[str, Pair] = {
    "CoOp": Pair("CoOp", "CoOp_LMC", _PROMPT, average=True, merges=("ties", "dare"), ends=(_ANCHOR, _WORDS)),
    "KgCoOp": Pair("KgCoOp", "KgCoOp_LMC", _PROMPT, merges=("average", "ties", "dare"), ends=(_ANCHOR, _WORDS)),
    "MMA": Pair(
        "MultiModalAdapter",
        "MMA_LMC",
        ("vit_b16_ep5", "paper", "continued"),
        toy=("released_ep20", "paper_ep20", "continued_ep20"),
        merges=("average", "ties", "dare"),
        ends=(_WORDS,),  # its anchor has the template of ZeroshotCLIP
    ),
    "PromptKD": Pair(
        "PromptKD",
        "PromptKD_LMC",
        ("vit_b16_c2_ep20_batch8_4+4ctx", "paper", "continued"),
        toy=("released_batch8", "paper_batch8", "continued_batch8"),
        before=("PromptSRC",),
    ),
}
STREAMS = {"mtil": "MTIL", "fewshot_mtil": "fewshot_MTIL"}  # ConDU's protocols -> how their training scripts begin
TUNINGS = ("FT", "LoRA")  # how these end
_SHOT_PAIRS = ("CoOp", "KgCoOp", "MMA")
# Protocol -> the pairs that have it, the default first.
PROTOCOLS = {
    "base2new": tuple(PAIRS),
    **dict.fromkeys(("cross", "dg", "fewshot"), _SHOT_PAIRS),
    "robust": tuple(ROBUST),
}
TRANSFER = {"cross": "xd_test", "dg": "dg_test"}


def stages(pair: Pair, what: str, cell: Arguments, presets: Iterable[str]) -> Iterator[tuple[str, Arguments]]:
    """Stage 1 and each preset of stage 2: the method, and the arguments that repeat its yaml."""
    yield pair.stage1, {}
    cfgs = is_toy(cell) and pair.toy or pair.presets
    for cfg in (cfg for preset, cfg in zip(PRESETS, cfgs, strict=True) if preset in presets):
        yield pair.stage2, {"COOP_LMC": "True"} | recipe(COMMANDS[METHODS[pair.stage2].script(what)], cfg)


def zero_shot(test: str, cell: Arguments, ends: Iterable[str]) -> Iterator[Step]:
    """Zero-shot CLIP, and each of the `ends` that has another template on this data set."""
    yield Step(f"zsclip/{test}", cell)
    known = templates(cell["DATASET"])
    taken = {known["coop"]}
    for cfg in ends:
        name = yaml_values(f"ZeroshotCLIP/{cfg}")["TRAINER.ZEROSHOT.TEMPLATES"]
        if (prompt := known.get(name, name)) not in taken:
            taken.add(prompt)
            yield Step(f"zsclip/{test}", cell | {"CFG": cfg})


@lru_cache
def templates(dataset: str) -> dict[str, str]:
    """ZeroshotCLIP's templates `coop` and `dataset` on a data set of configs/datasets. UserError: it has no reader."""
    from dassl.config import read_yaml
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.utils import check_availability

    node = read_yaml(ROOT / "configs" / "datasets" / f"{dataset}.yaml")["DATASET"]
    check_availability(node["NAME"], DATASET_REGISTRY, "DATASET.NAME")
    usual = getattr(DATASET_REGISTRY.get(node["NAME"]), "templates", {})
    prompts = node.get("CUSTOM", {}).get("PROMPTS")
    anchor = prompts[0] if prompts else usual.get("kgcoop", "a photo of a {}.")
    return {"coop": anchor if prompts else usual.get("coop", anchor), "dataset": anchor}


def base2new(pair: Pair, cell: Arguments, presets: Iterable[str]) -> Iterator[Step]:
    """Zero-shot, what teaches stage 1, stage 1, its average with CLIP, and each preset of stage 2: both halves."""
    for what in TESTS:
        yield from zero_shot(what, cell, pair.ends)
    before = [(name, {}) for name in pair.before]
    for name, arguments in (*before, *stages(pair, "base2new_train", cell, presets)):
        yield Step(METHODS[name].script("base2new_train"), cell | arguments, card=name == pair.stage2)
        yield from (Step(METHODS[name].script(what), cell | arguments) for what in TESTS)
        if name == pair.stage1:
            yield from (Step(f"coop_average/{what}", cell) for what in TESTS if pair.average)
            for merge in pair.merges:
                yield Step("merge/base2new", cell | {"METHOD": merge, "STAGE1": METHODS[name].folder})
        elif is_chosen_as_released(METHODS[name], arguments):
            yield from (Step(METHODS[name].script(what), cell | arguments | {"LOADEP": "last"}) for what in TESTS)


def is_chosen_as_released(method: Method, arguments: Arguments) -> bool:
    """Is it the preset `released`, with the weights that are best on validation?"""
    values = yaml_values(method.train.config.format(**arguments)) if "CFG" in arguments else {}
    return (values.get("PRESET"), values.get("TEST.FINAL_MODEL")) == ("released", "best_val")


def transfer(pair: Pair, cell: Arguments, presets: Iterable[str], protocol: str) -> Iterator[Step]:
    """A model of the cell's data set, the source, on it and on each target."""
    test, places = TRANSFER[protocol], on_targets(cell, protocol)
    for place in places:
        yield from zero_shot(test, place, pair.ends[:-1])  # no weights are merged here
    for name, arguments in stages(pair, "xd_train", cell, presets):
        yield Step(METHODS[name].script("xd_train"), cell | arguments)
        yield from (Step(METHODS[name].script(test), place | arguments) for place in places)
    if pair.average:
        yield from (Step(f"coop_average/{test}", place) for place in places)


def fewshot(pair: Pair, cell: Arguments, presets: Iterable[str]) -> Iterator[Step]:
    """The few-shot curve."""
    yield from zero_shot("fewshot_test", cell, pair.ends[:-1])
    for name, arguments in stages(pair, "fewshot_train", cell, presets):
        for shots, what in itertools.product(SHOTS, ("fewshot_train", "fewshot_test")):
            yield Step(METHODS[name].script(what), cell | arguments | {"SHOTS": shots})


def robust(name: str, cell: Arguments, presets: Iterable[str]) -> Iterator[Step]:
    """Robust fine-tuning: the source's own test and its shifted ones. presets: of which it has two."""
    places = on_targets(cell, "robust")
    for place in places:
        yield from zero_shot("robust_test", place, [_ANCHOR if is_toy(cell) else "vit_b16_imagenet"])
    cfgs = [{"CFG": f"{preset}_toy" if is_toy(cell) else preset} for preset in PRESETS[1:] if preset in presets]
    for script, sets in ((ROBUST[name], [{}]), (f"{ROBUST[name]}_LMC", cfgs)):
        for arguments in sets:
            yield Step(f"robust/{script}_train", cell | arguments)
            yield from (Step(f"robust/{script}_test", place | arguments) for place in places)
            for kind in ("weight", "output") if not arguments else ("weight",):  # output ensembles: of stage 1 alone
                yield Step(f"robust/{kind}_ensemble", cell | arguments | {"METHOD": script})


def stream(protocol: str, tuning: str, order: str, seed: int, pairs: Iterable[str] = (), flags: str = "") -> list[Step]:
    """ConDU: a stream, its evaluation with the task known, and without. Toy orders have recipes of their own.

    pairs: KEY VALUE of each.
    """
    script = f"{STREAMS[protocol]}_{tuning}"
    given = {"CFG": f"toy_{tuning.lower()}" if order.startswith("toy") else TRAINING[script]}
    given |= {"ORDER": order, "SEED": str(seed), "FLAGS": flags}
    names = [f"condu/{name}" for name in (script, f"eval_MTIL_{tuning}", f"eval_agnostic_MTIL_{tuning}")]
    pairs = tuple(checked_pairs(list(pairs)))
    commands = {name: COMMANDS[name] for name in names}
    return [Step(name, own.complete(own.from_environment() | given), pairs) for name, own in commands.items()]


def on_targets(cell: Arguments, protocol: str) -> list[Arguments]:
    """The cell's own data set as SOURCE, tested on itself and on each target."""
    source = cell["DATASET"]
    return [cell | {"SOURCE": source, "DATASET": name} for name in (source, *targets(protocol, source))]


def is_toy(cell: Arguments) -> bool:
    return cell["DATASET"].startswith("toy_")


def toy_sets() -> list[str]:
    """The built-in benchmark's data sets."""
    from datasets.toy.world import WORLD

    return [toy.folder for toy in WORLD.values() if toy.base_to_new]


def sources(protocol: str) -> list[str]:
    """The built-in data sets that a protocol's cells are made of."""
    return toy_sets() if protocol in ("base2new", "fewshot") else ["toy_objects"]


def targets(protocol: str, source: str) -> list[str]:
    """What a model of the source is tested on, beside the source."""
    toy = source.startswith("toy_")
    if protocol == "cross":
        return [name for name in (toy_sets() if toy else PUBLIC) if name != source]
    return [name for name in shifts(source) if protocol == "robust" or name != "objectnet"]


def cell_steps(
    name: str, protocol: str, dataset: str, seed: int, pairs: Iterable[str] = (), presets: Iterable[str] = PRESETS
) -> list[Step]:
    """All steps of one pair, protocol, data set (the source, where there is one) and seed.

    pairs: KEY VALUE of each; presets: of stage 2.
    """
    cell = {"DATASET": dataset, "SEED": str(seed)}
    alone = {"base2new": base2new, "fewshot": fewshot, "robust": robust}
    steps = alone.get(protocol) or partial(transfer, protocol=protocol)
    whole = with_keys(steps(PAIRS.get(name, name), cell, presets), pairs)
    return [s for s in whole if "last_step" not in s.pairs or "LOADEP" not in s.arguments]  # which tests it anyway


def with_keys(steps: Iterable[Step], words: Iterable[str]) -> list[Step]:
    """Whole steps, with these KEY VALUE words for every run; their folders say the keys that folders name.

    UserError: a key that a script or the protocol says itself.
    """
    from dassl.utils import UserError

    pairs, whole = checked_pairs(list(words)), []
    for step in steps:
        command = COMMANDS[step.command]
        given, rest = follow(command, dict(step.arguments), pairs, builds_on(command, dict(step.arguments)))
        own = step.pairs + tuple(rest) * (not command.module)
        whole.append(replace(step, arguments=command.complete(given), pairs=own))
    if len({step.folder for step in whole}) < len(whole):
        keys = ", ".join(pairs[::2])
        raise UserError(f"{keys}: the runs of this protocol differ in it; leave it out, or choose another protocol")
    return whole
