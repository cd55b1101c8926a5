"""Rows of the tables: names, order, what may be averaged together."""

from dassl.report.methods import Methods
from dassl.report.protocols.against import against_report
from dassl.report.protocols.base2new import base2new, base2new_report
from dassl.report.protocols.paired import paired_report
from dassl.report.records import load_results
from mergetune.report import METHODS
from tests.fixtures.runs import only, write_pairs, write_run


def test_methods_have_the_names_and_order_of_the_table(tmp_path):
    pairs = [
        ("CoOp_LMC", "paper"), ("Other", "fast"), ("Other", ""), ("KgCoOp_COOP_LMC", "released"),
        ("CoOp", ""), ("CoOp_Average", ""), ("ZeroshotCLIP", None), ("CoOp_LMC", "continued"),
    ]  # fmt: skip
    for k, (trainer, preset) in enumerate(pairs):
        write_run(tmp_path / str(k), trainer=trainer, preset=preset)
    found = base2new(load_results(tmp_path), METHODS)
    assert [row.label for row in found.rows] == [
        "ZeroshotCLIP", "CoOp", "CoOp continued", "CoOp average", "CoOp_LMC (released)", "CoOp_LMC (paper)",
        "Other", "Other (fast)",
    ]  # fmt: skip


def test_runs_under_the_old_and_the_new_name_share_a_row(tmp_path):
    write_run(tmp_path / "1", trainer="CoOp_LMC", preset="released", seed=1, accuracy=40)
    write_run(tmp_path / "2", trainer="KgCoOp_COOP_LMC", preset="released", seed=2, accuracy=60)
    found = base2new(load_results(tmp_path), METHODS)
    assert found.on(only(found), "toy_a")["base"][:3] == (50, 10, 2)


def test_runs_that_differ_in_shots_or_backbone_are_never_averaged_together(tmp_path):
    write_run(tmp_path / "1", accuracy=40, seed=1)
    write_run(tmp_path / "2", accuracy=60, seed=2, shots=4)
    write_run(tmp_path / "3", accuracy=80, seed=3, backbone={"name": "ViT-B/16"})
    text = base2new_report(load_results(tmp_path)).text()
    assert all(f"CoOp, {run} shots" in text for run in ("tiny, 16", "tiny, 4", "ViT-B/16, 16"))
    assert "60.00" in text and "±" not in text.split("mean ±")[0]


def test_shots_do_not_split_a_method_that_sees_no_data(tmp_path):
    write_run(tmp_path / "1", trainer="ZeroshotCLIP", data_seen="none", shots=16, seed=1)
    write_run(tmp_path / "2", trainer="ZeroshotCLIP", data_seen="none", shots=-1, seed=2)
    write_run(tmp_path / "3", trainer="CoOp", shots=16)
    found = base2new(load_results(tmp_path))
    assert [row.label for row in found.rows] == ["CoOp", "ZeroshotCLIP"]
    assert "(tiny, 16 shots)" in base2new_report(load_results(tmp_path), METHODS).text().splitlines()[0]


def test_an_unknown_method_needs_no_table():
    assert Methods().label("Mine", "fast") == "Mine (fast)"
    assert Methods().label("Mine") == "Mine"


def test_every_method_has_its_printed_name():
    assert [METHODS.label(*pair) for pair in (
        ("MultiModalAdapter", ""), ("MMA_LMC", "paper"), ("MMA_LMC", "continued"), ("KgCoOp_COOP_LMC", "released"),
        ("KgCoOp", ""), ("PromptKD_LMC", "released"), ("PromptSRC", ""), ("LinearProbe_LMC", "paper"),
        ("ZeroshotCLIP2", ""), ("FineTune", "x"),
    )] == [
        "MMA", "MMA_LMC (paper)", "MMA continued", "CoOp_LMC (released)", "KgCoOp", "PromptKD_LMC (released)",
        "PromptSRC", "LinearProbe_LMC (paper)", "ZeroshotCLIP2", "FineTune",
    ]  # fmt: skip


def merged(root, name, preset, seed=1, trainer="CoOp", chosen="given", **merge):
    fields = {"merge": merge, "alpha_chosen_on": chosen, "preset": preset}
    write_run(root / f"{name}{seed}", trainer, seed=seed, **fields)


def test_merges_stand_behind_their_run_with_their_values(tmp_path):
    ties = {"method": "ties", "title": "TIES", "values": {"density": 0.2, "scale": 1.0}}
    dare = {"method": "dare", "title": "DARE", "values": {"density": 0.1, "seed": 1}}
    for seed in (1, 2):
        merged(tmp_path, "t", "TIES (density 0.2, scale 1)", seed, **ties)
        merged(tmp_path, "d", "", seed, **dare | {"values": dare["values"] | {"seed": seed}})
        searched = ties | {"values": {"density": 0.1 * seed}}
        merged(tmp_path, "s", f"TIES (density {0.1 * seed})", seed, chosen="validation", **searched)
    blend = {"method": "wise_ft", "title": "weight ens.", "alpha": 0.5, "preset": "paper"}
    write_run(tmp_path / "w", "CoOp_LMC", preset="paper + weight ens.", merge=blend, alpha_chosen_on="given")
    for trainer, preset in (("CoOp", ""), ("CoOp_LMC", "paper"), ("KgCoOp", "")):
        write_run(tmp_path / trainer, trainer, preset=preset)
    found = base2new(load_results(tmp_path), METHODS)
    assert [row.label for row in found.rows] == [
        "CoOp", "CoOp + DARE (density 0.1)", "CoOp + TIES (density 0.2, scale 1)", "CoOp + TIES (values by validation)",
        "CoOp_LMC (paper)", "CoOp_LMC (paper) + weight ens. (alpha 0.5)", "KgCoOp",
    ]  # fmt: skip
    assert [found.on(row, "toy_a")["base"].n for row in found.rows] == [1, 2, 2, 2, 1, 1, 1]


def test_a_run_of_an_unfinished_training_is_a_row_of_its_own_that_says_so(tmp_path):
    line = "epochs 30 of 300, unfinished"
    for seed, fields in enumerate(({}, {"unfinished": line}, {"unfinished": "epochs 46 of 300, unfinished"}), start=1):
        write_pairs(tmp_path / str(seed), {"EuroSAT": [(80, 60)]}, backbone={"name": "ViT-B/16"}, **fields)
    report = base2new_report(load_results(tmp_path), METHODS)
    names = ["CoOp", f"CoOp, {line}", "CoOp, epochs 46 of 300, unfinished"]
    assert all([row[0] for row in table.rows] == names for table in report.tables)
    assert {row[0] for row in report.lines} == set(names)
    against = against_report(report, load_results(tmp_path), METHODS)
    assert {row[0]: "unfinished" in row[8] for row in against.lines} == dict.fromkeys(names, True) | {"CoOp": False}
    assert f"CoOp, {line}: {line}." in against.text()


def test_weights_that_a_line_named_are_a_row_of_their_own_which_no_paper_and_no_stage_2_stands_on(tmp_path):
    clip = {"backbone": {"name": "ViT-B/16"}, "max_epoch": 200}
    chosen = {"best": {"chosen_on": "validation"}, "last": {"chosen_on": "last_step", "instead_of": "best_val"},
              "third": {"chosen_on": "epoch 3", "instead_of": "best_val"}}  # fmt: skip
    for k, (name, fields) in enumerate(chosen.items()):
        for trainer, preset in (("CoOp", ""), ("CoOp_LMC", "released"), ("CoOp_LMC", "continued")):
            scores = {"EuroSAT": [(80 + k, 60), (82 + k, 60)]}
            write_pairs(tmp_path / name, scores, trainer=trainer, preset=preset, **clip, **fields)
    records = load_results(tmp_path)
    found, report = base2new(records, METHODS), base2new_report(records, METHODS)
    names = [
        "CoOp", "CoOp, epoch 3", "CoOp, last epoch", "CoOp continued", "CoOp continued, epoch 3",
        "CoOp continued, last epoch", "CoOp_LMC (released)", "CoOp_LMC (released, epoch 3)",
        "CoOp_LMC (released, last epoch)",
    ]  # fmt: skip
    assert [row.label for row in found.rows] == names
    assert [found.on(row, "EuroSAT")["base"][:3] for row in found.rows] == [(81, 1, 2), (83, 1, 2), (82, 1, 2)] * 3
    assert {line[2] for line in report.lines if "last" in line[0]} == {"", "released", "continued"}
    assert {line[0] for line in against_report(report, records, METHODS).lines} <= {"CoOp", "CoOp_LMC (released)"}
    pairs = [row[:2] for table in paired_report(records, METHODS).tables for row in table.rows]
    assert [beside for name, beside in pairs if name == names[-1]] == ["CoOp", "CoOp continued", names[5]]
    assert [beside for name, beside in pairs if name == names[-3]] == ["CoOp", "CoOp continued"]


def test_evaluations_of_a_named_epoch_that_say_no_more_stay_in_their_row(tmp_path):
    for seed, chosen in enumerate(("epoch 5", "last_step", "validation"), start=1):
        write_run(tmp_path / chosen, "MMA_LMC", preset="released", seed=seed, chosen_on=chosen)
    assert only(base2new(load_results(tmp_path), METHODS)).label == "MMA_LMC (released)"


def test_a_changed_preset_follows_its_own(tmp_path):
    for k, (trainer, preset) in enumerate([("CoOp_LMC", "paper, changed: X"), ("CoOp_LMC", "paper"), ("KgCoOp", "")]):
        write_run(tmp_path / str(k), trainer, preset=preset)
    labels = [row.label for row in base2new(load_results(tmp_path), METHODS).rows]
    assert labels == ["CoOp_LMC (paper)", "CoOp_LMC (paper, changed: X)", "KgCoOp"]


def test_data_sets_stand_in_the_usual_order_then_by_alphabet(tmp_path):
    for name in ("toy_a", "EuroSAT", "Caltech101", "ImageNet", "Apples"):
        write_run(tmp_path / name, dataset=name)
    found = base2new(load_results(tmp_path), METHODS)
    assert found.datasets == ["ImageNet", "Caltech101", "EuroSAT", "Apples", "toy_a"]
