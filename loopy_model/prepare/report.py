"""An outcome in words: report.csv, report.md with report.png, and a table for the terminal."""

import csv
from collections.abc import Iterator
from pathlib import Path

from .contact_sheet import contact_sheet
from .filters import CHECKS
from .outcome import UNITS, Outcome, held_against, measured, read_outcome
from .records import Clip, Rejected, write_whole

LISTED, PASSED_OVER_LISTED = 200, 50  # lines of a table in report.md, and of its list of other files


def write_report(data: Path) -> Outcome:
    """report.csv, report.md and report.png of a data folder. Raises CannotWrite."""
    outcome = read_outcome(data)
    write_whole(data / "report.csv", lambda path: _write_csv(path, outcome))
    write_whole(data / "report.md", lambda path: path.write_text(_markdown(outcome), encoding="utf-8"))
    write_whole(data / "report.png", lambda path: contact_sheet(data, outcome).save(path, "png"))
    return outcome


def summary(outcome: Outcome) -> str:
    """The table for the terminal; its last line says what to do when nothing was kept."""
    lines = [*_kept_lines(outcome), ""]
    if outcome.rejected:
        lines.append(f"{'rejected':<20} {'pieces':>7} {'minutes':>8}  {'median':<24} limit")
    for row in outcome.rows:
        line = f"{row.reason:<20} {row.pieces:>7} {row.minutes:>8.1f}  {row.measured:<24} {row.held_against}"
        lines.append(line.rstrip())
    if not outcome.clips:
        lines += ["", advice(outcome)]
    return "\n".join(lines).strip()


def _kept_lines(outcome: Outcome) -> Iterator[str]:
    clips = outcome.clips
    yield f"kept {len(clips)} clips, {_minutes(clips):.1f} minutes, from {len(outcome.sources)} raw videos"
    for name, kind in (
        ("train", [c for c in clips if c.split == "train"]),
        ("test", [c for c in clips if c.split == "test"]),
        ("voiced", [c for c in clips if c.voiced]),
        ("silent", [c for c in clips if not c.voiced]),
    ):
        yield f"  {name:<8} {len(kind):>6} clips {_minutes(kind):>8.1f} minutes"
    yield from _about_testing(outcome)


def _about_testing(outcome: Outcome) -> Iterator[str]:
    """What a user should know of the split."""
    if len({clip.source for clip in outcome.clips if clip.voiced}) == 1:
        yield "training needs a second video with sound for testing"
    for name in outcome.held_out - {clip.source for clip in outcome.recorded if clip.split == "test"}:
        yield f"no video fell to testing by chance: {name} is used (--test NAME --again chooses another)"


def _minutes(clips: list[Clip]) -> float:
    return sum(clip.end - clip.start for clip in clips) / 60


def advice(outcome: Outcome) -> str:
    """One sentence for a run that kept nothing."""
    if not outcome.rows:
        return "Nothing was kept: no raw video was prepared yet."
    row = outcome.rows[0]
    flags = {check.reason: "--" + check.limit.replace("_", "-") for check in CHECKS}
    measured = f" (median {row.measured}, limit {row.held_against})" if row.measured else ""
    detail = next((p.detail for p in outcome.rejected if p.reason == row.reason and p.detail), "")
    remedy = (
        f"look at report.png, and if these pieces are good, give another {flags[row.reason]}"
        if row.reason in flags
        else "look at report.png and report.csv"
    )
    example = f" One of them: {detail}" if detail else ""
    return (
        f"Nothing was kept: {row.pieces} of {len(outcome.rejected)} pieces were rejected "
        f"for '{row.reason}'{measured}; {remedy}.{example}"
    )


def _markdown(outcome: Outcome) -> str:
    rows = [
        f"| {r.reason} | {r.pieces} | {r.minutes:.1f} | {r.measured} | {r.held_against} |"
        for r in outcome.rows
    ]
    table = ["| rejected for | pieces | minutes | median measured | limit |", "|---|---|---|---|---|", *rows]
    sections = [
        "# What became of the raw videos",
        "\n".join(f"- {line.strip()}" for line in _kept_lines(outcome)),
        "\n".join(table) if rows else "Nothing was rejected.",
        "" if outcome.clips else advice(outcome),
        _rejected_table(outcome),
        _silent_table(outcome),
        _passed_over(outcome),
        "Every piece is in `report.csv`, with all that was measured; pictures are in `report.png`.",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _rejected_table(outcome: Outcome) -> str:
    rows = [
        (
            _code(p.source),
            _stretch(p),
            p.reason,
            measured(p.reason, p.value) or p.detail,
            held_against(p.limit),
        )
        for p in outcome.rejected
    ]
    return _table("Rejected pieces", ("video", "from - to", "reason", "measured", "limit"), rows)


def _silent_table(outcome: Outcome) -> str:
    rows = [
        (_code(clip.source), _stretch(clip), clip.name, _why_silent(clip, outcome.min_loudness))
        for clip in outcome.clips
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


def _passed_over(outcome: Outcome) -> str:
    names = outcome.passed_over
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


def _write_csv(path: Path, outcome: Outcome) -> None:
    pieces = sorted([*outcome.clips, *outcome.rejected], key=lambda piece: (piece.source, piece.start))
    names = sorted({name for piece in pieces for name in piece.values})
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        columns = "outcome source start end reason value limit unit detail clip split voiced"
        table.writerow([*columns.split(), *names])
        for piece in pieces:
            measured = [f"{piece.values[name]:.6g}" if name in piece.values else "" for name in names]
            table.writerow([*_cells(piece), *measured])


def _cells(piece: Clip | Rejected) -> list:
    place = [piece.source, piece.start, piece.end]
    if isinstance(piece, Clip):
        return ["kept", *place, "", "", "", "", "", piece.name, piece.split, piece.voiced]
    unit = "" if piece.value is None else UNITS.get(piece.reason, "")
    return ["rejected", *place, piece.reason, piece.value, piece.limit, unit, piece.detail, "", "", ""]
