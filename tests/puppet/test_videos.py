"""Raw videos of puppets: the face is where its points say, and the file is one that a camera makes."""

import random
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("espeakng_loader")

from safetensors.torch import load_file

from loopy_model.puppet import videos
from loopy_model.puppet.clips import SPLITS, draw_clip, draw_frames
from loopy_model.puppet.videos import Border, write_raw_video
from loopy_model.video import read_video

SIZE, SECONDS = 128, 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, as the command writes them."""
    folder = tmp_path_factory.mktemp("raw")
    run(folder, 2)
    return folder


def run(folder: Path, count: int) -> None:
    arguments = [str(folder), f"--count={count}", f"--seconds={SECONDS}", f"--size={SIZE}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["videos", *arguments])
        videos.main()


def test_a_wide_picture_with_sound_at_25_fps(folder: Path) -> None:
    frames, fps, waveform, _ = read_video(folder / "puppet_0000000.mp4")
    assert frames.shape == (25, 160, 284, 3) and fps == Fraction(25)
    assert waveform.shape[0] == 1 and waveform.abs().max() > 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_the_points_lie_on_the_drawn_face(folder: Path, seed: int) -> None:
    """Where the points put the square, the picture is the drawn one; beside it is wall."""
    name = folder / f"puppet_{seed:07d}"
    frames, *_ = read_video(name.with_suffix(".mp4"))
    points = load_file(name.with_suffix(".points.safetensors"))["points"]
    assert points.shape == (25, 68, 2) and points.dtype == torch.float32
    clip = draw_clip(seed, 25, SPLITS["train"].voices)
    border = Border.draw(random.Random(f"wall {seed}"), SIZE)
    drawn = draw_frames(clip.identity, clip.motion, SIZE).permute(0, 2, 3, 1) / 255
    square = frames[:, border.top :, border.left : border.left + SIZE]
    assert (square - drawn).abs().mean() < 0.02
    column, row = (points[:, 30] * torch.tensor([frames.shape[2], frames.shape[1]])).long().unbind(1)
    skin = torch.from_numpy(clip.identity[:3])
    nose = frames[torch.arange(25), row + 3, column]
    assert (nose - skin).abs().mean() < 0.2
    wall = torch.cat([frames[:, : border.top].flatten(0, 2), frames[:, :, :2].flatten(0, 2)])
    assert (wall - torch.from_numpy(clip.identity[12:15])).abs().mean() < 0.15


def test_the_border_is_16_to_9_and_leaves_the_square_anywhere() -> None:
    borders = [Border.draw(random.Random(seed), 256) for seed in range(50)]
    for border in borders:
        width, height = border.left + 256 + border.right, border.top + 256
        assert width % 2 == height % 2 == 0 and width / height == pytest.approx(16 / 9, abs=0.01)
        assert min(border) >= 0
    assert len({border.left for border in borders}) > 30


def test_two_seconds_pass_the_papers_150_kilobytes(tmp_path: Path) -> None:
    write_raw_video(tmp_path / "a.mp4", 3, SPLITS["train"].voices, 2.0, 256)
    assert 150_000 < (tmp_path / "a.mp4").stat().st_size < 400_000


def test_a_second_run_makes_only_what_is_missing_and_the_same(folder: Path, tmp_path: Path) -> None:
    """The pictures to the eye: with AVX-512, x264 does not give the same bytes twice."""
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert len(before) == 4
    lost = folder / "puppet_0000001.mp4"
    frames, _, waveform, _ = read_video(lost)
    lost.unlink()
    run(folder, 2)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert before.pop("puppet_0000000.mp4") == after["puppet_0000000.mp4"]
    again, _, sound, _ = read_video(lost)
    assert (again - frames).abs().mean() < 0.008 and torch.equal(sound, waveform)
    points = {name: data for name, (data, _) in before.items() if name != lost.name}
    assert len(points) == 2 and points == {name: after[name][0] for name in points}


def loudness(waveform: torch.Tensor) -> float:
    """dBFS"""
    return 20 * float(waveform.square().mean().sqrt().log10())


SILENT_SEED = 6  # of the laboratory's training clips


def test_every_video_speaks_at_a_usual_loudness(tmp_path: Path) -> None:
    voices = SPLITS["train"].voices
    assert loudness(torch.from_numpy(draw_clip(SILENT_SEED, 25, voices).waveform)) < -45
    for seed in (SILENT_SEED, 0, 1):
        write_raw_video(tmp_path / "a.mp4", seed, voices, SECONDS, 64)
        waveform = read_video(tmp_path / "a.mp4")[2][0]
        alike = (waveform[4:] * waveform[:-4]).mean() / waveform.square().mean()
        assert alike > 0.5  # of samples at 48 kHz: about 0 in noise of 16 kHz
        assert -24 < loudness(waveform) < -19.5 and waveform.abs().max() < 1


@pytest.mark.parametrize("seed, rms", [(0, 0.120887), (SILENT_SEED, 0.000832856)])
def test_the_laboratorys_clips_keep_their_sound(seed: int, rms: float) -> None:
    """What the bundled model was trained on: the same seed, the same sound."""
    waveform = draw_clip(seed, 25, SPLITS["train"].voices).waveform
    assert np.sqrt(np.square(waveform, dtype=float).mean()) == pytest.approx(rms, rel=1e-3)


def test_others_on_a_shared_disk_can_read_every_file(folder: Path) -> None:
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())


def test_points_that_cannot_be_written_leave_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.points.safetensors").mkdir()  # in the way
    with pytest.raises(OSError):
        write_raw_video(tmp_path / "a.mp4", 0, SPLITS["train"].voices, SECONDS, SIZE)
    assert not (tmp_path / "a.mp4").exists()
