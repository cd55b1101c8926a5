"""Every config key has a type and a range, and docs/config.md says them; others' have their default's type."""

import contextlib
import math

import pytest
from yacs.config import CfgNode as CN

from dassl.config import KEYS, Key, get_cfg_default, leaves, merge_pairs, merge_yaml
from dassl.engine import TRAINER_REGISTRY, TrainerX, add_trainer_nodes
from dassl.engine.build import checked_class, config_nodes, trainer_keys
from dassl.engine.launch import run
from dassl.optim.optimizer import AVAI_OPTIMS
from dassl.utils import UserError
from scripts import config_docs
from tests.fixtures.dassl_style_world import root, style_config  # noqa: F401

ALL = {name: key for keys in config_docs.sections().values() for name, key in keys.items()}
OURS = [TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()]
OURS = [cls for cls in OURS if cls.__module__.startswith(("mergetune.", "condu.", "dassl."))]
BAD = {
    "SEED": [2**32, 1.5],
    "INPUT.SIZE": [(224,), (0, 224), (224, 224, 3), (224, "x")],
    "INPUT.PIXEL_MEAN": [[0.5, 0.5], [0.5, 0.5, -0.1], [0.5, 0.5, "x"]],
    "INPUT.PIXEL_STD": [[1.0, 1.0, 0.0], [1.0] * 4],
    "INPUT.RRCROP_SCALE": [(1.0, 0.1), (0.5,), (-0.1, 1.0)],
    "INPUT.GB_K": [4, -1],
    "INPUT.INTERPOLATION": ["cubic", 3],
    "INPUT.TRANSFORMS": [("normalise",), (1,), "normalize"],
    "DATASET.SUBSAMPLE_CLASSES": ["bas"],
    "DATALOADER.TRAIN_X.N_INS": [0],
    "DATALOADER.K_TRANSFORMS": [0],
    "DATALOADER.TEST.SAMPLER": ["Random"],
    "DATALOADER.TRAIN_X.BATCH_SIZE": [0, 8.0],
    "OPTIM.LR": [math.inf, math.nan, -1e-3, True],
    "OPTIM.STEPSIZE": [(), (1.5,), ("1",)],
    "OPTIM.ADAM_BETA2": [1.0],
    "TRAIN.PRINT_FREQ": [0],
    "TRAIN.COUNT_ITER": ["train"],
    "TEST.FINAL_MODEL": ["best"],
    "TEST.EVALUATOR": ["Classify"],
    "TRAINER.MODAL": ["base2new"],
    "TRAINER.COOP.PREC": ["fp8"],
    "TRAINER.LMC.BETA": [-1.0],
    "TRAINER.CONDU.LR_OF": [[1.0]],
    "TRAINER.CONDU.VOTE.WEIGHTING": ["mean"],
}
# values that mean "all" or "none" in Dassl, and ones that a yaml of others has
GOOD = [
    *("DATASET.NUM_SHOTS 0", "DATASET.NUM_SHOTS -1", "DATASET.NUM_LABELED -1", "SEED -5", "OPTIM.STEPSIZE (-1,)"),
    *("OPTIM.STEPSIZE [10,20]", "OPTIM.WARMUP_EPOCH -1", "TRAIN.CHECKPOINT_FREQ -1", "OPTIM.MAX_EPOCH 0", "OPTIM.LR 1"),
    *("DATALOADER.TRAIN_X.N_DOMAIN -1", "OPTIM.SGD_DAMPNING 0.1", "INPUT.PIXEL_MEAN (0,0,0)", "OPTIM.WEIGHT_DECAY 0"),
    *("DATALOADER.NUM_WORKERS 0", "MODEL.HEAD.HIDDEN_LAYERS (64,32)", "OPTIM.LR 1e-5", "INPUT.SIZE [32,48]"),
    *("TRAINER.COOP.CTX_INIT True", "TRAINER.COOP.CTX_INIT a_photo_of_a", "OPTIM.NEW_LAYERS ['classifier']"),
]


@pytest.fixture
def cfg():
    cfg = get_cfg_default()
    add_trainer_nodes(cfg)
    return cfg


@pytest.mark.parametrize("name", ALL)
def test_a_key_takes_its_default_and_neither_none_nor_what_lies_beyond_its_range(name):
    key = ALL[name]
    assert key.meaning
    key.check(name, key.default)
    size = key.length or 1
    numbers = {float: [math.inf, math.nan], int: [2**70, 0.5]}.get(key.scalar if key.also is not float else float, [])
    for end, step in ((key.ge, -1), (key.le, 1), (key.gt, 0), (key.lt, 0)):
        numbers += [] if end is None else [key.scalar(end + step)]
    for value in [None, {}, *((number,) * size if key.is_sequence else number for number in numbers)]:
        with pytest.raises(UserError, match=rf"^{name} = .*expected "):
            key.check(name, value)
    if key.choices:
        with pytest.raises(UserError, match=rf"{name} is expected to belong to \["):
            key.check(name, ("no such",) if key.is_sequence else "no such")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_wrong_types_items_ranges_and_names_are_refused(name, value):
    with pytest.raises(UserError, match=rf"^{name} (= |is expected to belong to)"):
        ALL[name].check(name, value)


@pytest.mark.parametrize("pair", GOOD)
def test_what_dassl_takes_is_taken(cfg, pair):
    merge_pairs(cfg, pair.split())


@pytest.mark.parametrize("bounds, limits", [({}, ""), ({"gt": 0}, ", above 0")])
def test_a_test_without_a_docstring_refuses_in_one_error(bounds, limits):
    with pytest.raises(UserError, match=rf"^A.B = 3, expected int{limits} \(default 2\)$"):
        Key(2, "even", test=lambda value: value % 2 == 0, **bounds).check("A.B", 3)


def test_every_key_of_our_trainers_is_declared():
    for cls in OURS:
        cfg = get_cfg_default()
        cfg.TRAINER = CN({"NAME": cls.__name__})
        with contextlib.suppress(UserError):  # FixMatch and ConDU need more than their defaults
            checked_class(cfg)
        nodes = tuple(f"TRAINER.{node}." for node, _ in config_nodes(cls))
        declared = {name for name in trainer_keys(cls) | KEYS if name.startswith(nodes)} if nodes else set()
        assert {name for name, _ in leaves(cfg.TRAINER, "TRAINER.")} == declared | {"TRAINER.NAME", "TRAINER.MODAL"}


def test_every_script_of_ours_names_a_protocol_that_the_key_takes():
    from scripts.commands import COMMANDS

    assert {command.protocol for command in COMMANDS.values()} <= set(KEYS["TRAINER.MODAL"].choices)


def test_the_page_is_the_tables():
    assert config_docs.PAGE.read_text(encoding="utf-8") == config_docs.render()


# a config that Python made


@pytest.mark.parametrize(
    ("key", "value"), [("TRAIN__PRINT_FREQ", 0), ("OPTIM__LR", math.nan), ("INPUT__PIXEL_STD", [1.0, 0.0, 1.0])]
)
def test_a_run_makes_nothing_of_a_bad_config(root, tmp_path, key, value):  # noqa: F811
    cfg = style_config(root, tmp_path / "run", "ShortLosses", **{key: value})
    with pytest.raises(UserError, match=key.replace("__", r"\.")):
        run(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("trainer", "pairs", "match"),
    [
        ("CoOp_LMC", "TRAINER.LMC.SPACE weights TRAINER.LMC.DISTANCE cosine", "TRAINER.LMC.DISTANCE is 'cosine'"),
        ("ConDU", "OPTIM.LR_SCHEDULER cosine", "OPTIM.LR_SCHEDULER is expected to belong to"),
        ("FixMatch", "SEED 1", "STRONG_TRANSFORMS is empty"),
    ],
)
def test_values_that_do_not_go_together_make_nothing(cfg, tmp_path, trainer, pairs, match):
    merge_pairs(cfg, ["TRAINER.NAME", trainer, "OUTPUT_DIR", str(tmp_path / "run"), *pairs.split()])
    with pytest.raises(UserError, match=match):
        run(cfg)
    assert not (tmp_path / "run").exists()


def test_names_that_others_register_or_read_themselves_are_taken(root, tmp_path, monkeypatch):  # noqa: F811
    cfg = style_config(root, tmp_path, "Vanilla", OPTIM__NAME="lion")
    with pytest.raises(UserError, match="OPTIM.NAME is expected to belong to"):
        checked_class(cfg)
    monkeypatch.setattr("dassl.optim.optimizer.AVAI_OPTIMS", [*AVAI_OPTIMS, "lion"])
    checked_class(cfg)
    monkeypatch.undo()
    cfg.TRAINER.NAME = "StylePrompt"  # written for Dassl: it may build its own
    checked_class(cfg)


def test_a_trainer_with_a_plain_default_config_has_the_types_of_its_defaults(monkeypatch, tmp_path):
    class Plain(TrainerX):
        CONFIG = "PLAIN"

        @classmethod
        def default_config(cls):
            numbers = {"RATIO": 0.2, "DEPTH": 2, "MAYBE": None, "RATES": [0.1], "PAIRS": [[1]]}
            return CN(numbers | {"NAMES": ["a"], "CTX_INIT": "a photo"})

    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", {"Plain": Plain})
    cfg = get_cfg_default()
    add_trainer_nodes(cfg)
    merge_pairs(cfg, ["TRAINER.PLAIN.RATIO", "1", "TRAINER.PLAIN.NAMES", "[010,b]", "TRAINER.PLAIN.MAYBE", "3"])
    merge_pairs(cfg, ["TRAINER.PLAIN.RATES", "[1,2.5]", "TRAINER.PLAIN.DEPTH", "-7", "TRAINER.PLAIN.CTX_INIT", "False"])
    (tmp_path / "x.yaml").write_text("TRAINER: {PLAIN: {PAIRS: [[1, 1e5], [no, .5]]}}")
    merge_yaml(cfg, tmp_path / "x.yaml")
    node = {"RATIO": 1.0, "DEPTH": -7, "MAYBE": 3, "RATES": [1.0, 2.5], "PAIRS": [[1, "1e5"], [False, 0.5]]}
    node |= {"NAMES": ["010", "b"], "CTX_INIT": False}
    assert node == cfg.TRAINER.PLAIN
    for pair in ("RATIO None", "DEPTH 1.5", "NAMES a", "RATIO fast"):
        with pytest.raises(UserError, match=f"TRAINER.PLAIN.{pair.split()[0]} = "):
            merge_pairs(cfg, f"TRAINER.PLAIN.{pair}".split())
    assert node == CN.load_cfg(cfg.dump()).TRAINER.PLAIN
