"""The bundled puppet model on held-out faces, voices and text; sampled for real."""

from collections.abc import Iterator

import pytest
import torch

from loopy_model.config import PUPPET
from loopy_model.evaluate.lip_sync import (
    Video,
    correlation,
    held_out,
    identity_error,
    load_meter,
    measure,
    report,
    videos,
)
from loopy_model.pipeline import BUNDLED, Pipeline
from loopy_model.puppet.motion import MOTION
from loopy_model.sampling import Guidance

GUIDANCE = Guidance(3.0, 1.5)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(BUNDLED)


@pytest.fixture(scope="module")
def made(pipeline: Pipeline) -> Iterator[list[Video]]:
    return list(videos(pipeline, faces=2, seconds=4, guidance=GUIDANCE, steps=25))


def test_file_is_small_and_says_what_it_is(pipeline: Pipeline) -> None:
    assert BUNDLED.stat().st_size <= 12_000_000
    assert pipeline.config == PUPPET
    assert "drawn" in pipeline.header.card.trained_on
    assert "ByteDance released no weights" in pipeline.header.card.limits


def test_mouth_follows_a_held_out_voice(made: list[Video]) -> None:
    rows = report(made, load_meter())
    assert rows["generated"]["lip_sync_open"] >= 0.75
    assert rows["ceiling"]["lip_sync_open"] >= 0.95
    assert rows["floor"]["lip_sync_open"] <= 0.4


def test_identity_is_kept(made: list[Video]) -> None:
    own = [identity_error(v.generated, v.truth.portrait) for v in made]
    other = [identity_error(v.generated, w.truth.portrait) for v, w in zip(made, made[::-1])]
    assert max(own) < 0.06 < min(other)


def test_last_clip_looks_like_the_first(made: list[Video]) -> None:
    for video in made:
        first, last = video.generated[:12], video.generated[-12:]
        assert abs(first.mean() - last.mean()) < 0.05 * first.mean()


def test_silence_keeps_the_mouth_closed(pipeline: Pipeline) -> None:
    portrait = held_out(0, 12, PUPPET.image_size).portrait
    frames = pipeline(portrait, torch.zeros(1, 16_000), 16_000, GUIDANCE, steps=12)
    assert len(frames) == 25
    assert measure(load_meter(), frames)[:, MOTION.index("open")].mean() < 0.2


def test_same_seed_same_video_other_seed_other_video(pipeline: Pipeline) -> None:
    truth = held_out(1, 6, PUPPET.image_size)

    def run(seed: int) -> torch.Tensor:
        return pipeline(truth.portrait, truth.waveform, 16_000, GUIDANCE, steps=2, seed=seed)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_meter_reads_the_drawn_truth() -> None:
    truth = held_out(2, 100, PUPPET.image_size)
    read = measure(load_meter(), truth.frames)
    column = MOTION.index("open")
    assert correlation(read[:, column], truth.motion[:, column]) > 0.95
