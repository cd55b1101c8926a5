"""Readers of text: yaml, KEY VALUE pairs, split files, manifests, subsets, official lists, records.json, logs."""

import contextlib
import importlib.util
import io
import json
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace

import yaml
from yacs.config import CfgNode

from dassl.config import get_cfg_default, leaves, merge, merge_pairs, merge_tree, merge_yaml
from dassl.report import records
from dassl.report.protocols import base2new, fewshot
from dassl.utils import UserError, tools
from datasets import base, custom, mtil, readers
from tests.fuzz.lines import relative
from tests.fuzz.mutate import NAMES, octets, similar, tree, value
from tests.fuzz.oracle import ROOT, Files, Target

IMAGES = ("a.jpg", "b.jpg", "c/d.jpg", "c/e.jpg", "image_00001.jpg", "image_00002.jpg", "Pug_1.jpg", "Pug_2.jpg")
PARSER = "Dassl.ProGrad.pytorch/tools/parse_test_res.py"
TOOLS = relative(tools)


def images(work: Path) -> None:
    """The images that lists may name, all empty."""
    for name in IMAGES:
        path = work / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def picked(folder: Path) -> str:
    return str(folder.parent / "images")


def as_json(rng: Random, root, rounds=(0, 1, 1, 2, 4)) -> bytes:
    """JSON text of a tree with some places changed."""
    for _ in range(rng.choice(rounds)):
        root = tree(rng, root)
    try:
        return json.dumps(root).encode()
    except RecursionError:
        return b'[{"a":' * 20_000


# configs

YAML = [
    "a: &a [x, x]\nb: &b [*a, *a]\n" + "".join(f"c{i}: &c{i} {{l: *{'b' if not i else f'c{i - 1}'}, r: *{'b' if not i else f'c{i - 1}'}}}\n" for i in range(40)),  # noqa: E501
    "OPTIM: &o\n  LR: *o\n", "OPTIM: &o {LR: 1, x: *o}", "&a [*a]", "? [1]\n: 2", "[" * 3000, "{a: " * 3000,
    "OPTIM: {LR: !!int x}", "OPTIM: {LR: !!timestamp x}", "OPTIM: {LR: !!bool x}", "OPTIM: {LR: !!float x}",
    "OPTIM: {LR: 2001-99-99}", "OPTIM: {LR: 1:99:99.9}", "OPTIM: {MAX_EPOCH: " + "9" * 5000 + "}", "SEED: 0b",
    "OPTIM: {NAME: !!binary x}", "SEED: !!python/name:os.system", "<<: 3", "<<: [{OPTIM: {LR: 1}}]", "1: 2", "1: {2: 3}",  # noqa: E501
    "SEED: !!python/object/apply:os.mkdir [canary]", "_BASE_: own.yaml", "_BASE_: [base.yaml, base.yaml]", "_BASE_: 3",
    '_BASE_: "\\0.yaml"', "_BASE_: .", f"_BASE_: {'a' * 300}.yaml", "_BASE_: /dev/zero.yaml", "_FINAL_: 3", "null: null",  # noqa: E501
    "_FINAL_: {OPTIM: {LR: 1}}", "--- 1\n--- 2", "%YAML 9.9\n---\n", "%TAG ! !\n---", "\ufeffSEED: 1", "SEED: .nan",
    "SEED: 0o", "SEED: 1e400", "OPTIM: !!set {LR}", "OPTIM: !!omap [LR: 1]", "OPTIM: !!pairs [LR: 1]", "...", "\t", "''",  # noqa: E501
]  # fmt: skip


KEYS = {
    "SEED": -1, "USE_CUDA": True, "INPUT": {"SIZE": (224, 224), "PIXEL_MEAN": [0.5, 0.5], "GN_STD": 0.15},
    "OPTIM": {"NAME": "sgd", "LR": 0.002, "MAX_EPOCH": 10, "STEPSIZE": (-1,)}, "TRAINER": {"COOP": {"CTX_INIT": False}},
}  # fmt: skip
ALIASES = {"OPTIM.RATE": "OPTIM.LR"}


@cache
def default_leaves() -> list[tuple[str, object]]:
    return [*leaves(KEYS), ("OPTIM.RATE", 0.1)]


def small_cfg() -> CfgNode:
    """A few keys of every type: a copy of all of the engine's takes longer than what is fuzzed."""
    return CfgNode({key: dict(value) if isinstance(value, dict) else value for key, value in KEYS.items()})


def config_tree(rng: Random) -> dict:
    """A few keys of the engine with values like their defaults."""
    root: dict = {}
    for key, old in rng.sample(default_leaves(), rng.randrange(1, 5)):
        node, *parts = root, *key.split(".")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        new = old if rng.random() < 0.5 else similar(rng, old)
        node[parts[-1]] = list(new) if isinstance(new, tuple) else new
    return root


def yaml_text(rng: Random) -> bytes:
    if rng.random() < 0.15:
        return octets(rng, rng.choice(YAML).encode()) if rng.random() < 0.3 else rng.choice(YAML).encode()
    root = config_tree(rng)
    if rng.random() < 0.2:
        root["_FINAL_"] = config_tree(rng)
    if rng.random() < 0.2:
        root["_BASE_"] = rng.choice(("base.yaml", ["base.yaml"], "own.yaml", "nope.yaml", rng.choice(NAMES)))
    for _ in range(rng.choice((0, 0, 1, 3))):
        root = tree(rng, root)
    try:
        return yaml.safe_dump(root, default_flow_style=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (RecursionError, yaml.YAMLError):
        return ("a: " + "[" * 2000).encode()


def make_yaml(rng: Random) -> Files:
    return {"own.yaml": yaml_text(rng), "base.yaml": yaml_text(rng) if rng.random() < 0.2 else b"SEED: 3"}


def read_config(folder: Path):
    cfg = small_cfg()
    final = merge_yaml(cfg, folder / "own.yaml", ALIASES)
    merge_tree(cfg, final, f"{folder / 'own.yaml'} (_FINAL_)")
    return cfg


def make_pairs(rng: Random) -> Files:
    words = []
    for key, old in rng.sample(default_leaves(), rng.randrange(1, 4)):
        key = key if rng.random() < 0.7 else rng.choice((key.lower(), key + ".X", key.rpartition(".")[0], *NAMES))
        said = rng.choice((str(old), str(similar(rng, old)), str(value(rng)), rng.choice(NAMES), "(" * 300, "[" * 5000,
                           "9" * 5000, "-" * 3000 + "1", "{1: 2, []: 3}", "1 if 1 else 2", "'" * 3, "b'x'", "{*(), []}"))  # fmt: skip  # noqa: E501
        words += [key, said]
    return {"pairs.json": as_json(rng, words, (0, 0, 0, 1))}


def read_pairs(folder: Path):
    """The list is how the harness keeps words, not a file of a reader: what is none is no input."""
    file, words = folder / "pairs.json", None
    if file.is_file() and file.stat().st_size < 1 << 20:
        with contextlib.suppress(ValueError, RecursionError):
            words = json.loads(file.read_bytes())
    if isinstance(words, list):
        merge_pairs(small_cfg(), [word if isinstance(word, str) else "0" for word in words], ALIASES)


# lists of images


def split_tree() -> dict:
    items = [[name, label, f"class {label}"] for label, name in enumerate(IMAGES[:4])]
    return {"train": items, "val": [items[0]], "test": [items[1], items[2]]}


def make_split(rng: Random) -> Files:
    return {"split.json": as_json(rng, split_tree())}


def make_subset(rng: Random) -> Files:
    drawn = {"format": 1, "dataset": "toy", "shots": 4, "seed": 1, "sampler": "coop-1", "split": "abc",
             "train": list(IMAGES[:3]), "val": rng.choice(("none", "test", ["a.jpg"]))}  # fmt: skip
    return {"subset.json": as_json(rng, drawn)}


def read_drawn(folder: Path):
    path = str(folder / "subset.json")
    drawn = base.read_subset(path, "toy", "abc", 4)
    items = [SimpleNamespace(path=name) for name in IMAGES]
    return [base.picked(items, drawn[part], lambda item: item.path, path) for part in ("train", "val")]


RECORDS = [
    {"path": name, "label": f"k{i % 2}", "split": part}
    for i, (name, part) in enumerate(zip(IMAGES, ("train", "test", "val", "train", "test", "train", "test", "train"), strict=True))  # noqa: E501
]  # fmt: skip


def make_manifest(rng: Random) -> Files:
    records = RECORDS if rng.random() < 0.6 else [{"path": r["path"], "label": r["label"]} for r in RECORDS]
    names = {"k0": "cat", "k1": "dog"}
    files = {"names.json": as_json(rng, names, (0, 0, 0, 1, 2))}
    if rng.random() < 0.5:
        return files | {"table.json": as_json(rng, records)}
    lines = [",".join(records[0]), *(",".join(r.values()) for r in records)]
    text = "\n".join(lines).encode()
    return files | {"table.csv": octets(rng, text) if rng.random() < 0.5 else text}


@cache
def manifest_cfg():
    cfg = get_cfg_default()
    cfg.DATASET.NUM_SHOTS = 1
    return cfg


def read_manifest(folder: Path):
    cfg, own = manifest_cfg(), manifest_cfg().DATASET.CUSTOM
    own.PATH = next(
        (
            str(folder / name)
            for name in ("table.csv", "table.json")
            if (folder / name).is_symlink() or (folder / name).exists()
        ),
        str(folder / "table.csv"),
    )  # noqa: E501
    own.IMAGES, own.NAMES = picked(folder), str(folder / "names.json")
    return custom.Manifest(cfg)


LISTS = {
    "labels/train1.txt": b"c/d.jpg\n", "labels/test1.txt": b"c/e.jpg\n",
    "annotations/trainval.txt": b"Pug_1 1 1 1\n", "annotations/test.txt": b"Pug_2 1 1 1\n",
    "meta/train.json": b'{"c": ["c/d"]}', "meta/test.json": b'{"c": ["c/e"]}',
    "variants.txt": b"707\n", **{f"images_variant_{p}.txt": b"a 707\n" for p in ("train", "val", "test")},
    "classnames.txt": b"n01 tench\n", "places.txt": b"/c\n",
}  # fmt: skip


def make_lists(rng: Random) -> Files:
    files = dict(LISTS)
    name = rng.choice(list(files))
    if name.endswith(".json"):
        files[name] = as_json(rng, json.loads(files[name]))
    elif rng.random() < 0.7:
        files[name] = octets(rng, files[name])
    return files


def read_lists(folder: Path):
    """All kinds of lists; the first that is refused is what counts, but each is tried."""
    own, images = str(folder), picked(folder)
    kinds = [
        lambda: mtil.texture_lists(own, images),
        lambda: mtil.pet_lists(own, images),
        lambda: mtil.food_lists(own, images),
        lambda: readers.variant_lists(own, images),
        lambda: readers.wordnet_names(f"{own}/classnames.txt"),
        lambda: mtil.place_folders(images, f"{own}/places.txt"),
    ]
    first = None
    for kind in kinds:
        try:
            kind()
        except (ValueError, OSError) as error:
            if not isinstance(error, LISTED.errors):
                raise
            first = first or error
    if first:
        raise first


# results and logs


def result() -> dict:
    return {"format": 1, "kind": "eval", "trainer": "CoOp", "preset": "", "dataset": "toy_a", "protocol": "base2new",
            "subset": "base", "shots": 16, "seed": 1, "metrics": {"accuracy": 50.0}, "backbone": {"name": "tiny"},
            "command": "train.py --eval-only", "data_seen": "16 shots", "merge": {"method": "ties", "values": {"lambda": 1}},  # noqa: E501
            "alpha": 0.5, "alpha_chosen_on": "val"}  # fmt: skip


def make_results(rng: Random) -> Files:
    return {f"{i}/results.json": as_json(rng, result() | {"subset": part}) for i, part in enumerate(("base", "new"))}


def read_results(folder: Path):
    """Files that are no results are left out with a warning; what is taken must do for the tables."""
    runs = records.load_results(folder)
    records.newest_each(runs, lambda r: (r["trainer"], r["dataset"], r["seed"], r["subset"]))
    for report in (base2new.base2new_report, fewshot.fewshot_report):
        with contextlib.suppress(UserError):  # too few runs for this table
            report(runs)


LOG = b"""epoch [50/50] loss 0.1
Finish training
=> result
* total: 100
* correct: 81
* accuracy: 81.1%
* error: 18.9%
* macro_f1: 80.5%
"""


def make_logs(rng: Random) -> Files:
    text = LOG if rng.random() < 0.3 else octets(rng, LOG)
    if rng.random() < 0.3:
        number = rng.choice(
            ("-", "+", ".", "e", "1e", "1e999", "-1e308", "1.2.3", "nan", "inf", "٣", "--1", "E5", "9" * 400)
        )
        text = LOG.replace(b"81.1", number.encode()).replace(b"81.1", octets(rng, b"81.1"))
    files = {"runs/seed1/log.txt": text, "runs/seed2/log.txt": LOG}
    return files | ({"runs/seed1/log.txt-2024": octets(rng, LOG)} if rng.random() < 0.3 else {})


@cache
def parser():
    spec = importlib.util.spec_from_file_location("parse_test_res", ROOT / PARSER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_logs(folder: Path):
    for words in (["--keyword", "accuracy"], ["--test-log", "--ci95"]):
        with contextlib.redirect_stdout(io.StringIO()):
            parser().main([str(folder / "runs"), *words])


SPLIT = Target("split", make_split, lambda folder: readers.split_json(str(folder / "split.json"), picked(folder)),
               (relative(readers), TOOLS), prepare=images)  # fmt: skip
LISTED = Target("lists", make_lists, read_lists, (relative(mtil), relative(readers)), prepare=images)
TEXTS = [
    Target("yaml", make_yaml, read_config, (relative(merge),)),
    Target("pairs", make_pairs, read_pairs, (relative(merge),), ("KEY VALUE",)),
    SPLIT,
    Target("subset", make_subset, read_drawn, (relative(base), TOOLS), prepare=images),
    Target("manifest", make_manifest, read_manifest, (relative(custom), relative(readers), TOOLS), prepare=images),
    LISTED,
    Target("results", make_results, read_results, (relative(records),)),
    Target("logs", make_logs, read_logs, (PARSER,), errors=(SystemExit, OSError)),
]
