"""Domain generalisation, domain adaptation and semi-supervised learning: trainers and toy data sets."""

import json

import pytest
import torch
import torch.nn.functional as F

import datasets
import train
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import build_trainer
from dassl.engine.da import SourceOnly
from dassl.engine.dg import Vanilla
from dassl.engine.ssl import FixMatch, SupBaseline
from dassl.engine.ssl.fixmatch import pseudo_label_loss, pseudo_labels
from dassl.modeling import build_backbone
from dassl.utils import UserError, load_checkpoint, set_random_seed
from scripts.plans import toy_sets
from tests.fixtures.dialect_subclasses import SUBCLASSES

COUNTS = {"ToyDG": (10, 1, 8), "ToyDA": (10, 1, 8), "ToySSL": (16, 1, 12)}
SETS = {"Vanilla": "toy_dg", "SourceOnly": "toy_da", "SupBaseline": "toy_ssl", "FixMatch": "toy_ssl"}
SMALL = ["DATALOADER.TRAIN_X.BATCH_SIZE", "16", "DATASET.SUBSAMPLE_CLASSES", "base"]
DOMAINS = ["--source-domains", "noise", "sketch", "--target-domains", "clean"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    datasets.register_all()
    with pytest.MonkeyPatch.context() as patch:
        for name, counts in COUNTS.items():
            patch.setattr(DATASET_REGISTRY.get(name), "counts", counts)
        yield tmp_path_factory.mktemp("toy")


@pytest.fixture
def words(root, tmp_path):
    """`words(trainer, name, *more, **keys)` -> the command line of train.py."""

    def made(trainer, name, *more, **keys):
        base = SUBCLASSES.get(trainer, trainer)
        data = keys.pop("data", SETS[base])
        pairs = [str(word) for key, value in keys.items() for word in (key.replace("__", "."), value)]
        return [
            *(DOMAINS if data != "toy_ssl" else []),
            *("--root", str(root), "--seed", "1", "--trainer", trainer, "--output-dir", str(tmp_path / name)),
            *("--dataset-config-file", f"configs/datasets/{data}.yaml"),
            *("--config-file", f"configs/trainers/{base}/toy.yaml", *more, *SMALL, *pairs),
        ]

    return made


@pytest.fixture
def run(words, tmp_path):
    """Train or evaluate; returns what results.json holds."""

    def go(trainer, name, *more, **keys):
        train.main(words(trainer, name, *more, **keys))
        return json.loads((tmp_path / name / "results.json").read_text())

    return go


@pytest.fixture
def built(words):
    def go(trainer, **keys):
        args = train.build_parser().parse_intermixed_args(words(trainer, "built", **keys))
        set_random_seed(1)
        return build_trainer(train.setup_cfg(args))

    return go


# Training; 4 classes, so chance is 25 %, with a deviation of 8 % on 32 images and of 6 % on 48


def test_vanilla_learns_shapes_of_an_unseen_style(run):
    sampler = {"DATALOADER__TRAIN_X__SAMPLER": "RandomDomainSampler", "DATALOADER__TRAIN_X__N_DOMAIN": 2}
    found = run("Vanilla", "dg", OPTIM__MAX_EPOCH=8, **sampler)
    assert found["metrics"]["accuracy"] > 50
    assert (found["source_domains"], found["target_domains"]) == (["noise", "sketch"], ["clean"])
    assert found["data_seen"] == "the domains noise, sketch"
    assert found["total"] == 32


def test_fixmatch_learns_textures_from_a_few_labels(run, tmp_path):
    keys = {"OPTIM__MAX_EPOCH": 14, "OPTIM__LR": 5e-3, "DATASET__NUM_LABELED": 64}
    keys |= {"DATALOADER__TRAIN_U__BATCH_SIZE": 16, "TRAINER__FIXMATCH__CONF_THRE": 0.6}
    found = run("FixMatch", "fixmatch", **keys)
    assert found["metrics"]["accuracy"] > 45
    assert found["data_seen"] == "32 labelled images, 32 without labels"
    last = found["history"][-1]
    assert last["pseudo"] > 0 and last["kept"] > 0
    assert last["loss"] == pytest.approx(last["ce"] + last["pseudo"], abs=1e-5)
    tested = run("FixMatch", "test", "--eval-only", "--model-dir", str(tmp_path / "fixmatch"))
    assert tested["correct"] == found["correct"]


def test_supervised_baselines_do_not_look_at_the_other_images(run, tmp_path):
    """The same weights whatever the unlabelled images are: none of it enters the loss."""
    for trainer, other in (("SupBaseline", {"DATASET__ALL_AS_UNLABELED": True}), ("SourceOnly", {})):
        first = run(trainer, trainer, OPTIM__MAX_EPOCH=1, **other)
        assert set(first["history"][0]) >= {"ce", "acc", "loss"}
        assert first["history"][0]["loss"] == pytest.approx(first["history"][0]["ce"])
    assert first["data_seen"] == "the domains noise, sketch; without labels clean"


# Subclasses written for Dassl


def weights(folder):
    return load_checkpoint(folder / "model" / "model.pth.tar-1")["state_dict"]


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    return {}


@pytest.mark.parametrize("trainer", SUBCLASSES)
def test_a_step_or_a_parse_written_for_dassl_trains_as_ours(trainer, run, trained, tmp_path):
    """Bit for bit: the same losses, in the same order of the passes that move the batch norms."""
    keys = {"OPTIM__MAX_EPOCH": 1, "TRAINER__FIXMATCH__CONF_THRE": 0.3}
    base = SUBCLASSES[trainer]
    if base not in trained:
        run(base, base, **keys)
        trained[base] = weights(tmp_path / base)
    run(trainer, trainer, **keys)
    same = all(torch.equal(value, trained[base][key]) for key, value in weights(tmp_path / trainer).items())
    assert same == (trainer != "DialectFixMatchOtherParse")  # which leaves the labelled images out of one loss


def test_an_epoch_written_for_dassl_runs(run, tmp_path):
    found = run("DialectOwnEpoch", "own", OPTIM__MAX_EPOCH=1)
    assert found["total"] == 32
    assert [path.name.partition(".")[0] for path in (tmp_path / "own" / "own").iterdir()] == ["events"]
    assert "own epoch loss" in (tmp_path / "own" / "log.txt").read_text()


@pytest.mark.parametrize("kept", [4, 0])
def test_quality_of_pseudo_labels(built, kept):
    trainer = built("FixMatch", TRAINER__FIXMATCH__WEIGHT_U=0.5)
    assert (trainer.weight_u, trainer.conf_thre) == (0.5, 0.8)
    pred, true, mask = torch.tensor([1, 2, 3, 0, 0]), torch.tensor([1, 2, 0, 0, 3]), torch.ones(5)
    mask[kept:] = 0
    found = {name: float(value) for name, value in trainer.assess_y_pred_quality(pred, true, mask).items()}
    right = 3 / 4 if kept else 0
    assert found == pytest.approx({"acc_thre": right, "acc_raw": 3 / 5, "keep_rate": kept / 5}, abs=1e-5)


# FixMatch's loss


def test_pseudo_label_loss_is_the_papers(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weak, strong = 4 * torch.randn(2, 9, 5, generator=generator)
    threshold, total = 0.8, 0.0
    for i in range(9):
        probabilities = [float(p) for p in weak[i].exp() / weak[i].exp().sum()]
        best = max(range(5), key=probabilities.__getitem__)
        if probabilities[best] >= threshold:
            total -= float(strong[i].log_softmax(0)[best])
    label, counts = pseudo_labels(weak, threshold)
    assert 0 < counts.sum() < 9
    assert pseudo_label_loss(strong, label, counts).item() == pytest.approx(total / 9, rel=1e-5)


def test_the_strong_view_alone_learns_from_the_weak_ones_label(built):
    trainer = built("FixMatch", TRAINER__FIXMATCH__CONF_THRE=0.0, TRAINER__FIXMATCH__WEIGHT_U=0.5)
    assert (type(trainer), trainer.CONFIG) == (FixMatch, "FIXMATCH")
    batch_x, batch_u = next(iter(trainer.train_loader_x)), next(iter(trainer.train_loader_u))
    assert not torch.equal(batch_u["img"], batch_u["img2"])
    trainer.set_model_mode("eval")
    losses = trainer.losses(batch_x, batch_u)
    weak, strong = (torch.cat([batch_x[view], batch_u[view]]) for view in ("img", "img2"))
    target = trainer.model(weak).argmax(1)
    expected = 0.5 * F.cross_entropy(trainer.model(strong), target)
    torch.testing.assert_close(losses["pseudo"], expected)
    assert trainer.step_metrics["kept"] == 100
    grads = [torch.autograd.grad(loss, trainer.model.classifier.weight)[0] for loss in (losses["pseudo"], expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("trainer", "keys", "message"),
    [
        ("FixMatch", {"TRAINER__FIXMATCH__STRONG_TRANSFORMS": "[]"}, "STRONG_TRANSFORMS is empty"),
        ("FixMatch", {"TRAINER__FIXMATCH__CONF_THRE": 95.0}, "CONF_THRE = 95.0, expected float"),
        ("FixMatch", {"DATASET__NUM_LABELED": 30}, "a multiple of its 8 classes"),
        ("FixMatch", {"DATASET__NUM_SHOTS": 5}, "with DATASET.NUM_SHOTS 5"),
        ("Vanilla", {"DATASET__TARGET_DOMAINS": '["cartoon"]'}, "Input domain must belong to"),
        ("Vanilla", {"DATASET__SOURCE_DOMAINS": "[]"}, "must both be given"),
    ],
)
def test_what_cannot_be_is_refused_in_words(built, trainer, keys, message):
    with pytest.raises(UserError, match=message):
        built(trainer, **keys)


def test_a_data_set_without_unlabelled_images_is_refused(words):
    with pytest.raises(UserError, match="data set ToyDG has none"):
        train.main(words("SourceOnly", "none", data="toy_dg"))


# The data sets


def test_domains_are_kept_apart(built):
    data = built("SourceOnly").dm.dataset
    assert {data.domains[item.domain] for item in data.train_x} == {"noise", "sketch"}
    for items in (data.train_u, data.test):
        assert {data.domains[item.domain] for item in items} == {"clean"}
        assert all("/toy_dg/clean/" in item.impath for item in items)
    assert not {item.impath for item in data.train_u} & {item.impath for item in data.test}
    assert (len(data.train_x), len(data.val), len(data.train_u), len(data.test)) == (80, 8, 40, 32)
    vanilla = built("Vanilla")
    assert vanilla.num_source_domains == 2
    assert vanilla.train_loader_u is None
    assert [type(t) for t in (vanilla, built("SupBaseline"))] == [Vanilla, SupBaseline]
    assert type(built("SourceOnly")) is SourceOnly


def test_few_labels_and_the_rest(built):
    def parts(**keys):
        data = built("FixMatch", DATASET__SUBSAMPLE_CLASSES="all", **keys).dm.dataset
        return [[item.impath for item in items] for items in (data.train_x, data.train_u)]

    labelled, rest = parts()
    assert (len(labelled), len(rest)) == (32, 8 * 16 - 32)
    assert not set(labelled) & set(rest)
    both = parts(DATASET__ALL_AS_UNLABELED=True)
    assert both[0] == labelled and set(both[1]) == {*labelled, *rest}
    assert parts(DATASET__NUM_LABELED=-1, DATASET__NUM_SHOTS=4) == [labelled, rest]
    assert parts(SEED=2)[0] != labelled


def test_they_are_no_base_to_new_sets():
    assert not {"toy_dg", "toy_da", "toy_ssl"} & set(toy_sets())


def test_the_small_backbone_has_the_features_it_says():
    backbone = build_backbone("cnn_small", verbose=False).eval()
    for side in (32, 16, 48):
        assert backbone(torch.randn(2, 3, side, side)).shape == (2, backbone.out_features)
    assert sum(p.numel() for p in backbone.parameters()) == 60_688
