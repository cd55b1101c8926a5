"""Merges and ensembles once more: killed anywhere, of another request, of what is not finished, of exchanged files."""

import contextlib
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch

from dassl.engine.launch import AlreadyFinished
from dassl.utils import UserError, WriteFailed
from mergetune import ensemble, merge, merge_job, predict
from mergetune.merge import evaluate, merge_run
from tests.faults.traces import differences, left_over, place
from tests.fixtures import coop_runs
from tests.fixtures.coop_runs import results

run, shared, stage1 = coop_runs.run, coop_runs.shared, coop_runs.stage1  # fixtures
CHANGES = ("replace", "rmdir", "unlink")  # of names in a file system
COMMANDS = {  # command -> (its line, its marker, the words of a first call, those of a later one)
    "merge": (merge.main, "merge.json", "--method ties", "--method wise_ft --alpha 0,1"),
    "ensemble": (ensemble.main, "sweep.json", "--alphas 0.5", "--alphas 0,1"),
}


def snapshots(monkeypatch, folder, into, call):
    """What a kill before each change of a name, while `call` runs, would leave of a folder -> list of folders."""
    taken = []

    def changing(plain, name):
        def go(*args, **kwargs):
            if taken is not None and str(folder) in str(args):
                with monkeypatch.context() as as_before:
                    for other, function in plains.items():
                        as_before.setattr(os, other, function)
                    taken.append(into / f"{len(taken)} {name}")
                    place(folder, taken[-1])
            return plain(*args, **kwargs)

        return go

    plains = {name: getattr(os, name) for name in CHANGES}
    with monkeypatch.context() as patch:
        for name, plain in plains.items():
            patch.setattr(os, name, changing(plain, name))
        call()
    return taken


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_anywhere_the_same_command_goes_on(command, again, stage1, tmp_path, monkeypatch):
    """The old result goes only when the new one is there, whole; what is left at the end is the undisturbed result."""
    main, marker, first, later = COMMANDS[command]
    out, whole = tmp_path / "out", tmp_path / "whole"
    line = [str(stage1), "--out", str(out), *first.split()]
    if again:
        main([*line, *(["--eval", "base"] if command == "merge" else [])])
        line[3:] = [*later.split(), "--overwrite"]
    moments = snapshots(monkeypatch, out, tmp_path, lambda: main(line))
    place(out, whole)
    assert len(moments) > 5
    for moment in moments:
        new = moment / f".{marker}.new"
        if again and not (moment / marker).exists():
            assert (new / marker).exists()  # whole, and about to be put in place
        place(moment, out)
        try:
            main(line)
        except AlreadyFinished:
            assert (moment / marker).read_bytes() == (whole / marker).read_bytes()
        assert not differences(whole, out) + left_over(out), moment
    if again:  # or the old result is wanted after all: the first moment
        place(moments[0], out)
        with contextlib.suppress(AlreadyFinished):
            main([*line[:3], *first.split()])
        assert not left_over(out)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_leaves_the_old_result(command, stage1, tmp_path):
    main, _, earlier, words = COMMANDS[command]
    out, before = tmp_path / "out", tmp_path / "before"
    main([str(stage1), "--out", str(out), *earlier.split()])
    place(out, before)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limit[1]))
        with pytest.raises(UserError, match="Cannot write") as error:
            main([str(stage1), "--out", str(out), *words.split(), "--overwrite"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert command == "merge" or isinstance(error.value, WriteFailed)
    assert not differences(before, out) and not [path for path in out.iterdir() if path.name.endswith(".new")]


def test_a_finished_merge_is_compared_with_the_one_that_is_asked_for(stage1, tmp_path, capsys):
    source = shutil.copytree(stage1, tmp_path / "source")
    line = ["--method", "wise_ft", str(source), "--out", str(tmp_path / "out"), "--eval", "base"]
    merge.main([*line, "--alpha", "0.5"])
    place(tmp_path / "out", tmp_path / "before")
    moved = source.rename(tmp_path / "moved")
    merge.main([word.replace(str(source), str(moved)) for word in [*line, "--alpha", "0.5"]])
    assert "holds this merge: nothing to do" in capsys.readouterr().out
    moved.rename(source)
    merge.main([*line, "--alpha", "0.50", "--keep", ""])
    older = json.loads((tmp_path / "out" / "merge.json").read_text())
    for name in ("asked", "weights"):  # what older versions did not write
        del older[name]
    for text in (None, json.dumps(older)):
        if text:
            (tmp_path / "out" / "merge.json").write_text(text)
            merge.main([*line, "--alpha", "0.5"])
        for words, match in ((["--alpha", "0.7"], r"choices \[\{'alpha': 0.5\}\], asked for \[\{'alpha': 0.7"),
                             (["--sweep"], "choices"),
                             (["--method", "ties"], "method 'wise_ft', asked for 'ties'")):  # fmt: skip
            with pytest.raises(UserError, match=match):
                merge.main([*line, *words])
    place(tmp_path / "before", tmp_path / "out")
    retrain(source)
    with pytest.raises(UserError, match="of another request: parents .*--overwrite makes it again"):
        merge.main([*line, "--alpha", "0.5"])
    assert not differences(tmp_path / "before", tmp_path / "out")
    merge.main([*line, "--alpha", "0.5", "--overwrite"])
    assert [line.split(": ")[1] for line in differences(tmp_path / "before", tmp_path / "out")]


def test_what_a_finished_one_has_otherwise_is_said_without_a_model(stage1, tmp_path, monkeypatch):
    merged, blended = [str(stage1), "--out", str(tmp_path / "a")], [str(stage1), "--out", str(tmp_path / "b")]
    merged += ["--method", "ties", "--eval", "base"]
    for module, line in ((merge, merged), (ensemble, blended)):
        assert module.differences(line) == []  # none has begun
        module.main([*line, *(["--alphas", "0.5"] if module is ensemble else [])])
    monkeypatch.setattr(merge_job, "build_trainer", None)
    monkeypatch.setattr(ensemble, "build_trainer", None)
    assert merge.differences(merged) == ensemble.differences([*blended, "--alphas", "0.50"]) == []
    assert merge.main(merged) == tmp_path / "a"
    (said,) = merge.differences([*merged, "--density", "0.5"])
    assert said.startswith("choices [{'density': 0.2, 'scale': 1.0}], asked for [{'density': 0.5")
    assert merge.differences([*merged, "--set", "TEST.SPLIT", "val"]) == ["TEST.SPLIT 'test', asked for 'val'"]
    assert ensemble.differences([*blended, "--alphas", "0.3"]) == ["alphas [0.5], asked for [0.3]"]


def test_a_run_is_never_overwritten_by_a_merge(stage1, tmp_path):
    with pytest.raises(UserError, match="holds a run that is no merge: choose another folder$"):
        merge_run("ties", [stage1], shutil.copytree(stage1, tmp_path / "run"), overwrite=True)


def retrain(folder):
    """Other weights, as a run that was made anew has them."""
    (file,) = (folder / "prompt_learner").glob("model.pth.tar-*")
    content = torch.load(file, weights_only=True)
    content["state_dict"]["ctx"] += 0.1
    torch.save(content, file)
    facts = results(folder)
    facts.pop("weights")
    (folder / "results.json").write_text(json.dumps(facts))


def test_a_finished_ensemble_is_compared_with_the_one_that_is_asked_for(stage1, shared, tmp_path):
    source = shutil.copytree(stage1, tmp_path / "source")
    line = [str(source), "--out", str(tmp_path / "out")]
    ensemble.main([*line, "--alphas", "0.5"])
    for words, match in ((["--alphas", "0.5"], "holds a finished ensemble"), (["--alphas", "0,1"], "alphas"),
                         (["--alphas", "0.5", "--kind", "output"], "kind 'weight', asked for 'output'")):  # fmt: skip
        with pytest.raises(AlreadyFinished, match=match):
            ensemble.main([*line, *words])
    data = shutil.copytree(shared.data, tmp_path / "data")
    ensemble_again = [*line, "--alphas", "0.5", "--root", str(data)]
    with pytest.raises(AlreadyFinished, match="holds a finished ensemble"):  # wherever the data lie
        ensemble.main(ensemble_again)
    split = data / "oxford_pets" / "split_zhou_OxfordPets.json"
    lists = json.loads(split.read_text())
    split.write_text(json.dumps(lists | {"test": lists["test"][1:]}))
    with pytest.raises(AlreadyFinished, match="of another request: data"):
        ensemble.main(ensemble_again)
    retrain(source)
    with pytest.raises(AlreadyFinished, match="of another request: weights"):
        ensemble.main([*line, "--alphas", "0.5"])


def test_what_is_not_a_merges_own_is_refused(stage1, shared, tmp_path):
    ours = merge_run("wise_ft", [stage1], tmp_path / "ours", alpha=0.5)
    other = merge_run("ties", [stage1], tmp_path / "theirs")
    for name, match in (
        ("merge.json", "model-best.pth.tar is not of the run of .*merge.json"),
        ("prompt_learner/model-best.pth.tar", "model-best.pth.tar is not of the run of .*merge.json"),
    ):
        mixed = Path(shutil.copytree(ours, tmp_path / "mixed", dirs_exist_ok=True))
        shutil.copy(other / name, mixed / name)
        with pytest.raises(UserError, match=match):
            evaluate(mixed, "base")
        with pytest.raises(UserError, match=match):
            merge_run("emr", [mixed], tmp_path / "x")
    classes = json.loads((ours / "classes.json").read_text())
    classes["classnames"].reverse()
    (ours / "classes.json").write_text(json.dumps(classes))
    with pytest.raises(UserError, match="classes.json is not of the run"):
        merge_run("emr", [ours], tmp_path / "x")
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("CLASS_TOKEN_POSITION: end", "CLASS_TOKEN_POSITION: front"))
    with pytest.raises(UserError, match="config.yaml is not of the run"):
        evaluate(other, "base")


def test_a_merge_of_what_is_not_finished_says_so(stage1, tmp_path, caplog, capsys):
    killed = shutil.copytree(stage1, tmp_path / "killed")
    for name in ("results.json", "classes.json"):
        (killed / name).unlink()
    out = merge_run("wise_ft", [killed], tmp_path / "out", alpha=0.5)
    assert f"{killed}: epochs 3 of 3, unfinished" in caplog.text
    facts = json.loads((out / "merge.json").read_text())
    assert facts["parents"][0]["unfinished"] == "epochs 3 of 3, unfinished"
    assert evaluate(out, "base")["unfinished"] == "epochs 3 of 3, unfinished"
    assert json.loads((merge_run("emr", [out], tmp_path / "more") / "merge.json").read_text())["row"]["unfinished"]
    predict.main([str(out), "--classes", "a,b", "--export", str(tmp_path / "x.safetensors")])
    assert capsys.readouterr().err == f"{out}: epochs 3 of 3, unfinished\n"
    found = ensemble.main([str(killed), "--alphas", "0.5", "--out", str(tmp_path / "ensemble")])
    assert found["unfinished"] == results(tmp_path / "ensemble" / "OxfordPets")["unfinished"]
