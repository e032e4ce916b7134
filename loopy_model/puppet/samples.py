"""`python -m loopy_model.puppet.samples`: draw the portraits and speak the sentences of assets/."""

import argparse
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from .clips import draw_frames
from .identity import draw_identity
from .motion import MOTION, WIDTH
from .speech import SAMPLE_RATE, spoken

PORTRAITS = {"mina": 1_000_004, "theo": 1_000_001, "zola": 1_000_018, "fern": 1_000_017}

# Held-out voices and the sentence each one says.
VOICES = {
    "welcome": (
        "en+f5",
        "Welcome to Loopy. Give me a portrait and a voice, and I will do the talking.",
    ),
    "memory": (
        "en-us+m6",
        "I remember the last five seconds, so my head moves the way it did before.",
    ),
    "puppets": (
        "en-gb-x-gbclan+m2",
        "We are only drawn puppets, but our mouths follow every word that you hear.",
    ),
}


def neutral_portrait(seed: int, size: int = 512) -> np.ndarray:
    """Closed mouth, open eyes, facing the viewer: uint8 (size, size, 3)."""
    motion = np.zeros((1, len(MOTION)), np.float32)
    motion[:, WIDTH] = 0.5
    image = draw_frames(draw_identity(random.Random(f"face {seed}")), motion, size)[0]
    return image.permute(1, 2, 0).contiguous().numpy()


def write_png(path: Path, image: np.ndarray) -> None:
    """Through PyAV, which the pack needs anyway."""
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = "rgb24"
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])


def write_flac(path: Path, waveform: np.ndarray) -> None:
    """(n,) float at 16 kHz -> 16-bit mono FLAC."""
    samples = (np.clip(waveform, -1, 1) * 32767).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono", format="s16")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), 0
        container.mux([*stream.encode(frame), *stream.encode(None)])


def write_samples(folder: Path) -> None:
    """All portraits and voices, below `folder`."""
    for name in ("portraits", "voices"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, seed in PORTRAITS.items():
        write_png(folder / "portraits" / f"{name}.png", neutral_portrait(seed))
    for name, (voice, sentence) in VOICES.items():
        write_flac(folder / "voices" / f"{name}.flac", spoken(sentence, voice))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("assets"), help="default: assets")
    torch.set_num_threads(1)
    write_samples(parser.parse_args().folder)


if __name__ == "__main__":
    main()
