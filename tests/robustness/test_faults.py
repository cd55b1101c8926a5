"""The harness of faults in short: kills, damage, links, and processes told to stop. All of it: tests/faults/run.py."""

import pytest

from dassl.engine import build_trainer, launch
from dassl.engine.resume import ResumeState
from tests.faults import places, stops
from tests.faults.bench import Bench
from tests.faults.damage import FAULT, SAID, Stage
from tests.faults.traces import differences, left_over
from tests.faults.warm import Warm
from tests.faults.world import World
from tests.fixtures.dassl_style_world import style_config, write_images


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    with Warm(tmp_path_factory.mktemp("events")) as warm:
        yield warm


@pytest.fixture(scope="module")
def stage(warm, tmp_path_factory):
    return Stage(World(tmp_path_factory.mktemp("scenes"), small=True), warm)


@pytest.fixture(scope="module")
def bench(warm, tmp_path_factory):
    return Bench(World(tmp_path_factory.mktemp("cases"), small=True), warm)


@pytest.mark.parametrize(
    ("scene", "file"),
    [
        ("train", "round-000"),
        ("train", "model-best.pth.tar"),
        ("train", "resume.pt"),
        ("train", "results.json"),
        ("merge", "model-best.pth.tar"),
        ("merge", "merge.json"),
        ("merge again", "merge.json"),
        ("merge", "results.json"),
        ("import", "import.json"),
        ("report", "barriers.csv"),
        ("stream", "session_0"),
    ],
)
def test_a_kill_before_a_file_is_in_its_place_changes_nothing(scene, file, stage):
    moments = stage.moments(scene)
    row = stage.kill(scene, 1 + max(n for n, path in enumerate(moments) if file in path))
    assert row["outcome"] != FAULT, ": ".join(row.values())


@pytest.mark.parametrize(
    ("scene", "file", "damage"),
    [
        ("train goes on", "resume.pt", "flip"),
        ("train goes on", "model-best.pth.tar", "other seed"),
        ("eval", "model-best.pth.tar", "flip"),
        ("eval", "results.json", "empty"),
        ("predict", "classes.json", "other classes"),
        ("merge", "results.json", "other seed"),
        ("report", "results.json", "cut"),
        ("import", "model.pth.tar-5", "flip"),
    ],
)
def test_a_damaged_file_changes_no_result_in_silence(scene, file, damage, stage):
    path = next(path for paths in stage.reads(scene).values() for path in paths if path.endswith(file))
    tries = (stage.spoil(scene, path, damage, number) for number in range(9))  # a flip may be where nothing is
    row = next(filter(None, tries))
    assert row["outcome"] != FAULT, ": ".join(row.values())
    assert scene != "report" or row["outcome"] == SAID


def test_links_in_the_place_of_locks_and_temporary_names_are_not_followed(stage):
    rows = stage.links("import")
    assert len(rows) >= 2 and all(row["outcome"] != FAULT for row in rows), rows


def test_sigterm(bench):
    stops.sigterm(bench)


def test_a_killed_worker(bench):
    stops.worker_killed(bench)


def test_a_nan_in_the_middle(bench):
    stops.nan(bench)


def test_no_room_from_a_moment_on(bench):
    places.no_file_may_grow(bench, ("bank", "saving"))


def test_files_from_the_future(bench):
    places.clock_set_back(bench)


@pytest.mark.parametrize(("owner", "name"), [(ResumeState, "save"), (launch, "write_results")])
def test_the_gaps_between_files(owner, name, tmp_path, monkeypatch):
    """Broken off with a checkpoint and no resume.pt yet; and with all trained and no results.json yet."""
    root, results = write_images(tmp_path / "data"), {}
    build_trainer(style_config(root, root, "ShortLosses"))  # leaves the data set's own caches
    for half in ("whole", "halves"):
        cfg = style_config(root, tmp_path / half, "ShortLosses", TEST__FINAL_MODEL="best_val")
        if half == "halves":
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(owner, name, interrupted)
                launch.run(cfg)
            assert list((tmp_path / half / "head").glob("model*"))
        results[half] = launch.run(cfg)
    assert not differences(tmp_path / "whole" / "head", tmp_path / "halves" / "head")
    for field in ("metrics", "history", "epochs", "chosen_on"):
        assert results["whole"][field] == results["halves"][field]
    assert not left_over(tmp_path)


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt
