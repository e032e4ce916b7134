"""Speech features -> audio tokens and motion latents (paper 3.3, Fig. 4).

Shapes: B clips, F frames, W window (5 frames), L wav2vec layers, D their width.
"""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from .config import AudioConfig
from .layers import zero

Source = Literal["audio", "head movement", "expression"]
SOURCES: tuple[Source, ...] = ("audio", "head movement", "expression")


def log_variance_at(config: AudioConfig, source: Source, level: float) -> float:
    """Level of head movement or expression, 0 calm .. 1 lively -> log10 of Glo or Exp."""
    low, high = {"head movement": config.movement_range, "expression": config.expression_range}[source]
    return low + level * (high - low)


class AudioProjection(nn.Module):
    """A frame's window of stacked hidden states -> the tokens that the cross-attention reads."""

    def __init__(self, config: AudioConfig, window: int) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.proj1 = nn.Linear(window * config.layers * config.width, config.hidden)
        self.proj2 = nn.Linear(config.hidden, config.hidden)
        self.proj3 = nn.Linear(config.hidden, config.tokens * config.token_width)
        self.norm = nn.LayerNorm(config.token_width)

    def forward(self, windows: Tensor) -> Tensor:
        """(B, F, W, L, D) -> (B, F, tokens, token_width)."""
        h = self.proj1(rearrange(windows, "b f w l d -> b f (w l d)")).relu()
        h = self.proj3(self.proj2(h).relu())
        return self.norm(rearrange(h, "b f (n c) -> b f n c", n=self.tokens))


class AudioToLatents(nn.Module):
    """One query token from speech, head movement or expression reads 128 shared embeddings.

    What comes out, the motion latent, is added to the timestep embedding. Speech is only weakly
    tied to head movement; the two variances are strongly tied, and in training all three learn to
    address the same embeddings. At inference the paper uses speech alone.
    """

    def __init__(self, config: AudioConfig, window: int, time_channels: int) -> None:
        super().__init__()
        width = config.latent_width
        self.query_audio = nn.Linear(window * config.layers * config.width, width)
        self.query_movement = nn.Linear(1, width)
        self.query_expression = nn.Linear(1, width)
        self.embeddings = nn.Parameter(torch.randn(config.latent_embeddings, width))
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_time = zero(nn.Linear(width, time_channels))

    def forward(self, query: Tensor) -> Tensor:
        """Query tokens (B, F, latent_width) -> motion latents (B, F, time_channels)."""
        embeddings = self.embeddings.to(query)
        k, v = self.to_k(embeddings), self.to_v(embeddings)
        weights = torch.softmax(query @ k.T * k.shape[-1] ** -0.5, -1)  # (B, F, 128)
        return self.to_time(weights @ v)

    def audio_query(self, windows: Tensor) -> Tensor:
        """(B, F, W, L, D) -> (B, F, latent_width): one token per frame."""
        return self.query_audio(rearrange(windows, "b f w l d -> b f (w l d)"))

    def variance_query(self, source: Source, log_variance: Tensor, frames: int) -> Tensor:
        """A clip's `movement.log_variance` of Glo or Exp (B,) -> (B, F, latent_width): one token, repeated over the clip."""
        layer = {"head movement": self.query_movement, "expression": self.query_expression}[source]
        return layer(rearrange(log_variance, "b -> b 1 1")).expand(-1, frames, -1)
