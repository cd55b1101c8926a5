"""Config files: inheritance, the final section, types, and errors that name the nearest key."""

import re

import pytest

import train
from dassl.config import aliased, clean_cfg, dump_yaml, get_cfg_default, merge_pairs, merge_tree, merge_yaml
from dassl.utils import UserError, read_json
from tests.conftest import ROOT


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


def test_a_dumped_tree_is_the_text_of_yacs_and_reads_back(cfg):
    cfg.OPTIM.LR, cfg.INPUT.SIZE = 1e-12, (7, 8)
    assert dump_yaml(cfg) == cfg.dump()
    cfg.DATASET.ROOT = 'a: "b" \u00e9\u2028 ' + 30 * "long "
    assert cfg.load_cfg(dump_yaml(cfg)) == cfg.load_cfg(cfg.dump())


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


# texts, as they are typed

TYPED = ["2026_11_28", "1e5", "1.10", "010", "yes", "no", "on", "null", "~x", "2026-11-28", "0x1F", "12:30", "True"]


@pytest.mark.parametrize("text", TYPED)
def test_a_text_stays_as_it_is_typed(cfg, tmp_path, text):
    name = "DATASET.CUSTOM.TASK"
    ways = {
        "pair": lambda: merge_pairs(cfg, [name, text]),
        "joined": lambda: merge_pairs(cfg, ["SEED=1", f"{name}={text}", "SEED", "2"]),
        "plain": lambda: merge_yaml(cfg, write(tmp_path, "p.yaml", f"DATASET: {{CUSTOM: {{TASK: {text}}}}}")),
        "lines": lambda: merge_yaml(cfg, write(tmp_path, "l.yaml", f"DATASET:\n  CUSTOM:\n    TASK: {text}  # so")),
        "quoted": lambda: merge_yaml(cfg, write(tmp_path, "q.yaml", f"DATASET: {{CUSTOM: {{TASK: '{text}'}}}}")),
    }
    for way, merge in ways.items():
        cfg.DATASET.CUSTOM.TASK = "before"
        merge()
        assert text == cfg.DATASET.CUSTOM.TASK, way
    if not text.startswith("~"):
        words = ["--output-dir", text, "--trainer", text, f"--head={text}", "--source-domains", text, text]
        merge_tree(cfg, train.flags(train.build_parser().parse_args(words)), "flags")
        assert (cfg.OUTPUT_DIR, cfg.TRAINER.NAME, cfg.MODEL.HEAD.NAME, *cfg.DATASET.SOURCE_DOMAINS) == (text,) * 5


def test_items_of_a_list_of_texts_stay_as_they_are_typed(cfg, tmp_path):
    key, texts = "DATASET.SOURCE_DOMAINS", ("010", "1e5", "no", "a b", "2026-11-28")
    for typed in ("[010, 1e5, no, 'a b', 2026-11-28]", "(010, '1e5', no, a b, \"2026-11-28\")", str(texts)):
        merge_pairs(cfg, [key, typed])
        assert texts == cfg.DATASET.SOURCE_DOMAINS
    merge_pairs(cfg, [key, "['a, b', c]"])
    assert cfg.DATASET.SOURCE_DOMAINS == ("a, b", "c")
    merge_yaml(cfg, write(tmp_path, "x.yaml", "DATASET:\n  SOURCE_DOMAINS: [010, 1e5, no, a b, 2026-11-28]"))
    assert texts == cfg.DATASET.SOURCE_DOMAINS


def test_a_number_is_what_python_reads(cfg, tmp_path):
    merge_yaml(cfg, write(tmp_path, "x.yaml", "OPTIM: {LR: 1e-5, STEPSIZE: [2, '3'], GAMMA: .5, MAX_EPOCH: 1_0}"))
    assert (cfg.OPTIM.LR, cfg.OPTIM.STEPSIZE, cfg.OPTIM.GAMMA, cfg.OPTIM.MAX_EPOCH) == (1e-5, (2, 3), 0.5, 10)
    for text in ("010", "0:30", "null", "yes", "2026-11-28", ".inf", "[1]"):  # 8 and 30 to yaml
        with pytest.raises(UserError, match=r"x.yaml: DATASET.NUM_SHOTS = "):
            merge_yaml(cfg, write(tmp_path, "x.yaml", f"DATASET: {{NUM_SHOTS: {text}}}"))
    assert cfg.DATASET.NUM_SHOTS == -1


def test_key_value_pairs_may_be_joined(cfg):
    merge_pairs(cfg, ["OPTIM.LR=-0.0", "SEED", "3", "DATASET.CUSTOM.TASK=a=b", "INPUT.SIZE=(8, 8)", "PRESET="])
    assert (cfg.OPTIM.LR, cfg.SEED, cfg.INPUT.SIZE, cfg.PRESET) == (0.0, 3, (8, 8), "")
    assert cfg.DATASET.CUSTOM.TASK == "a=b"
    with pytest.raises(UserError, match="OPTIM.LR has no value"):
        merge_pairs(cfg, ["SEED=1", "OPTIM.LR"])


def test_a_tilde_is_expanded_in_paths_alone(cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    merge_pairs(cfg, ["OUTPUT_DIR=~/out", "DATASET.CUSTOM.TASK", "~/x", "FEATURES.DIR", "~"])
    merge_yaml(cfg, write(tmp_path, "x.yaml", "MODEL: {BACKBONE: {PATH: ~/clip}}\nDATASET: {ROOT: ~}"))
    assert (cfg.OUTPUT_DIR, cfg.FEATURES.DIR, cfg.MODEL.BACKBONE.PATH) == ("/home/me/out", "/home/me", "/home/me/clip")
    assert (cfg.DATASET.ROOT, cfg.DATASET.CUSTOM.TASK) == ("/home/me", "~/x")
    with pytest.raises(UserError, match="no home folder of ~nobody-here"):
        merge_pairs(cfg, ["OUTPUT_DIR", "~nobody-here/out"])
    args = train.build_parser().parse_args(["--root=~/d", "--model-dir", "~/run"])
    assert (train.flags(args)["DATASET.ROOT"], args.model_dir) == ("/home/me/d", "/home/me/run")


# things that stand twice


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("OPTIM:\n  LR: 1\nSEED: 1\nOPTIM:\n  GAMMA: 2", "OPTIM stands twice, in lines 1 and 4"),
        ("OPTIM:\n  LR: 1\n  LR: 1", "LR stands twice, in lines 2 and 3"),
        ("SEED: 1\n'SEED': 1", "SEED stands twice, in lines 1 and 2"),
        ("OPTIM: {LR: 1, LR: 2}", "LR stands twice, in lines 1 and 1"),
        ("OPTIM: {LR: 1}\nOPTIM.LR: 2", "OPTIM.LR stands twice"),
        ("_FINAL_:\n  SEED: 1\n  SEED: 2", "SEED stands twice, in lines 2 and 3"),
    ],
)
def test_a_key_or_section_that_stands_twice_is_refused(cfg, tmp_path, text, match):
    for name in ("x.yaml", "top.yaml"):
        write(tmp_path, "x.yaml", text)
        write(tmp_path, "top.yaml", text if name == "x.yaml" else "_BASE_: x.yaml")
        with pytest.raises(UserError, match=match):
            merge_tree(cfg, merge_yaml(cfg, tmp_path / name), name)


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 3}', '[{"x": {"a": 1, "a": 1}}]'])
def test_a_name_twice_in_json_is_refused(tmp_path, text):
    with pytest.raises(UserError, match='names.json.*"a" stands twice'):
        read_json(write(tmp_path, "names.json", text))


# train.py's words


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--lr", "0.1"], r"unknown flag --lr; nearest: OPTIM\.LR"),
        (["--optim.lr", "0.1"], r"unknown flag --optim\.lr; nearest: OPTIM\.LR"),
        (["--outputdir=x"], "unknown flag --outputdir; nearest: .*--output-dir"),
        (["--n_ctx", "4"], r"nearest: TRAINER\.COOP\.N_CTX"),
        (["--output-dir", "~nobody-here/x"], "no home folder of ~nobody-here"),
        (["--seed", "one"], "--seed: invalid int value"),
    ],
)
def test_words_that_train_does_not_know_are_one_line(words, match, capsys):
    with pytest.raises(SystemExit) as ended:
        train.build_parser().parse_intermixed_args(words)
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.count("\n") == 1
    assert re.search(match, line)


@pytest.mark.parametrize("number", ["-1e-3", "-.5", "-1", "-1_000", "-inf", "-nan", "-1.5E+3"])
def test_a_negative_number_is_a_value(number):
    args = train.build_parser().parse_intermixed_args(["--root", "d", "OPTIM.LR", number, "--head", "mlp", "SEED", "1"])
    assert args.opts == ["OPTIM.LR", number, "SEED", "1"]


METHOD, DATA = "configs/trainers/CoOp/vit_b16_ep100_ctxv1.yaml", "configs/datasets/toy_shapes.yaml"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--config-file", DATA, "--dataset-config-file", METHOD, "--output-dir", "x"], "are they swapped"),
        (["--config-file", METHOD, "--dataset-config-file", DATA], "--output-dir names"),
        (["--config-file", METHOD, "--dataset-config-file", DATA, "--output-dir", "x", "SEED", "None"], "SEED = None"),
    ],
)
def test_a_command_line_that_cannot_be_meant_makes_nothing(words, match, tmp_path, monkeypatch):
    words = [str(ROOT / word) if word in (METHOD, DATA) else word for word in words]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=match):
        train.main(["--root", "data", "--trainer", "CoOp", *words])
    assert not any(tmp_path.iterdir())
