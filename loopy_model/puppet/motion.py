"""How a puppet moves: speech drives the mouth, brows and nodding; a rhythm drives head, eyes and lids.

A head turns to the right, stays, turns to the left, stays. The eyes turn first, and the lids close while
it turns to the right. How long it stays belongs to the person and is not visible in the picture; all turn
equally far and fast. So only seconds of the past tell when the next turn will come: four frames, 0.16 s,
show where the head is, but not whether the period is one of 2 or of 5 s.
"""

import random

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.special import ndtr

MOTION = ("open", "width", "blink", "gaze", "head_x", "head_y", "brow", "tilt")
OPEN, WIDTH, BLINK, GAZE, HEAD_X, HEAD_Y, BROW, TILT = range(len(MOTION))

# 12 frames, 0.48 s: the segments' farthest frames, which stand 16 apart, catch three of four blinks.
BLINK_SHAPE = np.array([0.3, 0.7, 0.95, 1, 1, 1, 1, 1, 1, 0.95, 0.7, 0.3])
# A person's period of both turns, 2 or 5 s at 25 fps: told apart, it is kept for good, while a measure of
# its length would wander a little with every turn that a model makes itself.
CYCLE_FRAMES = (50, 125)
JITTER = 0.04  # of the time between two turns
SWAY = 0.6  # how far everybody turns: a size that nothing fixes would shrink from clip to clip
# Standard deviations of a turn's speed over time, of head and of eyes. Quick: a model begins with the mean of
# what may come, and the mean of a slow turn and of none is the beginning of a slow turn.
TURN_FRAMES, SACCADE_FRAMES = 1.5, 0.8
EYES_LEAD = 4  # frames
# How far a head nods and brows rise with the voice changes from second to second, whatever is said: shares of
# the most, all ratios equally likely. Only so can a wanted level of movement be more or less of the same.
LIVELINESS, LIVELY_FRAMES = (0.06, 1.0), 12
NOD, BROW_RISE = 3.2, 2.4  # the most, in units of the voice's energy
NOD_FRAMES, BROW_FRAMES = 5, 3  # standard deviations over which that energy is taken


def draw_motion(rng: random.Random, visemes: np.ndarray) -> np.ndarray:
    """Visemes (frames, 2) -> motion (frames, 8) in the order of `MOTION`."""
    draws, frames = np.random.default_rng(rng.getrandbits(32)), len(visemes)
    turns = _turns(draws, frames)
    motion = np.zeros((frames, len(MOTION)), np.float32)
    motion[:, [OPEN, WIDTH]] = visemes
    motion[:, BLINK] = _blinks(turns[::2], frames)
    motion[:, GAZE] = _side(turns - EYES_LEAD, frames, SACCADE_FRAMES)
    motion[:, HEAD_X] = SWAY * _side(turns, frames, TURN_FRAMES)
    nods = NOD * _liveliness(draws, frames) * _energy(visemes, NOD_FRAMES)
    motion[:, HEAD_Y] = nods - nods.mean()
    rises = BROW_RISE * _liveliness(draws, frames) * _energy(visemes, BROW_FRAMES)
    motion[:, BROW] = rises.clip(0, 1)
    motion[:, TILT] = 0.12 * motion[:, HEAD_X]  # radians
    return motion


def _energy(visemes: np.ndarray, spread: float) -> np.ndarray:
    """How loud the voice is, taken from how far it opens the mouth."""
    return gaussian_filter1d(visemes[:, 0], spread, mode="nearest")


def _liveliness(draws: np.random.Generator, frames: int) -> np.ndarray:
    """(frames,) within `LIVELINESS`: smooth noise, its rank among normal numbers on a scale of ratios."""
    noise = gaussian_filter1d(draws.standard_normal(frames + 8 * LIVELY_FRAMES), LIVELY_FRAMES)
    noise = noise[4 * LIVELY_FRAMES :][:frames] * np.sqrt(2 * LIVELY_FRAMES * np.sqrt(np.pi))  # of variance 1
    low, high = np.log(LIVELINESS)
    return np.exp(low + (high - low) * ndtr(noise))


def _turns(draws: np.random.Generator, frames: int) -> np.ndarray:
    """Times in frames of turns to the right and to the left, in this order, from before the video on."""
    stay = draws.choice(CYCLE_FRAMES) / 2
    count = 2 * int(frames / stay) + 8
    stays = stay * (1 + JITTER * draws.uniform(-1, 1, count))
    return np.cumsum(stays) - (3 + 2 * draws.random()) * stay


def _side(turns: np.ndarray, frames: int, spread: float) -> np.ndarray:
    """-1 left to 1 right; a turn is a step that takes some four times `spread` frames."""
    steps = ndtr((np.arange(frames)[:, None] - turns) / spread)
    return 2 * (steps[:, ::2].sum(1) - steps[:, 1::2].sum(1)) - 1


def _blinks(middles: np.ndarray, frames: int) -> np.ndarray:
    shape, margin = BLINK_SHAPE, len(BLINK_SHAPE)
    blink = np.zeros(frames + 2 * margin)
    for first in (np.round(middles) - margin // 2).astype(int) + margin:
        if 0 <= first < frames + margin:
            blink[first : first + margin] = shape
    return blink[margin : margin + frames]
