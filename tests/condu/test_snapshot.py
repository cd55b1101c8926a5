"""What is evaluated: prototypes, label spaces, test sets, and the experts of a stream."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from condu.evaluation import ExpertCache
from condu.snapshot import LabelSpace, TestSet, prototypes_of, snapshot_of
from condu.state import Stream, Task
from condu.tuning import Tuning
from dassl.clip import text_classifier
from tests.fixtures.condu_world import World, loader_of

NAMES = ["cat", "dog", "bird"]
PROMPTS = [["a photo of a {}."], ["a {} thing.", "a photo of the {}."]]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, tasks=3)


def learn(world, stream, number):
    names, prompts = world.classnames[number], world.prompts[number]
    stream.add(Task(world.names[number], names, prompts), world.deltas[number], world.prototypes[number])


@pytest.fixture
def space(world):
    pretrained = {name: p.detach().clone() for name, p in world.clip.module.named_parameters()}
    return Tuning(copy.deepcopy(world.clip), pretrained)


@pytest.fixture
def stream(world, space):
    stream = Stream(backbone={"name": "small", "digest": world.clip.digest}, space=space.metadata())
    for number in range(2):
        learn(world, stream, number)
    return stream


@pytest.mark.parametrize("prompts", PROMPTS, ids=["one", "several"])
def test_prototypes_are_the_mean_of_both_towers(world, tmp_path, prompts):
    loader = loader_of(tmp_path / "shots", NAMES, 3, seed=9, batch=4)
    found = prototypes_of(world.clip, loader, NAMES, prompts)
    for label, name in enumerate(NAMES):
        items = [loader.dataset[i] for i in range(9)]
        images = torch.stack([item["img"] for item in items if item["label"] == label])
        with torch.no_grad():
            image = F.normalize(world.clip.encode_image(images), dim=-1).mean(0)
            text = torch.stack([F.normalize(text_classifier(world.clip, [name], p), dim=-1)[0] for p in prompts])
        torch.testing.assert_close(found[label], F.normalize(image + text.mean(0), dim=-1))


def test_prototypes_look_at_the_given_images_alone(world, tmp_path):
    loader = loader_of(tmp_path / "shots", NAMES, 5, seed=9)
    shots = DataLoader(torch.utils.data.Subset(loader.dataset, [0, 5, 10]), batch_size=2)
    prototypes_of(world.clip, shots, NAMES, PROMPTS[0])
    assert len(loader.dataset.decoded) == 3 and set(loader.dataset.decoded.values()) == {1}


def test_equal_names_are_one_column_and_the_first_tasks(world):
    test = world.tests[2]  # dog, car, boat, tree
    space = LabelSpace(test, world.snapshot(2))
    assert space.names == ["cat", "dog", "bird", "red", "green", "car", "boat", "tree"]
    assert space.right.tolist() == [1, 5, 6, 7]
    assert [rows.tolist() for _, _, rows in space.blocks] == [[0, 1, 2], [0, 1], [1, 2, 3]]
    assert LabelSpace(test).names == world.classnames[2]
    assert LabelSpace(test, world.snapshot(3)).names == space.names
    twice = TestSet("twice", ["a_b", "c", "a b"], PROMPTS[0], test.loader)
    assert LabelSpace(twice).right.tolist() == [0, 1, 0]


def test_a_member_is_the_pretrained_weights_and_its_decoupled_delta(world, stream, space):
    snapshot, slots = snapshot_of(stream, space), ExpertCache(world.clip)
    assert [task.classnames for task in snapshot.tasks] == world.classnames[:2]
    for task, member in zip(("Task0", "Task1"), snapshot.members, strict=True):
        delta = stream.fusion.decouple(task)
        clip = slots.clip(member.key, member.fill)
        for name, parameter in clip.module.named_parameters():
            expected = space.pretrained[name] + delta[name] if name in delta else space.pretrained[name]
            torch.testing.assert_close(parameter.data, expected)


def test_keys_say_what_the_weights_are(world, stream, space, tmp_path):
    keys = [member.key for member in snapshot_of(stream, space).members]
    assert len(set(keys)) == 2
    stream.save(tmp_path / "stream", history=True)
    again = [member.key for member in snapshot_of(Stream.load(tmp_path / "stream"), space).members]
    assert again == keys
    stream.save(tmp_path / "half", half=True)
    rounded = [member.key for member in snapshot_of(Stream.load(tmp_path / "half"), space).members]
    learn(world, stream, 2)
    later = [member.key for member in snapshot_of(stream, space).members]
    assert len({*keys, *rounded, *later}) == 2 + 2 + 3


def test_a_snapshot_stays_as_it_was_when_the_stream_goes_on(world, stream, space):
    member, slots = snapshot_of(stream, space).members[0], ExpertCache(world.clip)
    before = {name: p.detach().clone() for name, p in slots.clip("before", member.fill).module.named_parameters()}
    learn(world, stream, 2)
    after = dict(slots.clip("after", member.fill).module.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    now = dict(slots.clip("now", snapshot_of(stream, space).members[0].fill).module.named_parameters())
    assert any(not torch.equal(now[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    "size, parts", [(100, [16]), (16, [15, 1]), (12, [10, 6]), (5, [5, 5, 5, 1]), (1, [5, 5, 5, 1])]
)
def test_chunks_are_whole_batches_in_order(world, size, parts):
    test = world.tests[2]
    chunks = list(test.chunks(size, torch.device("cpu")))
    assert [len(labels) for _, labels in chunks] == parts
    assert torch.cat([labels for _, labels in chunks]).tolist() == [i // 4 for i in range(16)]
    assert torch.equal(torch.cat([pixels for pixels, _ in chunks])[7], test.loader.dataset[7]["img"])
