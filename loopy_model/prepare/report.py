"""What became of every piece of every raw video: report.csv, report.md, report.png and a table."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import NamedTuple

from .filters import CHECKS, Filters
from .records import (
    Clip,
    Rejected,
    Source,
    held_out_sources,
    name_of,
    read_passed_over,
    read_source,
    write_whole,
)
from .run import SETTINGS_FILE
from .scan import THUMBNAIL
from .source import COLUMNS

SHOWN = 60  # pictures of each kind in report.png
ACROSS = 10  # pictures in a row of it
LONGEST_NAME, LONGEST_LINE = 20, 24  # letters below a picture: of a file's name, of a value
LISTED, PASSED_OVER_LISTED = 200, 50  # lines of a table in report.md, and of its list of other files
UNITS = {check.reason: check.unit for check in CHECKS} | {"no face": "s", "two faces": "s"}


class Row(NamedTuple):
    """All pieces that were rejected for one reason."""

    reason: str
    pieces: int
    minutes: float
    value: float | None  # median of what was measured
    limit: float | None

    @property
    def measured(self) -> str:
        return measured(self.reason, self.value)

    @property
    def held_against(self) -> str:
        return held_against(self.limit)


def measured(reason: str, value: float | None) -> str:
    return "" if value is None else f"{value:.4g} {UNITS.get(reason, '')}".rstrip()


def held_against(limit: float | None) -> str:
    return "" if limit is None else f"{limit:.4g}"


@dataclass(frozen=True)
class Report:
    """All records of a data folder."""

    sources: tuple[Source, ...]
    min_loudness: float = Filters.min_loudness  # below which a clip counts as silent
    passed_over: tuple[str, ...] = ()  # other files in the raw folder

    @cached_property
    def recorded(self) -> list[Clip]:
        return [clip for source in self.sources for clip in source.clips]

    @cached_property
    def held_out(self) -> set[str]:
        """The sources that training gets for testing."""
        return held_out_sources((clip.source, clip.split, clip.voiced) for clip in self.recorded)

    @cached_property
    def clips(self) -> list[Clip]:
        """With the split that training gets."""
        return [replace(clip, split=self.split_of(clip.source)) for clip in self.recorded]

    def split_of(self, source: str) -> str:
        return "test" if source in self.held_out else "train"

    @property
    def rejected(self) -> list[Rejected]:
        return [piece for source in self.sources for piece in source.rejected]

    @property
    def rows(self) -> list[Row]:
        """By reason, the most frequent first."""
        by_reason = sorted(self.rejected, key=lambda piece: piece.reason)
        rows = [_row(reason, list(same)) for reason, same in groupby(by_reason, key=lambda p: p.reason)]
        return sorted(rows, key=lambda row: -row.pieces)


def _row(reason: str, pieces: list[Rejected]) -> Row:
    values = [piece.value for piece in pieces if piece.value is not None]
    minutes = sum(piece.seconds for piece in pieces) / 60
    return Row(reason, len(pieces), minutes, median(values) if values else None, pieces[0].limit)


def read_report(data: Path) -> Report:
    """From whatever records there are, those of other machines included."""
    found = [read_source(path) for path in sorted((data / "sources").glob("*.json"))]
    sources = sorted(filter(None, found), key=lambda s: s.source)
    return Report(tuple(sources), _min_loudness(data), tuple(read_passed_over(data)))


def _min_loudness(data: Path) -> float:
    try:
        return json.loads((data / SETTINGS_FILE).read_text(encoding="utf-8"))["filters"]["min_loudness"]
    except FileNotFoundError:
        return Filters.min_loudness


def write_report(data: Path) -> Report:
    """report.csv, report.md and report.png of a data folder. Raises CannotWrite."""
    report = read_report(data)
    write_whole(data / "report.csv", lambda path: _write_csv(path, report))
    write_whole(data / "report.md", lambda path: path.write_text(_markdown(report), encoding="utf-8"))
    write_whole(data / "report.png", lambda path: _sheet(data, report).save(path, "png"))
    return report


# --- in words -----------------------------------------------------------------------------------


def summary(report: Report) -> str:
    """The table for the terminal; its last line says what to do when nothing was kept."""
    lines = [*_kept_lines(report), ""]
    if report.rejected:
        lines.append(f"{'rejected':<20} {'pieces':>7} {'minutes':>8}  {'median':<24} limit")
    for row in report.rows:
        line = f"{row.reason:<20} {row.pieces:>7} {row.minutes:>8.1f}  {row.measured:<24} {row.held_against}"
        lines.append(line.rstrip())
    if not report.clips:
        lines += ["", advice(report)]
    return "\n".join(lines).strip()


def _kept_lines(report: Report) -> Iterator[str]:
    clips = report.clips
    yield f"kept {len(clips)} clips, {_minutes(clips):.1f} minutes, from {len(report.sources)} raw videos"
    for name, kind in (
        ("train", [c for c in clips if c.split == "train"]),
        ("test", [c for c in clips if c.split == "test"]),
        ("voiced", [c for c in clips if c.voiced]),
        ("silent", [c for c in clips if not c.voiced]),
    ):
        yield f"  {name:<8} {len(kind):>6} clips {_minutes(kind):>8.1f} minutes"
    yield from _about_testing(report)


def _about_testing(report: Report) -> Iterator[str]:
    """What a user should know of the split."""
    if len({clip.source for clip in report.clips if clip.voiced}) == 1:
        yield "training needs a second video with sound for testing"
    for name in report.held_out - {clip.source for clip in report.recorded if clip.split == "test"}:
        yield f"no video fell to testing by chance: {name} is used (--test NAME --again chooses another)"


def _minutes(clips: list[Clip]) -> float:
    return sum(clip.end - clip.start for clip in clips) / 60


def advice(report: Report) -> str:
    """One sentence for a run that kept nothing."""
    if not report.rows:
        return "Nothing was kept: no raw video was prepared yet."
    row = report.rows[0]
    flags = {check.reason: "--" + check.limit.replace("_", "-") for check in CHECKS}
    measured = f" (median {row.measured}, limit {row.held_against})" if row.measured else ""
    detail = next((p.detail for p in report.rejected if p.reason == row.reason and p.detail), "")
    remedy = (
        f"look at report.png, and if these pieces are good, give another {flags[row.reason]}"
        if row.reason in flags
        else "look at report.png and report.csv"
    )
    example = f" One of them: {detail}" if detail else ""
    return (
        f"Nothing was kept: {row.pieces} of {len(report.rejected)} pieces were rejected "
        f"for '{row.reason}'{measured}; {remedy}.{example}"
    )


def _markdown(report: Report) -> str:
    rows = [
        f"| {r.reason} | {r.pieces} | {r.minutes:.1f} | {r.measured} | {r.held_against} |"
        for r in report.rows
    ]
    table = ["| rejected for | pieces | minutes | median measured | limit |", "|---|---|---|---|---|", *rows]
    sections = [
        "# What became of the raw videos",
        "\n".join(f"- {line.strip()}" for line in _kept_lines(report)),
        "\n".join(table) if rows else "Nothing was rejected.",
        "" if report.clips else advice(report),
        _rejected_table(report),
        _silent_table(report),
        _passed_over(report),
        "Every piece is in `report.csv`, with all that was measured; pictures are in `report.png`.",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _rejected_table(report: Report) -> str:
    rows = [
        (
            _code(p.source),
            _stretch(p),
            p.reason,
            measured(p.reason, p.value) or p.detail,
            held_against(p.limit),
        )
        for p in report.rejected
    ]
    return _table("Rejected pieces", ("video", "from - to", "reason", "measured", "limit"), rows)


def _silent_table(report: Report) -> str:
    rows = [
        (_code(clip.source), _stretch(clip), clip.name, _why_silent(clip, report.min_loudness))
        for clip in report.clips
        if not clip.voiced
    ]
    return _table("Clips without sound", ("video", "from - to", "clip", "why"), rows)


def _why_silent(clip: Clip, limit: float) -> str:
    loudness = clip.values.get("loudness")
    return "no sound" if loudness is None else f"{loudness:.1f} dBFS, limit {limit:g}"


def _stretch(piece: Clip | Rejected) -> str:
    return f"{piece.start:.2f} - {piece.end:.2f} s" if piece.end > piece.start else "whole"


def _table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A section of report.md, "" without rows."""
    if not rows:
        return ""
    lines = [head, ("---",) * len(head), *rows[:LISTED]]
    rest = [f"\n{len(rows) - LISTED} more are in `report.csv`."] if len(rows) > LISTED else []
    return "\n".join([f"## {title}", "", *map(_line, lines), *rest])


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _passed_over(report: Report) -> str:
    names = report.passed_over
    if not names:
        return ""
    lines = [f"- {_code(name)}" for name in names[:PASSED_OVER_LISTED]]
    if len(names) > PASSED_OVER_LISTED:
        lines.append(f"- and {len(names) - PASSED_OVER_LISTED} more")
    return "\n".join(
        ["## Files that are passed over: hidden, no videos, or names that are not UTF-8", "", *lines]
    )


def _code(name: str) -> str:
    return f"`{' '.join(name.split())}`"


def _write_csv(path: Path, report: Report) -> None:
    pieces = sorted([*report.clips, *report.rejected], key=lambda piece: (piece.source, piece.start))
    names = sorted({name for piece in pieces for name in piece.values})
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        columns = "outcome source start end reason value limit unit detail clip split voiced"
        table.writerow([*columns.split(), *names])
        for piece in pieces:
            measured = [f"{piece.values[name]:.6g}" if name in piece.values else "" for name in names]
            table.writerow([*_outcome(piece), *measured])


def _outcome(piece: Clip | Rejected) -> list:
    place = [piece.source, piece.start, piece.end]
    if isinstance(piece, Clip):
        return ["kept", *place, "", "", "", "", "", piece.name, piece.split, piece.voiced]
    unit = "" if piece.value is None else UNITS.get(piece.reason, "")
    return ["rejected", *place, piece.reason, piece.value, piece.limit, unit, piece.detail, "", "", ""]


# --- in pictures --------------------------------------------------------------------------------


class _Tile(NamedTuple):
    """One picture: number `index` of the sheet beside the record of `source`."""

    source: str
    index: int
    lines: tuple[str, ...]


def _tiles(report: Report) -> tuple[list[_Tile], list[_Tile]]:
    """(kept, rejected), the rejected ordered by reason."""
    kept, rejected = [], []
    for source in report.sources:
        name, split = _shortened(Path(source.source).name), report.split_of(source.source)
        for index, clip in enumerate(source.clips):
            sound = "voiced" if clip.voiced else "silent"
            lines = (f"{clip.end - clip.start:.1f} s, {sound}", f"{split}, at {clip.start:.1f} s", name)
            kept.append(_Tile(source.source, index, lines))
        for index, piece in enumerate(source.rejected, len(source.clips)):
            against = f" / {held_against(piece.limit)}" if piece.limit is not None else ""
            lines = (piece.reason, f"{measured(piece.reason, piece.value)}{against}", name)
            rejected.append(_Tile(source.source, index, lines))
    return kept, sorted(rejected, key=lambda tile: tile.lines[0])


def _shortened(name: str) -> str:
    """Its beginning and its end, with the kind of file."""
    if len(name) <= LONGEST_NAME:
        return name
    end = LONGEST_NAME // 2
    return f"{name[: LONGEST_NAME - end - 1]}…{name[-end:]}"


def _evenly(tiles: list[_Tile]) -> list[_Tile]:
    """Up to SHOWN of them, spread over all."""
    count = min(SHOWN, len(tiles))
    return [tiles[len(tiles) * i // count] for i in range(count)]


def _sheet(data: Path, report: Report):
    """The contact sheet, a PIL image."""
    from PIL import Image, ImageDraw

    groups = [
        (f"{word} {len(tiles)}" + (f", {SHOWN} of them shown" if len(tiles) > SHOWN else ""), _evenly(tiles))
        for word, tiles in zip(("kept", "rejected"), _tiles(report))
    ]
    cell, title = THUMBNAIL + 64, 40
    height = sum(title + cell * -(-len(tiles) // ACROSS) for _, tiles in groups)
    sheet = Image.new("RGB", (ACROSS * (THUMBNAIL + 10) + 10, height + 10), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for text, tiles in groups:
        draw.text((10, top + 8), text, "black", font=_font(20))
        top += title
        for number, tile in enumerate(tiles):
            row, column = divmod(number, ACROSS)
            _draw_tile(sheet, draw, data, tile, 10 + column * (THUMBNAIL + 10), top + row * cell)
        top += cell * -(-len(tiles) // ACROSS)
    return sheet


def _draw_tile(sheet, draw, data: Path, tile: _Tile, left: int, top: int) -> None:
    draw.rectangle((left, top, left + THUMBNAIL - 1, top + THUMBNAIL - 1), fill=(225, 225, 225))
    picture = _thumbnail(data, tile)
    if picture is not None:
        sheet.paste(picture, (left, top))
    for number, line in enumerate(tile.lines):
        draw.text((left, top + THUMBNAIL + 2 + 18 * number), line[:LONGEST_LINE], "black", font=_font(13))


def _thumbnail(data: Path, tile: _Tile):
    """None: the video could not be read, its sheet is gone, or it had more pieces than a sheet shows."""
    from PIL import Image

    row, column = divmod(tile.index, COLUMNS)
    corner = column * THUMBNAIL, row * THUMBNAIL
    try:
        with Image.open(data / "sources" / f"{name_of(tile.source)}.jpg") as sheet:
            if corner[1] >= sheet.height:
                return None
            return sheet.crop((*corner, corner[0] + THUMBNAIL, corner[1] + THUMBNAIL))
    except OSError:
        return None


def _font(size: int):
    """A scalable one that knows more letters than Pillow's own, if matplotlib is there."""
    from PIL import ImageFont

    try:
        from matplotlib import get_data_path

        return ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
    except (ImportError, OSError):
        return ImageFont.load_default(size)
