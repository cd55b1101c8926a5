"""The store of experts: found again by their facts, and nothing else taken for one."""

import os
import resource
import signal

import pytest
import torch
from safetensors.torch import save_file

from condu.delta import unify
from condu.state import ExpertStore, Stream
from dassl.utils import UserError, WriteFailed, save_tensors, tensor_digest
from tests.fixtures.streams import BACKBONE, SPACE, assert_same, delta, rows, small, task

FACTS = {"lr": 1e-5, "iterations": 250, "seed": 1, "space": {"kind": "lora_factors", "rank": 64}, "prompts": ("a {}.",)}


@pytest.fixture
def store(tmp_path):
    store = ExpertStore(tmp_path / "experts")
    for number in range(3):
        store.save(f"Task{number}", delta(number), rows(number), FACTS)
    return store


def test_round_trip(store):
    for number in range(3):
        found, prototypes, facts = store.load(f"Task{number}", FACTS)
        expected = delta(number)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert torch.equal(prototypes, rows(number))
        assert facts == FACTS | {"prompts": ["a {}."]}
        assert tensor_digest(found) == tensor_digest(expected)


def test_what_is_not_there_is_said(store, tmp_path):
    with pytest.raises(UserError, match="experts. has no expert of Task3; there: Task0, Task1, Task2"):
        store.load("Task3")
    empty = ExpertStore(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no expert of Task0; there: none"):
        empty.load("Task0", FACTS)
    assert empty.names() == []
    assert not (tmp_path / "nowhere").exists()


def test_names_are_sorted_and_strangers_are_refused(store):
    store.save("Aircraft", delta(0), rows(0), {})
    (store.folder / ".Task9.safetensors.0.tmp").write_bytes(b"half")
    assert store.names() == ["Aircraft", "Task0", "Task1", "Task2"]
    save_file({"w": torch.ones(2)}, store.folder / "model.safetensors")
    save_tensors(store.folder / "Other.safetensors", {"w": torch.ones(2)}, {"format": 1, "task": "Task0", "facts": {}})
    (store.folder / "Task9.safetensors").write_bytes((store.folder / "Task0.safetensors").read_bytes())
    for stranger in ("model", "Other", "Task9"):
        with pytest.raises(UserError, match=f"{stranger}.safetensors"):
            store.load(stranger)


def test_every_fact_that_differs_is_named_with_both_values(store):
    asked = {**FACTS, "lr": 5e-5, "seed": 1, "space": {"kind": "full"}, "steps": 3}
    with pytest.raises(UserError) as caught:
        store.load("Task1", asked)
    said = str(caught.value)
    assert "Task1.safetensors" in said
    assert "lr 1e-05, asked for 5e-05" in said
    assert "space {'kind': 'lora_factors', 'rank': 64}, asked for {'kind': 'full'}" in said
    assert "steps None, asked for 3" in said
    assert "seed" not in said
    assert "iterations" not in said


def test_an_expert_may_say_more_than_is_asked(store):
    assert store.load("Task1", {"lr": 1e-5})[2]["iterations"] == 250
    assert store.load("Task1")[2]["seed"] == 1


def test_a_second_expert_takes_the_place_of_the_first(store):
    store.save("Task1", delta(9), rows(1), {"lr": 1})
    assert tensor_digest(store.load("Task1", {"lr": 1})[0]) == tensor_digest(delta(9))
    assert len(os.listdir(store.folder)) == 3


@pytest.mark.parametrize("name", ["../Task", "a/b", ".hidden", "-x", "Pots & pans (2)", "100 %", "Fl\u00fcsse", "a\nb"])
def test_any_name_is_kept_in_its_folder_and_found_again(store, name):
    store.save(name, delta(3), rows(0), {})
    assert store.path(name).parent == store.folder and store.path(name).is_file()
    assert name in store.names() and tensor_digest(store.load(name)[0]) == tensor_digest(delta(3))


def test_a_task_without_a_name_is_refused(store):
    with pytest.raises(UserError, match="no name"):
        store.save(" ", delta(0), rows(0), {})


def test_a_damaged_expert_is_named(store):
    path = store.path("Task1")
    good = path.read_bytes()
    for bad in (good[:-1], good[: len(good) // 2], good[:-9] + bytes([good[-9] ^ 4]) + good[-8:], b""):
        path.write_bytes(bad)
        with pytest.raises(UserError, match="Task1.safetensors"):
            store.load("Task1")
    store.load("Task0")


def test_a_full_disk_leaves_the_earlier_expert(store):
    """RLIMIT_FSIZE stands for the disk."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
            store.save("Task1", delta(9), rows(1), {})
        except WriteFailed as error:
            code = 0 if "Task1.safetensors" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert tensor_digest(store.load("Task1")[0]) == tensor_digest(delta(1))
    assert sorted(os.listdir(store.folder)) == [f"Task{number}.safetensors" for number in range(3)]


def test_any_order_is_fused_from_the_store_alone(store, tmp_path):
    for order in ([0, 1, 2], [2, 0, 1]):
        stream = Stream(backbone=BACKBONE, space=SPACE)
        for number in order:
            found, prototypes, _ = store.load(f"Task{number}")
            stream.add(task(number), found, prototypes)
        stream.save(tmp_path / "".join(map(str, order)))
        loaded = Stream.load(tmp_path / "".join(map(str, order)))
        assert loaded.names() == [f"Task{number}" for number in order]
        if order == [0, 1, 2]:
            assert_same(loaded, small(3))
    first, second = (Stream.load(tmp_path / name).fusion for name in ("012", "201"))
    together, _ = unify([delta(number) for number in range(2)])
    pair = small(2).fusion.unified
    assert all(torch.equal(pair[name], together[name]) for name in together)
    assert any(not torch.equal(first.unified[name], second.unified[name]) for name in first.unified)  # order matters
