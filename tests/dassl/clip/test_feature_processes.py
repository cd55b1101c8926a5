"""Two processes that build one feature bank."""

import json
import signal
from pathlib import Path

import pytest
import torch

from dassl.config import with_values
from tests.fixtures import banks
from tests.fixtures.banks import CLASSES, EACH, bank_loader
from tests.fixtures.counts import counted as work_of
from tests.fixtures.counts import files
from tests.fixtures.interpreter import Python

cfg, backbone, counted = banks.cfg, banks.backbone, banks.counted  # fixtures


SCRIPT = """
import json, sys
from tests.fixtures.clip_files import openai_backbone
from tests.fixtures.banks import bank_loader
from tests.fixtures.image_folders import config
root, folder, batch, pause = sys.argv[1:]
cfg = config(root, "Small", INPUT__SIZE=(32, 32), FEATURES__DIR=folder, DATALOADER__TEST__BATCH_SIZE=int(batch))
backbone, seen = openai_backbone().freeze(), []
def watch(module, args, out):
    seen.append(len(args[0]))
    if len(seen) == int(pause):
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
    """A builder that stops at READY and with `pause` in the batch that it encodes then, until told to go on."""

    def __init__(self, cfg, pause=0):
        batch = cfg.DATALOADER.TEST.BATCH_SIZE
        self.process = Python(["-c", SCRIPT, cfg.DATASET.ROOT, cfg.FEATURES.DIR, str(batch), str(pause)])

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
    first, second = Process(cfg, 2), Process(cfg)
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


def test_a_killed_builder_leaves_what_it_has_encoded_and_no_lock(cfg, two):
    first, second = two
    first.process.send_signal(signal.SIGKILL)
    assert second.result()["encoded"] == 2 * CLASSES * EACH  # the first round was whole


@pytest.mark.parametrize("spoilt", [None, "round-00000.part", "parts.txt"])
def test_a_build_goes_on_where_a_killed_one_was(cfg, backbone, counted, tmp_path, spoilt):
    """Batches of 5, 5 and 2 images, killed in the second one's second round of three."""
    cfg.DATALOADER.TEST.BATCH_SIZE = 5
    whole = bank_loader(with_values(cfg, {"FEATURES.DIR": str(tmp_path / "whole")}), backbone).dataset.bank
    encoded = counted()
    builder = Process(cfg, pause=5)
    builder.until("READY")
    builder.go()
    builder.until("ENCODING")
    builder.process.kill()
    builder.process.communicate()
    folder = Path(cfg.FEATURES.DIR) / whole.key
    assert {path.name for path in folder.iterdir()} > {"bank.json", "parts.txt", "round-00002.part"}
    if spoilt:  # of the first batch in the first round, or all that is noted but for a line
        content = bytearray((folder / spoilt).read_bytes())
        content[len(content) - 4 * 12 * backbone.dim if spoilt.endswith("part") else -3] ^= 1
        (folder / spoilt).write_bytes(content)
    with work_of() as work:
        again = bank_loader(cfg, backbone).dataset.bank
    assert work.decoded == {None: 5 + 2, "round-00000.part": 12, "parts.txt": 5 + 2}[spoilt]
    assert counted() - encoded == 2 * 5 + 3 * 2 + (5 if spoilt else 0)
    assert files(again.folder).keys() == {".lock", "bank.json", *(f"round-0000{i}.safetensors" for i in range(3))}
    assert all(torch.equal(again.round(i)["feature"], whole.round(i)["feature"]) for i in range(3))
