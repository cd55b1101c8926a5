"""The path card: its ends and middle are evaluations, its lines straight, its plane flat; on real small runs."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

import train
from dassl.clip import cosine_logits
from dassl.engine import TRAINER_REGISTRY
from dassl.report.protocols.paths import load_paths
from dassl.utils import UserError
from mergetune.lmc import interpolate
from mergetune.path_card import LEG_POINTS, batches_of, card_table, loaded, main, on_subset, path_card, read_cfg, walk
from mergetune.plane import axes, basis, combine, dot, score
from mergetune.trainers.coop_lmc import CoOp_LMC
from tests.fixtures.image_folders import write_split

MIDDLE = LEG_POINTS - 1
SMALL = ["INPUT.SIZE", "(32,32)", "DATALOADER.NUM_WORKERS", "0", "MODEL.BACKBONE.NAME", "tiny", "OPTIM.MAX_EPOCH", "2"]
SMALL += ["TRAINER.COOP.PREC", "fp32", "TRAINER.MMADAPTER.PREC", "fp32", "DATASET.NUM_SHOTS", "4", "OPTIM.LR", "0.02"]
SMALL += ["TRAINER.HEAD.PREC", "fp32", "TRAINER.MMADAPTER.ADAPTER_START", "2", "TRAINER.MMADAPTER.ADAPTER_END", "4"]


class CardWithoutZeroShot(CoOp_LMC):
    """A method whose new parameters have no zero-shot value."""

    def solutions(self, space):
        solutions = super().solutions(space)
        return {name: solutions[name] for name in ("ours", "fine_tuned")}


@pytest.fixture(scope="module")
def runs(pets_root, tmp_path_factory):
    """Folders by name: stage 1 and stage 2 of CoOp and MMA, and their evaluations on base and new."""
    out = tmp_path_factory.mktemp("runs")

    def go(trainer, config, name, subset="base", *words):
        argv = ["--root", pets_root, "--seed", "1", "--trainer", trainer, "--output-dir", out / name, *words]
        argv += ["--dataset-config-file", "configs/datasets/oxford_pets.yaml"]
        argv += ["--config-file", f"configs/trainers/{config}.yaml", *SMALL, "DATASET.SUBSAMPLE_CLASSES", subset]
        argv += ["FEATURES.DIR", out / "features"]
        train.main([str(word) for word in argv])

    robust = ("TRAINER.MODAL", "robust")
    go("LinearProbe", "LinearProbe/toy", "LinearProbe", "all", *robust)
    words = ("--resume-coop", out / "LinearProbe", *robust)
    go("LinearProbe_LMC", "LinearProbe_LMC/paper_toy", "LinearProbe_LMC", "all", *words)
    for stage1, stage2, first, second in (
        ("CoOp", "CoOp_LMC", "CoOp/vit_b16_ep100_ctxv1", "CoOp_LMC/paper"),
        ("MultiModalAdapter", "MMA_LMC", "MultiModalAdapter/vit_b16_ep5", "MMA_LMC/paper"),
    ):
        go(stage1, first, stage1)
        go(stage2, second, stage2, "base", "--resume-coop", out / stage1)
        for trainer, config in ((stage1, first), (stage2, second)):
            for subset in ("base", "new"):
                go(trainer, config, f"{trainer}_{subset}", subset, "--eval-only", "--model-dir", out / trainer)
    return out


def accuracy(folder):
    return json.loads((folder / "results.json").read_text())["metrics"]["accuracy"]


@pytest.fixture(scope="module", params=["CoOp_LMC", "MMA_LMC"])
def carded(request, runs):
    """(stage-2 trainer's name, its stage 1's, run folder, card of both spaces with planes of class vectors)."""
    run = runs / request.param
    path_card(run, plane=True)
    card = path_card(run, ("weights",))
    return request.param, {"CoOp_LMC": "CoOp", "MMA_LMC": "MultiModalAdapter"}[request.param], run, card


def test_the_middle_is_our_evaluation_and_the_end_is_stage_1s(carded, runs):
    ours, stage1, _, card = carded
    for subset in ("base", "new"):
        for own in (card, card["weights"]):
            assert own[subset]["accuracy"][MIDDLE] == pytest.approx(accuracy(runs / f"{ours}_{subset}"), abs=1e-4)
        # MMA's image tower is part of the model: only in the space of weights is the end stage 1 itself
        end = card["weights"] if ours == "MMA_LMC" else card
        assert end[subset]["accuracy"][-1] == pytest.approx(accuracy(runs / f"{stage1}_{subset}"), abs=1e-4)
    assert ("heads on them, not the models" in card_table(card).text()) == (ours == "MMA_LMC")
    assert "heads" not in card_table(card["weights"]).text()


def test_at_0_1_2_the_card_scores_the_solutions_themselves(carded):
    _, _, run, card = carded
    with loaded(run, on_subset(read_cfg(run), "new")) as trainer:
        batches = batches_of(trainer)
        image = torch.cat([trainer.image_features(images) for images, _ in batches])
        labels = torch.cat([truth for _, truth in batches])
        for k, vectors in zip((0, MIDDLE, -1), trainer.solutions("features").values(), strict=True):
            logits = cosine_logits(image, vectors, trainer.clip.logit_scale)
            assert card["new"]["loss"][k] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
            assert card["new"]["accuracy"][k] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())


@pytest.fixture(scope="module")
def wider(pets_root, tmp_path_factory):
    """A data root with two sets more."""
    root = tmp_path_factory.mktemp("wider")
    (root / "oxford_pets").symlink_to(pets_root / "oxford_pets")
    for folder, images, name in (("eurosat", "2750", "EuroSAT"), ("dtd", "images", "DescribableTextures")):
        (root / folder).mkdir()
        write_split(root / folder, images, f"split_zhou_{name}.json", classes=("cat", "dog", "river"), counts=(2, 1, 9))
    return ["DATASET.ROOT", str(root)]


def mean_of_others(config, out, pairs, *words):
    """Of an evaluation on new classes: the mean over the other data sets, in percent."""
    pairs = [*pairs, "TEST.OTHERS", "auto", "DATASET.SUBSAMPLE_CLASSES", "new"]
    argv = ["--eval-only", "--config-file", config, "--output-dir", out, *words, *pairs]
    train.main([str(word) for word in argv])
    sets = json.loads((out / "results.json").read_text())["others"]["sets"]
    assert set(sets) == {"EuroSAT", "DescribableTextures"}
    return sum(100 * row["correct"] / row["total"] for row in sets.values()) / len(sets)


@pytest.mark.parametrize(("name", "stage1"), [("CoOp_LMC", "CoOp"), ("MMA_LMC", "MultiModalAdapter")])
def test_others_are_those_of_the_evaluations_at_each_solution(runs, wider, tmp_path, name, stage1):
    run = tmp_path / "run"
    shutil.copytree(runs / name, run)
    path_card(run, ("weights",), pairs=wider, others=["eurosat", "dtd"], others_in=("features", "weights"))
    card = path_card(run, pairs=wider)  # of the earlier card's sets
    assert card["others"]["asked"] == ["eurosat", "dtd"] and card["images"]["others"] == 2 * 27
    ours, tuned = (
        mean_of_others(
            runs / f"{trainer}_new" / "config.yaml", tmp_path / trainer, wider, "--model-dir", runs / trainer
        )
        for trainer in (name, stage1)
    )
    for own in (card, card["weights"]):
        assert own["others"]["accuracy"][MIDDLE] == pytest.approx(ours, abs=1e-4)
        assert own["direct"]["others"]["accuracy"][-1] == pytest.approx(own["others"]["accuracy"][-1], abs=1e-4)
        assert own["barrier"]["ours_to_fine_tuned"]["others"]["loss"] >= 0
    zero = mean_of_others(runs / "CoOp_new" / "config.yaml", tmp_path / "zero", wider, "--trainer", "ZeroshotCLIP")
    exact = (card, card["weights"]) if name == "CoOp_LMC" else ()  # MMA's image features are ours, or unlike to bits
    for own in exact:
        assert own["others"]["accuracy"][0] == pytest.approx(zero, abs=1e-4)
        assert own["others"]["accuracy"][-1] == pytest.approx(tuned, abs=1e-4)
    assert {tuple(record["path"]["sets"]) for record in load_paths(run)} == {("EuroSAT", "DescribableTextures")}
    table = card_table(card).text()
    assert "others accuracy" in table and "Others: mean over all classes of EuroSAT, DescribableTextures." in table


def test_others_that_are_not_there_are_refused_before_anything_is_computed(runs, tmp_path):
    run = shutil.copytree(runs / "CoOp_LMC", tmp_path / "run", ignore=shutil.ignore_patterns("path.json"))
    with pytest.raises(UserError, match="TEST.OTHERS food101"):
        main([str(run), "--others", "food101"])
    assert not (run / "path.json").exists()
    main([str(run), "--others"])
    card = json.loads((run / "path.json").read_text())
    assert card["others"] == {"asked": ["auto"], "sets": []}
    assert "No others: none of the sets is there." in card_table(card).text()
    with pytest.raises(UserError, match="--others-in-weights .* --space weights"):
        main([str(run), "--others-in-weights"])


def test_zero_shot_weights_are_zero_shot_clip(carded):
    """In the space of weights the path starts at CLIP: MMA's adapters there add nothing to the image tower."""
    name, _, run, card = carded
    if name == "MMA_LMC":
        with loaded(run, on_subset(read_cfg(run), "base")) as trainer:
            images, labels = (torch.cat(part) for part in zip(*batches_of(trainer), strict=True))
            text = trainer.clip.encode_text(trainer.tokens)
            logits = cosine_logits(
                F.normalize(trainer.clip.encode_image(images), dim=-1), text, trainer.clip.logit_scale
            )
        assert card["weights"]["base"]["loss"][0] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert card["weights"]["t"] == card["t"] and card["t"][0] == 0 and card["t"][-1] == 2


def test_zero_shot_clip_with_the_card_s_template_is_where_the_path_starts(carded, runs, tmp_path):
    name, _, _, card = carded
    spaces = (card, card["weights"]) if name == "CoOp_LMC" else ()  # MMA's images are ours, or unlike to a few bits
    assert card["zero_shot_template"] == "a photo of a {}, a type of pet."
    assert card["weights"]["zero_shot_template"] == "a photo of a {}."
    for k, own in enumerate(spaces):
        train.main([
            "--trainer", "ZeroshotCLIP", "--eval-only", "--config-file", str(runs / "CoOp_new" / "config.yaml"),
            "--output-dir", str(tmp_path / str(k)), "TRAINER.ZEROSHOT.TEMPLATES", own["zero_shot_template"],
        ])  # fmt: skip
        assert accuracy(tmp_path / str(k)) == pytest.approx(own["new"]["accuracy"][0], abs=1e-4)


def test_each_point_is_a_blend_scored_on_its_own(runs):
    with loaded(runs / "CoOp_LMC", on_subset(read_cfg(runs / "CoOp_LMC"), "base")) as trainer:
        batches = batches_of(trainer)
        for space in ("features", "weights"):
            found = trainer.solutions(space)
            path = walk(trainer, space, found, batches)
            for k, a, b, s in ((7, "zero_shot", "ours", 7), (MIDDLE + 5, "ours", "fine_tuned", 5)):
                blend = interpolate(found[a], found[b], s / (LEG_POINTS - 1))
                alone = score(trainer, space, blend, blend, torch.zeros(1), batches)
                assert path["loss"][k] == pytest.approx(alone["loss"][0], rel=1e-4)
            blend = interpolate(found["zero_shot"], found["fine_tuned"], 0.5)
            alone = score(trainer, space, blend, blend, torch.zeros(1), batches)
            assert path["direct"]["loss"][(LEG_POINTS - 1) // 2] == pytest.approx(alone["loss"][0], rel=1e-4)


def test_a_convex_loss_has_no_barrier_and_all_classes_are_one_subset(runs):
    """A linear head's cross-entropy is convex in the head."""
    card = path_card(runs / "LinearProbe_LMC", ("features", "weights"))
    assert "base" not in card and card["all"]["accuracy"][MIDDLE] == pytest.approx(accuracy(runs / "LinearProbe_LMC"))
    for own in (card, card["weights"]):
        assert [own["barrier"][line]["all"]["loss"] for line in own["barrier"]] == pytest.approx([0, 0, 0], abs=1e-6)
        assert own["all"]["loss"] == pytest.approx(card["all"]["loss"], rel=1e-4)  # the head is all that trains
    assert "H" not in card_table(card).columns


def test_the_direct_line_and_the_path_share_their_ends(carded):
    card = carded[3]
    for own in (card, card["weights"]):
        for subset in ("base", "new"):
            for quantity in ("loss", "accuracy"):
                direct, path = own["direct"][subset][quantity], own[subset][quantity]
                assert (direct[0], direct[-1]) == pytest.approx((path[0], path[-1]), rel=1e-4)


def test_a_run_without_zero_shot_has_the_second_half_of_the_path_alone(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "CardWithoutZeroShot", CardWithoutZeroShot)
    run = tmp_path / "run"
    run.mkdir()
    (run / "prompt_mid_learner").symlink_to(runs / "CoOp_LMC" / "prompt_mid_learner")
    for name, before in (("config.yaml", "NAME: CoOp_LMC"), ("results.json", '"TRAINER.NAME": "CoOp_LMC"')):
        text = (runs / "CoOp_LMC" / name).read_text()
        (run / name).write_text(text.replace(before, before.replace("CoOp_LMC", "CardWithoutZeroShot")))
    main([str(run), "--plane", "--figure"])
    said = capsys.readouterr().out
    assert "no zero-shot solution" in said and "no plane: a plane needs three" in said
    (record,) = load_paths(run)
    assert (record["path"]["t"][0], record["path"]["t"][-1], len(record["path"]["t"])) == (1, 2, LEG_POINTS)
    whole = path_card(runs / "CoOp_LMC")
    assert record["path"]["base"]["loss"].tolist() == pytest.approx(whole["base"]["loss"][MIDDLE:])
    assert len(list((run / "figures").glob("*.png"))) == 1


def test_the_planes_marks_are_the_solutions(carded):
    _, _, run, card = carded
    for subset in ("base", "new"):
        own = card["plane"][subset]
        for k, name in ((0, "zero_shot"), (MIDDLE, "ours"), (-1, "fine_tuned")):
            point = own["points"][name]
            assert point["loss"] == pytest.approx(card[subset]["loss"][k], rel=1e-3)
            assert own["x"][0] < point["x"] < own["x"][-1] and own["y"][0] < point["y"] < own["y"][-1]
    with loaded(run, on_subset(read_cfg(run), "base")) as trainer:
        found, batches = trainer.solutions("features"), batches_of(trainer)
        u, v, _ = basis(found["zero_shot"], found["fine_tuned"], found["ours"])
        own = card["plane"]["base"]
        there = combine(combine(found["zero_shot"], u, own["x"][3]), v, own["y"][17])
        alone = score(trainer, "features", there, there, torch.zeros(1), batches)
        assert own["loss"][17][3] == pytest.approx(alone["loss"][0], rel=1e-3)


def test_fewer_images_are_spread_over_the_split(runs):
    with loaded(runs / "CoOp_LMC", on_subset(read_cfg(runs / "CoOp_LMC"), "base")) as trainer:
        whole = torch.cat([labels for _, labels in batches_of(trainer)])
        some = torch.cat([labels for _, labels in batches_of(trainer, images=3)])
        assert len(whole) == 12 and some.tolist() == [0, 1, 2]
        assert sum(len(labels) for _, labels in batches_of(trainer, images=99)) == 12


def test_what_an_earlier_call_found_is_kept(carded):
    _, _, run, card = carded
    assert {"weights", "plane", "direct", "barrier"} <= set(card)
    assert {record["space"] for record in load_paths(run)} == {"features", "weights"}
    table = card_table(card["weights"]).text()
    assert "barrier zero-shot to fine-tuned" in table and "fine-tuned" in table and "12 base, 12 new" in table


def test_other_folders_are_refused_in_one_line(runs, tmp_path):
    for folder, reason in ((tmp_path, "holds no config.yaml"), (runs / "CoOp", "CoOp continues no stage 1")):
        with pytest.raises(UserError, match=reason):
            main([str(folder)])
    with pytest.raises(UserError, match="--images is 0"):
        main([str(runs / "CoOp_LMC"), "--images", "0"])


def test_the_basis_is_orthonormal_and_rebuilds_the_solutions():
    g = torch.Generator().manual_seed(0)
    solutions = [{"a": torch.randn(3, 4, generator=g), "b": torch.randn(5, generator=g)} for _ in range(3)]
    u, v, places = basis(*solutions)
    assert (dot(u, u), dot(v, v), dot(u, v)) == pytest.approx((1, 1, 0), abs=1e-6)
    for (x, y), solution in zip(places, solutions, strict=True):
        there = combine(combine(solutions[0], u, x), v, y)
        torch.testing.assert_close(there, solution, rtol=0, atol=1e-5)
    xs, ys = axes([(0.0, 0.0), (4.0, 0.0), (1.0, 2.0)])
    assert (xs[0], xs[-1], ys[0], ys[-1]) == pytest.approx((-1, 5, -1, 3))


def test_three_solutions_on_a_line_make_no_plane():
    a, b = torch.zeros(4), torch.ones(4)
    assert basis(a, b, 0.3 * b) is None and basis(a, a, b) is None and basis(a, b, b) is None


@pytest.fixture
def moved(runs, tmp_path):
    """A stage-2 run whose stage 1 lies elsewhere now, and where."""
    run, stage1 = (shutil.copytree(runs / name, tmp_path / name) for name in ("CoOp_LMC", "CoOp"))
    text = (run / "config.yaml").read_text().replace(str(runs / "CoOp"), str(tmp_path / "gone"))
    (run / "config.yaml").write_text(text)
    facts = json.loads((run / "results.json").read_text())
    facts["recipe"]["RESUME_COOP"] = str(tmp_path / "gone")
    (run / "results.json").write_text(json.dumps(facts))
    return run, stage1


def test_a_stage_1_that_has_moved_is_named_by_a_flag(moved, capsys):
    run, stage1 = moved
    with pytest.raises(UserError, match="No stage-1 checkpoint in .*gone: .*--set RESUME_COOP FOLDER"):
        main([str(run)])
    main([str(run), "--images", "3", "--set", "RESUME_COOP", str(stage1)])
    assert "barrier" in capsys.readouterr().out
    (file,) = (stage1 / "prompt_learner").glob("model.pth.tar-*")
    content = torch.load(file, weights_only=True)
    content["state_dict"]["ctx"] += 1
    torch.save(content, file)
    with pytest.raises(UserError, match="RESUME_COOP .* holds something else than the run began from"):
        main([str(run), "--set", "RESUME_COOP", str(stage1)])


def test_a_card_of_other_weights_is_neither_kept_nor_shown(moved, caplog):
    run, stage1 = moved
    words = [str(run), "--images", "3", "--set", "RESUME_COOP", str(stage1)]
    main([*words, "--space", "weights"])
    assert len(load_paths(run)) == 2 and "weights" in json.loads((run / "path.json").read_text())
    card = json.loads((run / "path.json").read_text())
    results = (run / "results.json").read_bytes()
    (run / "results.json").unlink()
    main(words)
    assert f"{run}: epochs 2 of 2, unfinished" in caplog.text and "unfinished" in (run / "path.json").read_text()
    (run / "results.json").write_bytes(results)
    for content in (card | {"digest": "0" * 32}, [], None):
        (run / "path.json").write_text(json.dumps(content))
        assert not load_paths(run) and "path.json is left out" in caplog.text
        main(words)
        assert [record["space"] for record in load_paths(run)] == ["features"]
        caplog.clear()
