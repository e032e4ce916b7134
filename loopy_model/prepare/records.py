"""What the pipeline writes down: JSON files that appear whole or not at all."""

import hashlib
import json
import os
import platform
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = "loopy-prepare-1"
PASSED_OVER = "passed_over.json"
HELD_OUT = "held_out.json"


class CannotWrite(Exception):
    """The data folder does not take what we write; the run ends with this sentence."""


class Box(NamedTuple):
    """A square of a picture in its pixels; it may reach over the border. A clip's is whole-numbered."""

    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Clip:
    """One training clip."""

    name: str
    source: str  # path of the raw video, relative to the raw folder
    start: float  # seconds after the raw video's first picture
    end: float
    frames: int
    split: str  # "train" or "test"
    voiced: bool  # False: for the first training stage only
    box: Box
    values: dict[str, float]  # everything that was measured

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", Box(*self.box))  # JSON knows lists only


@dataclass(frozen=True)
class Rejected:
    """A piece of a raw video that became no clip, or the whole of it (start = end = 0 if unread)."""

    source: str
    start: float
    end: float
    reason: str  # a few words, the same for all of its kind
    value: float | None = None  # what was measured
    limit: float | None = None  # what it was held against
    detail: str = ""  # a sentence about this one
    values: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Source:
    """What became of one raw video."""

    source: str
    size: int  # bytes
    modified: int  # ns
    settings: str  # digest of the settings that it was prepared with, and state of its own landmarks
    duplicate_of: str | None
    split: str
    seconds: float = 0.0
    clips: tuple[Clip, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "clips", tuple(_made(Clip, c) for c in self.clips))
        object.__setattr__(self, "rejected", tuple(_made(Rejected, r) for r in self.rejected))

    def same_work(self, other: "Source") -> bool:
        """Would preparing `other` give what is recorded here?"""
        return replace(self, seconds=0.0, clips=(), rejected=()) == replace(
            other, seconds=0.0, clips=(), rejected=()
        )


def _made(kind: type, value: Any) -> Any:
    return kind(**value) if isinstance(value, dict) else value


def name_of(source: str) -> str:
    """File name for what belongs to a raw video: readable, short, and unlike any other's."""
    source = unicodedata.normalize("NFC", source)  # macOS stores accents apart
    stem = re.sub(r"\W+", "-", source.rpartition("/")[2].rpartition(".")[0]).strip("-")
    return f"{stem[:40]}-{hashlib.sha256(source.encode()).hexdigest()[:8]}".lstrip("-")


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def share_of(text: str) -> float:
    """A number 0..1 that depends on the text alone, evenly spread."""
    digest = hashlib.sha256(unicodedata.normalize("NFC", text).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def shard_of(text: str, shards: int) -> int:
    """The part, from 0, that does what is named so: not its place in a list, which grows meanwhile."""
    return int(share_of(f"shard {text}") * shards)


def held_out_sources(records: Iterable[tuple[str, str, bool]], kept: str | None = None) -> set[str]:
    """(source, split, voiced) of all clips -> the raw videos that are for testing.

    Where chance gave none with sound (few videos), the one that was nearest to it is added, as long
    as another one with sound remains: training cannot be judged without. `kept` was added so once, and
    stays as long as it has clips with sound.
    """
    records = list(records)
    chosen = {source for source, split, _ in records if split == "test"}
    voiced = {source for source, _, has_sound in records if has_sound}
    if kept in voiced:
        chosen.add(kept)
    if chosen & voiced or len(voiced) < 2:
        return chosen
    return chosen | {min(voiced, key=share_of)}


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """`write(partial)`, then rename: the file is there when it is complete, or not at all."""
    # The name is this process's own: several machines may write the same report.
    partial = path.with_name(f".partial-{platform.node()[:20]}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        _forget(partial)


def whole_files(folder: Path, ending: str) -> list[Path]:
    """The files of a folder with that ending, sorted; no partial ones, or others with a dot in front."""
    return sorted(folder.glob(f"[!.]*{ending}"))


def _forget(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass  # its folder is what could not be written


def differences(before: Any, now: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple]:
    """(place, before, now) of every value in which two of JSON's values differ; a place is the keys and
    numbers that lead to it."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from differences(before.get(key), now.get(key), (*place, key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, pair in enumerate(zip(before, now)):
            yield from differences(*pair, (*place, number))
    elif before != now:
        yield place, before, now


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)
    write_whole(path, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))


def write_passed_over(data: Path, files: list[str]) -> None:
    """The files of the raw folder that are no videos, for the report."""
    # Names that are no UTF-8 would not be written.
    write_json(data / PASSED_OVER, [name.encode(errors="backslashreplace").decode() for name in files])


def read_passed_over(data: Path) -> list[str]:
    try:
        return json.loads((data / PASSED_OVER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []


def write_held_out(data: Path, source: str) -> None:
    """The raw video that is for testing though chance did not choose it."""
    write_json(data / HELD_OUT, source)


def read_held_out(data: Path) -> str | None:
    try:
        return json.loads((data / HELD_OUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_source(path: Path, source: Source) -> None:
    write_json(path, {"format": FORMAT, **asdict(source)})


def read_source(path: Path) -> Source | None:
    """None: there is none, or one that an older version wrote."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Source(**values) if values.pop("format", None) == FORMAT else None
