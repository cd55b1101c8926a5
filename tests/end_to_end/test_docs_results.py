"""docs/results.md against what runs of every kind write."""

import json

import pytest

import train
from datasets.toy_world import ToyData
from mergetune import ensemble, merge
from scripts.condu import stream
from tests.fixtures.any_trainer import line
from tests.fixtures.pages import PAGES, ticked

CONDU = {"TRAINER.CONDU.ITERATIONS": 2, "OPTIM.WARMUP_STEPS": 1, "TRAINER.CONDU.ROUND": 1, "OPTIM.LR": "1e-3"}


def fields():
    """{field: what its row says} of all tables of the page."""
    rows = [line.strip("|").split("|") for line in PAGES["results.md"].splitlines() if line.startswith("| `")]
    return {name: meaning for names, meaning in rows for name in ticked(names)}


@pytest.fixture(scope="module")
def records(tmp_path_factory, pets_root):
    """results.json of runs of every kind, by their place: trained, evaluated, merged, blended, of streams."""
    out, data = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("toys")

    def run(name, trainer, *words, root=pets_root, **keys):
        train.main(line(trainer, root, out / name, *words, "FEATURES.DIR", out / "features", **keys))
        return out / name

    coop = run("coop", "CoOp")
    merge.main(
        ["--method", "ties", "--density", "0.2", "--scale", "1", str(coop), "--out", str(out / "ties"), "--eval", "new"]
    )
    run(
        "evaluated",
        "CoOp_LMC",
        "--eval-only",
        "--model-dir",
        run("lmc", "CoOp_LMC", "--resume-coop", coop),
        subset="new",
    )
    words = ["--eval-only", "--model-dir", out / "lmc", "--load-epoch", "last", "TEST.OTHERS", "auto"]
    run("last_epoch", "CoOp_LMC", *words, subset="new")
    run("student", "PromptKD")
    run("adapters", "MultiModalAdapter")
    ensemble.main([str(run("probe", "LinearProbe")), "--alphas", "0.5"])
    own = tmp_path_factory.mktemp("own")
    (own / "oxford_pets").mkdir()
    (own / "oxford_pets" / "images").symlink_to(pets_root / "oxford_pets" / "images")
    split = (pets_root / "oxford_pets" / "split_zhou_OxfordPets.json").read_text()
    (own / "oxford_pets" / "split_local_OxfordPets.json").write_text(split)
    run("own_split", "ZeroshotCLIP", "--eval-only", root=own)
    words = ["--root", str(data), "--cfg", "toy_lora", "--order", "toy_digits,toy_shapes"]
    words += [str(word) for pair in CONDU.items() for word in pair]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyData, "counts", (5, 1, 2))
        stream.main(["train", "--out", str(out / "stream"), *words])
        for what in ("mtil", "agnostic"):
            stream.main([f"eval-{what}", "--run", str(out / "stream"), "--out", str(out / what), *words])
        unseen = ["--config-file", "configs/trainers/ConDU/toy_lora.yaml", "--root", str(data), "--seed", "1"]
        unseen += ["--dataset-config-file", "configs/datasets/mtil/toy_colours.yaml", "--trainer", "ConDU"]
        train.main(
            [*unseen, "--output-dir", str(out / "unseen"), "--eval-only", "--model-dir", str(out / "stream/stream")]
        )
    return {str(file.parent.relative_to(out)): json.loads(file.read_text()) for file in out.rglob("results.json")}


def test_every_field_that_runs_write_is_explained_and_every_explained_one_is_written(records):
    written = {name for record in records.values() for name in record}
    assert written == set(fields()) - {"processes", "unfinished"}  # tests/dassl/engine: distributed, recipe


def test_what_stands_inside_a_field_is_explained_too(records):
    told = fields()
    for place, record in records.items():
        for name, value in record.items():
            if isinstance(value, dict) and name not in ("versions", "recipe", "inputs"):
                assert not set(value) - set(ticked(told[name])), (place, name)
