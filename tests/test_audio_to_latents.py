"""Audio-to-latents and the audio projection (paper 3.3, Fig. 4)."""

import pytest
import torch
from oracles import attention, lively

from loopy_model.audio_to_latents import AudioProjection, AudioToLatents
from loopy_model.config import LOOPY, TINY

AUDIO, WINDOW, TIME = TINY.audio, 5, 12


@pytest.fixture
def module() -> AudioToLatents:
    return lively(AudioToLatents(AUDIO, WINDOW, TIME)).requires_grad_(False)


def speech(generator: torch.Generator, frames: int = 3) -> torch.Tensor:
    return torch.randn(1, frames, WINDOW, AUDIO.layers, AUDIO.width, generator=generator)


def test_the_query_reads_the_embeddings_as_keys_and_values(
    module: AudioToLatents, generator: torch.Generator
) -> None:
    query = torch.randn(2, 3, AUDIO.latent_width, generator=generator)
    latents = module(query)
    assert latents.shape == (2, 3, TIME)
    k, v = module.to_k(module.embeddings), module.to_v(module.embeddings)
    for clip in range(2):
        expected = module.to_time(attention(query[clip], k, v, heads=1))
        assert torch.allclose(latents[clip], expected, atol=1e-6)


def test_the_order_of_the_embeddings_means_nothing(
    module: AudioToLatents, generator: torch.Generator
) -> None:
    query = torch.randn(1, 2, AUDIO.latent_width, generator=generator)
    before = module(query)
    module.embeddings.data = module.embeddings.data.flip(0)
    assert torch.allclose(module(query), before, atol=1e-6)


def test_every_frame_has_one_query_of_its_own_window(
    module: AudioToLatents, generator: torch.Generator
) -> None:
    windows = speech(generator)
    query = module.audio_query(windows)
    assert query.shape == (1, 3, AUDIO.latent_width)
    assert torch.allclose(query[:, 1:2], module.audio_query(windows[:, 1:2]), atol=1e-6)


def test_a_variance_gives_one_query_repeated_over_the_clip(module: AudioToLatents) -> None:
    score = torch.tensor([-1.5, 0.25])
    for source, layer in (("head movement", module.query_movement), ("expression", module.query_expression)):
        query = module.variance_query(source, score, frames=4)
        assert query.shape == (2, 4, AUDIO.latent_width)
        expected = score[:, None] * layer.weight[:, 0] + layer.bias
        assert all(torch.allclose(query[:, f], expected) for f in range(4))


def test_a_fresh_module_says_nothing(generator: torch.Generator) -> None:
    fresh = AudioToLatents(AUDIO, WINDOW, TIME)
    assert not fresh(fresh.audio_query(speech(generator))).any()


def test_the_papers_sizes() -> None:
    with torch.device("meta"):
        module = AudioToLatents(LOOPY.audio, LOOPY.clip.audio_window, LOOPY.unet.time_channels)
    assert module.embeddings.shape == (128, 256)
    assert module.to_time.out_features == 1280
    assert module.query_audio.in_features == 5 * 12 * 768
    assert {
        layer.out_features
        for layer in (
            module.query_audio,
            module.query_movement,
            module.query_expression,
            module.to_k,
            module.to_v,
        )
    } == {256}


def test_the_projection_makes_normed_tokens_of_each_frame_alone(generator: torch.Generator) -> None:
    projection = lively(AudioProjection(AUDIO, WINDOW)).requires_grad_(False)
    windows = speech(generator)
    tokens = projection(windows)
    assert tokens.shape == (1, 3, AUDIO.tokens, AUDIO.token_width)
    assert torch.allclose(tokens[:, 2:], projection(windows[:, 2:]), atol=1e-6)
    plain = (tokens - projection.norm.bias) / projection.norm.weight
    assert plain.mean(-1).abs().max() < 1e-5
    assert (plain.var(-1, unbiased=False) - 1).abs().max() < 0.01
