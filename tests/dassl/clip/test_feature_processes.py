"""Two processes that build one feature bank."""

import json
import signal

import pytest

from tests.fixtures import banks
from tests.fixtures.banks import CLASSES, EACH, bank_loader
from tests.fixtures.interpreter import Python

cfg, backbone, counted = banks.cfg, banks.backbone, banks.counted  # fixtures


SCRIPT = """
import json, sys
from tests.fixtures.clip_files import openai_backbone
from tests.fixtures.banks import bank_loader
from tests.fixtures.image_folders import config
root, folder, pause = sys.argv[1:]
cfg = config(root, "Small", INPUT__SIZE=(32, 32), FEATURES__DIR=folder)
backbone, seen = openai_backbone().freeze(), []
def watch(module, args, out):
    seen.append(len(args[0]))
    if pause == "pause" and len(seen) == 2:
        print("ENCODING", flush=True)
        sys.stdin.readline()
backbone.module.visual.register_forward_hook(watch)
print("READY", flush=True)
sys.stdin.readline()
bank = bank_loader(cfg, backbone).dataset.bank
sums = [bank.round(number)["feature"].double().sum().item() for number in range(3)]
print(json.dumps({"encoded": sum(seen), "sum": sums}))
"""


class Process:
    """A builder that stops at READY and, with pause, in the middle of encoding, until told to go on."""

    def __init__(self, cfg, pause=""):
        self.process = Python(["-c", SCRIPT, cfg.DATASET.ROOT, cfg.FEATURES.DIR, pause])

    def until(self, words):
        for line in self.process.stdout:
            if words in line:
                return line
        raise AssertionError(f"no line with {words}")

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self):
        line = self.until('"encoded"')
        assert self.process.wait(timeout=60) == 0
        return json.loads(line)


@pytest.fixture
def two(cfg):
    """One builder held in its second round, and one that meanwhile waits for it."""
    first, second = Process(cfg, "pause"), Process(cfg)
    for process in (first, second):
        process.until("READY")
    first.go()
    first.until("ENCODING")
    second.go()
    second.until("another process builds")
    yield first, second
    for process in (first, second):
        process.process.kill()
        process.process.communicate()


def test_the_second_process_waits_and_takes_what_the_first_has_built(cfg, backbone, two, counted):
    first, second = two
    first.go()
    results = first.result(), second.result()
    assert [result["encoded"] for result in results] == [3 * CLASSES * EACH, 0]
    assert results[0]["sum"] == results[1]["sum"]
    here = bank_loader(cfg, backbone).dataset.bank
    assert counted() == 0
    assert [here.round(i)["feature"].double().sum().item() for i in range(3)] == results[0]["sum"]


def test_a_killed_builder_leaves_whole_rounds_and_no_lock(cfg, two):
    first, second = two
    first.process.send_signal(signal.SIGKILL)
    assert second.result()["encoded"] == 2 * CLASSES * EACH  # the first round was whole
