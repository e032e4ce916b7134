"""A folder of raw videos as one finds them, taken through the three commands as a user gives them.

Nothing here knows how the commands work: they run in processes of their own, and what they leave is
read from the data folder, its report and the clips.
"""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

pytest.importorskip("ai_edge_litert")
pytest.importorskip("cv2")
pytest.importorskip("scenedetect")
pytest.importorskip("espeakng_loader")
pytest.importorskip("skimage")

from raw_videos import DRAWN, NAMED, OUTCOMES, PHONE, REAL, STEADY, make_raw_videos, speech

from loopy_model.movement import mouth_opening
from loopy_model.video import read_video

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "assets/models/loopy-puppet.safetensors"
LANDMARKS = {DRAWN: "points", REAL: "facemesh"}
TEST = {DRAWN: "puppet_2.mp4", REAL: "steady.mp4"}  # kept for testing
SIZE = 128  # what the bundled model sees


def command(module: str, *arguments: object) -> str:
    """Runs `python -m module` -> what it says. Fails when it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, encoding="utf-8")
    assert done.returncode == 0, f"{' '.join(line)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    make_raw_videos(folder)
    return folder


def prepare_clips(raw: Path, data: Path, kind: str) -> str:
    return command(
        "loopy_model.prepare", "clips", raw / kind, data / kind,
        "--landmarks", LANDMARKS[kind], "--size", SIZE, "--test-share", 0, "--test", TEST[kind],
    )  # fmt: skip


@pytest.fixture(scope="session")
def data(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folders of both kinds, with their clips."""
    folder = tmp_path_factory.mktemp("data")
    for kind in (DRAWN, REAL):
        prepare_clips(raw, folder, kind)
    return folder


@pytest.fixture(scope="session")
def encoded(data: Path) -> Path:
    for kind in (DRAWN, REAL):
        command("loopy_model.prepare", "encode", data / kind, "--model", MODEL)
    return data


def report(data: Path, kind: str) -> list[dict[str, str]]:
    with open(data / kind / "report.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows_of(data: Path, path: str) -> list[dict[str, str]]:
    kind, _, source = path.partition("/")
    return [row for row in report(data, kind) if row["source"] == source]


# --- clips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", OUTCOMES)
def test_every_video_becomes_what_it_should_and_the_report_says_why(data: Path, path: str) -> None:
    expected, rows = OUTCOMES[path], rows_of(data, path)
    kept = [row for row in rows if row["outcome"] == "kept"]
    rejected = [row for row in rows if row["outcome"] == "rejected"]
    assert len(kept) == expected.clips and len(kept) + len(rejected) == len(rows) > 0
    assert {row["voiced"] for row in kept} <= {str(expected.voiced)}
    assert {row["reason"] for row in rejected} == ({expected.reason} if expected.reason else set())
    for row in rejected:
        if expected.value is None:
            assert row["detail"].endswith(".")  # a sentence, where there is no number
        else:
            low, high = expected.value
            assert low <= float(row["value"]) <= high and float(row["limit"]) > 0


def test_the_report_lists_all_videos_and_nothing_else(data: Path) -> None:
    listed = {f"{kind}/{row['source']}" for kind in (DRAWN, REAL) for row in report(data, kind)}
    assert listed == set(OUTCOMES)


def test_the_copy_says_what_it_is_a_copy_of(data: Path) -> None:
    (row,) = rows_of(data, "real/steady_copy.mp4")
    assert "steady.mp4" in row["detail"]


def test_the_videos_named_for_testing_are_test(data: Path) -> None:
    for kind in (DRAWN, REAL):
        test = {row["source"] for row in report(data, kind) if row["split"] == "test"}
        assert test == {TEST[kind]}


def test_the_scenes_of_a_cut_are_told_apart(data: Path) -> None:
    for path in ("drawn/cut.mp4", "real/cut.mp4"):
        times = [(float(row["start"]), float(row["end"])) for row in rows_of(data, path)]
        assert times == [(0.0, 2.4), (2.4, 4.8)]


def test_the_same_command_again_changes_nothing(raw: Path, data: Path) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        clips = (data / REAL / "clips").iterdir()
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in clips}

    before, rows, begun = state(), report(data, REAL), time.monotonic()
    prepare_clips(raw, data, REAL)
    assert state() == before and report(data, REAL) == rows
    assert time.monotonic() - begun < 10


class Clip:
    """The files of the only clip of a raw video."""

    def __init__(self, data: Path, path: str) -> None:
        (row,) = rows_of(data, path)
        stem = data / path.partition("/")[0] / "clips" / row["clip"]
        self.landmarks = load_file(stem.with_name(f"{stem.name}.safetensors"))["landmarks"]
        with safe_open(stem.with_name(f"{stem.name}.safetensors"), "pt") as file:
            self.record = json.loads(file.metadata()["clip"])
        self.frames, self.fps, self.waveform, self.rate = read_video(stem.with_name(f"{stem.name}.mp4"))


@pytest.mark.parametrize("path", [path for path, outcome in OUTCOMES.items() if outcome.clips == 1])
def test_a_clip_is_a_square_at_25_fps_with_the_face_in_it(data: Path, path: str) -> None:
    clip = Clip(data, path)
    assert clip.frames.shape[1:] == (SIZE, SIZE, 3) and clip.fps == 25
    assert len(clip.frames) == len(clip.landmarks) == clip.record["frames"]
    assert 0 <= clip.landmarks.min() and clip.landmarks.max() <= 1
    assert 0.3 < np.ptp(clip.landmarks[..., 0].numpy(), axis=1).mean() < 0.8
    assert (clip.waveform is not None) == OUTCOMES[path].voiced


@pytest.mark.parametrize("seed", range(3))
def test_drawn_points_arrive_exactly(raw: Path, data: Path, seed: int) -> None:
    clip = Clip(data, f"drawn/puppet_{seed}.mp4")
    x, y, side = clip.record["box"]
    truth = load_file(raw / f"drawn/puppet_{seed}.points.safetensors")["points"] * torch.tensor([568, 320])
    assert torch.allclose(clip.landmarks * side + torch.tensor([x, y]), truth, atol=1e-2)


@pytest.mark.parametrize(
    "path, seed", [("steady.mp4", STEADY), ("Größe/видео 日本.mp4", NAMED), ("phone.mp4", PHONE)]
)
def test_lips_and_voice_of_a_real_clip_stay_together(data: Path, path: str, seed: int) -> None:
    """At 25 and 30 fps and with uneven frames: the mouth that the landmarks show opens with the words,
    and the voice is where it was, both to the frame."""
    clip, said = Clip(data, f"real/{path}"), speech(seed, 4.0 if seed == STEADY else 3.0)
    opening = mouth_opening(clip.landmarks).numpy()
    truth = said.visemes[: len(opening), 0]
    by_lag = {lag: correlation(np.roll(opening, lag), truth) for lag in range(-4, 5)}
    assert by_lag[0] > 0.8 and max(by_lag, key=by_lag.get) == 0
    assert clip.rate == 16_000
    voice = clip.waveform[0].numpy()
    assert correlation(voice, said.waveform[: len(voice)]) > 0.95


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


# --- encode and train ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DRAWN, REAL])
def test_every_clip_is_encoded(encoded: Path, kind: str) -> None:
    kept = [row for row in report(encoded, kind) if row["outcome"] == "kept"]
    files = {path.stem: path for path in (encoded / kind / "encoded").glob("*.safetensors")}
    assert set(files) == {row["clip"] for row in kept}
    for row in kept:
        tensors = load_file(files[row["clip"]])
        frames = round((float(row["end"]) - float(row["start"])) * 25)
        assert tensors["latents"].shape == (frames, 32, SIZE // 16, SIZE // 16)
        assert tensors["landmarks"].shape == (frames, 68, 2)
        assert ("speech" in tensors) == (row["voiced"] == "True")
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_encoding_again_finds_everything_there(encoded: Path) -> None:
    files = sorted((encoded / DRAWN / "encoded").glob("*.safetensors"))
    before = [path.stat().st_mtime_ns for path in files]
    command("loopy_model.prepare", "encode", encoded / DRAWN, "--model", MODEL)
    assert [path.stat().st_mtime_ns for path in files] == before


def train(data: Path, run: Path, *arguments: object) -> str:
    return command(
        "loopy_model.train", "--data", data, "--run-dir", run, "--threads", 1, "--device", "cpu", *arguments
    )


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_training_from_nothing_takes_every_stage(encoded: Path, tmp_path: Path) -> None:
    short = ("--steps", 2, 1, 1, 1, "--batch", 2, 1, 1, 1, "--preview-every", 0)
    train(encoded / DRAWN, tmp_path, "--recipe", "puppet", *short)
    assert len(losses(tmp_path)) == 5 and np.isfinite(losses(tmp_path)).all()
    assert (tmp_path / "loopy.safetensors").stat().st_size > 1_000_000


def test_the_bundled_model_is_fine_tuned_on_the_real_clips(encoded: Path, tmp_path: Path) -> None:
    short = ("--steps", 2, "--batch", 1, "--lips", "facemesh")
    train(encoded / REAL, tmp_path, "--recipe", "finetune", "--base", MODEL, *short)
    assert len(losses(tmp_path)) == 2 and np.isfinite(losses(tmp_path)).all()
    assert (tmp_path / "adapter.safetensors").stat().st_size > 100_000
    report = (tmp_path / "report.md").read_text()
    assert "Result: `adapter.safetensors`" in report and "| fine-tune | 2 of 2 | 1 |" in report
    assert {path.suffix for path in (tmp_path / "previews").iterdir()} == {".mp4", ".jpg"}
