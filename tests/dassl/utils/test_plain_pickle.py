"""Pickles of plain data: what is in them is read, nothing in them runs, all else is refused by name."""

import os
import pickle

import numpy as np
import pytest

from dassl.utils import MissingFile, PlainArray, UserError, load_plain_pickle
from tests.fixtures.mtil_folders import python2_pickle


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Point:
    """As a class of another program would be pickled."""

    def __init__(self, x):
        self.x = x


class StandIn:
    pass


PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def written(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    return tmp_path / "file"


@pytest.mark.parametrize(
    "content",
    [
        python2_pickle({"labels": [0, 1], "name": "caf\xe9", "data": PIXELS}),
        pickle.dumps({"labels": [0, 1], "name": "caf\xe9", "data": PIXELS}, protocol=2),
        pickle.dumps({"labels": [0, 1], "name": "caf\xe9", "data": PIXELS}, protocol=4),
    ],
    ids=["python2", "protocol2", "protocol4"],
)
def test_containers_strings_and_arrays_of_bytes(tmp_path, content):
    tree = load_plain_pickle(written(tmp_path, content))
    assert tree["labels"] == [0, 1] and tree["name"] == "caf\xe9"
    assert isinstance(tree["data"], PlainArray) and np.array_equal(tree["data"].array, PIXELS)
    assert not tree["data"].array.flags.writeable


def test_classes_that_the_caller_names_become_what_it_gives(tmp_path):
    path = written(tmp_path, pickle.dumps([Point(3)]))
    (found,) = load_plain_pickle(path, {(Point.__module__, "Point"): StandIn})
    assert type(found) is StandIn and found.x == 3
    with pytest.raises(UserError, match="asks for .*Point"):
        load_plain_pickle(path)


def test_nothing_runs(tmp_path):
    path = written(tmp_path, pickle.dumps({"data": Bomb(tmp_path / "hacked")}))
    with pytest.raises(UserError, match=f"{path}.*asks for .*system"):
        load_plain_pickle(path)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", python2_pickle({"a": PIXELS})[:-20], pickle.dumps(np.ones(3)), pickle.dumps(np.array([{}]))],
    ids=["empty", "page", "cut", "floats", "objects"],
)
def test_what_is_damaged_or_of_another_kind_is_one_error(tmp_path, content):
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=str(path)):
        load_plain_pickle(path)


def test_a_function_cannot_be_reached_into(tmp_path):
    """The file may call what rebuilds arrays, but not set attributes on it."""
    content = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}U\x05_callK\x01sb."
    with pytest.raises(UserError, match="damaged"):
        load_plain_pickle(written(tmp_path, content))
    tree = load_plain_pickle(written(tmp_path, python2_pickle({"a": PIXELS})))
    assert np.array_equal(tree["a"].array, PIXELS)


def test_a_missing_file(tmp_path):
    with pytest.raises(MissingFile, match="absent"):
        load_plain_pickle(tmp_path / "absent")
