"""How a puppet moves: speech drives the mouth, brows and nodding; rhythms drive the rest.

Sway, blinks and gaze follow a cycle of 2 to 5 s. Its period, and the moments of it at which a person
blinks and looks to the other side, belong to the person and are not visible in the picture: who looks back
seconds finds the last time that the head was where it is now, and what the eyes did then.
"""

import random

import numpy as np
from scipy.ndimage import gaussian_filter1d

MOTION = ("open", "width", "blink", "gaze", "head_x", "head_y", "brow", "tilt")
OPEN, WIDTH, BLINK, GAZE, HEAD_X, HEAD_Y, BROW, TILT = range(len(MOTION))

# 12 frames, 0.48 s: the segments' farthest frames, which stand 16 apart, catch three of four blinks.
BLINK_SHAPE = np.array([0.3, 0.7, 0.95, 1, 1, 1, 1, 1, 1, 0.95, 0.7, 0.3])
CYCLE_FRAMES = (50, 125)  # a person's period, 2-5 s at 25 fps: of sway, blinks and gaze
BLINK_JITTER = 0.02  # of the period


def draw_motion(rng: random.Random, visemes: np.ndarray) -> np.ndarray:
    """Visemes (frames, 2) -> motion (frames, 8) in the order of `MOTION`."""
    draws = np.random.default_rng(rng.getrandbits(32))
    frames, amplitude = len(visemes), draws.uniform(0.3, 1.0)
    motion = np.zeros((frames, len(MOTION)), np.float32)
    motion[:, [OPEN, WIDTH]] = visemes
    cycle = np.arange(frames) / draws.uniform(*CYCLE_FRAMES) + draws.random()
    motion[:, BLINK] = _blinks(draws, cycle)
    motion[:, GAZE] = _gaze(draws, cycle)
    phase = 2 * np.pi * cycle
    motion[:, HEAD_X] = amplitude * np.sin(phase)
    energy = gaussian_filter1d(visemes[:, 0], 8, mode="nearest")
    motion[:, HEAD_Y] = amplitude * 1.6 * (energy - 0.3) + 0.1 * np.sin(2 * phase)
    energy = gaussian_filter1d(visemes[:, 0], 5, mode="nearest")
    motion[:, BROW] = np.clip(energy * draws.uniform(0.4, 2.0), 0, 1)
    motion[:, TILT] = 0.12 * motion[:, HEAD_X]  # radians
    return motion


def _blinks(draws: np.random.Generator, cycle: np.ndarray) -> np.ndarray:
    """Once a cycle, at a moment of it that belongs to the person."""
    moment, blink = draws.random(), np.zeros(len(cycle) + len(BLINK_SHAPE))
    for turn in range(int(cycle[0]) - 1, int(cycle[-1]) + 1):
        at = np.searchsorted(cycle, turn + moment + BLINK_JITTER * draws.uniform(-1, 1))
        if 0 < at < len(cycle):
            blink[at : at + len(BLINK_SHAPE)] = BLINK_SHAPE
    return blink[: len(cycle)]


def _gaze(draws: np.random.Generator, cycle: np.ndarray) -> np.ndarray:
    """To one side for half of a cycle, from a moment that belongs to the person."""
    gaze = np.where((cycle - draws.random()) % 1 < 0.5, 1.0, -1.0)
    return gaussian_filter1d(gaze, 0.8, mode="nearest")  # a saccade takes about 3 frames
