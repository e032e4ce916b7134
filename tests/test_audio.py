"""Voice -> speech features: counting in integers, interpolation, long and short recordings."""

import random
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from torch import Tensor

from loopy_model.audio import (
    CHUNK,
    OVERLAP,
    TOKEN_FIELD,
    TOKEN_HOP,
    align_to_frames,
    frame_count,
    hear,
)
from loopy_model.config import SAMPLE_RATE

RATES = (8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000)


def test_frames_are_the_duration_times_fps_rounded_half_up() -> None:
    draw = random.Random(0)
    for _ in range(5000):
        samples, rate = draw.randrange(10**8), draw.choice(RATES)
        fps = draw.choice([24, 25, 30, 60])
        exact = Fraction(samples, rate) * fps
        assert frame_count(samples, rate, fps) == floor(exact + Fraction(1, 2))


def test_video_and_sound_differ_by_at_most_half_a_frame() -> None:
    draw = random.Random(1)
    for _ in range(5000):
        samples, rate, fps = draw.randrange(10**9), draw.choice(RATES), draw.randrange(1, 121)
        video, sound = Fraction(frame_count(samples, rate, fps), fps), Fraction(samples, rate)
        assert abs(video - sound) <= Fraction(1, 2 * fps)


@pytest.mark.parametrize(
    "samples, frames",
    [
        (0, 0),
        (1, 0),
        (319, 0),
        (320, 1),
        (640, 1),
        (959, 1),
        (960, 2),
        (16_000, 25),
    ],
)
def test_half_a_frame_counts_as_one(samples: int, frames: int) -> None:
    assert frame_count(samples, SAMPLE_RATE, 25) == frames


@pytest.mark.parametrize("fps", [24, 25, 30])
@pytest.mark.parametrize("tokens", [1, 2, 49, 150])
def test_alignment_is_linear_interpolation_at_the_middle_of_each_frame(
    fps: int, tokens: int, generator: torch.Generator
) -> None:
    hidden = torch.randn(2, tokens, 3, generator=generator, dtype=torch.float64)
    frames = round(tokens / 50 * fps) + 3  # some beyond the last token
    aligned = align_to_frames(hidden, frames, fps)
    assert aligned.shape == (frames, 2, 3)
    middles = (np.arange(frames) + 0.5) / fps  # seconds
    heard = (np.arange(tokens) * TOKEN_HOP + TOKEN_FIELD / 2) / SAMPLE_RATE
    for layer in range(2):
        for channel in range(3):
            expected = np.interp(middles, heard, hidden[layer, :, channel].numpy())
            assert np.abs(aligned[:, layer, channel].numpy() - expected).max() < 1e-10


def test_tokens_are_those_of_wav2vec() -> None:
    """Its feature encoder has kernels 10 3 3 3 3 2 2 and strides 5 2 2 2 2 2 2."""
    field, hop = 1, 1
    for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)):
        field += (kernel - 1) * hop
        hop *= stride
    assert (field, hop) == (TOKEN_FIELD, TOKEN_HOP)


def local(waveform: Tensor) -> Tensor:
    """An encoder whose tokens depend on their own 400 samples alone, (2, T, 1)."""
    pieces = waveform.double().unfold(0, TOKEN_FIELD, TOKEN_HOP)
    return torch.stack([pieces.mean(1), pieces.square().mean(1)])[..., None]


LENGTHS = [
    CHUNK,
    CHUNK + 1,
    CHUNK + 79,
    CHUNK + 80,
    CHUNK + 399,
    CHUNK + 400,
    CHUNK + 12_345,
    CHUNK + OVERLAP,
    CHUNK + OVERLAP + 1,
    2 * CHUNK - 1,
    2 * CHUNK,
    2 * CHUNK + 5,
    2 * CHUNK + OVERLAP,
    3 * CHUNK + 777,
]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_long_recording_is_heard_as_if_in_one_piece(length: int) -> None:
    waveform = torch.randn(length, generator=torch.Generator().manual_seed(0))
    frames = frame_count(length, SAMPLE_RATE, 25)
    speech = hear(waveform, local, 25)
    assert len(speech) == frames and speech.fps == 25
    assert torch.equal(speech.features, align_to_frames(local(waveform).float(), frames, 25))


@pytest.mark.parametrize("block", [777, SAMPLE_RATE, 5 * CHUNK])
@pytest.mark.parametrize("length", [0, 1, CHUNK, CHUNK + OVERLAP + 1, 3 * CHUNK + 777])
def test_a_voice_that_comes_in_blocks_is_heard_as_the_whole(length: int, block: int) -> None:
    waveform = torch.randn(length, generator=torch.Generator().manual_seed(0))
    whole, parts = hear(waveform, local, 25), hear(iter(waveform.split(block)), local, 25)
    assert torch.equal(parts.features, whole.features)


@pytest.mark.parametrize("fps", [24, 25, 30, 60, 120])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_frame_is_heard_once(length: int, fps: int) -> None:
    waveform = torch.linspace(0, 1, length)
    speech = hear(waveform, local, fps)
    assert len(speech) == frame_count(length, SAMPLE_RATE, fps)
    assert (speech.features[:, 0, 0].diff() >= 0).all()


@pytest.mark.parametrize("rest, pieces", [(1, 3), (OVERLAP, 3), (OVERLAP + 1, 4), (CHUNK, 4)])
def test_no_piece_is_longer_than_a_chunk_with_its_context(rest: int, pieces: int) -> None:
    lengths: list[int] = []

    def encode(waveform: Tensor) -> Tensor:
        lengths.append(len(waveform))
        return local(waveform)

    hear(torch.zeros(3 * CHUNK + rest), encode, 25)
    assert max(lengths) <= CHUNK + 2 * OVERLAP
    assert len(lengths) == pieces


def test_context_reaches_over_the_border_of_a_piece() -> None:
    """An encoder that hears 2 s around each token gives the same features in pieces."""

    def wide(waveform: Tensor) -> Tensor:
        tokens = local(waveform)[:1]
        return torch.nn.functional.avg_pool1d(
            tokens.transpose(1, 2), 101, 1, 50, count_include_pad=False
        ).transpose(1, 2)

    waveform = torch.randn(2 * CHUNK + 999, generator=torch.Generator().manual_seed(0))
    whole = align_to_frames(wide(waveform).float(), frame_count(len(waveform), SAMPLE_RATE, 25), 25)
    assert torch.allclose(hear(waveform, wide, 25).features, whole, atol=1e-6)


@pytest.mark.parametrize(
    "samples, frames",
    [
        (0, 0),
        (1, 0),
        (320, 1),
        (399, 1),
        (400, 1),
        (1000, 2),
    ],
)
def test_short_recordings_are_padded_with_silence(samples: int, frames: int) -> None:
    speech = hear(torch.ones(samples), local, 25)
    assert speech.features.shape == (frames, 2, 1)
    assert torch.isfinite(speech.features).all()
    if frames and samples < TOKEN_FIELD:
        assert speech.features[0, 0, 0].item() == pytest.approx(samples / TOKEN_FIELD)


def test_silence_is_heard_as_silence() -> None:
    speech = hear(torch.zeros(SAMPLE_RATE), local, 25)
    assert len(speech) == 25 and not speech.features.any()


def test_a_sound_is_heard_in_the_frame_in_which_it_is_made() -> None:
    for frame in (3, 12, 40):
        waveform = torch.zeros(2 * SAMPLE_RATE)
        waveform[640 * frame : 640 * (frame + 1)] = 1.0
        loudness = hear(waveform, local, 25).features[:, 1, 0]
        assert loudness.argmax() == frame
        assert not loudness[: frame - 1].any() and not loudness[frame + 2 :].any()


def test_the_bundled_speech_encoder_hears_the_same_number_of_tokens() -> None:
    pytest.importorskip("transformers")
    from loopy_model.speech_encoder import SpeechEncoder

    torch.manual_seed(0)
    encoder = SpeechEncoder().eval()
    for samples in (400, 719, 720, 4_000):
        waveform = torch.randn(samples) * 0.1
        with torch.no_grad():
            hidden = encoder(waveform[None])[0]
        assert hidden.shape[1] == local(waveform).shape[1]
