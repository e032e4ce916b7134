"""`python -m loopy_model.evaluate videos` from folders of drawn faces to a page that plays them."""

import json
import os
import re
import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from drawn_videos import FRAMES, SIZE, Brightness, Face, Mean, Middle, draw, folders, script
from safetensors.torch import load_file, save_file
from scipy.io import savemat

from loopy_model.evaluate import __main__ as command
from loopy_model.evaluate import measures, one_video
from loopy_model.evaluate.cache import Cache
from loopy_model.evaluate.frechet import frechet_distance
from loopy_model.evaluate.metrics import METRICS, OF_SETS, Compared, Scores, SetScore, table
from loopy_model.evaluate.videos import main
from loopy_model.movement import dexp, dglo, exp, glo
from loopy_model.video import read_video


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs, and a network of every kind but SyncNet."""
    root = tmp_path_factory.mktemp("evaluation")
    folders(root)
    for module, name in (
        (Mean(), "fid.pt"),
        (Mean(), "fvd_r.pt"),
        (Mean(), "fvd_i.pt"),
        (Middle(), "amt-s.pt"),
        (Brightness(), "iqa.pt"),
        (Face(), "expression.pt"),
    ):
        script(module, root / "networks" / name)
    savemat(root / "networks" / "similarity_Lm3D_all.mat", {"lm": standard_face()})
    evaluate(root, "--real", str(root / "real"), "--networks", str(root / "networks"))
    return root


def standard_face() -> np.ndarray:
    face = np.zeros((68, 3))
    face[[36, 39]], face[[42, 45]] = [-0.3, 0.3, 0.1], [0.3, 0.3, 0.1]
    face[30], face[48], face[54] = [0, -0.05, 0.5], [-0.25, -0.4, 0.2], [0.25, -0.4, 0.2]
    return face


def evaluate(root: Path, *more: str, report: str = "report") -> dict:
    given = ["--generated", str(root / "generated"), "--landmarks", "points", "--report", str(root / report)]
    main([*given, "--device", "cpu", *more])
    return json.loads((root / report / "results.json").read_text(encoding="utf-8"))


def results(root: Path) -> dict:
    return json.loads((root / "report" / "results.json").read_text(encoding="utf-8"))


def row(results: dict, name: str) -> dict:
    return next(row for row in results["metrics"] if row["metric"] == name)


def points(root: Path, kind: str, index: int) -> torch.Tensor:
    return load_file(root / kind / f"face_{index}.points.safetensors")["points"].double()


def test_movement_is_that_of_the_exact_points(root: Path) -> None:
    found = results(root)
    pairs = [(points(root, "generated", i), points(root, "real", i)) for i in (0, 1)]
    for name, wanted in (
        ("Glo", [glo(generated) for generated, _ in pairs]),
        ("Exp", [exp(generated) for generated, _ in pairs]),
        ("DGlo", [dglo(*pair) for pair in pairs]),
        ("DExp", [dexp(*pair) for pair in pairs]),
    ):
        values = [video["generated"]["values"][name] for video in found["videos"]]
        assert values == pytest.approx([float(value) for value in wanted], rel=1e-4, abs=1e-9)
        summary = row(found, name)["generated"]
        assert summary["mean"] == pytest.approx(np.mean(values))
        assert summary["spread"] == pytest.approx(np.std(values, ddof=1)) and summary["videos"] == 2
    assert row(found, "DGlo")["real"] is None and row(found, "Glo")["real"]["mean"] > 0
    assert [video["frames"] for video in found["videos"]] == [FRAMES, FRAMES]


def test_one_frame_has_no_movement(tmp_path: Path) -> None:
    """Of several videos too, whose spread would be of no numbers."""
    for index in (0, 1):
        draw(tmp_path / "generated" / f"{index}.mp4", index, frames=1 if index else FRAMES)
        draw(tmp_path / "real" / f"{index}.mp4", index)
    found = evaluate(tmp_path, "--real", str(tmp_path / "real"))
    assert [video["frames"] for video in found["videos"]] == [FRAMES, 1]
    for name in ("Glo", "Exp", "DGlo", "DExp"):
        assert row(found, name)["generated"]["videos"] == 1
    assert "movement needs two frames" in found["videos"][1]["generated"]["reasons"]["Glo"]
    assert "NaN" not in (tmp_path / "report" / "results.json").read_text()


def test_a_report_among_the_videos_and_a_link_to_nothing_are_one_sentence(tmp_path: Path) -> None:
    draw(tmp_path / "generated" / "a.mp4", 0, frames=3)
    with pytest.raises(SystemExit, match="--report .*generated holds the videos themselves; give a folder"):
        evaluate(tmp_path, report="generated")
    with pytest.raises(SystemExit, match="--report .* holds the videos themselves"):
        evaluate(tmp_path, report=".")  # where `evaluate puppet` may have put both
    draw(tmp_path / "real" / "a.mp4", 0, frames=3)
    for inside in ("generated/report", "real/below/report"):  # a later run would measure its copies
        with pytest.raises(SystemExit, match=f"--report .*{inside} lies in .*; give a folder elsewhere"):
            evaluate(tmp_path, "--real", str(tmp_path / "real"), report=inside)
    (tmp_path / "generated" / "b.mp4").symlink_to("nowhere.mp4")
    with pytest.raises(SystemExit, match="cannot read .*b.mp4: it is a link to nowhere.mp4, which does not"):
        evaluate(tmp_path)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"{", b"\xff", b'{"format": "loopy-puppet-evidence-1"}'])
def test_results_of_something_else_are_kept(content: bytes, tmp_path: Path) -> None:
    draw(tmp_path / "generated" / "a.mp4", 0, frames=3)
    path = tmp_path / "report" / "results.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(SystemExit, match="report/results.json holds other results .*; give another --report"):
        evaluate(tmp_path)
    assert path.read_bytes() == content


def test_pictures_are_let_go_of_before_the_next_pair(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a face that is not found is not looked for again, in a second run neither."""
    held, tried = [], []
    forget = one_video.Video.forget

    def watched(video: one_video.Video) -> None:
        frames = weakref.ref(video.recording.frames)
        forget(video)
        held.append(frames() is not None)

    def detector(settings: str, path: Path) -> Callable:
        tried.append(path.name)
        return lambda picture, index: []

    monkeypatch.setattr(one_video.Video, "forget", watched)
    monkeypatch.setattr(one_video, "detector_for", detector)
    options = ("--real", str(root / "real"), "--networks", str(root / "networks"))
    found = evaluate(root, *options, report="blind")
    assert held == [False] * 4
    assert sorted(tried) == ["face_0.mp4", "face_1.mp4", "face_1.mp4"]  # face_0 is the same in both folders
    assert "show no face" in found["videos"][0]["generated"]["reasons"]["Glo"]
    monkeypatch.setattr(one_video.Video, "forget", forget)
    monkeypatch.setattr(one_video, "read", read_again)
    assert evaluate(root, *options, report="blind") == found and len(tried) == 3


def read_again(path: Path, count: int | None = None) -> None:
    raise AssertionError(f"{path} was read again")


def test_no_face_is_kept_and_a_missing_package_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "generated" / "a.mp4", 0, frames=3)
    looked = []

    def reason(detector_for: Callable) -> str:
        monkeypatch.setattr(one_video, "detector_for", detector_for)
        return evaluate(tmp_path)["videos"][0]["generated"]["reasons"]["Glo"]

    def missing(*_: object) -> None:
        raise ValueError("install the detector.")

    def blind(*_: object) -> Callable:
        return lambda picture, index: looked.append(index) or []

    assert reason(missing) == "install the detector."
    assert "3 of 3 frames show no face" in reason(blind)
    assert reason(blind) == reason(missing) and looked == [0, 1, 2]


def test_networks_are_asked_for_both_sides(root: Path) -> None:
    found = results(root)
    assert 0.9 < row(found, "Smo")["generated"]["mean"] < 1 and row(found, "Smo")["real"]["mean"] < 1
    assert 0 < row(found, "IQA")["generated"]["mean"] < 1
    for name, samples, width in (
        ("FID", 2 * FRAMES, 6),
        ("FVD-R", 2, 6),
        ("FVD-I", 2, 6),
        ("E-FID", 2 * FRAMES, 64),
    ):
        value = row(found, name)["generated"]
        assert value["value"] >= 0 and value["features"] == width
        assert value["samples"] == value["real_samples"] == samples
        assert ("note" in value) == (samples <= width)


def test_fid_is_the_frechet_distance_of_all_frames(root: Path) -> None:
    def colours(kind: str) -> np.ndarray:
        frames = torch.cat([read_video(root / kind / f"face_{i}.mp4")[0] for i in (0, 1)])
        return Mean()((frames * 255).round().permute(0, 3, 1, 2)).numpy()

    wanted = frechet_distance(colours("generated"), colours("real"))
    assert row(results(root), "FID")["generated"]["value"] == pytest.approx(wanted, rel=0.05, abs=1e-3)


def test_a_missing_network_is_not_measured_and_says_file_and_licence(root: Path) -> None:
    found = results(root)
    for name in ("Sync-C", "Sync-D"):
        missing = row(found, name)
        assert missing["generated"] is None and missing["real"] is None
        assert "syncnet_v2.model" in missing["not_measured"] and "licence" in missing["not_measured"]
        assert not any(name in video["generated"]["values"] for video in found["videos"])
    page = (root / "report" / "report.html").read_text(encoding="utf-8")
    assert "syncnet_v2.model" in page and "not measured" in page


def test_without_networks_and_real_videos_only_movement_remains(
    root: Path, capsys: pytest.CaptureFixture
) -> None:
    found = evaluate(root, report="alone")
    measured = [row["metric"] for row in found["metrics"] if row["generated"]]
    assert measured == ["Glo", "Exp"]
    assert "--real" in row(found, "DGlo")["not_measured"] and "--real" in row(found, "FID")["not_measured"]
    for name, file in (("Smo", "amt-s.pt"), ("IQA", "iqa.pt")):
        assert f"{file} in the folder of --networks" in row(found, name)["not_measured"]
    words = capsys.readouterr().out
    assert all(metric.name in words for metric in METRICS) and "report.html" in words


def test_the_page_plays_its_videos_wherever_it_is_moved(root: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(root / "report", moved)
    page = (moved / "report.html").read_text(encoding="utf-8")
    sources = [unquote(source) for source in re.findall(r'<video[^>]* src="([^"]+)"', page)]
    assert len(sources) == 4
    for source in sources:
        frames, fps, waveform, _ = read_video(moved / source)
        assert len(frames) == FRAMES and fps == 25 and waveform is not None
    assert page.count("data:image/jpeg") == 4 and page.count("data:image/svg+xml") == 2
    assert str(root) not in page


def test_a_second_run_reads_no_video_and_gives_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = results(root)

    monkeypatch.setattr(one_video, "read", read_again)
    monkeypatch.setattr(one_video, "shape_of", read_again)
    options = ("--real", str(root / "real"), "--networks", str(root / "networks"))
    assert evaluate(root, *options) == before


def test_a_second_run_reads_what_changed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("generated", "real", "networks", "report"):
        shutil.copytree(root / name, tmp_path / name)
    draw(tmp_path / "generated" / "face_1.mp4", 1, sway=0.3)
    seen = []
    monkeypatch.setattr(
        one_video, "read", lambda path, count: seen.append(path) or measures.read(path, count)
    )
    options = ("--real", str(tmp_path / "real"), "--networks", str(tmp_path / "networks"))
    found = evaluate(tmp_path, *options)
    assert seen == [tmp_path / "generated" / "face_1.mp4"]
    before = results(root)
    assert found["videos"][0] == before["videos"][0] and found["videos"][1] != before["videos"][1]


def test_the_shorter_of_a_pair_counts(tmp_path: Path) -> None:
    generated, real = tmp_path / "generated" / "a.mp4", tmp_path / "real" / "a.mp4"
    short, long = draw(generated, 0, 0.2, frames=10), draw(real, 0, 0.1, frames=15)
    found = evaluate(tmp_path, "--real", str(tmp_path / "real"))
    assert found["videos"][0]["frames"] == 10
    assert "10 frames generated, 15 real; the first 10 count" in found["notes"][0]
    wanted = float(dglo(short.double(), long[:10].double()))
    assert found["videos"][0]["generated"]["values"]["DGlo"] == pytest.approx(wanted, rel=1e-4)


def test_of_a_longer_video_no_more_is_kept(tmp_path: Path) -> None:
    draw(tmp_path / "a.mp4", 0, frames=15)
    settings = one_video.Settings(None, "points", "cpu")
    video = one_video.Video(tmp_path / "a.mp4", one_video.Tools(settings), Cache(tmp_path / "cache"))
    assert video.shape == (15, SIZE, SIZE) and "recording" not in vars(video)
    cut = video.cut(10)
    assert cut.shape == cut.recording.frames.shape[:3] == (10, SIZE, SIZE)
    assert cut.recording.frames.base is None  # no part of a larger array


def test_a_video_whose_face_cannot_be_seen_is_left_out_of_the_mean(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "generated" / "face_1.points.safetensors").unlink()
    found = evaluate(tmp_path)
    glo_row = row(found, "Glo")["generated"]
    assert (glo_row["videos"], glo_row["of"]) == (1, 2)
    assert "face_1.points.safetensors does not exist" in found["videos"][1]["generated"]["reasons"]["Glo"]


@pytest.mark.parametrize(
    "mistake",
    ["no folder", "empty", "no pairs", "unreadable", "other fps", "networks", "detector", "device", "no GPU"],
)
def test_a_mistake_gets_one_sentence_that_says_what_to_do(mistake: str, tmp_path: Path) -> None:
    generated, real = tmp_path / "generated", tmp_path / "real"
    more, words = ["--real", str(real)], ""
    if mistake == "no folder":
        words = f"there is no folder {generated}; give one"
    elif mistake == "empty":
        generated.mkdir()
        words = f"{generated} holds no video; give"
    else:
        draw(generated / "a.mp4", 0, frames=4)
        draw(real / ("b.mp4" if mistake == "no pairs" else "a.mp4"), 0, frames=4)
    if mistake == "no pairs":
        words = "(a.mp4) has its name in"
    elif mistake == "unreadable":
        (generated / "a.mp4").write_bytes(b"no video")
        words = f"cannot read {generated / 'a.mp4'}: it is no video"
    elif mistake == "other fps":
        draw(generated / "z.mp4", 0, frames=4)
        draw(real / "z.mp4", 0, frames=4, fps=30)
        words = f"{real / 'z.mp4'} has 30 frames per second; every metric here is of 25: convert it"
    elif mistake == "networks":
        more += ["--networks", str(tmp_path / "none")]
        words = f"there is no folder {tmp_path / 'none'}; leave"
    elif mistake == "detector":
        more += ["--landmarks", "facmesh"]
        words = "--landmarks facmesh is not known; use facemesh, dwpose, points or dwpose:DET.onnx"
    elif mistake in ("device", "no GPU"):
        device = "gpu" if mistake == "device" else "cuda:99"
        more += ["--device", device]
        words = f"PyTorch has no device '{device}' here; use --device cpu"
    with pytest.raises(SystemExit) as caught:
        evaluate(tmp_path, *more)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "report").exists()  # found before the first video was measured


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_a_bare_call_prints_the_parts(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    command.main()
    assert "\nvideos " in capsys.readouterr().out


def test_an_unknown_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", "pictures"])
    with pytest.raises(SystemExit, match="'pictures' is not a part of evaluate; use videos, puppet"):
        command.main()


def test_unpaired_videos_are_named(tmp_path: Path) -> None:
    folders(tmp_path)
    for path in (tmp_path / "real").glob("face_1.*"):
        path.unlink()
    (tmp_path / "generated" / "list.txt").touch()
    draw(tmp_path / "real" / "alone.mp4", 0, frames=3)
    found = evaluate(tmp_path, "--real", str(tmp_path / "real"))
    assert len(found["videos"]) == 1
    assert [note.rpartition(": ")[2] for note in found["notes"]] == ["list.txt.", "face_1.mp4.", "alone.mp4."]


def test_an_accent_may_be_stored_apart(tmp_path: Path) -> None:
    """As macOS does it; the other folder may come from elsewhere."""
    draw(tmp_path / "generated" / f"{normalize('NFC', 'é')}.mp4", 0, frames=3)
    draw(tmp_path / "real" / f"{normalize('NFD', 'é')}.mp4", 0, frames=3)
    found = evaluate(tmp_path, "--real", str(tmp_path / "real"))
    assert len(found["videos"]) == 1 and not found["notes"]


def test_a_real_video_without_a_value_says_why() -> None:
    """Once where the generated one says the same."""
    good, silent = Scores({"Sync-C": 1.0, "IQA": 3.0}), Scores({}, {"Sync-C": "no sound.", "IQA": "no file."})

    def why(*pairs: tuple[Scores, Scores], metric: str = "Sync-C") -> str | None:
        sets = dict.fromkeys(OF_SETS, SetScore(None))
        rows = table([Compared("a", 5, *pair) for pair in pairs], sets, True)
        found = row({"metrics": rows}, metric)
        return found["not_measured"] or found.get("left_out")

    assert why((good, good)) is None
    assert why((good, silent)) == why((good, good), (good, silent)) == "of a real video: no sound."
    assert why((silent, good), (good, silent)) == why((silent, silent)) == "no sound."
    assert why((good, silent), metric="IQA") == "of a real video: no file."


def test_a_set_metric_says_why_it_leaves_a_pair_out(root: Path, tmp_path: Path) -> None:
    """One pair is too short for a piece of 16 frames, in the other a face is outside the picture."""
    for kind in ("generated", "real"):
        draw(tmp_path / kind / "a.mp4", 0, frames=20)
        draw(tmp_path / kind / "b.mp4", 1, frames=10)
    outside = tmp_path / "generated" / "a.points.safetensors"
    save_file({"points": load_file(outside)["points"] + 5000}, outside)
    found = evaluate(tmp_path, "--real", str(tmp_path / "real"), "--networks", str(root / "networks"))
    why = row(found, "FVD-R")["not_measured"]
    assert "at least two samples" in why and "needs 16 frames of each video, and one has 10" in why
    values = row(found, "E-FID")
    assert (values["generated"]["videos"], values["generated"]["of"]) == (1, 2)
    assert "face of frame 0 lies outside the picture" in values["left_out"]
    assert values["left_out"] in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_what_browsers_do_not_play_is_shown_as_mp4(tmp_path: Path) -> None:
    draw(tmp_path / "generated" / "a.mp4", 0, frames=5)
    for path in (tmp_path / "generated").iterdir():
        path.rename(path.with_name(path.name.replace(".mp4", ".avi")))
    evaluate(tmp_path)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert 'src="videos/generated/a.mp4"' in page
    shown, given = (
        read_video(tmp_path / path)[0] for path in ("report/videos/generated/a.mp4", "generated/a.avi")
    )
    assert shown.shape == given.shape and (shown - given).abs().mean() < 0.02


def test_the_page_shows_what_was_measured_whatever_is_older(tmp_path: Path) -> None:
    """Another video of the same name may be older than the copy of the first."""
    path, copy = tmp_path / "generated" / "a.avi", tmp_path / "report" / "videos" / "generated" / "a.mp4"
    for seed, frames in ((0, 5), (1, 7)):
        draw(path.with_suffix(".mp4"), seed, frames=frames)
        path.with_suffix(".mp4").rename(path)
        os.utime(path, (0, 0))
        evaluate(tmp_path)
        assert len(read_video(copy)[0]) == frames


def test_lips_and_voice_are_scored_by_syncnet(tmp_path: Path) -> None:
    """With random weights: the file is found, read, and asked for both videos."""
    pytest.importorskip("python_speech_features")
    from loopy_model.prepare.sync import SyncNet

    for kind in ("generated", "real"):
        draw(tmp_path / kind / "a.mp4", 0, frames=8)
    (tmp_path / "networks").mkdir()
    torch.manual_seed(0)
    torch.save(SyncNet().state_dict(), tmp_path / "networks" / "syncnet_v2.model")
    options = ("--real", str(tmp_path / "real"), "--networks", str(tmp_path / "networks"))
    found = evaluate(tmp_path, *options)
    for name in ("Sync-C", "Sync-D"):
        values = row(found, name)
        assert values["generated"]["mean"] == values["real"]["mean"] >= 0
    assert row(found, "Sync-D")["generated"]["mean"] > 0
