"""A video's frames and voice come into memory once, and no more of them than are measured."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from drawn_videos import SIZE, draw

from loopy_model.evaluate import measures
from loopy_model.prepare.raw import RawVideo

LONG = 75


@pytest.fixture
def video(tmp_path: Path) -> Path:
    draw(tmp_path / "a.mp4", 0, frames=LONG)
    return tmp_path / "a.mp4"


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the frames that are decoded."""
    play, numbers = RawVideo.play, []

    def watched(self: RawVideo, *voice: object) -> Iterator:
        for index, frame in play(self, *voice):
            numbers.append(index)
            yield index, frame

    monkeypatch.setattr(RawVideo, "play", watched)
    return numbers


def test_the_first_frames_are_those_of_the_whole_with_their_sound(video: Path, played: list[int]) -> None:
    whole = measures.read(video)
    played.clear()
    first = measures.read(video, 5)
    assert 5 < len(played) < LONG // 2  # the sound may lie behind the pictures
    assert np.array_equal(first.frames, whole.frames[:5])
    assert np.array_equal(first.voice, whole.voice[: 5 * 640]) and first.voice.any()


def test_a_shape_is_known_without_keeping_pictures(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upright, kept = measures.upright, []
    monkeypatch.setattr(measures, "upright", lambda *given: kept.append(given) or upright(*given))
    assert measures.shape_of(video) == (LONG, SIZE, SIZE) and len(kept) == 1


def test_stacked_frames_are_let_go_of() -> None:
    frames = [np.full((2, 3), index, np.uint8) for index in range(4)]
    wanted = np.stack(frames)
    assert np.array_equal(measures.stacked(frames), wanted) and not frames
