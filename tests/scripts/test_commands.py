"""The authors' commands and their kin: arguments, folders and train.py lines, without running any."""

import re
import shlex

import pytest

import train
from condu.orders import tasks_of
from dassl.utils import UserError
from scripts.commands import COMMANDS, stage1_command
from scripts.commands.base2new import kd_weight
from scripts.commands.command import first_arguments, of_source, recipe, source_of
from scripts.condu import toy_stream
from scripts.jobs import Job
from scripts.main_job import build_parser
from scripts.run import main, parse
from tests.conftest import ROOT

LMC = ["10.0", "cosine", "True", "1.0", "1", "vit_b16_ep100_ctxv1"]
PROMPTKD = "vit_b16_c2_ep20_batch8_4+4ctx"
# the authors' command lines and the folders they wrote; where their test looked elsewhere, the training's
WRITES = {
    "coop/base2new_train dtd 1": "output_coop/train_base/dtd/shots_16/CoOp/vit_b16_ep100_ctxv1/seed1",
    "coop/base2new_test dtd 1": "output_coop/evaluate/test_new/dtd/shots_16/CoOp/vit_b16_ep100_ctxv1/seed1",
    "coop/base2base_test dtd 1": "output_coop/evaluate/test_base/dtd/shots_16/CoOp/vit_b16_ep100_ctxv1/seed1",
    f"coop_LMC/base2new_train_coop caltech101 {' '.join(LMC)}": "output_KgCoOp_COOP_LMC/CoOp/train_base/caltech101"
    "/cosine/shots_16_10.0_1.0/KgCoOp_COOP_LMC/vit_b16_ep100_ctxv1/seed1",
    f"coop_LMC/base2base_test_coop caltech101 {' '.join(LMC)}": "output_KgCoOp_COOP_LMC/CoOp/evaluate/test_base"
    "/caltech101/cosine/shots_16_10.0_1.0/KgCoOp_COOP_LMC/vit_b16_ep100_ctxv1/seed1",
    "kgcoop/base2new_train caltech101 8.0 1": "output_KgCoOp/base2new/train_base/caltech101/shots_16_8.0/KgCoOp"
    "/vit_b16_ep100_ctxv1/seed1",
    "kgcoop/base2new_test caltech101 1": "output_KgCoOp/base2new/evaluate/test_new/caltech101/shots_16_8.0/KgCoOp"
    "/vit_b16_ep100_ctxv1/seed1",
    "kgcoop_LMC/base2new_train_kgcoop caltech101 10.0 1.0 1 vit_b16_ep100_ctxv1": "output_KgCoOp_LMC/KgCoOp/train_base"
    "/caltech101/cosine/shots_16_10.0_1.0/KgCoOp_COOP_LMC/vit_b16_ep100_ctxv1/seed1",
    f"kgcoop_LMC/base2new_test_kgcoop caltech101 {' '.join(LMC)}": "output_KgCoOp_LMC/KgCoOp/evaluate/test_new"
    "/caltech101/cosine/shots_16_10.0_1.0/KgCoOp_COOP_LMC/vit_b16_ep100_ctxv1/seed1",
    "mma/base2new_train caltech101 1 vit_b16_ep5": "output_MMA/base2new/train_base/caltech101/shots_16"
    "/MultiModalAdapter/seed1",
    "mma/base2new_test caltech101 1 vit_b16_ep5 5": "output_MMA/base2new/evaluate/test_new/caltech101/shots_16"
    "/MultiModalAdapter/seed1/epoch5",
    "mma_LMC/base2new_test_mma caltech101 10.0 vit_b16_ep5 1 LOADEP=last": "output_MMA_LMC/base2new/evaluate/test_new"
    "/caltech101/shots_16_10.0/MMA_LMC/vit_b16_ep5/seed1/last_epoch",
    "mma_LMC/base2new_train_mma caltech101 10.0 vit_b16_ep5 1": "output_MMA_LMC/base2new/train_base/caltech101"
    "/shots_16_10.0/MMA_LMC/vit_b16_ep5/seed1",
    "promptkd_LMC/base2new_train_promptkd caltech101 1 student 10.0": "output_PromptKD_LMC/base2new/train_base"
    f"/caltech101/shots_0/PromptKD_LMC/100.0_50.0_10_10.0/{PROMPTKD}/seed_1",
    "promptkd_LMC/base2new_test_promptkd dtd 1": "output_PromptKD_LMC/base2new/evaluate/test_new/dtd/shots_0"
    f"/PromptKD_LMC/100.0_50.0_10_200.0/{PROMPTKD}/seed_1",
}
SAMPLES = {
    "DATASET": ("toy_objects", "toy_shapes"),
    "SOURCE": ("toy_letters", "toy_pairs"),
    "SEED": ("1", "2"),
    "SHOTS": ("4", "8"),
    "CFG": ("paper", "continued"),
    "LOADEP": ("3", "4"),
    "LOSS_TYPE": ("cosine", "l2sq"),
    "COOP_LMC": ("True", "False"),
    "STUDENT_DIR": ("/a", "/b"),
    "N": ("5", "10"),
    "ORDER": ("I", "toy_shapes,toy_digits"),
}
CFGS = {
    "MultiModalAdapter": ("vit_b16_ep5", "vit_b16_ep50"),
    "CoOp": ("siglip2_b16_ep100_ctxv1",) * 2,
    "ZeroshotCLIP": ("vit_b16", "vit_b16_photo"),
}
TRAINED_BY_TRAIN_PY = [name for name, command in COMMANDS.items() if not command.module]


def sample(name, form, which=0):
    """Words for a command's arguments."""
    samples = SAMPLES | {"CFG": CFGS.get(COMMANDS[name].trainer, SAMPLES["CFG"])}
    if name == "merge/base2new":
        samples |= {"METHOD": ("ties", "dare"), "STAGE1": ("coop", "mma")}
    elif "CFG" in form:
        samples |= {"METHOD": ("finetune_LMC", "linear_probe_LMC")}
    else:
        samples |= {"METHOD": ("finetune", "linear_probe")}
    return [samples.get(key, ("0.5", "2.0"))[which] for key in form]


@pytest.fixture
def dry(monkeypatch, tmp_path, capsys):
    """`dry(name, *words)` -> the printed command lines of a script, as words."""
    for key, value in {"DRY_RUN": "1", "OUTPUT": str(tmp_path), "DATA": "/data"}.items():
        monkeypatch.setenv(key, value)

    def run(name, *words):
        assert main([name, *words]) == 0, capsys.readouterr().err
        return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]

    return run


def value_of(flag, line):
    return line[line.index(flag) + 1]


def pairs_of(line):
    """The KEY VALUE pairs at a line's end."""
    first = line.index("DATASET.NUM_SHOTS")
    return dict(zip(line[first::2], line[first + 1 :: 2], strict=True))


@pytest.mark.parametrize("line", WRITES)
def test_each_authors_command_writes_where_the_authors_did(dry, tmp_path, line):
    (words,) = dry(*line.split())
    assert value_of("--output-dir", words) == str(tmp_path / WRITES[line])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "scripts").glob("*/*.sh")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_each_script_runs_the_command_of_its_name_and_its_example_holds(dry, path):
    name, text = f"{path.parent.name}/{path.stem}", path.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert text.splitlines()[-1] == f'exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" {name} "$@"'
    command = COMMANDS[name]
    assert " ".join(command.arguments) in text
    example = re.search(r"^# bash scripts/(\S+)\.sh (.+)$", text, re.M)
    assert example[1] == name
    lines = dry(name, *example[2].split())
    assert len(lines) == len(command.seeds() or [1]) * sessions_of(command, example[2])


def sessions_of(command, order):
    """How many command lines a stream is."""
    return len(tasks_of(order)) if command.lines else 1


def test_every_command_has_its_script():
    assert {f"{path.parent.name}/{path.stem}" for path in (ROOT / "scripts").glob("*/*.sh")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_is_passed_on(dry, name):
    """Another value of any argument gives another command line."""
    command = COMMANDS[name]
    for form in (command.arguments, *command.forms):
        plain = dry(name, *sample(name, form))
        for place, key in enumerate(form):
            other = sample(name, form)
            other[place] = sample(name, form, 1)[place]
            # a student's folder decides nothing once it is trained on
            unused = key == "STUDENT_DIR" and command.evaluates or other[place] == sample(name, form)[place]
            assert (dry(name, *other) == plain) == bool(unused), (form, key)


@pytest.mark.parametrize("name", TRAINED_BY_TRAIN_PY)
@pytest.mark.parametrize("dataset", ["toy_shapes", "caltech101"])
def test_what_a_test_reads_is_what_its_training_wrote(dry, name, dataset):
    command = COMMANDS[name]
    words = sample(name, command.arguments)
    words[command.arguments.index("DATASET")] = dataset
    arguments = command.complete(dict(zip(command.arguments, words, strict=True)) | {"SEED": "1"})
    argv = Job(name, arguments).argv
    if command.evaluates:
        trained = Job(command.evaluates, COMMANDS[command.evaluates].complete(of_source(arguments))).argv
        assert value_of("--model-dir", argv) == value_of("--output-dir", trained)
        assert "--eval-only" in argv and value_of("--trainer", argv) == value_of("--trainer", trained)
    if command.stage1 and "STUDENT_DIR" not in command.arguments:
        stage1 = stage1_command(command)
        first = Job(stage1, first_arguments(COMMANDS[stage1], arguments)).argv
        assert value_of("--resume-coop", argv) == value_of("--output-dir", first)
    if command.teacher:
        first = Job(command.teacher, first_arguments(COMMANDS[command.teacher], arguments)).argv
        assert pairs_of(argv)["TRAINER.PROMPTKD.TEACHER_DIR"] == value_of("--output-dir", first)


def test_no_two_commands_share_a_folder(tmp_path):
    arguments = {key: values[0] for key, values in SAMPLES.items()} | {"METHOD": "finetune", "STAGE1": "coop"}
    arguments |= dict.fromkeys(["CLIP_WEIGHT", "W_LMC", "W", "KD_WEIGHT", "BETA"], "1.0") | {"CFG": PROMPTKD}
    folders = {}
    for name, command in COMMANDS.items():
        usual = {"CFG": command.complete({})["CFG"]} if command.trainer == "ConDU" else {}
        folders.setdefault(command.output.format(**command.complete(arguments | usual)), []).append(name)
    shared = [names for names in folders.values() if len(names) > 1]
    assert all({name.removesuffix("_siglip2") for name in names} == {names[0]} for names in shared), shared


def test_forms_are_told_apart_by_their_number():
    for name, command in COMMANDS.items():
        counts = [len(form) for form in (command.arguments, *command.forms)]
        assert len(set(counts)) == len(counts), name


def test_shorter_forms_mean_the_usual_values(dry):
    assert dry("kgcoop/base2new_test", "dtd", "2") == dry("kgcoop/base2new_test", "dtd", "8.0", "2")
    short = ["kgcoop_LMC/base2new_test_kgcoop", "dtd", "10.0", "1.0", "1", "paper"]
    assert dry(*short) == dry(short[0], "dtd", "10.0", "cosine", "True", "1.0", "1", "paper")
    (words,) = dry("mma/base2new_test", "dtd", "1", "vit_b16_ep5", "3")
    assert value_of("--load-epoch", words) == "3"
    assert dry("mma/base2new_test", "dtd", "1", "vit_b16_ep5", "LOADEP=3") == [words]
    kd = ["promptkd_LMC/base2new_train_promptkd", "dtd", "1", "/student", "10.0"]
    assert dry(*kd) == dry(*kd, "50.0", "10")
    assert dry("coop/xd_train", "1") == dry("coop/xd_train", "imagenet", "1")
    assert dry("coop/xd_test", "dtd", "1") == dry("coop/xd_test", "dtd", "1", "imagenet")
    assert dry("coop/dg_test", "toy_shapes", "1") == dry("coop/dg_test", "toy_shapes", "1", "toy_objects")
    assert source_of({"DATASET": "eurosat"}) == "imagenet"


def test_siglip_scripts_loop_over_three_seeds(dry):
    lines = dry("coop_LMC/base2new_train_coop_siglip2", "dtd", "10.0", "cosine", "True", "1.0", "siglip2_l16_paper")
    assert [value_of("--seed", line) for line in lines] == ["1", "2", "3"]
    assert all("CoOp/siglip2_l16_ep100_ctxv1/seed" in value_of("--resume-coop", line) for line in lines)


def test_the_students_folder_is_where_the_caller_means_it(dry, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (words,) = dry("promptkd_LMC/base2new_train_promptkd", "dtd", "1", "my/student", "1000.0")
    assert value_of("--resume-coop", words) == str(tmp_path / "my/student")


def config_of(argv):
    return train.setup_cfg(train.build_parser().parse_intermixed_args(argv))


@pytest.mark.parametrize("dataset", ["toy_shapes", "caltech101", "dtd"])
@pytest.mark.parametrize("name", [name for name, c in COMMANDS.items() if c.stage1 == "base2new_train" and c.pairs])
def test_the_recipe_of_a_preset_changes_nothing_of_it(name, dataset):
    siglip = {"released": "siglip2_b16_ep100_ctxv1", "paper": "siglip2_b16_paper"}
    presets = siglip if "siglip" in name else {preset: preset for preset in ("released", "paper", "continued")}
    for preset, cfg in presets.items():
        given = {"COOP_LMC": "True", "DATASET": dataset, "SEED": "1"} | recipe(COMMANDS[name], cfg)
        argv = Job(name, COMMANDS[name].complete(given), ("TRAINER.MODAL", "sweep")).argv
        assert preset == config_of(argv).PRESET


def test_a_changed_key_makes_another_row():
    name = "mma_LMC/base2new_train_mma"
    given = {"DATASET": "toy_shapes", "SEED": "1"} | recipe(COMMANDS[name], "paper")
    argv = Job(name, COMMANDS[name].complete(given)).argv
    assert config_of([*argv, "TRAINER.LMC.TAU", "0.5"]).PRESET == "paper, changed: TRAINER.LMC.TAU"


def test_promptkds_weight_is_that_of_the_data_sets_yaml():
    for path in (ROOT / "configs" / "datasets").glob("*.yaml"):
        if path.stem.startswith("imagenet") or path.stem == "objectnet":
            continue  # some of these have no reader yet
        words = ["--trainer", "PromptKD", "--dataset-config-file", str(path)]
        words += ["--config-file", str(ROOT / f"configs/trainers/PromptKD/{PROMPTKD}.yaml")]
        weight = config_of(words).TRAINER.PROMPTKD.KD_WEIGHT
        assert weight == float(kd_weight({"DATASET": path.stem}))


def test_a_data_set_without_reader_is_refused_before_anything_else():
    known = {path.stem for path in (ROOT / "configs" / "datasets").glob("*.yaml")}
    assert {"imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r", "objectnet"} <= known
    with pytest.raises(UserError, match=r"Caltech101.*but got \[NotThere\]"):
        config_of(["--trainer", "CoOp", "DATASET.NAME", "NotThere"])


def test_every_protocol_says_its_name(dry):
    for name in TRAINED_BY_TRAIN_PY:
        (words, *_) = dry(name, *sample(name, COMMANDS[name].arguments))
        assert pairs_of(words).get("TRAINER.MODAL", "base2novel") == COMMANDS[name].protocol
        halves = COMMANDS[name].protocol == "base2novel"
        assert pairs_of(words)["DATASET.SUBSAMPLE_CLASSES"] == COMMANDS[name].subset
        assert halves == (name.split("/")[1].startswith("base2"))


def test_a_key_that_a_folder_names_is_followed_by_it_or_refused_by_its_argument(dry, capsys):
    (words,) = dry("coop/base2new_train", "dtd", "1", "--", "DATASET.NUM_SHOTS", "8", "OPTIM.LR=0.1")
    assert "/shots_8/" in value_of("--output-dir", words) and pairs_of(words)["DATASET.NUM_SHOTS"] == "8"
    assert words[-2:] == ["OPTIM.LR", "0.1"]
    (words,) = dry("coop_LMC/base2new_train_coop", "dtd", *LMC, "--", "DATASET.NUM_SHOTS", "8")
    assert "/shots_8/" in value_of("--resume-coop", words)
    for pairs, argument in (
        (["TRAINER.LMC.LAMBDA", "5.0"], "CLIP_WEIGHT says 10.0"),
        (["TRAINER.COOP.W_LMC", "5.0"], "W_LMC says 1.0"),
        (["SEED", "2"], "the argument or variable SEED"),
        (["--output-dir", "x"], "the variable OUTPUT"),
    ):
        assert main(["coop_LMC/base2new_train_coop", "dtd", *LMC, "--", *pairs]) == 2
        assert argument in capsys.readouterr().err


def test_what_is_typed_wins_over_what_a_script_adds(dry):
    (words,) = dry("condu/toy_stream", "--seed", "3", "--out=/x", "--tasks", "toy_digits", "--", "OPTIM.LR", "0.1")
    _, (run,) = toy_stream.read(words[3:])
    assert (run.seed, str(run.out)) == (3, "/x/toy_ft/order_toy_digits/seed3")
    assert run.root == "/data" and run.pairs == ("OPTIM.LR", "0.1")
    (words,) = dry("condu/toy_stream", "--overwrite")
    assert all(run.overwrite for run in toy_stream.read(words[3:])[1])


def test_pairs_may_be_joined_and_folders_of_the_environment_begin_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "~/data")
    monkeypatch.setenv("OUTPUT", "~/runs")
    (job,) = parse("coop/base2new_train", ["toy_shapes", "1", "--", "OPTIM.LR=-1e-3", "PRESET", "a"])
    assert job.pairs == ("OPTIM.LR", "-1e-3", "PRESET", "a")
    words = job.argv
    assert words[words.index("--root") + 1] == "/home/me/data"
    assert words[words.index("--output-dir") + 1].startswith("/home/me/runs/")
    assert build_parser().parse_intermixed_args(["--set", "OPTIM.LR", "-.5", "--data=~/d"]).data == "/home/me/d"
    with pytest.raises(UserError, match="OPTIM.LR has no value"):
        parse("coop/base2new_train", ["toy_shapes", "1", "--", "PRESET=a", "OPTIM.LR"])
