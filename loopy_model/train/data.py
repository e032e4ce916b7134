"""Prepared clips on disk -> training batches.

A prepared folder holds memory-mappable arrays: `latents.npy` (N, T, C, h, w) float16 VAE latents,
`speech.npy` (N, T, L, D) float16 hidden states per video frame, `landmarks.npy` (N, T, P, 2) with
the nose tip first.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import LoopyConfig
from ..motion import TemporalSegments
from ..movement import exp, glo, score
from .objective import Batch


class PreparedClips:
    """N videos of T frames."""

    def __init__(self, folder: Path, config: LoopyConfig) -> None:
        self.config, self.clip = config, config.clip
        self.latents, self.speech, self.landmarks = (
            _open(folder / f"{name}.npy") for name in ("latents", "speech", "landmarks")
        )
        self.ages = np.array([age for (age,) in TemporalSegments(self.clip).ages()])
        if self.latents.shape[2] != config.unet.latent_channels:
            raise ValueError(
                f"{folder}/latents.npy has {self.latents.shape[2]} channels, the model "
                f"{config.unet.latent_channels}; prepare the clips with the model's own VAE."
            )

    def draw(self, batch: int, frames: int, rng: np.random.Generator) -> Batch:
        """A batch of `frames` consecutive frames each; `rng` alone decides which."""
        videos, length = self.latents.shape[:2]
        video = rng.integers(videos, size=batch)
        start = rng.integers(length - frames + 1, size=batch)
        portrait = rng.integers(length, size=batch)
        return self.batch(video, start, portrait, frames)

    def batch(self, video: np.ndarray, start: np.ndarray, portrait: np.ndarray, frames: int) -> Batch:
        time = start[:, None] + np.arange(frames)  # (B, F)
        past = start[:, None] - 1 - self.ages  # (B, M)
        landmarks = torch.from_numpy(self.landmarks[video[:, None], time])
        present = torch.from_numpy(past >= 0)
        motion = self._latents(video[:, None], np.maximum(past, 0))
        return Batch(
            clip=self._latents(video[:, None], time),
            reference=self._latents(video, portrait),
            motion=motion * present[..., None, None, None],
            present=present,
            windows=self._windows(video, time),
            movement=score(glo(landmarks)),
            expression=score(exp(landmarks)) if frames > 1 else torch.zeros(len(video)),
        )

    def _latents(self, video: np.ndarray, time: np.ndarray) -> Tensor:
        return torch.from_numpy(self.latents[video, time].astype(np.float32)) * self.config.latent_scale

    def _windows(self, video: np.ndarray, time: np.ndarray) -> Tensor:
        """(B, F, W, L, D), clamped at the ends of the video as at inference."""
        context = self.clip.audio_context
        index = np.clip(time[..., None] + np.arange(-context, context + 1), 0, self.speech.shape[1] - 1)
        heard = self.speech[video[:, None, None], index].astype(np.float32)
        return torch.from_numpy(heard[..., -self.config.audio.layers :, :])


def _open(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; prepare the clips first (python -m loopy_model.puppet).")
    return np.load(path, mmap_mode="r")
