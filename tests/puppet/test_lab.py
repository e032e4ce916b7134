"""The puppet laboratory: determinism, ranges and geometry, without any training."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("espeakng_loader")

from loopy_model.autoencoder import Autoencoder, AutoencoderConfig
from loopy_model.evaluate.rhythm import blink_interval, blink_onsets, sway_period
from loopy_model.movement import NOSE_TIP, UPPER_FACE, mouth_opening, mouth_width
from loopy_model.puppet import speech
from loopy_model.puppet.clips import SPLITS, draw_clip, draw_frames
from loopy_model.puppet.faces import landmarks, render
from loopy_model.puppet.fit import Recipe, fit
from loopy_model.puppet.identity import draw_identity
from loopy_model.puppet.meter import FaceMeter
from loopy_model.puppet.motion import (
    BLINK,
    BLINK_SHAPE,
    BROW,
    GAZE,
    HEAD_X,
    HEAD_Y,
    MOTION,
    OPEN,
    WIDTH,
    draw_motion,
)
from loopy_model.puppet.train import LATENT_NOISE, decoding_loss, decoding_part, noisy, weighted_error

SMALL = AutoencoderConfig(widths=(8, 8, 16), decoder_blocks=(1, 1, 1))


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


def test_silence_has_a_closed_mouth() -> None:
    said = speech.utterance(random.Random(0), 50, speech.TRAINING_VOICES, silent_share=1)
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


LARGE = 512  # pixels, so that a point is told from its neighbourhood


def test_landmarks_follow_the_head() -> None:
    rest, moved = landmarks(person(), pose()), landmarks(person(), pose(head_x=1.0))
    assert rest.shape == (1, 68, 2)
    assert torch.all(moved[..., 0] > rest[..., 0] + 0.05)
    assert torch.allclose(rest[0, :, 0].mean(), torch.tensor(0.5), atol=1e-3)


def test_an_open_mouth_leaves_the_upper_face_where_it_is() -> None:
    rest, wide = landmarks(person(), pose()), landmarks(person(), pose(open=1.0))
    upper = (NOSE_TIP, *UPPER_FACE)
    assert torch.equal(rest[:, upper], wide[:, upper])
    assert torch.all(wide[0, [8, 57, 66], 1] > rest[0, [8, 57, 66], 1] + 0.01)  # chin and lower lip


def test_landmarks_stand_in_the_ibug_order() -> None:
    """Left is the picture's left; a front view is its own mirror image."""
    points = landmarks(person(), pose(open=0.5))[0]
    x, y = points.unbind(1)
    rows = ([*range(2, 15)], [*range(17, 27)], [*range(31, 36)], [*range(48, 55)], [*range(60, 65)])
    assert all(torch.all(x[row].diff() > 0) for row in rows)
    assert torch.all(y[27:31].diff() > 0) and y[:17].argmax() == 8
    for above, below in ((37, 41), (38, 40), (43, 47), (44, 46), (51, 57), (62, 66), (51, 62), (66, 57)):
        assert y[above] < y[below] and (x[above] - x[below]).abs() < 1e-5
    mirror = [
        *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46,
        39, 38, 37, 36, 41, 40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
    ]  # fmt: skip
    assert torch.allclose(
        points[mirror] * torch.tensor([-1.0, 1]) + torch.tensor([1.0, 0]), points, atol=1e-6
    )


def test_mouth_opening_and_width_are_the_drawn_ones() -> None:
    moves = torch.cat([pose(open=i / 4, width=1 - i / 4, head_x=0.5, tilt=0.1) for i in range(5)])
    points = landmarks(person().expand(5, -1), moves)
    eyes = (points[:, 36] - points[:, 45]).norm(dim=1)
    opening, width = mouth_opening(points) * eyes, mouth_width(points) * eyes
    assert torch.allclose(opening, 0.004 + 0.15 * moves[:, OPEN], atol=1e-6)  # half-axis, half picture
    assert torch.allclose(width, 0.09 + 0.15 * moves[:, WIDTH], atol=1e-6)


def picture(**channels: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A white face with black, short hair on green: (3, LARGE, LARGE), and its points in pixels."""
    face = person()
    face[:, :15] = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0])  # skin .. background
    face[:, 15:18] = torch.tensor([1.0, 0, 0])  # lips
    face[:, 20:22] = 0.0  # hair length and fringe
    motion = pose(**channels)
    return render(face, motion, LARGE)[0], landmarks(face, motion)[0] * LARGE


def colours(image: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(3, S, S) at pixel coordinates (n, 2) -> (n, 3)."""
    column, row = points.long().unbind(-1)
    return image[:, row, column].T


TURNED = dict(head_x=0.8, head_y=-0.5, tilt=0.1)


@pytest.mark.parametrize("channels", [dict(open=1.0), dict(open=0.4, width=1.0, **TURNED)])
def test_the_inner_lips_hold_the_dark_and_the_outer_ones_the_red(channels: dict[str, float]) -> None:
    image, points = picture(**channels)
    inner, outer = points[60:68], points[48:60]
    inside = inner + 0.1 * (inner.mean(0) - inner)
    red, green, blue = colours(image, inside).unbind(1)
    assert torch.all((red < 0.3)[[0, 4, 5, 7]]) and torch.all((green < 0.1)[[0, 4, 5, 7]])
    assert blue[2] > 0.85 and 0.3 < green[6] < 0.4  # teeth and tongue
    between = (inner[[0, 2, 4, 6]] + outer[[0, 3, 6, 9]]) / 2
    red, green, blue = colours(image, between).unbind(1)
    assert torch.all((red > 0.85) & (green < 0.4))  # lips
    red, green, blue = colours(image, outer + 0.1 * (outer - outer.mean(0))).unbind(1)
    assert torch.all(green > 0.5)  # skin


@pytest.mark.parametrize("channels", [dict(), dict(open=1.0), TURNED])
def test_the_jaw_lies_on_the_drawn_outline(channels: dict[str, float]) -> None:
    """The white skin ends there, to the pixel: beyond are the darker ear, hair and neck."""
    image, points = picture(**channels)
    out = points[:17] - points[30]
    out /= out.norm(dim=1, keepdim=True)
    for point, away in zip(points[:17], out):
        step = colours(image, point + torch.arange(-4, 5)[:, None] * away).mean(1).diff().abs()
        assert step[:3].max() < 0.02 and step[3:5].sum() > 0.1


def test_the_brows_and_lids_lie_on_what_is_drawn() -> None:
    image, points = picture(**TURNED)
    assert torch.all(colours(image, points[17:27]).amax(1) < 0.1)  # black as the hair
    for eye in (points[36:42], points[42:48]):
        lids = eye[[1, 2, 4, 5]]
        away = (lids - eye.mean(0)) / (lids - eye.mean(0)).norm(dim=1, keepdim=True)
        assert torch.all(colours(image, lids + 2 * away) < 0.2)  # lashes
        assert torch.all(colours(image, lids - 4 * away).amax(1) > 0.25)  # white or iris


def test_frames_are_bytes() -> None:
    frames = draw_frames(person()[0].numpy(), pose().expand(3, -1).numpy())
    assert frames.shape == (3, 3, 128, 128) and frames.dtype == torch.uint8


@pytest.mark.parametrize("size", [64, 128])
def test_autoencoder_shapes(size: int) -> None:
    network = Autoencoder(SMALL)
    images = torch.rand(2, 3, size, size) * 2 - 1
    latents = network.encode(images)
    assert latents.shape == (2, 32, size // 16, size // 16)
    assert network.decode(latents).shape == images.shape
    with pytest.raises(ValueError, match="multiple of 16"):
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


def test_training_the_decoder_leaves_the_latents_alone() -> None:
    network, faces = Autoencoder(SMALL), render(person().expand(4, -1), _poses(4), 64) * 2 - 1
    network.start_at_principal_components(faces)
    network.normalise_latents(faces)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    half = decoding_part(network)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.SGD(half.parameters(), 0.1)
    decoding_loss(network, faces, generator).backward()
    optimiser.step()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith(("decoder.", "synthesis.")) for name in changed)


def test_noise_is_up_to_a_quarter_of_the_latents_spread() -> None:
    latents = 3 * torch.randn(400, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    added = (noisy(latents, torch.Generator().manual_seed(0)) - latents).flatten(1).std(1) / latents.std()
    assert added.min() < 0.02 and 0.2 < added.max() < LATENT_NOISE * 1.35
    assert added.mean() == pytest.approx(LATENT_NOISE / 2, rel=0.1)


def test_a_wrong_colour_costs_more_than_the_same_error_in_grain() -> None:
    """The decoder's loss looks at mean colours too, which is what shows in flat areas."""

    class Wrong(torch.nn.Module):
        def __init__(self, error: torch.Tensor) -> None:
            super().__init__()
            self.error = error

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 1, 4, 4)

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return self.error

    sign = torch.randint(0, 2, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    blocks = torch.nn.functional.interpolate(sign[..., :4, :4], scale_factor=16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        extra = [
            decoding_loss(Wrong(0.1 * error), torch.zeros(2, 3, 64, 64), generator)
            - weighted_error(0.1 * error)
            for error in (sign, blocks)
        ]
    assert extra[1] == pytest.approx(0.2, rel=1e-3) and extra[0] < extra[1] / 4


def _poses(count: int) -> torch.Tensor:
    return torch.cat([pose(open=i / count, head_x=i / count - 0.5) for i in range(count)])


def test_rhythms_differ_by_person() -> None:
    """Periods of 2 to 5 s, of which four frames are at most 8 %; and these show a head that stays, or that
    turns as everybody's does."""
    visemes = np.tile(np.array([0.0, 0.5], np.float32), (1500, 1))
    people = [draw_motion(random.Random(f"person {i}"), visemes) for i in range(24)]
    blinks = np.array([blink_interval(motion[:, BLINK], speech.FPS) for motion in people])
    sways = np.array([sway_period(motion[:, HEAD_X], speech.FPS) for motion in people])
    assert 1.9 < blinks.min() < 2.8 and 4.2 < blinks.max() < 5.2
    assert np.allclose(blinks, sways, rtol=0.03)
    for motion, mean in zip(people, blinks):
        assert np.ptp(np.diff(blink_onsets(motion[:, BLINK]))) <= 0.08 * mean * speech.FPS + 2
    speeds = np.array([np.abs(np.diff(motion[:, HEAD_X])).max() for motion in people])
    farthest = np.array([np.abs(motion[:, HEAD_X]).max() for motion in people])
    assert np.ptp(speeds) < 0.01 * speeds.mean() and np.ptp(farthest) < 0.03 * farthest.mean()
    assert len(BLINK_SHAPE) < 16  # shorter than the widest gap of the segments: not seen for sure


def test_nods_and_brows_follow_the_voice_by_more_or_less() -> None:
    """The same words, said again and again: how far head and brows go with them changes, and each on its own."""
    word = np.exp(-(np.linspace(-3, 3, 50) ** 2))  # two seconds
    visemes = np.stack([np.tile(word, 40), np.full(2000, 0.5)], 1).astype(np.float32)
    motion = draw_motion(random.Random("lively"), visemes)
    nods, rises = (np.log(np.ptp(motion[:, c].reshape(40, 50), axis=1)) for c in (HEAD_Y, BROW))
    assert np.ptp(nods) > np.log(4) and np.ptp(rises) > np.log(4)
    assert abs(np.corrcoef(nods, rises)[0, 1]) < 0.5
    assert np.corrcoef(motion[:, HEAD_Y], visemes[:, 0])[0, 1] > 0.3
    silent = draw_motion(random.Random("lively"), np.zeros((100, 2), np.float32))
    assert not silent[:, [HEAD_Y, BROW]].any()


def test_eyes_turn_first_and_close_on_the_way_to_the_right() -> None:
    motion = draw_motion(random.Random("somebody"), np.zeros((1500, 2), np.float32))
    head, gaze = np.sign(motion[:, HEAD_X]), np.sign(motion[:, GAZE])
    turns, looks = np.flatnonzero(np.diff(head)), np.flatnonzero(np.diff(gaze))
    right = turns[head[turns] < 0]
    middles = blink_onsets(motion[:, BLINK]) + len(BLINK_SHAPE) / 2 - 2
    inside = [t for t in turns if 10 < t < 1490]
    assert all(np.abs(looks + 4 - t).min() <= 1 for t in inside)
    assert all(np.abs(middles - t).min() <= 1.5 for t in right if 10 < t < 1490)
    assert len(middles) == pytest.approx(len(turns) / 2, abs=1)


def test_the_share_of_one_process_is_every_nth_clip(tmp_path: Path) -> None:
    """Two processes make all clips between them, and the same as one."""
    pytest.importorskip("transformers")
    from loopy_model.puppet.clips import encode_share, write_clips
    from loopy_model.puppet.fit import save_network
    from loopy_model.puppet.pack import pack_encoders
    from loopy_model.speech_encoder import SpeechEncoder

    torch.manual_seed(0)
    autoencoder, encoder = Autoencoder(), SpeechEncoder()
    made: dict[str, list[set[str]]] = {"one": [], "two": []}
    for run, shares in (("one", [(0, 1)]), ("two", [(0, 2), (1, 2)])):
        folder = tmp_path / run
        for split in SPLITS:
            write_clips(folder / "prepared" / split, SPLITS[split], 3, frames=12)
        save_network(autoencoder, folder / "autoencoder.safetensors")
        save_network(encoder, folder / "speech_encoder.safetensors")
        pack_encoders(autoencoder, encoder, folder / "encoders.safetensors", 64)
        for share in shares:
            encode_share(folder, 64, share)
            made[run].append({path.name for path in (folder / "prepared" / "encoded").iterdir()})
    half, both = made["two"]
    assert len(half) == 4 and both == made["one"][0] and len(both) == 6  # clips 0 and 2 of each split first
    for name in both:
        one, two = (load_file(tmp_path / run / "prepared" / "encoded" / name) for run in made)
        assert all(torch.equal(one[key], two[key]) for key in one)


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


def test_a_laboratory_remembers_what_it_was_begun_with(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from loopy_model.puppet.laboratory import Laboratory

    Laboratory(tmp_path, 64, clips=3)
    Laboratory(tmp_path, 64, clips=3, workers=2)  # how many work does not matter
    for other, sentence in (
        ({"size": 128, "clips": 3}, "--size 64, not 128"),
        ({"size": 64}, "--clips 3, not 700"),
    ):
        with pytest.raises(ValueError, match=f"was begun with {sentence}; use that again"):
            Laboratory(tmp_path, **other)


@pytest.mark.parametrize(
    "asked, sentence",
    [
        ("--clips 0", "--clips is 0; give 1 or more"),
        ("--test-clips 0", "--test-clips is 0; give 1 or more"),
        ("--workers 0", "--workers is 0; give 1 or more"),
        ("--threads 0", "--threads is 0; give 1 or more"),
        ("--size 100", "--size is 100; give a multiple of 16, such as 128"),
        ("--size 0", "--size is 0; give a multiple of 16"),
        ("--run-dir FILE/run", "cannot write .*laboratory.json: Not a directory"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, sentence: str
) -> None:
    pytest.importorskip("accelerate")
    from loopy_model.puppet.__main__ import main

    (tmp_path / "file").write_text("")
    asked = f"--run-dir {tmp_path / 'run'} {asked.replace('FILE', str(tmp_path / 'file'))}"
    monkeypatch.setattr("sys.argv", ["puppet", *asked.split()])
    with pytest.raises(SystemExit, match=sentence):
        main()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
