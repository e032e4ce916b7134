"""Data, learning rate, and a training run that can be stopped at any step."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from loopy_model.conditions import Speech
from loopy_model.config import LOOPY, TINY
from loopy_model.model import Loopy
from loopy_model.movement import exp, glo, score
from loopy_model.train.data import PreparedClips
from loopy_model.train.loop import Trainer, learning_rate_factor
from loopy_model.train.stages import RECIPES, STAGE_ONE, Recipe, Stage

CLIP = TINY.clip
VIDEOS, FRAMES, POINTS = 3, 24, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small prepared clips of random numbers."""
    path, rng = tmp_path_factory.mktemp("prepared"), np.random.default_rng(0)
    shapes = {"latents": (4, 4, 4), "speech": (4, TINY.audio.width), "landmarks": (POINTS, 2)}
    for name, shape in shapes.items():
        dtype = np.float32 if name == "landmarks" else np.float16
        np.save(path / f"{name}.npy", rng.random((VIDEOS, FRAMES, *shape)).astype(dtype))
    return path


@pytest.fixture(scope="module")
def clips(folder: Path) -> PreparedClips:
    return PreparedClips(folder, TINY)


# --- data ---------------------------------------------------------------------------------------


def numbered(folder: Path) -> PreparedClips:
    """Latents that say 100 * video + frame."""
    names = 100 * np.arange(VIDEOS)[:, None] + np.arange(FRAMES)
    np.save(
        folder / "latents.npy",
        np.broadcast_to(names[..., None, None, None], (VIDEOS, FRAMES, 4, 2, 2)).astype(np.float16),
    )
    np.save(
        folder / "speech.npy",
        np.broadcast_to(names[..., None, None], (VIDEOS, FRAMES, 4, TINY.audio.width)).astype(np.float16),
    )
    np.save(folder / "landmarks.npy", np.zeros((VIDEOS, FRAMES, POINTS, 2), np.float32))
    return PreparedClips(folder, TINY)


def frames_of(latents: Tensor) -> list:
    return latents[..., 0, 0, 0].tolist()


def test_a_batch_is_consecutive_frames_with_their_motion_frames_and_speech(tmp_path: Path) -> None:
    clips = numbered(tmp_path)  # TINY: motion frames of age 0 1 2 4
    batch = clips.batch(np.array([2, 0]), np.array([10, 3]), np.array([23, 1]), 4)
    assert frames_of(batch.clip) == [[210, 211, 212, 213], [3, 4, 5, 6]]
    assert frames_of(batch.reference) == [223, 1]
    assert frames_of(batch.motion) == [[209, 208, 207, 205], [2, 1, 0, 0]]
    assert batch.present.tolist() == [[True] * 4, [True, True, True, False]]
    assert not batch.motion[1, 3].any()
    assert batch.windows[0, 0, :, 0, 0].tolist() == [208, 209, 210, 211, 212]
    assert batch.clip.dtype == batch.windows.dtype == torch.float32


def test_the_first_clip_of_a_video_has_no_motion_frames(tmp_path: Path) -> None:
    batch = numbered(tmp_path).batch(np.array([1]), np.array([0]), np.array([5]), 4)
    assert not batch.present.any() and not batch.motion.any()


@pytest.mark.parametrize("start", [0, 1, 9, FRAMES - 4])
def test_speech_windows_are_those_of_inference(clips: PreparedClips, start: int) -> None:
    layers = TINY.audio.layers
    batch = clips.batch(np.array([1]), np.array([start]), np.array([0]), 4)
    speech = Speech(torch.from_numpy(clips.speech[1].astype(np.float32)), 25)
    assert torch.equal(batch.windows, speech.windows(start, 4, CLIP.audio_context, layers))


def test_movement_and_expression_are_those_of_the_current_clip(clips: PreparedClips) -> None:
    batch = clips.batch(np.array([0, 2]), np.array([3, 7]), np.array([0, 0]), 4)
    for i, (video, start) in enumerate(((0, 3), (2, 7))):
        landmarks = torch.from_numpy(clips.landmarks[video, start : start + 4].copy())
        assert batch.movement[i].item() == pytest.approx(score(glo(landmarks)).item(), rel=1e-5)
        assert batch.expression[i].item() == pytest.approx(score(exp(landmarks)).item(), rel=1e-5)


def test_latents_are_scaled_for_the_model(folder: Path) -> None:
    configs = (replace(TINY, latent_scale=scale) for scale in (1.0, 0.18215))
    a, b = (PreparedClips(folder, c).draw(2, 4, np.random.default_rng(0)) for c in configs)
    for name in ("clip", "reference", "motion"):
        assert torch.allclose(getattr(a, name) * 0.18215, getattr(b, name))


@pytest.mark.parametrize("frames", [1, 4])
def test_draws_reach_every_clip_and_are_a_function_of_the_generator(tmp_path: Path, frames: int) -> None:
    clips = numbered(tmp_path)
    batch = clips.draw(2000, frames, np.random.default_rng(1))
    starts = batch.clip[:, 0, 0, 0, 0] % 100
    assert set(starts.tolist()) == set(range(FRAMES - frames + 1))
    assert set((batch.reference[:, 0, 0, 0] % 100).tolist()) == set(range(FRAMES))
    assert torch.equal(batch.clip[:, 0, 0, 0, 0] // 100, batch.reference[:, 0, 0, 0] // 100)
    again = clips.draw(2000, frames, np.random.default_rng(1))
    assert torch.equal(batch.clip, again.clip) and torch.equal(batch.reference, again.reference)
    assert torch.isfinite(batch.movement).all() and torch.isfinite(batch.expression).all()


def test_clips_of_another_vae_are_refused(folder: Path) -> None:
    other = replace(TINY, unet=replace(TINY.unet, latent_channels=16))
    with pytest.raises(ValueError, match="has 4 channels, the model 16"):
        PreparedClips(folder, other)


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="latents.npy is missing"):
        PreparedClips(tmp_path, TINY)


# --- learning rate ------------------------------------------------------------------------------


def test_the_learning_rate_rises_stays_and_falls_by_half_a_cosine() -> None:
    stage = Stage(
        "x", steps=100, batch=1, learning_rate=1.0, spatial_only=True, warmup=10, constant=0.5, final=0.2
    )
    by_hand = {
        0: 0.1,
        4: 0.5,
        9: 1.0,
        10: 1.0,
        50: 1.0,  # warm-up, then constant
        75: 0.2 + 0.8 * 0.5,  # half of the fall
        100: 0.2,
    }
    for step, factor in by_hand.items():
        assert learning_rate_factor(stage, step) == pytest.approx(factor), step
    quarter = 0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5))  # 62.5: a quarter of the fall
    assert learning_rate_factor(replace(stage, steps=200), 125) == pytest.approx(quarter)


def test_the_papers_learning_rate_is_constant() -> None:
    assert {learning_rate_factor(STAGE_ONE, step) for step in range(50, 30_000, 97)} == {1.0}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("number", [0, 1])
def test_learning_rates_stay_positive_and_end_at_their_share(recipe: str, number: int) -> None:
    stage = RECIPES[recipe].stages[number]
    factors = [learning_rate_factor(stage, step) for step in range(stage.steps)]
    assert 0 < min(factors) and max(factors) == 1.0
    if stage.constant < 1:
        assert factors[-1] == pytest.approx(stage.final, abs=1e-3)


# --- the loop -----------------------------------------------------------------------------------

SMALL = Recipe(
    "small",
    TINY,
    (
        Stage("one", 3, 1, 1e-3, True, warmup=2),
        Stage("two", 4, 1, 1e-3, False, warmup=2, constant=0.5),
    ),
    ema_decay=0.9,
)


class Stopped(Exception):
    pass


class StoppableTrainer(Trainer):
    """Ends the run before step `stop[1]` of stage `stop[0]`, like a kill."""

    stop: tuple[int, int] | None = None

    def _train_step(self, *args) -> tuple[float, float]:  # noqa: ANN002
        if (self.stage_index, self.step) == self.stop:
            raise Stopped
        return super()._train_step(*args)


def train(clips: PreparedClips, run_dir: Path, stop: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """All weights at the end of the run, or where it stopped."""
    trainer = StoppableTrainer(SMALL, run_dir, clips, clips, save_every=2)
    trainer.stop = stop
    if stop is None:
        trainer.run()
    else:
        with pytest.raises(Stopped):
            trainer.run()
    return weights(trainer)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": tensor.clone()
        for name, net in (("model", trainer.model), ("ema", trainer.ema))
        for key, tensor in net.state_dict().items()
    }


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {key for key, tensor in one.items() if not torch.equal(tensor, other[key])}


@pytest.fixture(scope="module", autouse=True)
def few_validation_clips() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loopy_model.train.loop.VALIDATION_CLIPS", 1)
        yield


@pytest.fixture(scope="module")
def finished(clips: PreparedClips, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run that was never stopped: its directory and its weights."""
    path = tmp_path_factory.mktemp("run")
    return path, train(clips, path)


# In stage one after a save; at the border of the stages; in stage two, a step after a save.
@pytest.mark.parametrize("stop", [(0, 2), (1, 0), (1, 3)])
def test_a_run_that_was_stopped_ends_in_the_same_weights(
    clips: PreparedClips, finished: tuple[Path, dict], tmp_path: Path, stop: tuple[int, int]
) -> None:
    half = train(clips, tmp_path, stop)
    assert different(half, finished[1])
    torch.manual_seed(123)  # the global generator has no part in what follows
    assert not different(train(clips, tmp_path), finished[1])


def test_a_finished_run_has_nothing_left_to_do(clips: PreparedClips, finished: tuple[Path, dict]) -> None:
    path, before = finished
    log = (path / "log.jsonl").read_text()
    assert not different(train(clips, path), before)
    assert (path / "log.jsonl").read_text() == log


def test_the_run_directory_explains_itself(finished: tuple[Path, dict]) -> None:
    path, _ = finished
    assert json.loads((path / "recipe.json").read_text())["name"] == "small"
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    steps = [(line["stage"], line["step"]) for line in lines if "loss" in line]
    assert steps == [("one", i) for i in (1, 2, 3)] + [("two", i) for i in (1, 2, 3, 4)]
    assert all(math.isfinite(line.get("loss", line.get("validation"))) for line in lines)
    checks = [(line["stage"], line["step"]) for line in lines if "validation" in line]
    assert checks == [("one", 2), ("one", 3), ("two", 2), ("two", 4)]
    assert not list(path.glob("*.partial"))


def test_another_seed_draws_other_clips_noise_and_first_weights(clips: PreparedClips, tmp_path: Path) -> None:
    losses = set()
    for seed in (0, 1):
        trainer = Trainer(replace(SMALL, seed=seed), tmp_path / str(seed), clips, clips)
        losses.add(trainer.validate(SMALL.stages[1]))
    assert len(losses) == 2


def test_stage_one_leaves_the_new_layers_untouched(clips: PreparedClips, tmp_path: Path) -> None:
    torch.manual_seed(SMALL.seed)
    fresh = {f"model.{key}": tensor for key, tensor in Loopy(TINY).state_dict().items()}
    stage_one = train(clips, tmp_path, stop=(1, 0))
    after = {key: tensor for key, tensor in stage_one.items() if key.startswith("model.")}
    new = ("inter_modules", "audio_modules", "intra_modules", "audio_")
    changed = different(after, fresh)
    assert not [key for key in changed if any(part in key for part in new)]
    assert "model.reference_unet.conv_in.weight" in changed
    assert "model.denoising_unet.conv_in.weight" in changed


def test_validation_is_repeatable_and_leaves_no_trace(clips: PreparedClips, tmp_path: Path) -> None:
    trainer = Trainer(SMALL, tmp_path, clips, clips)
    before = weights(trainer)
    assert trainer.validate(SMALL.stages[1]) == trainer.validate(SMALL.stages[1])
    assert not different(weights(trainer), before)


def test_the_average_follows_the_weights_with_a_memory_that_grows_to_the_decay() -> None:
    from loopy_model.train.loop import _warm_average

    average, value = _warm_average(0.9), [torch.zeros(1)]
    expected = 0.0
    for n in (1, 5, 20, 100, 400):
        average(value, [torch.ones(1)], torch.tensor(n))
        decay = min(0.9, n / (n + 20))
        expected = decay * expected + (1 - decay)
        assert value[0].item() == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_sentence(
    clips: PreparedClips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(SMALL, tmp_path, clips, clips)
    nan = torch.full((2,), float("nan"), requires_grad=True)
    monkeypatch.setattr(trainer, "_losses", lambda *_: nan)
    with pytest.raises(FloatingPointError, match="the loss of step 0 of stage one is nan"):
        trainer.run()


def test_the_papers_recipe() -> None:
    recipe = RECIPES["loopy"]
    assert recipe.config == LOOPY and len(recipe.stages) == 2
    assert {(s.batch, s.learning_rate, s.constant) for s in recipe.stages} == {(24, 1e-5, 1.0)}
