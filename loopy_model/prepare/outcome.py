"""What became of every piece of every raw video, read from the records of a data folder."""

import json
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
    read_held_out,
    read_passed_over,
    read_source,
    whole_files,
)
from .run import SETTINGS_FILE

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
class Outcome:
    """All records of a data folder."""

    sources: tuple[Source, ...]
    min_loudness: float = Filters.min_loudness  # below which a clip counts as silent
    passed_over: tuple[str, ...] = ()  # other files in the raw folder
    kept: str | None = None  # the source that `encode` has held out where chance gave none

    @cached_property
    def recorded(self) -> list[Clip]:
        return [clip for source in self.sources for clip in source.clips]

    @cached_property
    def held_out(self) -> set[str]:
        """The sources that training gets for testing."""
        records = ((clip.source, clip.split, clip.voiced) for clip in self.recorded)
        return held_out_sources(records, self.kept)

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


def read_outcome(data: Path) -> Outcome:
    """From whatever records there are, those of other machines included."""
    found = [read_source(path) for path in whole_files(data / "sources", ".json")]
    sources = sorted(filter(None, found), key=lambda s: s.source)
    passed_over = tuple(read_passed_over(data))
    return Outcome(tuple(sources), _min_loudness(data), passed_over, read_held_out(data))


def _min_loudness(data: Path) -> float:
    try:
        return json.loads((data / SETTINGS_FILE).read_text(encoding="utf-8"))["filters"]["min_loudness"]
    except FileNotFoundError:
        return Filters.min_loudness
