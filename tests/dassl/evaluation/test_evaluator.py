"""The evaluator, against scikit-learn and known numbers."""

import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score

from dassl.config import get_cfg_default
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, build_evaluator
from dassl.utils import UserError


def evaluator(tmp_path, lab2cname=None, **test_keys):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    for key, value in test_keys.items():
        cfg.TEST[key] = value
    return build_evaluator(cfg, lab2cname=lab2cname)


def logits_for(predicted, classes):
    return torch.nn.functional.one_hot(torch.as_tensor(predicted), classes).float()


def test_all_predicted_as_one_class(tmp_path, capsys):
    judge = evaluator(tmp_path)
    judge.reset()
    judge.process(logits_for([0] * 12, 4), torch.arange(12) % 4)
    results = judge.evaluate()
    assert list(results.items()) == [
        ("accuracy", 25.0),
        ("error_rate", 75.0),
        ("macro_f1", pytest.approx(10.0)),
    ]
    assert (judge.correct, judge.total) == (3, 12)
    assert capsys.readouterr().out == (
        "Loading evaluator: Classification\n=> result\n* total: 12\n* correct: 3\n"
        "* accuracy: 25.00%\n* error: 75.00%\n* macro_f1: 10.00%\n"
    )


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn(tmp_path, seed):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 7, (200,), generator=generator)
    logits = torch.randn(200, 9, generator=generator)  # labels 7 and 8 are predicted but never true
    judge = evaluator(tmp_path, COMPUTE_CMAT=True)
    for part in torch.arange(200).split(64):
        judge.process(logits[part], truth[part])
    results = judge.evaluate()
    predicted = logits.argmax(1)
    expected = 100 * f1_score(truth, predicted, average="macro", labels=truth.unique())
    assert results["macro_f1"] == pytest.approx(expected)
    assert results["accuracy"] == pytest.approx(100 * (predicted == truth).double().mean().item())
    matrix = torch.load(tmp_path / "cmat.pt", weights_only=True)
    assert matrix.numpy() == pytest.approx(confusion_matrix(truth, predicted, normalize="true"))


def test_per_class_result(tmp_path, capsys):
    judge = evaluator(tmp_path, lab2cname={0: "cat", 1: "dog"}, PER_CLASS_RESULT=True)
    judge.process(logits_for([0, 1, 1, 0], 3), torch.tensor([0, 0, 1, 2]))
    assert judge.evaluate()["perclass_accuracy"] == pytest.approx(50.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5:] == [
        "=> per-class result",
        "* class: 0 (cat)\ttotal: 2\tcorrect: 1\tacc: 50.00%",
        "* class: 1 (dog)\ttotal: 1\tcorrect: 1\tacc: 100.00%",
        "* class: 2 (unknown)\ttotal: 1\tcorrect: 0\tacc: 0.00%",
        "* average: 50.00%",
    ]


def test_reset_forgets(tmp_path):
    judge = evaluator(tmp_path)
    judge.process(logits_for([0, 0], 2), torch.tensor([1, 1]))
    judge.evaluate()
    judge.reset()
    judge.process(logits_for([1], 2), torch.tensor([1]))
    assert judge.evaluate()["accuracy"] == 100.0
    assert judge.total == 1


def test_empty_set_and_wrong_names(tmp_path):
    with pytest.raises(UserError, match="empty"):
        evaluator(tmp_path).evaluate()
    with pytest.raises(UserError, match="lab2cname"):
        evaluator(tmp_path, PER_CLASS_RESULT=True)
    with pytest.raises(UserError, match=r"do you mean \[Classification\]"):
        evaluator(tmp_path, EVALUATOR="Clasification")
    assert "Classification" in EVALUATOR_REGISTRY.registered_names()


class Counted(Classification):
    """Counts in a `process` of its own, by Dassl's names, and leaves the rest to the class below."""

    def process(self, mo, gt):
        pred = mo.max(1)[1]
        self._correct += int(pred.eq(gt).float().sum().item())
        self._total += gt.shape[0]
        self._y_true.extend(gt.data.cpu().numpy().tolist())
        self._y_pred.extend(pred.data.cpu().numpy().tolist())
        assert self._per_class_res is None


class Balanced(Classification):
    """Adds a result of what was counted, by Dassl's names."""

    def evaluate(self):
        results = super().evaluate()
        assert (self._total, self._correct) == (len(self._y_true), results["accuracy"] * self._total / 100)
        names = [self._lab2cname[label] for label in self._y_true]
        rights = [
            [p == t for t, p in zip(self._y_true, self._y_pred, strict=True) if t == c] for c in set(self._y_true)
        ]
        results["balanced"] = 100 * sum(sum(right) / len(right) for right in rights) / len(rights)
        results["names"] = sorted(set(names))
        return results


def test_evaluators_written_on_top_of_dassls(tmp_path):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    truth, predicted = torch.tensor([0, 0, 0, 1, 2, 2]), [0, 0, 1, 1, 0, 2]
    found = []
    for kind in (Classification, Counted, Balanced):
        judge = kind(cfg, lab2cname={0: "a", 1: "b", 2: "c"})
        for part in (slice(0, 4), slice(4, 6)):
            judge.process(logits_for(predicted, 3)[part], truth[part])
        found.append(judge.evaluate())
        assert (judge.correct, judge.total) == (4, 6)
        assert judge.evaluate() == found[-1]  # once more, of the same
        judge.reset()
        with pytest.raises(UserError, match="empty"):
            judge.evaluate()
    assert found[0] == found[1]
    assert found[2] == {**found[0], "balanced": pytest.approx(100 * (2 / 3 + 1 + 1 / 2) / 3), "names": ["a", "b", "c"]}
