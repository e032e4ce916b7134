"""The measurements of one video: its frames, its landmarks, its movement, and what networks say of it.

F frames at 25 fps, H x W pixels. Landmarks (F, 68, 2) are in pixels, (0, 0) is the picture's corner.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..movement import NOSE_TIP, exp, glo, mouth_opening
from ..prepare.clips import crop, sync_boxes
from ..prepare.cuts import fill_gaps
from ..prepare.landmarks import LandmarkDetector
from ..prepare.raw import FPS, RawVideo, Unreadable, Voice, upright
from ..prepare.records import Box
from ..prepare.sync import FACE_SIZE, SyncScorer
from .networks import NotMeasured

LONGEST_GAP = 5  # frames without a face that are interpolated, 0.2 s
RATE_TOLERANCE = 0.05  # frames per second; 24.99 is 25 with a rounded clock
FACE_SIDE, FACE_SCALE = 224, 102.0  # pixels of Deep3DFaceRecon's picture, and of its unit length there
NOSE, EYES, MOUTH_CORNERS = 30, ((36, 39), (42, 45)), (48, 54)  # iBUG points that it aligns faces by


@dataclass(frozen=True)
class Recording:
    """A video in memory: 0.75 MB per frame of 512 x 512."""

    frames: np.ndarray  # (F, H, W, 3) uint8 RGB
    voice: np.ndarray | None  # (F * 640,) int16 at 16 kHz


@contextmanager
def opened(path: Path) -> Iterator[RawVideo]:
    """Raises ValueError that names the file: unreadable, or not 25 frames per second by its header."""
    try:
        with RawVideo(path) as video:
            rate = float(video.picture.average_rate or 0)
            if abs(rate - FPS) > RATE_TOLERANCE:
                raise ValueError(
                    f"{path} has {rate:.6g} frames per second; every metric here is of {FPS}: convert it, and its "
                    f"pair, with `ffmpeg -i {path.name} -r {FPS} OUTPUT.mp4`."
                )
            yield video
    except Unreadable as error:
        raise ValueError(f"cannot read {path}: {error} Leave it out or write it again.") from error


def shape_of(path: Path) -> tuple[int, int, int]:
    """Frames, height, width, keeping no picture. Raises as `opened`."""
    with opened(path) as video:
        pictures = video.play()
        first = next(pictures, None)
        if first is None:
            raise Unreadable("it has no picture that can be decoded.")
        height, width = upright(first[1], video.size).shape[:2]
        return 1 + sum(1 for _ in pictures), height, width


def read(path: Path, count: int | None = None) -> Recording:
    """Its first `count` frames, all for None. Raises as `opened`."""
    voice = Voice()
    with opened(path) as video:
        frames = _decoded(video, voice, count)
        if not frames:
            raise Unreadable("it has no picture that can be decoded.")
        waveform = voice.waveform(video.origin, len(frames))
        return Recording(stacked(frames), waveform)


def _decoded(video: RawVideo, voice: Voice, count: int | None) -> list[np.ndarray]:
    """After the last picture it goes on until the sound of it was heard, which files may store later."""
    frames = []
    for index, frame in video.play(voice):
        if count is None or index < count:
            frames.append(upright(frame, video.size))
        elif video.sound is None or voice.end > video.origin + Fraction(count + 1, FPS):
            break  # a frame later: the resampler rounds off the end of what it heard
    return frames


def stacked(frames: list[np.ndarray]) -> np.ndarray:
    """As np.stack, but the list is emptied meanwhile: both together are twice the video."""
    whole = np.empty((len(frames), *frames[0].shape), frames[0].dtype)
    for index in reversed(range(len(frames))):
        whole[index] = frames.pop()
    return whole


def landmarks(frames: np.ndarray, detector: LandmarkDetector) -> np.ndarray:
    """(F, 68, 2) float32 of the largest face; short gaps are interpolated, long ones are NaN. Raises NotMeasured."""
    points = np.full((len(frames), 68, 2), np.nan, np.float32)
    for index, picture in enumerate(frames):
        found = _found(detector, picture, index)
        if found:
            points[index] = found[0].points
    return fill_gaps(points, LONGEST_GAP)


def of_all_frames(points: np.ndarray) -> np.ndarray:
    """Landmarks without NaN. Raises NotMeasured."""
    missing = int(np.isnan(points).any((1, 2)).sum())
    if missing:
        raise NotMeasured(f"{missing} of {len(points)} frames show no face that the landmark detector sees.")
    return points


def _found(detector: LandmarkDetector, picture: np.ndarray, index: int) -> list:
    try:
        return detector(picture, index)
    except ValueError as error:
        raise NotMeasured(str(error)) from error


@dataclass(frozen=True)
class Movement:
    """Glo and Exp (eq. 3-5), and the curves of the report, F values each."""

    glo: float
    exp: float
    nose_x: list[float]  # 0..1 of the picture's width, from the left
    nose_y: list[float]  # 0..1 of its height, from the top
    opening: list[float]  # of the mouth; 1 is the distance of the outer eye corners


def movement(points: np.ndarray, height: int, width: int) -> Movement:
    """Of landmarks (F, 68, 2). The equations take x and y as shares of the picture."""
    pixels = torch.from_numpy(points).double()
    shares = pixels / torch.tensor([width, height])
    nose = shares[:, NOSE_TIP]
    return Movement(
        float(glo(shares)),
        float(exp(shares)),
        nose[:, 0].tolist(),
        nose[:, 1].tolist(),
        mouth_opening(pixels).tolist(),
    )


def smoothness(frames: np.ndarray, middle: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Smo, VBench's motion smoothness (Huang et al. 2024), 0..1: of frames 0, 1, 2, .. every odd one is
    drawn anew from its neighbours, and 1 - |drawn - real| / 255 is meant over pixels, then frames.

    `middle`: `networks.middle_of`. Drawn pictures are cut to whole numbers, not rounded, as there.
    """
    if len(frames) < 3:
        raise NotMeasured(f"it needs 3 frames of each video, and one has {len(frames)}.")
    kept = rearrange(torch.from_numpy(np.ascontiguousarray(frames[::2])), "f h w c -> f 1 c h w")
    apart = []
    for before, after, real in zip(kept[:-1], kept[1:], frames[1::2]):
        drawn = middle(before / 255, after / 255).clamp(0, 1)
        drawn = rearrange((drawn * 255).to(torch.uint8), "1 c h w -> h w c").numpy()
        apart.append(np.abs(drawn.astype(np.int16) - real).mean())
    return (255 - float(np.mean(apart))) / 255


def sync(recording: Recording, points: np.ndarray, scorer: SyncScorer) -> tuple[float, float]:
    """Sync-C and Sync-D: confidence (median less least distance over the offsets) and least distance."""
    if recording.voice is None or not recording.voice.any():
        raise NotMeasured("the video has no sound.")
    lips = _cropped(recording.frames, sync_boxes(points), FACE_SIZE)
    try:
        score = scorer(lips, recording.voice.astype(np.float32) / 32768)
    except ValueError as error:
        raise NotMeasured(str(error)) from error
    return score.confidence, score.distance


def aligned_faces(frames: np.ndarray, points: np.ndarray, standard: np.ndarray) -> np.ndarray:
    """The squares that Deep3DFaceRecon (Deng et al. 2019) looks at, (F, 224, 224, 3) uint8.

    `standard` (68, 3): its standard face, of `similarity_Lm3D_all.mat`.
    """
    boxes = [face_box(five_points(own), five_points(standard)) for own in points]
    return _cropped(frames, boxes, FACE_SIDE)


def _cropped(frames: np.ndarray, boxes: list[Box], side: int) -> np.ndarray:
    """(F, side, side, 3) uint8. Raises NotMeasured for a face that the picture does not show."""
    height, width = frames.shape[1:3]
    for number, (x, y, length) in enumerate(boxes):
        if not (-length < x < width and -length < y < height):
            raise NotMeasured(f"the face of frame {number} lies outside the picture, by its landmarks.")
    return np.stack([crop(frame, box, side, width) for frame, box in zip(frames, boxes)])


def five_points(points: np.ndarray) -> np.ndarray:
    """(68, K) -> (5, K): eyes, nose tip, corners of the mouth."""
    eyes = [points[list(corners)].mean(0) for corners in EYES]
    return np.stack([*eyes, points[NOSE], *points[list(MOUTH_CORNERS)]])


def face_box(points: np.ndarray, standard: np.ndarray) -> Box:
    """The square around a face (5, 2) pixels whose standard shape (5, 3) has its unit 102 pixels long
    where the square has 224. Scale and centre are those of the best scaled orthographic projection."""
    shape = np.column_stack([standard, np.ones(len(standard))])
    projection = np.linalg.lstsq(shape, points, rcond=None)[0]  # (4, 2): axes and centre
    scale = np.linalg.norm(projection[:3], axis=0).mean()
    side = FACE_SIDE * scale / FACE_SCALE
    return Box(*(projection[3] - side / 2), side)
