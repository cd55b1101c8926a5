"""Published numbers beside ours: the data agree with themselves, the band, what differs, what has no partner."""

import pytest

from condu.evaluation import write_matrix
from dassl.report.protocols.against import Published, against_report, load_published
from dassl.report.protocols.base2new import base2new_report
from dassl.report.protocols.fewshot import fewshot_report
from dassl.report.protocols.mtil import mtil_report
from dassl.report.protocols.transfer import transfer_report
from dassl.report.records import load_results
from dassl.utils import UserError
from mergetune.report import METHODS, main
from tests.fixtures.runs import write_pairs, write_run
from tests.fixtures.streams import matrix_of_percent

CLIP = {"name": "ViT-B/16"}
DATASETS = METHODS.datasets[:11]


def beside(folder, make=base2new_report, *words):
    """The comparison of the runs below a folder."""
    records = load_results(folder)
    return against_report(make(records, *words, METHODS), records, METHODS)


def test_one_data_set_in_the_band_and_one_out_of_it(tmp_path):
    # published CoOp: Caltech101 98.00 / 89.81 (H 93.73), OxfordPets 93.67 / 95.29 (H 94.47)
    write_pairs(tmp_path, {"Caltech101": [(97.5, 90.0)], "OxfordPets": [(92.0, 95.0)]}, backbone=CLIP, max_epoch=200)
    report = beside(tmp_path)
    verdicts = {(line[1], line[2]): (line[5], line[6], line[7]) for line in report.lines}
    assert verdicts["Caltech101", "base"] == ("-0.50", "1.00", "in")
    assert verdicts["OxfordPets", "base"] == ("-1.67", "1.00", "out")
    assert verdicts["OxfordPets", "new"] == ("-0.29", "1.00", "in")
    # an average over other data sets than the paper's eleven stands beside nothing
    assert not any(dataset == "average" for dataset, _ in verdicts)
    (note,) = (note for note in report.tables[0].notes if "averages are not compared" in note)
    assert note.endswith("published over 11 data sets, ours over 2.")
    assert "arXiv 2203.05557" in report.text() and "2 x the published deviation" in report.text()
    assert report.tables[0].title == "3 of 4 in the band"


def test_a_published_deviation_sets_the_band():
    assert Published(50.0, 0.4, "").band("EuroSAT") == 0.8
    assert Published(50.0, None, "").band("EuroSAT") == 1.0
    assert Published(50.0, None, "").band("Avg-D") == 0.5


def test_the_edge_of_the_band_is_in_it(tmp_path):
    write_run(tmp_path / "a", dataset="Caltech101", protocol="cross", subset="all", accuracy=94.70, backbone=CLIP,
              source="ImageNet", max_epoch=50)  # published 93.70  # fmt: skip
    records = load_results(tmp_path)
    report = against_report(transfer_report(records, "cross", METHODS), records, METHODS)
    assert report.lines[0][5:8] == ["+1.00", "1.00", "in"]


ORDERS = {
    "I": [
        "Aircraft",
        "Caltech101",
        "CIFAR100",
        "DTD",
        "EuroSAT",
        "Flowers",
        "Food",
        "MNIST",
        "OxfordPet",
        "StanfordCars",
        "SUN397",
    ],
    "II": [
        "StanfordCars",
        "Food",
        "MNIST",
        "OxfordPet",
        "Flowers",
        "SUN397",
        "Aircraft",
        "Caltech101",
        "DTD",
        "EuroSAT",
        "CIFAR100",
    ],
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_published_zero_shot_row_as_a_stream_gives_the_published_means(tmp_path, order):
    tasks, published = ORDERS[order], load_published(METHODS.published)
    row = [published["mtil", "ZeroshotCLIP", "", "ViT-B/16", f"Mtil{task}", ""][0].value for task in tasks]
    facts = {
        "trainer": "zero_shot", "preset": "", "protocol": "mtil", "order": order, "seed": 1, "shots": 0,
        "backbone": CLIP, "wall_s": 1, "command": "",
    }  # fmt: skip
    write_matrix(tmp_path, matrix_of_percent(tasks, [row] * len(tasks)), facts)
    records = load_results(tmp_path)
    report = against_report(mtil_report(records, "mtil", METHODS), records, METHODS)
    assert {line[7] for line in report.lines} == {"in"}
    means = {line[2]: float(line[4]) for line in report.lines if line[1] == "average"}
    first = {"I": 69.4, "II": 65.4}[order]
    assert means == {f"transfer {order}": first, f"average {order}": 65.3, f"last {order}": 65.3}
    assert len(report.lines) == 3 + 10 + 11 + 11  # the first task has no Transfer


@pytest.mark.parametrize(
    ("space", "shots", "wanted"), [("full", 0, 87.1), ("lora_factors", 0, 86.2), ("full", 5, 76.6)]
)
def test_what_is_fused_and_how_many_shots_decide_the_partner(tmp_path, space, shots, wanted):
    tasks = ORDERS["I"]
    facts = {
        "trainer": "ConDU", "preset": "paper", "protocol": "mtil", "order": "I", "seed": 1, "shots": shots,
        "backbone": CLIP, "wall_s": 1, "command": "", "vote": {"name": "paper", "k": 4}, "scale": "l1",
        "space": {"kind": space}, "iterations": 500 if shots else 1000,
    }  # fmt: skip
    write_matrix(tmp_path, matrix_of_percent(tasks, [[80.0] * 11] * 11), facts)
    records = load_results(tmp_path)
    report = against_report(mtil_report(records, "mtil", METHODS), records, METHODS)
    found = {line[2]: line for line in report.lines}
    assert found["last I"][4] == f"{wanted:.2f}" and found["last I"][7] == "out"
    assert found["transfer I"][7:9] == ["", "vote"]  # the paper does not say how its experts vote


def test_facts_that_differ_are_named(tmp_path):
    for seed, precision in ((1, "fp16"), (2, "amp")):
        write_run(tmp_path / f"a{seed}", dataset="EuroSAT", seed=seed, accuracy=92, backbone=CLIP, shots=4,
                  precision=precision)  # fmt: skip
        write_run(tmp_path / f"b{seed}", dataset="EuroSAT", seed=seed, subset="new", accuracy=54, backbone=CLIP,
                  shots=4, precision=precision)  # fmt: skip
    records = load_results(tmp_path)
    text = against_report(base2new_report(records, METHODS), records, METHODS).text()
    assert "CoOp: shots 4, published with 16." in text
    assert "CoOp: its seeds differ in precision." in text


def test_merged_rows_meet_the_published_merge(tmp_path):
    merge = {"method": "ties", "values": {"density": 0.2, "scale": 1.0}}
    fields = {"merge": merge, "preset": "ties (density 0.2)", "backbone": CLIP}
    for dataset in DATASETS:
        for subset, accuracy in (("base", 70), ("new", 60)):
            write_run(tmp_path / dataset / subset, dataset=dataset, subset=subset, accuracy=accuracy, **fields)
    records = load_results(tmp_path)
    report = against_report(base2new_report(records, METHODS), records, METHODS)
    assert {(line[1], line[2]): (line[4], line[7], line[8]) for line in report.lines} == {
        ("average", "H of averages"): ("66.32", "", "merge.values")  # CoOp + TIES in MERGETUNE's table
    }
    assert "merge.values {'density': 0.2, 'scale': 1.0}, not stated there." in report.text()


def test_without_a_partner_there_is_one_error(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60)]})
    records = load_results(tmp_path)
    with pytest.raises(UserError, match="none of the base2new results has a published partner"):
        against_report(base2new_report(records, METHODS), records, METHODS)


def test_the_command_sets_published_numbers_beside_every_table_that_has_some(tmp_path):
    write_pairs(tmp_path, {"EuroSAT": [(92, 55), (91, 54)]}, backbone=CLIP)
    write_pairs(tmp_path, {"EuroSAT": [(85, 66), (84, 65)]}, backbone=CLIP, trainer="CoOp_LMC", preset="paper")
    main([str(tmp_path), "--against", "paper"])
    assert (tmp_path / "tables" / "base2new_against_paper.md").is_file()
    assert not (tmp_path / "tables" / "paired_against_paper.md").exists()


def test_what_has_no_partner_gets_its_plain_table(tmp_path, capsys):
    write_pairs(tmp_path, {"toy_a": [(80, 60)]})
    main([str(tmp_path), "--against", "paper"])
    printed = capsys.readouterr().out
    assert "none of the base2new results has a published partner" in printed and "80.00" in printed
    assert [file.name for file in (tmp_path / "tables").glob("*.md")] == ["base2new.md"]


def test_our_seeds_and_what_was_not_run_are_shown(tmp_path):
    write_pairs(tmp_path, {"Caltech101": [(97.5, 90.0), (98.0, 90.5)], "OxfordPets": [(92.0, 95.0)]}, backbone=CLIP)
    records = load_results(tmp_path)
    report = against_report(base2new_report(records, METHODS), records, METHODS)
    (table,) = report.tables
    place = table.columns.index("n")
    counts = {(row[1], row[2]): row[place] for row in table.rows}
    assert counts["Caltech101", "base"] == "2" and counts["OxfordPets", "new"] == "1"
    (gap,) = (note for note in table.notes if "not run here" in note)
    assert gap.startswith("CoOp: published, but not run here: ") and "EuroSAT" in gap and "OxfordPets" not in gap
    line = next(k for k, row in enumerate(table.rows) if row[1:3] == ["Caltech101", "base"])
    assert len(table.rows[line][table.columns.index("ours")].files) == 2


@pytest.mark.parametrize("preset", ["continued", "continued, changed: OPTIM.MAX_EPOCH"])
def test_a_control_is_never_compared(tmp_path, preset):
    write_pairs(tmp_path, {"EuroSAT": [(90, 60)]}, backbone=CLIP, trainer="CoOp_LMC", preset=preset)
    with pytest.raises(UserError, match="none of the base2new results has a published partner"):
        beside(tmp_path)


def test_another_preset_is_shown_and_not_judged(tmp_path):
    fields = {"backbone": CLIP, "trainer": "CoOp_LMC", "preset": "released", "max_epoch": 100}
    write_pairs(tmp_path, {"EuroSAT": [(90, 60)]}, **fields)
    (line,) = beside(tmp_path).lines
    assert line[1:9] == ["EuroSAT", "H", "72.00", "73.40", "-1.40", "1.00", "", "preset, epochs"]


def test_a_few_shot_number_meets_that_of_its_own_shots(tmp_path):
    for shots in (1, 16):
        write_run(tmp_path / str(shots), dataset="EuroSAT", protocol="fewshot", subset="all", shots=shots, accuracy=70,
                  backbone=CLIP)  # fmt: skip
    key = "fewshot", "CoOp", "", "ViT-B/16", "EuroSAT"
    published = {(*key, "1 shot"): [Published(50.0, None, "A")], (*key, "16 shots"): [Published(70.5, None, "B")]}
    records = load_results(tmp_path)
    lines = against_report(fewshot_report(records, METHODS), records, METHODS, published).lines
    assert [(line[2], line[4], line[7]) for line in lines] == [("1 shot", "50.00", "out"), ("16 shots", "70.50", "in")]


def test_all_sets_of_the_paper_and_no_others_make_a_comparable_average(tmp_path):
    everywhere = {name: [(80.73, 73.6)] for name in DATASETS}
    write_pairs(tmp_path / "a", everywhere, backbone=CLIP, trainer="KgCoOp", max_epoch=100)
    found = {(line[1], line[2]): line[7] for line in beside(tmp_path / "a").lines}
    assert found["average", "base"] == found["average", "new"] == found["average", "H of averages"] == "in"
    write_pairs(tmp_path / "a", {"ToyShapes": [(80.73, 73.6)]}, backbone=CLIP, trainer="KgCoOp", max_epoch=100)
    report = beside(tmp_path / "a")
    assert not any(line[1] == "average" for line in report.lines)
    assert "published over 11 data sets, ours over 12, with ToyShapes." in report.text()
