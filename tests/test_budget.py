"""What a run needs, against values worked out by hand, and the sentences when it is not there."""

from dataclasses import replace

import pytest
import torch

from loopy_model.budget import Budget, budget
from loopy_model.conditions import Speech
from loopy_model.config import PUPPET, ClipGeometry
from loopy_model.motion import TemporalSegments
from loopy_model.sampling import Request

GB = 10**9
NEEDED = Budget(
    frames=1000, fps=25, clips=84, clip_frames=12, steps=25, working=3 * GB, reading=GB, latents=2 * GB
)


@pytest.mark.parametrize("start, frames, made, clips", [(0, None, 100, 9), (24, None, 76, 7), (96, 30, 4, 1)])
def test_frames_and_clips_that_are_still_to_be_made(
    start: int, frames: int | None, made: int, clips: int
) -> None:
    speech = Speech(torch.zeros(100, 5, 64), 25)
    request = Request(
        torch.zeros(1, 32, 8, 8), speech, TemporalSegments(PUPPET.clip), start=start, frames=frames
    )
    needed = budget(PUPPET, request)
    assert (needed.frames, needed.clips, needed.steps) == (made, clips, 25)
    assert needed.latents == made * 32 * 8 * 8 * 4
    assert needed.reading == 36 * 4 * 8 * 8 * 48  # of one picture
    half = budget(PUPPET, replace(request, dtype=torch.float16))
    assert half.working == needed.working // 2 and half.latents == needed.latents  # these stay float32


def test_features_are_counted_that_later_clips_may_ask_for() -> None:
    """After a clip the next ones ask for 22 of the frames that were met, of random ones for all within the span."""
    portrait, speech = torch.zeros(1, 32, 8, 8), Speech(torch.zeros(100, 5, 64), 25)

    def working(how: str, clip: ClipGeometry = PUPPET.clip) -> int:
        return budget(PUPPET, Request(portrait, speech, TemporalSegments(clip, how))).working

    one = 4 * (3 * 64 * 48 + 4 * 16 * 80)  # three sites of 8x8 cells, four of 4x4
    assert working("random") - working("uniform") == (112 - 22) * one
    assert working("random", replace(PUPPET.clip, ratio=1)) - working("uniform") == (8 - 22) * one


def test_what_fits_is_not_refused() -> None:
    assert NEEDED.lacking(3 * GB, 2 * GB) is None


def test_each_refusal_names_the_need_and_the_remedy() -> None:
    card = NEEDED.lacking(2 * GB, 9 * GB)
    assert "3.0 GB" in card and "2.0 GB" in card and "weight_dtype" in card
    host = NEEDED.lacking(9 * GB, GB)
    assert (
        "set frames to 492, and go on" in host and "start_frame" in host
    )  # 41 clips; there is room for 500 frames
    assert "set frames to 12, and go on" in NEEDED.lacking(9 * GB, 0)
    for sentence in (card, host):
        assert sentence.endswith(".") and ". " not in sentence


def test_the_summary_says_frames_seconds_and_memory() -> None:
    assert str(NEEDED) == (
        "1000 frames, 40.0 s: 84 clips of 12 frames, 25 steps each; "
        "memory: 3.0 GB beside the weights, 2.0 GB for the latents."
    )
