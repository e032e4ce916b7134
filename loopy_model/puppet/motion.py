"""How a puppet moves: speech drives the mouth, brows and nodding; rhythms drive the rest.

Sway, blinks and gaze have periods that belong to a person and that the picture does not show: only
seconds of the past tell them; four frames, 0.16 s, hold next to nothing of a period of 2 to 5 s.
"""

import random

import numpy as np
from scipy.ndimage import gaussian_filter1d

MOTION = ("open", "width", "blink", "gaze", "head_x", "head_y", "brow", "tilt")
OPEN, WIDTH, BLINK, GAZE, HEAD_X, HEAD_Y, BROW, TILT = range(len(MOTION))

# 12 frames, 0.48 s: the segments' farthest frames, which stand 16 apart, catch three of four blinks.
BLINK_SHAPE = np.array([0.3, 0.7, 0.95, 1, 1, 1, 1, 1, 1, 0.95, 0.7, 0.3])
SWAY_FRAMES = (50, 125)  # period 2-5 s at 25 fps
BLINK_FRAMES = (50, 125)  # one interval per person, each blink within 6 % of it
GAZE_FRAMES = (30, 50)  # the eyes rest on one side this long


def draw_motion(rng: random.Random, visemes: np.ndarray) -> np.ndarray:
    """Visemes (frames, 2) -> motion (frames, 8) in the order of `MOTION`."""
    draws = np.random.default_rng(rng.getrandbits(32))
    frames, amplitude = len(visemes), draws.uniform(0.3, 1.0)
    motion = np.zeros((frames, len(MOTION)), np.float32)
    motion[:, [OPEN, WIDTH]] = visemes
    motion[:, BLINK] = _blinks(draws, frames)
    motion[:, GAZE] = _gaze(draws, frames)
    phase = 2 * np.pi * (np.arange(frames) / draws.uniform(*SWAY_FRAMES) + draws.random())
    motion[:, HEAD_X] = amplitude * np.sin(phase)
    energy = gaussian_filter1d(visemes[:, 0], 8, mode="nearest")
    motion[:, HEAD_Y] = amplitude * 1.6 * (energy - 0.3) + 0.1 * np.sin(2 * phase)
    energy = gaussian_filter1d(visemes[:, 0], 5, mode="nearest")
    motion[:, BROW] = np.clip(energy * draws.uniform(0.4, 2.0), 0, 1)
    motion[:, TILT] = 0.12 * motion[:, HEAD_X]  # radians
    return motion


def _blinks(draws: np.random.Generator, frames: int) -> np.ndarray:
    period, blink = draws.uniform(*BLINK_FRAMES), np.zeros(frames + len(BLINK_SHAPE))
    start = draws.uniform(0, period)
    while start < frames:
        at = int(start)
        blink[at : at + len(BLINK_SHAPE)] = BLINK_SHAPE
        start += period * (1 + 0.06 * draws.uniform(-1, 1))
    return blink[:frames]


def _gaze(draws: np.random.Generator, frames: int) -> np.ndarray:
    hold, gaze = draws.uniform(*GAZE_FRAMES), np.zeros(frames)
    side, start = draws.choice([-1.0, 1.0]), -draws.uniform(0, hold)
    while start < frames:
        end = start + hold * (1 + 0.04 * draws.uniform(-1, 1))
        gaze[max(0, round(start)) : max(0, round(end))] = side
        start, side = end, -side
    return gaussian_filter1d(gaze, 0.8, mode="nearest")  # a saccade takes about 3 frames
