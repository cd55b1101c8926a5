"""The wider ring of names that public Dassl code imports: each is where it was, and works."""

import importlib

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.data.samplers import RandomDomainSampler, RandomSampler, SequentialSampler
from dassl.modeling.ops import MixStyle, crossdomain_mixstyle, run_with_mixstyle, run_without_mixstyle
from dassl.optim import build_optimizer
from dassl.utils import UserError
from tests.test_samplers import SIXTY

TOOLS = """mkdir_if_missing check_isfile read_json write_json set_random_seed download_url read_image collect_env_info
    listdir_nohidden get_most_similar_str_to_a_from_b check_availability tolist_if_not"""
TORCHTOOLS = """save_checkpoint load_checkpoint resume_from_checkpoint open_all_layers open_specified_layers
    count_num_param load_pretrained_weights init_network_weights"""
MANAGER = "DataManager DatasetWrapper build_data_loader"
BUILDERS = "build_backbone build_head build_network Backbone BACKBONE_REGISTRY HEAD_REGISTRY NETWORK_REGISTRY"
OPERATIONS = "create_onehot sharpen_prob sigmoid_rampup linear_rampup ema_model_update"
NAMES = {
    "dassl": "__version__",
    "dassl.config": "get_cfg_default clean_cfg",
    "dassl.data": MANAGER,
    "dassl.data.data_manager": f"{MANAGER} build_transform build_dataset INTERPOLATION_MODES",
    "dassl.data.datasets": "build_dataset DATASET_REGISTRY DatasetBase Datum",
    "dassl.data.datasets.base_dataset": "DatasetBase Datum",
    "dassl.data.datasets.build": "build_dataset DATASET_REGISTRY",
    "dassl.data.samplers": "build_sampler RandomDomainSampler SeqDomainSampler RandomClassSampler RandomSampler "
    "SequentialSampler",
    "dassl.data.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.data.transforms.transforms": "build_transform INTERPOLATION_MODES",
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
    "dassl.modeling.backbone": "build_backbone BACKBONE_REGISTRY Backbone",
    "dassl.modeling.backbone.backbone": "Backbone",
    "dassl.modeling.backbone.build": "build_backbone BACKBONE_REGISTRY",
    "dassl.modeling.head": "build_head HEAD_REGISTRY",
    "dassl.modeling.network": "build_network NETWORK_REGISTRY",
    "dassl.modeling.ops": "ReverseGrad MixStyle run_with_mixstyle run_without_mixstyle random_mixstyle "
    f"crossdomain_mixstyle activate_mixstyle deactivate_mixstyle {OPERATIONS}",
    "dassl.modeling.ops.mixstyle": "MixStyle run_with_mixstyle run_without_mixstyle",
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
    "dassl.utils.torchtools": TORCHTOOLS,
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


@pytest.mark.parametrize("mix", ["random", "crossdomain"])
def test_mixed_statistics_lie_between_those_of_two_pictures(mix):
    torch.manual_seed(0)
    x = torch.randn(6, 2, 7, 5) * torch.arange(1, 7)[:, None, None, None] + 3
    layer = MixStyle(p=1.0, alpha=0.5, mix=mix)
    torch.manual_seed(1)
    mixed = layer(x)
    torch.manual_seed(1)
    own = layer.beta.sample((6, 1, 1, 1)).flatten()
    other = layer._others(6)
    for before, after in zip(statistics(x), statistics(mixed), strict=True):
        for i in range(6):
            expected = own[i] * before[i] + (1 - own[i]) * before[other[i]]
            torch.testing.assert_close(after[i], expected, rtol=1e-4, atol=1e-4)
    if mix == "crossdomain":
        assert all((i < 3) != (int(j) < 3) for i, j in enumerate(other))


def test_mixstyle_acts_in_training_alone_and_where_it_is_on():
    torch.manual_seed(0)
    model, x = nn.Sequential(MixStyle(p=1.0, alpha=1.0)), torch.randn(4, 3, 5, 5)
    assert not torch.equal(model(x), x)
    assert torch.equal(model.eval()(x), x)
    model.train()
    with run_without_mixstyle(model):
        assert torch.equal(model(x), x)
    assert not torch.equal(model(x), x)
    with run_with_mixstyle(model, mix="crossdomain"):
        assert not torch.equal(model(x), x)
        assert model[0].mix == "crossdomain"
    assert torch.equal(model(x), x)  # off afterwards
    model.apply(crossdomain_mixstyle)
    with pytest.raises(UserError, match="crossdomain"):
        MixStyle(mix="domain")
