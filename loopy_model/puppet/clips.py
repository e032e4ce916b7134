"""Puppet clips, each a function of its seed, and the prepared data the denoiser trains on."""

import random
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..audio import align_to_frames
from ..autoencoder import Autoencoder
from ..config import PUPPET
from ..prepare.encoded import EncodedClip, path_of, write_encoded
from ..prepare.encoders import Source
from ..prepare.records import write_whole
from ..speech_encoder import SpeechEncoder
from .faces import landmarks, render
from .fit import load_network
from .identity import draw_identity
from .motion import draw_motion
from .speech import FPS, HELD_OUT_VOICES, SAMPLES_PER_FRAME, SILENT_SHARE, TRAINING_VOICES, utterance

FRAMES = 300  # per clip, 12 s: in most windows the whole past that a model looks back at is there
SIZE = PUPPET.image_size  # pixels of a training frame
DRAWN = ("identity", "motion", "landmarks", "waveform")  # one array each below a split's folder


@dataclass(frozen=True)
class Split:
    """Clips `first_seed`, `first_seed` + 1, ... spoken by `voices`."""

    first_seed: int
    voices: tuple[str, ...]

    def seeds(self, count: int) -> range:
        return range(self.first_seed, self.first_seed + count)


SPLITS = {"train": Split(0, TRAINING_VOICES), "test": Split(1_000_000, HELD_OUT_VOICES)}


@dataclass(frozen=True)
class Clip:
    """One clip: identity (K,), motion (F, 8), waveform (F * 640,) float32 at 16 kHz."""

    identity: np.ndarray
    motion: np.ndarray
    waveform: np.ndarray


def draw_clip(seed: int, frames: int, voices: tuple[str, ...], silent_share: float = SILENT_SHARE) -> Clip:
    """The clip of `seed`; face, movement and speech have separate random streams."""
    speech = utterance(random.Random(f"speech {seed}"), frames, voices, silent_share)
    motion = draw_motion(random.Random(f"motion {seed}"), speech.visemes)
    return Clip(draw_identity(random.Random(f"face {seed}")), motion, speech.waveform)


def write_clips(folder: Path, split: Split, count: int, frames: int = FRAMES) -> None:
    """Draw `count` clips: waveform.npy (float16), motion.npy, identity.npy, landmarks.npy."""
    clips = [
        draw_clip(seed, frames, split.voices)
        for seed in tqdm(split.seeds(count), f"clips {folder.name}", mininterval=10)
    ]
    points = [landmarks(_repeat(c.identity, frames), torch.tensor(c.motion)) for c in clips]
    arrays = {
        "landmarks": torch.stack(points).numpy(),
        "motion": np.stack([clip.motion for clip in clips]),
        "identity": np.stack([clip.identity for clip in clips]),
        "waveform": np.stack([clip.waveform.astype(np.float16) for clip in clips]),
    }  # the last one's presence says that the split is drawn
    for name, array in arrays.items():
        write_whole(folder / f"{name}.npy", partial(_save_array, array))


def _save_array(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:  # given a path, numpy would change its ending
        np.save(file, array)


def draw_frames(identity: np.ndarray, motion: np.ndarray, size: int = SIZE) -> torch.Tensor:
    """One clip's video: identity (K,), motion (F, 8) -> uint8 (F, 3, size, size)."""
    images = render(_repeat(identity, len(motion)), torch.tensor(motion), size)
    return to_bytes(images)


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """0..1 -> uint8, as a video file would hold them."""
    return (images * 255).round().byte()


def to_signed(images: torch.Tensor) -> torch.Tensor:
    """uint8 -> float -1..1."""
    return images.float() / 127.5 - 1


def trained_encoders(run_dir: Path) -> tuple[Autoencoder, SpeechEncoder]:
    return (
        load_network(Autoencoder(), run_dir / "autoencoder.safetensors"),
        load_network(SpeechEncoder(), run_dir / "speech_encoder.safetensors"),
    )


def encode_share(run_dir: Path, size: int, share: tuple[int, int]) -> None:
    """One process's share of the clips of both splits, see `write_encoded_clips`."""
    autoencoder, speech = trained_encoders(run_dir)
    encoders = run_dir / "encoders.safetensors"
    for split in SPLITS:
        write_encoded_clips(run_dir / "prepared", split, autoencoder, speech, encoders, size, share)


def write_encoded_clips(
    folder: Path,
    split: str,
    autoencoder: Autoencoder,
    encoder: SpeechEncoder,
    encoders: Path,
    size: int = SIZE,
    share: tuple[int, int] = (0, 1),
) -> None:
    """What `loopy_model.train` reads, from the drawn clips in `folder`/`split`; resumes.

    `encoders` is the checkpoint that both networks are stored in. Of a `share` (k, n) only every
    n-th clip is made, from the k-th on, so that n processes make them all.
    """
    drawn = [np.load(folder / split / f"{name}.npy", mmap_mode="r") for name in DRAWN]
    source = asdict(Source.of(encoders))
    made_by = {"vae": source, "speech": source, "size": size}
    first, step = share
    for number in tqdm(range(first, len(drawn[0]), step), split, mininterval=10):
        identity, motion, points, waveform = (array[number] for array in drawn)
        clip = EncodedClip(f"{split}-{number:05}", len(motion), split, voiced=True)
        if not path_of(folder, clip.name).is_file():
            latents = _encode(draw_frames(identity, motion, size), autoencoder)
            speech = _hear(waveform.astype(np.float32), encoder)
            write_encoded(folder, clip, latents, torch.tensor(points), speech, made_by)


@torch.no_grad()
def _encode(frames: torch.Tensor, autoencoder: Autoencoder) -> torch.Tensor:
    return torch.cat([autoencoder.encode(to_signed(part)) for part in frames.split(100)])


@torch.no_grad()
def _hear(waveform: np.ndarray, encoder: SpeechEncoder) -> torch.Tensor:
    hidden = encoder(torch.tensor(waveform)[None])[0]  # (L, tokens, D)
    return align_to_frames(hidden, len(waveform) // SAMPLES_PER_FRAME, FPS)  # (F, L, D)


def _repeat(identity: np.ndarray, frames: int) -> torch.Tensor:
    return torch.tensor(identity)[None].expand(frames, -1)
