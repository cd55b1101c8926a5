"""Evaluation of a stream: equal to every model on every image, in one pass over the images."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from condu import evaluation
from condu.snapshot import prototypes_of
from condu.voting import PRESETS, Vote, similarity, vote
from tests.fixtures.condu_world import World, member_of

RULES = PRESETS | {
    "one": Vote(True, 1, "minmax", temp=0.5),
    "two": Vote(False, 2, "uniform", "probabilities"),
    "all": Vote(True, 100, "similarity", "probabilities"),
}
BOTH = ("target", "union")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def plain_vectors(clip, classnames, prompts):
    """{name: unit vector}, one text at a time."""
    vectors = {}
    for name in classnames:
        each = [F.normalize(clip.encode_text(clip.tokenize([p.format(name)])), dim=-1)[0] for p in prompts]
        vectors.setdefault(name, F.normalize(torch.stack(each).mean(0), dim=-1))
    return vectors


def plain_similarity(features, prototypes):
    return torch.tensor([[max(float(f @ p) for p in of) for f, of in zip(features, prototypes, strict=True)]])


@torch.no_grad()
def plain_votes(world, snapshot, test, rules=RULES, labels=BOTH):
    """Every image alone, by all models; `vote` leaves out those not chosen. Answers are compared by name."""
    models = [world.clip, *(world.expert(member) for member in snapshot.members)]
    correct = {(rule, space): 0 for rule in rules for space in labels}
    for space in labels:
        tasks = [(task.classnames, task.prompts) for task in snapshot.tasks if space == "union"]
        tasks.append((test.classnames, test.prompts))
        order = list(dict.fromkeys(name for names, _ in tasks for name in names))
        classes = []
        for model in models:
            vectors = {}
            for names, prompts in tasks:
                vectors = plain_vectors(model, names, prompts) | vectors  # the first task's stays
            classes.append(torch.stack([vectors[name] for name in order]))
        for i, item in enumerate(test.loader.dataset.data_source):
            image = test.loader.dataset[i]["img"][None]
            features = [F.normalize(model.encode_image(image), dim=-1)[0] for model in models]
            said = [m.logit_scale * (of @ f) for m, f, of in zip(models, features, classes, strict=True)]
            looks = features[1:] if snapshot.prototype_source == "expert" else features[:1] * len(snapshot.tasks)
            seen = plain_similarity(looks, snapshot.prototypes)
            for rule, how in rules.items():
                answer = order[int(vote(torch.stack(said)[:, None], seen, how).argmax())]
                correct[rule, space] += answer == item.classname
    return correct


@torch.no_grad()
def plain_known(world, member, test):
    model = world.expert(member)
    vectors = plain_vectors(model, test.classnames, test.prompts)
    correct = 0
    for i in range(len(test)):
        item = test.loader.dataset[i]
        feature = model.encode_image(item["img"][None])[0]
        answer = max(vectors, key=lambda name, feature=feature: float(vectors[name] @ feature))
        correct += answer == test.classnames[item["label"]]
    return correct


@pytest.mark.parametrize("learned", [1, 2, 4])
@pytest.mark.parametrize("target", [0, 2, 4])  # 2 and 4 share names with earlier tasks, 4 under other prompts
def test_votes_equal_every_model_on_every_image(world, learned, target):
    snapshot, test = world.snapshot(learned), world.tests[target]
    found = world.evaluator(chunk=7).votes(snapshot, test, RULES, BOTH)
    assert found == plain_votes(world, snapshot, test)


def test_equal_similarities_go_to_the_earlier_task(world):
    same = [world.prototypes[1]] * 3
    snapshot = world.snapshot(3, prototypes=same)
    test, rules = world.tests[5], {"one": Vote(False, 1, "uniform")}
    evaluator = world.evaluator()
    assert evaluator.votes(snapshot, test, rules) == plain_votes(world, snapshot, test, rules, ("target",))
    assert set(evaluator.image_passes) == {"pretrained", "expert 0"}


def test_known_is_the_expert_alone_and_the_pretrained_model_can_be_one(world):
    evaluator = world.evaluator()
    for test, member in zip(world.tests, world.members, strict=True):
        assert evaluator.known(member, test) == plain_known(world, member, test)
    zero = member_of(world.clip, {}, "zero-shot")
    assert not evaluator.image_passes["pretrained"]
    for key in ("zero-shot", "pretrained"):
        assert evaluator.known(replace(zero, key=key), world.tests[3]) == plain_known(world, zero, world.tests[3])
    assert evaluator.experts.filled == 7  # six experts, and the zero-shot model under a name of its own


def test_models_that_never_vote_make_a_matrix_in_one_pass(world):
    tests, zero = world.tests[:3], member_of(world.clip, {}, "pretrained")
    rows = [[world.members[j] if j <= i else zero for j in range(3)] for i in range(3)]
    world.passes.clear()
    matrix = world.evaluator(chunk=5).models(rows, tests)
    expected = [[plain_known(world, rows[i][j], tests[j]) for j in range(3)] for i in range(3)]
    assert matrix.correct.tolist() == expected and matrix.total.tolist() == [12, 8, 16]
    assert world.passes["expert"] == 12 + 8 + 16 and matrix.tasks == world.names[:3]


def test_a_sweep_is_the_single_calls(tmp_path):
    world = World(tmp_path, tasks=4)
    rules = {"paper": Vote(False, 2, "similarity"), "released": Vote(True, 2, "uniform")}
    single, evaluator = world.evaluator(), world.evaluator(chunk=6)
    agnostic, known = evaluator.sweep(world.snapshots(), world.tests, rules, agnostic=True)
    mtil, _ = evaluator.sweep(world.snapshots(), world.tests, rules)
    for i, snapshot in enumerate(world.snapshots()):
        for j, test in enumerate(world.tests):
            expert = single.known(world.members[j], test) if j <= i else None
            votes = single.votes(snapshot, test, rules, BOTH)
            assert known[i][j] == (None if expert is None else 100 * expert / len(test))
            for rule in rules:
                assert mtil[rule, None].correct[i, j] == (votes[rule, "target"] if expert is None else expert)
            assert all(agnostic[key].correct[i, j] == correct for key, correct in votes.items())
    assert mtil["paper", None].total.tolist() == [len(test) for test in world.tests]
    assert not torch.equal(agnostic["paper", "union"].correct, agnostic["paper", "target"].correct)


def test_a_stream_of_one_task_has_no_vote_and_no_transfer(tmp_path):
    world = World(tmp_path, tasks=1)
    matrix = world.evaluator().sweep(world.snapshots(), world.tests, PRESETS)[0]["paper", None]
    assert matrix.correct.tolist() == [[plain_known(world, world.members[0], world.tests[0])]]
    assert matrix.summary()["transfer"] is None


def test_passes_over_the_image_towers(world):
    """T = 6, K = 2: each image once through the pretrained tower and through 2 experts, whatever T is."""
    snapshot, rules = world.snapshot(6), {"paper": Vote(False, 2, "similarity"), "released": Vote(True, 2, "uniform")}
    world.passes.clear()
    evaluator = world.evaluator(chunk=8)
    for test in world.tests:
        evaluator.votes(snapshot, test, rules, BOTH)
    images = sum(map(len, world.tests))
    assert world.passes == {"pretrained": images, "expert": 2 * images}
    assert sum(evaluator.image_passes.values()) == (1 + min(6, 2)) * images
    assert all(of == Counter({1: len(test)}) for test, of in zip(world.tests, world.decoded().values(), strict=True))


@pytest.mark.parametrize("chunk", [100, 5])
def test_a_sweep_decodes_once_and_encodes_no_more_than_needed(world, chunk):
    world.passes.clear()
    evaluator = world.evaluator(chunk=chunk)
    evaluator.sweep(world.snapshots(), world.tests, {"two": Vote(False, 2, "uniform")})
    images = [len(test) for test in world.tests]
    assert world.decoded() == {test.name: Counter({1: len(test)}) for test in world.tests}
    seen = sum(n * (6 - j) for j, n in enumerate(images))  # by its own expert from its session on
    unseen = sum(n * min(i + 1, 2) for i in range(6) for j, n in enumerate(images) if j > i)
    assert world.passes == {"pretrained": sum(images[1:]), "expert": seen + unseen}


def test_all_k_and_both_presets_cost_one_pass(world):
    rules = {f"k{k}": Vote(False, k, "similarity") for k in range(1, 7)} | PRESETS
    evaluator, test = world.evaluator(), world.tests[0]
    votes = evaluator.votes(world.snapshot(6), test, rules)
    assert sum(evaluator.image_passes.values()) == 7 * len(test)
    assert votes["k4", "target"] == votes["paper", "target"]


def test_similarity_of_the_experts_own_features(world):
    prototypes = [
        prototypes_of(world.expert(member), loader, names, prompts)
        for member, loader, names, prompts in zip(
            world.members, world.train, world.classnames, world.prompts, strict=True
        )
    ]
    snapshot = world.snapshot(4, prototypes=prototypes[:4], prototype_source="expert")
    evaluator, test = world.evaluator(chunk=7), world.tests[4]
    rules = {"paper": Vote(False, 2, "similarity"), "two": Vote(False, 2, "uniform", "probabilities")}
    assert evaluator.votes(snapshot, test, rules, BOTH) == plain_votes(world, snapshot, test, rules)
    assert evaluator.image_passes == {f"expert {i}": len(test) for i in range(4)}
    with_own = {"released": Vote(True, 2, "uniform")}
    assert evaluator.votes(snapshot, test, with_own) == plain_votes(world, snapshot, test, with_own, ("target",))


def test_texts_are_encoded_once_a_model_and_data_set(world):
    evaluator = world.evaluator(chunk=4)
    texts = Counter()
    slot = evaluator.experts.clip("nothing yet", lambda _: None)
    for name, clip in (("pretrained", world.clip), ("expert", slot)):
        clip.module.transformer.register_forward_hook(lambda _, x, __, n=name: texts.update({n: len(x[0])}))
    rules = {"one": Vote(True, 2, "uniform")}
    for _ in range(2):
        evaluator.votes(world.snapshot(2), world.tests[2], rules, BOTH)  # in chunks of one batch
    prompts = [len(c) * len(p) for c, p in zip(world.classnames, world.prompts, strict=True)]
    assert texts == {"pretrained": sum(prompts[:3]), "expert": 2 * sum(prompts[:3])}
    evaluator.votes(world.snapshot(2), world.tests[1], rules, BOTH)
    assert texts["pretrained"] == sum(prompts[:3])


def test_the_passes_run_under_autocast_and_the_sums_in_float32(world, monkeypatch):
    types, encoded = set(), []
    world.clip.module.visual.register_forward_hook(lambda _, __, out: types.add(out.dtype))
    evaluator = world.evaluator(autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    monkeypatch.setattr(
        evaluation, "similarity", lambda features, of: encoded.append(features) or similarity(features, of)
    )
    votes = evaluator.votes(world.snapshot(3), world.tests[4], PRESETS)
    assert types == {torch.bfloat16} and all(0 <= n <= 12 for n in votes.values())
    assert {image.dtype for image in encoded} == {torch.float32}


def test_more_resident_experts_are_filled_less_often(world):
    filled = {}
    for capacity in (1, 6):
        evaluator = world.evaluator(capacity, chunk=4)
        evaluator.sweep(world.snapshots()[:2], world.tests[:2], PRESETS)
        filled[capacity] = evaluator.experts.filled
    assert filled[6] == 2 < filled[1]


def test_the_log_has_the_lines_of_the_released_code(world, caplog):
    with caplog.at_level("INFO", "dassl"):
        _, known = world.evaluator().sweep([world.snapshot(1)], world.tests[:1], PRESETS)
    lines = [record.message for record in caplog.records]
    assert lines == ["Evaluating on Task0", f"Top-1 accuracy: {known[0][0]:.2f}"]
