"""Rhythms of a face over time: blinks, sway, and how well a head goes on as it did before.

Traces are (F,) or (N, F) arrays of one number per video frame, as the face meter reads them.
"""

import numpy as np

OPEN_AGAIN, CLOSED = 0.25, 0.5  # of a blink's depth: one blink is counted once, whatever trembles
LONGEST_SWAY = 10.0  # seconds; slower movement is drift


def blink_onsets(blink: np.ndarray) -> np.ndarray:
    """Frames at which the lids close: the trace rises through `CLOSED` after having been below
    `OPEN_AGAIN`."""
    onsets, is_open = [], False
    for frame, depth in enumerate(blink):
        if is_open and depth > CLOSED:
            onsets.append(frame)
        is_open = depth < OPEN_AGAIN or (is_open and depth <= CLOSED)
    return np.array(onsets, int)


def blink_interval(blink: np.ndarray, fps: int) -> float:
    """Mean time in seconds from one blink to the next; NaN for fewer than two blinks."""
    onsets = blink_onsets(blink)
    return float(np.diff(onsets).mean() / fps) if len(onsets) > 1 else float("nan")


def sway_period(head: np.ndarray, fps: int) -> float:
    """Period in seconds of the strongest movement of a head's position: the peak of the power spectrum
    (straight line taken out, Hann window, zero-padded). NaN where that is slower than `LONGEST_SWAY`:
    the head drifts. How strong the peak is does not count: a head that only trembles has a period too,
    that of its noise."""
    times = np.arange(len(head))
    moved = np.asarray(head, float) - np.polyval(np.polyfit(times, head, 1), times)
    size = 16 * len(head)
    power = np.abs(np.fft.rfft(moved * np.hanning(len(head)), size)) ** 2
    frequency = np.fft.rfftfreq(size, 1 / fps)[power.argmax()]
    return float(1 / frequency) if frequency >= 1 / LONGEST_SWAY else float("nan")


def rhythm_error(found: np.ndarray, true: np.ndarray) -> float:
    """Mean over faces of how far `found` is from `true`, as a share of it; a face that has no rhythm
    (NaN) is off by 1, and nothing is by more."""
    return float(np.nan_to_num(np.abs(found / true - 1), nan=1.0).clip(max=1.0).mean())


def known_mean(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN if nothing is known."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def continuation(predicted: np.ndarray, true: np.ndarray, last: np.ndarray) -> dict[str, float]:
    """The next second of a movement, (N, F) each, against the truth; `last` (N,) is the last value
    that was given. `correlation` is over all values of displacement from `last`; `error` is the root
    mean square, as a share of that of a head that stays where it was."""
    moved, should = predicted - last[:, None], true - last[:, None]
    return {
        "correlation": float(np.corrcoef(moved.ravel(), should.ravel())[0, 1]),
        "error": float(np.sqrt(((moved - should) ** 2).mean() / (should**2).mean())),
    }
