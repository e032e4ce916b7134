"""What is claimed of the puppet is measured by these functions: worked by hand, and run for real."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("espeakng_loader")
pytest.importorskip("matplotlib")

from loopy_model.evaluate.drift import STATISTICS
from loopy_model.evaluate.held_out import METER, held_out, movement_of
from loopy_model.evaluate.puppet import VERSION, Evaluation, build_parser, main, write_sheet
from loopy_model.evaluate.puppet_report import from_json, rows_of, summarise, tables, to_json, write_report
from loopy_model.pipeline import BUNDLED
from loopy_model.puppet.fit import save_network
from loopy_model.puppet.meter import FaceMeter
from loopy_model.puppet.motion import MOTION
from loopy_model.video import read_video
from loopy_model.weights import content_digest

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


@pytest.mark.parametrize("name", ["head-movement-0.00-00", "expression-0.50-00", "continued-00"])
def test_a_page_shows_whatever_is_there_so_far(name: str, tmp_path: Path) -> None:
    pieces = {name: {"glo": 1.0, "exp": 2.0, "head": [0.0, 0.1], "truth": [0.1, 0.0], "last": 0.0}}
    write_report(tmp_path, summarise(pieces), pieces)
    assert ("Wanted level" in (tmp_path / "report.html").read_text()) == (name != "continued-00")


DRIFTING = {
    # Of the drawing in the same pose: 1, 1.05 and 1 times.
    "statistics": {name: [1.0, 1.25, 1.2] for name in STATISTICS},
    "statistics_truth": {name: [2.0, 2.0, 2.0] for name in STATISTICS},
    "statistics_posed": {name: [1.0, 1.25 / 1.05, 1.2] for name in STATISTICS},
    "statistics_ceiling": {name: [1.0, 1.1, 1.0] for name in STATISTICS},
    "statistics_ceiling_posed": {name: [1.0, 1.0, 0.98] for name in STATISTICS},
}


def test_rhythm_errors_are_of_each_face_and_of_the_means() -> None:
    def piece(blink: float, truth: float) -> dict:
        return {
            "blink_interval": blink,
            "blink_interval_truth": truth,
            "sway_period": 3.0,
            "sway_period_truth": 4.0,
            **DRIFTING,
        }

    found = summarise({"long-00": piece(2.0, 4.0), "long-01": piece(6.0, 4.0), "long-02": piece(4.0, 4.0)})
    blinks = found["rhythm"]["blink_interval"]
    assert blinks["generated"] == blinks["truth"] == 4.0 and blinks["error_of_means"] == pytest.approx(0)
    assert blinks["error"] == pytest.approx(1 / 3) and blinks["memoryless"] == 0  # all are equal in truth
    assert found["rhythm"]["sway_period"]["error"] == pytest.approx(0.25)
    none = summarise({"long-00": piece(float("nan"), 2.0), "long-01": piece(6.0, 6.0)})["rhythm"]
    assert none["blink_interval"]["without_rhythm"] == 1
    assert none["blink_interval"]["error"] == pytest.approx(0.5)
    assert none["blink_interval"]["error_of_means"] == pytest.approx(0)  # 6 s against 6 s: of the second face
    assert none["blink_interval"]["memoryless"] == pytest.approx((0 + 2 / 3) / 2)  # 2 s, of 2 and of 6


STEADY = {"blink_interval": 3.0, "blink_interval_truth": 3.0, "sway_period": 3.0, "sway_period_truth": 3.0}


def test_drift_at_equal_pose_leaves_out_what_the_face_does() -> None:
    """What the poses explain is no drift, even where the truth was steady."""
    found = summarise({"long-00": {**STEADY, **DRIFTING}})["drift"]
    assert found["generated"]["mean"] == pytest.approx(0.25)
    assert found["generated"]["mean_trend"] == pytest.approx(0.2 / 1.05)  # the line starts at 1.05
    assert found["truth"]["mean"] == 0
    assert found["equal_pose"]["mean"] == pytest.approx(0.05)
    assert found["equal_pose"]["mean_trend"] == pytest.approx(0.0, abs=1e-9)
    assert found["ceiling"]["mean"] == pytest.approx(0.1)


def test_drift_over_turns_compares_ten_seconds_with_the_first_ten() -> None:
    turning = [1.0, 1.0, 1.3] * 7  # 21 clips, ten seconds: the same in each stretch
    darker = {"mean": turning + [0.9 * v for v in turning], "contrast": turning * 2, "sharpness": turning * 2}
    level = {name: [1.0] * 42 for name in STATISTICS}
    assert "drift_over_turns" not in summarise({"long-00": {**STEADY, **DRIFTING}})  # too short
    others = {f"statistics{key}": level for key in ("_truth", "_posed", "_ceiling", "_ceiling_posed")}
    found = summarise({"long-00": {**STEADY, "statistics": darker, **others}})
    assert found["drift"]["generated"]["contrast"] == pytest.approx(0.3)
    over = found["drift_over_turns"]
    assert over["generated"] == pytest.approx({"mean": 0.1, "contrast": 0, "sharpness": 0}, abs=1e-9)
    assert over["truth"] == pytest.approx(dict.fromkeys(STATISTICS, 0), abs=1e-9)


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
    results = from_json((report / "results.json").read_text())
    groups = {"lip_sync", "picture", "movement", "continuation", "rhythm", "drift", "glo_by_level"}
    assert groups <= results.keys() and min(results["seconds_per_second"].values()) > 0
    assert list(results["seconds_per_second"])[-1] == "2 threads 3 branches"
    assert 20 < results["autoencoder"]["psnr"] < 40
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
    assert json.loads(before)["made_by"]["long_seconds"] == 1 and "NaN" not in before
    (report / "pieces" / "continued-01.json").unlink()
    made: list[int] = []
    go_on = Evaluation.go_on
    monkeypatch.setattr(Evaluation, "go_on", lambda self, n: made.append(n) or go_on(self, n))
    for other in ("talk", "talk_long", "at_level"):
        monkeypatch.setattr(Evaluation, other, None)
    main(["--report", str(report), *SHORT.split()])
    assert made == [1] and (report / "results.json").read_text() == before


def test_a_process_that_made_only_later_faces_shows_those(report: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(report / "videos", tmp_path / "videos")
    (folder / "face-00.mp4").unlink()
    args = build_parser().parse_args(["--report", str(tmp_path), *SHORT.split()])
    write_sheet(args, ["long-00", "face-01"])
    with Image.open(tmp_path / "contact_sheet.jpg") as one, Image.open(report / "contact_sheet.jpg") as both:
        assert one.height < both.height and one.width == both.width


def test_processes_share_the_work_by_name(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("face-00", "long-00"):
        (report / "pieces" / f"{name}.json").unlink()
    made: list[str] = []
    for kind in ("talk", "talk_long"):
        make = getattr(Evaluation, kind)
        monkeypatch.setattr(Evaluation, kind, lambda self, n, k=kind, m=make: made.append(k) or m(self, n))
    evaluation = Evaluation(
        build_parser().parse_args(["--report", str(report), *SHORT.split(), "--only", "long"])
    )
    assert "face-00" not in evaluation.run() and made == ["talk_long"]
    main(["--report", str(report), *SHORT.split()])
    assert made == ["talk_long", "talk"]


@pytest.mark.parametrize("change", ["--steps 3", "--audio-ratio 2", "--long-seconds 2"])
def test_another_setting_makes_the_pieces_again(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    copy = Path(shutil.copytree(report, tmp_path / "report"))
    made = []
    for kind in ("talk", "go_on", "talk_long"):
        monkeypatch.setattr(Evaluation, kind, lambda self, n, k=kind: made.append(k) or {})
    asked = ["--report", str(copy), *SHORT.split(), *change.split(), "--only", "face", "continued", "long"]
    Evaluation(build_parser().parse_args(asked)).run()
    every = ["talk", "talk", "go_on", "go_on", "talk_long"]
    assert made == (["talk_long"] if "long" in change else every)


def test_another_meter_makes_the_pieces_again(report: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = tmp_path / "meter.safetensors"
    save_network(FaceMeter(), other)
    asked = ["--report", str(report), *SHORT.split()]
    ours, others = (
        Evaluation(build_parser().parse_args([*asked, "--meter", str(m)])) for m in (METER, other)
    )
    assert ours.made_by != others.made_by
    assert {**ours.made_by, "meter": ""} == {**others.made_by, "meter": ""}


def test_a_page_shows_only_what_its_run_made(report: Path, tmp_path: Path) -> None:
    """The folder may still hold the sheet and the videos of another model."""
    folder = Path(shutil.copytree(report, tmp_path / "report"))
    pieces = {p.stem: from_json(p.read_text()) for p in (folder / "pieces").glob("*.json")}
    long = {"long-00": pieces["long-00"]}
    write_report(folder, summarise(long), long)
    page = (folder / "report.html").read_text()
    assert "videos/long-00.mp4" in page and "videos/face" not in page and "data:image/jpeg" not in page
    faces = {"face-01": pieces["face-01"]}
    write_report(folder, summarise(faces), faces)
    page = (folder / "report.html").read_text()
    assert "videos/face-01.mp4" in page and "face-00" not in page and "data:image/jpeg" in page


def test_the_page_says_how_its_figures_were_made(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert (
        f"face meter {content_digest(METER)[:16]}, pieces of version {VERSION}; 2 steps, ratios 1.5" in page
    )
    assert "0.48 s each, levels 0.48 s, long videos 1 s" in page


def test_nan_is_null_in_the_files_and_nan_again_when_read(tmp_path: Path) -> None:
    values = {"blink": [float("nan"), 1.5], "name": "long"}
    text = to_json(values)
    assert text == '{"blink": [null, 1.5], "name": "long"}'
    for written in (text, json.dumps(values)):  # the second as earlier versions did
        assert np.isnan(from_json(written)["blink"][0]) and from_json(written)["blink"][1] == 1.5
    long = {**STEADY, **DRIFTING, "blink_interval": float("nan")}
    results = summarise({"long-00": from_json(to_json(long))})
    assert "null" in to_json(results) and len(tables(from_json(to_json(results))).splitlines()) > 10


def test_a_face_without_its_video_is_made_again(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (report / "videos" / "face-01.mp4").unlink()
    made: list[int] = []
    talk = Evaluation.talk
    monkeypatch.setattr(Evaluation, "talk", lambda self, n: made.append(n) or talk(self, n))
    main(["--report", str(report), *SHORT.split()])
    assert made == [1] and (report / "videos" / "face-01.mp4").is_file()


def test_results_of_videos_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"format": "loopy-evaluation-1"}')
    with pytest.raises(
        SystemExit, match="holds other results than of `evaluate puppet`; give another --report"
    ):
        main(["--report", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "asked, sentence",
    [
        ("--model DIR/nowhere.safetensors", "there is no model .*nowhere.safetensors; check the path"),
        ("--meter DIR/nowhere.safetensors", "there is no meter .*nowhere.safetensors; check the path"),
        ("--model DIR/broken", "broken cannot be read as a safetensors file"),
        ("--meter DIR/broken", "broken is no face meter; `python -m loopy_model.puppet` makes one"),
        (f"--meter {BUNDLED}", "loopy-puppet.safetensors is no face meter"),
        ("--steps 0", "--steps is 0; give 1 or more"),
        ("--steps 2000", "steps is 2000; choose 1 to 1000"),
        ("--faces 0", "--faces is 0; give 1 or more"),
        ("--long-faces -1", "--long-faces is -1; give 0 or more"),
        ("--long-seconds 0", "--long-seconds is 0, less than a video frame; give more"),
        ("--only face fice", "--only fice begins the name of no piece; choose among face, continued, head"),
        ("--report DIR/broken", "cannot write .*broken/pieces: Not a directory"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, asked: str, sentence: str) -> None:
    (tmp_path / "broken").write_text("nothing")
    report = ["--report", str(tmp_path / "report")]
    with pytest.raises(SystemExit, match=sentence):
        main([*report, *asked.replace("DIR", str(tmp_path)).split()])
    assert not (tmp_path / "report").exists()
