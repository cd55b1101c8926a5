"""MODEL.COMPILE: what is compiled computes the same, in few compilations, and files know nothing of it.

torch.compile really runs: with the backend "aot_eager", which traces, guards and differentiates and compiles no C++,
and once with the one that runs use.
"""

import copy
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.utils import counters

from dassl.clip import build, build_clip, compiling, cosine_logits, text_classifier
from dassl.clip.shared_prefix import layout_of
from dassl.engine.trainer import EpochTrainer
from tests.fixtures.coop_runs import context, run, shared  # noqa: F401  fixtures
from tests.fixtures.interpreter import PATH
from tests.gpu import trainers
from tests.gpu.row import CPU, Place, apart

ON = ("MODEL.COMPILE", "True")


@pytest.fixture
def fresh(monkeypatch):
    """A process that has compiled nothing yet; `fresh.count()`: graphs since."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")

    def forget():
        torch._dynamo.reset()
        counters.clear()
        for cache in (compiling.has_compiler, compiling._compiled, build._cached):
            cache.cache_clear()

    forget()
    yield lambda: counters["stats"]["unique_graphs"]
    forget()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("CoOp", "TRAINER.COOP.PREC amp"),
        ("CoOp_LMC", "MODEL.TEXT_CHUNK 2"),
        ("MMA_LMC", "MODEL.CHECKPOINT_BLOCKS True"),
        ("PromptKD_LMC", ""),  # its student has deep prompts
        ("FineTune_LMC", "TRAINER.LMC.NUM_SAMPLES 2"),
        ("ConDU", "TRAINER.CONDU.SPACE lora TRAINER.CONDU.RANK 4"),
    ],
)
def test_steps_are_those_without_and_names_in_files_too(name, more, fresh, tmp_path, monkeypatch):
    trainers.write_pets(tmp_path / "pets", classes=trainers.BREEDS[:6], counts=(4, 2, 2))
    place, mode = Place(CPU, tmp_path), "amp" if "amp" in more else "fp32"
    found = {}
    for compiles in ("False", "True"):
        monkeypatch.setenv("EXTRA_OPTS", f"MODEL.COMPILE {compiles} {more}")
        trainer = trainers.build(place, name, mode, CPU)
        names = [*trainer.model.state_dict(), *trainer.clip.module.state_dict()]
        found[compiles] = names, *trainers.played(trainer, name)[:2]
        assert trainer.clip.compiled == (compiles == "True") == (fresh() > 0)
    assert found["True"][0] == found["False"][0]
    assert len(found["True"][2]) >= 3
    for ours, plain in zip(found["True"][1:], found["False"][1:], strict=True):
        assert apart(ours, plain) < (1e-4 if mode == "fp32" else 0.05)


def test_other_sizes_and_texts_compile_nothing_more(fresh):
    assert compiling.has_compiler("cpu")
    clip, plain = compiling.compile_towers(build_clip("tiny")), build_clip("tiny")
    names = ["cat", "dog", "grey elephant", "old red fire engine"]
    assert layout_of(clip, clip.tokenize([f"a photo of a {name}." for name in names]), None)  # they still run packed
    torch._dynamo.reset()
    counters.clear()
    seen = []
    with torch.no_grad():
        for size in (8, 3, 5, 7):
            images = torch.randn(size, 3, 32, 32)
            torch.testing.assert_close(clip.encode_image(images), plain.encode_image(images), rtol=1e-4, atol=1e-4)
            seen.append(fresh())
        for some in (names, names[:3], names[1:]):
            text = [text_classifier(model, some, "a photo of a {}.") for model in (clip, plain)]
            torch.testing.assert_close(*text, rtol=1e-4, atol=1e-4)
            seen.append(fresh())
    assert seen == [1, 1, 1, 1, 2, 2, 2]  # 16 MLPs, one graph for each of two forms: (B, N, W) and (1, P, W)


def test_the_logits_compile_once_for_all_batches_and_classes(fresh):
    clip, plain = compiling.compile_towers(build_clip("tiny")), build_clip("tiny")
    assert compiling.compiled(math.hypot, plain) is math.hypot
    logits = compiling.compiled(cosine_logits, clip)
    for size, classes in ((4, 3), (7, 5), (2, 9)):
        image, text = torch.randn(size, 8), torch.randn(classes, 8)
        expected = 2 * torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).T
        torch.testing.assert_close(logits(image, text, torch.tensor(2.0)), expected)
    assert fresh() == 1


def test_hooks_inside_what_is_compiled_count_and_a_copy_is_its_own(fresh):
    assert compiling.has_compiler("cpu")
    clip, plain = compiling.compile_towers(build_clip("tiny")), build_clip("tiny")
    images = torch.randn(3, 3, 32, 32)

    def same(ours):
        with torch.no_grad():
            torch.testing.assert_close(ours.encode_image(images), plain.encode_image(images), rtol=1e-4, atol=1e-4)

    same(clip)
    hooks = [m.image_blocks[0].module.mlp[0].register_forward_hook(lambda *call: 2 * call[2]) for m in (clip, plain)]
    same(clip)
    for hook in hooks:
        hook.remove()
    same(clip)
    other = copy.deepcopy(clip)
    for part in (other, plain):
        for value in part.module.parameters():
            value.data.mul_(1.01)
    same(other)


def test_a_run_goes_on_across_on_and_off(fresh, run, monkeypatch):  # noqa: F811
    step = EpochTrainer.forward_backward

    def stopping(trainer, *batch):
        if trainer.epoch == 1:
            raise KeyboardInterrupt
        return step(trainer, *batch)

    whole = context(run("CoOp", "whole", epochs=2))
    for name, first, second in (("on off", ON, ()), ("off on", (), ON)):
        monkeypatch.setattr(EpochTrainer, "forward_backward", stopping)
        with pytest.raises(KeyboardInterrupt):
            run("CoOp", name, *first, epochs=2)
        monkeypatch.setattr(EpochTrainer, "forward_backward", step)
        torch.testing.assert_close(context(run("CoOp", name, *second, epochs=2)), whole, rtol=0, atol=1e-4)
    assert fresh() > 0


def test_without_a_compiler_a_line_says_so_and_the_run_goes_on(run, tmp_path):  # noqa: F811
    line = run.argv("CoOp", "bare", *ON, epochs=1)
    missing = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}  # read at an import
    words = [sys.executable, "train.py", *line, "USE_CUDA", "False"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": PATH} | missing)
    assert done.returncode == 0, done.stderr
    said = [text for text in (done.stdout + done.stderr).splitlines() if "MODEL.COMPILE has no effect on cpu" in text]
    assert len(said) == 1
    run("CoOp", "plain", epochs=1)
    assert torch.equal(context(run.folder / "bare"), context(run.folder / "plain"))


def test_the_compiler_of_runs(run, fresh, monkeypatch):  # noqa: F811
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    one, two = (run("CoOp", name, *more, epochs=1) for name, more in (("plain", ()), ("compiled", ON)))
    torch.testing.assert_close(context(one), context(two), rtol=0, atol=1e-4)
    assert compiling.has_compiler("cpu") == (fresh() > 0)  # where there is no compiler nothing is compiled
    facts = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    assert facts[0]["metrics"] == facts[1]["metrics"]
