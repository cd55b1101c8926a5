"""The harness of faults in short: each phase killed once, told to stop, and starved. All of it: tests/faults/run.py."""

import pytest

from dassl.engine import build_trainer, launch
from dassl.engine.resume import Progress
from tests.faults import places, stops
from tests.faults.bench import Bench
from tests.faults.child import PHASES
from tests.faults.kills import Campaign
from tests.faults.traces import differences, left_over, place
from tests.faults.warm import Warm
from tests.faults.world import World
from tests.fixtures.dassl_style_world import style_config, write_pictures


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    with Warm(tmp_path_factory.mktemp("events")) as warm:
        yield warm


@pytest.fixture(scope="module")
def campaign(warm, tmp_path_factory):
    """Uninterrupted jobs, to compare with: a method, a stream of one task, a report."""
    world = World(tmp_path_factory.mktemp("kills"), small=True)
    campaign = Campaign(world, warm, world.jobs(), seed=6)
    campaign.prepare()
    for phase in ("training", "saving", "evaluating"):  # of a stream: test_condu_kills.py
        campaign.spans[phase] = [span for span in campaign.spans[phase] if span[0] == "stage 1"]
    return campaign


@pytest.fixture(scope="module")
def bench(warm, tmp_path_factory):
    return Bench(World(tmp_path_factory.mktemp("cases"), small=True), warm)


@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_in_each_phase_changes_nothing(phase, campaign):
    kill = campaign.strike(phase)
    assert (kill["phase"], kill["problems"]) == (phase, [])


def test_a_merge_that_is_killed_goes_on(bench, tmp_path):
    """As its last file is to be put in its place; every other moment: tests/test_merge_again.py."""
    line = ["-m", "mergetune.merge", "--method", "wise_ft", bench.out / "coop", "--out", bench.out / "merged"]
    bench.clear()
    bench.run(bench.world.train("coop"), [*line, "--alpha", "1"])
    place(bench.out, tmp_path / "before")
    line += ["--alpha", "0,0.5", "--overwrite"]
    calls = [event.words[0] for event in bench.run(line, files=True).events() if event.kind == "file"]
    place(bench.out, tmp_path / "whole")
    place(tmp_path / "before", bench.out)
    running = bench.start(line, files=True, hold=[["file", "replace", calls.count("replace")]])
    assert running.held(), running.text()
    running.kill()
    assert running.end() == -9 and not (bench.out / "merged" / "merge.json").exists()
    bench.run(line)
    assert not differences(tmp_path / "whole", bench.out) + left_over(bench.out)


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


@pytest.mark.parametrize(("owner", "name"), [(Progress, "save"), (launch, "write_results")])
def test_the_gaps_between_files(owner, name, tmp_path, monkeypatch):
    """Broken off with a checkpoint and no resume.pt yet; and with all trained and no results.json yet."""
    root, results = write_pictures(tmp_path / "data"), {}
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
