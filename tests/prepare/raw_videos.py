"""A folder of raw videos as one finds them: good ones, and every way in which one can be of no use.

`drawn/` holds puppets with their exact points, `real/` a portrait that hand-made warps bring to life:
Eileen Collins in 1992, by NASA, public domain, from scikit-image. All of them speak with espeak-ng.
`python tests/prepare/raw_videos.py FOLDER` writes the folder, to look at.
"""

import math
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file
from skimage import data

from loopy_model.config import SAMPLE_RATE
from loopy_model.puppet.clips import SPLITS, draw_clip
from loopy_model.puppet.motion import HEAD_X, HEAD_Y, TILT
from loopy_model.puppet.speech import Utterance, utterance
from loopy_model.puppet.videos import Border, raw_frames, raw_points, write_raw_video

FPS = 25
VOICES = SPLITS["train"].voices
STEADY, PHONE, NAMED = 0, 2, 3  # seeds of the speech in three good videos
DRAWN, REAL = "drawn", "real"  # one data folder each: their landmarks come from different detectors


class Outcome(NamedTuple):
    """What `prepare clips` should make of one file."""

    clips: int = 0
    reason: str = ""  # of everything that became no clip
    value: tuple[float, float] | None = None  # between which the measured value of the reason lies
    voiced: bool = True


KEPT, KEPT_SILENT, TWO_CLIPS = Outcome(1), Outcome(1, voiced=False), Outcome(2)
UNREADABLE = Outcome(0, "unreadable")

OUTCOMES = {
    "drawn/puppet_0.mp4": KEPT,
    "drawn/puppet_1.mp4": KEPT,
    "drawn/puppet_2.mp4": KEPT,
    "drawn/cut.mp4": TWO_CLIPS,
    "drawn/crowd.mp4": Outcome(0, "two faces", (2.4, 2.4)),  # seconds
    "drawn/tilted.mp4": Outcome(0, "head turned", (50, 60)),  # degrees
    "drawn/profile.mp4": Outcome(0, "head turned", (50, 75)),
    "drawn/wandering.mp4": Outcome(0, "face moves", (2, 3)),  # face widths
    "drawn/far.mp4": Outcome(0, "face too small", (40, 55)),  # pixels
    "real/steady.mp4": KEPT,
    "real/Größe/видео 日本.mp4": KEPT,
    "real/phone.mp4": KEPT,
    "real/silent.mp4": KEPT_SILENT,
    "real/mute.mp4": KEPT_SILENT,
    "real/cut.mp4": TWO_CLIPS,
    "real/leaning.mp4": KEPT,
    "real/two.mp4": Outcome(0, "two faces", (2.4, 2.4)),
    "real/short.mp4": Outcome(0, "too short", (1, 1)),  # seconds
    "real/tilted.mp4": Outcome(0, "head turned", (50, 65)),
    "real/wandering.mp4": Outcome(0, "face moves", (1.5, 2.5)),
    "real/far.mp4": Outcome(0, "face too small", (45, 60)),
    "real/stars.mp4": Outcome(0, "no face", (2.4, 2.4)),
    "real/compressed.mp4": Outcome(0, "file too small", (30, 80)),  # kB
    "real/sound.mp4": UNREADABLE,
    "real/broken.mp4": UNREADABLE,
    "real/corrupt.mp4": UNREADABLE,
    "real/garbage.mp4": UNREADABLE,
    "real/empty.mp4": UNREADABLE,
    "real/steady_copy.mp4": Outcome(0, "duplicate"),
}


# --- shots --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """frames (F, H, W, 3) uint8, waveform (n,) float32 at 16 kHz, points (F, 68, 2) in 0..1."""

    frames: np.ndarray
    waveform: np.ndarray | None
    points: np.ndarray | None = None
    fps: Fraction = Fraction(FPS)
    times: np.ndarray | None = None  # (F,) s, where frames do not come evenly

    @property
    def size(self) -> np.ndarray:
        """(width, height)"""
        return np.array(self.frames.shape[2:0:-1])


def puppet(seed: int, seconds: float, size: int = 256, still: bool = False) -> Shot:
    """A drawn person; `still`: whose head rests."""
    clip = draw_clip(seed, round(seconds * FPS), VOICES)
    if still:
        clip.motion[:, [HEAD_X, HEAD_Y, TILT]] = 0
    border = Border.draw(random.Random(f"wall {seed}"), size)
    frames = raw_frames(clip, size, border, torch.Generator().manual_seed(seed))
    return Shot(to_bytes(frames), clip.waveform, raw_points(clip, size, border).numpy())


def to_bytes(frames: torch.Tensor) -> np.ndarray:
    return (frames.clamp(0, 1) * 255).round().byte().numpy()


class Camera(NamedTuple):
    """Where the portrait is in a picture of width x height pixels."""

    width: int = 480
    height: int = 360
    zoom: float = 1.5  # pixels of the picture per pixel of the portrait
    x: float = 0.5  # of the face's middle, 0..1 of the picture
    y: float = 0.55
    walk: float = 0.0  # way of the face from first to last frame, in picture widths
    turn: float = 0.0  # degrees in the picture


FACE = torch.tensor([223.0, 125.0])  # middle of the face in the portrait, pixels
LIPS = torch.tensor([222.0, 149.0])  # middle of the line under the upper teeth
SMILE = 9 / 21**2  # how that line bends up: y falls by this times x squared
DROP = 11.0  # way of the lower lip in a mouth that is wide open
INSIDE = torch.tensor([0.22, 0.05, 0.06])


@cache
def portrait() -> torch.Tensor:
    """(3, 512, 512) 0..1"""
    return torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255


def talking(
    seed: int,
    seconds: float,
    camera: Camera = Camera(),
    fps: Fraction = Fraction(FPS),
    times: np.ndarray | None = None,
) -> Shot:
    """The portrait speaks: it sways, nears, and opens its mouth with the voice.

    `times` (F,), s: when each frame appears, if they do not come evenly.
    """
    said, grain = speech(seed, seconds), torch.Generator().manual_seed(seed)
    middles = 0.5 / float(fps) + (np.arange(round(seconds * fps)) / float(fps) if times is None else times)
    opening = np.interp(middles, (np.arange(len(said.visemes)) + 0.5) / FPS, said.visemes[:, 0])
    pictures = [
        _speaking_picture(float(time), seconds, float(open_), camera, grain)
        for time, open_ in zip(middles, opening)
    ]
    return Shot(to_bytes(torch.stack(pictures)), said.waveform, fps=fps, times=times)


def uneven(seconds: float, fps: int) -> np.ndarray:
    """When the frames of a phone appear, which come early and late."""
    steps = np.random.default_rng(0).uniform(0.4, 1.6, round(seconds * fps))
    return (np.cumsum(steps) - steps) * seconds / steps.sum()


def speech(seed: int, seconds: float) -> Utterance:
    return utterance(random.Random(f"portrait {seed}"), int(np.ceil(seconds * FPS)), VOICES)


def _speaking_picture(
    time: float, seconds: float, opening: float, camera: Camera, grain: torch.Generator
) -> torch.Tensor:
    """(H, W, 3): each pixel of the picture is traced back to the portrait."""
    sway = math.sin(2 * math.pi * time / 3.1)
    x = camera.x + 0.012 * sway + camera.walk * (time / seconds - 0.5)
    y = camera.y + 0.008 * math.sin(2 * math.pi * time / 2.3)
    zoom = camera.zoom * (1 + 0.02 * math.sin(2 * math.pi * time / 4.7))
    here = _pixels(camera.width, camera.height) - torch.tensor([x * camera.width, y * camera.height])
    there = FACE + _rotated(here, -camera.turn - 3 * sway) / zoom
    there, gap = _mouth(there, opening)
    picture = nnf.grid_sample(
        portrait()[None], (there / 256 - 1)[None], padding_mode="border", align_corners=False
    )[0].permute(1, 2, 0)
    picture = picture + (INSIDE - picture) * gap[..., None]
    return picture + 0.01 * torch.randn(camera.height, camera.width, 1, generator=grain)


def _pixels(width: int, height: int) -> torch.Tensor:
    """Centres of the pixels (H, W, 2), (x, y)."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], -1)


def _rotated(points: torch.Tensor, degrees: float) -> torch.Tensor:
    """(.., 2), clockwise on the screen."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = points.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def _mouth(there: torch.Tensor, opening: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Portrait positions -> those that a dropped jaw brings there, and how much is mouth inside."""
    x, y = (there - LIPS).unbind(-1)
    below = y + SMILE * x * x
    drop = opening * DROP * torch.sqrt((1 - (x / 19) ** 2).clamp(min=0))
    fades = 1 - _smooth((below - drop - 8) / 22)  # the chin follows a little, the neck does not
    gap = _smooth(below) * _smooth(drop - below)
    shift = torch.where(below > drop, drop * fades, below.clamp(min=0))
    return there - torch.stack([0 * shift, shift], -1), gap


def _smooth(t: torch.Tensor) -> torch.Tensor:
    t = t.clamp(0, 1)
    return t * t * (3 - 2 * t)


# --- what can be wrong with a shot --------------------------------------------------------------


def turned(shot: Shot, degrees: float) -> Shot:
    """The whole picture, clockwise around its middle, points as well."""
    width, height = shot.size.tolist()
    middle = torch.tensor([width / 2, height / 2])
    source = _rotated(_pixels(width, height) - middle, -degrees) / middle
    planes = torch.from_numpy(shot.frames).permute(0, 3, 1, 2).float() / 255
    frames = nnf.grid_sample(
        planes, source.expand(len(planes), -1, -1, -1), padding_mode="border", align_corners=False
    )
    points = torch.from_numpy(shot.points) * 2 * middle - middle
    points = (_rotated(points, degrees) + middle) / (2 * middle)
    return replace(shot, frames=to_bytes(frames.permute(0, 2, 3, 1)), points=points.numpy())


def in_profile(shot: Shot, degrees: float) -> Shot:
    """The head of a drawn person who keeps still, turned to the side as a relief before the wall."""
    points = shot.points * shot.size
    middle = (points[0].min(0) + points[0].max(0)) / 2 - [0, 0.1 * np.ptp(points[0, :, 1])]
    radius = 0.62 * np.ptp(points[0, :, 0])  # of the head with its hair
    fine = np.indices(shot.size * 3).reshape(2, -1).T / 3 + 1 / 6  # nine places to a pixel
    place = (fine - middle) / radius
    head = np.hypot(place[:, 0], place[:, 1] / TALL) < 1
    to, near = _turned_relief(place[head], degrees)
    back_to_front = near.argsort()
    column, row = fine[head][back_to_front].astype(int).T
    new_column, new_row = (middle + radius * to)[back_to_front].astype(int).T
    frames = shot.frames.copy()
    frames[:, row, column] = shot.frames[:, row, 0]  # the wall
    frames[:, new_row, new_column] = shot.frames[:, row, column]
    to, _ = _turned_relief((points - middle) / radius, degrees)
    return replace(shot, frames=frames, points=((middle + radius * to) / shot.size).astype(np.float32))


TALL = 1.4  # height of the head over its width


def _turned_relief(place: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """(.., 2) in head radii from the middle -> places after the turn, and how near they are.

    The relief: an ellipsoid with a nose.
    """
    x, y = place[..., 0], place[..., 1]
    skull = np.sqrt(np.clip(1 - x**2 - (y / TALL) ** 2, 0, None))
    nose = (
        0.32 * np.exp(-((x / 0.17) ** 2)) * np.clip((y + 0.35) / 0.55, 0, 1) * np.clip((0.5 - y) / 0.18, 0, 1)
    )
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    z = skull + nose
    return np.stack([x * cos + z * sin, y], -1), z * cos - x * sin


def beside(shot: Shot) -> Shot:
    """Two people in one picture, of a shot with one in its left part."""
    left = shot.frames[:, :, : shot.frames.shape[2] * 2 // 3]
    return replace(shot, frames=np.concatenate([left, left[:, :, ::-1]], 2))


def crowd(one: Shot, other: Shot) -> Shot:
    """Two drawn people, each with their points (F, 2, 68, 2)."""
    places = [shot.points * [0.5, 1] + [offset, 0] for shot, offset in ((one, 0), (other, 0.5))]
    points = np.stack(places, 1).astype(np.float32)
    return replace(one, frames=np.concatenate([one.frames, other.frames], 2), points=points)


def cut(first: Shot, second: Shot) -> Shot:
    return replace(
        first,
        frames=np.concatenate([first.frames, second.frames]),
        waveform=np.concatenate([first.waveform, second.waveform]),
        points=None if first.points is None else np.concatenate([first.points, second.points]),
    )


def elsewhere(shot: Shot) -> Shot:
    """The same person from the other side, in the evening."""
    return replace(shot, frames=(shot.frames[:, :, ::-1] * [0.35, 0.4, 0.6]).astype(np.uint8))


def wandering(shot: Shot) -> Shot:
    """A drawn person who walks through a wide picture."""
    frames, height, width, _ = shot.frames.shape
    way = np.linspace(0, width, frames).astype(int)  # pixels
    canvas = np.repeat(shot.frames[:, :, :1], 2 * width, axis=2)
    for index, x in enumerate(way):
        canvas[index, :, x : x + width] = shot.frames[index]
    points = (shot.points * [width, height] + np.stack([way, 0 * way], 1)[:, None]) / [2 * width, height]
    return replace(shot, frames=canvas, points=points.astype(np.float32))


def stars(seconds: float) -> Shot:
    """Nobody: a camera that goes along the sky (Hubble, NASA, public domain, from scikit-image)."""
    sky = data.hubble_deep_field()
    steps = np.linspace(0, sky.shape[1] - 480, round(seconds * FPS)).astype(int)
    return Shot(np.stack([sky[:360, x : x + 480] for x in steps]), speech(99, seconds).waveform)


# --- files --------------------------------------------------------------------------------------


def write(path: Path, shot: Shot, crf: int = 16, picture: bool = True) -> None:
    """H.264 and AAC; without `picture` the sound alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if shot.points is not None:
        save_file({"points": torch.from_numpy(shot.points)}, path.with_suffix(".points.safetensors"))
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as file:
        video = file.add_stream("h264", rate=shot.fps) if picture else None
        sound = None if shot.waveform is None else file.add_stream("aac", rate=48_000, layout="mono")
        for packet in _packets(video, shot, crf) if picture else ():
            file.mux(packet)
        if sound is not None:
            for block in _blocks(shot.waveform):
                file.mux(sound.encode(block))
            file.mux(sound.encode(None))


def _packets(video: av.VideoStream, shot: Shot, crf: int) -> Iterator[av.Packet]:
    times = np.arange(len(shot.frames)) / float(shot.fps) if shot.times is None else shot.times
    video.width, video.height = shot.size.tolist()
    video.pix_fmt, video.options = "yuv420p", {"crf": str(crf), "preset": "veryfast"}
    video.codec_context.time_base = Fraction(1, 90_000)
    for time, picture in zip(times, shot.frames, strict=True):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.time_base, frame.pts = Fraction(1, 90_000), round(time * 90_000)
        yield from video.encode(frame)
    yield from video.encode(None)


def _blocks(waveform: np.ndarray) -> Iterator[av.AudioFrame]:
    frame = av.AudioFrame.from_ndarray(waveform[None].clip(-1, 1), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = SAMPLE_RATE, 0
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=48_000)
    yield from resampler.resample(frame)
    yield from resampler.resample(None)


def truncated(path: Path, whole: Path) -> None:
    """What a broken download leaves."""
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])


def flipped(path: Path, whole: Path) -> None:
    """A bad sector: 64 KiB in the middle of the file are inverted."""
    content = np.fromfile(whole, np.uint8)
    middle = len(content) // 2
    content[middle - 32_768 : middle + 32_768] ^= 0xFF
    content.tofile(path)


# --- the folder ---------------------------------------------------------------------------------


def make_raw_videos(folder: Path) -> None:
    """Every video of OUTCOMES below `folder`, and two files that are passed over."""
    for name, make in ((DRAWN, drawn_videos), (REAL, real_videos)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        make(folder / name)


def drawn_videos(folder: Path) -> None:
    for seed in range(3):
        write_raw_video(folder / f"puppet_{seed}.mp4", seed, VOICES, 2.4 + 0.4 * seed, 256)
    first, second = puppet(10, 2.4), puppet(11, 2.4)
    write(folder / "cut.mp4", cut(first, second))
    write(folder / "crowd.mp4", crowd(first, second))
    write(folder / "tilted.mp4", turned(first, 55))
    write(folder / "profile.mp4", in_profile(puppet(10, 2.4, still=True), 75))
    write(folder / "wandering.mp4", wandering(first))
    write(folder / "far.mp4", puppet(12, 2.4, size=96))


def real_videos(folder: Path) -> None:
    good, second = talking(STEADY, 4.0), talking(1, 2.4, Camera(x=0.35, zoom=1.8))
    phone = talking(PHONE, 3.0, Camera(x=0.6, zoom=1.3), Fraction(30), uneven(3.0, 30))
    write(folder / "steady.mp4", good)
    write(folder / "Größe/видео 日本.mp4", talking(NAMED, 3.0, Camera(zoom=1.2, y=0.5), Fraction(30)))
    write(folder / "phone.mp4", phone)
    write(folder / "silent.mp4", replace(second, waveform=None))
    write(folder / "mute.mp4", replace(phone, waveform=0 * phone.waveform))
    write(folder / "cut.mp4", cut(second, elsewhere(second)))
    write(folder / "two.mp4", beside(second))
    write(folder / "short.mp4", replace(good, frames=good.frames[:25], waveform=good.waveform[:16_000]))
    write(folder / "tilted.mp4", talking(4, 2.2, Camera(turn=55)))
    write(folder / "leaning.mp4", talking(5, 2.2, Camera(turn=30)))
    write(folder / "wandering.mp4", talking(8, 3.0, Camera(zoom=0.9, walk=0.7)))
    write(folder / "far.mp4", talking(7, 2.2, Camera(zoom=0.55)))
    write(folder / "stars.mp4", stars(2.4))
    write(folder / "compressed.mp4", good, crf=40)
    write(folder / "sound.mp4", good, picture=False)
    shutil.copyfile(folder / "steady.mp4", folder / "steady_copy.mp4")
    truncated(folder / "broken.mp4", folder / "steady.mp4")
    flipped(folder / "corrupt.mp4", folder / "steady.mp4")
    (folder / "garbage.mp4").write_bytes(random.Random(0).randbytes(200_000))
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("takes 3 and 4 are the good ones\n")
    shutil.copyfile(folder / "two.mp4", folder / ".hidden.mp4")


if __name__ == "__main__":
    make_raw_videos(Path(sys.argv[1]))
