"""Where a video is cut into pieces: scene cuts, jumps of the face, missing and second faces."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from .raw import FPS

FACE, NO_FACE, TWO_FACES = "face", "no face", "two faces"
COMPARED_WIDTH = 256  # pixels; enough to tell scenes apart


class SceneCuts:
    """Streams pictures through PySceneDetect's adaptive detector.

    It compares each change with those around it, so a fast pan is no cut.
    """

    def __init__(self, contrast: float) -> None:
        """`contrast`: how many times a cut changes more than its neighbours."""
        from scenedetect.detectors import AdaptiveDetector

        self._detector = AdaptiveDetector(adaptive_threshold=contrast, min_scene_len=1)
        self._last: tuple[int, np.ndarray] | None = None
        self.found: list[int] = []

    def see(self, index: int, picture: np.ndarray) -> None:
        """(H, W, 3) uint8 RGB, first shown as frame `index`; a picture that stands is seen once."""
        import cv2

        height, width = picture.shape[:2]
        size = min(width, COMPARED_WIDTH), max(1, min(height, round(height * COMPARED_WIDTH / width)))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        if self._last is None:  # a cut needs neighbours on both sides: repeat the first and the last
            self._feed(index, small, repeats=self._detector.window_width)
        self._feed(index, small)
        self._last = index, small

    def finish(self) -> list[int]:
        """The frames with which a new scene begins, ascending."""
        if self._last is not None:
            self._feed(*self._last, repeats=self._detector.window_width)
        return sorted({cut for cut in self.found if cut > 0})

    def _feed(self, index: int, small: np.ndarray, repeats: int = 1) -> None:
        from scenedetect import FrameTimecode

        for _ in range(repeats):
            cuts = self._detector.process_frame(FrameTimecode(index, float(FPS)), small[..., ::-1])
            self.found += [cut.frame_num for cut in cuts]


@dataclass(frozen=True)
class Track:
    """One face over a video: points (F, 68, 2) float32 pixels, NaN where it is not seen."""

    points: np.ndarray
    faces: np.ndarray  # (F,) how many faces the detector saw

    @property
    def seen(self) -> np.ndarray:
        """(F,) bool"""
        return np.isfinite(self.points).all((1, 2))

    def part(self, frames: range) -> "Track":
        part = slice(frames.start, frames.stop)
        return Track(self.points[part], self.faces[part])


def centres(points: np.ndarray) -> np.ndarray:
    """(F, 68, 2) -> (F, 2): middle of the box around the points."""
    return (points.min(1) + points.max(1)) / 2


def extents(points: np.ndarray) -> np.ndarray:
    """(F, 68, 2) -> (F, 2): width and height of the box around the points."""
    return np.ptp(points, axis=1)


def steps(points: np.ndarray) -> np.ndarray:
    """(F, 68, 2) -> (F - 1,): way of the centre between neighbouring frames, in face widths."""
    way = np.linalg.norm(np.diff(centres(points), axis=0), axis=1)
    return way / np.maximum(extents(points)[:-1, 0], 1)


def without_slips(points: np.ndarray, cuts: Iterable[int], longest: int, limit: float) -> np.ndarray:
    """Forget a face for up to `longest` frames where the detector slipped and came back.

    A slip is a jump by more than `limit` face widths whose end is where it began. (F, 68, 2)
    """
    points, cuts = points.copy(), sorted(cuts)
    for index in np.flatnonzero(steps(points) > limit) + 1:
        for back in range(index + 1, min(index + longest, len(points) - 1) + 1):
            one_scene = not any(index <= cut <= back for cut in cuts)
            if one_scene and steps(points[[index - 1, back]])[0] <= limit:
                points[index:back] = np.nan
                break
    return points


def jumps(points: np.ndarray, limit: float) -> list[int]:
    """The frames in which the face appears more than `limit` widths from where it was last seen."""
    seen = np.flatnonzero(np.isfinite(points).all((1, 2)))
    return [int(i) for i in seen[1:][steps(points[seen]) > limit]]


def fill_gaps(points: np.ndarray, longest: int) -> np.ndarray:
    """Interpolate up to `longest` missing frames between two seen ones. (F, 68, 2)"""
    seen = np.flatnonzero(np.isfinite(points).all((1, 2)))
    filled = points.copy()
    for before, after in pairwise(seen):
        if 1 < after - before <= longest + 1:
            share = (np.arange(before + 1, after) - before)[:, None, None] / (after - before)
            filled[before + 1 : after] = points[before] * (1 - share) + points[after] * share
    return filled


def labels(track: Track, longest: int) -> list[str]:
    """What each frame of a scene shows; a second face for up to `longest` frames does not count."""
    kinds = []
    for several, run in groupby(track.faces > 1):
        kinds += [bool(several)] * count if (count := len(list(run))) > longest else [False] * count
    return [TWO_FACES if two else FACE if seen else NO_FACE for two, seen in zip(kinds, track.seen)]


def runs(values: Iterable[str], first: int = 0) -> Iterator[tuple[str, range]]:
    """Neighbours of one kind, with their frame numbers."""
    for value, run in groupby(values):
        count = len(list(run))
        yield value, range(first, first + count)
        first += count


def split_evenly(frames: range, longest: int) -> list[range]:
    """As few parts as can be, none longer than `longest`, their lengths differing by one at most."""
    parts = -(-len(frames) // longest)
    edges = [frames.start + len(frames) * i // parts for i in range(parts + 1)]
    return [range(*edge) for edge in pairwise(edges)]


def pieces(
    track: Track, cuts: list[int], longest_gap: int, jump: float
) -> tuple[Track, list[tuple[str, range]]]:
    """-> the track with short gaps filled, and what each stretch of the video shows.

    A stretch never crosses a cut. `jump` (face widths between frames that show it) makes one as well.
    """
    points = without_slips(track.points, cuts, longest_gap, jump)
    edges = sorted({0, *cuts, *jumps(points, jump), len(points)})
    scenes = [range(*edge) for edge in pairwise(edges)]
    filled = Track(
        np.concatenate([fill_gaps(points[s.start : s.stop], longest_gap) for s in scenes]), track.faces
    )
    return filled, [run for s in scenes for run in runs(labels(filled.part(s), longest_gap), s.start)]
