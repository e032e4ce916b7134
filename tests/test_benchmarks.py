"""The benchmark counts and compares rightly, and a step is as fast as is claimed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import long_voice, options, sampling
from benchmarks.measure import clocks, in_turns, operations
from benchmarks.subjects import BRANCHES, Sampling, sized, yardsticks
from loopy_model.adapter import save_adapter
from loopy_model.config import LOOPY, PUPPET
from loopy_model.pipeline import BUNDLED, Pipeline
from loopy_model.weights import ModelCard


def test_operations_are_two_for_each_multiplication() -> None:
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    assert operations(lambda: a @ b) == 2 * 3 * 5 * 7


def test_clocks_are_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert clocks() == ""
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 1980 MHz, 2619 MHz, 700.00 W\n")
    driver.chmod(0o755)
    assert clocks() == "1980 MHz, 2619 MHz, 700.00 W"


def test_of_twenty_motion_frames_eight_are_new_to_a_clip() -> None:
    segments = (range(4), range(4, 12, 2), range(12, 28, 4), range(28, 60, 8), range(60, 124, 16))
    assert LOOPY.clip.motion_ages == tuple(age for segment in segments for age in segment)
    assert sampling.new_motion_frames(LOOPY.clip) == 8  # 0, 1, 2, 3, 4, 6, 8 and 10


def test_all_is_written_down_and_adds_up(tmp_path: Path) -> None:
    arguments = ["--size", "4", "--rounds", "1", "--only", "whole", "steps", "clip", "parts", "memory"]
    sampling.main(["--report", str(tmp_path), *arguments])
    result = json.loads((tmp_path / "benchmark.json").read_text())
    steps, clip = result["steps"]["branches"], result["clip"]
    branch = steps["audio, reference"]["gflop"] - steps["audio"]["gflop"]  # the picture, without the voice
    base = steps["audio, base"]["gflop"] - steps["audio"]["gflop"]
    assert base < branch < steps["audio"]["gflop"]
    assert clip["25 steps"]["tflop"] == pytest.approx(25 * steps["audio, reference, base"]["gflop"] / 1000)
    assert sum(result["parts"].values()) == pytest.approx(1)
    assert {"spatial attention", "reference attention", "audio attention"} < result["parts"].keys()
    whole, parts = result["whole"], [part["tflop"] for part in clip.values()]
    assert whole["tflop_per_second"] * whole["seconds_a_clip"] == pytest.approx(sum(parts))
    assert 0 < whole["share_of_matrix_rate"] < 1 and whole["peak_memory_gb"] > 0.1
    assert 0 < result["memory"]["more_operations"] < 0.01
    assert "| VAE |" in (tmp_path / "benchmark.md").read_text()


def test_a_clip_of_full_size_is_counted_without_a_card(tmp_path: Path) -> None:
    sampling.main(["--report", str(tmp_path), "--width", "full", "--only", "count"])
    found = json.loads((tmp_path / "benchmark.json").read_text())["count"]
    assert 1200 < sum(found.values()) < 1306  # what it takes when nothing is done twice, portrait included
    assert "| all | " in (tmp_path / "benchmark.md").read_text()


def test_a_step_of_two_branches_is_about_as_fast_as_two_passes_of_animatediff() -> None:
    """All conditions and none, as classifier-free guidance usually has them. Where both branches have the
    portrait, both look at twice as many tokens; AnimateDiff never does."""
    config = sized("reduced", 32)
    with torch.inference_mode():
        subject = Sampling(config, "cpu", torch.float32)
        two = {name: subject.step(BRANCHES[name]) for name in ("audio, base", "audio, reference")}
        one = yardsticks(config, "cpu", torch.float32)["UNetMotionModel"]
        taken = in_turns(two | {"diffusers": one}, "cpu", 5)
    assert taken["audio, base"] <= 1.15 * 2 * taken["diffusers"]
    assert taken["audio, reference"] <= 1.35 * 2 * taken["diffusers"]


def test_a_long_voice_needs_hardly_more_memory() -> None:
    first, last = long_voice.peaks([0.5, 2]).values()
    assert 2e8 < first and last <= 1.1 * first


def test_a_clip_is_measured_in_the_real_host(tmp_path: Path) -> None:
    """In a process of its own, which becomes a ComfyUI. There is no card here to be made small."""
    small = ["--width", "reduced", "--size", "4", "--steps", "2", "--precision", "fp32", "--gigabytes", "4"]
    command = [sys.executable, "-m", "benchmarks.small_card", "--report", str(tmp_path), *small]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert result["card_gb"] == 4 and result["seconds_a_clip"] > 0 and result["peak_memory_gb"] > 0.5
    assert "| seconds_a_clip | peak_memory_gb |" in done.stdout


def test_options_are_compared_with_the_exact_video(tmp_path: Path) -> None:
    student, name = tmp_path / "student.safetensors", "audio_norm.bias"
    weights = Pipeline(BUNDLED).model.state_dict()  # a student that learnt nothing
    same = {f"full.{name}": weights[name]}
    save_adapter(student, PUPPET, ModelCard("", "", "", ""), same, student_steps=3)
    options.main(
        ["--report", str(tmp_path), "--faces", "1", "--seconds", "0.96"] + ["--student", str(student)]
    )
    rows = json.loads((tmp_path / "options.json").read_text())
    exact = rows.pop("exact: ddim, 25 steps")
    assert exact["time"] == 1 and exact["db_to_exact"] == pytest.approx(100)
    for row in rows.values():
        assert 10 < row["db_to_exact"] < 80
    assert rows["dpm++ 2m, 12 steps"]["time"] < 0.8
    assert rows["guidance in the first 60 %"]["time"] < 1
    own, taught = (rows[f"{kind}, 3 steps, one branch"] for kind in ("ddim", "distilled"))
    assert own | {"time": 0} == taught | {"time": 0} and own["time"] < rows["ddim, 3 steps"]["time"] < 0.4
