"""The report says of every piece what became of it."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loopy_model.prepare.__main__ import main
from loopy_model.prepare.records import Box, Clip, Rejected, Source, name_of, write_source
from loopy_model.prepare.report import Report, read_report, summary, write_report


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
    assert read_report(folder(tmp_path, MIXED, GOOD)).sources == (GOOD, MIXED)


def test_a_record_of_another_version_or_half_a_one_is_passed_over(tmp_path: Path) -> None:
    folder(tmp_path, GOOD)
    (tmp_path / "sources" / "x.json").write_text('{"format": "old", "source": "x"}')
    (tmp_path / "sources" / "y.json").write_text('{"format"')
    assert read_report(tmp_path).sources == (GOOD,)


def test_the_table_counts_minutes_and_medians() -> None:
    text = summary(Report((GOOD, MIXED, BAD, BROKEN))).splitlines()
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
    last = summary(Report(sources)).splitlines()[-1]
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
    assert (by_source["c.mp4"]["value"], by_source["c.mp4"]["limit"]) == ("80", "45.0")


def test_the_page_names_reasons_and_whole_videos(tmp_path: Path) -> None:
    write_report(folder(tmp_path, GOOD, MIXED, BAD, BROKEN))
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| head turned | 3 | 0.6 | 60 degrees | 45 |" in page
    assert "- `d.mp4`: unreadable. it is cut off." in page


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


def test_many_pieces_make_no_endless_picture(tmp_path: Path) -> None:
    many = Source("e.mp4", 9, 9, "", None, "train", 0, (), tuple(turned("e.mp4", 50) for _ in range(500)))
    write_report(folder(tmp_path, many))
    assert Image.open(tmp_path / "report.png").height < 2500


def test_the_command_writes_it_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for sources, status in (((BROKEN,), 1), ((GOOD,), 0)):
        with pytest.raises(SystemExit) as end:
            main(["report", str(folder(tmp_path, *sources))])
        assert end.value.code == status
    assert "kept 2 clips" in capsys.readouterr().out
    assert (tmp_path / "report.png").exists()
