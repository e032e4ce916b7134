"""The limits of appendix A, exactly at the limit and beyond."""

import numpy as np
import pytest
from little_videos import faces

from loopy_model.prepare.filters import (
    CHECKS,
    QUIETEST,
    Filters,
    failures,
    kilobytes,
    limits,
    loudness,
    measure_face,
)
from loopy_model.prepare.pose import HEAD, RIGID

PAPER = Filters()


def reasons(filters: Filters = PAPER, **values: float) -> list[str]:
    return [failure.reason for failure in failures(values, filters)]


@pytest.mark.parametrize(
    "value, kept, rejected, reason",
    [
        ("seconds", 2.0, 1.96, "too short"),
        ("face_pixels", 64, 63.9, "face too small"),
        ("movement", 1.0, 1.001, "face moves"),
        ("angle", 45.0, 45.01, "head turned"),
        ("sync_confidence", 2.5, 2.49, "out of sync"),
        ("kilobytes", 150.0, 149.9, "file too small"),
    ],
)
def test_a_value_at_the_limit_is_kept(value: str, kept: float, rejected: float, reason: str) -> None:
    assert reasons(**{value: kept}) == []
    assert reasons(**{value: rejected}) == [reason]


def test_every_check_has_a_limit_and_every_limit_a_default_of_its_type() -> None:
    names = {name: default for name, _, default, _ in limits()}
    assert {check.limit for check in CHECKS} <= names.keys()
    assert Filters(**names) == PAPER
    assert all(isinstance(default, kind) for _, kind, default, _ in limits())


def test_limits_can_be_changed_and_are_checked() -> None:
    assert reasons(Filters(max_angle=30), angle=40) == ["head turned"]
    with pytest.raises(ValueError, match="--min-seconds"):
        Filters(min_seconds=30)


def test_the_reason_comes_with_what_was_measured() -> None:
    (failure,) = failures({"seconds": 1.5}, PAPER)
    assert failure == ("too short", 1.5, 2.0)


def test_the_longest_clip_in_frames() -> None:
    assert PAPER.longest == 500 and Filters(max_seconds=20.03).longest == 500


# --- measures -----------------------------------------------------------------------------------


def turned(degrees: float, width: float = 90) -> np.ndarray:
    """(68, 2): the rigid points of the generic head, turned to the side."""
    angle = np.radians(degrees)
    points = faces(1, width=width)[0]
    x = HEAD[:, 0] * np.cos(angle) + HEAD[:, 2] * np.sin(angle)
    points[RIGID] = np.stack([x, HEAD[:, 1]], 1) + [80, 60]
    return points


def test_a_still_face() -> None:
    values = measure_face(faces(50, width=70), PAPER)
    assert values["seconds"] == 2.0
    assert values["face_pixels"] == pytest.approx(70, abs=1e-3)
    assert values["movement"] == pytest.approx(0, abs=1e-5)
    assert values["angle"] < 0.1 and values["turned_frames"] == 0


def test_movement_is_from_the_median_place_in_face_widths() -> None:
    points = faces(51, width=50)
    points[40] += np.float32([30, 40])
    assert measure_face(points, PAPER)["movement"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("frames, kept", [(3, True), (4, False)])
def test_a_few_outliers_of_the_pose_do_not_count_and_are_told(frames: int, kept: bool) -> None:
    points = np.stack([turned(0)] * 50)
    points[10 : 10 + frames] = turned(60)
    values = measure_face(points, PAPER)
    assert values["turned_frames"] == frames
    assert (values["angle"] <= 45) == kept
    assert values["angle"] == max(values["yaw"], values["pitch"], values["roll"])


def test_both_directions_count() -> None:
    left, right = (measure_face(np.stack([turned(a)] * 50), PAPER)["yaw"] for a in (-50, 50))
    assert left == pytest.approx(right) and left > 45


def test_a_piece_of_one_frame_is_measured() -> None:
    assert measure_face(faces(1), PAPER)["seconds"] == 0.04


def test_bytes_fall_to_a_clip_by_its_share_of_the_time() -> None:
    assert kilobytes(1_000_000, 10, 50) == 200.0
    assert kilobytes(150_000, 7, 7) == 150.0


@pytest.mark.parametrize("amplitude, decibels", [(32768, -3.01), (32.768, -63.01), (46.34, -60.0)])
def test_loudness_is_decibels_of_full_scale(amplitude: float, decibels: float) -> None:
    wave = amplitude * np.sin(np.arange(16_000) * 2 * np.pi / 160)
    assert loudness(wave) == pytest.approx(decibels, abs=0.01)


def test_silence_has_a_loudness_too() -> None:
    assert loudness(np.zeros(100, np.int16)) == QUIETEST == loudness(np.zeros(0, np.int16))
