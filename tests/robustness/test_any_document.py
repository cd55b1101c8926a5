"""Whatever JSON or yaml lies where a file of ours is expected: it is read, or refused in one line that names it."""

import json
from random import Random

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.oracle import clear, place
from tests.fuzz.targets import TARGETS

FILES = [  # target, its file, its writer
    ("split", "split.json", json.dumps),
    ("subset", "subset.json", json.dumps),
    ("manifest", "names.json", json.dumps),
    ("results", "0/results.json", json.dumps),
    ("stream", "stream.json", json.dumps),
    ("stream", "session_1/stream.json", json.dumps),
    ("pairs", "pairs.json", json.dumps),
    ("yaml", "own.yaml", yaml.safe_dump),
]
NAMES = ("train", "val", "test", "format", "classes", "items", "tasks", "sessions", "folder", "metrics", "accuracy",
         "trainer", "dataset", "seed", "OPTIM", "LR", "INPUT", "SIZE", "_BASE_", "a.jpg", "c/d.jpg")  # fmt: skip
TEXT = st.sampled_from(NAMES) | st.text(max_size=10)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=15,
)


@st.composite
def changed(draw, root):
    """A document in which one place holds another one: what a hand that edits a good file makes of it."""
    if not isinstance(root, dict | list) or not root or draw(st.integers(0, 3)) == 0:
        return draw(DOCUMENTS)
    places = list(root) if isinstance(root, dict) else range(len(root))
    at = draw(st.sampled_from(list(places)))
    copy = root.copy()
    copy[at] = draw(changed(root[at]))
    return copy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    work = tmp_path_factory.mktemp("documents")
    for name, *_ in FILES:
        if TARGETS[name].prepare:
            TARGETS[name].prepare(work)
    (work / "in").mkdir()
    return work / "in"


@pytest.mark.parametrize(("name", "file", "text"), FILES, ids=[f"{name} {file}" for name, file, _ in FILES])
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_it_is_read_or_refused(name, file, text, data, folder):
    target = TARGETS[name]
    files = target.make(Random(data.draw(st.integers(0, 30))))
    read = json.loads if text is json.dumps else yaml.safe_load
    try:
        good = read(files.get(file, b"{}"))
    except (ValueError, RecursionError, yaml.YAMLError):
        good = {}
    document = data.draw(changed(good))
    place(files | {file: text(document).encode("utf-8", "surrogatepass")}, folder)
    try:
        target.read(folder)
    except target.errors as refusal:
        line = " ".join(str(refusal).split())  # as it is printed
        assert line.isprintable() and len(line) < 2000
        assert any(word in line for word in (str(folder), *target.names))
    finally:
        clear(folder)
