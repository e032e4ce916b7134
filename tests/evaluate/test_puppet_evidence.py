"""What is claimed of the puppet is measured by these functions: worked by hand, and run for real."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("espeakng_loader")
pytest.importorskip("matplotlib")

from loopy_model.evaluate.held_out import held_out, movement_of
from loopy_model.evaluate.puppet import Laboratory, build_parser, main
from loopy_model.evaluate.puppet_report import rows_of, summarise, tables
from loopy_model.puppet.motion import MOTION
from loopy_model.video import read_video

SHORT = (
    "--faces 2 --seconds 0.48 --long-faces 1 --long-seconds 1 --level-faces 1 --level-seconds 0.48 --steps 2"
)


def face(opening: list[float], truth: list[float], **values: float) -> dict:
    def motion(trace: list[float]) -> list[list[float]]:
        poses = np.zeros((len(trace), len(MOTION)))
        poses[:, MOTION.index("open")] = trace
        poses[:, MOTION.index("width")] = trace
        return poses.tolist()

    defaults = dict.fromkeys(
        ("identity", "identity_ceiling", "identity_floor", "flat_noise", "flat_noise_ceiling"), 0.01
    )
    movement = {"glo": 1.0, "glo_truth": 1.5, "exp": 0.2, "exp_truth": 0.1}
    return {
        "read": motion(opening),
        "ceiling": motion(truth),
        "truth": motion(truth),
        **defaults,
        **movement,
        **values,
    }


def test_lip_sync_ceiling_and_floor_by_hand() -> None:
    pieces = {
        "face-00": face([0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0]),
        "face-01": face([0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]),
    }
    found = summarise(pieces)["lip_sync"]
    assert found["generated"]["open"] == pytest.approx(0) and found["generated"]["open_lowest"] == -1
    assert found["ceiling"]["open"] == pytest.approx(1)
    assert found["floor"]["open"] == pytest.approx(0)  # each against the other's truth


def test_differences_of_glo_and_exp_are_per_video() -> None:
    """DGlo and DExp (appendix B): two errors of opposite sign do not cancel."""
    pieces = {
        "face-00": face([0, 1], [0, 1], glo=1.0, glo_truth=1.5),
        "face-01": face([0, 1], [0, 1], glo=2.0, glo_truth=1.5),
    }
    found = summarise(pieces)["movement"]
    assert found["glo"] == found["glo_truth"] == 1.5 and found["dglo"] == pytest.approx(0.5)
    assert found["dexp"] == pytest.approx(0.1)


def test_levels_are_sorted_and_averaged_over_the_faces() -> None:
    pieces = {
        f"head-movement-{level:.2f}-{n:02}": {"glo": level + n, "exp": 9.0}
        for level in (0.5, 0.0, 1.0)
        for n in range(2)
    }
    assert summarise(pieces)["glo_by_level"] == {"0.00": 0.5, "0.50": 1.0, "1.00": 1.5}


def test_rhythm_errors_are_of_the_means_and_of_the_median_face() -> None:
    def piece(blink: float, truth: float) -> dict:
        return {
            "blink_interval": blink,
            "blink_interval_truth": truth,
            "sway_period": 3.0,
            "sway_period_truth": 4.0,
            "drift": {"mean": 0.01, "contrast": 0.02, "sharpness": 0.03},
            "statistics": {name: [1.0, 1.1, 1.2] for name in ("mean", "contrast", "sharpness")},
        }

    found = summarise({"long-00": piece(2.0, 4.0), "long-01": piece(6.0, 4.0), "long-02": piece(4.0, 4.0)})
    rhythm = found["rhythm"]
    assert rhythm["blink_interval_error"] == pytest.approx(0)
    assert rhythm["blink_interval_error_per_face"] == pytest.approx(0.5)
    assert rhythm["sway_period_error"] == pytest.approx(0.25)
    assert found["drift"]["sharpness"] == 0.03 and found["drift"]["mean_trend"] == pytest.approx(0.2)


def test_glo_of_read_poses_is_that_of_the_drawn_landmarks() -> None:
    """A head that jumps between two places, one half-width of sway apart from the middle."""
    truth = held_out(0, 24, 64, drawn=1)
    poses = torch.zeros(24, len(MOTION))
    poses[::2, MOTION.index("head_x")], poses[1::2, MOTION.index("head_x")] = 1.0, -1.0
    glo, exp = movement_of(truth.identity, poses, 12)
    # The nose goes 0.14 + 0.05 image half-widths to each side: (0.19 / 2)^2 x 1000.
    assert glo == pytest.approx(0.095**2 * 1000, rel=1e-4)
    assert math.isfinite(exp)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence")
    main(["--report", str(folder), *SHORT.split()])
    return folder


def test_a_run_writes_every_figure_a_page_and_videos_that_play(report: Path) -> None:
    results = json.loads((report / "results.json").read_text())
    groups = {"lip_sync", "picture", "movement", "continuation", "rhythm", "drift", "glo_by_level"}
    assert groups <= results.keys()
    assert list(results["exp_by_level"]) == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert len(tables(results).splitlines()) == len(rows_of(results)) > 40
    page = (report / "report.html").read_text()
    for name, frames in (("face-00", 12), ("face-01", 12), ("long-00", 25)):
        assert f"videos/{name}.mp4" in page
        pictures, fps, sound, _ = read_video(report / "videos" / f"{name}.mp4")
        assert len(pictures) == frames and fps == 25 and sound is not None


def test_a_second_run_makes_nothing_again_but_what_is_missing(
    report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (report / "results.json").read_text()
    (report / "pieces" / "continued-01.json").unlink()
    made: list[int] = []
    go_on = Laboratory.go_on
    monkeypatch.setattr(Laboratory, "go_on", lambda self, n: made.append(n) or go_on(self, n))
    for other in ("talk", "talk_long", "at_level"):
        monkeypatch.setattr(Laboratory, other, None)
    main(["--report", str(report), *SHORT.split()])
    assert made == [1] and (report / "results.json").read_text() == before


def test_processes_share_the_work_by_name(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("face-00", "long-00"):
        (report / "pieces" / f"{name}.json").unlink()
    made: list[str] = []
    for kind in ("talk", "talk_long"):
        make = getattr(Laboratory, kind)
        monkeypatch.setattr(Laboratory, kind, lambda self, n, k=kind, m=make: made.append(k) or m(self, n))
    laboratory = Laboratory(
        build_parser().parse_args(["--report", str(report), *SHORT.split(), "--only", "long"])
    )
    assert "face-00" not in laboratory.run() and made == ["talk_long"]
    main(["--report", str(report), *SHORT.split()])
    assert made == ["talk_long", "talk"]


def test_another_setting_makes_the_pieces_again(report: Path) -> None:
    args = build_parser().parse_args(["--report", str(report), *SHORT.split()])
    laboratory = Laboratory(args)
    assert laboratory.made_by["sampling"] == [2, 3.0, 1.5]
    path = report / "pieces" / "face-00.json"
    assert json.loads(path.read_text())["made_by"] == {**laboratory.made_by, "length": 0.48}


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no model .*nowhere.safetensors"):
        main(["--report", str(tmp_path), "--model", str(tmp_path / "nowhere.safetensors")])
