"""Weights that others merged: found by name and lambda, and evaluated through train.py."""

import pytest
import torch

import train
from dassl.utils import UserError
from tests.fixtures.command_line import one_error, start


@pytest.fixture
def line(argv):
    """`line(out, *words)`: a command line of train.py on the pets; the words stand behind KEY VALUE pairs."""
    return lambda out, *words: argv(*words, name=out.name)


@pytest.fixture
def external(tmp_path):
    """Files as the released code expects them: TIES by lambda, DARE under `prompts.ctx`."""
    folder = tmp_path / "external"
    folder.mkdir()
    contexts = {0.3: torch.zeros(4, 128), 0.5: torch.ones(4, 128) / 50}
    for value, ctx in contexts.items():
        torch.save(
            {"state_dict": {"ctx": ctx, "token_prefix": torch.zeros(3, 1, 128)}},
            folder / f"clip_coop_ties_lambda_{value}.pth",
        )
    torch.save({"prompts.ctx": contexts[0.5]}, folder / "clip_coop_dare.pth")
    return folder


def test_merged_files_of_others_are_evaluated(line, external, tmp_path):
    words = ["--eval-only-merge", "--model-dir", external]
    ties = train.main(line(tmp_path / "ties", *words, "--lambda-val", "0.50", "--model-prefix", "clip_coop"))
    assert ties["preset"] == "TIES (lambda 0.5)" and ties["merge"]["file"] == "clip_coop_ties_lambda_0.5.pth"
    assert ties["data_seen"] == "unknown: merged elsewhere" and ties["kind"] == "eval"
    words[0] = "--eval-only-merge-dare"
    dare = train.main(line(tmp_path / "dare", *words, "--model-name", "clip_coop_dare"))
    assert dare["preset"] == "DARE" and dare["correct"] == ties["correct"]
    assert train.main(line(tmp_path / "found", *words))["merge"] == dare["merge"]


def test_missing_and_ambiguous_merged_files_are_named(line, external, tmp_path):
    words = ["--eval-only-merge", "--model-dir", external]
    for more, match in (
        (["--lambda-val", "0.4"], "No merged weights PREFIX_ties_lambda_0.4.pth in .*there: .*_0.3.pth, .*_0.5.pth"),
        ([], r"several merged weights \(.*0\.3\.pth, .*0\.5\.pth\): choose with --lambda-val"),
        (
            ["--model-prefix", "clip_kgcoop"],
            "No merged weights clip_kgcoop_ties_lambda_VALUE.pth .*there: clip_coop_dare",
        ),
        (["--model-name", "none"], "No merged weights none in"),
        (["--eval-only-merge-dare"], "exclude each other"),
    ):
        with pytest.raises(UserError, match=match):
            train.main(line(tmp_path / "out", *words, *more))
    torch.save({"other": torch.zeros(1)}, external / "clip_coop_ties_lambda_0.3.pth")
    with pytest.raises(UserError, match=r"ties_lambda_0\.3\.pth does not fit prompt_learner: it lacks ctx.*other"):
        train.main(line(tmp_path / "out", *words, "--lambda-val", "0.3"))
    assert not (tmp_path / "out" / "results.json").exists()


def test_flags_behind_the_pairs_are_read_in_a_process_of_its_own(line, external, tmp_path):
    words = line(tmp_path / "out", "--eval-only-merge", "--model-dir", external, "--lambda-val", "7")
    assert "No merged weights PREFIX_ties_lambda_7.pth in" in one_error(start(words))
