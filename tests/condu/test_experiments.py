"""ConDU's scripts: orders, folders and command lines; a small stream trained, stopped, continued and evaluated."""

import json
import shlex
import shutil
from dataclasses import replace

import pytest

import train
from condu.orders import ORDERS, random_orders, tasks_of
from dassl.utils import UserError
from scripts.commands.condu import EVALUATION, TRAINING
from scripts.condu import sessions, stream
from scripts.condu.evaluate import StreamEvaluation, training_line
from scripts.condu.experiments import sequential_store, train_sequential
from scripts.run import main
from tests.fixtures.condu_runs import Killed, steps_counted

SMALL = ["TRAINER.CONDU.ITERATIONS", "2", "OPTIM.WARMUP_STEPS", "1", "TRAINER.CONDU.ROUND", "1"]
TASKS = "toy_digits,toy_shapes"


@pytest.fixture
def dry(monkeypatch, tmp_path, capsys):
    """`dry(name, *words, **environment)` -> the printed command lines of a script of ConDU, as words."""

    def run(name, *words, **environment):
        for key, value in ({"DRY_RUN": "1", "OUTPUT": str(tmp_path), "DATA": "/data"} | environment).items():
            monkeypatch.setenv(key, value)
        assert main([f"condu/{name}", *words]) == 0, capsys.readouterr().err
        return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]

    return run


def config_of(line):
    return train.setup_cfg(train.build_parser().parse_intermixed_args(line[line.index("train.py") + 1 :]))


def test_both_orders_have_the_eleven_data_sets():
    assert len(ORDERS["I"]) == 11 and sorted(ORDERS["I"]) == list(ORDERS["I"]) == sorted(ORDERS["II"])
    assert ORDERS["II"][:3] == ("stanford_cars", "food", "mnist") and ORDERS["II"][-1] == "cifar100"
    assert all(tasks_of(",".join(order)) == order for order in ORDERS.values())


@pytest.mark.parametrize(
    ("order", "told"),
    [("toy_shape", "[toy_shapes]"), ("III", "[II]"), ("dtd,mnits", "[mnist]"), ("dtd,dtd", "dtd comes twice")],
)
def test_an_unknown_order_is_refused_with_the_nearest_name(order, told, capsys):
    with pytest.raises(UserError) as error:
        tasks_of(order)
    assert told in str(error.value)
    assert main(["condu/MTIL_FT", order]) == 2
    assert told in capsys.readouterr().err


def test_random_orders_are_different_and_the_first_ones_stay():
    names = ("a", "b", "c", "d")
    ten = random_orders(names, 10, seed=1)
    assert len(set(ten)) == 10 and all(sorted(order) == list(names) for order in ten)
    assert random_orders(names, 3, seed=1) == ten[:3] != random_orders(names, 3, seed=2)
    assert len(random_orders(("a", "b", "c"), 20, seed=1)) == 6


@pytest.mark.parametrize("name", TRAINING)
def test_each_session_is_a_line_of_train_py(dry, tmp_path, name):
    lines = dry(name, "II")
    streams, cfg = set(), TRAINING[name]
    for index, (line, task) in enumerate(zip(lines, ORDERS["II"], strict=True)):
        own = config_of(line)
        assert line[:2] == ["python", "train.py"] and own.TRAINER.NAME == "ConDU" and own.TRAINER.MODAL == "mtil"
        assert str(tmp_path / f"mtil/{cfg}/order_II/seed1/sessions/{index}_{task}") == own.OUTPUT_DIR
        assert (index, True, "") == (own.TRAINER.CONDU.SESSION, own.TRAINER.CONDU.HISTORY, own.TRAINER.CONDU.EXPERTS)
        assert (own.TRAINER.CONDU.SPACE == "lora") == ("LoRA" in name)
        assert (own.DATASET.NUM_SHOTS > 0) == name.startswith("fewshot")
        assert own.PRESET == "paper"
        streams.add(own.TRAINER.CONDU.STREAM)
    assert streams == {str(tmp_path / f"mtil/{cfg}/order_II/seed1/stream")}


def test_the_environment_chooses_recipe_seeds_and_processes(dry, tmp_path):
    lines = dry("MTIL_FT", TASKS, "--", "OPTIM.LR", "2e-5", CFG="toy_lora", SEEDS="1 2", GPUS="4")
    assert len(lines) == 4 and all("--nproc-per-node=4" in line and line[-2:] == ["OPTIM.LR", "2e-5"] for line in lines)
    assert [config_of(line).SEED for line in lines] == [1, 1, 2, 2]
    assert all("/toy_lora/order_toy_digits-toy_shapes/seed" in config_of(line).OUTPUT_DIR for line in lines)
    assert dry("MTIL_FT") == dry("MTIL_FT", "I")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", EVALUATION)
def test_an_evaluation_reads_what_its_training_wrote(dry, name):
    for cfg in ("", f"fewshot_{EVALUATION[name][0]}"):
        (line,) = dry(name, "II", CFG=cfg)
        _, run = stream.read(line[3:])
        (first, *_) = dry(f"{'fewshot_' if cfg else ''}{name[name.index('MTIL') :]}", "II", CFG="")
        assert str(run.stream) == config_of(first).TRAINER.CONDU.STREAM
        assert ("eval-agnostic" in line) == ("agnostic" in name)


@pytest.mark.parametrize(("key", "value", "told"), [("CFG", "mtil_tf", "mtil_ft"), ("GPUS", "two", "GPUS is 'two'")])
def test_a_wrong_environment_is_told(monkeypatch, capsys, key, value, told):
    monkeypatch.setenv(key, value)
    assert main(["condu/MTIL_FT", "II"]) == 2
    assert told in capsys.readouterr().err


def test_kept_experts_are_shared_by_all_orders(tmp_path, dry):
    (line, *_) = dry("MTIL_FT", TASKS, "--keep-experts")
    assert str(tmp_path / "mtil/mtil_ft/experts/seed1") == config_of(line).TRAINER.CONDU.EXPERTS
    runs = [
        stream.read(["train", "--order", order, "--keep-experts", "--out", str(tmp_path / f"cfg/order_{order}/seed1")])[
            1
        ]
        for order in ("I", "II")
    ]
    assert runs[0].experts == runs[1].experts == str(tmp_path / "cfg/experts/seed1")


@pytest.fixture(scope="module", params=["toy_ft", "toy_lora"])
def trained(request, toy_data, tmp_path_factory):
    """Words of a trained stream of two tasks, and its folder."""
    out = tmp_path_factory.mktemp("out") / "run"
    words = ["--cfg", request.param, "--root", str(toy_data), *SMALL]
    stream.main(["train", "--order", TASKS, "--out", str(out), *words])
    return words, out


def results_below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("results.json")}


@pytest.fixture
def copied(trained, tmp_path):
    """The words of `trained`, and a copy of its folder to spoil."""
    words, out = trained
    shutil.copytree(out, tmp_path / "run")
    return words, tmp_path / "run"


def train_stream(words, out, *more):
    stream.main(["train", "--order", TASKS, "--out", str(out), *words, *more])


def same_results(one, other):
    """Do two records agree in what they measured?"""
    records = [json.loads(path.read_text()) for path in (one, other)]
    return len({json.dumps([found[key] for key in ("correct", "metrics", "stream_digest")]) for found in records}) == 1


def test_a_trained_stream_is_not_trained_again(trained):
    words, out = trained
    before = results_below(out)
    assert len(before) == 2 and not (out.parent.parent / "experts").exists()
    train_stream(words, out)
    assert results_below(out) == before


@pytest.mark.parametrize("trained", ["toy_ft"], indirect=True)
@pytest.mark.parametrize(("index", "content"), [(0, None), (0, ""), (1, "{}"), (1, '{"metrics": 3}')])
def test_a_session_whose_record_is_lost_is_read_off_the_stream_again(copied, trained, monkeypatch, index, content):
    (words, out), file = copied, f"sessions/{index}_{TASKS.split(',')[index]}/results.json"
    state = {path: path.stat().st_mtime_ns for path in (out / "stream").iterdir() if path.name != ".lock"}
    (out / file).unlink() if content is None else (out / file).write_text(content)
    steps = steps_counted(monkeypatch)
    train_stream(words, out)
    assert same_results(out / file, trained[1] / file) and not steps
    assert {path: path.stat().st_mtime_ns for path in state} == state


@pytest.mark.parametrize("trained", ["toy_ft"], indirect=True)
def test_a_stream_of_another_recipe_is_refused_before_any_run_and_overwrite_does_it_again(copied, monkeypatch, capsys):
    words, out = copied
    evaluate = ["eval-mtil", "--order", TASKS, "--run", str(out), "--out", str(out / "mtil"), *words]
    stream.main(evaluate)
    before, other = results_below(out), ["TRAINER.CONDU.LR_OF", "['ToyShapes=0.5']"]
    with pytest.raises(UserError, match=r"1_toy_shapes: TRAINER.CONDU.LR_OF \[\], asked .*ToyShapes=0.5.*--overwrite"):
        train_stream(words, out, "TRAINER.CONDU.LABEL_SMOOTHING", "0.2", *other)
    assert results_below(out) == before
    steps = steps_counted(monkeypatch)
    train_stream(words, out, *other, "--overwrite")
    assert set(steps) == {"ToyDigits", "ToyShapes"}  # the key is in the recipe of both
    after = results_below(out)
    assert all(after[path] != before[path] for path in before if "sessions" in path.parts)
    train_stream(words, out, *other, "--overwrite")
    train_stream(words, out, *other)
    assert results_below(out) == after
    with pytest.raises(UserError, match="mtil_paper: .*stream .*asked for .*--overwrite evaluates again"):
        stream.main([*evaluate, *other])
    stream.main([*evaluate, *other, "--overwrite"])
    capsys.readouterr()
    stream.main([*evaluate, *other])
    assert "Transfer" in capsys.readouterr().out


@pytest.mark.parametrize("trained", ["toy_ft"], indirect=True)
def test_a_redo_that_was_killed_goes_on_and_later_sessions_fuse_the_redone_one(copied, tmp_path, monkeypatch):
    """Only the first task is drawn otherwise; the second one's session came of it."""
    words, out = copied
    first, second = (out / "sessions" / f"{i}_{task}" / "results.json" for i, task in enumerate(TASKS.split(",")))
    facts = json.loads(first.read_text())
    first.write_text(json.dumps(facts | {"split_digest": "other"}))
    with pytest.raises(UserError, match="1 of 2 sessions were run otherwise: .*0_toy_digits: the data set"):
        train_stream(words, out)
    for number in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(sessions, "start", killed_at(number, sessions.start))
            train_stream(words, out, "--overwrite")
    with pytest.raises(UserError, match="1_toy_shapes: .*stream no longer holds what it left.*--overwrite"):
        train_stream(words, out)
    before = first.stat().st_mtime_ns
    train_stream(words, out, "--overwrite")
    assert first.stat().st_mtime_ns == before
    train_stream(words, tmp_path / "whole")
    for redone in (first, second):
        assert same_results(redone, tmp_path / "whole" / redone.relative_to(out))


def killed_at(number, plain):
    """`plain`, whose number-th call never begins."""
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) == number:
            raise Killed
        return plain(*args)

    return call


@pytest.mark.parametrize("trained", ["toy_ft"], indirect=True)
def test_fine_tuning_in_sequence_is_done_again_where_it_differs_and_where_it_began_from_something_else(
    copied, monkeypatch
):
    words, out = copied
    _, run = stream.read(["train", "--order", TASKS, "--out", str(out), *words])
    bench, again = StreamEvaluation(run), StreamEvaluation(replace(run, overwrite=True))
    steps = steps_counted(monkeypatch)
    train_sequential(bench)
    train_sequential(bench)
    assert steps == ["ToyDigits"] * 2 + ["ToyShapes"] * 2
    first = run.baselines / "sequential" / "sessions" / "0_toy_digits" / "results.json"
    first.write_text(json.dumps(json.loads(first.read_text()) | {"split_digest": "other"}))
    with pytest.raises(UserError, match="1 of 2 sessions were run otherwise: .*0_toy_digits: the data set"):
        train_sequential(bench)
    train_sequential(again)
    assert steps[4:] == ["ToyDigits"] * 2  # to the same weights, so the second task began from what it would now
    store = sequential_store(run)
    delta, prototypes, facts = store.load("ToyDigits")
    store.save("ToyDigits", {name: 2 * value for name, value in delta.items()}, prototypes, facts)
    with pytest.raises(UserError, match="1 of 2 .*1_toy_shapes: TRAINER.CONDU.START .*something else"):
        train_sequential(bench)
    train_sequential(again)
    assert steps[6:] == ["ToyShapes"] * 2


@pytest.mark.parametrize("trained", ["toy_ft"], indirect=True)
@pytest.mark.parametrize("spoil", ["remove", "damage", "exchange"])
def test_a_stream_that_no_longer_holds_what_a_session_left_is_said(copied, spoil):
    words, out = copied
    first, last = (out / "stream" / f"session_{number}.safetensors" for number in (0, 1))
    if spoil == "remove":
        last.unlink()
    elif spoil == "damage":
        last.write_bytes(last.read_bytes()[:100])
    else:
        shutil.copy(first, last)
    with pytest.raises(UserError, match="1_toy_shapes: .*no longer holds what it left"):
        train_stream(words, out)


def test_all_sessions_are_evaluated_in_one_pass(trained, capsys):
    words, out = trained
    common = ["--order", TASKS, "--run", str(out), *words]
    stream.main(["eval-mtil", "--out", str(out / "mtil"), *common])
    stream.main(["eval-agnostic", "--out", str(out / "agnostic"), *common])
    printed = capsys.readouterr().out
    assert "Transfer" in printed and "released vote)" in printed and "all learned classes" in printed
    mtil = json.loads((out / "mtil_paper" / "results.json").read_text())
    union = json.loads((out / "agnostic_union_paper" / "results.json").read_text())
    target = json.loads((out / "agnostic_target_paper" / "results.json").read_text())
    assert (
        mtil["tasks"] == ["ToyDigits", "ToyShapes"] and mtil["vote"]["name"] == "paper" and mtil["trainer"] == "ConDU"
    )
    cells = mtil["matrix"]["accuracy"]
    assert cells[0][1] == target["matrix"]["accuracy"][0][1]  # unseen: the vote of both
    assert target["known"][1] == cells[1] and target["known"][0][1] is None
    assert (target["labels"], union["labels"], union["protocol"]) == ("target", "union", "mtil_agnostic")
    for index, task in enumerate(("toy_digits", "toy_shapes")):  # what the session itself has tested
        session = json.loads((out / "sessions" / f"{index}_{task}" / "results.json").read_text())
        assert session["metrics"]["accuracy"] == pytest.approx(cells[index][index])
    before = results_below(out)
    stream.main(["eval-mtil", "--out", str(out / "mtil"), *common])
    assert results_below(out) == before


def test_an_evaluation_says_what_has_to_be_trained_first(trained, tmp_path):
    words, out = trained
    longer = ["eval-mtil", "--order", f"{TASKS},toy_colours", "--out", str(tmp_path / "mtil"), *words]
    with pytest.raises(UserError, match=r"lacks session 2 \(ToyColours\); make it with: .*MTIL_.*toy_colours"):
        stream.main([*longer, "--run", str(out)])
    with pytest.raises(UserError, match=r"lacks session 0 \(ToyDigits\), .*; make it with: "):
        stream.main([*longer, "--run", str(tmp_path)])
    turned = ["eval-mtil", "--order", "toy_shapes,toy_digits", "--run", str(out), "--out", str(tmp_path / "mtil")]
    with pytest.raises(UserError, match="learned ToyDigits, ToyShapes; expected ToyShapes, ToyDigits"):
        stream.main([*turned, *words])
    assert not list(tmp_path.iterdir())


def test_a_vote_of_ones_own_is_evaluated_beside_the_presets(trained):
    words, out = trained
    args = ["eval-mtil", "--order", TASKS, "--run", str(out), "--out", str(out / "mtil"), *words]
    _, run = stream.read(args)
    assert list(StreamEvaluation(run).rules()) == ["paper", "released"]
    _, run = stream.read([*args, "TRAINER.CONDU.VOTE.K", "2"])
    rules = StreamEvaluation(run).rules()
    assert list(rules) == ["own", "paper", "released"] and rules["own"].k == 2
    assert f"bash scripts/condu/MTIL_{'LoRA' if 'lora' in run.cfg else 'FT'}.sh {TASKS}" in training_line(run)
