"""How much memory the pack's own pipeline takes for voices of different lengths.

    python -m benchmarks.long_voice --minutes 1 10

Each video is made by `loopy generate` in a process of its own, from noise as loud as a voice, with one
step a clip: more steps take longer and no more memory.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loopy_model.cli import generate
from loopy_model.pipeline import BUNDLED

RATE = 48_000
PORTRAIT = BUNDLED.parents[1] / "portraits" / "mina.png"


def write_noise(path: Path, seconds: float) -> None:
    sound = np.random.default_rng(0).normal(scale=2000, size=round(seconds * RATE)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(sound.tobytes())


def peak_bytes(voice: Path) -> int:
    """Of this process, which makes one video."""
    fast = ["--steps", "1", "--audio-ratio", "1", "--ref-ratio", "1"]
    generate([str(PORTRAIT), str(voice), str(voice.with_suffix(".mp4")), *fast])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peaks(minutes: Sequence[float]) -> dict[float, int]:
    """Minutes of voice -> bytes."""
    with tempfile.TemporaryDirectory() as folder:
        voices = {length: Path(folder) / f"{length}.wav" for length in minutes}
        for length, voice in voices.items():
            write_noise(voice, 60 * length)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
            return dict(zip(voices, processes.map(peak_bytes, voices.values(), chunksize=1)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.long_voice", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10])
    args = parser.parse_args(arguments)
    found = peaks(args.minutes)
    for length, peak in found.items():
        more = peak / found[args.minutes[0]] - 1
        print(f"{length:g} minutes: {peak / 1e6:.0f} MB at the most, {more:+.1%}")


if __name__ == "__main__":
    main()
