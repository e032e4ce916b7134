"""Reference attention against the textbook: one softmax over the tokens of both nets."""

import pytest
import torch
from oracles import attention, lively
from torch import Tensor

from loopy_model import layers
from loopy_model.layers import Attention, FeedForward, SpatialTransformer, TimestepEmbedding

HEADS = 2


@pytest.fixture
def layer() -> Attention:
    return lively(Attention(8, HEADS)).double().requires_grad_(False)


def tokens(batch: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(batch, count, 8, generator=generator, dtype=torch.float64)


def textbook(layer: Attention, x: Tensor, others: Tensor) -> Tensor:
    """One sample (N, C) that attends to itself and to `others` (K, C)."""
    both = torch.cat([x, others])
    q, k, v = x @ layer.to_q.weight.T, both @ layer.to_k.weight.T, both @ layer.to_v.weight.T
    return attention(q, k, v, HEADS) @ layer.to_out[0].weight.T + layer.to_out[0].bias


@pytest.mark.parametrize("count", [3, 300])  # over many keys a CPU fills up the heads, here 4 wide
def test_reference_tokens_stand_beside_the_own_ones_in_one_softmax(
    layer: Attention, count: int, generator: torch.Generator
) -> None:
    x, reference = tokens(2, 5, generator), tokens(2, count, generator)
    out = layer(x, layer.keys_values(x), layer.keys_values(reference))
    for i in range(2):
        assert torch.allclose(out[i], textbook(layer, x[i], reference[i]), atol=1e-12)


def test_a_sample_whose_reference_is_dropped_attends_as_if_there_were_none(
    layer: Attention, generator: torch.Generator
) -> None:
    x, reference = tokens(3, 5, generator), tokens(3, 4, generator)
    keep = torch.tensor([True, False, True])
    out = layer(x, layer.keys_values(x), layer.keys_values(reference)._replace(keep=keep))
    for i in range(3):
        others = reference[i] if keep[i] else reference[i][:0]
        assert torch.allclose(out[i], textbook(layer, x[i], others), atol=1e-12)


def test_keeping_everything_is_the_same_as_no_mask(layer: Attention, generator: torch.Generator) -> None:
    x, extra = tokens(2, 4, generator), layer.keys_values(tokens(2, 6, generator))
    kept = extra._replace(keep=torch.ones(2, dtype=torch.bool))
    own = layer.keys_values(x)
    assert torch.allclose(layer(x, own, extra), layer(x, own, kept), atol=1e-12)


def test_what_a_dropped_reference_shows_does_not_matter_at_all(
    layer: Attention, generator: torch.Generator
) -> None:
    x, never = tokens(1, 4, generator), torch.tensor([False])
    own = layer.keys_values(x)
    some = [layer.keys_values(tokens(1, 2, generator))._replace(keep=never) for _ in range(2)]
    assert torch.equal(layer(x, own, some[0]), layer(x, own, some[1]))


def test_the_reference_read_by_a_site_is_the_norm_before_its_self_attention(
    generator: torch.Generator,
) -> None:
    site = lively(SpatialTransformer(8, HEADS, groups=2, ff=1)).requires_grad_(False)
    picture = torch.randn(1, 8, 2, 3, generator=generator)
    _, normed = site(picture)
    block = site.transformer_blocks[0]
    h = site.proj_in(site.norm(picture)).flatten(2).transpose(1, 2)  # row by row
    assert torch.allclose(normed, block.norm1(h), atol=1e-6)
    assert torch.allclose(site.keys_values(normed).k, block.attn1.to_k(normed), atol=1e-6)


def test_timestep_sinusoids_have_cosines_first_and_rates_from_1_down() -> None:
    embedding = TimestepEmbedding(4, 8)
    seen: list[Tensor] = []
    embedding.linear_1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    embedding(torch.tensor([3]), torch.zeros(1))
    three = torch.tensor([3.0, 0.03])  # rates 10000 ** (-i / 2): 1 and 0.01
    assert torch.allclose(seen[0], torch.cat([three.cos(), three.sin()])[None], atol=1e-6)


@pytest.mark.parametrize("values", [1, 64, 640, 2**19])
def test_a_feed_forward_in_blocks_of_rows_computes_the_same(
    values: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 1, 1, 10 and all 35 rows, the third not a divisor."""
    monkeypatch.setattr(layers, "CACHED_VALUES", values)
    net, x = lively(FeedForward(8, 4)).double(), tokens(5, 7, generator)
    assert net.rows == {1: 1, 64: 1, 640: 10, 2**19: 8192}[values]
    with torch.no_grad():
        value, gate = net.net[0].proj(x).chunk(2, -1)
        by_hand = net.net[2](value * gate * (1 + torch.erf(gate / 2**0.5)) / 2)
        assert torch.allclose(net(x), by_hand, atol=1e-12)
    assert torch.allclose(net(x), by_hand, atol=1e-12)  # with gradients, in one


@pytest.mark.parametrize("with_extra", [0, 3, 5])
@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_attention_a_few_rows_at_a_time_computes_the_same(
    layer: Attention,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
    with_extra: int,
    at_once: int,
) -> None:
    """Also where a part has rows with `extra` keys and rows without; one of them is masked out."""
    x, other = tokens(5, 3, generator), tokens(5, 4, generator)[:with_extra]
    keep = torch.tensor([True, False, True, True, True])[:with_extra]
    extra = layer.keys_values(other)._replace(keep=keep) if with_extra else None
    monkeypatch.setattr(layers, "CACHED_VALUES", at_once * 8 * (7 if with_extra else 3))
    with torch.no_grad():
        out = layer(x, layer.keys_values(x), extra)
    for row in range(5):
        seen = other[row] if row < with_extra and keep[row] else other[:0].reshape(0, 8)
        assert torch.allclose(out[row], textbook(layer, x[row], seen), atol=1e-12)
