"""The wider ring of names that public Dassl code imports: each is where it was, and works."""

import importlib

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.data.samplers import RandomDomainSampler, RandomSampler, SequentialSampler
from dassl.modeling.ops import (
    EFDMix,
    MixStyle,
    crossdomain_efdmix,
    crossdomain_mixstyle,
    run_with_efdmix,
    run_with_mixstyle,
    run_without_efdmix,
    run_without_mixstyle,
)
from dassl.optim import build_optimizer
from dassl.utils import UserError
from tests.dassl.data.test_samplers import SIXTY

TOOLS = """mkdir_if_missing check_isfile read_json write_json set_random_seed download_url read_image collect_env_info
    listdir_nohidden get_most_similar_str_to_a_from_b check_availability tolist_if_not"""
TORCHTOOLS = """save_checkpoint load_checkpoint resume_from_checkpoint open_all_layers open_specified_layers
    count_num_param load_pretrained_weights init_network_weights"""
MANAGER = "DataManager DatasetWrapper build_data_loader"
BUILDERS = "build_backbone build_head build_network Backbone BACKBONE_REGISTRY HEAD_REGISTRY NETWORK_REGISTRY"
OPERATIONS = "reverse_index shuffle_index create_onehot sharpen_prob sigmoid_rampup linear_rampup ema_model_update"
MIXSTYLE = """run_with_mixstyle run_without_mixstyle random_mixstyle crossdomain_mixstyle activate_mixstyle
    deactivate_mixstyle"""
EFDMIX = MIXSTYLE.replace("mixstyle", "efdmix")
RESNETS = "resnet18 resnet34 resnet50 resnet101 resnet152"
NAMES = {
    "dassl": "__version__",
    "dassl.config": "get_cfg_default clean_cfg cfg_default",
    "dassl.data": MANAGER,
    "dassl.data.data_manager": f"{MANAGER} build_transform build_dataset INTERPOLATION_MODES",
    "dassl.data.datasets": "build_dataset DATASET_REGISTRY DatasetBase Datum",
    "dassl.data.datasets.base_dataset": "DatasetBase Datum",
    "dassl.data.datasets.build": "build_dataset DATASET_REGISTRY",
    "dassl.data.samplers": "build_sampler RandomDomainSampler SeqDomainSampler RandomClassSampler RandomSampler "
    "SequentialSampler",
    "dassl.data.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.data.transforms.randaugment": "RandAugment RandAugment2 RandAugmentFixMatch",
    "dassl.data.transforms.transforms": "build_transform INTERPOLATION_MODES AVAI_CHOICES Random2DTranslation Cutout "
    "InstanceNormalization GaussianNoise RandAugment RandAugment2 RandAugmentFixMatch",
    "dassl.engine": "TRAINER_REGISTRY TrainerX TrainerXU TrainerBase SimpleTrainer SimpleNet build_trainer Vanilla "
    "SourceOnly SupBaseline FixMatch",
    "dassl.engine.build": "TRAINER_REGISTRY build_trainer",
    "dassl.engine.da": "SourceOnly",
    "dassl.engine.dg": "Vanilla",
    "dassl.engine.ssl": "FixMatch SupBaseline",
    "dassl.engine.trainer": "TrainerX TrainerXU TrainerBase SimpleTrainer SimpleNet time datetime osp np torch nn tqdm "
    "OrderedDict SummaryWriter DataManager build_optimizer build_lr_scheduler build_evaluator build_head "
    "build_backbone MetricMeter AverageMeter tolist_if_not count_num_param load_checkpoint save_checkpoint "
    "mkdir_if_missing resume_from_checkpoint load_pretrained_weights",
    "dassl.evaluation": "build_evaluator EVALUATOR_REGISTRY EvaluatorBase Classification",
    "dassl.evaluation.build": "build_evaluator EVALUATOR_REGISTRY",
    "dassl.evaluation.evaluator": "EvaluatorBase Classification",
    "dassl.metrics": "compute_accuracy compute_distance_matrix cosine_distance euclidean_squared_distance",
    "dassl.metrics.accuracy": "compute_accuracy",
    "dassl.metrics.distance": "compute_distance_matrix cosine_distance euclidean_squared_distance",
    "dassl.modeling": BUILDERS,
    "dassl.modeling.backbone": f"build_backbone BACKBONE_REGISTRY Backbone {RESNETS}",
    "dassl.modeling.backbone.backbone": "Backbone",
    "dassl.modeling.backbone.resnet": RESNETS,
    "dassl.modeling.backbone.build": "build_backbone BACKBONE_REGISTRY",
    "dassl.modeling.head": "build_head HEAD_REGISTRY",
    "dassl.modeling.network": "build_network NETWORK_REGISTRY",
    "dassl.modeling.head.mlp": "MLP mlp",
    "dassl.modeling.ops": f"ReverseGrad MixStyle {MIXSTYLE} EFDMix {EFDMIX} mixup {OPERATIONS}",
    "dassl.modeling.ops.efdmix": f"EFDMix {EFDMIX}",
    "dassl.modeling.ops.mixstyle": f"MixStyle {MIXSTYLE}",
    "dassl.modeling.ops.mixup": "mixup",
    "dassl.modeling.ops.reverse_grad": "ReverseGrad",
    "dassl.modeling.ops.utils": OPERATIONS,
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.optim.lr_scheduler": "build_lr_scheduler AVAI_SCHEDS ConstantWarmupScheduler LinearWarmupScheduler",
    "dassl.optim.optimizer": "build_optimizer AVAI_OPTIMS",
    "dassl.optim.radam": "RAdam",
    "dassl.utils": f"{TOOLS} {TORCHTOOLS} Registry Logger setup_logger MetricMeter AverageMeter",
    "dassl.utils.logger": "Logger setup_logger",
    "dassl.utils.meters": "MetricMeter AverageMeter",
    "dassl.utils.registry": "Registry",
    "dassl.utils.tools": TOOLS,
    "dassl.utils.torchtools": f"{TORCHTOOLS} set_bn_to_eval adjust_learning_rate",
}


def test_every_name_is_where_it_was():
    missing = [
        f"{module}.{name}"
        for module, names in NAMES.items()
        for name in names.split()
        if not hasattr(importlib.import_module(module), name)
    ]
    assert not missing


def test_torchs_samplers_are_torchs():
    assert (RandomSampler, SequentialSampler) == (torch.utils.data.RandomSampler, torch.utils.data.SequentialSampler)


@pytest.mark.parametrize("all_of_them", [None, 0, -1])
def test_no_number_of_domains_means_all(all_of_them):
    assert RandomDomainSampler(SIXTY, 6, all_of_them).n_img_per_domain == 2


def test_staged_rates_of_the_default_config():
    cfg = get_cfg_default()
    cfg.OPTIM.STAGED_LR, cfg.OPTIM.NEW_LAYERS = True, "1"
    optim = build_optimizer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), cfg.OPTIM)
    assert [group["lr"] for group in optim.param_groups] == pytest.approx([3e-5, 3e-4])


# MixStyle


def statistics(x):
    return x.mean((2, 3)), x.var((2, 3)).sqrt()


@pytest.mark.parametrize("size", [6, 5])
@pytest.mark.parametrize("mix", ["random", "crossdomain"])
@pytest.mark.parametrize("kind", [MixStyle, EFDMix])
def test_statistics_are_mixed_with_those_of_the_image_that_dassl_draws(kind, mix, size):
    """The share first, then the partners: across domains the halves change places, each in an order of its own."""
    torch.manual_seed(0)
    x = torch.randn(size, 2, 7, 5) * torch.arange(1, size + 1)[:, None, None, None] + 3
    layer = kind(p=1.0, alpha=0.5, mix=mix)
    torch.manual_seed(1)
    mixed = layer(x)
    torch.manual_seed(1)
    share = torch.distributions.Beta(0.5, 0.5).sample((size,))
    if mix == "random":
        other = torch.randperm(size).tolist()
    else:
        later, earlier = torch.arange(size - 1, -1, -1).chunk(2)
        other = [int(later[i]) for i in torch.randperm(len(later))]
        other += [int(earlier[i]) for i in torch.randperm(len(earlier))]
    # a moment of EFDMix's map is not the mean of two deviations: there the sorted values are what is mixed
    read = statistics if kind is MixStyle else lambda x: [x.flatten(2).sort(-1).values]
    for before, after in zip(read(x), read(mixed), strict=True):
        for i in range(size):
            expected = share[i] * before[i] + (1 - share[i]) * before[other[i]]
            torch.testing.assert_close(after[i], expected, rtol=1e-4, atol=1e-4)
    if kind is EFDMix:  # the order of the values in a map stays
        assert torch.equal(mixed.flatten(2).argsort(-1), x.flatten(2).argsort(-1))


def test_efdmix_takes_the_statistics_for_given():
    """The gradient of a map mixed with itself is that of the plain map, plus the share's part of its sorted copy."""
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    mixed = EFDMix(p=1.0)(x)
    torch.testing.assert_close(mixed, x)
    mixed.sum().backward()
    assert (x.grad >= 1).all() and (x.grad <= 2).all()


@pytest.mark.parametrize(
    ("kind", "without", "within", "across"),
    [
        (MixStyle, run_without_mixstyle, run_with_mixstyle, crossdomain_mixstyle),
        (EFDMix, run_without_efdmix, run_with_efdmix, crossdomain_efdmix),
    ],
)
def test_mixing_acts_in_training_alone_and_where_it_is_on(kind, without, within, across):
    torch.manual_seed(0)
    model, x = nn.Sequential(kind(p=1.0, alpha=1.0)), torch.randn(4, 3, 5, 5)
    assert not torch.equal(model(x), x)
    assert torch.equal(model.eval()(x), x)
    model.train()
    with without(model):
        assert torch.equal(model(x), x)
    assert not torch.equal(model(x), x)
    with within(model, mix="crossdomain"):
        assert not torch.equal(model(x), x)
        assert model[0].mix == "crossdomain"
    assert torch.equal(model(x), x)  # off afterwards
    model[0].update_mix_method("random")
    model.apply(across)
    assert model[0].mix == "crossdomain"
    with pytest.raises(UserError, match="crossdomain"):
        kind(mix="domain")
