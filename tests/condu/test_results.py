"""results.json of a stream."""

import json

import pytest
import torch

from condu.evaluation import write_matrix
from condu.metrics import AccuracyMatrix
from dassl.report.protocols.mtil import streams
from dassl.report.records import load_results

FACTS = {
    "trainer": "ConDU",
    "protocol": "mtil",
    "seed": 1,
    "backbone": {"name": "tiny", "digest": "abc"},
    "wall_s": 12.34567,
    "command": "python train.py",
}


@pytest.fixture
def matrix():
    return AccuracyMatrix(["A", "B"], [[9, 4], [8, 5]], [10, 8])


def test_the_matrix_comes_back_with_its_counts(tmp_path, matrix):
    write_matrix(tmp_path, matrix, FACTS | {"order": "I", "vote": {"k": 4}, "scale": "l1", "shots": 5})
    found = json.loads((tmp_path / "results.json").read_text())
    again = AccuracyMatrix.from_json(found["matrix"])
    assert torch.equal(again.correct, matrix.correct) and torch.equal(again.total, matrix.total)
    # transfer: B before its turn, 4 of 8; average: (90 + 80) / 2 and (50 + 62.5) / 2; last: 80 and 62.5
    assert found["metrics"] == {"transfer": 50.0, "average": (85 + 56.25) / 2, "last": 71.25}
    assert found["tasks"] == ["A", "B"] and found["order"] == "I" and found["vote"] == {"k": 4}
    assert found["labels"] is None and found["wall_s"] == 12.346 and "torch" in found["versions"]


def test_the_report_reads_it_as_any_other_run(tmp_path, matrix):
    write_matrix(tmp_path / "mtil", matrix, FACTS)
    facts = {"protocol": "mtil_agnostic", "labels": "union", "known": [[90.0, None], [80.0, 62.5]]}
    write_matrix(tmp_path / "agnostic", matrix, FACTS | facts, torch.device("cpu"))
    agnostic, mtil = load_results(tmp_path)
    assert (mtil["protocol"], mtil["order"], mtil["dataset"]) == ("mtil", "A,B", "stream A,B")
    for record in (agnostic, mtil):
        (stream,) = streams([record], record["protocol"])
        assert stream.tasks == ("A", "B") and stream.labels == (record["labels"] or "")
    assert agnostic["known"] == facts["known"] and agnostic["device"].startswith("cpu") and agnostic["peak_mb"] > 0


def test_one_task_has_no_transfer(tmp_path):
    metrics = write_matrix(tmp_path, AccuracyMatrix(["A"], [[3]], [4]), FACTS)["metrics"]
    assert metrics == {"average": 75.0, "last": 75.0}
    assert load_results(tmp_path)
