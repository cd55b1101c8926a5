"""Session folders of the released ConDU code become streams, exactly."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from condu.import_released import main, stream_of
from condu.state import Stream, Task, sessions
from dassl.clip import cached_clip
from dassl.utils import MissingFile, UserError
from tests.conftest import ROOT
from tests.fixtures import released_condu as released
from tests.fixtures.deltas import trigger_of

TASKS = ["OxfordPet", "MNIST", "DTD"]
CLASSES = {name: [f"{name} {label}" for label in range(3 + i)] for i, name in enumerate(TASKS)}


@pytest.fixture(scope="module")
def clip():
    return cached_clip("tiny")


@pytest.fixture(scope="module")
def shapes(clip):
    return {name: tuple(value.shape) for name, value in clip.module.named_parameters()}


@pytest.fixture(scope="module")
def prototypes(clip):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(len(CLASSES[name]), clip.dim, generator=generator) for name in TASKS]


@pytest.fixture
def ckpt(tmp_path, shapes, prototypes):
    """`ckpt(count, **options)`: writes session_<count - 1>, returns (folder, unified, masks, scales)."""

    def write(count=3, shapes=shapes, untrained=("logit_scale",), **options):
        deltas = released.random_deltas(shapes, 3, untrained)[:count]
        folder = tmp_path / "ckpt" / f"session_{count - 1}"
        return folder, *released.write_session(folder, TASKS[:count], deltas, prototypes[:count], **options)

    return write


@pytest.fixture
def line(tmp_path):
    """`line(*folders, order=, classes=)`: the command's words."""

    def words(*folders, order="OxfordPet,MNIST,DTD", classes=CLASSES, to="stream"):
        (tmp_path / "classes.json").write_text(json.dumps(classes))
        known = ["--classes", str(tmp_path / "classes.json"), "--backbone", "tiny"]
        return [*map(str, folders), "--to", str(tmp_path / to), "--order", order, *known]

    return words


@pytest.mark.parametrize("wrapped", [False, True])
def test_every_decoupled_delta_is_the_files_own(ckpt, line, tmp_path, clip, prototypes, wrapped):
    folder, unified, masks, scales = ckpt(wrapped=wrapped)
    main(line(folder))
    stream = Stream.load(tmp_path / "stream", backbone={"name": "tiny", "digest": clip.digest}, space={"kind": "full"})
    assert stream.names() == TASKS
    assert stream.fusion.scale == "tensor_mean"
    assert [task.classnames for task in stream.tasks] == list(CLASSES.values())
    for name, mask, scale in zip(TASKS, masks, scales, strict=True):
        found = stream.fusion.decouple(name)
        assert found.keys() == unified.keys() - {"logit_scale"}
        for key, value in found.items():
            assert torch.equal(value, scale * mask[key] * unified[key]), key
    for ours, theirs in zip(stream.prototypes, prototypes, strict=True):
        assert torch.equal(ours, theirs)


def test_norms_are_those_of_the_experts(ckpt, shapes, clip):
    """The rescaler was made to keep the sum of tensor means, so scale times what is left gives it back."""
    folder, *_ = ckpt()
    stream = stream_of(folder, TASKS, CLASSES, clip)
    experts = [
        sum(value.double().abs().mean().item() for value in delta.values())
        for delta in released.random_deltas(shapes, 3)
    ]
    assert stream.fusion.norms == pytest.approx(experts, rel=1e-5)


def test_an_imported_stream_goes_on_as_the_released_code_would(ckpt, shapes, clip, prototypes):
    """Session 2 fused from the imported session 1 = session 2 as released: decouple all, unify all."""
    folder, unified, masks, scales = ckpt(2)
    stream = stream_of(folder, TASKS, CLASSES, clip)
    third = released.random_deltas(shapes, 3)[2]
    delta = {name: value for name, value in third.items() if name != "logit_scale"}
    assert stream.add(Task(TASKS[2], CLASSES[TASKS[2]], ["a {}."]), delta, prototypes[2])
    old = [{name: s * m[name] * unified[name] for name in unified} for m, s in zip(masks, scales, strict=True)]
    again, masks, scales = released.fused([*old, third])
    assert stream.fusion.scales == pytest.approx([scale.item() for scale in scales], rel=1e-5)
    for name, mask in zip(TASKS, masks, strict=True):
        ours = trigger_of(stream.fusion, name).mask
        differ = sum((ours[key] != mask[key]).sum().item() for key in ours)
        assert differ <= 1e-5 * sum(value.numel() for value in ours.values())


def test_several_folders_become_the_sessions_of_one_stream(ckpt, line, tmp_path):
    folders = [ckpt(count)[0] for count in (3, 1, 2)]
    main(line(*folders))
    assert sessions(tmp_path / "stream") == [0, 1, 2]
    for session in range(3):
        assert Stream.load(tmp_path / "stream", session).names() == TASKS[: session + 1]


def test_the_order_may_be_of_more_tasks_and_in_our_spelling(ckpt, line, tmp_path):
    folder, *_ = ckpt(2)
    main(line(folder, order="oxford_pet,mnist,dtd,food"))
    assert Stream.load(tmp_path / "stream").names() == TASKS[:2]


def test_half_and_prompts(ckpt, line, tmp_path):
    folder, unified, *_ = ckpt(1)
    told = {TASKS[0]: {"classnames": CLASSES[TASKS[0]], "prompts": ["a photo of a {}, a type of pet."]}}
    main([*line(folder, classes=told), "--half"])
    stream = Stream.load(tmp_path / "stream")
    assert stream.tasks[0].prompts == ["a photo of a {}, a type of pet."]
    value = stream.fusion.unified["visual.proj" if "visual.proj" in unified else next(iter(stream.fusion.unified))]
    assert torch.equal(value, value.bfloat16().float())


def test_lora_keeps_its_factors_alone(ckpt, line, tmp_path, shapes, caplog):
    factors = {f"layer{i}.{kind}": shape for i in range(2) for kind, shape in (("lora_A", (9, 4)), ("lora_B", (4, 7)))}
    folder, unified, masks, scales = ckpt(shapes=shapes | factors, untrained=tuple(shapes))
    with caplog.at_level("INFO"):
        main(line(folder))
    assert f"{len(shapes)} entries of untrained parameters are dropped" in caplog.text
    stream = Stream.load(tmp_path / "stream")
    assert stream.space == {"kind": "lora_factors_released", "rank": 4, "layers": 2}
    for name, mask, scale in zip(TASKS, masks, scales, strict=True):
        found = stream.fusion.decouple(name)
        assert found.keys() == factors.keys()
        assert all(torch.equal(found[key], scale * mask[key] * unified[key]) for key in found)


def test_tasks_that_are_missing_or_surplus_are_named(ckpt, line):
    folder, *_ = ckpt()
    os.rename(folder / "MNIST.pth", folder / "SUN397.pth")
    with pytest.raises(UserError, match="missing file: MNIST; surplus file: SUN397"):
        main(line(folder))
    with pytest.raises(UserError, match="order has 2 tasks, expected 3.*surplus entry of prototypes.pth: DTD"):
        main(line(folder, order="OxfordPet,MNIST"))
    with pytest.raises(UserError, match="missing file: aircraft, caltech101, cifar100; surplus file: DTD"):
        main(line(folder, order="I"))


def test_a_stale_trigger_of_another_order_is_no_task(ckpt, line, tmp_path):
    folder, *_ = ckpt(2)
    other, *_ = ckpt(3)
    os.rename(other / "DTD.pth", folder / "DTD.pth")
    with pytest.raises(UserError, match="first 2 tasks.*surplus file: DTD"):
        main(line(folder))
    assert not (tmp_path / "stream").exists()


BROKEN = {
    "classes": (lambda f: None, {"classes": CLASSES | {"DTD": ["a"]}}, "DTD has 1 class names, but 5 prototypes"),
    "unknown": (lambda f: None, {"classes": {"DTD": ["a"]}}, "No class names of OxfordPet.*given: DTD"),
    "number": (lambda f: None, {"classes": CLASSES | {"MNIST": 4}}, "MNIST.*must be lists"),
    "scale": (lambda f: change(f / "DTD.pth", rescalers=torch.tensor(torch.inf)), {}, "DTD.pth.*inf, expected one pos"),
    "no mask": (lambda f: change(f / "DTD.pth", masks={}), {}, "DTD.pth.*no mask that fits"),
    "empty": (
        lambda f: change(f / "DTD.pth", masks={k: v & False for k, v in entry(f / "DTD.pth", "masks").items()}),
        {},
        "session_2.*, 0.0., expected a finite number above 0",
    ),
    "names": (lambda f: change(f / "unified.pth", x=3), {}, "x is no plain tensor .* but int"),
    "no trigger": (lambda f: torch.save({"w": torch.ones(2)}, f / "DTD.pth"), {}, "DTD.pth.*expected masks and resc"),
    "float": (
        lambda f: change(f / "DTD.pth", masks={"visual": torch.ones(2)}),
        {},
        "visual is no plain tensor .*float32",
    ),
    "cut": (lambda f: (f / "unified.pth").write_bytes((f / "unified.pth").read_bytes()[:999]), {}, "unified.pth"),
    "module": (
        lambda f: (f / "MNIST.pth").write_bytes(pickle.dumps(Path("x"))),
        {},
        "MNIST.pth.*refused|MNIST.pth.*dam",
    ),
    "width": (lambda f: change(f / "prototypes.pth", DTD=[torch.ones(2)] * 5), {}, "DTD.*expected .5, "),
    "ragged": (lambda f: change(f / "prototypes.pth", DTD=[torch.ones(2), torch.ones(3)]), {}, "DTD.*one length"),
}


def change(path, **entries):
    torch.save(torch.load(path, map_location="cpu", weights_only=True) | entries, path)


def entry(path, name):
    return torch.load(path, map_location="cpu", weights_only=True)[name]


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_named(ckpt, line, tmp_path, case):
    spoil, options, match = BROKEN[case]
    folder, *_ = ckpt()
    spoil(folder)
    with pytest.raises(UserError, match=match):
        main(line(folder, **options))
    assert not (tmp_path / "stream").exists()


def test_another_model_is_refused(ckpt, line, shapes):
    names = list(shapes)
    other = {name: shape for name, shape in shapes.items() if name != names[3]} | {names[5]: (2, 2), "queue": (7,)}
    folder, *_ = ckpt(shapes=other)
    with pytest.raises(UserError, match=f"not of .*3 names or shapes do not fit .{names[3]}, {names[5]}, queue"):
        main(line(folder))


def test_a_trained_logit_scale_is_refused(ckpt, line):
    folder, *_ = ckpt(untrained=())
    with pytest.raises(UserError, match="changes logit_scale, which this code does not train"):
        main(line(folder))


def test_pretrained_is_never_opened(ckpt, line, tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harmed"),)

    folder, *_ = ckpt()
    torch.save(Harm(), folder / "pretrained.pth")
    main(line(folder))
    torch.save({"masks": Harm(), "rescalers": torch.ones(())}, folder / "DTD.pth")
    with pytest.raises(UserError, match="DTD.pth.*refused"):
        main(line(folder, to="second"))
    assert not (tmp_path / "harmed").exists()


def test_wrong_places(ckpt, line, tmp_path):
    folder, *_ = ckpt()
    with pytest.raises(MissingFile, match="No unified.pth in .*ckpt.; there is one in session_2"):
        main(line(folder.parent))
    with pytest.raises(UserError, match="Two folders are of one session"):
        main(line(folder, folder.parent / "." / "session_2" / ".." / "session_2"))
    main(line(folder))
    with pytest.raises(UserError, match="holds a stream already"):
        main(line(folder))


def test_the_command_ends_with_one_line(line, tmp_path):
    words = [sys.executable, "-m", "condu.import_released", *line(tmp_path)]
    root = ROOT
    env = os.environ | {"PYTHONPATH": f"{root}:{root / 'Dassl.ProGrad.pytorch'}"}
    done = subprocess.run(words, cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f'error: No unified.pth in "{tmp_path}"\n'
