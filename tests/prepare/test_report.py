"""The report says of every piece what became of it."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loopy_model.prepare.__main__ import main
from loopy_model.prepare.contact_sheet import shortened, tiles_of
from loopy_model.prepare.outcome import Outcome, read_outcome
from loopy_model.prepare.records import (
    Box,
    Clip,
    Rejected,
    Source,
    held_out_sources,
    name_of,
    share_of,
    write_held_out,
    write_json,
    write_passed_over,
    write_source,
)
from loopy_model.prepare.report import summary, write_report


def clip(source: str, start: float, split: str = "train", voiced: bool = True) -> Clip:
    return Clip(f"{source}-x", source, start, start + 6, 150, split, voiced, Box(0, 0, 9), {"yaw": 1 / 3})


def turned(source: str, angle: float) -> Rejected:
    return Rejected(source, 0.0, 12.0, "head turned", angle, 45.0, values={"angle": angle})


def folder(path: Path, *sources: Source) -> Path:
    for source in sources:
        write_source(path / "sources" / f"{name_of(source.source)}.json", source)
    return path


GOOD = Source(
    "Größe/a.mp4",
    9,
    9,
    "",
    None,
    "train",
    40,
    (clip("Größe/a.mp4", 0), clip("Größe/a.mp4", 20, voiced=False)),
)
MIXED = Source("b.mp4", 9, 9, "", None, "test", 40, (clip("b.mp4", 12, "test"),), (turned("b.mp4", 50),))
BAD = Source("c.mp4", 9, 9, "", None, "train", 40, (), (turned("c.mp4", 60), turned("c.mp4", 80)))
BROKEN = Source(
    "d.mp4", 9, 9, "", None, "train", 0, (), (Rejected("d.mp4", 0, 0, "unreadable", detail="it is cut off."),)
)


def test_records_come_back(tmp_path: Path) -> None:
    assert read_outcome(folder(tmp_path, MIXED, GOOD)).sources == (GOOD, MIXED)


def test_a_record_of_another_version_or_half_a_one_is_passed_over(tmp_path: Path) -> None:
    folder(tmp_path, GOOD)
    (tmp_path / "sources" / "x.json").write_text('{"format": "old", "source": "x"}')
    (tmp_path / "sources" / "y.json").write_text('{"format"')
    write_source(tmp_path / "sources" / ".partial-host1-z.json", MIXED)
    assert read_outcome(tmp_path).sources == (GOOD,)


def test_the_table_counts_minutes_and_medians() -> None:
    text = summary(Outcome((GOOD, MIXED, BAD, BROKEN))).splitlines()
    assert text[0] == "kept 3 clips, 0.3 minutes, from 4 raw videos"
    assert [line.split() for line in text[1:5]] == [
        ["train", "2", "clips", "0.2", "minutes"],
        ["test", "1", "clips", "0.1", "minutes"],
        ["voiced", "2", "clips", "0.2", "minutes"],
        ["silent", "1", "clips", "0.1", "minutes"],
    ]
    assert text[-2].split() == ["head", "turned", "3", "0.6", "60", "degrees", "45"]
    assert text[-1].split() == ["unreadable", "1", "0.0"]


@pytest.mark.parametrize(
    "sources, words",
    [
        ((BAD,), ["2 of 2", "'head turned'", "median 70 degrees, limit 45", "--max-angle", "report.png"]),
        ((BROKEN,), ["1 of 1", "'unreadable'", "it is cut off."]),
        ((), ["no raw video was prepared"]),
    ],
)
def test_the_last_line_says_what_to_look_at_when_nothing_was_kept(sources: tuple, words: list[str]) -> None:
    last = summary(Outcome(sources)).splitlines()[-1]
    assert last.startswith("Nothing was kept")
    assert [word for word in words if word not in last] == []


def test_every_piece_is_a_line_of_the_table(tmp_path: Path) -> None:
    write_report(folder(tmp_path, GOOD, MIXED, BAD, BROKEN))
    with (tmp_path / "report.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["outcome"] for line in lines].count("kept") == 3 and len(lines) == 7
    by_source = {line["source"]: line for line in lines}
    assert by_source["d.mp4"]["reason"] == "unreadable" and by_source["d.mp4"]["detail"] == "it is cut off."
    assert by_source["Größe/a.mp4"]["yaw"] == "0.333333"
    assert [by_source["c.mp4"][name] for name in ("value", "limit", "unit")] == ["80", "45.0", "degrees"]
    assert by_source["d.mp4"]["unit"] == by_source["b.mp4"]["unit"] == ""


def test_the_page_names_reasons_and_every_piece(tmp_path: Path) -> None:
    write_report(folder(tmp_path, GOOD, MIXED, BAD, BROKEN))
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| head turned | 3 | 0.6 | 60 degrees | 45 |" in page
    assert "| `c.mp4` | 0.00 - 12.00 s | head turned | 80 degrees | 45 |" in page
    assert "| `d.mp4` | whole | unreadable | it is cut off. |  |" in page


def test_the_page_says_why_clips_are_silent(tmp_path: Path) -> None:
    soft = replace(clip("s.mp4", 0, voiced=False), values={"loudness": -51.94})
    mute = clip("s.mp4", 20, voiced=False)
    folder(tmp_path, Source("s.mp4", 9, 9, "", None, "train", 40, (soft, mute)))
    write_json(tmp_path / "prepare.json", {"filters": {"min_loudness": -50.0}})
    write_report(tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| `s.mp4` | 0.00 - 6.00 s | s.mp4-x | -51.9 dBFS, limit -50 |" in page
    assert "| `s.mp4` | 20.00 - 26.00 s | s.mp4-x | no sound |" in page


def test_long_lists_end_with_where_the_rest_is(tmp_path: Path) -> None:
    many = Source("e.mp4", 9, 9, "", None, "train", 0, (), tuple(turned("e.mp4", 50) for _ in range(203)))
    write_passed_over(folder(tmp_path, many), [f"{number}.txt" for number in range(54)])
    write_report(tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert page.count("| `e.mp4` |") == 200 and "\n3 more are in `report.csv`.\n" in page
    assert page.count(".txt`") == 50 and "- and 4 more\n" in page


def test_a_name_with_a_bar_stays_in_its_cell(tmp_path: Path) -> None:
    odd = Source("a|b.mp4", 9, 9, "", None, "train", 0, (), (turned("a|b.mp4", 50),))
    write_report(folder(tmp_path, odd))
    assert "| `a\\|b.mp4` |" in (tmp_path / "report.md").read_text(encoding="utf-8")


# --- what is kept for testing -------------------------------------------------------------------


def source(name: str, split: str, voiced: bool = True) -> Source:
    return Source(name, 9, 9, "", None, split, 40, (clip(name, 0, split, voiced),))


def nearest(*names: str) -> str:
    return min(names, key=share_of)


@pytest.mark.parametrize(
    "clips, test",
    [
        ([("a", "train", True), ("b", "test", True)], {"b"}),
        ([("a", "train", True), ("b", "train", True)], {nearest("a", "b")}),
        ([("a", "train", True), ("b", "train", True), ("c", "test", False)], {nearest("a", "b"), "c"}),
        ([("a", "train", True), ("b", "train", False)], set()),
        ([("a", "train", False), ("a", "train", True), ("b", "train", True)], {nearest("a", "b")}),
        ([], set()),
    ],
)
def test_training_is_never_without_a_voice_to_test(clips: list, test: set[str]) -> None:
    assert held_out_sources(iter(clips)) == test


def test_a_video_once_held_out_stays_so_while_it_can_be_heard() -> None:
    first, second = sorted("ab", key=share_of)
    both = [(first, "train", True), (second, "train", True)]
    assert held_out_sources(both, second) == {second}
    assert held_out_sources([*both, ("c", "test", True)], second) == {second, "c"}
    assert held_out_sources([*both, ("c", "train", False)], "c") == {first}
    assert held_out_sources(both, "gone") == {first}


def test_the_report_shows_what_encoding_has_held_out(tmp_path: Path) -> None:
    names = ["x.mp4", "y.mp4", "z.mp4"]
    chosen = max(names, key=share_of)
    write_held_out(folder(tmp_path, *(source(name, "train") for name in names)), chosen)
    assert read_outcome(tmp_path).held_out == {chosen}


def test_the_report_shows_the_split_that_training_gets(tmp_path: Path) -> None:
    names = ["x.mp4", "y.mp4", "z.mp4"]
    chosen = nearest(*names)
    text = summary(write_report(folder(tmp_path, *(source(name, "train") for name in names))))
    sentence = f"no video fell to testing by chance: {chosen} is used (--test NAME --again chooses another)"
    assert sentence in text.splitlines()
    assert text.splitlines()[2].split()[:2] == ["test", "1"]
    assert f"- {sentence}\n" in (tmp_path / "report.md").read_text(encoding="utf-8")
    with (tmp_path / "report.csv").open(encoding="utf-8", newline="") as file:
        assert {line["source"] for line in csv.DictReader(file) if line["split"] == "test"} == {chosen}
    kept, _ = tiles_of(read_outcome(tmp_path))
    assert {tile.source for tile in kept if tile.lines[1].startswith("test")} == {chosen}


def test_nothing_is_said_where_chance_gave_a_video() -> None:
    assert "testing" not in summary(Outcome((source("x.mp4", "train"), source("y.mp4", "test"))))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_single_voice_is_too_few(split: str) -> None:
    text = summary(Outcome((source("x.mp4", split), source("y.mp4", "train", voiced=False))))
    assert "training needs a second video with sound for testing" in text.splitlines()
    assert "by chance" not in text


def test_the_picture_shows_thumbnails_at_their_place(tmp_path: Path) -> None:
    folder(tmp_path, MIXED)
    sheet = np.zeros((160, 16 * 160, 3), np.uint8)
    sheet[:, :160], sheet[:, 160:320] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(sheet).save(tmp_path / "sources" / f"{name_of('b.mp4')}.jpg", quality=95)
    write_report(tmp_path)
    picture = np.asarray(Image.open(tmp_path / "report.png")).astype(int)
    height = len(picture) // 2
    assert np.abs(picture[120, 90] - [255, 0, 0]).max() < 5
    assert np.abs(picture[height + 120, 90] - [0, 0, 255]).max() < 5


def test_names_below_pictures_show_their_kind() -> None:
    assert shortened("a.mp4") == "a.mp4"
    assert shortened("a rather long name of a video.mp4") == "a rather … video.mp4"
    assert len(shortened("x" * 80 + ".webm")) == 20 and shortened("x" * 80 + ".webm").endswith(".webm")


def test_many_pieces_make_no_endless_picture(tmp_path: Path) -> None:
    many = Source("e.mp4", 9, 9, "", None, "train", 0, (), tuple(turned("e.mp4", 50) for _ in range(500)))
    write_report(folder(tmp_path, many))
    assert Image.open(tmp_path / "report.png").height < 2500


def test_the_command_writes_it_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for sources, status in (((BROKEN,), 1), ((GOOD,), 0)):
        with pytest.raises(SystemExit) as end:
            write_json(tmp_path / "prepare.json", {"filters": {"min_loudness": -60.0}})
            main(["report", str(folder(tmp_path, *sources))])
        assert end.value.code == status
    assert "kept 2 clips" in capsys.readouterr().out
    assert (tmp_path / "report.png").exists()


def test_another_folder_gets_no_report(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(SystemExit, match=f"{path.name} is no data folder of `prepare clips`"):
            main(["report", str(path)])
    assert not list(tmp_path.iterdir())
