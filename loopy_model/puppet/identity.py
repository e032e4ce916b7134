"""Who a puppet is: colours and proportions, as named fields and as one vector."""

import colorsys
import random
from dataclasses import astuple, dataclass, fields

import numpy as np

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Identity:
    """What stays the same in a clip; colours are RGB 0..1, lengths in image half-widths."""

    skin: Colour
    hair: Colour
    iris: Colour
    shirt: Colour
    background: Colour
    lips: Colour
    face_width: float
    face_height: float
    hair_length: float  # below 0.45 short; above, the locks reach down from jaw to shoulder
    fringe: float  # 0 high forehead .. 1 low fringe
    parting: float  # -1 left .. 1 right
    eye_spacing: float
    eye_size: float
    nose_size: float
    brow_size: float

    def vector(self) -> np.ndarray:
        """All fields in order, colours flattened: (K,) float32."""
        return np.hstack(astuple(self)).astype(np.float32)


FIELD_WIDTHS = [3 if field.type == Colour else 1 for field in fields(Identity)]


def draw_identity(rng: random.Random) -> np.ndarray:
    """A random face, (K,) float32."""
    between = rng.uniform
    return Identity(
        skin=_skin(rng),
        hair=_hair(rng),
        iris=_hsv(between(0.05, 0.65), between(0.4, 0.8), between(0.25, 0.65)),
        shirt=_hsv(between(0, 1), between(0.3, 0.85), between(0.35, 0.9)),
        background=_hsv(between(0, 1), between(0.1, 0.42), between(0.5, 0.9)),
        lips=_hsv(between(-0.03, 0.02), between(0.5, 0.72), between(0.6, 0.85)),
        face_width=between(0.43, 0.52),
        face_height=between(0.56, 0.63),
        hair_length=between(0, 1),
        fringe=between(0, 1),
        parting=between(-1, 1),
        eye_spacing=between(0.175, 0.225),
        eye_size=between(0.085, 0.115),
        nose_size=between(0.8, 1.25),
        brow_size=between(0.7, 1.4),
    ).vector()


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return colorsys.hsv_to_rgb(hue % 1, saturation, value)


def _skin(rng: random.Random) -> Colour:
    if rng.random() < 0.1:  # a few storybook creatures
        return _hsv(rng.random(), rng.uniform(0.25, 0.45), rng.uniform(0.6, 0.9))
    depth = rng.random()  # fair .. dark
    return _hsv(rng.uniform(0.045, 0.085), 0.28 + 0.32 * depth, 0.97 - 0.5 * depth)


def _hair(rng: random.Random) -> Colour:
    if rng.random() < 0.65:  # black, brown, red, blond
        tone = rng.random()
        return _hsv(0.03 + 0.09 * tone, 0.75 - 0.2 * tone, 0.12 + 0.75 * tone * tone)
    return _hsv(rng.random(), rng.uniform(0.35, 0.75), rng.uniform(0.3, 0.8))
