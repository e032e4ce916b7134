"""Pass one over a raw video: landmarks, scene cuts, sound and thumbnails; no picture is kept."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .cuts import SceneCuts, Track
from .landmarks import Face, LandmarkDetector
from .raw import FPS, RawVideo, Unreadable, Voice, upright

LONGEST_SIDE = 1920  # pixels that the detector gets; landmark networks look at 640 or less
THUMBNAIL = 160  # pixels, longer side
MISSING_END, MISSING_SHARE = 1.0, 0.02  # s and of the whole; headers are not exact
NOBODY = np.full((68, 2), np.nan, np.float32)


class NoLandmarks(Exception):
    """One sentence on what the detector misses."""


Beat = Callable[[float], None]  # told the second of the video that is in work


@dataclass(frozen=True)
class Scan:
    """What pass one keeps of F frames at 25 fps."""

    track: Track  # in pixels of the upright picture
    cuts: list[int]
    width: int  # of the upright picture
    height: int
    stored: tuple[int, int]  # (width, height) before turning
    origin: Fraction  # s, time stamp of the first picture
    voice: np.ndarray | None  # (F * 640,) int16 at 16 kHz
    thumbnails: list[bytes]  # JPEG, one per second

    @property
    def frames(self) -> int:
        return len(self.track.points)

    @property
    def seconds(self) -> float:
        return self.frames / FPS


def scan(video: RawVideo, detector: LandmarkDetector, contrast: float, beat: Beat) -> Scan:
    """Decode a video once. Raises Unreadable and NoLandmarks."""
    points, faces, thumbnails = [], [], []
    cuts, voice, shown, small = SceneCuts(contrast), Voice(), None, None
    for index, frame in video.play(voice):
        if frame is not shown:
            small, shown = upright(frame, video.size, LONGEST_SIDE), frame
            cuts.see(index, small)
        found = _detected(detector, small, index)
        points.append(_follow(found, points[-1] if points else NOBODY))
        faces.append(len(found))
        if index % FPS == 0:
            thumbnails.append(_jpeg(small))
            beat(index / FPS)
    if not points:
        raise Unreadable("it has no picture that can be decoded.")
    _refuse_cut_off(video, voice, len(points))
    width, height = upright_size(video.size, shown.rotation)
    scale = np.float32([width / small.shape[1], height / small.shape[0]])
    return Scan(
        Track(np.stack(points) * scale, np.array(faces)),
        cuts.finish(),
        width,
        height,
        video.size,
        video.origin,
        voice.waveform(video.origin, len(points)),
        thumbnails,
    )


def _detected(detector: LandmarkDetector, picture: np.ndarray, index: int) -> list[Face]:
    try:
        return detector(picture, index)
    except ValueError as error:
        raise NoLandmarks(str(error)) from error


def upright_size(stored: tuple[int, int], rotation: int) -> tuple[int, int]:
    """(width, height) after turning by `rotation` degrees."""
    return stored[::-1] if round(rotation / 90) % 2 else stored


def _follow(faces: list[Face], before: np.ndarray) -> np.ndarray:
    """(68, 2) of the face nearest to that of the frame before, else of the largest."""
    if not faces:
        return NOBODY
    if np.isnan(before).any():
        return faces[0].points
    return min(faces, key=lambda face: np.linalg.norm(face.points.mean(0) - before.mean(0))).points


def _refuse_cut_off(video: RawVideo, voice: Voice, frames: int) -> None:
    """A download that was broken off often plays well to its sudden end; its header tells."""
    promised, lasts = video.promised_seconds, frames / FPS
    if promised is None:
        promised, lasts = video.promised_seconds_of_all, max(lasts, float(voice.end - video.origin))
    if promised is not None and lasts < promised - max(MISSING_END, MISSING_SHARE * promised):
        raise Unreadable(f"it ends after {lasts:.1f} s, its header says {promised:.1f} s: it is cut off.")


def _jpeg(picture: np.ndarray) -> bytes:
    from PIL import Image

    image, file = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, "jpeg", quality=80)
    return file.getvalue()
