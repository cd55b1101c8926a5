"""Samplers: the draws of Dassl's, errors, and the wrapper that carries view numbers."""

import pickle
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from dassl.data import ViewIndex, ViewSampler
from dassl.data.datasets import Datum
from dassl.data.samplers import RandomClassSampler, RandomDomainSampler, SeqDomainSampler, build_sampler
from dassl.utils import UserError, set_random_seed

# 60 items in 4 classes and 3 domains
SIXTY = [Datum.listed(f"{i}.jpg", label=i % 4, domain=i // 4 % 3) for i in range(60)]


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [
        (
            "RandomDomainSampler",
            {"batch_size": 6, "n_domain": 0},
            [3, 39, 46, 47, 40, 18, 37, 38, 4, 52, 32, 23, 8, 59, 0, 27, 5, 54],
        ),
        (
            "SeqDomainSampler",
            {"batch_size": 6},
            [12, 50, 6, 28, 11, 47, 39, 48, 42, 19, 20, 57, 0, 49, 52, 29, 8, 45],
        ),
        (
            "RandomClassSampler",
            {"batch_size": 8, "n_ins": 4},
            [56, 40, 0, 52, 30, 10, 46, 6, 18, 50, 22, 38, 11, 7, 51, 27, 59, 39],
        ),
    ],
)
def test_published_draws(name, sizes, expected):
    sampler = build_sampler(name, data_source=SIXTY, **sizes)
    set_random_seed(1)
    assert list(sampler)[:18] == expected


def test_random_class_sampler_length_and_content():
    set_random_seed(1)
    sampler = RandomClassSampler(SIXTY, batch_size=8, n_ins=4)
    assert len(sampler) == 40  # of the constructor's own pass; another draw may reach 48
    set_random_seed(1)
    picked = list(sampler)
    assert len(picked) == 40
    for start in range(0, len(picked) - 7, 8):
        labels = [SIXTY[i].label for i in picked[start : start + 8]]
        assert len(set(labels)) == 2
        assert len(set(labels[:4])) == 1
    assert len(set(picked)) == len(picked)


def test_random_class_sampler_repeats_in_a_short_class():
    short = SIXTY[:8]  # two of each class
    random.seed(1)
    np.random.seed(1)
    picked = list(RandomClassSampler(short, batch_size=8, n_ins=4))
    assert len(picked) % 8 == 0
    assert set(picked) <= set(range(8))


@pytest.mark.parametrize("sampler", [RandomDomainSampler(SIXTY, 6, 2), SeqDomainSampler(SIXTY, 6)])
def test_domain_samplers_share_a_batch_equally(sampler):
    picked = list(sampler)
    share = sampler.n_img_per_domain
    assert len(picked) >= 18
    for start in range(0, len(picked), share):
        assert len({SIXTY[i].domain for i in picked[start : start + share]}) == 1
    assert len(set(picked)) == len(picked)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("RandomSampling", {}, "RandomSampler"),
        ("RandomDomainSampler", {"batch_size": 7}, "no multiple of the 3 domains"),
        ("RandomDomainSampler", {"batch_size": 6, "n_domain": 4}, "there are 3"),
        ("SeqDomainSampler", {"batch_size": 96}, "20 images; its share of a batch is 32"),
        ("RandomClassSampler", {"batch_size": 3, "n_ins": 4}, "smaller than the 4 images"),
        ("RandomClassSampler", {"batch_size": 20, "n_ins": 4}, "there are 4"),
    ],
)
def test_bad_sizes_are_refused_in_words(name, sizes, message):
    with pytest.raises(UserError, match=message):
        build_sampler(name, data_source=SIXTY, **sizes)


def test_torchs_own_samplers_by_name():
    assert type(build_sampler("RandomSampler", data_source=SIXTY)) is RandomSampler
    assert type(build_sampler("SequentialSampler", data_source=SIXTY)) is SequentialSampler


def test_view_index_is_an_int_that_survives_pickling():
    index = pickle.loads(pickle.dumps(ViewIndex(3, 7)))
    assert (index, index.view) == (3, 7)
    assert "abcd"[index] == "d"


def test_view_sampler_changes_neither_order_nor_draws():
    orders = []
    for wrap in (lambda sampler: sampler, ViewSampler):
        torch.manual_seed(5)
        loader = DataLoader(range(20), batch_size=4, sampler=wrap(RandomSampler(range(20))))
        orders.append([batch.tolist() for _ in range(2) for batch in loader] + [torch.rand(1).item()])
    assert orders[0] == orders[1]
    assert orders[0][0] == [8, 5, 12, 19]


def test_view_number_is_the_epoch_told_and_moves_on_by_itself():
    sampler = ViewSampler(SequentialSampler(range(3)))

    def views():
        return [index.view for index in sampler]

    assert len(sampler) == 3
    assert views() == [0, 0, 0]
    assert views() == [1, 1, 1]
    sampler.set_epoch(7)
    assert views() == [7, 7, 7]
    sampler.set_epoch(7)
    assert views() == [7, 7, 7]
    assert views() == [8, 8, 8]
