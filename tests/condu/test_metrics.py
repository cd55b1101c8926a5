"""Transfer, Average and Last on published rows of the 11 data sets, on counts, and with gaps."""

import json
import math

import pytest
import torch

from condu.metrics import AccuracyMatrix
from tests.conftest import ROOT
from tests.fixtures.streams import matrix_of_percent

ORDER_I = ["Aircraft", "Caltech101", "CIFAR100", "DTD", "EuroSAT", "Flowers", "Food", "MNIST", "OxfordPet"]
ORDER_I += ["StanfordCars", "SUN397"]
ORDER_II = ["StanfordCars", "Food", "MNIST", "OxfordPet", "Flowers", "SUN397", "Aircraft", "Caltech101", "DTD"]
ORDER_II += ["EuroSAT", "CIFAR100"]
# Zero-shot CLIP ViT-B/16 by data set, order I (arXiv 2303.06628)
ZERO_SHOT = [24.3, 88.4, 68.2, 44.6, 54.9, 71.0, 88.5, 59.4, 89.0, 64.7, 65.2]
# 26 methods as papers print them (arXiv 2303.06628 and later ones on its protocol), 11 numbers and their mean each:
# Transfer_j, Average_j, Last_j and, for most, the accuracy right after learning j (the diagonal)
PUBLISHED = json.loads((ROOT / "tests" / "fixtures" / "mtil_published.json").read_text())
# A mean of numbers rounded to 0.1 is 0.05 off at most, and is itself rounded.
ROUNDED = 0.1001


def order_of(name):
    return ORDER_II if name.endswith("order II") else ORDER_I


def triple_of(name):
    return {metric: PUBLISHED[name][metric][-1] for metric in ("transfer", "average", "last")}


def published(name):
    """A matrix with the published rows: above the diagonal of column j is Transfer_j, in the last row Last_j, on the
    diagonal what is printed, and in all other cells what Average_j leaves for them."""
    own, order = PUBLISHED[name], order_of(name)
    size = len(order)
    rows = [[math.nan] * size for _ in order]
    for j in range(size):
        known = dict.fromkeys(range(j), own["transfer"][j]) | {size - 1: own["last"][j]}
        if "diagonal" in own:
            known[j] = own["diagonal"][j]
        left = size * own["average"][j] - sum(known.values())
        for i in range(size):  # 100.2 where the row's own rounding says so
            rows[i][j] = known[i] if i in known else min(100.0, max(0.0, left / (size - len(known))))
    return matrix_of_percent(order, rows)


def small():
    """Three tasks. Transfer: 30, (20 + 40)/2 = 30; Average: 70, 60, 50; Last: 60, 70, 90."""
    correct = [[40, 6, 10], [35, 16, 20], [30, 14, 45]]
    return AccuracyMatrix(["a", "b", "c"], correct, [50, 20, 50])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows_give_the_published_triple(name):
    matrix, own = published(name), PUBLISHED[name]
    assert matrix.transfer[0] is None and matrix.transfer[1:] == pytest.approx(own["transfer"][1:11])
    assert matrix.last == pytest.approx(own["last"][:11])
    # the last columns leave no cell free: there Average_j follows from the other rows
    assert matrix.average == pytest.approx(own["average"][:11], abs=ROUNDED)
    assert matrix.summary() == pytest.approx(triple_of(name), abs=ROUNDED)


def permuted(matrix, order):
    """Its rows of percent with the tasks in another order, rows and columns both."""
    places = [matrix.tasks.index(task) for task in order]
    return matrix.accuracy[places][:, places].tolist()


def test_zero_shot_transfers_differently_under_another_order():
    first = matrix_of_percent(ORDER_I, [ZERO_SHOT] * 11)
    second = matrix_of_percent(ORDER_II, permuted(first, ORDER_II))
    assert {k: round(v, 1) for k, v in first.summary().items()} == {"transfer": 69.4, "average": 65.3, "last": 65.3}
    assert first.transfer[1:] == pytest.approx(ZERO_SHOT[1:])
    # 65.35 exactly, printed as 65.4: all data sets but the first of the order
    assert second.summary() == pytest.approx({"transfer": 65.35, "average": 65.29, "last": 65.29}, abs=0.001)
    assert second.tasks == ORDER_II


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.endswith("order II")])
def test_a_matrix_stored_in_another_order_needs_both_axes_permuted(name):
    """The raw matrices behind the published rows have alphabetical rows and columns under both orders."""
    triple = triple_of(name)
    stored = matrix_of_percent(ORDER_I, permuted(published(name), ORDER_I))
    assert abs(stored.summary()["transfer"] - triple["transfer"]) > 0.5
    back = matrix_of_percent(ORDER_II, permuted(stored, ORDER_II))
    assert back.summary() == pytest.approx(triple, abs=ROUNDED)
    places = [ORDER_I.index(task) for task in ORDER_II]
    for wrong in (stored.accuracy[places], stored.accuracy[:, places]):  # one axis alone
        found = matrix_of_percent(ORDER_II, wrong.tolist()).summary()
        assert abs(found["transfer"] - triple["transfer"]) > 0.5


def test_counts_by_hand():
    matrix = small()
    assert matrix.accuracy.tolist() == [[80, 30, 20], [70, 80, 40], [60, 70, 90]]
    assert (matrix.transfer, matrix.average, matrix.last) == ([None, 30, 30], [70, 60, 50], [60, 70, 90])
    assert matrix.summary() == pytest.approx({"transfer": 30, "average": 60, "last": 220 / 3})


def test_tasks_count_alike_whatever_their_size():
    larger = AccuracyMatrix(["a", "b", "c"], [[40, 600, 10], [35, 1600, 20], [30, 1400, 45]], [50, 2000, 50])
    assert larger.summary() == small().summary()


def test_one_task_has_no_transfer():
    matrix = AccuracyMatrix(["a"], [[3]], [4])
    assert matrix.transfer == [None] and matrix.summary() == {"transfer": None, "average": 75, "last": 75}
    assert AccuracyMatrix.from_json(matrix.to_json()).summary() == matrix.summary()


def test_missing_cells_leave_out_only_what_needs_them():
    """Separate experts: nothing above the diagonal."""
    experts = AccuracyMatrix(["a", "b", "c"], [[40, -1, -1], [40, 16, -1], [40, 16, 45]], [50, 20, 50])
    assert experts.transfer == [None, None, None] and experts.average == [80, None, None]
    assert experts.last == [80, 80, 90]
    assert experts.summary() == {"transfer": None, "average": None, "last": pytest.approx(250 / 3)}
    again = AccuracyMatrix.from_json(json.loads(json.dumps(experts.to_json())))
    assert torch.equal(again.correct, experts.correct) and again.summary() == experts.summary()


def test_json_round_trip():
    matrix = small()
    text = json.dumps(matrix.to_json(), allow_nan=False)
    again = AccuracyMatrix.from_json(json.loads(text))
    assert again.to_json() == matrix.to_json() and torch.equal(again.accuracy, matrix.accuracy)
    assert torch.equal(again.correct, matrix.correct)


def test_json_says_what_the_report_reads():
    content = small().to_json()
    assert content["correct"] == [[40, 6, 10], [35, 16, 20], [30, 14, 45]] and content["total"] == [50, 20, 50]
    assert content["accuracy"][0] == [80, 30, 20] and content["transfer"] == [None, 30, 30]
    assert content["average"] == [70, 60, 50] and content["last"] == [60, 70, 90]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AccuracyMatrix(["a", "a"], [[1, 1], [1, 1]], [1, 1]), "all different"),
        (lambda: AccuracyMatrix([], [], []), "one name or more"),
        (lambda: AccuracyMatrix(["a", "b"], [[1, 1]], [1, 1]), r"correct: expected whole numbers \(2, 2\).*\(1, 2\)"),
        (lambda: AccuracyMatrix(["a"], [[1]], [0]), "an image or more"),
        (lambda: AccuracyMatrix(["a", "b"], [[1, 5], [1, 1]], [1, 4]), "b after a: 5 correct of 4"),
        (lambda: AccuracyMatrix(["a"], [[-2]], [4]), "a after a: -2 correct"),
        (lambda: AccuracyMatrix(["a"], [[0.5]], [1]), "whole numbers"),
        (lambda: AccuracyMatrix.from_json({"tasks": ["a"]}), "tasks, total and correct"),
        (lambda: AccuracyMatrix.from_json({"tasks": ["a"], "correct": [[1]]}), "total"),
        (lambda: AccuracyMatrix.from_json({"tasks": ["a"], "correct": 1, "total": [1]}), "rows of counts"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
