"""Pass two: the square that a clip shows, and its files."""

import glob
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from scipy.ndimage import median_filter

from ..config import SAMPLE_RATE
from ..weights import save_tensors
from .cuts import extents
from .raw import FPS
from .records import Box, CannotWrite, Clip, write_whole

FACE_SHARE = 0.5  # of the side that the face takes up
RAISED = 0.1  # of the side: landmarks end at the brows, the head goes on
FREE = 0.05  # of the side that stays free around the landmarks of all frames
FOREHEAD = 0.3  # from the brows to its middle, of the height from brows to chin
SYNC_SHARE, SYNC_SMOOTHING = 1.4, 13  # side of SyncNet's square in face boxes, frames
FORMAT = "loopy-clip"


def crop_box(points: np.ndarray, width: int, height: int) -> Box:
    """The square for landmarks (F, 68, 2) in a picture of width x height pixels.

    It holds the face of every frame, with half of its side for the face where the picture allows
    it. Where it does not, it is shifted, then shrunk as far as the face allows; only a square that
    cannot hold the face otherwise reaches over the border.
    """
    low, high = points.min((0, 1)), points.max((0, 1))
    needed = float(np.ceil((high - low).max())) + 2  # the face and one pixel around it
    face = float(np.median(extents(points).max(1)))
    wished = max(face / FACE_SHARE, needed / (1 - 2 * (RAISED + FREE)))
    side = int(max(min(wished, width, height), needed))
    x, y = (low + high) / 2 - side / 2 - [0, RAISED * side]
    return Box(_placed(x, side, width, low[0], high[0]), _placed(y, side, height, low[1], high[1]), side)


def _placed(start: float, side: int, length: int, low: float, high: float) -> int:
    """Move [start, start + side) into [0, length), and then, above all, around [low, high]."""
    start = int(np.clip(round(start), 0, max(0, length - side)))
    return int(np.clip(start, np.ceil(high) - side, np.floor(low)))


def crop(picture: np.ndarray, box: Box, size: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3); outside of the picture its border is repeated.

    `width`: of the picture that `box` was made for; this one may be a smaller copy of it.
    """
    from PIL import Image

    scale = picture.shape[1] / width
    x, y, side = box.x * scale, box.y * scale, box.side * scale
    left, top, right, bottom = (
        int(np.floor(x)),
        int(np.floor(y)),
        int(np.ceil(x + side)),
        int(np.ceil(y + side)),
    )
    inside = picture[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    over = (
        (max(0, -top), max(0, bottom - picture.shape[0])),
        (max(0, -left), max(0, right - picture.shape[1])),
    )
    around = Image.fromarray(np.pad(inside, (*over, (0, 0)), mode="edge"))
    area = x - left, y - top, x - left + side, y - top + side
    return np.asarray(around.resize((size, size), Image.Resampling.LANCZOS, box=area))


def sync_boxes(points: np.ndarray) -> list[Box]:
    """The squares (F) that SyncNet looks at, for landmarks (F, 68, 2): they follow the face.

    As in its published evaluation: 1.4 times the box of a face detector, the extra height below the
    chin, smoothed over 13 frames. Those boxes begin in the middle of the forehead, the landmarks at
    the brows.
    """
    low, high = points.min(1), points.max(1)
    low = low - [0, FOREHEAD] * (high - low)
    half = (high - low).max(1, keepdims=True) / 2
    x, y, half = median_filter(np.hstack([(low + high) / 2, half]), (SYNC_SMOOTHING, 1), mode="nearest").T
    return [
        Box(*box) for box in np.stack([x - SYNC_SHARE * half, y - half, 2 * SYNC_SHARE * half], 1).tolist()
    ]


def in_crop(points: np.ndarray, box: Box) -> np.ndarray:
    """(..., 2) pixels of the picture -> 0..1 of the box, float32."""
    return ((points - np.float32([box.x, box.y])) / box.side).astype(np.float32)


def clip_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """(video, landmarks and record) of a clip."""
    return folder / f"{name}.mp4", folder / f"{name}.safetensors"


def write_pictures(path: Path, pictures: Iterable[np.ndarray], voice: np.ndarray | None) -> None:
    """(S, S, 3) uint8 each, at 25 fps; `voice` (samples,) int16 at 16 kHz, stored without loss."""
    options = {"movflags": "faststart"}
    with av.open(str(path), "w", format="mp4", options=options) as file:
        video = file.add_stream("h264", rate=FPS, options={"crf": "12", "preset": "medium"})
        sound = None if voice is None else file.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        for index, picture in enumerate(pictures):
            if index == 0:
                _describe(video, picture.shape[0])
            file.mux(video.encode(_encoded(picture)))
        file.mux(video.encode(None))
        if sound is not None:
            file.mux(sound.encode(_block(voice)))
            file.mux(sound.encode(None))


def _describe(video: av.VideoStream, size: int) -> None:
    video.width = video.height = size
    video.pix_fmt = "yuv420p"
    video.codec_context.colorspace = video.codec_context.color_primaries = 1  # BT.709, as players assume
    video.codec_context.color_trc = 1
    video.codec_context.color_range = 1  # 16..235


def _encoded(picture: np.ndarray) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")


def _block(voice: np.ndarray) -> av.AudioFrame:
    block = av.AudioFrame.from_ndarray(voice[None], format="s16", layout="mono")
    block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
    return block


def write_video(path: Path, pictures: Iterator[np.ndarray], voice: np.ndarray | None) -> None:
    """The clip's mp4, whole or not at all."""

    def write(partial: Path) -> None:
        try:
            write_pictures(partial, pictures, voice)
        except av.FFmpegError as error:
            raise CannotWrite(f"cannot write {path}: {error.strerror}.") from error

    write_whole(path, write)


def write_record(path: Path, clip: Clip, landmarks: np.ndarray) -> None:
    """`landmarks` (F, 68, 2) float32, 0..1 of the crop; written last, so that it vouches for the video."""
    record = {"format": FORMAT, "clip": json.dumps(asdict(clip), ensure_ascii=False)}
    tensors = {"landmarks": torch.from_numpy(np.ascontiguousarray(landmarks, np.float32))}
    write_whole(path, lambda partial: save_tensors(partial, tensors, record))


def remove_clips(folder: Path, source_name: str) -> None:
    """Everything of a raw video that is to be prepared again, half-written files too."""
    for pattern in (f"{glob.escape(source_name)}-*", f".partial-*-{glob.escape(source_name)}-*"):
        for path in folder.glob(pattern):
            path.unlink()
