"""Published numbers beside ours: the data agree with themselves, the band, what differs, what has no partner."""

from collections import defaultdict

import pytest

from condu.metrics import AccuracyMatrix
from condu.results import write_matrix
from dassl.report.against import Published, against_sheet, load_published
from dassl.report.base2new import base2new_sheet
from dassl.report.mtil_tables import mtil_sheet
from dassl.report.results import load_results
from dassl.report.stats import harmonic_mean
from dassl.report.transfer import transfer_sheet
from dassl.utils import UserError
from mergetune.report import METHODS, main
from tests.fixtures.runs import write_pairs, write_run

CLIP = {"name": "ViT-B/16"}


def published_by_method():
    """{(protocol, trainer, merge, quantity, source): {data set: value}}."""
    found = defaultdict(dict)
    for (protocol, trainer, merge, _, dataset, quantity), one in load_published().items():
        found[protocol, trainer, merge, quantity, one.source][dataset] = one.value
    return found


def test_published_averages_are_the_means_of_their_rows():
    checked = 0
    for (protocol, *_), values in published_by_method().items():
        average = {"base2new": "average", "cross": "Avg-C"}.get(protocol, "Avg-D")
        own = [v for name, v in values.items() if name != average and (average == "average" or name != "ImageNet")]
        if average in values and len(own) == {"base2new": 11, "cross": 10, "dg": 4, "robust": 5}[protocol]:
            # rows have 2 decimals, those of robust fine-tuning 1
            assert values[average] == pytest.approx(sum(own) / len(own), abs=0.03 if protocol == "robust" else 0.011)
            checked += 1
    assert checked >= 15


def test_published_harmonic_means_follow_from_base_and_new():
    methods = published_by_method()
    for trainer in ("ZeroshotCLIP", "CoOp", "KgCoOp", "MultiModalAdapter", "PromptKD", "CoOp_LMC"):
        own = {key[3]: values for key, values in methods.items() if key[:3] == ("base2new", trainer, "")}
        rows = {quantity: values["average"] for quantity, values in own.items() if "average" in values}
        h = harmonic_mean(rows["base"], rows["new"])
        assert rows["H of averages"] == pytest.approx(h, abs=0.02)


def test_one_data_set_in_the_band_and_one_out_of_it(tmp_path):
    # published CoOp: Caltech101 98.00 / 89.81 (H 93.73), OxfordPets 93.67 / 95.29 (H 94.47)
    write_pairs(tmp_path, {"Caltech101": [(97.5, 90.0)], "OxfordPets": [(92.0, 95.0)]}, backbone=CLIP)
    records = load_results(tmp_path)
    sheet = against_sheet(base2new_sheet(records, METHODS), records, METHODS)
    verdicts = {(line[1], line[2]): (line[5], line[6], line[7]) for line in sheet.lines}
    assert verdicts["Caltech101", "base"] == ("-0.50", "1.00", "in")
    assert verdicts["OxfordPets", "base"] == ("-1.67", "1.00", "out")
    assert verdicts["OxfordPets", "new"] == ("-0.29", "1.00", "in")
    # averages over other data sets than the paper's eleven still stand beside the published ones, with 0.5 points
    assert verdicts["average", "new"] == ("+29.28", "0.50", "out")
    assert "arXiv 2203.05557" in sheet.text() and "2 x the published deviation" in sheet.text()
    assert sheet.tables[0].title == "3 of 7 in the band"


def test_a_published_deviation_sets_the_band():
    assert Published(50.0, 0.4, "").band("EuroSAT") == 0.8
    assert Published(50.0, None, "").band("EuroSAT") == 1.0
    assert Published(50.0, None, "").band("Avg-D") == 0.5


def test_the_edge_of_the_band_is_in_it(tmp_path):
    write_run(tmp_path / "a", dataset="Caltech101", protocol="cross", subset="all", accuracy=94.70, backbone=CLIP,
              source="ImageNet")  # published 93.70  # fmt: skip
    records = load_results(tmp_path)
    sheet = against_sheet(transfer_sheet(records, "cross", METHODS), records, METHODS)
    assert sheet.lines[0][5:8] == ["+1.00", "1.00", "in"]


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
    tasks, published = ORDERS[order], load_published()
    row = [published["mtil", "ZeroshotCLIP", "", "ViT-B/16", f"Mtil{task}", ""].value for task in tasks]
    facts = {
        "trainer": "zero_shot", "preset": "", "protocol": "mtil", "order": order, "seed": 1, "shots": 0,
        "backbone": CLIP, "wall_s": 1, "command": "",
    }  # fmt: skip
    write_matrix(tmp_path, AccuracyMatrix.from_accuracy(tasks, [row] * len(tasks)), facts)
    records = load_results(tmp_path)
    sheet = against_sheet(mtil_sheet(records, "mtil", METHODS), records, METHODS)
    assert {line[7] for line in sheet.lines} == {"in"}
    means = {line[2]: float(line[4]) for line in sheet.lines if line[1] == "average"}
    first = {"I": 69.4, "II": 65.4}[order]
    assert means == {f"transfer {order}": first, f"average {order}": 65.3, f"last {order}": 65.3}
    assert len(sheet.lines) == 3 + 10 + 11 + 11  # the first task has no Transfer


@pytest.mark.parametrize(
    ("space", "shots", "wanted"), [("full", 0, 87.1), ("lora_factors", 0, 86.2), ("full", 5, 76.6)]
)
def test_what_is_fused_and_how_many_shots_decide_the_partner(tmp_path, space, shots, wanted):
    tasks = ORDERS["I"]
    facts = {
        "trainer": "ConDU", "preset": "paper", "protocol": "mtil", "order": "I", "seed": 1, "shots": shots,
        "backbone": CLIP, "wall_s": 1, "command": "", "vote": {"name": "paper", "k": 4}, "scale": "l1",
        "space": {"kind": space},
    }  # fmt: skip
    write_matrix(tmp_path, AccuracyMatrix.from_accuracy(tasks, [[80.0] * 11] * 11), facts)
    records = load_results(tmp_path)
    sheet = against_sheet(mtil_sheet(records, "mtil", METHODS), records, METHODS)
    assert {line[2]: line[4] for line in sheet.lines}["last I"] == f"{wanted:.2f}"


def test_facts_that_differ_are_named(tmp_path):
    for seed, precision in ((1, "fp16"), (2, "amp")):
        write_run(tmp_path / f"a{seed}", dataset="EuroSAT", seed=seed, accuracy=92, backbone=CLIP, shots=4,
                  precision=precision)  # fmt: skip
        write_run(tmp_path / f"b{seed}", dataset="EuroSAT", seed=seed, subset="new", accuracy=54, backbone=CLIP,
                  shots=4, precision=precision)  # fmt: skip
    records = load_results(tmp_path)
    text = against_sheet(base2new_sheet(records, METHODS), records, METHODS).text()
    assert "CoOp: shots 4, published with 16." in text
    assert "CoOp: its seeds differ in precision." in text


def test_merged_rows_meet_the_published_merge(tmp_path):
    merge = {"method": "ties", "values": {"density": 0.2, "scale": 1.0}}
    fields = {"merge": merge, "preset": "ties (density 0.2)", "backbone": CLIP}
    for subset, accuracy in (("base", 70), ("new", 60)):
        write_run(tmp_path / subset, dataset="EuroSAT", subset=subset, accuracy=accuracy, **fields)
    records = load_results(tmp_path)
    sheet = against_sheet(base2new_sheet(records, METHODS), records, METHODS)
    (line,) = sheet.lines
    assert line[1:3] == ["average", "H of averages"] and line[4] == "66.32"  # CoOp + TIES in MERGETUNE's table


def test_without_a_partner_there_is_one_error(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60)]})
    records = load_results(tmp_path)
    with pytest.raises(UserError, match="none of the base2new results has a published partner"):
        against_sheet(base2new_sheet(records, METHODS), records, METHODS)


def test_the_command_sets_published_numbers_beside_every_table_that_has_some(tmp_path):
    write_pairs(tmp_path, {"EuroSAT": [(92, 55), (91, 54)]}, backbone=CLIP)
    write_pairs(tmp_path, {"EuroSAT": [(85, 66), (84, 65)]}, backbone=CLIP, trainer="CoOp_LMC", preset="paper")
    main([str(tmp_path), "--against", "paper"])
    assert (tmp_path / "tables" / "base2new_against_paper.md").is_file()
    assert not (tmp_path / "tables" / "paired_against_paper.md").exists()


def test_the_command_says_so_if_nothing_is_published(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60)]})
    with pytest.raises(SystemExit, match="error: --against paper: none of the base2new results"):
        main([str(tmp_path), "--against", "paper"])


def test_our_seeds_and_what_was_not_run_are_shown(tmp_path):
    write_pairs(tmp_path, {"Caltech101": [(97.5, 90.0), (98.0, 90.5)], "OxfordPets": [(92.0, 95.0)]}, backbone=CLIP)
    records = load_results(tmp_path)
    sheet = against_sheet(base2new_sheet(records, METHODS), records, METHODS)
    (table,) = sheet.tables
    place = table.columns.index("n")
    counts = {(row[1], row[2]): row[place] for row in table.rows}
    assert counts["Caltech101", "base"] == "2" and counts["OxfordPets", "new"] == "1"
    (gap,) = (note for note in table.notes if "not run here" in note)
    assert gap.startswith("CoOp: published, but not run here: ") and "EuroSAT" in gap and "OxfordPets" not in gap
    line = next(k for k, row in enumerate(table.rows) if row[1:3] == ["Caltech101", "base"])
    assert len(table.files[line, table.columns.index("ours")]) == 2
