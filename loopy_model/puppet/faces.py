"""Drawn faces: signed distance shapes, painted back to front at any resolution.

Units: the image spans -1..1 in x (right) and y (down). The head has its own frame, moved by
`head_x`, `head_y` and turned by `tilt`; the features slide a little further than the skull,
which reads as the head turning. Shapes: N faces, S pixels per side.
"""

import copy
from dataclasses import fields

import torch

from .identity import FIELD_WIDTHS, Colour, Identity
from .motion import BLINK, BROW, GAZE, HEAD_X, HEAD_Y, OPEN, TILT, WIDTH

CHUNK_PIXELS = 40 * 64 * 64  # drawn at a time, so that the planes stay in the cache

EYE_Y, NOSE_Y, MOUTH_Y = -0.12, 0.1, 0.3
EYE_ASPECT = 1.3  # eye width over height
CHIN_DROP = 0.08  # of the wide open mouth
LIPS = (0.035, 0.036)  # their thickness, at the corners and in the middle
MOUTH_CURVE = 0.8  # corners up: a friendly face at rest
MOUTH_DARK: Colour = (0.25, 0.04, 0.06)
TEETH: Colour = (0.95, 0.93, 0.9)
TONGUE: Colour = (0.8, 0.36, 0.38)
LASH: Colour = (0.12, 0.07, 0.06)


class _Planes:
    """Columns of an identity vector (N, K) by field name, shaped to broadcast over an image."""

    def __init__(self, identity: torch.Tensor) -> None:
        for field, part in zip(fields(Identity), identity.split(FIELD_WIDTHS, dim=1), strict=True):
            shape = (-1, 3, 1, 1) if part.shape[1] == 3 else (-1, 1, 1)
            setattr(self, field.name, part.reshape(shape))


class _Pose:
    """Where one batch of motion (N, 8) puts things; every field is (N, 1, 1)."""

    def __init__(self, motion: torch.Tensor, face: _Planes) -> None:
        channels = motion[:, :, None, None].unbind(1)
        self.open, self.width, self.blink = channels[OPEN], channels[WIDTH], channels[BLINK]
        self.gaze, self.tilt = channels[GAZE], channels[TILT]
        self.centre_x = 0.14 * channels[HEAD_X]
        self.centre_y = 0.07 * channels[HEAD_Y] - 0.04
        self.shift_x, self.shift_y = 0.05 * channels[HEAD_X], 0.03 * channels[HEAD_Y]
        self.eye_height = 0.88 * face.eye_size * (1 - self.blink)
        self.brow_y = EYE_Y - face.eye_size - 0.055 - 0.09 * channels[BROW]
        self.mouth_width = 0.09 + 0.15 * self.width
        self.mouth_height = 0.004 + 0.15 * self.open
        self.mouth_y = MOUTH_Y + 0.045 * self.open

    def to_image(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Head coordinates (N, P) -> image coordinates (N, P, 2), 0..1."""
        cos, sin = torch.cos(self.tilt)[:, 0], torch.sin(self.tilt)[:, 0]
        image_x = cos * x - sin * y + self.centre_x[:, 0]
        image_y = sin * x + cos * y + self.centre_y[:, 0]
        return torch.stack([image_x, image_y], dim=-1) / 2 + 0.5


def _brow_curve(eye_x: torch.Tensor, face: _Planes) -> torch.Tensor:
    """How far the brow bends down, at `eye_x` from the middle of the eye."""
    return 0.035 * (eye_x / (1.35 * face.eye_size)) ** 2


def _jaw_width(down: torch.Tensor) -> torch.Tensor:
    """The face narrows from its middle (0) to the chin (1): share of the full width."""
    down = down.clamp(min=0)
    return 1 - 0.13 * down * down


class _Canvas:
    """An image (N, 3, S, S) and its coordinate planes."""

    def __init__(self, motion: torch.Tensor, pose: _Pose, size: int) -> None:
        axis = (torch.arange(size, device=motion.device) + 0.5) / size * 2 - 1
        self.pixel = 2 / size
        self.image_y, self.image_x = axis[None, :, None], axis[None, None, :]
        right, down = self.image_x - pose.centre_x, self.image_y - pose.centre_y
        cos, sin = torch.cos(pose.tilt), torch.sin(pose.tilt)
        self.x, self.y = cos * right + sin * down, cos * down - sin * right  # (N, S, S)
        self.feature_x, self.feature_y = self.x - pose.shift_x, self.y - pose.shift_y
        self.image = torch.zeros(len(motion), 3, size, size, device=motion.device)

    def window(self, top: float, bottom: float, half_width: float) -> "_Canvas":
        """The part of the canvas around some features: the same pixels, less to compute."""
        size = self.image.shape[-1]
        first, last = (int((edge + 1) / 2 * size) for edge in (top, bottom))
        left = int((1 - half_width) / 2 * size)
        part = copy.copy(self)
        part.image = self.image[:, :, first:last, left : size - left]
        for name in ("x", "y", "feature_x", "feature_y"):
            setattr(part, name, getattr(self, name)[:, first:last, left : size - left])
        return part

    def cover(self, distance: torch.Tensor) -> torch.Tensor:
        """Signed distance -> share of the pixel inside, 0..1."""
        return (0.5 - distance / self.pixel).clamp(0, 1)

    def paint(self, colour: torch.Tensor | Colour, alpha: torch.Tensor) -> None:
        """Lay `colour` over the image where `alpha` (N, S, S)."""
        if isinstance(colour, tuple):
            colour = self.image.new_tensor(colour)[None, :, None, None]
        self.image += (colour - self.image) * alpha[:, None]


def ellipse(
    x: torch.Tensor, y: torch.Tensor, a: torch.Tensor | float, b: torch.Tensor | float
) -> torch.Tensor:
    """Approximate signed distance to the ellipse of half-axes a, b around the origin."""
    u, v = x / a, y / b
    radius = torch.sqrt(u * u + v * v + 1e-8)
    u, v = u / a, v / b
    return (radius - 1) * radius * torch.rsqrt(u * u + v * v + 1e-8)


def glow(x: torch.Tensor, y: torch.Tensor, a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
    """A soft spot, 1 in the middle."""
    return torch.exp(-((x / a) ** 2) - (y / b) ** 2)


@torch.no_grad()
def render(identity: torch.Tensor, motion: torch.Tensor, size: int) -> torch.Tensor:
    """Identity (N, K) and motion (N, 8) -> images (N, 3, size, size), 0..1."""
    chunk = max(1, CHUNK_PIXELS // size**2)
    parts = zip(identity.split(chunk), motion.split(chunk), strict=True)
    return torch.cat([_render(face, move, size) for face, move in parts])


def _render(identity: torch.Tensor, motion: torch.Tensor, size: int) -> torch.Tensor:
    face = _Planes(identity)
    pose = _Pose(motion, face)
    canvas = _Canvas(motion, pose, size)
    skull = _paint_backdrop(canvas, face, pose)
    _paint_head(canvas, face, pose)
    _paint_cheeks(canvas.window(-0.25, 0.5, 0.8), face)
    _paint_nose(canvas.window(-0.3, 0.35, 0.4), face)
    _paint_mouth(canvas.window(0.02, 0.75, 0.6), face, pose)
    _paint_eyes(canvas.window(-0.5, 0.2, 0.65), face, pose)
    _paint_fringe(canvas, face, skull)
    _paint_brows(canvas.window(-0.65, 0.0, 0.65), face, pose)
    return canvas.image.clamp(0, 1)


def _paint_backdrop(canvas: _Canvas, face: _Planes, pose: _Pose) -> torch.Tensor:
    """Wall, hair behind the head, neck and shirt; returns the distance to the hair's outline."""
    x, y, image_x, image_y = canvas.x, canvas.y, canvas.image_x, canvas.image_y
    light = 1.0 - 0.14 * image_y + 0.1 * glow(image_x, image_y + 0.1, 0.9, 0.9)
    canvas.image += face.background * light[:, None]
    skull = ellipse(x, y + 0.1, face.face_width * 1.17, face.face_height * 1.08)
    reach = torch.where(face.hair_length > 0.45, 0.9 * face.hair_length - 0.1, -0.1)
    side = x.abs() - face.face_width * 1.17
    locks = torch.maximum(side, torch.maximum(-0.1 - y, y - reach + 0.3 * x * x))
    canvas.paint(face.hair * 0.8, canvas.cover(torch.minimum(skull, locks)))
    neck_x = image_x - 0.6 * pose.centre_x
    neck = torch.maximum(neck_x.abs() - 0.17, -image_y)
    canvas.paint(face.skin * 0.82, canvas.cover(neck))
    shirt = ellipse(image_x - 0.3 * pose.centre_x, image_y - 1.1, 0.84, 0.44)
    collar = ellipse(neck_x, image_y - 0.66, 0.2, 0.12)
    canvas.paint(face.skin * 0.82, canvas.cover(torch.maximum(collar, shirt)))
    cloth = torch.maximum(shirt, -collar)
    canvas.paint(face.shirt * (1.1 - 0.25 * image_x**2)[:, None], canvas.cover(cloth))
    canvas.paint(face.shirt * 0.75, canvas.cover(torch.maximum(cloth, collar - 0.035)))
    return skull


def _paint_head(canvas: _Canvas, face: _Planes, pose: _Pose) -> None:
    """Ears and the face itself; the chin follows the open mouth."""
    x, y, wide = canvas.x, canvas.y, face.face_width
    ear = ellipse(x.abs() - wide, y + 0.01, 0.075, 0.12)
    canvas.paint(face.skin * 0.9, canvas.cover(ear))
    canvas.paint(face.skin * 0.72, canvas.cover(ear + 0.035))
    tall = torch.where(y > 0, face.face_height + CHIN_DROP * pose.open, face.face_height)
    down = (y / tall).clamp(0, 1)
    outline = ellipse(x / _jaw_width(down), y, wide, tall)
    u = canvas.feature_x / wide
    light = 1.05 - 0.05 * u - 0.13 * u * u - 0.06 * down
    canvas.paint(face.skin * light[:, None], canvas.cover(outline))


def _paint_cheeks(canvas: _Canvas, face: _Planes) -> None:
    cheek_x = canvas.feature_x.abs() - 0.62 * face.face_width
    blush = 0.25 * glow(cheek_x, canvas.feature_y - 0.14, 0.11, 0.08)
    canvas.paint((0.92, 0.36, 0.34), blush)


def _paint_nose(canvas: _Canvas, face: _Planes) -> None:
    x, y = canvas.feature_x / face.nose_size, canvas.feature_y - NOSE_Y
    bridge = 0.16 * glow(x - 0.045, y + 0.08, 0.035, 0.11)
    canvas.paint(face.skin * 0.55, bridge)
    canvas.paint(face.skin * 0.7, canvas.cover(ellipse(x, y - 0.022, 0.055, 0.026)))
    canvas.paint(face.skin * 1.06, canvas.cover(ellipse(x, y, 0.05, 0.03)))
    canvas.paint((1.0, 1.0, 1.0), 0.3 * glow(x + 0.012, y + 0.01, 0.02, 0.018))


def _paint_mouth(canvas: _Canvas, face: _Planes, pose: _Pose) -> None:
    """Lips, the dark inside, upper teeth and tongue."""
    wide, high = pose.mouth_width, pose.mouth_height
    x = canvas.feature_x
    y = canvas.feature_y - pose.mouth_y + MOUTH_CURVE * x * x
    upper = torch.where(y < 0, 0.9, 1.08)  # the upper lip is in shade
    canvas.paint(face.lips * upper[:, None], canvas.cover(ellipse(x, y, wide + LIPS[0], high + LIPS[1])))
    canvas.paint((1.0, 0.85, 0.85), 0.3 * glow(x, y - high - 0.02, 0.07, 0.012))
    thin = (2 * high / canvas.pixel).clamp(max=1)  # a closed mouth is thinner than a pixel
    inside = canvas.cover(ellipse(x, y, wide, high)) * thin
    canvas.paint(MOUTH_DARK, inside)
    canvas.paint(TONGUE, inside * canvas.cover(ellipse(x, y - high, wide * 0.6, high * 0.55)))
    teeth = y + high - (0.5 * high).clamp(max=0.045)
    canvas.paint(TEETH, inside * canvas.cover(teeth) * (high > 0.03))


def _paint_eyes(canvas: _Canvas, face: _Planes, pose: _Pose) -> None:
    """Both at once, in coordinates around the nearer eye; lids close from above and below."""
    size, high = face.eye_size, pose.eye_height
    x = canvas.feature_x - torch.sign(canvas.feature_x) * face.eye_spacing
    y = canvas.feature_y - EYE_Y
    lid = ellipse(x, y + 0.02, size * 1.38, size * 0.98)
    canvas.paint(face.skin * 0.9, canvas.cover(lid))
    lash = ellipse(x, y + 0.012, size * 1.42, high + 0.03)
    canvas.paint(LASH, canvas.cover(lash))
    white = canvas.cover(ellipse(x, y, size * EYE_ASPECT, high.clamp(min=1e-3)))
    white = white * (high / 0.02).clamp(max=1)
    canvas.paint((0.98, 0.98, 0.97), white)
    x = x - 0.5 * size * pose.gaze
    canvas.paint(face.iris, white * canvas.cover(ellipse(x, y, size * 0.72, size * 0.78)))
    canvas.paint((0.04, 0.03, 0.04), white * canvas.cover(ellipse(x, y, size * 0.4, size * 0.42)))
    spark = ellipse(x + size * 0.25, y + size * 0.3, size * 0.2, size * 0.2)
    canvas.paint((1.0, 1.0, 1.0), white * canvas.cover(spark))


def _paint_fringe(canvas: _Canvas, face: _Planes, skull: torch.Tensor) -> None:
    """Hair in front: a parted fringe and, for long hair, locks over the ears."""
    x, y = canvas.x, canvas.y
    line = -face.face_height * (0.72 - 0.22 * face.fringe)
    fringe = torch.maximum(skull, y - line - 0.45 * (x - 0.16 * face.parting) ** 2)
    long = (face.hair_length > 0.45).to(x)
    reach = 0.75 * face.hair_length - 0.1
    inner = 0.86 * face.face_width + 0.12 * y - x.abs()
    lock = torch.maximum(torch.maximum(inner, x.abs() - 1.17 * face.face_width), y - reach)
    lock = torch.maximum(lock, torch.minimum(skull, -0.1 - y)) + 10 * (1 - long)
    shine = 0.9 + 0.35 * torch.exp(-(((y + 0.42 + 0.5 * x * x) / 0.07) ** 2))
    canvas.paint(face.hair * shine[:, None], canvas.cover(torch.minimum(fringe, lock)))


def _paint_brows(canvas: _Canvas, face: _Planes, pose: _Pose) -> None:
    x = canvas.feature_x - torch.sign(canvas.feature_x) * face.eye_spacing
    bend = canvas.feature_y - pose.brow_y - _brow_curve(x, face)
    brow = torch.maximum(x.abs() - 1.35 * face.eye_size, bend.abs() - 0.02 * face.brow_size)
    canvas.paint(face.hair * 0.5, canvas.cover(brow))


@torch.no_grad()
def landmarks(identity: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
    """The exact 68 points (N, 68, 2), 0..1, in the order of iBUG 300-W (see `movement`)."""
    face = _Planes(identity)
    points = _Points(_Pose(motion, face), face)
    points.jaw()  # 0-16, along the outline from ear to ear
    points.brow(-1)  # 17-21
    points.brow(1)  # 22-26
    points.nose()  # 27-35
    points.eye(-1)  # 36-41
    points.eye(1)  # 42-47
    points.mouth(12, LIPS)  # 48-59
    points.mouth(8)  # 60-67
    return points.image()


class _Points:
    """Collects points of the head in the landmarks' order and moves them into the image.

    Closed shapes start at the corner on the picture's left and go round by the top.
    """

    def __init__(self, pose: _Pose, face: _Planes) -> None:
        self.pose, self.face = pose, face
        self.points: list[tuple[torch.Tensor, torch.Tensor]] = []

    def jaw(self) -> None:
        """17 points: at eye level, to the ear's middle, then around the chin in equal angles."""
        angle = self._row([192, 186, *range(180, -1, -15), -6, -12]).deg2rad()
        down = torch.sin(angle)
        tall = self.face.face_height[:, 0] + torch.where(down > 0, CHIN_DROP * self.pose.open[:, 0], 0)
        self._skull(self.face.face_width[:, 0] * torch.cos(angle) * _jaw_width(down), tall * down)

    def brow(self, side: int) -> None:
        x = 1.3 * self.face.eye_size[:, 0] * torch.linspace(-1, 1, 5, device=self.pose.tilt.device)
        y = (self.pose.brow_y + _brow_curve(x[:, None], self.face))[:, 0]
        self._feature(x + side * self.face.eye_spacing[:, 0], y)

    def nose(self) -> None:
        """Four points down the bridge, the last one the tip, and five along the nostrils."""
        bridge, across = self._row([3, 2, 1, 0]) / 3, self._row([-1, -0.5, 0, 0.5, 1])
        self._feature(0 * bridge, NOSE_Y + (EYE_Y + 0.02 - NOSE_Y) * bridge)
        self._feature(0.05 * across * self.face.nose_size[:, 0], NOSE_Y + 0.02 + 0.015 * (1 - across**2))

    def eye(self, side: int) -> None:
        angle = self._round(6)
        x = EYE_ASPECT * self.face.eye_size[:, 0] * torch.cos(angle) + side * self.face.eye_spacing[:, 0]
        self._feature(x, EYE_Y + self.pose.eye_height[:, 0] * torch.sin(angle))

    def mouth(self, count: int, lips: tuple[float, float] = (0.0, 0.0)) -> None:
        """Around the mouth's dark inside, or around the `lips` of this thickness."""
        angle = self._round(count)
        x = (self.pose.mouth_width[:, 0] + lips[0]) * torch.cos(angle)
        y = (self.pose.mouth_height[:, 0] + lips[1]) * torch.sin(angle) - MOUTH_CURVE * x * x
        self._feature(x, self.pose.mouth_y[:, 0] + y)

    def image(self) -> torch.Tensor:
        x, y = (torch.cat(axis, dim=1) for axis in zip(*self.points, strict=True))
        return self.pose.to_image(x, y)

    def _row(self, values: list[float]) -> torch.Tensor:
        return torch.tensor([values], dtype=self.pose.tilt.dtype, device=self.pose.tilt.device)

    def _round(self, count: int) -> torch.Tensor:
        """Equal angles (1, count) from the left by the top; y points down."""
        return torch.pi * (1 + 2 * self._row(list(range(count))) / count)

    def _skull(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.points.append(torch.broadcast_tensors(x + 0 * self.pose.tilt[:, 0], y))

    def _feature(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self._skull(x + self.pose.shift_x[:, 0], y + self.pose.shift_y[:, 0])
