"""Blink intervals, sway periods, continuation and drift on movements whose answer is known."""

import math

import numpy as np
import pytest
import torch

from loopy_model.evaluate.drift import clip_statistics, drift, stretches, trend
from loopy_model.evaluate.held_out import flat_noise
from loopy_model.evaluate.rhythm import (
    blink_interval,
    blink_onsets,
    continuation,
    rhythm_error,
    sway_period,
)

FPS = 25


def blinking(frames: int, every: int, first: int = 10) -> np.ndarray:
    trace = np.zeros(frames)
    for start in range(first, frames, every):
        trace[start : start + 8] = 1
    return trace


@pytest.mark.parametrize("every", [50, 87, 125])
def test_blinks_are_counted_once_each(every: int) -> None:
    trace = blinking(1000, every)
    assert list(blink_onsets(trace)) == list(range(10, 1000, every))
    assert blink_interval(trace, FPS) == pytest.approx(every / FPS)


def test_a_trembling_lid_is_one_blink() -> None:
    trace = np.array([0, 0, 0.6, 0.45, 0.7, 0.3, 0.9, 0.1, 0.0, 0.2, 0.8])
    assert list(blink_onsets(trace)) == [2, 10]


def test_an_eye_that_is_closed_from_the_start_has_not_blinked_yet() -> None:
    assert list(blink_onsets(np.array([1.0, 1.0, 0.0, 1.0]))) == [3]
    assert math.isnan(blink_interval(np.array([0.0, 1.0, 1.0]), FPS))


@pytest.mark.parametrize("seconds", [2.0, 3.3, 5.0])
def test_sway_period_is_that_of_a_sine_under_noise_and_drift(seconds: float) -> None:
    time = np.arange(60 * FPS) / FPS
    noise = np.random.default_rng(0).normal(0, 0.3, len(time))
    head = 0.7 * np.sin(2 * np.pi * time / seconds + 1) + noise + 0.01 * time
    assert sway_period(head, FPS) == pytest.approx(seconds, rel=0.01)


def test_a_head_that_only_drifts_does_not_sway() -> None:
    time = np.arange(60 * FPS) / FPS
    wandering = np.random.default_rng(0).normal(size=len(time)).cumsum()
    for head in (0.01 * time, np.sin(time / 3), wandering):
        assert math.isnan(sway_period(head, FPS))


def test_rhythm_error_is_per_face_and_no_rhythm_is_all_wrong() -> None:
    true = np.array([4.0, 4.0, 4.0, 4.0])
    found = np.array([3.0, 5.0, math.nan, 40.0])  # off by 0.25, 0.25, 1 and no more than 1
    assert rhythm_error(found, true) == pytest.approx(0.625)


def test_continuation_knows_the_perfect_and_the_still_head() -> None:
    true = np.array([[1.0, 2.0], [-1.0, -3.0]])
    last = np.array([0.5, 0.0])
    perfect = continuation(true, true, last)
    assert perfect["correlation"] == pytest.approx(1) and perfect["error"] == 0
    still = continuation(np.stack([last, last], 1) + 1e-9 * true, true, last)
    assert still["error"] == pytest.approx(1, abs=1e-6)


def test_continuation_by_hand() -> None:
    made = continuation(np.array([[1.0, 1.0]]), np.array([[1.0, 3.0]]), np.array([0.0]) - 1)
    # displacements 2, 2 against 2, 4: squares of the difference 0 and 4, of the truth 4 and 16
    assert made["error"] == pytest.approx(math.sqrt(4 / 20))


def test_drift_finds_a_slow_change_of_light_contrast_and_blur() -> None:
    generator = torch.Generator().manual_seed(0)
    frame = torch.rand(1, 16, 16, 3, generator=generator).expand(48, -1, -1, -1)
    assert all(drift(values) < 1e-6 for values in clip_statistics(frame, 12).values())
    fading = frame * torch.linspace(1, 0.8, 48)[:, None, None, None]
    found = {name: drift(values) for name, values in clip_statistics(fading, 12).items()}
    first, last = (fading[part].mean() for part in (slice(0, 12), slice(36, 48)))
    assert found["mean"] == pytest.approx(float(1 - last / first), abs=1e-5)
    assert found["contrast"] == pytest.approx(found["mean"], abs=1e-4)
    assert found["sharpness"] == pytest.approx(found["mean"], abs=1e-4)


def test_sharpness_by_hand() -> None:
    frames = torch.zeros(12, 2, 2, 3)
    frames[:, 0, 0] = 1.0  # one white pixel: a step of 1 in each direction, of two steps each
    found = clip_statistics(frames, 12)
    assert found["sharpness"].tolist() == [pytest.approx(1.0)]
    assert found["mean"].tolist() == [pytest.approx(0.25)]


def test_trend_is_the_slope_of_a_line_as_a_share_of_its_start() -> None:
    assert trend(np.array([2.0, 2.1, 2.2])) == pytest.approx(0.1)


def test_stretches_of_whole_turns_drift_only_where_the_video_does() -> None:
    turning = np.tile([1.0, 2.0, 3.0], 4)
    assert stretches(turning, 3).tolist() == [2.0] * 4 and drift(turning) == 2
    assert stretches(np.append(turning, 9.0), 3).tolist() == [2.0] * 4  # what is left over does not count
    assert drift(stretches(turning * np.repeat([1, 1.1], 6), 3)) == pytest.approx(0.1)


def test_flat_noise_sees_grain_but_no_gradient() -> None:
    axis = torch.linspace(0, 1, 128)
    wall = (0.3 + 0.2 * axis[:, None] + 0.1 * axis[None])[None, :, :, None].expand(2, -1, -1, 3)
    assert flat_noise(wall) < 1e-6
    grain = 0.02 * torch.randn(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    assert flat_noise(wall + grain) == pytest.approx(0.02 * math.sqrt(2 / math.pi), rel=0.15)
