"""Paired comparison over seeds: by hand, on simulated pairs with a known effect, and from run folders."""

import math

import numpy as np
import pytest

from dassl.report.protocols.paired import paired_difference, paired_report, seeds_needed
from dassl.report.records import load_results
from dassl.utils import UserError
from mergetune.report import METHODS
from tests.fixtures.runs import line_of, write_pairs


def test_the_interval_by_hand():
    # differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.3027, half width 4.3027 / sqrt 3
    result = paired_difference({1: 11.0, 2: 12.0, 3: 13.0}, {1: 10.0, 2: 10.0, 3: 10.0})
    assert (result.mean, result.n) == (2.0, 3)
    assert result.high - result.mean == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)
    assert result.mean - result.low == pytest.approx(result.high - result.mean)


def test_only_shared_seeds_count_and_one_seed_has_no_interval():
    result = paired_difference({1: 5.0, 2: 9.0}, {2: 8.0, 3: 1.0})
    assert result == (1.0, None, None, 1, None)
    assert paired_difference({1: 5.0}, {2: 5.0}) is None


def test_the_interval_covers_the_true_difference_in_95_percent_of_simulated_pairs():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        shared = rng.normal(0, 5, 4)  # the draw of images, the same for both: pairing must take it out
        ours, theirs = shared + 0.4 + rng.normal(0, 0.3, 4), shared + rng.normal(0, 0.3, 4)
        result = paired_difference(dict(enumerate(ours)), dict(enumerate(theirs)))
        covered += result.low <= 0.4 <= result.high
    assert 0.935 <= covered / 2000 <= 0.965  # 95 % and three standard errors of 0.5 %


@pytest.mark.parametrize(("effect", "noise"), [(0.4, 0.4), (1.0, 1.5)])
def test_the_seeds_needed_find_a_known_effect_in_80_percent_of_simulated_pairs(effect, noise):
    rng = np.random.default_rng(1)
    n = seeds_needed(effect, noise)
    draws = rng.normal(effect, noise, (1500, n))
    found = [paired_difference(dict(enumerate(row)), dict.fromkeys(range(n), 0.0)).low > 0 for row in draws]
    assert 0.75 <= np.mean(found) <= 0.90  # rounding up to whole seeds gives a little more than 80 %


def test_seeds_needed_grows_with_the_noise_and_has_an_end():
    assert seeds_needed(1.0, 0.0) == 2
    counts = [seeds_needed(1.0, noise) for noise in (0.5, 1.0, 2.0, 4.0)]
    assert counts == sorted(counts) and counts[0] < counts[-1]
    assert seeds_needed(0.0, 1.0) is None and seeds_needed(0.001, 1.0) is None


@pytest.mark.parametrize("control", ["continued", "continued, changed: OPTIM.MAX_EPOCH"])
def test_a_stage_2_run_stands_beside_its_stage_1_and_its_control(tmp_path, control):
    write_pairs(tmp_path, {"toy_a": [(80, 60), (80, 62)], "toy_b": [(70, 50), (70, 52)]}, trainer="CoOp")
    for preset, gain in (("paper", 4), (control, 1)):
        write_pairs(
            tmp_path,
            {"toy_a": [(80, 60 + gain), (80, 62 + gain)], "toy_b": [(70, 48), (70, 50)]},
            trainer="CoOp_LMC",
            preset=preset,
        )
    text = paired_report(load_results(tmp_path), METHODS).text()
    cells = line_of(text, "CoOp_LMC (paper)")
    # seed 1: base 75, new 55 against 56; seed 2: new 57 against 58
    first, second = (2 * 75 * a / (75 + a) - 2 * 75 * b / (75 + b) for a, b in ((56, 55), (58, 57)))
    assert cells[1:3] == ["CoOp", f"{(first + second) / 2:+.2f}"]
    assert cells[4:6] == ["1 of 2", "2"]
    assert sum(line.startswith("CoOp_LMC (paper)") for line in text.splitlines()) == 2
    assert not any(line.startswith(("CoOp continued", "CoOp_LMC (continued")) for line in text.splitlines())


def test_without_pairs_there_is_one_error(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60)]})
    with pytest.raises(UserError, match="No paired table"):
        paired_report(load_results(tmp_path), METHODS)


def test_a_pair_without_number_is_shown_with_its_reason(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60)], "toy_b": [(70, 50)]}, trainer="CoOp")
    write_pairs(tmp_path, {"toy_a": [(80, 64)], "toy_b": [(70, 54)]}, trainer="CoOp_LMC", preset="paper")
    write_pairs(tmp_path, {"toy_a": [(80, 64)]}, trainer="CoOp_LMC", preset="released")
    report = paired_report(load_results(tmp_path), METHODS)
    (table,) = report.tables
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["CoOp_LMC (released)"] == ["CoOp", "—", "—", "1 of 1", "0", "—"]
    assert rows["CoOp_LMC (paper)"][4] == "1"
    assert table.notes == ["CoOp_LMC (released) beside CoOp: CoOp_LMC (released) lacks toy_b (base and new)."]
    assert all(form.count("(released)") == 3 for form in (report.markdown(), report.latex(), report.text()))
    assert 8 in [len(row[2].files) for row in table.rows]
