"""The published numbers themselves, and a correct run of each method beside them: nothing is out because of a label."""

from collections import defaultdict
from functools import cache

import pytest

import train
from dassl.data.datasets import DATASET_REGISTRY
from dassl.report.frame import harmonic_mean
from dassl.report.protocols.against import against_report, load_published
from dassl.report.table import CSV_HEAD, Cell, Report
from mergetune.models.templates import IMAGENET, described
from mergetune.report import METHODS
from scripts.commands import COMMANDS
from scripts.commands.command import recipe
from scripts.jobs import Job

CLIP = "ViT-B/16"


def published_by_method():
    """{(protocol, trainer, merge, quantity, source): {data set: value}}."""
    found = defaultdict(dict)
    for (protocol, trainer, merge, _, dataset, quantity), numbers in load_published(METHODS.published).items():
        for one in numbers:
            if not one.derived:
                found[protocol, trainer, merge, quantity, one.source][dataset] = one.value
    return found


def test_published_averages_are_the_means_of_their_rows():
    checked = 0
    for (protocol, trainer, *_), values in published_by_method().items():
        average = {"base2new": "average", "cross": "Avg-C"}.get(protocol, "Avg-D")
        own = [v for name, v in values.items() if name != average and (average == "average" or name != "ImageNet")]
        if average in values and len(own) == {"base2new": 11, "cross": 10, "dg": 4, "robust": 5}[protocol]:
            # rows have 2 decimals, those of robust fine-tuning 1
            half = 0.051 if protocol == "robust" or trainer == "KgCoOp" else 0.0051  # KgCoOp prints 73.6
            assert values[average] == pytest.approx(sum(own) / len(own), abs=half), (protocol, trainer)
            checked += 1
    assert checked >= 15


def test_published_harmonic_means_follow_from_base_and_new():
    averages = defaultdict(dict)
    for (protocol, trainer, _, quantity, source), values in published_by_method().items():
        if protocol == "base2new" and "average" in values:
            averages[trainer, source][quantity] = values["average"]
    complete = [found for found in averages.values() if {"base", "new"} <= set(found)]
    assert len(complete) == 7
    for found in complete:
        assert found["H of averages"] == pytest.approx(harmonic_mean(found["base"], found["new"]), abs=0.011)
    assert not any("mean of H" in found for found in averages.values())  # nobody has published one


def test_the_derived_number_follows_from_both_published_ones():
    published = load_published(METHODS.published)
    key = "base2new", "MultiModalAdapter", "", "ViT-B/16"
    (base,), (h,), (new,) = (published[(*key, "UCF101", quantity)] for quantity in ("base", "H", "new"))
    assert new.derived and not h.derived
    assert harmonic_mean(base.value, new.value) == pytest.approx(h.value, abs=0.005)
    others = [published[(*key, name, "new")][0].value for name in new.sets - {"UCF101"}]
    (average,) = published[(*key, "average", "new")]
    assert (sum(others) + new.value) / 11 == pytest.approx(average.value, abs=0.005)


# (protocol, trainer, merge) -> the script of a run of ours, its CFG where that is no default, and what keeps a correct
# run by our configs from being judged
OURS = {
    ("base2new", "ZeroshotCLIP", ""): ("zsclip/base2new_test", "", set()),
    ("base2new", "CoOp", ""): ("coop/base2new_test", "", {"epochs"}),  # 100, published with 200, or not stated
    ("base2new", "KgCoOp", ""): ("kgcoop/base2new_test", "", set()),
    ("base2new", "MultiModalAdapter", ""): ("mma/base2new_test", "", {"epochs"}),
    ("base2new", "PromptKD", ""): ("promptkd/base2new_test", "", set()),
    ("base2new", "CoOp_LMC", ""): ("coop_LMC/base2new_test_coop", "paper", set()),
    ("base2new", "KgCoOp_LMC", ""): ("kgcoop_LMC/base2new_test_kgcoop", "paper", set()),
    ("base2new", "MMA_LMC", ""): ("mma_LMC/base2new_test_mma", "paper", set()),
    ("base2new", "PromptKD_LMC", ""): ("promptkd_LMC/base2new_test_promptkd", "paper", set()),
    ("cross", "ZeroshotCLIP", ""): ("zsclip/xd_test", "", set()),
    ("cross", "CoOp", ""): ("coop/xd_test", "", {"epochs"}),
    ("cross", "KgCoOp", ""): ("kgcoop/xd_test", "", {"shots"}),
    ("cross", "MultiModalAdapter", ""): ("mma/xd_test", "", {"epochs", "adapter_blocks"}),
    ("cross", "CoOp_LMC", ""): ("coop_LMC/xd_test_coop", "paper", set()),
    ("cross", "KgCoOp_LMC", ""): ("kgcoop_LMC/xd_test_kgcoop", "paper", set()),
    ("cross", "MMA_LMC", ""): ("mma_LMC/xd_test_mma", "paper", set()),
    ("dg", "ZeroshotCLIP", ""): ("zsclip/dg_test", "", set()),
    ("dg", "CoOp", ""): ("coop/dg_test", "", {"epochs"}),
    ("dg", "KgCoOp", ""): ("kgcoop/dg_test", "", {"shots"}),
    ("dg", "MultiModalAdapter", ""): ("mma/dg_test", "vit_b16_ep1_xd", set()),  # its own recipe
    ("dg", "CoOp_LMC", ""): ("coop_LMC/dg_test_coop", "paper", set()),
    ("dg", "KgCoOp_LMC", ""): ("kgcoop_LMC/dg_test_kgcoop", "paper", set()),
    ("robust", "ZeroshotCLIP", ""): ("zsclip/robust_test", "vit_b16_imagenet", set()),
    ("robust", "LinearProbe", ""): ("robust/linear_probe_test", "", {"recipe"}),
    ("robust", "LinearProbe", "wise_ft"): ("robust/linear_probe_test", "", {"recipe", "alpha_chosen_on"}),
    ("robust", "FineTune", ""): ("robust/finetune_test", "", set()),
    ("robust", "FineTune", "wise_ft"): ("robust/finetune_test", "", {"alpha_chosen_on"}),
    ("robust", "FineTune", "output_ensemble"): ("robust/finetune_test", "", {"alpha_chosen_on"}),
    ("robust", "LinearProbe_LMC", ""): ("robust/linear_probe_LMC_test", "paper", set()),
    ("robust", "LinearProbe_LMC", "wise_ft"): ("robust/linear_probe_LMC_test", "paper", {"alpha_chosen_on"}),
    ("robust", "FineTune_LMC", ""): ("robust/finetune_LMC_test", "paper", set()),
    ("robust", "FineTune_LMC", "wise_ft"): ("robust/finetune_LMC_test", "paper", {"alpha_chosen_on"}),
}  # fmt: skip
SCRIPTS = {"base2new": "base2new_test", "cross": "xd_test", "dg": "dg_test"}
MERGED = {
    **{
        ("base2new", t, m): {"merge.values"}
        for t in ("CoOp", "KgCoOp", "MultiModalAdapter", "PromptKD")
        for m in ("ties", "dare")
    },
    **{(p, "CoOp", m): {"merge.values"} for p in ("cross", "dg") for m in ("ties", "dare")},
}


@cache
def config(script, cfg_name):
    """What a script runs with."""
    command = COMMANDS[script]
    given = {"COOP_LMC": "True"} | (recipe(command, cfg_name) if cfg_name else {})
    arguments = command.complete(given | {"DATASET": "imagenet", "SEED": "1"})
    return train.setup_cfg(train.build_parser().parse_intermixed_args(Job(script, arguments).argv))


def recorded(script, cfg_name, dataset, merge):
    """What a run of a script records of the facts that decide a comparison, by the config that it runs with."""
    cfg = config(script, cfg_name)
    facts = {
        "trainer": cfg.TRAINER.NAME, "preset": cfg.PRESET, "dataset": dataset, "kind": "eval", "chosen_on": "last_step",
        "shots": cfg.DATASET.NUM_SHOTS, "max_epoch": cfg.OPTIM.MAX_EPOCH, "backbone": {"name": cfg.MODEL.BACKBONE.NAME},
    }  # fmt: skip
    if cfg.TRAINER.NAME == "ZeroshotCLIP":
        kind = cfg.TRAINER.ZEROSHOT.TEMPLATES
        facts["templates"] = (
            DATASET_REGISTRY.get(dataset).templates[kind] if kind == "coop" else described(kind, IMAGENET)
        )
    elif script.startswith("robust"):
        facts["templates"] = described(cfg.TRAINER.HEAD.TEMPLATES, IMAGENET)
    elif script.startswith("mma"):
        facts["adapter_blocks"] = [cfg.TRAINER.MMADAPTER.ADAPTER_START, cfg.TRAINER.MMADAPTER.ADAPTER_END]
    elif script.startswith("promptkd"):
        facts["teacher"] = {"shots": int(COMMANDS["promptsrc/base2new_train"].defaults["SHOTS"])}
    if merge:
        title = METHODS.merges[merge]
        facts |= {"merge": {"method": merge, "preset": cfg.PRESET, "values": {}}, "alpha_chosen_on": "given"}
        facts["preset"] = " + ".join(filter(None, [cfg.PRESET, f"{title} (alpha 0.5)"]))
    return facts


def as_published(protocol, trainer, merge, facts_of):
    """A report of runs that have every published number of a method, compared."""
    lines, records = [], {}
    for key, (one, *_) in load_published(METHODS.published).items():
        if key[:3] == (protocol, trainer, merge):
            names = sorted(one.sets) if key[4] in ("average", "Avg-C", "Avg-D") else [key[4]]
            own = [facts_of(name) | {"file": name} for name in names]
            records |= {record["file"]: record for record in own}
            head = [trainer, trainer, own[0]["preset"], CLIP, own[0]["shots"]]
            lines.append([*head, key[4], key[5], Cell(one.value, [record["file"] for record in own]), "", "3"])
    columns = [*CSV_HEAD, "dataset", "quantity", "mean", "std", "n"]
    report = Report(protocol, "", [], [], columns, lines)
    return against_report(report, list(records.values()), METHODS)


@pytest.mark.parametrize("case", OURS, ids=" ".join)
def test_a_correct_run_is_in_the_band_or_the_fact_that_differs_is_named(case):
    script, cfg, expected = OURS[case]
    found = as_published(*case, lambda dataset: recorded(script, cfg, dataset, case[2]))
    assert found.lines and "out" not in {line[7] for line in found.lines}
    for line in found.lines:
        differs = set(filter(None, line[8].split(", "))) - {"derived"}
        fine = case[:2] == ("base2new", "MultiModalAdapter") and line[1] == "ImageNet"  # of 5 epochs there, as ours
        assert differs == (set() if fine else expected), line
        assert line[7] == ("" if line[8] else "in")


def test_every_published_method_has_such_a_run():
    mine = {key[:3] for key in load_published(METHODS.published) if not key[0].startswith("mtil")}
    assert mine == set(OURS) | set(MERGED)


def test_one_template_is_no_partner_of_eighty():
    found = as_published("robust", "ZeroshotCLIP", "", lambda name: recorded("zsclip/robust_test", "", name, ""))
    assert {line[8] for line in found.lines} == {"templates"}


def test_a_run_that_does_not_say_a_fact_is_not_judged():
    def older(dataset):
        facts = recorded("promptkd/base2new_test", "", dataset, "")
        return {name: value for name, value in facts.items() if name != "teacher"}

    found = as_published("base2new", "PromptKD", "", older)
    assert {(line[7], line[8]) for line in found.lines} == {("", "teacher.shots")}
    assert "PromptKD: teacher.shots not stated here, published with 16." in found.text()


def test_a_split_of_one_s_own_is_not_judged():
    found = as_published(
        "base2new", "KgCoOp", "",
        lambda name: recorded("kgcoop/base2new_test", "", name, "") | {"split_file": "split_local.json"},
    )  # fmt: skip
    assert {(line[7], line[8]) for line in found.lines} == {("", "split")}


def test_two_sources_of_one_number_stand_side_by_side_under_their_marks():
    case = "cross", "ZeroshotCLIP", ""
    found = as_published(*case, lambda name: recorded("zsclip/xd_test", "", name, ""))
    assert [(row[5], row[-1]) for row in found.tables[0].rows] == [("65.24", "[1]"), ("65.15", "[2]")]
    assert found.legend[-2].startswith("[1] MERGETUNE") and found.legend[-1].startswith("[2] ProText")
