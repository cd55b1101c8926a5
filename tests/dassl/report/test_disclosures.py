"""Fairness stamps: when rows differ, what the footnote says, and that it stays short."""

import pytest

from dassl.report.disclosures import stamp
from dassl.report.protocols.base2new import base2new_report
from dassl.report.protocols.fewshot import fewshot_report
from dassl.report.protocols.transfer import transfer_report
from dassl.report.records import load_results
from mergetune.report import METHODS
from tests.fixtures.runs import write_run

PETS, OTHERS = "a photo of a {}, a type of pet.", "a photo of a {}."


def notes(root, make=base2new_report, *args):
    """The footnotes of the first table that are about stamps."""
    first = make(load_results(root), *args, METHODS).tables[0]
    return [note for note in first.notes if note.startswith(("Trained", "Checkpoint", "Weight", "Prompts", "Fewer"))]


def write(root, trainer, datasets=("OxfordPets", "Caltech101"), templates=OTHERS, **fields):
    """Base and new runs; templates: of all data sets, or {data set: template}."""
    for dataset in datasets:
        own = templates if isinstance(templates, str | list) else templates[dataset]
        for subset in ("base", "new"):
            folder = root / "-".join([trainer, fields.get("preset", ""), dataset, subset])
            write_run(folder, trainer, dataset=dataset, subset=subset, templates=own, **fields)


def test_rows_that_agree_need_no_note(tmp_path):
    each = {"OxfordPets": PETS, "Caltech101": OTHERS}
    for trainer in ("CoOp", "KgCoOp"):
        write(tmp_path, trainer, templates=each, data_seen="16 shots", chosen_on="last_step", alpha_chosen_on=None)
    write(tmp_path, "ZeroshotCLIP", templates=each, data_seen="none", chosen_on="none")
    assert notes(tmp_path) == []


def test_fewer_shots_than_asked_for_are_said_of_any_table(tmp_path):
    seen = "16 shots of base classes (fewer in 1 of 4 classes, at least 3 each), without labels"
    for trainer in ("CoOp", "KgCoOp"):
        write(tmp_path, trainer, datasets=("OxfordPets",), data_seen=seen)
        write(tmp_path, trainer, datasets=("Caltech101",), data_seen="16 shots of base classes, without labels")
    assert notes(tmp_path) == ["Fewer training images than shots on OxfordPets: 1 of 4 classes, at least 3 each."]


def test_zero_shot_saw_nothing_and_chose_nothing_but_has_prompts(tmp_path):
    write(tmp_path, "ZeroshotCLIP", data_seen="none", chosen_on="none")
    write(tmp_path, "CoOp", templates="learned prompt", data_seen="16 shots", chosen_on="last_step")
    assert notes(tmp_path) == [f"Prompts '{OTHERS}': ZeroshotCLIP; learned prompt: CoOp."]


def test_templates_are_compared_data_set_by_data_set(tmp_path):
    datasets = ("OxfordPets", "Caltech101", "DTD", "EuroSAT")
    each = {"OxfordPets": PETS, "Caltech101": OTHERS, "DTD": "{} texture.", "EuroSAT": "a photo of {}."}
    write(tmp_path, "ZeroshotCLIP", datasets, each, data_seen="none")
    write(tmp_path, "KgCoOp", datasets, each | {"DTD": "a photo of {}, a texture."})
    write(tmp_path, "CoOp", datasets[:1], PETS)  # has the zero-shot one wherever both have a number
    assert notes(tmp_path) == [
        "Prompts each data set's own: ZeroshotCLIP, CoOp; "
        "each data set's own, but on DTD: 'a photo of {}, a texture.': KgCoOp."
    ]


def test_what_is_usual_is_named_with_its_exceptions(tmp_path):
    datasets = ("OxfordPets", "Caltech101", "DTD")
    write(tmp_path, "CoOp", datasets, OTHERS)
    write(tmp_path, "KgCoOp", datasets, {"OxfordPets": PETS, "Caltech101": OTHERS, "DTD": OTHERS})
    assert notes(tmp_path) == [f"Prompts '{OTHERS}': CoOp; '{OTHERS}' (on OxfordPets: '{PETS}'): KgCoOp."]


def test_merges_say_what_their_weight_was_chosen_on(tmp_path):
    for method, chosen in (("wise_ft", "validation"), ("ties", "given")):
        merge = {"method": method, "values": {"alpha": 0.5}}
        write(tmp_path, "CoOp", preset=method, merge=merge, alpha_chosen_on=chosen)
    write(tmp_path, "KgCoOp")
    (note,) = notes(tmp_path)
    assert note.startswith("Weight of a merge chosen on ")
    assert "validation: CoOp + weight ens. (alpha by validation)" in note
    assert "nothing (given): CoOp + TIES" in note and "KgCoOp" not in note


def test_many_rows_are_grouped(tmp_path):
    for trainer in ("CoOp", "KgCoOp", "MultiModalAdapter", "PromptSRC", "CoOp_Average"):
        write(tmp_path, trainer, data_seen="16 shots")
    write(tmp_path, "PromptKD", data_seen="all images, without labels")
    assert notes(tmp_path) == ["Trained on all images, without labels: PromptKD; 16 shots: all other trained rows."]


@pytest.mark.parametrize("protocol", ["cross", "dg", "robust"])
def test_transfer_tables_say_it_too(tmp_path, protocol):
    for trainer, chosen in (("CoOp", "last_step"), ("KgCoOp", "validation")):
        fields = {"protocol": protocol, "subset": "all", "source": "ImageNet", "chosen_on": chosen}
        write_run(tmp_path / trainer, trainer, **fields)
    assert notes(tmp_path, transfer_report, protocol) == ["Checkpoint chosen on last_step: CoOp; validation: KgCoOp."]


def test_the_number_of_shots_is_the_column_of_a_few_shot_table(tmp_path):
    for shots in (1, 4):
        seen = {"CoOp": f"{shots} shots of all classes", "KgCoOp": f"{shots} shots of all classes, twice"}
        for trainer, words in seen.items() if shots == 4 else [("CoOp", seen["CoOp"])]:
            fields = {"protocol": "fewshot", "subset": "all", "shots": shots, "data_seen": words}
            write_run(tmp_path / f"{trainer}{shots}", trainer, **fields)
    assert notes(tmp_path, fewshot_report) == [
        "Trained on the shots of all classes: CoOp; the shots of all classes, twice: KgCoOp."
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, None),
        ("none", None),
        ([], None),
        (["a {}."], "'a {}.'"),
        ("a {}.", "'a {}.'"),
        (["a {}.", "b {}.", "c {}."], "mean of 'a {}.' and 2 others"),
        ("learned", "learned"),
    ],
)
def test_templates_in_words(value, words):
    assert stamp({"templates": value}, "templates") == words


def test_every_row_of_the_csv_has_its_stamps(tmp_path):
    each = {"OxfordPets": PETS, "Caltech101": OTHERS}
    write(tmp_path, "CoOp", templates=each, data_seen="16 shots", chosen_on="last_step")
    write(tmp_path, "ZeroshotCLIP", data_seen="none", chosen_on="none")
    report = base2new_report(load_results(tmp_path), METHODS)
    stamps = {line[0]: dict(zip(report.columns, line, strict=True)) for line in report.lines}
    names = ("data_seen", "chosen_on", "alpha_chosen_on", "templates")
    assert [stamps["CoOp"][f"stamp_{n}"] for n in names] == ["16 shots", "last_step", "", "each data set's own"]
    assert [stamps["ZeroshotCLIP"][f"stamp_{n}"] for n in names] == ["", "", "", f"'{OTHERS}'"]
