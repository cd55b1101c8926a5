"""What several processes do a share of each: evaluation, feature banks, prototypes, statistics of batch norms.

The runs are those of test_distributed.py, in the same launch.
"""

import ast
import json
import os
import runpy
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from condu.state import ExpertStore
from dassl.data.shards import share_of_batches
from dassl.evaluation import Classification, EvaluatorBase, can_gather
from dassl.modeling.ops import BatchNorm1d, BatchNorm2d
from dassl.utils import distributed
from tests.end_to_end.test_layers import sources
from tests.fixtures import distributed_jobs
from tests.fixtures.command_line import ROOT
from tests.fixtures.distributed_jobs import METHODS, TESTED, seen
from tests.fixtures.distributed_worker import NORMS, norm_batch

folders = distributed_jobs.folders  # fixture
COMMANDS = ["condu/import_released.py", *(f"mergetune/{name}.py" for name in
            ("ensemble", "import_checkpoint", "merge", "path_card", "predict", "report"))]  # fmt: skip


@pytest.mark.parametrize("name", [*METHODS, "sgd", *TESTED[:2]])
def test_every_image_is_evaluated_by_one_process(name, folders):
    whole, first, second = (seen(folders[n > 0], name, max(0, n - 1))["evaluated"] for n in range(3))
    assert len(whole) == len(first) == len(second)
    for paths, mine, theirs in zip(whole, first, second, strict=True):
        if name == "probe":  # its evaluator cannot gather
            assert mine == theirs == paths
        else:
            assert mine + theirs == paths and len(mine) == 8 and len(theirs) == 4  # of 3 batches of 4


def test_what_is_written_of_an_evaluation_is_of_all_images_in_their_order(folders):
    runs = [folder / "runs" / "style" for folder in folders]
    one, two = (json.loads((run / "output.json").read_text()) for run in runs)
    assert list(one) == list(two) and len(one) == 12
    assert [row["gt"] for row in one.values()] == [row["gt"] for row in two.values()]
    for mine, theirs in zip(one.values(), two.values(), strict=True):
        assert theirs["predict"] == pytest.approx(mine["predict"], abs=1e-5)
    assert torch.equal(*(torch.load(run / "cmat.pt") for run in runs))
    per_class = [[line for line in (run / "log.txt").read_text().splitlines() if "* class" in line] for run in runs]
    assert per_class[0] == per_class[1] and len(per_class[0]) >= 9


def test_banks_are_built_in_shares_to_the_same_bits(folders):
    """But for that of a trained student, whose key tells that its weights are another run's."""
    one, two = ({str(p.relative_to(folder)): load_file(p) for p in (folder / "runs" / "features").glob("*/round*")}
                for folder in folders)  # fmt: skip
    same = one.keys() & two.keys()
    assert len(one) == len(two) <= len(same) + 2 and len(same) > 6
    assert all(torch.equal(one[name]["feature"], two[name]["feature"]) for name in same)


@pytest.mark.parametrize("name", ["kgcoop", "promptkd 2", "sgd tested"])
def test_no_image_is_encoded_twice(name, folders):
    """For a bank, and by the models of a stream, which vote."""
    whole, first, second = (seen(folders[n > 0], name, max(0, n - 1))["encoded"] for n in range(3))
    assert first + second == whole and min(first, second) > 0


def test_prototypes_are_those_of_one_process(folders):
    found = [ExpertStore(folder / "runs" / "adamw" / "experts") for folder in folders]
    (name,) = found[0].names()
    assert torch.equal(*(store.load(name)[1] for store in found))


def test_what_processes_hand_to_each_other(folders):
    for number in (0, 1):
        found = torch.load(folders[1] / f"exchanges-{number}.pt")
        assert found["all"] == [[0, "said"], [1, "said"]]
        assert [[rows.flatten().tolist() for rows in parts] for parts in found["batches"]] == [
            [[0] * 4, [1] * 4],
            [[0] * 2],
            [],
        ]
        rows = found["rows"] and [some.flatten().tolist() for (some,) in found["rows"]]
        assert rows == ([[0] * 4, [1] * 4], None)[number]


# Batch norms


@pytest.mark.parametrize("number", range(len(NORMS)))
def test_batch_norm_over_parts_is_that_of_the_whole(number, folders):
    """The second step: output, gradients, and running statistics after both, of torch's own layer in float64."""
    sizes = NORMS[number]
    parts = [torch.load(folders[1] / f"exchanges-{rank}.pt")["norm"][number] for rank in (0, 1)]
    layer, x, weights = norm_batch(sizes)
    plain = (nn.BatchNorm2d if x.dim() == 4 else nn.BatchNorm1d)(4).double()
    plain.load_state_dict(layer.state_dict())
    for _ in range(2):
        x = x.detach().double().requires_grad_()
        y = plain(x)
        (y * weights).sum().backward()
    counted = [part for part, size in zip(parts, sizes, strict=True) if size]
    for key, expected in (("y", y), ("x", x.grad)):
        torch.testing.assert_close(torch.cat([part[key] for part in counted]).double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(sum(part["weight"] for part in parts).double(), plain.weight.grad, rtol=1e-5, atol=1e-5)
    for part in parts:
        assert part["state"].keys() == plain.state_dict().keys()
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(part["state"][key].double(), value.double(), rtol=1e-6, atol=1e-6)
    if 0 in sizes:
        assert not parts[sizes.index(0)]["x"].any()


@pytest.mark.parametrize(
    ("ours", "torchs", "places"), [(BatchNorm1d, nn.BatchNorm1d, ()), (BatchNorm2d, nn.BatchNorm2d, (3, 2))]
)
@pytest.mark.parametrize("keys", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_batch_norm_of_one_process_is_torchs_to_the_bit(ours, torchs, places, keys):
    mine, theirs = ours(4, **keys), torchs(4, **keys)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    for mode in (True, True, False):
        x = torch.randn(6, 4, *places)
        pair = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [layer.train(mode)(value) for layer, value in zip((mine, theirs), pair, strict=True)]
        for y in outputs:
            y.square().sum().backward()
        assert torch.equal(*outputs) and torch.equal(*(value.grad for value in pair))
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in mine.state_dict().items())


def test_a_batch_norm_refuses_one_value_of_all_processes(monkeypatch):
    monkeypatch.setattr("dassl.modeling.ops.batch_norm.world_size", lambda: 2)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchNorm1d(3)(torch.zeros(1, 3))


# The pieces


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("file", COMMANDS)
def test_a_command_is_done_by_the_first_process_alone(file, rank, monkeypatch, capsys):
    """Started without arguments: the first tells what it wants, and no other that torchrun started says a word."""
    environment = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [file, "--no-such-flag"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / file), run_name="__main__")
    assert (ended.value.code == 0, capsys.readouterr().err == "") == (rank == "1",) * 2
    assert {name: os.environ[name] for name in environment} == environment


class Third(Classification):
    """Keeps more than its `gather` knows of."""

    def process(self, mo, gt):
        super().process(mo, gt)
        self.kept = mo


class Fourth(Third):
    def gather(self):
        super().gather()


def test_which_evaluators_can_gather(tmp_path):
    kinds = {Classification: True, Third: False, Fourth: True, EvaluatorBase: False}
    assert {kind: can_gather(kind.__new__(kind)) for kind in kinds} == kinds


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("together", [1, 2])
def test_shares_of_batches_are_the_batches_of_the_whole(processes, together, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    loader, found = DataLoader(range(14), batch_size=4), []
    for number in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        share = share_of_batches(loader, together)
        found.append([batch.tolist() for batch in share])
        assert len(share) == len(found[-1])
        firsts = [batch[0] // 4 for batch in found[-1]]
        assert not firsts or firsts[0] % together == 0  # whole groups
    assert sum(found, []) == [batch.tolist() for batch in loader]


def test_loaders_with_an_order_of_their_own_are_not_divided():
    order = RandomSampler(range(4))
    mixed = DataLoader(range(4), batch_sampler=BatchSampler(order, 2, False))  # its `sampler` says sequential
    for loader in (DataLoader(range(4), sampler=order), mixed, DataLoader(range(4), batch_size=None), [1, 2]):
        assert share_of_batches(loader) is None
    assert share_of_batches(DataLoader(range(4), sampler=SequentialSampler(range(4)))) is not None


def test_nothing_wraps_itself_in_data_parallel():
    names = {"DataParallel", "DistributedDataParallel", "SyncBatchNorm"}
    for module, path in sources().items():
        called = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not {getattr(call, key, None) for call in called for key in ("attr", "id")} & names, module
