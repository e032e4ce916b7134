"""The filters of the paper's appendix A: what is measured of a piece, and what it is held against."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np

from .cuts import centres, extents
from .pose import head_pose
from .raw import FPS

QUIETEST = -120.0  # dBFS that digital silence is given, so that it is a number


def _limit(default: float, help: str, paper: str = "") -> float:
    """A field of Filters; `paper`: what appendix A says, where it says something."""
    return field(default=default, metadata={"help": help, "paper": paper})


@dataclass(frozen=True)
class Filters:
    """Every limit; a piece exactly at its limit is kept."""

    min_seconds: float = _limit(2.0, "shorter pieces are rejected", "shorter than 2 seconds: discarded")
    max_seconds: float = _limit(20.0, "longer pieces are split evenly", "longer than 20 seconds: split")
    max_jump: float = _limit(
        0.5,
        "way of the face centre from one frame to the next, in face widths, beyond which it is a cut",
        "large movement of the face centre: considered a camera cut",
    )
    max_movement: float = _limit(
        1.0,
        "largest distance of the face centre from its median place, in face widths",
        "large movement of the face centre: filtered out",
    )
    max_angle: float = _limit(
        45.0,
        "degrees of yaw, pitch or roll",
        "any head pose rotation angle over 45 degrees: filtered out",
    )
    angle_outliers: int = _limit(3, "frames per clip that may exceed --max-angle (slips of the detector)")
    max_gap: int = _limit(
        5,
        "frames without a face that are interpolated, and with a second face that are overlooked",
        "multiple people: removed",
    )
    min_face_pixels: int = _limit(64, "median width of the face in source pixels")
    min_kilobytes: float = _limit(
        150.0,
        "thousand bytes of the source file for this piece (its share of the duration): judges the source's compression",
        "smaller than 150 KB: discarded",
    )
    min_confidence: float = _limit(
        2.5, "SyncNet confidence, measured with --sync", "SyncNet confidence below 2.5: removed"
    )
    min_loudness: float = _limit(
        -60.0,
        "dBFS (root mean square); quieter is kept as silent, for the first stage",
        "without audio: used in the first stage",
    )
    cut_contrast: float = _limit(3.0, "how many times more than its neighbours a scene cut changes")

    def __post_init__(self) -> None:
        if not 0 < self.min_seconds <= self.max_seconds:
            raise ValueError("--min-seconds must be above 0 and not above --max-seconds.")
        if self.max_gap < 0 or self.angle_outliers < 0:
            raise ValueError("--max-gap and --angle-outliers count frames; give 0 or more.")

    @property
    def longest(self) -> int:
        """Frames of the longest clip."""
        return max(1, int(self.max_seconds * FPS))


class Check(NamedTuple):
    """`value` (a name in what was measured) against `limit` (a field of Filters)."""

    reason: str
    value: str
    limit: str
    passes: Callable[[float, float], bool]
    unit: str


def _at_least(value: float, limit: float) -> bool:
    return value >= limit


def _at_most(value: float, limit: float) -> bool:
    return value <= limit


CHECKS = (  # the first that fails is the reason
    Check("too short", "seconds", "min_seconds", _at_least, "s"),
    Check("face too small", "face_pixels", "min_face_pixels", _at_least, "px"),
    Check("face moves", "movement", "max_movement", _at_most, "face widths"),
    Check("head turned", "angle", "max_angle", _at_most, "degrees"),
    Check("out of sync", "sync_confidence", "min_confidence", _at_least, "SyncNet confidence"),
    Check("file too small", "kilobytes", "min_kilobytes", _at_least, "kB"),
)


class Failure(NamedTuple):
    reason: str
    value: float
    limit: float


def failures(values: dict[str, float], filters: Filters) -> Iterator[Failure]:
    """What of the measured values fails; what was not measured is not judged."""
    for check in CHECKS:
        limit = getattr(filters, check.limit)
        if check.value in values and not check.passes(values[check.value], limit):
            yield Failure(check.reason, values[check.value], limit)


def limits() -> Iterator[tuple[str, type, float, str]]:
    """(field, type, default, help) of every limit, for a command line."""
    for limit in fields(Filters):
        paper = limit.metadata["paper"]
        text = limit.metadata["help"] + (f"; paper: {paper}" if paper else "")
        yield limit.name, type(limit.default), limit.default, text


def measure_face(points: np.ndarray, filters: Filters) -> dict[str, float]:
    """(F, 68, 2) pixels of one piece -> its values. F >= 1, every frame seen."""
    width = float(np.median(extents(points)[:, 0]))
    centre = centres(points)
    away = np.linalg.norm(centre - np.median(centre, axis=0), axis=1)
    poses = np.abs([head_pose(frame) for frame in points])  # (F, 3)
    # Robust: the largest angle after the `angle_outliers` largest are left out.
    rank = -1 - min(filters.angle_outliers, len(points) - 1)
    yaw, pitch, roll = np.sort(poses, axis=0)[rank]
    return {
        "seconds": len(points) / FPS,
        "face_pixels": width,
        "movement": float(away.max()) / max(width, 1.0),
        "yaw": float(yaw),
        "pitch": float(pitch),
        "roll": float(roll),
        "angle": float(max(yaw, pitch, roll)),
        "turned_frames": float((poses > filters.max_angle).any(1).sum()),
    }


def kilobytes(file_bytes: int, seconds: float, of_seconds: float) -> float:
    """The part of a file, in 1000 bytes, that falls to `seconds` of its `of_seconds`."""
    return file_bytes / 1000 * seconds / of_seconds


def loudness(waveform: np.ndarray) -> float:
    """int16 (samples,) -> dBFS of its root mean square; full scale is 0, silence QUIETEST."""
    power = float(np.mean(np.square(waveform / 32768.0))) if len(waveform) else 0.0
    return max(QUIETEST, 10 * float(np.log10(power))) if power else QUIETEST
