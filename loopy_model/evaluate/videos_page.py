"""The page of `evaluate videos`: tables, then each video with its frames and curves."""

import shutil
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..config import SAMPLE_RATE
from ..prepare.raw import FPS, RawVideo
from ..prepare.records import digest_of, write_whole
from ..video import write_video
from .cache import Cache, file_digest, key_of
from .measures import Movement, read
from .metrics import METRICS, OF_VIDEOS, Compared, value_of
from .networks import NotMeasured
from .one_video import Video
from .page import figure, heading, number, paragraph, picture, strip_jpeg, table, videos, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRIP = 8  # frames of a video on the page, evenly spread
FOLDERS = ("generated", "real")
PLAYED, PLAYED_CODECS = (".mp4", ".m4v", ".mov", ".webm"), ("h264", "vp8", "vp9", "libvpx", "av1", "libdav1d")


@dataclass(frozen=True)
class Shown:
    """What the page shows of a pair; the real one comes second."""

    compared: Compared
    paths: tuple[Path, ...]
    strips: tuple[bytes, ...]  # JPEG
    movements: tuple[Movement, ...]  # none without landmarks

    @classmethod
    def of(cls, compared: Compared, generated: Video, real: Video | None) -> "Shown":
        both = [generated] if real is None else [generated, real]
        return cls(compared, tuple(v.path for v in both), tuple(map(_strip, both)), tuple(_movements(both)))


def _strip(video: Video) -> bytes:
    def make() -> str:
        frames = video.recording.frames
        evenly = np.linspace(0, len(frames) - 1, min(STRIP, len(frames))).round().astype(int)
        return b64encode(strip_jpeg(frames[evenly])).decode()

    return b64decode(video.kept("strip", make))


def _movements(both: Iterable[Video]) -> Iterator[Movement]:
    for video in both:
        try:
            yield video.movement
        except NotMeasured:
            return


def write_report(folder: Path, cache: Cache, results: dict, shown: list[Shown]) -> None:
    """report.html and the videos that it plays. Raises CannotWrite."""
    pieces = [*_overview(results), *_per_video(results)]
    for pair in shown:
        pieces += _pair(folder, cache, pair)
    rest = len(results["videos"]) - len(shown)
    if rest:
        pieces.append(
            paragraph(f"{rest} more videos are in the tables; --show {len(shown) + rest} shows all.")
        )
    write_page(folder / "report.html", "Evaluation of generated videos", pieces)


def _overview(results: dict) -> Iterator[str]:
    count, frames = len(results["videos"]), sum(video["frames"] for video in results["videos"])
    yield paragraph(
        f"{count} videos, {frames} frames at {FPS} fps; landmarks by {results['landmarks']}. Values are means "
        "over the videos ± their standard deviation. Metrics and names are those of the Loopy paper, appendix "
        "B; its own figures were taken with DWPose landmarks on its own test videos, so compare with them only "
        "what was measured in the same way."
    )
    yield table(
        ("metric", "better", "generated", "real", "what it is"),
        (
            (row["metric"], row["better"], _generated(row), value_of(row["real"]), row["meaning"])
            for row in results["metrics"]
        ),
    )
    for title, key in (("Not measured", "not_measured"), ("Not measured of all videos", "left_out")):
        if why := [(row["metric"], row[key]) for row in results["metrics"] if row.get(key)]:
            yield heading(title)
            yield table(("metric", "why"), why)
    for note in results["notes"]:
        yield paragraph(note)


def _generated(row: dict) -> str:
    return "not measured" if row["not_measured"] else value_of(row["generated"])


def _per_video(results: dict) -> Iterator[str]:
    """Generated, and behind a stroke real, values of every video; metrics that none has are left out."""
    found = [name for name in OF_VIDEOS if any(name in v["generated"]["values"] for v in results["videos"])]
    if not found:
        return
    yield heading("Each video")
    has_real = any(video["real"] for video in results["videos"])
    yield table(
        ("video", "frames", *found),
        (
            (video["name"], video["frames"], *(_cell(video, name) for name in found))
            for video in results["videos"]
        ),
        "generated / real" if has_real else "",
    )


def _cell(video: dict, name: str) -> str:
    alone = any(metric.name == name and metric.needs_real for metric in METRICS)
    both = [video["generated"]] if alone or not video["real"] else [video["generated"], video["real"]]
    return " / ".join(number(scores["values"].get(name, float("nan"))) for scores in both)


def _pair(folder: Path, cache: Cache, pair: Shown) -> Iterator[str]:
    yield heading(pair.compared.name)
    yield videos(
        (kind, _copied(folder, Path(kind) / pair.compared.name, _played(cache, path)))
        for kind, path in zip(FOLDERS, pair.paths)
    )
    for kind, jpeg in zip(FOLDERS, pair.strips):
        yield picture(jpeg, kind)
    if pair.movements:
        yield figure(curves(pair.movements))


def _played(cache: Cache, path: Path) -> Path:
    """The video itself, or where browsers would not play it the MP4 that was made of just these bytes."""
    if path.suffix.lower() in PLAYED and _codec(path).startswith(PLAYED_CODECS):
        return path
    return cache.file("played.mp4", key_of(file_digest(path)), lambda partial: _rewrite(path, partial))


def _copied(folder: Path, name: Path, path: Path) -> str:
    """The video beside the page -> its path from there."""
    place = Path("videos") / name.with_suffix(path.suffix)
    copy = folder / place
    if not (copy.is_file() and digest_of(copy) == digest_of(path)):
        write_whole(copy, lambda partial: shutil.copyfile(path, partial))
    return place.as_posix()


def _codec(path: Path) -> str:
    with RawVideo(path) as video:
        return video.picture.codec_context.name


def _rewrite(path: Path, target: Path) -> None:
    recording = read(path)
    voice = None if recording.voice is None else torch.from_numpy(recording.voice)[None] / 32768
    frames = (torch.from_numpy(frame)[None] / 255 for frame in recording.frames)
    write_video(target, frames, Fraction(FPS), voice, SAMPLE_RATE)


def curves(movements: tuple[Movement, ...]) -> "Figure":
    """Way of the nose tip and opening of the mouth over time, generated and real."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11, 5.4))
    axes = drawn.subplots(3, sharex=True)
    for movement, kind, colour in zip(movements, FOLDERS, ("tab:blue", "tab:orange")):
        lines = (movement.nose_x, movement.nose_y, movement.opening)
        for axis, line in zip(axes, lines):
            axis.plot(np.arange(len(line)) / FPS, line, color=colour, label=kind, linewidth=1)
    for axis, name in zip(axes, ("nose, x", "nose, y", "mouth opening")):
        axis.set_ylabel(name)
    axes[1].invert_yaxis()  # the picture's y points down
    axes[0].legend(loc="upper right", fontsize=8)
    axes[-1].set_xlabel("seconds")
    return drawn
