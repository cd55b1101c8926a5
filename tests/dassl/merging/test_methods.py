"""Merging of state dicts: identities, and agreement with plain loops over single numbers."""

import math

import pytest
import torch

from dassl.merging import methods
from dassl.merging.methods import emr, merge
from dassl.merging.records import METHODS


def state(seed, names=("ctx", "head.weight"), **more):
    """Random weights of two shapes, an integer buffer, and what is given besides."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"ctx": (4, 5), "head.weight": (3, 2, 2)}
    found = {name: torch.randn(shapes[name], generator=generator) for name in names}
    return found | {"position_ids": torch.arange(4)[None]} | more


def same(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], **tolerance)


def flat(found):
    """All weights of a state as one list of numbers."""
    return [x for name in sorted(found) if found[name].is_floating_point() for x in found[name].flatten().tolist()]


BASE, A, B, C = (state(i) for i in range(4))
NEED_ONE = [name for name, method in METHODS.items() if method.least == 1]


@pytest.mark.parametrize("name", METHODS)
def test_equal_parents_give_that_parent(name):
    count = max(METHODS[name].least, min(2, METHODS[name].most or 2))
    neutral = {"task_arithmetic": {"scale": 1 / count}, "ties": {"density": 1.0}, "dare": {"density": 1.0}}
    same(merge(name, [A] * count, BASE, **neutral.get(name, {"alpha": 1.0} if name == "wise_ft" else {})), A)


@pytest.mark.parametrize("name", NEED_ONE)
def test_the_base_itself_is_no_task(name):
    same(merge(name, [BASE], BASE), BASE)


def test_ends_of_the_lines_are_the_parents_bit_for_bit():
    for alpha, end in ((0.0, BASE), (1.0, A)):
        same(methods.wise_ft(BASE, A, alpha), end, rtol=0, atol=0)
        same(methods.slerp(BASE, A, alpha), end, rtol=0, atol=0)
        same(methods.average([BASE, A], [1 - alpha, alpha]), end, rtol=0, atol=0)
    same(methods.wise_ft(BASE, A, 0.5), methods.average([BASE, A]))


def test_a_single_parent_at_density_and_scale_1_comes_back():
    same(methods.ties(BASE, [A], density=1.0, scale=1.0), A)
    same(methods.task_arithmetic(BASE, [A], scale=1.0), A)
    same(methods.dare(BASE, [A], density=1.0, scale=1.0), A)
    same(emr(BASE, [A]), A)
    same(methods.ties(BASE, [A], density=0.0), BASE)


def test_dare_at_density_1_is_task_arithmetic_or_untrimmed_ties():
    same(methods.dare(BASE, [A, B], 1.0, 0.7, then="sum"), methods.task_arithmetic(BASE, [A, B], 0.7))
    same(methods.dare(BASE, [A, B], 1.0, 0.8), methods.task_arithmetic(BASE, [A, B], 0.4))
    same(methods.dare(BASE, [A, B], 1.0, 0.7, then="ties"), methods.ties(BASE, [A, B], 1.0, 0.7))


@pytest.mark.parametrize("name", ["average", "task_arithmetic", "ties"])
def test_the_order_of_parents_does_not_matter(name):
    same(merge(name, [A, B, C], BASE), merge(name, [C, A, B], BASE))


def test_the_order_of_parents_permutes_emr():
    for one, other in ((0, 0), (1, 2), (2, 3), (3, 1)):
        same(emr(BASE, [A, B, C], one), emr(BASE, [C, A, B], other))


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_names_does_not_matter(name):
    parents = [A, B, C][: METHODS[name].most]
    turned = [dict(reversed(parent.items())) for parent in parents]
    same(merge(name, parents, BASE), merge(name, turned, BASE), rtol=0, atol=0)


def test_dare_draws_by_its_seed_alone():
    torch.manual_seed(7)
    first = methods.dare(BASE, [A, B], 0.5, seed=3)
    torch.manual_seed(8)
    before = torch.get_rng_state()
    same(methods.dare(BASE, [A, B], 0.5, seed=3), first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(methods.dare(BASE, [A, B], 0.5, seed=4)["ctx"], first["ctx"])


def test_dare_is_task_arithmetic_on_average():
    """2000 draws at density 0.5: a value's mean is off by 1/sqrt(2000) of its size, here within 5 deviations."""
    zero = {"ctx": torch.zeros(4, 5)}
    task = {"ctx": torch.ones(4, 5)}
    draws = [methods.dare(zero, [task], 0.5, seed=seed)["ctx"] for seed in range(2000)]
    assert set(torch.stack(draws).unique().tolist()) == {0.0, 2.0}
    assert (torch.stack(draws).mean(0) - 1).abs().max() < 5 / math.sqrt(2000)


def plain_ties(base, parents, density, scale):
    """TIES, number by number."""
    base, parents = flat(base), [flat(p) for p in parents]
    tasks = [[p - b for p, b in zip(parent, base, strict=True)] for parent in parents]
    kept = []
    for task in tasks:
        count = round(density * len(task))
        best = sorted(range(len(task)), key=lambda j: -abs(task[j]))[:count]
        kept.append([task[j] if j in best else 0.0 for j in range(len(task))])
    out = []
    for j, start in enumerate(base):
        mass = sum(task[j] for task in kept)
        agreeing = [task[j] for task in kept if task[j] * mass > 0]
        out.append(start + scale * (sum(agreeing) / len(agreeing) if agreeing else 0.0))
    return out


@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 1.0])
def test_ties_agrees_with_the_plain_loop(density):
    found = flat(methods.ties(BASE, [A, B, C], density, 0.6))
    assert found == pytest.approx(plain_ties(BASE, [A, B, C], density, 0.6), abs=1e-6)


def test_ties_by_hand():
    """Kept of 4 at density 0.5: (4, -3) and (-5, 2). Position 0: mass -1, so -5; 1: -3 and 3: 2 stand alone."""
    base = {"w": torch.zeros(4)}
    one, two = {"w": torch.tensor([4.0, -3.0, 1.0, 0.5])}, {"w": torch.tensor([-5.0, 1.0, 0.5, 2.0])}
    assert methods.ties(base, [one, two], 0.5)["w"].tolist() == [-5.0, -3.0, 0.0, 2.0]


def test_trimming_competes_over_the_whole_vector():
    base = {"small": torch.zeros(4), "large": torch.zeros(4)}
    task = {"small": torch.full((4,), 0.1), "large": torch.full((4,), 9.0)}
    found = methods.ties(base, [task], density=0.5)
    assert found["small"].tolist() == [0.0] * 4 and found["large"].tolist() == [9.0] * 4


def test_emr_agrees_with_the_plain_loop():
    base, parents = flat(BASE), [flat(p) for p in (A, B, C)]
    tasks = [[p - b for p, b in zip(parent, base, strict=True)] for parent in parents]
    unified = [max(column) if sum(column) > 0 else min(column) for column in zip(*tasks, strict=True)]
    for i, task in enumerate(tasks):
        masked = [u if u * x > 0 else 0.0 for u, x in zip(unified, task, strict=True)]
        scale = sum(map(abs, task)) / sum(map(abs, masked))
        wanted = [b + scale * m for b, m in zip(base, masked, strict=True)]
        assert flat(emr(BASE, [A, B, C], i + 1)) == pytest.approx(wanted, abs=1e-6)
    assert flat(merge("emr", [A, B, C], BASE, task=0)) == pytest.approx(
        [b + u for b, u in zip(base, unified, strict=True)], abs=1e-6
    )


def norm(found):
    return math.sqrt(math.fsum(x * x for x in flat(found)))


def scaled(found, factor):
    return {k: v * factor if v.is_floating_point() else v for k, v in found.items()}


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_slerp_walks_the_sphere_at_even_speed(t):
    a, b = scaled(A, 1 / norm(A)), scaled(B, 1 / norm(B))
    angle = math.acos(sum(x * y for x, y in zip(flat(a), flat(b), strict=True)))
    point = methods.slerp(a, b, t)
    assert norm(point) == pytest.approx(1, abs=1e-6)
    walked = math.acos(sum(x * y for x, y in zip(flat(a), flat(point), strict=True)))
    assert walked == pytest.approx(t * angle, abs=1e-4)
    for name in ("ctx", "head.weight"):  # one angle a tensor: each keeps its own norm
        units = [{name: s[name] / s[name].norm()} for s in (A, B)]
        assert methods.slerp(*units, t, per="tensor")[name].norm() == pytest.approx(1, abs=1e-6)


def test_slerp_of_parallel_opposite_and_zero_vectors_is_the_line():
    nearly = {k: v + 1e-4 * C[k] if v.is_floating_point() else v for k, v in A.items()}
    for end in (nearly, scaled(A, 2.0), scaled(A, -1.0), scaled(A, 0.0)):
        same(methods.slerp(A, end, 0.3), methods.average([A, end], [0.7, 0.3]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"extra": torch.ones(1)}, "extra is in parent 2, but not in parent 1"),
        ({"ctx": torch.ones(5, 4)}, r"ctx is float32 \(4, 5\) in parent 1 and float32 \(5, 4\) in parent 2"),
        ({"ctx": torch.ones(4, 5).half()}, r"ctx is float32 .* and float16 \(4, 5\) in parent 2"),
        ({"position_ids": torch.zeros(1, 4, dtype=torch.long)}, "position_ids is no weight .* `keep`"),
    ],
)
def test_parents_that_differ_are_refused_naming_both(change, match):
    with pytest.raises(ValueError, match=match):
        methods.average([A, A | change])
    with pytest.raises(ValueError, match="ctx is in parent 1, but not in parent 2"):
        methods.average([A, {k: v for k, v in A.items() if k != "ctx"}])


def test_statistics_and_integers_come_from_the_first_parent():
    """The mean of two running variances is no variance of either, and a task vector may make one negative."""
    counts = [{"bn.num_batches_tracked": torch.tensor(i), "bn.running_var": torch.tensor([float(i)])} for i in (3, 9)]
    one, two = A | counts[0], B | counts[1]
    for keep in (["num_batches_tracked", "running_var"], ["bn.num_batches_tracked", "bn.running_var"]):
        found = methods.average([one, two], keep=keep)
        assert found["bn.num_batches_tracked"] == 3 and found["bn.running_var"] == 3
    with pytest.raises(ValueError, match=r"bn\.running_var is no weight"):
        methods.average([one, two], keep=["num_batches_tracked"])
    found = merge("ties", [one], BASE | counts[1], keep=methods.STATISTICS)
    assert found["bn.running_var"] == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_merge_has_the_dtype_and_the_layout_of_its_parents(dtype):
    parents = [{k: v.to(dtype) if v.is_floating_point() else v for k, v in s.items()} for s in (BASE, A, B)]
    for name, method in METHODS.items():
        found = merge(name, parents[1 : 1 + (method.most or 2)], parents[0])
        assert {k: (v.dtype, v.shape) for k, v in found.items()} == {k: (v.dtype, v.shape) for k, v in A.items()} | {
            k: (dtype, A[k].shape) for k in ("ctx", "head.weight")
        }


@pytest.mark.parametrize("name", METHODS)
def test_parents_stay_as_they_are(name):
    before = {k: v.clone() for k, v in A.items()}
    found = merge(name, [A, B][: METHODS[name].most], BASE)
    for value in found.values():
        value.fill_(7)
    same(A, before, rtol=0, atol=0)


def test_unknown_methods_values_and_counts_are_refused():
    for call, match in (
        (lambda: merge("tie", [A], BASE), "Unknown method 'tie', expected one of average, wise_ft"),
        (lambda: merge("ties", [A], BASE, alpha=1), "ties has no value 'alpha'; it has density, scale"),
        (lambda: merge("ties", [A]), "needs the base"),
        (lambda: merge("slerp", [A]), "slerp merges 2 parents, given 1"),
        (lambda: merge("average", []), "average merges 2 or more parents, given 0"),
        (lambda: merge("average", [A, B], weights=[1.0]), "1 weights for 2 parents"),
        (lambda: merge("average", [A, B], weights=[1.0, -1.0]), "have the sum 0"),
        (lambda: merge("wise_ft", [A], BASE, alpha=1.5), "alpha is 1.5, expected 0 to 1"),
        (lambda: merge("ties", [A], BASE, density=math.nan), "density is nan"),
        (lambda: merge("dare", [A], BASE, density=0.0), "density is 0.0, expected above 0"),
        (lambda: merge("dare", [A], BASE, then="max"), "then is 'max', expected one of average, sum, ties"),
        (lambda: merge("slerp", [A, B], per="layer"), "per is 'layer'"),
        (lambda: merge("emr", [A, B], BASE, task=3), "task is 3, expected 1 to 2"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
