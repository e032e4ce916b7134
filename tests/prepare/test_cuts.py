"""Where a video is cut, and what its pieces show."""

import numpy as np
import pytest
from little_videos import faces, scene

from loopy_model.prepare.cuts import (
    FACE,
    NO_FACE,
    TWO_FACES,
    SceneCuts,
    Track,
    fill_gaps,
    jumps,
    labels,
    pieces,
    split_evenly,
    steps,
    without_slips,
)

GAP, JUMP = 5, 0.5


def scene_cuts(lengths: list[int], noise: float = 3.0) -> list[int]:
    detector, rng = SceneCuts(3.0), np.random.default_rng(0)
    shots = [shot for shot, length in enumerate(lengths) for _ in range(length)]
    for index, shot in enumerate(shots):
        picture = scene(shot) + rng.normal(0, noise, scene(shot).shape)
        detector.see(index, picture.clip(0, 255).astype(np.uint8))
    return detector.finish()


@pytest.mark.parametrize("lengths", [[40], [10, 10], [1, 10], [2, 10], [10, 1], [10, 2], [20, 30, 5, 40]])
def test_scene_cuts_are_found_to_the_frame_up_to_both_ends(lengths: list[int]) -> None:
    assert scene_cuts(lengths) == np.cumsum(lengths)[:-1].tolist()


def test_scenes_without_any_noise() -> None:
    assert scene_cuts([10, 12], noise=0.0) == [10]


def test_a_pan_is_no_cut() -> None:
    detector, wide = SceneCuts(3.0), scene(0, 1000, 120)
    for index in range(60):
        detector.see(index, wide[:, 12 * index :][:, :160])
    assert detector.finish() == []


def test_a_picture_that_stands_is_seen_once_and_the_cut_has_the_right_number() -> None:
    detector = SceneCuts(3.0)
    for index in (0, 7, 9, 20, 31, 40):
        detector.see(index, scene(index >= 20))
    assert detector.finish() == [20]


def test_steps_are_in_face_widths() -> None:
    points = faces(4, width=50)
    points[2:] += [10, 0]
    assert steps(points) == pytest.approx([0, 0.2, 0], abs=1e-5)


def test_a_jump_beyond_the_limit_is_a_cut_and_one_at_the_limit_is_not() -> None:
    points = faces(6, x=100, width=64)
    points[3:] += np.float32([32, 0])
    assert jumps(points, 0.5) == [] and jumps(points, 0.499) == [3]


def test_a_jump_is_one_also_where_the_face_was_not_seen_meanwhile() -> None:
    points = faces(20)
    points[8:] += 100
    points[6:9] = points[12] = np.nan
    assert jumps(points, JUMP) == [9]
    track, found = pieces(Track(points, np.ones(20, int)), [], GAP, JUMP)
    assert found[:3] == [(FACE, range(0, 6)), (NO_FACE, range(6, 9)), (FACE, range(9, 20))]
    assert np.isnan(track.points[6:9]).all()  # no face is invented on the way
    assert jumps(points[6:9], JUMP) == []


def test_a_slip_of_the_detector_is_forgotten_but_not_a_move() -> None:
    points = faces(20)
    points[5:8] += 100
    points[15:] += 100
    kept = without_slips(points, [], GAP, JUMP)
    assert np.flatnonzero(np.isnan(kept).any((1, 2))).tolist() == [5, 6, 7]
    assert jumps(kept, JUMP) == [15]


def test_a_slip_is_not_taken_for_one_across_a_cut() -> None:
    points = faces(20)
    points[5:8] += 100
    assert np.array_equal(without_slips(points, [8], GAP, JUMP), points)


@pytest.mark.parametrize("length, filled", [(1, True), (5, True), (6, False)])
def test_gaps_are_filled_in_a_straight_line(length: int, filled: bool) -> None:
    points = faces(20) + np.arange(20, dtype=np.float32)[:, None, None]
    missing = points.copy()
    missing[4 : 4 + length] = np.nan
    result = fill_gaps(missing, 5)
    assert np.isfinite(result).all() == filled
    if filled:
        assert result == pytest.approx(points, abs=1e-4)


def test_a_face_is_not_invented_at_the_ends() -> None:
    missing = faces(10)
    missing[:2] = missing[-2:] = np.nan
    assert np.isnan(fill_gaps(missing, 5)).any((1, 2)).tolist() == [True] * 2 + [False] * 6 + [True] * 2


@pytest.mark.parametrize("length, kind", [(5, FACE), (6, TWO_FACES)])
def test_a_second_face_counts_when_it_stays(length: int, kind: str) -> None:
    count = np.ones(20, int)
    count[4 : 4 + length] = 2
    assert labels(Track(faces(20), count), GAP)[4] == kind


@pytest.mark.parametrize("frames", [1, 499, 500, 501, 1000, 1001, 12345])
def test_splitting_is_even_and_loses_nothing(frames: int) -> None:
    parts = split_evenly(range(7, 7 + frames), 500)
    assert [i for part in parts for i in part] == list(range(7, 7 + frames))
    lengths = [len(part) for part in parts]
    assert max(lengths) <= 500 and max(lengths) - min(lengths) <= 1
    assert len(parts) == -(-frames // 500)


def test_pieces_cover_the_video_once_and_never_cross_a_cut() -> None:
    points, count = faces(200), np.ones(200, int)
    points[60:90] = np.nan  # nobody
    points[120:] += 60  # a jump cut
    count[150:160] = 2
    _, found = pieces(Track(points, count), [30, 170], GAP, JUMP)
    assert [i for _, frames in found for i in frames] == list(range(200))
    assert found == [
        (FACE, range(0, 30)),
        (FACE, range(30, 60)),
        (NO_FACE, range(60, 90)),
        (FACE, range(90, 120)),
        (FACE, range(120, 150)),
        (TWO_FACES, range(150, 160)),
        (FACE, range(160, 170)),
        (FACE, range(170, 200)),
    ]


def test_a_gap_is_not_filled_across_a_cut() -> None:
    points = faces(40)
    points[19:22] = np.nan
    track, found = pieces(Track(points, np.ones(40, int)), [20], GAP, JUMP)
    assert [kind for kind, _ in found] == [FACE, NO_FACE, NO_FACE, FACE]
    assert np.isnan(track.points[19:22]).all()
