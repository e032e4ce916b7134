"""The bundled puppet model on held-out faces, voices and text; sampled for real."""

import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

pytest.importorskip("espeakng_loader")

from loopy_model.config import PUPPET, PUPPET_RATIOS, SAMPLE_RATE
from loopy_model.evaluate.held_out import correlation, flat_noise, held_out, load_meter, measure
from loopy_model.evaluate.puppet import BLINK, FIRST_LONG, HEAD, PAST, Evaluation, build_parser
from loopy_model.evaluate.puppet_report import summarise
from loopy_model.evaluate.rhythm import blink_interval, sway_period
from loopy_model.guidance import Guidance
from loopy_model.pipeline import BUNDLED, Pipeline
from loopy_model.puppet.motion import MOTION
from loopy_model.video import read_video

GUIDANCE = Guidance(*PUPPET_RATIOS)
ADAPTERS = BUNDLED.parents[1] / "adapters"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(BUNDLED)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Namespace:
    return build_parser().parse_args(["--report", str(tmp_path_factory.mktemp("report"))])


@pytest.fixture(scope="module")
def pieces(asked: Namespace) -> dict[str, dict]:
    """Two faces talk for 4 s each."""
    evaluation = Evaluation(asked)
    return {f"face-{number:02}": evaluation.talk(number) for number in range(2)}


def test_file_is_small_and_says_what_it_is(pipeline: Pipeline) -> None:
    assert BUNDLED.stat().st_size <= 12_000_000
    assert pipeline.config == PUPPET
    assert "drawn" in pipeline.header.card.trained_on
    assert "ByteDance released no weights" in pipeline.header.card.limits


def test_voices_without_a_frame_to_make_are_refused(pipeline: Pipeline) -> None:
    portrait = torch.zeros(128, 128, 3)
    with pytest.raises(ValueError, match="the voice is shorter than half a video frame"):
        pipeline(portrait, torch.zeros(1, 100), SAMPLE_RATE)
    with pytest.raises(ValueError, match="past has 25 frames, but the voice only 25; give fewer"):
        pipeline.request(portrait, torch.zeros(SAMPLE_RATE), past=torch.zeros(25, 128, 128, 3))
    with pytest.raises(ValueError, match=r"past is \(5, 64, 64, 3\); this model needs frames of 128x128"):
        pipeline.request(portrait, torch.zeros(SAMPLE_RATE), past=torch.zeros(5, 64, 64, 3))


def test_mouth_follows_a_held_out_voice(pieces: dict[str, dict]) -> None:
    rows = summarise(pieces)["lip_sync"]
    assert rows["generated"]["open"] >= 0.75 and rows["generated"]["width"] >= 0.7
    assert rows["ceiling"]["open"] >= 0.95
    assert rows["floor"]["open"] <= 0.4


def test_identity_is_kept_and_walls_are_clean(pieces: dict[str, dict]) -> None:
    for piece in pieces.values():
        assert piece["identity"] < 0.04 < piece["identity_floor"]
        assert piece["flat_noise"] < 0.01


def test_last_clip_looks_like_the_first(pieces: dict[str, dict], asked: Namespace) -> None:
    for name in pieces:
        frames = read_video(Path(asked.report) / "videos" / f"{name}.mp4")[0]
        first, last = frames[:12], frames[-12:]
        assert abs(first.mean() - last.mean()) < 0.05 * first.mean()
        assert flat_noise(last) < flat_noise(first) + 0.005


@pytest.mark.parametrize("number, tempo", [(1, 2.0), (2, 5.0)])
def test_a_person_goes_on_in_the_own_tempo(pipeline: Pipeline, number: int, tempo: float) -> None:
    """15 s after 5 s of truth, in few steps."""
    truth = held_out(FIRST_LONG + number, PAST + 15 * 25, PUPPET.image_size, drawn=PAST)
    frames = pipeline(
        truth.portrait, truth.waveform, SAMPLE_RATE, GUIDANCE, steps=8, seed=number, past=truth.frames
    )
    read = measure(load_meter(), frames).numpy()
    for measured in (blink_interval(read[:, BLINK], 25), sway_period(read[:, HEAD], 25)):
        assert measured == pytest.approx(tempo, rel=0.2)


@pytest.mark.parametrize("source, measured", [("head movement", "glo"), ("expression", "exp")])
def test_a_higher_level_moves_more(asked: Namespace, source: str, measured: str) -> None:
    """Two faces, 2 s each; docs/puppet.md has five levels of eight faces."""
    evaluation = Evaluation(asked)
    levels = (
        [evaluation.at_level(source, level, n)[measured] for n in range(2)] for level in (0.0, 0.5, 1.0)
    )
    low, middle, high = (sum(values) for values in levels)
    assert 3 * low < middle < high


def test_the_student_talks_as_its_teacher_in_a_third_of_the_time(pipeline: Pipeline) -> None:
    student = Pipeline(BUNDLED, ADAPTERS / "loopy-puppet-4-steps.safetensors")
    truth, meter, opening = held_out(0, 60, PUPPET.image_size), load_meter(), MOTION.index("open")
    found = []
    for model, guidance, steps in ((pipeline, GUIDANCE, 25), (student, Guidance(1.0, 1.0), 4)):
        began = time.perf_counter()
        frames = model(truth.portrait, truth.waveform, SAMPLE_RATE, guidance, steps, 0)
        seconds, read = time.perf_counter() - began, measure(meter, frames)[:, opening]
        found.append((seconds, correlation(read, truth.motion[:, opening]), flat_noise(frames), frames))
    (slow, best, clean, exact), (fast, sync, noise, made) = found
    assert fast < 0.33 * slow and sync > best - 0.1 and noise < clean + 0.001
    assert (made - exact).square().mean() < 0.003  # 25 dB


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
    assert torch.corrcoef(torch.stack([read[:, column], truth.motion[:, column]]))[0, 1] > 0.95
