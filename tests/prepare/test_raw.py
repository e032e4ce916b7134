"""Any raw video at 25 fps, upright, with its sound at its place."""

import os
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from little_videos import HEIGHT, RATE, WIDTH, grey, number, numbered, scene, tone, turn, write

from loopy_model.prepare.raw import (
    FPS,
    SAMPLES,
    NoAccess,
    RawVideo,
    Unreadable,
    Voice,
    at_25_fps,
    raw_videos,
    upright,
)

HALF_A_FRAME = 0.5 / FPS


def played(path: Path) -> tuple[list[np.ndarray], np.ndarray | None]:
    voice = Voice()
    with RawVideo(path) as video:
        pictures = [upright(frame, video.size) for _, frame in video.play(voice)]
        return pictures, voice.waveform(video.origin, len(pictures))


# --- the clock ----------------------------------------------------------------------------------


def shown(times: list[Fraction], first: int = 0) -> list[int]:
    """Which of the pictures that appear at `times` is shown; the last time is the end."""
    pairs = [*enumerate(times[:-1]), (None, times[-1])]
    result = list(at_25_fps(((time, i) for i, time in pairs), first))
    assert [k for k, _ in result] == list(range(first, first + len(result)))
    return [i for _, i in result]


def evenly(fps: Fraction, count: int) -> list[Fraction]:
    return [i / fps for i in range(count + 1)]


def test_25_fps_stay_as_they_are() -> None:
    assert shown(evenly(Fraction(25), 50)) == list(range(50))


def test_rounded_and_jittery_time_stamps_double_and_lose_no_picture() -> None:
    jitter = np.random.default_rng(0).uniform(-0.019, 0.019, 100)
    times = [Fraction(i, 25) + Fraction(float(jitter[i])) * (i > 0) for i in range(100)]
    assert shown([*times, Fraction(4)]) == list(range(100))


@pytest.mark.parametrize(
    "fps", [Fraction(n) for n in (10, 15, 24, 30, 50, 60, 120)] + [Fraction(30000, 1001)]
)
def test_every_rate_gives_the_duration_and_the_nearest_picture(fps: Fraction) -> None:
    count = int(4 * fps)
    indices = shown(evenly(fps, count))
    assert abs(len(indices) / FPS - count / fps) <= HALF_A_FRAME
    error = [abs(float(i / fps - Fraction(k, FPS))) for k, i in enumerate(indices)]
    assert max(error) <= max(HALF_A_FRAME, float(1 / fps) - HALF_A_FRAME) + 1e-9
    if fps >= 50:  # there is always one that is nearer
        assert max(error) <= float(1 / fps) / 2 + 1e-9


def test_a_still_picture_stands_until_the_next() -> None:
    assert shown([Fraction(0), Fraction(2), Fraction(3)]) == [0] * 50 + [1] * 25


def test_a_single_picture_and_a_late_beginning() -> None:
    assert shown([Fraction(0), Fraction(1, 25)]) == [0]
    assert shown([Fraction(1), Fraction(2), Fraction(3)], first=40) == [0] * 10 + [1] * 25


def test_time_that_stands_still_or_goes_back_a_little_is_passed_over() -> None:
    times = [Fraction(t, 25) for t in (0, 1, 1, 2, 1, 3, 4)]
    assert shown(times) == [0, 1, 3, 5]


# --- pictures -----------------------------------------------------------------------------------


def test_picture_k_of_a_variable_rate_shows_time_k_over_25(tmp_path: Path) -> None:
    times = np.cumsum(np.random.default_rng(1).uniform(0.01, 0.09, 80))
    times -= times[0]
    write(tmp_path / "a.mp4", [numbered(i) for i in range(80)], times)
    pictures, _ = played(tmp_path / "a.mp4")
    for k, picture in enumerate(pictures[:-3]):
        first = times[number(picture)]
        until = times[number(picture) + 1] if number(picture) < 79 else np.inf
        assert first - HALF_A_FRAME <= k / FPS <= until + HALF_A_FRAME
    assert len(pictures) / FPS == pytest.approx(times[-1], abs=0.1)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.webm"])
def test_pictures_of_every_container_are_complete(tmp_path: Path, name: str) -> None:
    codec = {"a.webm": "vp9", "a.avi": "mpeg4"}.get(name, "h264")
    options = {"crf": "20", "b": "0", "deadline": "realtime"} if codec == "vp9" else {}
    write(tmp_path / name, [numbered(i) for i in range(30)], codec=codec, **options)
    pictures, _ = played(tmp_path / name)
    assert [number(p) for p in pictures] == list(range(30))


def test_the_clock_starts_with_the_first_picture(tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", [numbered(i) for i in range(30)], [5 + i / 25 for i in range(30)])
    with RawVideo(tmp_path / "a.mkv") as video:
        frames = [upright(frame, video.size) for _, frame in video.play()]
        assert [number(f) for f in frames] == list(range(30))
        assert video.origin == 5


def test_phones_turn_their_pictures(tmp_path: Path) -> None:
    picture = grey(20)
    picture[:30] = 235  # the upper edge as stored is the right edge as shown
    write(tmp_path / "a.mp4", [picture] * 5)
    turn(tmp_path / "a.mp4")
    shown = played(tmp_path / "a.mp4")[0][3]
    assert shown.shape == (WIDTH, HEIGHT, 3)
    assert shown[:, -20:].mean() > 200 and shown[:, :80].mean() < 60


@pytest.mark.parametrize("width, height", [(161, 121), (63, 200), (64, 33)])
def test_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    write(tmp_path / "a.mkv", [scene(0, width, height)] * 3, codec="ffv1", pix_fmt="bgr0")
    assert np.array_equal(played(tmp_path / "a.mkv")[0][1], scene(0, width, height))


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuva444p10le", "gray16le", "bgra"])
def test_ten_bits_alpha_and_grey(tmp_path: Path, pix_fmt: str) -> None:
    write(tmp_path / "a.mkv", [numbered(i) for i in range(5)], codec="ffv1", pix_fmt=pix_fmt)
    pictures, _ = played(tmp_path / "a.mkv")
    assert [number(p) for p in pictures] == list(range(5)) and pictures[0].shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("height, matrix", [(480, "ITU601"), (720, "ITU709")])
def test_colours_without_a_description_are_those_of_the_size(
    tmp_path: Path, height: int, matrix: str
) -> None:
    frame = av.VideoFrame.from_ndarray(np.full((height, 64, 3), (200, 60, 30), np.uint8), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=matrix)
    frame.colorspace = 2  # not specified
    assert np.abs(upright(frame, (64, height))[0, 0].astype(int) - (200, 60, 30)).max() <= 3


def test_long_sides_are_limited_and_never_enlarged(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", [scene(0)] * 2)
    with RawVideo(tmp_path / "a.mp4") as video:
        _, frame = next(video.play())
        assert upright(frame, video.size, 80).shape == (60, 80, 3)
        assert upright(frame, video.size, 8000).shape == (HEIGHT, WIDTH, 3)


# --- looking a second time ----------------------------------------------------------------------


@pytest.mark.parametrize("name, interval", [("a.mp4", 20), ("a.mkv", 20), ("a.ts", 20), ("a.mp4", 1000)])
def test_ranges_give_the_pictures_of_the_first_time(tmp_path: Path, name: str, interval: int) -> None:
    write(tmp_path / name, [numbered(i) for i in range(500)], g=str(interval))
    with RawVideo(tmp_path / name) as video:
        first = [number(upright(frame, video.size)) for _, frame in video.play()]
    ranges = [range(10, 15), range(15, 20), range(180, 190), range(490, 500)]
    with RawVideo(tmp_path / name, video.origin, video.size) as again:
        found = [(k, number(upright(frame, video.size))) for k, frame in again.replay(ranges)]
    assert found == [(k, first[k]) for r in ranges for k in r]


def test_only_what_is_needed_is_decoded(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", [numbered(i) for i in range(1000)], g="25")
    with RawVideo(tmp_path / "a.mp4", Fraction(0), (WIDTH, HEIGHT)) as video:
        decoded = []
        real = video._decoded

        def counted(voice):
            for frame in real(voice):
                decoded.append(frame.pts)
                yield frame

        video._decoded = counted
        assert len(list(video.replay([range(900, 950)]))) == 50
    assert len(decoded) < 150


# --- sound --------------------------------------------------------------------------------------


def beep(seconds: float, at: float) -> np.ndarray:
    sound = np.zeros(round(seconds * RATE), np.float32)
    start = round(at * RATE)
    sound[start : start + RATE // 10] = tone(0.1, 0.8)
    return sound


def onset(waveform: np.ndarray) -> float:
    return float(np.argmax(np.abs(waveform.astype(int)) > 6000)) / (SAMPLES * FPS)


@pytest.mark.parametrize(
    "name, codec", [("a.mp4", "aac"), ("a.mkv", "aac"), ("a.mkv", "libopus"), ("a.ts", "mp2")]
)
@pytest.mark.parametrize("starts", [0.0, 0.5])
def test_beep_and_flash_are_together(tmp_path: Path, name: str, codec: str, starts: float) -> None:
    pictures = [grey(230 if i == 30 else 20) for i in range(60)]
    write(
        tmp_path / name,
        pictures,
        [1 + i / 25 for i in range(60)],
        beep(2.4 - starts, 1.2 - starts),
        1 + starts,
        sound_codec=codec,
    )
    shown, waveform = played(tmp_path / name)
    flash = int(np.argmax([p.mean() for p in shown])) / FPS
    assert flash == 1.2
    assert abs(onset(waveform) - flash) <= HALF_A_FRAME
    assert len(waveform) == len(shown) * SAMPLES


def test_sound_before_the_first_picture_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", [grey(20)] * 50, [1 + i / 25 for i in range(50)], beep(3, 2))
    assert abs(onset(played(tmp_path / "a.mkv")[1]) - 1) <= HALF_A_FRAME


def test_sound_that_ends_early_goes_on_as_silence(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", [grey(20)] * 50, sound=tone(1.0))
    waveform = played(tmp_path / "a.mp4")[1]
    assert len(waveform) == 50 * SAMPLES
    assert np.abs(waveform[:15000]).max() > 5000 and np.abs(waveform[18000:]).max() == 0


def test_a_gap_in_the_sound_stays_a_gap() -> None:
    voice = Voice()
    for start in (0.0, 0.1, 1.0):
        block = av.AudioFrame.from_ndarray(tone(0.1)[None], format="fltp", layout="mono")
        block.sample_rate, block.time_base, block.pts = RATE, Fraction(1, RATE), round(start * RATE)
        voice.hear(block)
    assert len(voice.runs) == 2
    heard = np.abs(voice.waveform(Fraction(0), 30)).reshape(-1, SAMPLES).max(1) > 1000
    assert np.flatnonzero(heard).tolist() == [0, 1, 2, 3, 4, 25, 26, 27]


def test_a_video_without_sound_has_none(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", [grey(20)] * 5)
    assert played(tmp_path / "a.mp4")[1] is None


# --- files --------------------------------------------------------------------------------------


def test_only_videos_are_found(tmp_path: Path) -> None:
    for name in (
        "b.MP4",
        "a.mkv",
        "notes.txt",
        ".hidden.mp4",
        "sub/Größe 日本.webm",
        "data/clips/x.mp4",
        "b.points.safetensors",
        ".cache/x.mp4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert raw_videos(tmp_path, tmp_path / "data") == (
        ["a.mkv", "b.MP4", "sub/Größe 日本.webm"],
        [".hidden.mp4", "notes.txt"],
    )


def test_folders_behind_links_count_once(tmp_path: Path) -> None:
    raw, disk = tmp_path / "raw", tmp_path / "disk"
    for path in (raw / "a.mp4", disk / "session" / "b.mp4"):
        path.parent.mkdir(parents=True)
        path.touch()
    (raw / "one").symlink_to(disk)
    (raw / "two").symlink_to(disk)
    (disk / "session" / "round").symlink_to(raw)  # back to where it began
    (raw / "archive" / "s").mkdir(parents=True)
    (raw / "archive" / "s" / "c.mp4").touch()
    (raw / "best").symlink_to(raw / "archive" / "s")  # where it lies already
    assert raw_videos(raw, raw / "data") == (["a.mp4", "archive/s/c.mp4", "one/session/b.mp4"], [])


def test_a_missing_permission_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("loopy_model.prepare.raw._opened", refuse)
    with pytest.raises(NoAccess, match="it cannot be opened: Permission denied"):
        RawVideo(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", r"^it is empty \(0 bytes\)\.$"),
        (b"not a video " * 1000, r"^it is no video, or its beginning or end is missing \(.*\)\.$"),
    ],
)
def test_what_is_no_video_says_so(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(Unreadable, match=words):
        played(tmp_path / "a.mp4")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        RawVideo(tmp_path / "a.mp4")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=RATE, layout="mono")
        block = av.AudioFrame.from_ndarray(tone(1.0)[None], format="fltp", layout="mono")
        block.sample_rate = RATE
        file.mux([*stream.encode(block), *stream.encode(None)])
    with pytest.raises(Unreadable, match="no picture"):
        RawVideo(tmp_path / "a.mp4")


def test_a_clock_that_jumps_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", [grey(20)] * 4, [0, 0.04, 5000, 5000.04])
    with pytest.raises(Unreadable, match="clock jumps"):
        with RawVideo(tmp_path / "a.mkv") as video:
            list(islice(video.play(), 1000))


def test_a_name_that_is_not_utf8_is_passed_over(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")).touch()
    except OSError:
        pytest.skip("this file system holds UTF-8 names only")
    (tmp_path / "café.mp4").touch()
    videos, others = raw_videos(tmp_path, tmp_path / "data")
    assert videos == ["café.mp4"] and others == ["caf\udce9.mp4"]
