"""The puppet laboratory: determinism, ranges and geometry, without any training."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("espeakng_loader")

from loopy_model.autoencoder import Autoencoder, AutoencoderConfig
from loopy_model.puppet import speech
from loopy_model.puppet.clips import SPLITS, draw_clip, draw_frames
from loopy_model.puppet.faces import landmarks, render
from loopy_model.puppet.fit import Recipe, fit
from loopy_model.puppet.identity import draw_identity
from loopy_model.puppet.meter import FaceMeter
from loopy_model.puppet.motion import BLINK, MOTION, OPEN, WIDTH, draw_motion

SMALL = AutoencoderConfig(width=16, decoder_blocks=1)


def person(seed: int = 0) -> torch.Tensor:
    return torch.tensor(draw_identity(random.Random(seed)))[None]


def pose(**channels: float) -> torch.Tensor:
    values = {"width": 0.5, **channels}
    return torch.tensor([[values.get(name, 0.0) for name in MOTION]])


def test_clip_is_a_function_of_its_seed() -> None:
    first = draw_clip(7, 30, speech.TRAINING_VOICES)
    draw_clip(8, 30, speech.TRAINING_VOICES)  # must leave no trace
    again = draw_clip(7, 30, speech.TRAINING_VOICES)
    for name in ("identity", "motion", "waveform"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
    assert not np.array_equal(first.identity, draw_clip(8, 30, speech.TRAINING_VOICES).identity)


@pytest.mark.parametrize("frames", [25, 60])
def test_speech_has_exactly_the_samples_of_its_frames(frames: int) -> None:
    said = speech.utterance(random.Random(3), frames, speech.TRAINING_VOICES)
    assert said.waveform.shape == (frames * 640,) and said.waveform.dtype == np.float32
    assert said.visemes.shape == (frames, 2)
    assert 0 <= said.visemes.min() and said.visemes.max() <= 1
    assert np.abs(said.waveform).max() <= 1


def test_silence_has_a_closed_mouth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "SILENT_SHARE", 1.0)
    said = speech.utterance(random.Random(0), 50, speech.TRAINING_VOICES)
    assert np.all(said.visemes[:, 0] == 0) and said.waveform.std() < 0.01


def test_mouth_follows_the_phonemes_in_time() -> None:
    track = speech.mouth_track([(0.0, "_"), (1.0, "A:"), (2.0, "_")], 75)
    assert track[20, 0] < 0.01 and track[37, 0] > 0.99 and track[60, 0] < 0.01
    assert track[24, 0] < 0.5 < track[25, 0]  # the mouth opens at 1.0 s, between two middles


def test_splits_share_no_voice_and_no_seed() -> None:
    train, test = SPLITS["train"], SPLITS["test"]
    assert not set(train.voices) & set(test.voices) and len(test.voices) >= 3
    assert not set(train.seeds(100_000)) & set(test.seeds(100_000))


def test_every_voice_exists() -> None:
    with speech.Synthesiser() as machine:
        for voice in speech.TRAINING_VOICES + speech.HELD_OUT_VOICES:
            samples, phonemes = machine.say("hello", voice, 150, 50)
            assert len(samples) > 1000 and len(phonemes) > 3, voice


def test_motion_stays_in_range_and_blinks() -> None:
    visemes = np.tile(np.array([0.5, 0.5], np.float32), (200, 1))
    motion = draw_motion(random.Random(1), visemes)
    assert motion.shape == (200, len(MOTION)) and np.abs(motion).max() <= 1.5
    assert motion[:, BLINK].max() == 1 and np.allclose(motion[:, [OPEN, WIDTH]], visemes)


def test_open_mouth_has_more_dark_pixels() -> None:
    fair = person()
    fair[:, :3] = 0.9  # the skin
    images = [render(fair, pose(open=value), 64) for value in (0.0, 0.3, 0.6, 1.0)]
    dark = [int((image[0, :, 34:56, 22:42].amax(0) < 0.35).sum()) for image in images]
    assert dark == sorted(dark) and dark[-1] > dark[0] + 20


def test_wide_mouth_is_wider() -> None:
    narrow = render(person(), pose(open=0.6, width=0.0), 64)

    def lips(width: float) -> int:
        changed = render(person(), pose(open=0.6, width=width), 64) - narrow
        return int(changed.abs().sum(1).gt(0.1).sum())

    assert lips(0.0) == 0 and lips(1.0) > lips(0.5) > 10


def test_rendering_does_not_depend_on_the_batch() -> None:
    people = torch.cat([person(0), person(1)])
    poses = torch.cat([pose(), pose(open=1.0, head_x=-1.0)])
    together = render(people, poses, 64)
    assert together.shape == (2, 3, 64, 64) and 0 <= together.min() and together.max() <= 1
    assert torch.allclose(together[1:], render(people[1:], poses[1:], 64))


def test_the_picture_is_the_same_at_any_size() -> None:
    large = torch.nn.functional.avg_pool2d(render(person(), pose(open=0.5), 256), 4)
    assert (large - render(person(), pose(open=0.5), 64)).abs().mean() < 0.01


def test_landmarks_follow_the_head() -> None:
    rest, moved = landmarks(person(), pose()), landmarks(person(), pose(head_x=1.0))
    assert rest.shape == (1, 38, 2)
    assert torch.all(moved[..., 0] > rest[..., 0] + 0.05)
    assert torch.equal(rest, landmarks(person(), pose(open=1.0)))  # the upper face only
    assert torch.allclose(rest[0, :, 0].mean(), torch.tensor(0.5), atol=1e-3)


def test_frames_are_bytes() -> None:
    frames = draw_frames(person()[0].numpy(), pose().expand(3, -1).numpy())
    assert frames.shape == (3, 3, 64, 64) and frames.dtype == torch.uint8


@pytest.mark.parametrize("size", [64, 96])
def test_autoencoder_shapes(size: int) -> None:
    network = Autoencoder(SMALL)
    images = torch.rand(2, 3, size, size) * 2 - 1
    latents = network.encode(images)
    assert latents.shape == (2, 16, size // 8, size // 8)
    assert network.decode(latents).shape == images.shape
    with pytest.raises(ValueError, match="multiple of 8"):
        network.encode(images[..., :-1])


def test_autoencoder_starts_as_principal_components() -> None:
    network, faces = Autoencoder(SMALL), render(person().expand(8, -1), _poses(8), 64) * 2 - 1
    network.start_at_principal_components(faces)
    network.normalise_latents(faces)
    with torch.no_grad():
        latents = network.encode(faces)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert float(latents.var((0, 2, 3)).mean()) == pytest.approx(1.0, abs=0.01)
    assert (network.decode(latents) - faces).abs().mean() < 0.1


def _poses(count: int) -> torch.Tensor:
    return torch.cat([pose(open=i / count, head_x=i / count - 0.5) for i in range(count)])


def test_speech_encoder_gives_all_hidden_states() -> None:
    pytest.importorskip("transformers")
    from loopy_model.speech_encoder import SpeechEncoder

    encoder = SpeechEncoder()
    hidden = encoder(torch.randn(2, 16_000) * 0.1)
    assert hidden.shape == (2, encoder.layers, 49, encoder.width) == (2, 5, 49, 64)
    names = encoder.state_dict()
    assert not any("parametrizations" in name or "weight_g" in name for name in names)


def test_meter_is_small_and_takes_any_size() -> None:
    meter = FaceMeter()
    assert sum(p.numel() for p in meter.parameters()) <= 150_000
    assert meter(torch.rand(2, 3, 128, 128)).shape == (2, len(MOTION))


def test_interrupted_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    def train(path: Path, recipe: Recipe, stop: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        layer, calls = torch.nn.Linear(3, 1), iter(range(100))

        def loss_of(generator: torch.Generator) -> torch.Tensor:
            if next(calls) == stop:
                raise KeyboardInterrupt
            return layer(torch.randn(4, 3, generator=generator)).square().mean()

        fit(layer, loss_of, dict, recipe, path)
        return layer.weight.detach()

    recipe = Recipe(steps=6, batch=4, rate=0.1, warmup=1, report_every=2)
    whole = train(tmp_path / "whole", recipe)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", recipe, stop=3)
    assert torch.equal(whole, train(tmp_path / "parts", recipe))
