"""Temporal segment module (paper 3.2, eq. 2) and the motion frames of a run."""

import math
from dataclasses import replace

import pytest
import torch
from oracles import small_model

from loopy_model.config import LOOPY, TINY, ClipGeometry
from loopy_model.motion import SAMPLINGS, TemporalSegments

PAPER = LOOPY.clip
GEOMETRIES = pytest.mark.parametrize(
    "clip",
    [
        PAPER,
        TINY.clip,
        ClipGeometry(stride=1, ratio=2, segments=4),
        ClipGeometry(stride=2, ratio=2),
        ClipGeometry(stride=4, ratio=1, segments=1),
        ClipGeometry(stride=4, ratio=3, segments=3),
        ClipGeometry(stride=3, ratio=4, segments=2),
        ClipGeometry(stride=8, ratio=2, segments=4),
    ],
    ids=lambda clip: f"s{clip.stride}-r{clip.ratio}-n{clip.segments}",
)


def segments(clip: ClipGeometry, sampling: str = "uniform") -> TemporalSegments:
    return TemporalSegments(clip, sampling)


def eq2(s: int, r: int, count: int) -> list[int]:
    """c^o_mf,i = c_mf,[sum_{j=0}^{k-1} r^j s + r^k (i mod s)], k = floor(i / s)."""
    ages = []
    for i in range(s * count):
        k = math.floor(i / s)
        ages.append(sum(r**j * s for j in range(k)) + r**k * (i % s))
    return ages


def numbered(frames: int) -> torch.Tensor:
    """Past latents, oldest first; a frame's value is its age."""
    return torch.arange(frames - 1, -1, -1, dtype=torch.float64).reshape(-1, 1, 1, 1)


def test_the_papers_twenty_ages() -> None:
    assert PAPER.motion_ages == (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 36, 44, 52, 60, 76, 92, 108)
    assert segments(PAPER).ages() == [(age,) for age in PAPER.motion_ages]


def test_without_the_module_there_are_the_four_newest_frames() -> None:
    assert ClipGeometry(segments=1).motion_ages == (0, 1, 2, 3)


@GEOMETRIES
def test_ages_are_equation_2(clip: ClipGeometry) -> None:
    assert list(clip.motion_ages) == eq2(clip.stride, clip.ratio, clip.segments)
    assert clip.motion_frames == len(clip.motion_ages) == clip.stride * clip.segments


@GEOMETRIES
def test_segments_cover_the_span_without_gap_or_overlap(clip: ClipGeometry) -> None:
    lengths = [clip.stride * clip.ratio**k for k in range(clip.segments)]
    assert clip.motion_span == sum(lengths)
    covered = [age for group in segments(clip, "mean").ages() for age in group]
    assert covered == list(range(clip.motion_span))


def test_means_of_a_small_case_worked_by_hand() -> None:
    clip = ClipGeometry(stride=2, ratio=3, segments=2)  # 0 1 | 2 3 4, 5 6 7
    module = segments(clip, "mean")
    assert module.ages() == [(0,), (1,), (2, 3, 4), (5, 6, 7)]
    latents, present = module.abstract(numbered(8), module.ages())
    assert latents.flatten().tolist() == [0, 1, 3, 6] and present.all()


def test_a_mean_is_over_the_frames_that_exist() -> None:
    module = segments(ClipGeometry(stride=2, ratio=3, segments=2), "mean")
    latents, present = module.abstract(numbered(7), module.ages())  # age 7 does not exist
    assert latents.flatten().tolist() == [0, 1, 3, 5.5] and present.all()
    latents, present = module.abstract(numbered(3), module.ages())
    assert latents.flatten().tolist() == [0, 1, 2, 0]
    assert present.tolist() == [True, True, True, False]


@GEOMETRIES
def test_random_frames_stay_in_their_segment_nearest_first(clip: ClipGeometry) -> None:
    module = segments(clip, "random")
    for seed in range(20):
        ages = [age for (age,) in module.ages(torch.Generator().manual_seed(seed))]
        assert ages == sorted(set(ages)) and len(ages) == clip.motion_frames
        start = 0
        for k in range(clip.segments):
            part = ages[k * clip.stride : (k + 1) * clip.stride]
            assert all(start <= age < start + clip.stride * clip.ratio**k for age in part)
            start += clip.stride * clip.ratio**k


def test_random_ages_are_a_function_of_the_generator_and_reach_every_frame() -> None:
    module = segments(PAPER, "random")
    draws = [module.ages(torch.Generator().manual_seed(seed)) for seed in (*range(200), 0)]
    assert draws[0] == draws[-1] != draws[1]
    assert {age for draw in draws for (age,) in draw} == set(range(PAPER.motion_span))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("past", [0, 1, 5, 12, 124, 300])
def test_frames_that_exist_are_taken_and_the_others_are_zero(sampling: str, past: int) -> None:
    module = segments(PAPER, sampling)
    ages = module.ages(torch.Generator().manual_seed(0))
    latents, present = module.abstract(numbered(past) + 1, ages)
    assert latents.shape == (20, 1, 1, 1) and latents.dtype == torch.float64
    for latent, there, group in zip(latents.flatten(), present, ages):
        exist = [age + 1 for age in group if age < past]
        assert there == bool(exist)
        assert latent.item() == pytest.approx(sum(exist) / len(exist) if exist else 0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_sampling_is_the_clips_own_unless_another_is_given(sampling: str) -> None:
    clip = replace(TINY.clip, sampling=sampling)
    assert TemporalSegments(clip).sampling == sampling
    assert TemporalSegments(clip) == TemporalSegments(clip, sampling)
    assert [TemporalSegments(clip, other).sampling for other in SAMPLINGS] == list(SAMPLINGS)


def test_impossible_segments_are_refused() -> None:
    with pytest.raises(ValueError, match="'median'; choose one of uniform, mean, random"):
        segments(PAPER, "median")
    for name in ("stride", "ratio", "segments"):
        with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
            segments(replace(PAPER, **{name: 0}))
    for ratio, count in ((4, 20), (2, 10**12)):  # the second would take for ever to count
        with pytest.raises(
            ValueError, match=f"{count} segments .* grow by {ratio} reach more than 10000 frames"
        ):
            segments(replace(PAPER, stride=1, ratio=ratio, segments=count))


def test_the_model_keeps_the_number_of_motion_frames_of_every_sampling() -> None:
    model = small_model(TINY)
    for sampling in SAMPLINGS:
        ages = segments(TINY.clip, sampling).ages(torch.Generator().manual_seed(1))
        assert len(ages) == model.config.clip.motion_frames
