"""One raw video, from file to clips and record."""

import glob
import hashlib
import io
import json
from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path

import av
import numpy as np

from .clips import clip_paths, crop, crop_box, in_crop, remove_clips, sync_boxes, write_record, write_video
from .cuts import FACE, Track, pieces, split_evenly
from .encoded import FOLDER
from .filters import Failure, Filters, failures, kilobytes, loudness, measure_face
from .landmarks import LandmarkDetector, detector_for
from .raw import FPS, SAMPLES, NoAccess, RawVideo, Unreadable, upright
from .records import Box, CannotWrite, Clip, Rejected, Source, name_of, write_source, write_whole
from .scan import THUMBNAIL, Beat, NoLandmarks, Scan, scan

COLUMNS, MOST_ROWS = 16, 400  # of the sheet of thumbnails beside a record; a JPEG has at most 65,535 rows
SYNC_SIZE = 224  # pixels of the square that SyncNet looks at
DUPLICATE, UNREADABLE, NO_LANDMARKS, FAILED = "duplicate", "unreadable", "no landmarks", "error"
NO_ACCESS = "no access"


@dataclass(frozen=True)
class Settings:
    """What the clips of a data folder depend on, beside the raw videos."""

    filters: Filters
    landmarks: str
    sync: str | None  # path of SyncNet's weights
    size: int  # pixels of a clip's side
    test_share: float
    test: tuple[str, ...]  # raw videos that are test whatever their share

    def record(self) -> dict:
        """As stored: files by name, since their folder may differ between machines."""
        kind, colon, files = self.landmarks.partition(":")
        detector = kind + colon + ",".join(Path(name).name for name in files.split(","))
        sync = self.sync and Path(self.sync).name
        return {**asdict(replace(self, landmarks=detector, sync=sync)), "test": sorted(self.test)}

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Job:
    """One raw video to prepare."""

    raw: Path
    data: Path
    settings: Settings
    plan: Source  # its record, without clips

    @property
    def path(self) -> Path:
        return self.raw / self.plan.source

    @property
    def name(self) -> str:
        return name_of(self.plan.source)

    @property
    def clips(self) -> Path:
        return self.data / "clips"

    @property
    def record(self) -> Path:
        return self.data / "sources" / f"{self.name}.json"

    @property
    def marker(self) -> Path:
        """There while the job is in work, and after a process died of it."""
        return self.data / "sources" / f"{self.name}.in-work"

    def rejected(self, reason: str, detail: str) -> Source:
        """The record of a video that is rejected as a whole."""
        return replace(self.plan, rejected=(Rejected(self.plan.source, 0.0, 0.0, reason, detail=detail),))


def prepare(job: Job, beat: Beat) -> None:
    """Write the clips of one raw video and, at last, its record. Raises CannotWrite."""
    abandon(job)
    write_source(job.record, _prepared(job, beat))


def abandon(job: Job) -> None:
    """Remove what an earlier or broken off attempt left."""
    try:
        partial = job.record.parent.glob(f".partial-*-{glob.escape(job.name)}.*")
        for path in (job.record, job.record.with_suffix(".jpg"), *partial):
            path.unlink(missing_ok=True)
        remove_clips(job.clips, job.name)
        remove_clips(job.data / FOLDER, job.name)  # encoded from those
    except OSError as error:
        raise CannotWrite(f"cannot remove {error.filename}: {error.strerror}.") from error


def _prepared(job: Job, beat: Beat) -> Source:
    if job.plan.duplicate_of is not None:
        return job.rejected(DUPLICATE, f"it is, byte for byte, a duplicate of {job.plan.duplicate_of}.")
    try:
        with RawVideo(job.path) as video:
            seen = scan(video, _detector(job), job.settings.filters.cut_contrast, beat)
        return _cut_up(job, seen, beat)
    except NoLandmarks as error:
        return job.rejected(NO_LANDMARKS, str(error))
    except Unreadable as error:
        remove_clips(job.clips, job.name)
        return job.rejected(NO_ACCESS if isinstance(error, NoAccess) else UNREADABLE, str(error))
    except CannotWrite:
        raise
    except Exception as error:  # a file that nobody thought of costs that file alone
        remove_clips(job.clips, job.name)
        return job.rejected(FAILED, f"{type(error).__name__}: {error}")


def _detector(job: Job) -> LandmarkDetector:
    try:
        return detector_for(job.settings.landmarks, job.path)
    except ValueError as error:
        raise NoLandmarks(str(error)) from error


@dataclass(frozen=True)
class Piece:
    """A stretch of the video that shows one face."""

    frames: range
    points: np.ndarray  # (F, 68, 2) pixels
    voice: np.ndarray | None  # (F * 640,) int16; None: nothing to hear
    values: dict[str, float]


def _cut_up(job: Job, seen: Scan, beat: Beat) -> Source:
    """Pieces -> filters -> clips -> the record."""
    filters, source = job.settings.filters, job.plan.source
    track, stretches = pieces(seen.track, seen.cuts, filters.max_gap, filters.max_jump)
    rejected = [
        Rejected(source, r.start / FPS, r.stop / FPS, kind, len(r) / FPS, filters.max_gap / FPS)
        for kind, r in stretches
        if kind != FACE
    ]
    kept = []
    for frames in (
        part for kind, r in stretches if kind == FACE for part in split_evenly(r, filters.longest)
    ):
        piece = _measured(job, seen, track, frames)
        failure = next(failures(piece.values, filters), None)
        kept.append(piece) if failure is None else rejected.append(_rejected(source, piece, failure))
    clips, thumbnails = [], []
    for made, thumbnail in _make(job, seen, kept, beat):
        if isinstance(made, Rejected):
            rejected.append(made)
        else:
            clips.append(made)
            thumbnails.append(thumbnail)
    rejected.sort(key=lambda piece: piece.start)
    thumbnails += [_thumbnail(seen, piece) for piece in rejected]
    _write_sheet(job.record.with_suffix(".jpg"), thumbnails)
    return replace(job.plan, seconds=seen.seconds, clips=tuple(clips), rejected=tuple(rejected))


def _measured(job: Job, seen: Scan, track: Track, frames: range) -> Piece:
    filters, points = job.settings.filters, track.part(frames).points
    values = measure_face(points, filters)
    values["filled_frames"] = float((~seen.track.part(frames).seen).sum())
    values["kilobytes"] = kilobytes(job.plan.size, values["seconds"], seen.seconds)
    voice = None
    if seen.voice is not None:
        voice = seen.voice[frames.start * SAMPLES : frames.stop * SAMPLES]
        values["loudness"] = loudness(voice)
        voice = None if values["loudness"] < filters.min_loudness else voice
    return Piece(frames, points, voice, values)


def _rejected(source: str, piece: Piece, failure: Failure) -> Rejected:
    start, end = piece.frames.start / FPS, piece.frames.stop / FPS
    return Rejected(source, start, end, *failure, values=piece.values)


def _make(
    job: Job, seen: Scan, kept: list[Piece], beat: Beat
) -> Iterator[tuple[Clip | Rejected, np.ndarray | None]]:
    """Pass two: write the kept pieces; SyncNet has the last word. Each with a picture of its crop."""
    starts = [piece.frames.start for piece in kept]
    with RawVideo(job.path, seen.origin, seen.stored) as video:
        pictures = video.replay([piece.frames for piece in kept])
        number = 0
        for which, its_pictures in groupby(pictures, key=lambda item: bisect(starts, item[0]) - 1):
            yield _write(job, seen, kept[which], f"{job.name}-{number:03d}", its_pictures, beat)
            number += 1
    if number != len(kept):
        raise Unreadable("it gives fewer pictures when it is read a second time.")


def _write(
    job: Job, seen: Scan, piece: Piece, name: str, pictures: Iterator, beat: Beat
) -> tuple[Clip | Rejected, np.ndarray | None]:
    box = crop_box(piece.points, seen.width, seen.height)
    crops = _Crops(job, seen, piece, box, beat)
    video, record = clip_paths(job.clips, name)
    write_video(video, crops.of(pictures), piece.voice)
    values = piece.values | _sync(job.settings.sync, crops.lips, piece.voice)
    failure = next(failures(values, job.settings.filters), None)
    if failure is not None:
        video.unlink()
        return _rejected(job.plan.source, replace(piece, values=values), failure), None
    start, end = piece.frames.start / FPS, piece.frames.stop / FPS
    voiced, frames = piece.voice is not None, len(piece.frames)
    clip = Clip(name, job.plan.source, start, end, frames, job.plan.split, voiced, box, values)
    write_record(record, clip, in_crop(piece.points, box))
    return clip, crops.middle


class _Crops:
    """The square pictures of a clip on their way to its file; keeps what is needed of them later."""

    def __init__(self, job: Job, seen: Scan, piece: Piece, box: Box, beat: Beat) -> None:
        self.size, self.seen, self.frames, self.box, self.beat = (
            job.settings.size,
            seen,
            piece.frames,
            box,
            beat,
        )
        self.sync_boxes: list[Box] = []  # in pixels of the clip; none where sync is not measured
        if job.settings.sync is not None and piece.voice is not None:
            self.sync_boxes = sync_boxes(in_crop(piece.points, box) * self.size)
        self.lips: list[np.ndarray] = []  # (224, 224, 3) each, for SyncNet
        self.middle: np.ndarray | None = None

    def of(self, pictures: Iterator) -> Iterator[np.ndarray]:
        count, shown, square = 0, None, None
        for index, frame in pictures:
            if frame is not shown:
                shown, square = frame, self._square(frame)
            if self.sync_boxes:
                self.lips.append(crop(square, self.sync_boxes[count], SYNC_SIZE, self.size))
            if count == len(self.frames) // 2:
                self.middle = _resized(square, THUMBNAIL)
            count += 1
            self.beat(index / FPS)
            yield square
        if count != len(self.frames):
            raise Unreadable("it gives fewer pictures when it is read a second time.")

    def _square(self, frame: av.VideoFrame) -> np.ndarray:
        """By way of a smaller picture where the clip is much smaller than the source."""
        stored = self.seen.stored
        longest = np.ceil(max(stored) * min(1.0, 2 * self.size / self.box.side))
        return crop(upright(frame, stored, int(longest)), self.box, self.size, self.seen.width)


def _resized(picture: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX))


def _sync(weights: str | None, pictures: list[np.ndarray], voice: np.ndarray | None) -> dict[str, float]:
    if weights is None or voice is None:
        return {}
    score = _scorer(weights)(np.stack(pictures), voice.astype(np.float32) / 32768)
    return {f"sync_{name}": float(value) for name, value in score._asdict().items()}


@cache
def _scorer(weights: str) -> Callable:
    """Loaded once per process."""
    from .sync import sync_scorer

    return sync_scorer(Path(weights))


def _thumbnail(seen: Scan, piece: Rejected) -> np.ndarray:
    from PIL import Image

    second = min(int((piece.start + piece.end) / 2), len(seen.thumbnails) - 1)
    return np.asarray(Image.open(io.BytesIO(seen.thumbnails[second])))


def _write_sheet(path: Path, pictures: list[np.ndarray]) -> None:
    """The thumbnails of a source in one picture: first its clips, then its rejected pieces."""
    from PIL import Image

    pictures = pictures[: COLUMNS * MOST_ROWS]
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * THUMBNAIL, max(1, rows) * THUMBNAIL), "lightgray")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        sheet.paste(Image.fromarray(picture), (column * THUMBNAIL, row * THUMBNAIL))
    write_whole(path, lambda partial: sheet.save(partial, "jpeg", quality=85))
