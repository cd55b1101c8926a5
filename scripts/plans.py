"""Which jobs make up a method pair, a protocol, a data set and a seed, in order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import mergetune
from dassl.config import read_yaml
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, check_availability
from datasets import PUBLIC
from datasets.toy.world import WORLD
from scripts.commands import COMMANDS, TRAININGS, scripts_of
from scripts.commands.base2new import of_toy
from scripts.commands.command import ROOT, Arguments, checked_pairs, follow, recipe, yaml_values
from scripts.commands.condu import TRAINING
from scripts.commands.protocols import TESTS, TRANSFER
from scripts.commands.registered import add_pair, presets_of
from scripts.commands.robust import shifts
from scripts.jobs import Job, builds_on

if TYPE_CHECKING:
    from mergetune.stage2 import MethodPair

SHOTS = ("1", "2", "4", "8", "16")
ANCHOR, WORDS = "vit_b16_dataset", "vit_b16_photo"  # zero-shot CLIP with another template than the usual one
STREAMS = {"mtil": "MTIL", "fewshot_mtil": "fewshot_MTIL"}  # ConDU's protocols -> how their training scripts begin
TUNINGS = ("FT", "LoRA")  # how these end


def listed_pairs() -> list[MethodPair]:
    """Of all registered trainers, those with the authors' scripts first: the default of a protocol."""
    return sorted(mergetune.stage2.method_pairs().values(), key=lambda pair: scripts_of(pair.stage2) == pair.stage2)


def find_pair(name: str, protocol: str = "") -> MethodPair:
    """The pair that `--trainer`, or a table, calls by its name, its stage 1 or its stage 2. UserError: there is none
    that has the protocol."""
    pairs = [pair for pair in listed_pairs() if not protocol or protocol in pair.protocols]
    known = {key: pair for pair in pairs[::-1] for key in (pair.stage2, pair.stage1, pair.name)}
    names = dict.fromkeys([pair.name for pair in pairs] + [pair.stage2 for pair in pairs])
    if name not in known:
        check_availability(name, list(names), f"--trainer of protocol {protocol}" if protocol else "--trainer")
    return known[name]


def stages(pair: MethodPair, what: str, where: Arguments, presets: Iterable[str]) -> Iterator[tuple[str, Arguments]]:
    """Stage 1 and each of these presets of stage 2, of all if none is named: the trainer, and the data set with the
    arguments that repeat its yaml."""
    yield pair.stage1, where
    command = COMMANDS[TRAININGS[pair.stage2].named(what)]
    for preset, cfg in presets_of(pair.stage2, where["DATASET"].startswith("toy_")).items():
        if not presets or preset in presets:
            yield pair.stage2, where | {"COOP_LMC": "True"} | recipe(command, cfg)


def ends_of(pair: MethodPair) -> list[str]:
    """CFG of ZeroshotCLIP, where stage 2 may begin at zero-shot CLIP with another template than the usual one."""
    return [ANCHOR] if pair.has_zero_shot and pair.template_family != "coop" else []


def zero_shot(test: str, where: Arguments, ends: Iterable[str]) -> Iterator[Job]:
    """Zero-shot CLIP, and each of the `ends` that has another template on this data set."""
    yield Job(f"zsclip/{test}", where)
    known = templates(where["DATASET"])
    taken = {known["coop"]}
    for cfg in ends:
        name = yaml_values(f"ZeroshotCLIP/{cfg}")["TRAINER.ZEROSHOT.TEMPLATES"]
        if (prompt := known.get(name, name)) not in taken:
            taken.add(prompt)
            yield Job(f"zsclip/{test}", where | {"CFG": cfg})


@lru_cache
def templates(dataset: str) -> dict[str, str]:
    """ZeroshotCLIP's templates `coop` and `dataset` on a data set of configs/datasets. UserError: it has no reader."""
    node = read_yaml(ROOT / "configs" / "datasets" / f"{dataset}.yaml")["DATASET"]
    check_availability(node["NAME"], DATASET_REGISTRY, "DATASET.NAME")
    usual = getattr(DATASET_REGISTRY.get(node["NAME"]), "templates", {})
    prompts = node.get("CUSTOM", {}).get("PROMPTS")
    anchor = prompts[0] if prompts else usual.get("kgcoop", "a photo of a {}.")
    return {"coop": anchor if prompts else usual.get("coop", anchor), "dataset": anchor}


def base2new(pair: MethodPair, where: Arguments, presets: Iterable[str], protocol: str) -> Iterator[Job]:
    """Zero-shot, what teaches stage 1, stage 1, its average with CLIP, and each preset of stage 2: both halves."""
    for what in TESTS:
        yield from zero_shot(what, where, [*ends_of(pair), WORDS] if pair.has_zero_shot else [])
    first = scripts_of(pair.stage1)
    averages = [name for what in TESTS if (name := f"{first}_average/{what}") in COMMANDS]
    # an average is of class vectors; that of weights is WiSE-FT at alpha 0.5
    merges = (*([] if averages else ["average"]), "ties", "dare") if pair.has_zero_shot else ()
    teacher = [(pair.taught_by, where)] if pair.taught_by else []
    for trainer, arguments in (*teacher, *stages(pair, "base2new_train", where, presets)):
        named = TRAININGS[trainer].named
        yield Job(named("base2new_train"), arguments, card=trainer == pair.stage2)
        yield from (Job(named(what), arguments) for what in TESTS)
        if trainer == pair.stage1:
            yield from (Job(name, where) for name in averages)
            yield from (Job("merge/base2new", where | {"METHOD": merge, "STAGE1": first}) for merge in merges)
        elif trainer == pair.stage2:
            values = yaml_values(TRAININGS[trainer].config.format(**arguments))
            if (values.get("PRESET"), values.get("TEST.FINAL_MODEL")) == ("released", "best_val"):
                yield from (Job(named(what), arguments | {"LOADEP": "last"}) for what in TESTS)


def transfer(pair: MethodPair, where: Arguments, presets: Iterable[str], protocol: str) -> Iterator[Job]:
    """A model of the data set, the source, on it and on each target."""
    test, places = TRANSFER[protocol], on_targets(where, protocol)
    for place in places:
        yield from zero_shot(test, place, ends_of(pair))
    for trainer, arguments in stages(pair, "xd_train", where, presets):
        yield Job(TRAININGS[trainer].named("xd_train"), arguments)
        yield from (Job(TRAININGS[trainer].named(test), arguments | place) for place in places)
    if (average := f"{scripts_of(pair.stage1)}_average/{test}") in COMMANDS:
        yield from (Job(average, place) for place in places)


def fewshot(pair: MethodPair, where: Arguments, presets: Iterable[str], protocol: str) -> Iterator[Job]:
    """The few-shot curve."""
    yield from zero_shot("fewshot_test", where, ends_of(pair))
    for trainer, arguments in stages(pair, "fewshot_train", where, presets):
        for shots, what in itertools.product(SHOTS, ("fewshot_train", "fewshot_test")):
            yield Job(TRAININGS[trainer].named(what), arguments | {"SHOTS": shots})


def robust(pair: MethodPair, where: Arguments, presets: Iterable[str], protocol: str) -> Iterator[Job]:
    """Robust fine-tuning: the source's own test and its shifted ones."""
    places, anchor = on_targets(where, protocol), of_toy(ANCHOR, "vit_b16_imagenet")(where)
    for place in places:
        yield from zero_shot("robust_test", place, [anchor])
    for trainer, arguments in stages(pair, "train", where, presets):
        named = TRAININGS[trainer].named
        yield Job(named("train"), arguments)
        yield from (Job(named("test"), arguments | place) for place in places)
        for kind in ("weight", "output") if trainer == pair.stage1 else ("weight",):
            yield Job(f"robust/{kind}_ensemble", arguments | {"METHOD": scripts_of(trainer)})


PLANS = {"base2new": base2new, "cross": transfer, "dg": transfer, "fewshot": fewshot, "robust": robust}
PROTOCOLS = tuple(PLANS)


def stream(protocol: str, tuning: str, order: str, seed: int, pairs: Iterable[str] = (), flags: str = "") -> list[Job]:
    """ConDU: a stream, its evaluation with the task known, and without. Toy orders have recipes of their own.

    pairs: KEY VALUE of each.
    """
    script = f"{STREAMS[protocol]}_{tuning}"
    arguments = {"CFG": f"toy_{tuning.lower()}" if order.startswith("toy") else TRAINING[script]}
    arguments |= {"ORDER": order, "SEED": str(seed), "FLAGS": flags}
    names = [f"condu/{name}" for name in (script, f"eval_MTIL_{tuning}", f"eval_agnostic_MTIL_{tuning}")]
    pairs = tuple(checked_pairs(list(pairs)))
    return [Job(name, COMMANDS[name].complete(arguments), pairs) for name in names]


def toy_sets() -> list[str]:
    """The built-in benchmark's data sets."""
    return [toy.folder for toy in WORLD.values() if toy.base_to_new]


def sources(protocol: str) -> list[str]:
    """The built-in data sets that a protocol's cells are made of."""
    return toy_sets() if protocol in ("base2new", "fewshot") else ["toy_objects"]


def targets(protocol: str, source: str) -> list[str]:
    """What a model of the source is tested on, beside the source."""
    if protocol == "cross":
        return [name for name in (toy_sets() if source.startswith("toy_") else PUBLIC) if name != source]
    return [name for name in shifts(source) if protocol == "robust" or name != "objectnet"]


def on_targets(where: Arguments, protocol: str) -> list[Arguments]:
    """The cell's own data set as SOURCE, tested on itself and on each target."""
    source = where["DATASET"]
    return [where | {"SOURCE": source, "DATASET": name} for name in (source, *targets(protocol, source))]


def pair_jobs(
    name: str, protocol: str, dataset: str, seed: int, pairs: Iterable[str] = (), presets: Sequence[str] = ()
) -> list[Job]:
    """All jobs of one pair, protocol, data set (the source, where there is one) and seed.

    pairs: KEY VALUE of each; presets: of stage 2, default all.
    """
    pair = find_pair(name, protocol)
    add_pair(pair)
    jobs = with_keys(PLANS[protocol](pair, {"DATASET": dataset, "SEED": str(seed)}, presets, protocol), pairs)
    # the last epoch is tested anyway where it is the model
    return [job for job in jobs if "last_step" not in job.pairs or "LOADEP" not in job.arguments]


def with_keys(jobs: Iterable[Job], words: Iterable[str]) -> list[Job]:
    """Whole jobs, with these KEY VALUE words for every run; their folders say the keys that folders name.

    UserError: a key that a script or the protocol says itself.
    """
    pairs, whole = checked_pairs(list(words)), []
    for job in jobs:
        command = job.declared
        arguments, rest = follow(command, job.arguments, pairs, builds_on(command, job.arguments))
        more = () if command.module else tuple(rest)
        whole.append(replace(job, arguments=command.complete(arguments), pairs=job.pairs + more))
    if len({job.folder for job in whole}) < len(whole):
        keys = ", ".join(pairs[::2])
        raise UserError(f"{keys}: the runs of this protocol differ in it; leave it out, or choose another protocol")
    return whole
