"""Whole runs over small folders: records, resuming, shards, and files that break the process."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from little_videos import face, faces, save_points, scene, talk, tone, write
from PIL import Image
from safetensors import safe_open

from loopy_model.prepare.__main__ import main
from loopy_model.prepare.contact_sheet import Tile, thumbnail
from loopy_model.prepare.filters import Filters
from loopy_model.prepare.raw import RawVideo, upright
from loopy_model.prepare.records import (
    Clip,
    Source,
    name_of,
    read_held_out,
    read_source,
    write_held_out,
    write_source,
)
from loopy_model.prepare.run import is_done, plan
from loopy_model.prepare.scan import THUMBNAIL
from loopy_model.prepare.source import COLUMNS, NO_ACCESS, NO_LANDMARKS, UNREADABLE, Settings, _write_sheet
from loopy_model.video import read_video

QUICK = ["--landmarks", "points", "--min-kilobytes", "0", "--size", "64", "--test-share", "0"]


def prepare(raw: Path, data: Path, *more: str) -> int:
    """The command -> its exit status."""
    with pytest.raises(SystemExit) as end:
        main(["clips", str(raw), str(data), *QUICK, *more])
    return end.value.code


def records(data: Path) -> dict[str, Source]:
    found = [read_source(path) for path in (data / "sources").glob("*.json")]
    return {source.source: source for source in found}


def outcomes(data: Path) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Per source: the number of its clips, and the reasons of what was rejected."""
    return {
        name: (len(source.clips), tuple(piece.reason for piece in source.rejected))
        for name, source in records(data).items()
    }


def contents(data: Path) -> dict[str, object]:
    """All files by content; of the videos the names alone, since an encoder's threads may differ."""
    return {path.relative_to(data).as_posix(): _content(path) for path in data.rglob("*") if path.is_file()}


def _content(path: Path) -> object:
    if path.suffix == ".safetensors":  # its header has no fixed order
        with safe_open(str(path), "np") as file:
            return file.get_tensor("landmarks").tobytes(), file.metadata()
    return None if path.suffix == ".mp4" else path.read_bytes()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good videos, short enough for many runs."""
    folder = tmp_path_factory.mktemp("raw")
    for seed, name in enumerate(("a.mp4", "b.mp4", "sub/Größe 日本.mp4")):
        talk(folder / name, 2.2 + 0.2 * seed, seed)
    (folder / "notes.txt").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("prepared") / "data"
    assert prepare(raw, data) == 0
    return data


# --- what a run writes --------------------------------------------------------------------------


def test_a_clip_has_its_video_its_landmarks_and_its_record(raw: Path, prepared: Path) -> None:
    source = records(prepared)["sub/Größe 日本.mp4"]
    (clip,) = source.clips
    assert (clip.start, clip.end, clip.frames, clip.split, clip.voiced) == (0.0, 2.6, 65, "train", True)
    frames, fps, waveform, rate = read_video(prepared / "clips" / f"{clip.name}.mp4")
    assert frames.shape == (65, 64, 64, 3) and fps == 25
    assert waveform.shape == (1, 65 * 640) and rate == 16_000
    with safe_open(str(prepared / "clips" / f"{clip.name}.safetensors"), "np") as file:
        landmarks, metadata = file.get_tensor("landmarks"), file.metadata()
    assert Clip(**json.loads(metadata["clip"])) == clip
    in_source = landmarks * clip.box.side + [clip.box.x, clip.box.y]
    assert in_source == pytest.approx(faces(65), abs=0.01)
    assert clip.values["loudness"] == pytest.approx(-13.5, abs=0.2)  # a sine of 0.3


def test_the_crop_shows_what_the_source_shows(raw: Path, prepared: Path) -> None:
    (clip,) = records(prepared)["a.mp4"].clips
    with RawVideo(raw / "a.mp4") as video:
        whole = upright(next(video.play())[1], video.size)
    box = clip.box
    assert box.side == 120  # as much as the small picture has
    from PIL import Image

    expected = np.asarray(
        Image.fromarray(whole[:, box.x :][:, :120]).resize((64, 64), Image.Resampling.LANCZOS)
    )
    frames = read_video(prepared / "clips" / f"{clip.name}.mp4")[0] * 255
    assert np.median(np.abs(frames[0].numpy() - expected)) < 4  # colours blur at hard edges


def test_nothing_else_is_left(prepared: Path) -> None:
    names = {path.name for path in prepared.rglob("*") if path.is_file()}
    stems = [name_of(source) for source in records(prepared)]
    expected = {f"{stem}.json" for stem in stems} | {f"{stem}.jpg" for stem in stems}
    expected |= {f"{stem}-000.{kind}" for stem in stems for kind in ("mp4", "safetensors")}
    assert names == expected | {
        "passed_over.json", "prepare.json", "report.csv", "report.md", "report.png"
    }  # fmt: skip


def test_others_on_a_shared_disk_can_read_every_file(prepared: Path) -> None:
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in prepared.rglob("*") if path.is_file())


def test_every_reason(tmp_path: Path) -> None:
    raw, data = tmp_path / "raw", tmp_path / "data"

    def video(name: str, points: np.ndarray, **options) -> None:
        write(raw / name, [scene(sum(name.encode()))] * len(points), **options)
        save_points(raw / name, points)

    two = np.stack([faces(60), faces(60, x=100)], 1)
    turning = faces(60)
    turning[:, 17:] += np.float32([25, 0])
    video("short.mp4", faces(49))
    video("long enough.mp4", faces(50))
    video("small.mp4", faces(60, width=60))
    video("moves.mp4", np.stack([face(80 + 75 * np.sin(i / 12), 60, 66) for i in range(60)]))
    video("two.mp4", two)
    video("nobody.mp4", np.full((60, 68, 2), np.nan))
    video("turned.mp4", np.stack([_rolled(face(80, 60, 70), 50)] * 60))
    video("mute.mp4", faces(60), sound=tone(2.4, 1e-5))
    video("silent.mp4", faces(60))
    shutil.copy(raw / "silent.mp4", raw / "the same.mp4")
    (raw / "broken.mp4").write_bytes((raw / "short.mp4").read_bytes()[:3000])
    write(raw / "no points.mp4", [scene(99)] * 60)
    video("few points.mp4", faces(60))
    save_points(raw / "few points.mp4", faces(30))
    assert prepare(raw, data) == 0
    assert outcomes(data) == {
        "short.mp4": (0, ("too short",)),
        "long enough.mp4": (1, ()),
        "small.mp4": (0, ("face too small",)),
        "moves.mp4": (0, ("face moves",)),
        "two.mp4": (0, ("two faces",)),
        "nobody.mp4": (0, ("no face",)),
        "turned.mp4": (0, ("head turned",)),
        "mute.mp4": (1, ()),
        "silent.mp4": (1, ()),
        "the same.mp4": (0, ("duplicate",)),
        "broken.mp4": (0, ("unreadable",)),
        "no points.mp4": (0, ("no landmarks",)),
        "few points.mp4": (0, ("no landmarks",)),
    }
    assert {c.source for s in records(data).values() for c in s.clips if c.voiced} == set()
    assert records(data)["the same.mp4"].duplicate_of == "silent.mp4"
    whole = [p for s in records(data).values() for p in s.rejected if p.value is None]
    assert len(whole) == 4 and all(p.detail.endswith(".") for p in whole)
    short = records(data)["short.mp4"].rejected[0]
    assert (short.value, short.limit) == (1.96, 2.0)


def _rolled(points: np.ndarray, degrees: float) -> np.ndarray:
    angle, middle = np.radians(degrees), points.mean(0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return ((points - middle) @ turn.T + middle).astype(np.float32)


def test_cuts_and_long_videos_become_several_clips(tmp_path: Path) -> None:
    raw, data = tmp_path / "raw", tmp_path / "data"
    write(raw / "a.mp4", [scene(i >= 60) for i in range(200)], sound=tone(8))
    save_points(raw / "a.mp4", faces(200))
    assert prepare(raw, data, "--max-seconds", "3") == 0
    clips = records(data)["a.mp4"].clips
    assert [(c.start, c.end) for c in clips] == [(0.0, 2.4), (2.4, 5.2), (5.2, 8.0)]
    assert [c.name for c in clips] == [f"{name_of('a.mp4')}-{i:03d}" for i in range(3)]
    first, second = (read_video(data / "clips" / f"{c.name}.mp4")[0] for c in clips[:2])
    assert (first[0] - first[-1]).abs().mean() < 0.02 < (first[-1] - second[0]).abs().mean()


def test_nothing_kept_is_an_error_that_says_what_to_look_at(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert prepare(raw, tmp_path / "data", "--min-face-pixels", "200") == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("Nothing was kept: 3 of 3 pieces were rejected for 'face too small'")
    assert "median 70 px, limit 200" in last and "--min-face-pixels" in last


def test_no_videos_and_wrong_folders_are_one_sentence(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "empty" / "notes.txt").write_text("no video")
    sentence = prepare(tmp_path / "empty", tmp_path / "data")
    assert "empty holds no video" in sentence and sentence.startswith("python -m loopy_model.prepare: ")
    assert not (tmp_path / "data").exists()
    assert "is no folder" in prepare(tmp_path / "nothing", tmp_path / "data")
    assert "the same" in prepare(raw, raw)
    assert "cannot make the folder" in prepare(raw, tmp_path / "file" / "data")
    assert "multiple of 8" in prepare(raw, tmp_path / "data", "--size", "100")
    assert "is not known" in prepare(raw, tmp_path / "data", "--landmarks", "eyes")
    assert "--test x: no raw video" in prepare(raw, tmp_path / "data", "--test", "x")


# --- train and test -----------------------------------------------------------------------------


def test_named_sources_are_test_and_the_share_is_by_name(raw: Path, tmp_path: Path) -> None:
    assert prepare(raw, tmp_path / "one", "--test", "Größe 日本") == 0
    splits = {name: source.split for name, source in records(tmp_path / "one").items()}
    assert splits == {"a.mp4": "train", "b.mp4": "train", "sub/Größe 日本.mp4": "test"}
    assert prepare(raw, tmp_path / "all", "--test-share", "1", "--size", "16") == 0
    assert {c.split for s in records(tmp_path / "all").values() for c in s.clips} == {"test"}


# --- again --------------------------------------------------------------------------------------


def times(data: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for kind in ("clips", "sources") for p in (data / kind).iterdir()}


def test_a_second_run_does_no_work_twice(raw: Path, prepared: Path, tmp_path: Path) -> None:
    data = shutil.copytree(prepared, tmp_path / "data")
    before = times(data)
    assert prepare(raw, data) == 0
    assert times(data) == before


def test_only_a_changed_source_is_done_again(raw: Path, prepared: Path, tmp_path: Path) -> None:
    source, data = shutil.copytree(raw, tmp_path / "raw"), shutil.copytree(prepared, tmp_path / "data")
    before = times(data)
    talk(source / "b.mp4", 2.0, 7)
    assert prepare(source, data) == 0
    changed = {name for name, when in times(data).items() if when != before.get(name)}
    assert {name[: len(name_of("b.mp4"))] for name in changed} == {name_of("b.mp4")} and len(changed) == 4
    assert records(data)["b.mp4"].clips[0].frames == 50


@pytest.mark.parametrize("kind", ["mp4", "safetensors"])
def test_a_deleted_file_of_a_clip_is_made_again(raw: Path, prepared: Path, tmp_path: Path, kind: str) -> None:
    data = shutil.copytree(prepared, tmp_path / "data")
    before = times(data)
    (data / "clips" / f"{name_of('a.mp4')}-000.{kind}").unlink()
    assert prepare(raw, data) == 0
    assert contents(data) == contents(prepared)
    changed = {name for name, time in times(data).items() if before[name] != time}
    assert changed and all(name_of("a.mp4") in name for name in changed)


def test_what_is_passed_over_is_named_and_links_to_nothing_are_rejected(
    raw: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, data = shutil.copytree(raw, tmp_path / "raw"), shutil.copytree(prepared, tmp_path / "data")
    (source / "sub" / "voice.m4a").write_text("")
    (source / ".DS_Store").write_text("")
    (source / os.fsdecode(b"caf\xe9.txt")).write_text("")
    (source / "lost.mp4").symlink_to("nowhere.mp4")
    assert prepare(source, data) == 0
    assert "passed over: 4; report.md names them." in capsys.readouterr().out
    shown = (data / "report.md").read_text(encoding="utf-8").partition("passed over")[2]
    names = [line[3:-1] for line in shown.splitlines() if line.startswith("- `")]
    assert names == [".DS_Store", "caf\\udce9.txt", "notes.txt", "sub/voice.m4a"]
    (piece,) = records(data)["lost.mp4"].rejected
    assert piece.reason == "unreadable"
    assert piece.detail == "it is a link to nowhere.mp4, which does not exist."
    before = times(data)
    assert prepare(source, data) == 0 and times(data) == before


def test_a_download_that_broke_off_is_called_so_whatever_detector(tmp_path: Path) -> None:
    """Its points are there and complete; where there are none, that is what is said."""
    raw, data = tmp_path / "raw", tmp_path / "data"
    for name in ("points", "none"):
        talk(raw / f"{name}.mkv", 6)
        content = (raw / f"{name}.mkv").read_bytes()
        (raw / f"{name}.mkv").write_bytes(content[: len(content) * 6 // 10] + name.encode())
    (raw / "none.points.safetensors").unlink()
    assert prepare(raw, data) == 1
    (points,), (none,) = (records(data)[f"{name}.mkv"].rejected for name in ("points", "none"))
    assert points.reason == "unreadable" and points.detail.endswith("it is cut off.")
    assert none.reason == "no landmarks" and "none.points.safetensors does not exist" in none.detail
    shutil.copy(raw / "points.points.safetensors", raw / "none.points.safetensors")  # now they are there
    encoded = data / "encoded" / f"{name_of('none.mkv')}-000.safetensors"  # of what is no longer true
    encoded.parent.mkdir()
    encoded.touch()
    assert prepare(raw, data) == 1 and not encoded.exists()
    ((none,),) = (records(data)[f"{name}.mkv"].rejected for name in ("none",))
    assert none.reason == "unreadable"


def test_what_could_not_be_opened_is_tried_again(raw: Path, tmp_path: Path) -> None:
    settings = Settings(Filters(), "facemesh", None, 64, 0.0, ())
    [job, *_], _ = plan(raw, tmp_path, settings, (1, 1))
    for reason, done in ((UNREADABLE, True), (NO_ACCESS, False), (NO_LANDMARKS, False)):
        write_source(job.record, job.rejected(reason, "a sentence."))
        assert is_done(job) == done


def test_a_video_of_very_many_pieces_has_a_sheet_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG is at most 65,535 rows high."""
    monkeypatch.setattr("loopy_model.prepare.source.MOST_ROWS", 2)
    path = tmp_path / "sources" / f"{name_of('a.mp4')}.jpg"
    _write_sheet(path, [np.full((THUMBNAIL, THUMBNAIL, 3), 200, np.uint8)] * (3 * COLUMNS))
    with Image.open(path) as sheet:
        assert sheet.height == 2 * THUMBNAIL
    last, beyond = (Tile("a.mp4", index, ()) for index in (2 * COLUMNS - 1, 2 * COLUMNS))
    assert thumbnail(tmp_path, last).size == (THUMBNAIL, THUMBNAIL) and thumbnail(tmp_path, beyond) is None


def test_other_settings_are_refused_unless_again(raw: Path, prepared: Path, tmp_path: Path) -> None:
    data = shutil.copytree(prepared, tmp_path / "data")
    before = times(data)
    sentence = prepare(raw, data, "--max-angle", "30")
    assert "max-angle was 45.0, now 30.0" in sentence and "--again" in sentence
    assert times(data) == before
    write_held_out(data, "a.mp4")
    assert prepare(raw, data, "--max-angle", "30", "--again") == 0
    assert read_held_out(data) is None  # chosen anew, as all else
    assert not set(times(data).values()) & set(before.values())
    assert "max-angle was 30.0" in prepare(raw, data)


def test_a_copy_that_comes_first_takes_over(raw: Path, prepared: Path, tmp_path: Path) -> None:
    source, data = shutil.copytree(raw, tmp_path / "raw"), shutil.copytree(prepared, tmp_path / "data")
    for kind in (".mp4", ".points.safetensors"):
        shutil.copy(source / f"a{kind}", source / f"Anna{kind}")
    assert prepare(source, data) == 0
    assert outcomes(data)["a.mp4"] == (0, ("duplicate",)) and outcomes(data)["Anna.mp4"] == (1, ())
    assert not list((data / "clips").glob(f"{name_of('a.mp4')}-*"))


# --- several processes and machines -------------------------------------------------------------


def test_two_shards_and_two_workers_equal_one_run(raw: Path, prepared: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for shard in ("1/2", "2/2"):
        prepare(raw, data, "--shard", shard, "--workers", "2")
    assert contents(data) == contents(prepared)
    for name in ("1/0", "3/2", "x"):
        with pytest.raises(SystemExit):
            main(["clips", str(raw), str(data), "--shard", name])


def command(raw: Path, data: Path, *more: str) -> multiprocessing.Process:
    """The command in a process of its own, as a terminal starts it."""
    arguments = ["clips", str(raw), str(data), *QUICK, *more]
    process = multiprocessing.get_context("spawn").Process(target=_in_a_terminal, args=(arguments,))
    process.start()
    return process


def _in_a_terminal(arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    main(arguments)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def worker(data: Path, source: str) -> int | None:
    """Process id of who has a source in work."""
    with suppress(OSError, ValueError, IndexError):
        return int((data / "sources" / f"{name_of(source)}.in-work").read_text().split()[0])


def alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_killed_run_goes_on_to_the_same_records(raw: Path, prepared: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    process = command(raw, data)
    until(lambda: worker(data, "b.mp4") is not None)
    orphan = worker(data, "b.mp4")
    process.kill()
    process.join()
    until(lambda: not alive(orphan), 5)  # the worker does not outlive its run
    assert len(records(data)) in (1, 2)
    assert prepare(raw, data) == 0
    assert contents(data) == contents(prepared)


def test_ctrl_c_ends_quickly_and_leaves_nothing_half_written(
    raw: Path, prepared: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    process = command(raw, data)
    until(lambda: worker(data, "b.mp4") is not None)
    os.kill(worker(data, "b.mp4"), signal.SIGSTOP)  # so that it cannot be done before the signal arrives
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 130
    left = {path.name for kind in ("clips", "sources") for path in (data / kind).iterdir()}
    assert not [name for name in left if "partial" in name or "in-work" in name or name_of("b.mp4") in name]
    assert prepare(raw, data) == 0
    assert contents(data) == contents(prepared)


@contextmanager
def strike(data: Path, source: str, with_signal: int) -> Iterator[None]:
    """Send a signal to every process that has `source` in work: a file that breaks its decoder."""
    over = threading.Event()

    def watch() -> None:
        struck = None
        while not over.wait(0.002):
            found = worker(data, source)
            if found is not None and found != struck:
                with suppress(ProcessLookupError):
                    os.kill(found, with_signal)
                struck = found

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGSTOP], ids=["kills", "hangs"])
def test_a_file_that_breaks_its_process_costs_that_file_alone(
    raw: Path, prepared: Path, tmp_path: Path, with_signal: int
) -> None:
    data = tmp_path / "data"
    with strike(data, "b.mp4", with_signal):
        assert prepare(raw, data, "--workers", "2", "--patience", "1.5") == 0
    found = outcomes(data)
    assert found.pop("b.mp4") == (0, ("crashed the decoder",))
    assert found == {"a.mp4": (1, ()), "sub/Größe 日本.mp4": (1, ())}
    assert not list((data / "sources").glob("*.in-work"))
    assert not list((data / "clips").glob(f"*{name_of('b.mp4')}*"))


def test_a_full_disk_ends_the_run_with_one_sentence(raw: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        sentence = prepare(raw, data, "--size", "512")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot write" in sentence and ".mp4: File too large" in sentence
    assert [path for kind in ("clips", "sources") for path in (data / kind).iterdir()] == []
