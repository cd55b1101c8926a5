"""What pages say in tables is what is so; of each kind of command one is typed, from a fresh checkout.

All commands of all pages: bash tests/run.sh --docs.
"""

import pytest

from dassl.config import leaves, read_yaml
from dassl.data.datasets import DATASET_REGISTRY
from datasets import register_all
from datasets.tools.known import COOP, MTIL
from scripts.commands import COMMANDS
from scripts.plans import listed_pairs, pair_jobs
from tests.conftest import ROOT
from tests.docs.typed import typed_of
from tests.fixtures.checkout import SMALL, check_out, type_in, write_data, write_foreign
from tests.fixtures.pages import PAGES, files_to_write, table, ticked

PRESETS = ("released", "paper", "continued")
# one of each kind, as the pages have them: each is what begins so, in the shell of its group
KINDS = {
    "a pair": [
        ("methods.md", "bash scripts/kgcoop/base2new_train.sh"),
        ("methods.md", "bash scripts/kgcoop_LMC/"),
        ("methods.md", "RUN=output/output_KgCoOp/"),
        ("methods.md", "python -m mergetune.merge --method ties"),
        ("methods.md", "cat > example_0.py"),  # Predictor
        ("methods.md", "RUN=output/output_KgCoOp_LMC/"),
        ("methods.md", "python -m mergetune.path_card"),
        ("methods.md", "python -m mergetune.report"),
    ],
    "others": [
        ("README.md", "python train.py --trainer MyCoOp"),
        ("README.md", "bash scripts/coop/base2new_train.sh my_birds"),
        ("methods.md", "python -m mergetune.import_checkpoint"),
        ("continual.md", "python -m condu.import_released"),
        ("datasets.md", "python -m datasets links"),
    ],
}


@pytest.mark.parametrize("group", KINDS)
def test_one_command_of_each_kind_as_typed(group, tmp_path):
    write_data(tmp_path / "data")
    folder = check_out(tmp_path / "clone", tmp_path / "data")
    write_foreign(folder)
    for page in {page for page, _ in KINDS[group]}:
        for name, content in files_to_write(PAGES[page]).items():
            (folder / name).write_text(content)
    commands = [next(c for c in typed_of(page) if c.startswith(start)) for page, start in KINDS[group]]
    failed = [f"$ {entry.command}\n{entry.output}" for entry in type_in(folder, commands, SMALL) if entry.status]
    assert not failed, "\n\n".join(failed)


# --- reproduce.md


@pytest.mark.parametrize("trainer", ["CoOp_LMC", "KgCoOp_LMC", "MMA_LMC", "PromptKD_LMC"])
def test_the_presets_are_as_the_tables_say(trainer):
    heading = "CoOp_LMC, KgCoOp_LMC" if "CoOp" in trainer else trainer
    presets = [dict(leaves(read_yaml(ROOT / "configs" / "trainers" / trainer / f"{n}.yaml"))) for n in PRESETS]
    for name, *values in table("reproduce.md", heading):
        (key,) = ticked(name)
        assert [str(preset[key]) for preset in presets] == values, key


def test_the_number_of_runs_is_that_of_the_plan():
    for name, runs, trainings in table("reproduce.md", "pair, base-to-new"):
        steps = pair_jobs(name, "base2new", "caltech101", 1)
        trained = [step for step in steps if not COMMANDS[step.command].evaluates and "train" in step.command]
        assert [str(len(steps)), str(len(trained))] == [runs, trainings]
    assert {row[0] for row in table("reproduce.md", "pair, base-to-new")} == {
        pair.name for pair in listed_pairs() if "base2new" in pair.protocols
    }


# --- datasets.md


@pytest.mark.parametrize("group", [COOP, MTIL], ids=["CoOp", "MTIL"])
def test_the_public_datasets_are_as_the_page_says(group):
    register_all()
    part = PAGES["datasets.md"].split("## MTIL")[group is MTIL]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:3] == "| `"]
    assert [ticked(row[0])[0] for row in rows] == list(group)
    for name, yaml, folder, *counts in rows:
        known, dataset = group[ticked(name)[0]], DATASET_REGISTRY.get(ticked(name)[0])
        assert (
            read_yaml(ROOT / "configs" / "datasets" / f"{ticked(yaml)[0]}.yaml")["DATASET"]["NAME"] == ticked(name)[0]
        )
        assert ticked(folder)[0] == dataset.folders[0]
        expected = known[:4] if group is COOP else (known.classes, known.train, known.test)
        assert [int(count.replace(",", "") or 0) for count in counts[: len(expected)]] == list(expected), name
    for name in group if group is COOP else ():
        assert DATASET_REGISTRY.get(name).split_file in part and DATASET_REGISTRY.get(name).images[0] in part
