"""The report command: what it prints, writes and refuses."""

import itertools
import json
import subprocess
import sys

import pytest

from dassl.report.figures.all import FIGURES
from dassl.utils import UserError
from mergetune.report import main
from tests.condu.test_sessions import die_before, in_a_child
from tests.conftest import ROOT
from tests.fixtures.runs import straight_path, write_pairs, write_path, write_run


def test_the_command_prints_and_writes_beside_the_runs(tmp_path, capsys):
    write_pairs(tmp_path, {"toy_a": [(80, 60)]})
    write_path(tmp_path / "train", straight_path(50, 70, 60))
    main([str(tmp_path), "--figures"])
    assert "68.57" in capsys.readouterr().out
    names = {f"{name}.{end}" for name in ("base2new", "barriers") for end in ("csv", "md")}
    assert {p.name for p in (tmp_path / "tables").iterdir()} == names
    assert len(list((tmp_path / "figures").iterdir())) == 2


def test_the_command_refuses_in_one_line(tmp_path):
    for argument, reason in (
        (tmp_path, "no readable results.json"),
        (tmp_path / "none", "No folder of runs"),
    ):
        with pytest.raises(UserError, match=reason):
            main([str(argument)])


def some_of_each(root):
    """Runs for base2new, cross, few-shot and sweep tables."""
    write_pairs(root, {"toy_a": [(80, 60)]})
    for protocol, shots in (("cross", 16), ("fewshot", 4), ("fewshot", 16)):
        fields = {"protocol": protocol, "shots": shots, "source": "toy_a", "subset": "all"}
        write_run(root / f"{protocol}{shots}", **fields)
    for tau in (0.0, 1.0):
        fields = {"protocol": "sweep", "preset": "paper, changed: TAU", "lmc": {"TAU": tau}}
        write_run(root / f"tau{tau}", "CoOp_LMC", **fields)


def test_every_table_with_runs_is_printed_and_written(tmp_path, capsys):
    some_of_each(tmp_path / "runs")
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--latex"])
    printed = capsys.readouterr().out
    headings = ["Cross-data-set", "Accuracy in percent by shots", "Sweeps", "Base-to-new accuracy"]
    assert [printed.index(heading) for heading in headings] == sorted(printed.index(h) for h in headings)
    names = {f"{name}.{end}" for name in ("base2new", "cross", "fewshot", "sweep") for end in ("md", "csv", "tex")}
    assert {p.name for p in (tmp_path / "out" / "tables").iterdir()} == names


def test_one_figure_may_be_asked_for(tmp_path, capsys):
    some_of_each(tmp_path / "runs")
    write_path(tmp_path / "runs" / "train", straight_path(50, 70, 60), history=[{"epoch": 1, "loss": 2.0}])
    for name in ("path", "fewshot", "sweep"):
        main([str(tmp_path / "runs"), "--figure", name, "--out", str(tmp_path / name)])
        assert [p.name for p in (tmp_path / name).iterdir()] == ["figures"]
        written = {p.name for p in (tmp_path / name / "figures").iterdir()}
        assert len(written) == 2 and all(file.startswith(name) for file in written)
    main([str(tmp_path / "runs"), "--figure", "epochs", "path", "--out", str(tmp_path / "both")])
    assert len(list((tmp_path / "both" / "figures").iterdir())) == 4
    assert "Base-to-new" not in capsys.readouterr().out
    main([str(tmp_path / "runs"), "--figure", "path", "--protocol", "cross", "--out", str(tmp_path / "too")])
    assert "Cross-data-set" in capsys.readouterr().out


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_without_runs_is_refused_in_one_line(tmp_path, name):
    write_pairs(tmp_path, {"toy_a": [(80, 60)]})
    with pytest.raises(UserError, match=f"^No figure '{name}': it needs .+; none below {tmp_path}") as refused:
        main([str(tmp_path), "--figure", name])
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "figures").exists()


def test_a_figure_that_does_not_exist_is_named(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60)]})
    with pytest.raises(UserError, match="^.*--figure.*heatmop.*heatmap"):
        main([str(tmp_path), "--figure", "heatmop"])


def test_streams_have_their_figures_by_name(tmp_path):
    tasks = ["a", "b"]
    for order in (tasks, tasks[::-1]):
        rows = {"tasks": order, "accuracy": [[80, 30], [70, 90]], "transfer": [None, 30], "average": [75, 60]}
        fields = {"matrix": rows | {"last": [70, 90]}, "tasks": order, "metrics": {"last": 80.0}}
        write_run(tmp_path / "".join(order), "ConDU", "stream", "all", protocol="mtil", **fields)
    (tmp_path / "tsne.json").write_text(
        json.dumps({
            "format": 1, "tasks": ["a"],
            "points": [{"task": "a", "kind": "expert", "label": 0, "x": 0.0, "y": 1.0}],
        })
    )  # fmt: skip
    for name, start in (("heatmap", "matrix"), ("orders", "orders"), ("tsne", "tsne")):
        main([str(tmp_path), "--figure", name, "--out", str(tmp_path / name)])
        assert {p.name.split("_")[0].split(".")[0] for p in (tmp_path / name / "figures").iterdir()} == {start}


def test_one_table_may_be_asked_for(tmp_path, capsys):
    some_of_each(tmp_path)
    main([str(tmp_path), "--protocol", "cross"])
    assert "Base-to-new" not in capsys.readouterr().out
    with pytest.raises(UserError, match="^No robust table: of 7 results, 0 follow"):
        main([str(tmp_path), "--protocol", "cross", "robust"])
    with pytest.raises(UserError, match="^.*--protocol.*robsut.*robust"):
        main([str(tmp_path), "--protocol", "robsut"])


def test_trained_but_never_evaluated_is_said(tmp_path, capsys):
    write_pairs(tmp_path, {"toy_a": [(80, 60)]})
    write_run(tmp_path / "t", kind="train", protocol="dg", subset="all")
    main([str(tmp_path)])
    assert "Warning: No dg table" in capsys.readouterr().out


def test_the_table_needs_no_plotting(tmp_path):
    write_pairs(tmp_path / "runs", {"toy_a": [(80, 60)]})
    code = (
        "import sys; from dassl.report.protocols.paired import student; student(0.975); "
        "from mergetune.report import main; main(sys.argv[1:]); "
        "plotting = {'matplotlib', 'open_clip', 'scipy.stats', 'sklearn', 'tensorboard', 'torchvision'}; "
        "sys.exit(bool(plotting & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "tables" / "base2new.md").is_file()


@pytest.mark.parametrize("words", [["--figures"], ["--figure", "path"], ["--html", "figures/page.html"]])
def test_what_cannot_be_written_is_an_error(tmp_path, capsys, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    write_path(tmp_path / "runs", straight_path(50, 70, 60))
    (tmp_path / "figures").write_text("no folder")
    with pytest.raises(OSError, match='^Cannot write "[^"]*figures/[^"]*": (Not a directory|File exists)'):
        main([str(tmp_path / "runs"), "--out", str(tmp_path), *words])
    assert "needs" not in capsys.readouterr().out


def test_a_report_that_is_killed_leaves_each_file_whole_and_runs_again(tmp_path):
    """Killed before every seventh of its calls to the system."""
    runs, out = tmp_path / "runs", tmp_path / "out"

    def report():
        main([str(runs), "--out", str(out), "--latex", "--html", str(out / "page.html")])

    def files():
        return {file.name: file.read_bytes() for file in out.rglob("*.*") if file.suffix != ".tmp"}

    write_pairs(runs, {"toy_a": [(80, 60)]})
    report()
    old = files()
    write_pairs(runs, {"toy_a": [(90, 70)]})
    report()
    new = files()
    assert old.keys() == new.keys() and all(old[name] != new[name] for name in new)
    for number in itertools.count(1, 7):
        for name, content in old.items():
            next(out.rglob(name)).write_bytes(content)

        def killed(number=number):
            die_before(number, out)
            report()

        code = in_a_child(killed)
        assert all(content in (old[name], new[name]) for name, content in files().items())
        report()
        assert files() == new and len(list(out.rglob("*.*"))) == len(new)
        if code == 0:
            break
    assert number > 20


def test_help_says_what_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--figures" in text and "H of averages" in text and "examples" in text
