"""The toy stream, whole and small: two tasks, four steps each, two random orders."""

import csv
import json
import shutil
from dataclasses import replace
from operator import attrgetter

import pytest

from condu.metrics import AccuracyMatrix
from condu.orders import random_orders
from dassl.utils import UserError
from scripts.condu import toy_rates
from scripts.condu.evaluate import StreamEvaluation
from scripts.condu.experiments import evaluate_ablations, evaluate_baselines, evaluate_orders, member
from scripts.condu.toy_stream import main, read, together
from scripts.workers import pool

TASKS = "toy_digits,toy_shapes"
NAMES = ["ToyDigits", "ToyShapes"]
SMALL = ["TRAINER.CONDU.ITERATIONS", "4", "OPTIM.WARMUP_STEPS", "1", "TRAINER.CONDU.ROUND", "2", "OPTIM.LR", "1e-3"]
SMALL += ["DATASET.NUM_SHOTS", "4"]


@pytest.fixture(scope="module")
def toy(toy_data, tmp_path_factory):
    """(folder of the run, words that repeat it)."""
    output = tmp_path_factory.mktemp("output")
    words = ["--tasks", TASKS, "--orders", "2", "--seeds", "1", "--root", str(toy_data), "--out", str(output), *SMALL]
    main(words)
    return output / "toy_ft" / "order_toy_digits-toy_shapes" / "seed1", words


def facts(folder, *parts):
    return json.loads(folder.joinpath(*parts, "results.json").read_text())


def cells(folder, *parts):
    """Counts of a result, (T, T)."""
    return AccuracyMatrix.from_json(facts(folder, *parts)["matrix"]).correct.tolist()


def test_every_table_is_kept(toy):
    text, unknown = ((toy[0] / "tables" / name).read_text() for name in ("mtil.md", "mtil_agnostic.md"))
    for row in ("ZeroshotCLIP", "Sequential fine-tuning", "WiSE-FT", "Weight average", "Separate experts"):
        assert row in text
    for row in ("paper vote", "scale none", "prototypes of the experts", "k = 2", "plain average"):
        assert row in text
    assert "unified without decoupling" in text and "2 orders of 2 tasks" in text
    assert "released vote" in unknown and "all learned classes" in unknown


def test_seeds_are_runs_of_their_own_and_their_means_are_the_reports(toy):
    out, words = toy
    several = [*words[:4], "--seeds", "2", "1", "2", *words[6:]]
    assert [(run.seed, run.out) for run in read(several)[1]] == [(2, out.parent / "seed2"), (1, out)]
    with open(out.parent / "tables" / "mtil.csv") as file:
        last = {r["method"]: r["mean"] for r in csv.DictReader(file) if r["quantity"] == "last" and not r["task"]}
    (mean,) = (value for method, value in last.items() if method.endswith("(FT, released vote)"))
    assert mean == f"{facts(out, 'mtil_released')['metrics']['last']:.2f}"


def test_baselines_are_what_their_names_say(toy):
    out = toy[0]
    zero_shot, experts, sequential = (cells(out, "baselines", kind) for kind in ("zero_shot", "experts", "sequential"))
    assert zero_shot[0] == zero_shot[1]
    for i in range(2):
        for j in range(2):
            assert experts[i][j] == (experts[1][j] if j <= i else zero_shot[0][j])
    assert sequential[0][0] == experts[0][0]  # the first task starts from the pretrained weights
    assert sequential[1:] != experts[1:]
    assert cells(out, "baselines", "average")[0] == sequential[0]  # the mean of one expert: the expert, on all tasks


def test_the_stream_begins_with_its_expert_and_its_last_row_is_what_its_sessions_saw(toy):
    out = toy[0]
    own, experts = cells(out, "mtil_paper"), cells(out, "baselines", "experts")
    assert own[0][0] == experts[0][0]  # one task is fused without loss
    assert facts(out, "agnostic_target_paper")["known"][1] == facts(out, "mtil_paper")["matrix"]["accuracy"][1]


def test_experts_fused_again_are_the_stream_on_disk(toy):
    """The ablations' first row is fused in memory from the stored experts, the stream by sessions through files."""
    out = toy[0]
    assert cells(out, "ablations", "ConDU") == cells(out, "mtil_paper")
    assert cells(out, "ablations", "k___2") == cells(out, "mtil_paper")  # of two experts, all
    assert cells(out, "ablations", "plain_average") == cells(out, "baselines", "average")
    assert facts(out, "ablations", "scale_none")["scale"] == "none"


def test_each_order_is_a_stream_of_the_same_tasks(toy):
    orders = [facts(toy[0], "orders", f"{number:02d}_paper")["tasks"] for number in range(2)]
    assert orders[0] != orders[1] and all(sorted(order) == NAMES for order in orders)


def test_figures_and_features_are_drawn(toy):
    out = toy[0]
    drawn = {path.name for path in (out / "figures").glob("*.png")}
    assert "tsne.png" in drawn and any(name.startswith("matrix_mtil_ConDU") for name in drawn)
    points = json.loads((out / "tsne.json").read_text())["points"]
    assert {(point["task"], point["kind"]) for point in points} == {
        (name, kind) for name in NAMES for kind in ("expert", "reconstructed")
    }


def test_what_is_finished_is_skipped(toy):
    out, words = toy
    bench = StreamEvaluation(read(words)[1][0])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}
    numbered = dict(enumerate(random_orders(NAMES, 2, seed=1)))
    old = cells(out, "orders", "01_paper")
    (out / "orders" / "01_paper" / "results.json").unlink()
    evaluate_orders(bench, numbered)
    evaluate_baselines(bench)
    evaluate_ablations(bench)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}
    assert after.keys() == before.keys()
    assert {path.parent.name for path in after if after[path] != before[path]} == {"01_paper", "01_released"}
    assert cells(out, "orders", "01_paper") == old


def test_a_result_of_another_recipe_or_stream_is_refused_and_one_that_cannot_be_read_is_made_again(toy, tmp_path):
    out, words = toy
    shutil.copytree(out, tmp_path / "run")
    run = replace(read(words)[1][0], out=tmp_path / "run")
    other = StreamEvaluation(replace(run, pairs=(*run.pairs, "TRAINER.CONDU.PREC", "bf16")))
    for evaluate in (evaluate_baselines, evaluate_ablations, lambda bench: evaluate_orders(bench, {0: NAMES[::-1]})):
        with pytest.raises(UserError, match="PREC 'fp32', asked for 'bf16'.*--overwrite"):
            evaluate(other)
    spoiled = run.baselines / "average" / "results.json"
    results = json.loads(spoiled.read_text())
    spoiled.write_text(json.dumps(results | {"matrix": {"tasks": []}}))
    evaluate_baselines(StreamEvaluation(run))
    again = json.loads(spoiled.read_text())
    assert again["matrix"] == results["matrix"] and again["inputs"] == results["inputs"]
    spoiled.write_text(json.dumps(results | {"inputs": results["inputs"] | {"stream": "0123"}}))
    with pytest.raises(UserError, match="average: stream '0123', asked for"):
        evaluate_baselines(StreamEvaluation(run))
    before = {path: path.stat().st_mtime_ns for path in run.baselines.rglob("results.json")}
    evaluate_baselines(StreamEvaluation(replace(run, overwrite=True)))
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path for path in before if after[path] != before[path]] == [spoiled]


def test_a_rate_is_measured_by_its_experts_one_by_one_and_by_their_votes(toy, tmp_path):
    """With the experts that the stream has kept, so that none is trained again."""
    out, words = toy
    words = ["--tasks", TASKS, "--rates", "1e-3", "--root", *words[words.index("--root") + 1 :], "--out", str(tmp_path)]
    learned, runs = toy_rates.read(words)
    kept = replace(runs["toy_ft 0.001"][0], experts=read(toy[1])[1][0].experts)
    bench = StreamEvaluation(kept)
    found = toy_rates.measure(bench, learned)
    models = [member(bench, delta) for delta, _ in bench.experts.values()]
    correct = [[bench.evaluator.known(model, test) for test in bench.tests] for model in models]
    totals = [len(test) for test in bench.tests]
    assert found["own"] == pytest.approx(50 * (correct[0][0] / totals[0] + correct[1][1] / totals[1]))
    assert found["others"] == pytest.approx(50 * (correct[0][1] / totals[1] + correct[1][0] / totals[0]))
    for rule in ("paper", "released"):
        metrics = facts(out, f"mtil_{rule}")["metrics"]
        assert {f"{rule}: {key}": value for key, value in metrics.items()}.items() <= found.items()
    zero_shot = toy_rates.measure(StreamEvaluation(runs["zero-shot CLIP"][0]), learned)
    assert zero_shot["own"] == pytest.approx(zero_shot["paper: last"])
    assert zero_shot["paper: transfer"] == facts(out, "baselines", "zero_shot")["metrics"]["transfer"]


def test_default_rates_are_chosen_on_images_that_nothing_was_trained_on(toy_data, tmp_path):
    words = ["--choose", "--lora", "--tasks", "toy_digits,toy_letters", "--rates", "1e-3", "--root", str(toy_data)]
    learned, runs = toy_rates.read([*words, "--out", str(tmp_path), *SMALL])
    assert learned == "toy_letters" and [run.seed for run in runs["toy_lora 0.001"]] == [11, 12]
    bench = StreamEvaluation(runs["toy_lora 0.001"][0])
    found = toy_rates.measure(bench, learned)
    assert set(found) == {"own", "others", toy_rates.MEAN}
    session = facts(bench.run.out, "sessions", "0_toy_letters")
    assert session["data_seen"] and session["metrics"]["accuracy"] == found["own"]  # one task is fused without loss
    for dataset, test in zip(bench.datasets, bench.tests, strict=True):
        assert [item.impath for item in test.loader.dataset.data_source] == [item.impath for item in dataset.val]
        assert not {item.impath for item in dataset.val} & {item.impath for item in dataset.train_x}
    with pytest.raises(UserError, match="to --choose one of toy_objects, toy_letters, toy_counts"):
        toy_rates.read(["--choose", "--tasks", TASKS])
    with pytest.raises(UserError, match="expected numbers above 0, but got 0.001 -1"):
        toy_rates.read(["--rates", "1e-3", "-1"])


def test_what_fails_in_a_stage_is_one_line(tmp_path, capfd):
    run = read(["--tasks", "toy_digits", "--root", "/proc/nowhere", "--out", str(tmp_path)])[1][0]
    with pytest.raises(SystemExit) as stopped, pool(1, threads=1) as workers:
        together(workers, "Drawing the images", (run, attrgetter("names")))
    said = capfd.readouterr().err
    assert stopped.value.code == 1
    (error,) = [line for line in said.splitlines() if not line.startswith("Drawing")]  # a bar, now and then
    assert error.startswith("error: Drawing the images: ")
