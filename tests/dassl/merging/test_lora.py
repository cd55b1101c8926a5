"""LoRA factors in state dicts: their product, and back."""

import json

import pytest
import torch
from safetensors.torch import save_file

from dassl.merging import lora
from dassl.merging.methods import average
from dassl.utils import UserError
from mergetune.merge_sources import read_source


def adapter(seed, r=2, out=6, width=5, name="text.q_proj", adapter=""):
    """One pair of factors of rank r, under peft's names."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.lora_A{adapter}.weight": torch.randn(r, width, generator=generator),
        f"{name}.lora_B{adapter}.weight": torch.randn(out, r, generator=generator),
    }


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_the_product_is_scaling_times_b_a():
    state = adapter(1) | {"head.weight": torch.ones(3)}
    found = lora.products(state, scaling=2.0)
    wanted = 2 * state["text.q_proj.lora_B.weight"] @ state["text.q_proj.lora_A.weight"]
    same(found, {"text.q_proj.lora_delta.weight": wanted, "head.weight": torch.ones(3)})
    by_module = lora.products(adapter(1) | adapter(2, name="text.v_proj"), {"text.q_proj": 2.0, "text.v_proj": 0.5})
    same({name: by_module[name] for name in found if name in by_module}, {"text.q_proj.lora_delta.weight": wanted})


@pytest.mark.parametrize("named", ["", ".default"])
def test_factors_undo_the_product(named):
    update = lora.products(adapter(1, r=2, adapter=named))
    for rank in (2, 4, 8):  # a rank above the update's is filled with zeros
        thin = lora.factors(update, rank)
        assert lora.ranks(thin) == {"text.q_proj": rank}
        same(lora.products(thin), update)
        assert set(thin) == set(adapter(1, adapter=named))


def test_a_smaller_rank_gives_the_nearest_product():
    """Eckart and Young: the error of rank 1 is the root of the sum of squares of the other singular values."""
    update = lora.products(adapter(1, r=3))["text.q_proj.lora_delta.weight"]
    thin = lora.products(lora.factors({"text.q_proj.lora_delta.weight": update}, 1))["text.q_proj.lora_delta.weight"]
    left = torch.linalg.svdvals(update)[1:].square().sum().sqrt()
    torch.testing.assert_close((update - thin).norm(), left)


def test_convolutions_have_products_too():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 3, 3, generator=generator), torch.randn(4, 2, 1, 1, generator=generator)
    update = lora.products({"conv.lora_A.weight": a, "conv.lora_B.weight": b})
    images = torch.randn(1, 3, 8, 8, generator=generator)
    two = torch.nn.functional.conv2d(torch.nn.functional.conv2d(images, a), b)
    one = torch.nn.functional.conv2d(images, update["conv.lora_delta.weight"])
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    thin = lora.factors(update, 2)
    assert thin["conv.lora_A.weight"].shape == a.shape and thin["conv.lora_B.weight"].shape == b.shape
    same(lora.products(thin), update)


def test_merging_factors_is_not_merging_the_product():
    """(B Q, Q^-1 A) is the same update: its average with (B, A) is that update again, but not through the factors."""
    state, q = adapter(1), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    a, b = (state[f"text.q_proj.lora_{side}.weight"] for side in "AB")
    turned = dict(zip(state, (torch.linalg.inv(q) @ a, b @ q), strict=True))
    same(average([lora.products(state), lora.products(turned)]), lora.products(state))
    through_factors = lora.products(average([state, turned]))["text.q_proj.lora_delta.weight"]
    assert (through_factors - b @ a).abs().max() > 0.1


def test_parents_of_other_ranks_meet_in_the_product():
    update = average([lora.products(adapter(1, r=2)), lora.products(adapter(2, r=3))])
    same(lora.products(lora.factors(update, 5)), update)


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"q.lora_A.weight": torch.ones(2, 5)}, r"q\.lora_A\.weight has no partner q\.lora_B\.weight"),
        (
            {"q.lora_A.weight": torch.ones(2, 5), "q.lora_B.weight": torch.ones(6, 3)},
            r"q\.lora_A\.weight \(2, 5\) and its B \(6, 3\) are no pair",
        ),
        ({"emb.lora_embedding_A": torch.ones(2, 5)}, "lora_embedding_A is no plain LoRA factor"),
        ({"q.lora_magnitude_vector.weight": torch.ones(5)}, "lora_magnitude_vector.weight is no plain"),
    ],
)
def test_what_is_no_product_is_refused(state, match):
    with pytest.raises(ValueError, match=match):
        lora.products(state)


def test_a_rank_below_1_is_refused():
    with pytest.raises(ValueError, match=r"rank of text\.q_proj is 0"):
        lora.factors(lora.products(adapter(1)), 0)


@pytest.fixture
def peft(tmp_path):
    """`peft(KEY=value)`: a peft folder of rank 2 with those entries in adapter_config.json."""
    name = "base_model.model.text.q_proj"
    factors = {f"{name}.lora_A.weight": torch.ones(2, 5), f"{name}.lora_B.weight": torch.ones(6, 2)}
    save_file(factors, tmp_path / "adapter_model.safetensors")

    def go(**config):
        own = {"peft_type": "LORA", "r": 2, "lora_alpha": 8} | config
        (tmp_path / "adapter_config.json").write_text(json.dumps(own))
        return read_source(tmp_path)

    return go


def test_the_scaling_is_alpha_by_rank_of_each_module(peft):
    for config, scaling in (
        ({}, 4),
        ({"alpha_pattern": None, "rank_pattern": None}, 4),
        ({"alpha_pattern": {}, "use_rslora": True}, 8 / 2**0.5),
        ({"lora_alpha": 0.5}, 0.25),
    ):
        assert list(peft(**config).scaling.values()) == [scaling]


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"lora_alpha": None}, "lora_alpha of .*q_proj is None, expected a number above 0"),
        ({"lora_alpha": "16"}, "lora_alpha of .*q_proj is '16', expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha of .*q_proj is nan"),
        ({"lora_alpha": 1e308}, "lora_alpha of .*q_proj is 1e.308.*up to 1000000"),
        ({"lora_alpha": True}, "lora_alpha of .*q_proj is True"),
        ({"r": 0}, "gives .*q_proj the rank 0"),
        ({"r": 2.5}, "gives .*q_proj the rank 2.5"),
        ({"r": None}, "gives .*q_proj the rank None"),
        ({"r": 3}, "gives base_model.model.text.q_proj the rank 3, but its factors have 2"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is of single modules: only one rank"),
        ({"alpha_pattern": [1]}, "alpha_pattern is of single modules: only one rank"),
    ],
)
def test_a_broken_adapter_config_is_refused_by_its_entry(peft, config, match):
    with pytest.raises(UserError, match=f"adapter_config.json:? {match}"):
        peft(**config)
