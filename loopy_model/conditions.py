"""The values that travel from the inputs to the denoising net; every shape is written once, here.

Shapes: B clips, F frames of a clip, M motion frames, L wav2vec layers, D their width, C latent
channels, W audio window, T time-embedding channels.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor


class KeyValue(NamedTuple):
    """Keys and values that are made once per clip and attended to at every step.

    `keep` says which samples have them at all: where it is False, the sample's attention runs as
    if they had not been concatenated (paper 3.4, dropped reference). None means all samples.
    """

    k: Tensor  # (B, N, C)
    v: Tensor  # (B, N, C)
    keep: Tensor | None = None  # (B,) bool

    def part(self, rows: slice) -> "KeyValue":
        """Those of some samples."""
        return KeyValue(self.k[rows], self.v[rows], None if self.keep is None else self.keep[rows])

    def times(self, rows: int) -> "KeyValue":
        """The same for each of `rows` rows; all of it is kept."""
        assert self.keep is None or rows == 1
        return self if rows == 1 else KeyValue(*(repeat(x, "b n c -> (r b) n c", r=rows) for x in self[:2]))


@dataclass(frozen=True)
class Speech:
    """What wav2vec heard in a whole recording, one row per video frame."""

    features: Tensor  # (frames, L, D): hidden states at the middle of each video frame
    fps: int

    def __len__(self) -> int:
        return len(self.features)

    def windows(self, start: int, frames: int, context: int, layers: int) -> Tensor:
        """(1, F, W, layers, D): each frame with `context` neighbours on both sides, clamped at the ends. Frames
        behind the end hear what the last one does."""
        offsets, last = torch.arange(-context, context + 1), len(self) - 1
        index = torch.arange(start, start + frames).clamp(max=last)[:, None] + offsets
        return self.features[index.clamp(0, last), -layers:][None]


class PastTokens(NamedTuple):
    """Motion frames that attend too, so that nothing of them can be made ahead but their tokens."""

    tokens: Tensor  # (B N, M, C)
    keep: Tensor | None = None  # (B N,) bool, as in KeyValue

    def times(self, rows: int) -> "PastTokens":
        """The same for each of `rows` rows; all of it is kept."""
        assert self.keep is None or rows == 1
        return self if rows == 1 else PastTokens(repeat(self.tokens, "b m c -> (r b) m c", r=rows))


class SiteFeatures(NamedTuple):
    """What the reference net shows at one attention site, for every picture it reads."""

    normed: Tensor  # (B, N, C): what the spatial self-attention reads
    output: Tensor  # (B, C, H, W): what leaves the site; temporal "hallo": `normed` as a map


class SiteConditions(NamedTuple):
    """Keys and values of everything that one site of the denoising net attends to."""

    reference: KeyValue | None = None  # (B, N, C)
    motion: KeyValue | PastTokens | None = None  # (B N, M, C)
    audio: KeyValue | None = None  # (B F, tokens, C)

    def for_rows(self, audio: int, reference: int) -> "SiteConditions":
        """See `Conditions.for_rows`."""
        return SiteConditions(
            self.reference and self.reference.times(reference),
            self.motion and self.motion.times(reference),
            self.audio and self.audio.times(audio),
        )


@dataclass(frozen=True)
class Conditions:
    """Everything that does not change over the steps of a clip: made once, used by every step."""

    sites: tuple[SiteConditions, ...]  # in the order of the forward pass
    motion_latents: Tensor | None = None  # (B, F, T), added to the timestep embedding
    spatial_only: bool = False  # stage one: no temporal and no audio layers

    def without_audio(self) -> "Conditions":
        """Drops c_audio: both the cross-attention and the motion latents (paper 3.4, e_ref)."""
        sites = tuple(site._replace(audio=None) for site in self.sites)
        return replace(self, sites=sites, motion_latents=None)

    def without_reference(self) -> "Conditions":
        """Drops c_ref, and with it the motion frames, as in training (paper 3.4, e_base)."""
        return replace(self, sites=tuple(site._replace(reference=None, motion=None) for site in self.sites))

    def for_rows(self, audio: int, reference: int) -> "Conditions":
        """One clip's conditions for a batch of branches: only its first `audio` rows hear the voice,
        only its first `reference` rows see the portrait and the motion frames."""
        kept = self if audio else self.without_audio()
        kept = kept if reference else kept.without_reference()
        latents = kept.motion_latents
        return replace(
            kept,
            sites=tuple(site.for_rows(audio, reference) for site in kept.sites),
            motion_latents=None if latents is None else latents.expand(audio, -1, -1),
        )
