"""Frames and sound through a real file and back."""

import wave
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loopy_model import video
from loopy_model.audio import frame_count
from loopy_model.video import AAC_RATE, read_audio, read_video, read_voice, resampled, write_video

av = pytest.importorskip("av")

FPS = Fraction(25)


def moving(frames: int = 10, height: int = 64, width: int = 80, channels: int = 3) -> Tensor:
    """A smooth picture in which every frame differs clearly from every other."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width)[None].expand(height, width)
    pictures = [
        torch.stack([x, y, torch.full_like(x, i / frames), 1 - x][:channels], -1) for i in range(frames)
    ]
    return torch.stack(pictures) * 0.8 + 0.1


def tone(seconds: float, rate: int, channels: int = 1, hertz: float = 440.0) -> Tensor:
    time = torch.arange(round(seconds * rate)) / rate
    return 0.5 * torch.sin(2 * torch.pi * hertz * time).repeat(channels, 1)


def streams(path: Path) -> tuple[Fraction, Fraction | None]:
    """Seconds of picture and of sound that a player shows."""
    with av.open(str(path)) as file:
        seconds = [s.duration * s.time_base for s in (*file.streams.video, *file.streams.audio)]
    return seconds[0], seconds[1] if len(seconds) > 1 else None


def played(path: Path) -> Fraction:
    waveform, rate = read_audio(path)
    return Fraction(waveform.shape[1], rate)


@pytest.mark.parametrize("fps", [FPS, Fraction(30000, 1001), Fraction(24), Fraction(60)], ids=str)
def test_frames_come_back_in_order_at_their_rate(tmp_path: Path, fps: Fraction) -> None:
    frames, path = moving(), tmp_path / "a.mp4"
    write_video(path, frames, fps)
    again, rate, waveform, _ = read_video(path)
    assert rate == fps and waveform is None
    assert again.shape == frames.shape
    # H.264 at crf 16 and 4:2:0 colour: smooth pictures keep about 1 % of their values.
    assert (again - frames).abs().mean() < 0.01 and (again - frames).abs().max() < 0.08
    assert streams(path)[0] == pytest.approx(float(len(frames) / fps), abs=1e-3)


def test_every_frame_has_its_own_time(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, moving(13), Fraction(30000, 1001))
    with av.open(str(path)) as file:
        times = sorted(frame.pts * frame.time_base for frame in file.decode(video=0))
    assert times == [Fraction(1001 * i, 30000) for i in range(13)]


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving(1), FPS)
    assert len(read_video(tmp_path / "a.mp4")[0]) == 1


@pytest.mark.parametrize("height, width", [(63, 64), (64, 63), (33, 47)])
def test_an_odd_size_grows_by_one_repeated_row_or_column(tmp_path: Path, height: int, width: int) -> None:
    frames = moving(3, height, width)
    write_video(tmp_path / "a.mp4", frames, FPS)
    again = read_video(tmp_path / "a.mp4")[0]
    assert again.shape == (3, height + height % 2, width + width % 2, 3)
    assert (again[:, :height, :width] - frames).abs().mean() < 0.015
    if height % 2:
        assert (again[:, -1] - again[:, -2]).abs().mean() < 0.02


def test_alpha_is_dropped_and_grey_is_grey(tmp_path: Path) -> None:
    clear = torch.cat([moving(2), torch.zeros(2, 64, 80, 1)], -1)
    write_video(tmp_path / "rgba.mp4", clear, FPS)
    assert (read_video(tmp_path / "rgba.mp4")[0] - moving(2)).abs().mean() < 0.01
    write_video(tmp_path / "grey.mp4", moving(2)[..., :1], FPS)
    grey = read_video(tmp_path / "grey.mp4")[0]
    assert (grey - moving(2)[..., :1]).abs().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_and_values_beyond_the_range_are_written(tmp_path: Path, dtype: torch.dtype) -> None:
    write_video(tmp_path / "a.mp4", (moving(2) * 3 - 1).to(dtype), FPS)
    assert (read_video(tmp_path / "a.mp4")[0] - (moving(2) * 3 - 1).clamp(0, 1)).abs().mean() < 0.02


# --- sound --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_of_any_rate_ends_within_half_a_frame_of_the_picture(
    tmp_path: Path, rate: int, channels: int
) -> None:
    waveform = tone(1.013, rate, channels)
    frames = frame_count(waveform.shape[1], rate, 25)
    path = tmp_path / "a.mp4"
    write_video(path, moving(frames, 32, 32), FPS, waveform, rate)
    picture, sound = streams(path)
    assert picture == Fraction(frames, 25)
    assert abs(picture - sound) <= Fraction(1, 50)
    assert abs(picture - played(path)) <= Fraction(1, 50)
    again, heard_rate = read_audio(path)
    assert (len(again), heard_rate) == (channels, AAC_RATE)


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001)], ids=str)
@pytest.mark.parametrize("seconds", [0.2, 0.98, 1.0, 2.017])
def test_any_length_of_sound_ends_within_half_a_frame_of_the_picture(
    tmp_path: Path, fps: Fraction, seconds: float
) -> None:
    waveform = tone(seconds, 44_100)
    frames = round(Fraction(waveform.shape[1], 44_100) * fps)
    write_video(tmp_path / "a.mp4", moving(frames, 32, 32), fps, waveform, 44_100)
    picture, sound = streams(tmp_path / "a.mp4")
    assert abs(picture - sound) <= 1 / (2 * fps)
    assert abs(picture - played(tmp_path / "a.mp4")) <= 1 / (2 * fps)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_the_sound_is_what_it_was_and_where_it_was(tmp_path: Path, rate: int) -> None:
    waveform = tone(1.0, rate)
    waveform[:, : rate // 2] = 0  # the tone begins in the middle
    write_video(tmp_path / "a.mp4", moving(25, 32, 32), FPS, waveform, rate)
    again = read_audio(tmp_path / "a.mp4")[0][0]
    expected = tone(1.0, AAC_RATE)[0]
    expected[: AAC_RATE // 2] = 0
    length = min(len(again), len(expected)) - 2000  # AAC fades at the end
    a, b = again[:length], expected[:length]
    likeness = (a @ b) / (a.norm() * b.norm())
    assert likeness > 0.98  # a shift by a millisecond would give 0.93
    assert a[: AAC_RATE // 2 - 2000].abs().max() < 0.02


def test_sound_that_is_longer_is_cut_and_shorter_is_kept(tmp_path: Path) -> None:
    for seconds, expected in ((3.0, 1.0), (0.4, 0.4)):
        write_video(tmp_path / "a.mp4", moving(25, 32, 32), FPS, tone(seconds, 16_000), 16_000)
        assert float(streams(tmp_path / "a.mp4")[1]) == pytest.approx(expected, abs=0.02)


def test_more_than_two_channels_become_one(tmp_path: Path) -> None:
    six = tone(1.0, 48_000, 6)
    six[3:] = 0
    write_video(tmp_path / "a.mp4", moving(25, 32, 32), FPS, six, 48_000)
    again, _ = read_audio(tmp_path / "a.mp4")
    assert len(again) == 1
    assert again.std().item() == pytest.approx(six.mean(0).std().item(), rel=0.05)


def test_left_stays_left(tmp_path: Path) -> None:
    stereo = tone(1.0, 48_000, 2)
    stereo[1] = 0
    write_video(tmp_path / "a.mp4", moving(25, 32, 32), FPS, stereo, 48_000)
    left, right = read_audio(tmp_path / "a.mp4")[0]
    assert left.std() > 0.3 and right.std() < 0.01


@pytest.mark.parametrize("channels", [None, 0, 1, 2])
def test_no_sound_and_empty_sound_make_a_silent_film(tmp_path: Path, channels: int | None) -> None:
    waveform = None if channels is None else torch.zeros(channels, 0)
    write_video(tmp_path / "a.mp4", moving(3), FPS, waveform, 44_100)
    assert read_audio(tmp_path / "a.mp4") == (None, 0)
    assert len(read_video(tmp_path / "a.mp4")[0]) == 3


def test_one_sample_of_sound_does_no_harm(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving(3), FPS, torch.ones(1, 1), 16_000)
    assert len(read_video(tmp_path / "a.mp4")[0]) == 3


# --- files --------------------------------------------------------------------------------------


def test_metadata_is_kept(tmp_path: Path) -> None:
    notes = {"prompt": '{"1": {"inputs": {"seed": 4}}}', "workflow": "{}", "title": "Gruß, 世界"}
    write_video(tmp_path / "a.mp4", moving(2), FPS, metadata=notes)
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert file.metadata.items() >= notes.items()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 2])
def test_nan_is_refused_and_nothing_is_left_behind(tmp_path: Path, bad: float, where: int) -> None:
    frames = moving(3)
    frames[where, 5, 5, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        write_video(tmp_path / "a.mp4", frames, FPS, tone(0.1, 16_000), 16_000)
    assert list(tmp_path.iterdir()) == []


def test_no_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        write_video(tmp_path / "a.mp4", torch.zeros(0, 64, 64, 3), FPS)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_leaves_the_file_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, moving(3), FPS)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(video.Sound, "resampled", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_video(path, moving(5), FPS, tone(0.2, 16_000), 16_000)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


def test_a_video_is_replaced_and_names_may_be_strange(tmp_path: Path) -> None:
    path = tmp_path / "ein Gruß 世界 %d #1.mp4"
    for frames in (3, 5):
        write_video(path, moving(frames), FPS)
        assert len(read_video(path)[0]) == frames
    assert list(tmp_path.iterdir()) == [path]


# --- long ones ----------------------------------------------------------------------------------


def test_parts_make_the_same_video_as_the_whole(tmp_path: Path) -> None:
    frames, waveform = moving(10), tone(0.4, 16_000)
    write_video(tmp_path / "whole.mp4", frames, FPS, waveform, 16_000)
    parts = (frames[start : start + 4] for start in (0, 4, 8))
    write_video(tmp_path / "parts.mp4", parts, FPS, waveform, 16_000)
    whole, parts = (read_video(tmp_path / f"{name}.mp4") for name in ("whole", "parts"))
    assert (whole[0] - parts[0]).abs().mean() < 0.008 and whole[0].shape == parts[0].shape
    assert torch.equal(whole[2], parts[2]) and whole[1::2] == parts[1::2]


def test_parts_are_written_as_they_are_made(tmp_path: Path) -> None:
    """Of 100 parts no two are alive together, but for the one that is just being made."""
    alive, most = weakref.WeakSet(), 0

    def parts() -> Iterator[Tensor]:
        nonlocal most
        for _ in range(100):
            part = moving(1, 16, 16)
            alive.add(part)
            most = max(most, len(alive))
            yield part

    write_video(tmp_path / "a.mp4", parts(), FPS)
    assert most <= 3 and len(read_video(tmp_path / "a.mp4")[0]) == 100


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_sound_of_a_file_is_that_of_its_waveform(tmp_path: Path, rate: int, channels: int) -> None:
    voice = tmp_path / "voice.mp4"
    write_video(voice, moving(75, 16, 16), FPS, tone(3, rate, channels), rate)
    write_video(tmp_path / "file.mp4", moving(50, 16, 16), FPS, voice)
    write_video(tmp_path / "waveform.mp4", moving(50, 16, 16), FPS, *read_audio(voice))
    assert torch.equal(read_audio(tmp_path / "file.mp4")[0], read_audio(tmp_path / "waveform.mp4")[0])
    assert played(tmp_path / "file.mp4") == pytest.approx(2, abs=0.02)


def test_a_file_without_sound_makes_a_silent_video_and_an_empty_voice(tmp_path: Path) -> None:
    write_video(tmp_path / "silent.mp4", moving(2), FPS)
    write_video(tmp_path / "a.mp4", moving(2), FPS, tmp_path / "silent.mp4")
    assert read_audio(tmp_path / "a.mp4") == (None, 0)
    assert not list(read_voice(tmp_path / "silent.mp4", 16_000))


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_a_voice_is_mono_at_the_wanted_rate(tmp_path: Path, rate: int) -> None:
    left = tone(1.0, rate)
    write_video(tmp_path / "a.mp4", moving(25, 16, 16), FPS, torch.cat([left, torch.zeros_like(left)]), rate)
    voice = torch.cat(list(read_voice(tmp_path / "a.mp4", 16_000)))
    assert len(voice) == pytest.approx(16_000, abs=200)
    wanted = tone(1.0, 16_000)[0, 4000:12000] / 2  # the mean of both channels
    lags = [(voice[4000 + lag : 12000 + lag] - wanted).square().mean() for lag in range(-40, 41)]
    assert min(lags) < 0.01 * wanted.square().mean()


@pytest.mark.parametrize("rate", [8_000, 15_999, 16_000, 47_187, 192_000])
def test_a_voice_of_any_rate_is_the_same_at_another(rate: int) -> None:
    voice = resampled(tone(2.5, rate)[0], rate, 16_000)
    assert abs(len(voice) - 40_000) <= 1
    middle = slice(200, 39_800)  # the ends ring
    assert (voice[middle] - tone(2.5, 16_000)[0, middle]).abs().max() < 2e-3


def test_a_sound_of_too_many_channels_is_refused(tmp_path: Path) -> None:
    """PyAV ends the process when it reads one."""
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(9), file.setsampwidth(2), file.setframerate(16_000)
        file.writeframes(bytes(9 * 2 * 100))
    with pytest.raises(ValueError, match="the sound has 9 channels, at most 8 can be read; mix it down."):
        list(read_voice(tmp_path / "a.wav", 16_000))


@pytest.mark.parametrize("samples", [0, 1, 100])
def test_hardly_a_voice_is_resampled_too(samples: int) -> None:
    assert abs(len(resampled(torch.zeros(samples), 47_187, 16_000)) - samples / 3) < 2
