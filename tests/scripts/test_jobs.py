"""Jobs: what a pair and a protocol run, in an order in which every step finds what it needs."""

import shlex
from dataclasses import replace

import pytest

import train
from dassl.utils import UserError
from scripts.check_job import kind_of
from scripts.commands import COMMANDS
from scripts.grid import plan
from scripts.main_job import build_parser, run_job
from scripts.plans import SHOTS, listed_pairs, pair_jobs, sources, targets, toy_sets
from scripts.run import main as run_script
from scripts.run import parse
from tests.conftest import ROOT

JOBS = [(pair.name, protocol) for pair in listed_pairs() for protocol in pair.protocols]
NO_READER = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r", "objectnet")  # may get one


def source(protocol, world):
    return sources(protocol)[0] if world == "toy" else "imagenet"


@pytest.mark.parametrize("world", ["toy", "public"])
@pytest.mark.parametrize(("name", "protocol"), JOBS)
def test_every_step_finds_what_it_needs(name, protocol, world):
    made = set()
    for step in pair_jobs(name, protocol, source(protocol, world), 1):
        for what, (folder, _) in step.needs.items():
            assert folder in made, f"{step} needs a {what}"
        assert str(step.folder) not in made
        made.add(str(step.folder))


@pytest.mark.parametrize("world", ["toy", "public"])
@pytest.mark.parametrize(("name", "protocol"), JOBS)
def test_every_step_builds_its_config(name, protocol, world):
    steps = pair_jobs(name, protocol, source(protocol, world), 1, ["TRAIN.PRINT_FREQ=7"])
    kinds = {(step.command, step.arguments.get("CFG")): step for step in reversed(steps)}  # not for each target
    for step in kinds.values():
        if step.arguments["DATASET"] not in NO_READER and not COMMANDS[step.command].module:
            cfg = train.setup_cfg(train.build_parser().parse_intermixed_args(step.argv))
            assert "changed" not in cfg.PRESET
            assert cfg.TRAIN.PRINT_FREQ == 7
            assert (cfg.MODEL.BACKBONE.NAME == "tiny") == (world == "toy")


def test_what_each_protocol_tests_on():
    assert len(targets("cross", "imagenet")) == 10 and "imagenet" not in targets("cross", "imagenet")
    assert len(targets("dg", "imagenet")) == 4
    assert targets("robust", "imagenet")[-1] == "objectnet"
    assert set(targets("cross", "toy_objects")) == set(toy_sets()) - {"toy_objects"}
    shots = {
        s.arguments["SHOTS"] for s in pair_jobs("CoOp", "fewshot", "toy_shapes", 1) if s.command.startswith("coop/")
    }
    assert shots == set(SHOTS) == {"1", "2", "4", "8", "16"}


def test_runs_that_two_cells_share_are_run_once():
    names = ("toy_objects", "toy_shapes")
    cells = plan(build_parser().parse_args(["--protocol", "cross", *names, "1"]))
    folders = [step.folder for cell in cells for step in cell]
    assert len(set(folders)) == len(folders) < sum(len(pair_jobs("CoOp", "cross", name, 1)) for name in names)


def test_a_data_set_without_reader_stops_a_job_before_it_starts():
    with pytest.raises(UserError, match="nothing_there"):
        pair_jobs("CoOp", "dg", "nothing_there", 1)


def zero_shot_cfgs(name, protocol, dataset):
    """CFGs of ZeroshotCLIP by the data set tested on."""
    steps = [s for s in pair_jobs(name, protocol, dataset, 1) if s.command.startswith("zsclip/")]
    return {d: {s.arguments["CFG"] for s in steps if s.subject == d} for d in {s.subject for s in steps}}


def test_zero_shot_clip_runs_with_every_template_that_an_end_of_the_path_has():
    usual, anchor, words = "vit_b16", "vit_b16_dataset", "vit_b16_photo"
    assert zero_shot_cfgs("CoOp", "base2new", "toy_colours") == {"toy_colours": {usual, anchor}}
    assert zero_shot_cfgs("CoOp", "base2new", "toy_sizes") == {"toy_sizes": {usual}}  # one template for all
    assert zero_shot_cfgs("KgCoOp", "base2new", "dtd") == {"dtd": {usual, anchor, words}}
    assert zero_shot_cfgs("CoOp", "base2new", "oxford_pets") == {"oxford_pets": {usual, words}}
    assert zero_shot_cfgs("MMA", "base2new", "dtd") == {"dtd": {usual, words}}  # its anchor has CoOp's template
    assert zero_shot_cfgs("PromptKD", "base2new", "dtd") == {"dtd": {usual}}  # no zero-shot end
    cross = zero_shot_cfgs("CoOp", "cross", "imagenet")
    assert cross.pop("dtd") == {usual, anchor} and set().union(*cross.values()) == {usual}
    assert zero_shot_cfgs("CoOp", "fewshot", "toy_colours") == {"toy_colours": {usual, anchor}}
    robust = zero_shot_cfgs("LinearProbe", "robust", "imagenet")
    assert set(map(frozenset, robust.values())) == {frozenset({usual, "vit_b16_imagenet"})}
    assert anchor in zero_shot_cfgs("FineTune", "robust", "toy_objects")["toy_objects"]


def folders(name, protocol, dataset, *keys):
    """Of every step, below OUTPUT."""
    return [str(step.folder) for step in pair_jobs(name, protocol, dataset, 1, keys)]


@pytest.mark.parametrize(("name", "protocol"), [job for job in JOBS if job[1] != "fewshot"])
def test_shots_that_are_set_are_in_every_folder_and_each_run_finds_what_it_needs(name, protocol):
    made = set()
    for step in pair_jobs(name, protocol, source(protocol, "toy"), 1, ["DATASET.NUM_SHOTS", "8"]):
        assert "shots_8" in str(step.folder) and "NUM_SHOTS" not in " ".join(step.pairs)
        assert kind_of(step).endswith("8 shots") and "16" not in kind_of(step).split("vit_b16")[-1]
        for what, (folder, _) in step.needs.items():
            assert folder in made, f"{step} needs a {what}"
        made.add(str(step.folder))
        if not COMMANDS[step.command].module:
            argv = step.argv
            assert argv[argv.index("DATASET.NUM_SHOTS") + 1] == "8"
            (job,) = parse(step.command, shlex.split(step.line())[2:])
            assert job.folder == step.folder  # as a job of the workflow runs it


@pytest.mark.parametrize(
    ("name", "keys", "part"),
    [
        ("CoOp", ["TRAINER.LMC.LAMBDA", "4.0"], "/shots_16_4.0_"),
        ("CoOp", ["TRAINER.COOP.W_LMC=0.25"], "_0.25/"),
        ("KgCoOp", ["TRAINER.COOP.W", "4.0"], "/shots_16_4.0"),
        ("MMA", ["TRAINER.LMC.BETA", "0.25"], "/shots_16_0.25/"),
        ("PromptKD", ["TRAINER.LMC.LAMBDA", "7.0"], "/7.0_"),
        ("PromptKD", ["TRAINER.LMC.NUM_SAMPLES", "3"], "_3_"),
    ],
)
def test_a_key_that_a_folder_names_is_followed_by_it(name, keys, part):
    usual, changed = folders(name, "base2new", "toy_shapes"), folders(name, "base2new", "toy_shapes", *keys)
    moved = [new for old, new in zip(usual, changed, strict=True) if old != new]
    assert len(moved) >= 9 and all(part in folder for folder in moved)
    made = set()
    for step in pair_jobs(name, "base2new", "toy_shapes", 1, keys):
        assert all(folder in made for folder, _ in step.needs.values())
        made.add(str(step.folder))


@pytest.mark.parametrize(
    ("protocol", "keys", "told"),
    [
        ("base2new", ["SEED", "3"], "argument or variable SEED"),
        ("base2new", ["DATASET.SUBSAMPLE_CLASSES", "all"], "the script"),
        ("base2new", ["OUTPUT_DIR=x"], "OUTPUT"),
        ("base2new", ["--root=x", "OPTIM.LR", "1"], "DATA"),
        ("cross", ["TRAINER.MODAL", "dg"], "the script"),
        ("base2new", ["OPTIM.LR"], "no value"),
        ("fewshot", ["DATASET.NUM_SHOTS", "8"], "differ in it"),
    ],
)
def test_a_key_that_something_else_says_is_refused(protocol, keys, told):
    with pytest.raises(UserError, match=told):
        pair_jobs("CoOp", protocol, "toy_shapes", 1, keys)


@pytest.mark.parametrize("world", ["toy_shapes", "dtd"])
@pytest.mark.parametrize("name", [name for name, protocol in JOBS if protocol == "base2new"])
def test_what_released_chooses_on_validation_is_evaluated_at_its_last_epoch_too(name, world):
    steps = pair_jobs(name, "base2new", world, 1)
    last = [step for step in steps if step.arguments.get("LOADEP")]
    plain = [replace(s, arguments={k: v for k, v in s.arguments.items() if k != "LOADEP"}) for s in last]
    assert all(step in steps for step in plain) and {step.folder.name for step in last} == {"last_epoch"}
    cfgs = [train.setup_cfg(train.build_parser().parse_intermixed_args(step.argv)) for step in last]
    told = [(cfg.PRESET, cfg.TEST.FINAL_MODEL, cfg.DATASET.SUBSAMPLE_CLASSES) for cfg in cfgs]
    assert told == [("released", "best_val", "base"), ("released", "best_val", "new")]
    for step in last:
        assert {run for run, _ in step.needs.values()} == {run for run, _ in plain[0].needs.values()}
        (job,) = parse(step.command, shlex.split(step.line())[2:])
        assert job.folder == step.folder  # as a job of the workflow runs it


def test_no_last_epoch_is_evaluated_beside_what_is_that_already():
    def last(*words, **more):
        return [step for step in pair_jobs(*words, 1, **more) if "LOADEP" in step.arguments]

    assert last("CoOp", "base2new", "toy_shapes", presets=["paper", "continued"]) == []
    assert last("CoOp", "base2new", "toy_shapes", pairs=["TEST.FINAL_MODEL", "last_step"]) == []
    assert last("CoOp", "base2new", "toy_shapes", pairs=["TEST.FINAL_MODEL=best_val"]) != []
    assert not any(last(name, protocol, source(protocol, "toy")) for name, protocol in JOBS if protocol != "base2new")


# Other data sets that an evaluation on new classes is scored on


def other_names(words):
    """{command and CFG: what TEST.OTHERS is} of the main job's steps, where a step is asked for any."""
    steps = [step for cell in plan(build_parser().parse_intermixed_args(words)) for step in cell]
    found = {}
    for step in [step for step in steps if step.others and COMMANDS[step.command].scores_new]:
        argv = step.argv
        assert argv[1 + argv.index("--others" if COMMANDS[step.command].module else "TEST.OTHERS")]
        found[step.command, step.arguments.get("CFG", step.arguments.get("METHOD"))] = step.others
    return found


def test_the_built_in_benchmark_scores_others_and_public_data_where_it_is_asked_for():
    toy, public = other_names(["toy_shapes", "1"]), ["--data", ".", "caltech101", "1"]
    assert set(map(tuple, toy.values())) == {("auto",)}
    assert {"zsclip/base2new_test", "coop/base2new_test", "coop_average/base2new_test", "merge/base2new"} <= {
        command for command, _ in toy
    }
    assert ("zsclip/base2new_test", "vit_b16_dataset") not in toy and ("zsclip/base2new_test", "vit_b16") in toy
    assert other_names(public) == {}
    asked = other_names([*public, "--others"])
    assert asked and {command for command, _ in asked} == {command for command, _ in toy}
    named = other_names([*public, "--set", "TEST.OTHERS", "[dtd, eurosat]"])
    assert {key: ["dtd", "eurosat"] for key in asked} == named
    assert other_names(["toy_shapes", "1", "--set", "TEST.OTHERS", "[]"]) == {}


@pytest.mark.parametrize("name", ["toy_shape", "caltech101"])
def test_a_named_set_that_cannot_be_scored_is_said_before_the_first_run(tmp_path, monkeypatch, name):
    monkeypatch.setenv("OUTPUT", str(tmp_path / "output"))
    monkeypatch.setenv("DATA", str(tmp_path))
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=f"TEST.OTHERS .*{name}"):
        run_job(build_parser().parse_args(["toy_shapes", "1", "--set", "TEST.OTHERS", f"[{name}]"]))
    with pytest.raises(UserError, match=f"TEST.OTHERS .*{name}"):
        run_script(["coop/base2new_test", "toy_shapes", "1", f"OTHERS={name}"])
    assert not list(tmp_path.iterdir())
