"""The state of a stream: what it holds, what it refuses, and how large it is."""

import pytest
import torch

from condu.state import Stream, Task, sessions
from dassl.utils import MissingFile, UserError, load_tensors, save_tensors, tensor_digest
from tests.fixtures.streams import BACKBONE, SHAPES, SPACE, assert_same, delta, grow, rows, small, task


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("scale", ["l1", "tensor_mean", "none"])
def test_what_is_loaded_is_what_was_saved_and_goes_on_alike(tmp_path, scale):
    stream = small(3, scale)
    stream.save(tmp_path / "s")
    loaded = Stream.load(tmp_path / "s")
    assert_same(loaded, stream)
    assert loaded.session == 2
    assert loaded.names() == ["Task0", "Task1", "Task2"]
    assert_same(grow(loaded, 5), grow(stream, 5))


def test_one_process_a_session_is_the_same_as_one_process_for_all(tmp_path):
    for count in range(1, 5):
        stream = Stream.load(tmp_path) if sessions(tmp_path) else small(0)
        grow(stream, count).save(tmp_path)
    assert_same(Stream.load(tmp_path), small(4))


def test_a_task_keeps_its_facts_as_json_does():
    stream = small(0)
    names = ("a", "b")
    stream.add(Task("T", names, ("a {}.",), {"lr": (1, 2)}), delta(0), rows(0))
    assert stream.tasks == [Task("T", ["a", "b"], ["a {}."], {"lr": [1, 2]}, tensor_digest(delta(0)))]


def test_the_unified_delta_can_be_stored_in_half(tmp_path):
    stream = small(3)
    stream.save(tmp_path / "whole")
    stream.save(tmp_path / "half", half=True)
    loaded = Stream.load(tmp_path / "half")
    assert loaded.tasks == stream.tasks
    assert (loaded.fusion.scales, loaded.fusion.norms) == (stream.fusion.scales, stream.fusion.norms)
    for name in SHAPES:
        assert loaded.fusion.unified[name].dtype == torch.float32
        assert torch.equal(loaded.fusion.unified[name], stream.fusion.unified[name].bfloat16().float())
        for ours, theirs in zip(loaded.fusion.masks, stream.fusion.masks, strict=True):
            assert torch.equal(ours[name], theirs[name])
    p = sum(value.numel() for value in delta(0).values())
    assert size(tmp_path / "whole") - size(tmp_path / "half") == pytest.approx(2 * p, abs=64)
    again = Stream.load(tmp_path / "half")
    again.save(tmp_path / "again", half=True)
    assert_same(Stream.load(tmp_path / "again"), loaded)


def test_a_run_that_comes_again_after_a_kill_changes_nothing(tmp_path):
    stream = small(2)
    before = small(2)
    assert stream.add(task(1), delta(1), rows(1)) is False
    assert_same(stream, before)
    stream.save(tmp_path)
    loaded = Stream.load(tmp_path)
    assert loaded.add(task(1, expert=stream.tasks[1].expert), delta(1), rows(1)) is False


@pytest.mark.parametrize(
    ("number", "seed", "match"),
    [(1, 7, "Task1 is session 1 .*another expert"), (0, 0, "Task0 is session 0 .*not the last.*Task0, Task1")],
)
def test_a_name_is_learned_once(number, seed, match):
    stream = small(2)
    with pytest.raises(UserError, match=match):
        stream.add(task(number), delta(seed), rows(number))
    assert_same(stream, small(2))


BAD = {
    "rows": ("Task1: the prototypes are .4, 6., expected .3, 6.", lambda: (task(1), delta(1), rows(2))),
    "width": ("Task1: the prototypes are .3, 8., expected .3, 6.", lambda: (task(1), delta(1), rows(1, dim=8))),
    "flat": ("Task1: the prototypes are .18,.", lambda: (task(1), delta(1), rows(1).view(-1))),
    "nan": ("Task1: some prototypes are not finite", lambda: (task(1), delta(1), rows(1) / 0)),
    "no classes": ("Task9", lambda: (Task("Task9", [], ["a {}."]), delta(1), rows(1)[:0])),
    "no name": ("needs a name", lambda: (Task("", ["a"], ["a {}."]), delta(1), rows(1)[:1])),
    "names": ("Task1.*ln_final.bias", lambda: (task(1), delta(1, {"x": (3,)}), rows(1))),
    "shape": ("Task1.*scale", lambda: (task(1), delta(1, SHAPES | {"scale": (2,)}), rows(1))),
    "zero": ("Task1", lambda: (task(1), {key: 0 * value for key, value in delta(1).items()}, rows(1))),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_and_the_stream_is_as_it_was(case):
    match, make = BAD[case]
    stream = small(1)
    with pytest.raises(UserError, match=match):
        stream.add(*make())
    assert_same(stream, small(1))
    assert_same(grow(stream, 2), small(2))


def test_an_unknown_scale_rule_is_refused():
    with pytest.raises(ValueError, match="l1.*tensor_mean"):
        Stream(backbone=BACKBONE, space=SPACE, scale="l2")


def test_a_folder_without_a_session_holds_no_stream(tmp_path):
    assert sessions(tmp_path) == []
    with pytest.raises(MissingFile, match="No stream"):
        Stream.load(tmp_path)


OTHERS = {
    "backbone": ({"name": "ViT-B/16", "digest": "fe"}, "backbone .*0123456789abcdef.*tiny.*, asked for .*fe.*ViT-B/16"),
    "space": ({"kind": "lora_factors", "rank": 64}, "space .*full.*, asked for .*lora_factors.*64"),
    "scale": ("none", "scale 'l1', asked for 'none'"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_folder_of_another_stream_is_refused_with_both_values(tmp_path, what):
    other, match = OTHERS[what]
    small(1).save(tmp_path)
    with pytest.raises(UserError, match=match):
        Stream.load(tmp_path, **{what: other})
    before = (tmp_path / "session_0.safetensors").read_bytes()
    with pytest.raises(UserError, match=match):
        small(2, **{what: other}).save(tmp_path)
    assert (tmp_path / "session_0.safetensors").read_bytes() == before
    assert_same(Stream.load(tmp_path, backbone=BACKBONE, space=SPACE, scale="l1"), small(1))


def test_every_fact_that_differs_is_named_in_one_error(tmp_path):
    small(1).save(tmp_path)
    with pytest.raises(UserError, match="backbone .*; space .*; scale "):
        Stream.load(tmp_path, **{what: other for what, (other, _) in OTHERS.items()})


def test_the_same_weights_under_another_name_are_the_same_backbone(tmp_path):
    small(1).save(tmp_path)
    assert Stream.load(tmp_path, backbone=BACKBONE | {"name": "/a/path.pt"}).backbone == BACKBONE


def test_a_stream_of_other_tasks_does_not_take_a_folder(tmp_path):
    small(2).save(tmp_path)
    other = small(1)
    other.add(task(1), delta(5), rows(1))
    for stream in (other, small(1)):
        with pytest.raises(UserError, match="Task0 .*Task1 .* does not continue"):
            stream.save(tmp_path)
    assert_same(Stream.load(tmp_path), small(2))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda facts: facts["tasks"][0]["classnames"].append("more"), "Task0: the prototypes are"),
        (lambda facts: facts["tasks"].reverse(), "prototypes|fusion"),
        (lambda facts: facts["tasks"][0].update(more=1), "holds no stream"),
        (lambda facts: facts["tasks"][1].pop("prompts"), "holds no stream"),
    ],
    ids=["classes", "order", "field", "prompts"],
)
def test_facts_that_contradict_their_tensors_are_refused(tmp_path, change, match):
    """As an editor would leave them who also mends the checksum."""
    small(2).save(tmp_path)
    path = tmp_path / "session_1.safetensors"
    tensors, facts, _ = load_tensors(path)
    change(facts)
    save_tensors(path, tensors, facts)
    with pytest.raises(UserError, match=match):
        Stream.load(tmp_path)


# sizes: letters P values, T tasks


def data_bytes(shapes, tasks, half=False):
    values = [torch.Size(shape).numel() for shape in shapes]
    return (2 if half else 4) * sum(values) + tasks * sum(-(-n // 8) for n in values)


def block(width):
    """A transformer block: attention, MLP of four times the width, two norms."""
    return {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        **{f"{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")},
    }


def vit_b16():
    """Shapes of all parameters of OpenAI's CLIP ViT-B/16."""
    image = {
        "class_embedding": (768,),
        "positional_embedding": (197, 768),
        "proj": (768, 512),
        "conv1.weight": (768, 3, 16, 16),
        **{f"{norm}.{kind}": (768,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")},
        **{f"transformer.resblocks.{i}.{name}": shape for i in range(12) for name, shape in block(768).items()},
    }
    text = {
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
        "token_embedding.weight": (49408, 512),
        "ln_final.weight": (512,),
        "ln_final.bias": (512,),
        "logit_scale": (),
        **{f"transformer.resblocks.{i}.{name}": shape for i in range(12) for name, shape in block(512).items()},
    }
    return text | {f"visual.{name}": shape for name, shape in image.items()}


HEADER = 140  # bytes a tensor takes in the header of its file: name, type, shape, place; names of 60 letters
PROTOTYPES = 4 * 1201 * 512  # of MTIL's 11 tasks
TEXTS = 200_000  # class names, prompts, recipes, shapes


@pytest.mark.parametrize("half", [False, True])
def test_bytes_on_disk_are_the_unified_delta_and_one_bit_a_mask_value(tmp_path, half):
    shapes = {f"transformer.resblocks.{i}.mlp.c_fc.weight": (61 + i, 33) for i in range(8)} | {"bias": (5,)}
    stream = small(0)
    for number in range(4):
        stream.add(task(number), delta(number, shapes), rows(number))
    stream.save(tmp_path, half=half)
    used = (tmp_path / "session_3.safetensors").stat().st_size
    assert 0 < used - data_bytes(shapes.values(), 4, half) < HEADER * len(shapes) * (1 + 4) + 20_000


def test_sizes_of_vit_b16_with_eleven_tasks():
    full = vit_b16()
    assert (len(full), sum(torch.Size(shape).numel() for shape in full.values())) == (302, 149_620_737)
    mlp = {name: shape for name, shape in full.items() if name.endswith(("c_fc.weight", "c_proj.weight"))}
    factors = [(width, 64) for shape in mlp.values() for width in shape]
    assert sum(a * b for a, b in factors) == 9_830_400
    for shapes, half, most in (
        (list(full.values()), False, 0.81e9),
        (list(full.values()), True, 0.51e9),
        (factors, False, 56e6),
        (list(mlp.values()), False, 450e6),
    ):
        total = data_bytes(shapes, 11, half) + HEADER * len(shapes) * 12 + PROTOTYPES + TEXTS
        assert total <= most


def test_files_do_not_depend_on_the_process_that_writes(tmp_path):
    for name in ("a", "b"):
        small(3).save(tmp_path / name)
    one, other = (tmp_path / name / "session_2.safetensors" for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()


def test_the_order_of_a_deltas_names_does_not_matter():
    stream = small(0)
    for number in range(3):
        stream.add(task(number), dict(reversed(delta(number).items())), rows(number))
    assert_same(stream, small(3))
