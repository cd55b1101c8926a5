"""Config files: inheritance, the final section, types, and errors that name the nearest key."""

import pytest

from dassl.config import KEYS, aliased, clean_cfg, get_cfg_default, merge_pairs, merge_tree, merge_yaml
from dassl.utils import UserError


@pytest.fixture
def cfg():
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = type(cfg)({"N_CTX": 16, "CTX_INIT": False, "W": None})
    return cfg


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_each_call_gives_a_fresh_unfrozen_tree():
    one = get_cfg_default()
    one.OPTIM.LR = 5.0
    assert get_cfg_default().OPTIM.LR == 0.0003
    assert not get_cfg_default().is_frozen()


def test_bases_are_read_first_and_in_order(cfg, tmp_path):
    write(tmp_path, "a.yaml", "OPTIM: {LR: 0.1, MAX_EPOCH: 5}")
    write(tmp_path, "b.yaml", "_BASE_: a.yaml\nOPTIM: {LR: 0.2}")
    write(tmp_path, "c.yaml", "SEED: 7")
    top = write(tmp_path, "top.yaml", "_BASE_: [b.yaml, c.yaml]\nOPTIM: {MOMENTUM: 0.5}")
    merge_yaml(cfg, top)
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.SEED, cfg.OPTIM.MOMENTUM) == (0.2, 5, 7, 0.5)


def test_final_section_is_returned_not_applied(cfg, tmp_path):
    final = merge_yaml(cfg, write(tmp_path, "d.yaml", "DATASET: {NAME: X}\n_FINAL_: {OPTIM: {LR: 0.7}}"))
    assert cfg.DATASET.NAME == "X"
    assert cfg.OPTIM.LR == 0.0003
    merge_tree(cfg, final, "d.yaml")
    assert cfg.OPTIM.LR == 0.7


def test_a_file_that_is_its_own_base_is_refused(cfg, tmp_path):
    write(tmp_path, "a.yaml", "_BASE_: b.yaml")
    with pytest.raises(UserError, match="its own _BASE_"):
        merge_yaml(cfg, write(tmp_path, "b.yaml", "_BASE_: a.yaml"))


def test_python_file_is_refused_without_running_it(cfg, tmp_path):
    evidence = tmp_path / "ran"
    script = write(tmp_path, "cfg.py", f"open({str(evidence)!r}, 'w').close()\ncfg = {{}}")
    with pytest.raises(UserError, match="expected a .yaml"):
        merge_yaml(cfg, script)
    assert not evidence.exists()


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "!!python/object/apply:os.getcwd []"])
def test_broken_yaml_is_one_error_naming_the_file(cfg, tmp_path, text):
    with pytest.raises(UserError, match="broken.yaml"):
        merge_yaml(cfg, write(tmp_path, "broken.yaml", text))


def test_missing_file_names_the_nearest(cfg, tmp_path):
    write(tmp_path, "vit_b16_ep50.yaml", "")
    with pytest.raises(FileNotFoundError, match="vit_b16_ep50.yaml"):
        merge_yaml(cfg, tmp_path / "vit_b16_ep5.yaml")


def test_unknown_key_names_the_nearest_and_the_available(cfg, tmp_path):
    with pytest.raises(UserError, match=r"OPTIM\.LRR.*nearest: OPTIM\.LR.*MAX_EPOCH"):
        merge_yaml(cfg, write(tmp_path, "x.yaml", "OPTIM: {LRR: 1.0}"))
    with pytest.raises(UserError, match=r"TRAINER\.COOP\.NCTX.*TRAINER\.COOP\.N_CTX"):
        merge_pairs(cfg, ["TRAINER.COOP.NCTX", "4"])


def test_types_are_held_and_literals_decoded(cfg):
    merge_pairs(cfg, ["INPUT.SIZE", "(32, 32)", "OPTIM.LR", "1", "OPTIM.WARMUP_CONS_LR", "1e-5"])
    assert cfg.INPUT.SIZE == (32, 32)
    assert cfg.OPTIM.LR == 1.0
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-5
    merge_pairs(cfg, ["INPUT.TRANSFORMS", ["normalize"], "DATASET.NAME", "123"])
    assert cfg.INPUT.TRANSFORMS == ("normalize",)
    assert cfg.DATASET.NAME == "123"
    with pytest.raises(UserError, match=r"OPTIM\.MAX_EPOCH = 1\.5.*expected int"):
        merge_pairs(cfg, ["OPTIM.MAX_EPOCH", "1.5"])
    with pytest.raises(UserError, match="is a group of keys"):
        merge_pairs(cfg, ["OPTIM", "1"])
    with pytest.raises(UserError, match="SEED has no value"):
        merge_pairs(cfg, ["SEED"])


@pytest.mark.parametrize(
    ("text", "value"), [("True", True), ("False", False), ("a photo of a", "a photo of a"), ("", "")]
)
def test_ctx_init_takes_a_bool_or_any_string(cfg, text, value):
    merge_pairs(cfg, ["TRAINER.COOP.CTX_INIT", "words"])
    merge_pairs(cfg, ["TRAINER.COOP.CTX_INIT", text])
    assert value == cfg.TRAINER.COOP.CTX_INIT
    assert type(cfg.TRAINER.COOP.CTX_INIT) is type(value)


def test_old_names_set_new_keys_layer_by_layer(cfg, tmp_path):
    cfg.TRAINER.LMC = type(cfg)({"LAMBDA": 10.0})
    aliases = {"TRAINER.COOP.W": "TRAINER.LMC.LAMBDA"}
    merge_yaml(cfg, write(tmp_path, "new.yaml", "TRAINER: {LMC: {LAMBDA: 4.0}}"), aliases)
    merge_pairs(cfg, ["TRAINER.COOP.W", "8.0"], aliases)  # a later layer wins over an earlier one
    assert cfg.TRAINER.LMC.LAMBDA == 8.0
    same = [("TRAINER.COOP.W", 8.0), ("TRAINER.LMC.LAMBDA", 8.0)]
    assert aliased(same, aliases, "x") == [("TRAINER.LMC.LAMBDA", 8.0)]
    with pytest.raises(UserError, match="TRAINER.COOP.W = 8.0 and TRAINER.LMC.LAMBDA = 9.0"):
        merge_pairs(cfg, ["TRAINER.COOP.W", "8.0", "TRAINER.LMC.LAMBDA", "9.0"], aliases)


def test_clean_cfg_keeps_the_trainers_own_node():
    cfg = get_cfg_default()
    clean_cfg(cfg, "FixMatch")
    assert set(cfg.TRAINER) == {"NAME", "FIXMATCH"}


def test_every_script_of_ours_names_a_protocol_that_the_key_takes():
    from scripts.commands import COMMANDS

    assert {command.protocol for command in COMMANDS.values()} <= set(KEYS["TRAINER.MODAL"].choices)
