"""Inter- and intra-clip layers and audio cross-attention (paper 3.2, 3.3) against the textbook."""

from dataclasses import replace

import pytest
import torch
from oracles import attention, lively
from torch import Tensor, nn
from torch.nn import functional as nnf

from loopy_model.conditions import KeyValue
from loopy_model.config import TINY
from loopy_model.temporal import AudioAttention, InterClipLayer, IntraClipLayer, JointLayer, sinusoids

CHANNELS, FRAMES, AGES = 8, 3, (0, 1, 4)
UNET = TINY.unet


@pytest.fixture
def inter() -> InterClipLayer:
    return lively(InterClipLayer(CHANNELS, UNET, FRAMES, AGES)).requires_grad_(False)


@pytest.fixture
def intra() -> IntraClipLayer:
    return lively(IntraClipLayer(CHANNELS, UNET, FRAMES)).requires_grad_(False)


def picture(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, CHANNELS, 2, 3, generator=generator)


def textbook_inter(layer: InterClipLayer, x: Tensor, past: Tensor) -> Tensor:
    """Paper 3.2: concatenate along time, add embeddings, attend at each pixel, keep the clip.

    `x` (F, C, H, W) and `past` (M, C, H, W) of one clip.
    """
    inner, t = layer.attentions[0], layer.attentions[0].attn
    both = layer.proj_in(layer.norm(torch.cat([past, x])).permute(2, 3, 0, 1))  # (H, W, M+F, C)
    out = torch.empty_like(x)
    for row, column in torch.cartesian_prod(torch.arange(x.shape[2]), torch.arange(x.shape[3])):
        h = both[row, column]
        read = inner.norm(h) + inner.positions
        answer = attention(t.to_q(read), t.to_k(read), t.to_v(read), UNET.heads)
        h = (h + t.to_out[0](answer))[len(past) :]  # only the current clip's frames leave
        h = layer.proj_out(h + layer.ff(layer.ff_norm(h)))
        out[:, :, row, column] = x[:, :, row, column] + h
    return out


def test_motion_frames_and_clip_attend_along_time_and_only_the_clip_leaves(
    inter: InterClipLayer, generator: torch.Generator
) -> None:
    x, past = picture(2 * FRAMES, generator=generator), picture(2, len(AGES), generator=generator)
    out = inter(x, FRAMES, inter.keys_values(past))
    assert out.shape == x.shape
    for clip in range(2):
        own = slice(clip * FRAMES, (clip + 1) * FRAMES)
        assert torch.allclose(out[own], textbook_inter(inter, x[own], past[clip]), atol=1e-5)


def test_a_clip_without_motion_frames_attends_to_itself_alone(
    inter: InterClipLayer, generator: torch.Generator
) -> None:
    x, past = picture(2 * FRAMES, generator=generator), picture(2, len(AGES), generator=generator)
    kept = inter(x, FRAMES, inter.keys_values(past, keep=torch.tensor([True, False])))
    everything = inter(x, FRAMES, inter.keys_values(past))
    nothing = inter(x, FRAMES, None)
    assert torch.allclose(kept[:FRAMES], everything[:FRAMES], atol=1e-6)
    assert torch.allclose(kept[FRAMES:], nothing[FRAMES:], atol=1e-6)
    assert (everything - nothing).abs().max() > 0.01


def test_an_all_zero_motion_frame_is_not_the_same_as_none(
    inter: InterClipLayer, generator: torch.Generator
) -> None:
    x, zeros = picture(FRAMES, generator=generator), torch.zeros(1, len(AGES), CHANNELS, 2, 3)
    masked = inter(x, FRAMES, inter.keys_values(zeros))
    assert torch.allclose(masked, textbook_inter(inter, x, zeros[0]), atol=1e-5)
    assert (masked - inter(x, FRAMES, None)).abs().max() > 1e-3


def test_a_joint_layer_of_one_attention_is_an_inter_clip_layer(
    inter: InterClipLayer, generator: torch.Generator
) -> None:
    joint = JointLayer(CHANNELS, UNET, FRAMES, AGES).requires_grad_(False)
    joint.load_state_dict(inter.state_dict())
    x, past = picture(2 * FRAMES, generator=generator), picture(2, len(AGES), generator=generator)
    expected = inter(x, FRAMES, inter.keys_values(past))
    assert torch.equal(joint(x, FRAMES, joint.keys_values(past)), expected)


def test_a_joint_layer_sees_the_past_in_its_first_attention(generator: torch.Generator) -> None:
    joint = lively(JointLayer(CHANNELS, replace(UNET, intra_attentions=2), FRAMES, AGES))
    assert [len(a.positions) for a in joint.attentions] == [len(AGES) + FRAMES, FRAMES]
    x, past = picture(FRAMES, generator=generator), picture(1, len(AGES), generator=generator)
    given: list = []
    for layer in joint.attentions:
        layer.register_forward_pre_hook(lambda _, args: given.append(args[1]))
    made = joint.keys_values(past)
    joint(x, FRAMES, made).square().sum().backward()
    assert given == [made, None]
    assert all(p.grad is not None and p.grad.any() for p in joint.parameters())
    assert all(p.grad.flatten(1).any(1).all() for n, p in joint.named_parameters() if "positions" in n)


def test_the_intra_clip_layer_sees_its_own_clip_alone(
    intra: IntraClipLayer, generator: torch.Generator
) -> None:
    x = picture(2 * FRAMES, generator=generator)
    other = x.clone()
    other[FRAMES:] = picture(FRAMES, generator=generator)
    assert torch.equal(intra(x, FRAMES)[:FRAMES], intra(other, FRAMES)[:FRAMES])
    changed = x.clone()
    changed[0] += picture(1, generator=generator)[0]
    assert ((intra(x, FRAMES) - intra(changed, FRAMES))[2].abs().max()) > 1e-3


def test_temporal_layers_attend_at_each_pixel_and_never_across(
    inter: InterClipLayer, generator: torch.Generator
) -> None:
    inter.norm = nn.Identity()  # the group norm is over the picture
    x, past = picture(FRAMES, generator=generator), picture(1, len(AGES), generator=generator)
    out = inter(x, FRAMES, inter.keys_values(past))
    x[..., 1, 2] += picture(FRAMES, generator=generator)[..., 1, 2]
    past[..., 1, 2] += picture(1, len(AGES), generator=generator)[..., 1, 2]
    changed = (inter(x, FRAMES, inter.keys_values(past)) - out).abs().amax((0, 1))
    assert changed[1, 2] > 0.1
    changed[1, 2] = 0
    assert changed.max() < 1e-6


def test_temporal_embeddings_start_as_sinusoids_of_the_true_frame_time() -> None:
    inter = InterClipLayer(CHANNELS, UNET, FRAMES, AGES)
    times = [-1, -2, -5, 0, 1, 2]  # motion frames of age 0, 1, 4; then the clip
    assert torch.equal(inter.attentions[0].positions.data, sinusoids(times, CHANNELS))
    intra = IntraClipLayer(CHANNELS, UNET, FRAMES)
    assert torch.equal(intra.attentions[0].positions.data, sinusoids([0, 1, 2], CHANNELS))


def test_sinusoids_have_wavelengths_from_4_to_300_frames() -> None:
    waves = sinusoids([0, 1, 4, 300], 8)
    assert waves.shape == (4, 8)
    assert torch.allclose(waves[0], torch.tensor([0.0] * 4 + [1.0] * 4), atol=1e-6)
    assert torch.allclose(waves[1, [0, 4]], torch.tensor([1.0, 0.0]), atol=1e-6)  # a quarter of 4
    assert torch.allclose(waves[2, [0, 4]], torch.tensor([0.0, 1.0]), atol=1e-5)  # all of it
    assert torch.allclose(waves[3, [3, 7]], torch.tensor([0.0, 1.0]), atol=1e-4)


def test_another_number_of_motion_frames_is_refused(
    inter: InterClipLayer, generator: torch.Generator
) -> None:
    with pytest.raises(ValueError, match="2 motion frames given, the model has 3"):
        inter.keys_values(picture(1, 2, generator=generator))


@pytest.mark.parametrize(
    "layer",
    [
        InterClipLayer(CHANNELS, UNET, FRAMES, AGES),
        IntraClipLayer(CHANNELS, UNET, FRAMES),
        JointLayer(CHANNELS, UNET, FRAMES, AGES),
    ],
)
def test_fresh_temporal_layers_are_silent(
    layer: InterClipLayer | IntraClipLayer, generator: torch.Generator
) -> None:
    x = picture(FRAMES, generator=generator)
    assert torch.equal(layer(x, FRAMES), x)


def test_linear_layers_are_given_frames_that_lie_in_a_row(
    inter: InterClipLayer, generator: torch.Generator
) -> None:
    """A view with gaps would be multiplied pixel by pixel."""
    x, past = picture(FRAMES, generator=generator), picture(1, len(AGES), generator=generator)
    given: list[Tensor] = []
    inter.proj_in.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    inter(x, FRAMES, inter.keys_values(past))
    assert [h.is_contiguous() for h in given] == [True, True]


@pytest.fixture
def audio() -> AudioAttention:
    return lively(AudioAttention(CHANNELS, UNET, TINY.audio.token_width)).requires_grad_(False)


def hear(layer: AudioAttention, tokens: Tensor) -> KeyValue:
    return layer.attn.keys_values(tokens)


def test_each_frame_listens_to_its_own_tokens(audio: AudioAttention, generator: torch.Generator) -> None:
    x, tokens = picture(2, generator=generator), torch.randn(2, 5, 8, generator=generator)
    out = audio(x, hear(audio, tokens))
    for i in range(2):
        q = audio.attn.to_q(audio.norm(x[i].flatten(1).T))
        k, v = audio.attn.to_k(tokens[i]), audio.attn.to_v(tokens[i])
        expected = audio.attn.to_out[0](attention(q, k, v, UNET.heads))
        assert torch.allclose(out[i].flatten(1).T, expected, atol=1e-6)


def test_no_speech_is_what_all_zero_tokens_give(audio: AudioAttention, generator: torch.Generator) -> None:
    x = picture(2, generator=generator)
    zeros = audio(x, hear(audio, torch.zeros(2, 5, 8)))
    assert torch.allclose(audio(x, None).expand_as(x), zeros, atol=1e-7)
    assert zeros.abs().max() > 0.01  # the trained output bias is not dropped


def test_rows_after_the_last_with_speech_hear_silence(
    audio: AudioAttention, generator: torch.Generator
) -> None:
    x, tokens = picture(4, generator=generator), torch.randn(2, 5, 8, generator=generator)
    out, speech = audio(x, hear(audio, tokens)), hear(audio, tokens)
    assert torch.allclose(out[:2], audio(x[:2], speech), atol=1e-6)
    assert torch.equal(out[2:], audio(x[2:], None).expand_as(x[2:]))


def test_fresh_audio_attention_is_silent(generator: torch.Generator) -> None:
    fresh = AudioAttention(CHANNELS, UNET, 8)
    x, tokens = picture(2, generator=generator), torch.randn(2, 5, 8, generator=generator)
    assert not fresh(x, hear(fresh, tokens)).any() and not fresh(x, None).any()
    assert nnf.mse_loss(x + fresh(x, None), x) == 0
