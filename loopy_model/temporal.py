"""Inter-clip and intra-clip temporal layers and audio cross-attention (paper 3.2, 3.3, Fig. 2).

Shapes: B clips, F frames of a clip, M motion frames, N tokens (= H*W), C channels. Temporal
attention runs along time at each place of the picture, so there the batch is (B N).
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from .config import UNetConfig
from .layers import Attention, FeedForward, KeyValue, zero


def sinusoids(times: Sequence[float], channels: int) -> Tensor:
    """Time stamps in frames (negative = past) -> (T, C), wavelengths from 4 to 300 frames.

    Start values of the learnable temporal embeddings. Small random ones leave temporal attention
    almost blind to order, and the motion frames ignored.
    """
    wavelengths = torch.logspace(math.log10(4), math.log10(300), channels // 2)
    angles = torch.tensor(times, dtype=torch.float32)[:, None] * (2 * math.pi / wavelengths)
    return torch.cat([angles.sin(), angles.cos()], -1)


class TemporalAttention(nn.Module):
    """Self-attention along time. Embeddings are added after the norm, where they cannot be shrunk."""

    def __init__(self, channels: int, heads: int, times: Sequence[float]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.positions = nn.Parameter(sinusoids(times, channels))
        self.attn = Attention(channels, heads)

    def stamp(self, x: Tensor, start: int) -> Tensor:
        """(.., T, C): norm, then the embeddings start..start+T."""
        return self.norm(x) + self.positions[start : start + x.shape[-2]].to(x)

    def forward(self, x: Tensor, past: KeyValue | None = None) -> Tensor:
        """(B N, F, C): the clip's frames ask; they see themselves and, if given, the past."""
        stamped = self.stamp(x, len(self.positions) - x.shape[1])
        return x + self.attn(stamped, self.attn.keys_values(stamped), past)


class TemporalLayer(nn.Module):
    """AnimateDiff's motion module with explicit keys of the past; silent until trained.

    `times` has a row of time stamps for each attention: of the frames that stand in it.
    """

    def __init__(self, channels: int, config: UNetConfig, times: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.attentions = nn.ModuleList(
            [TemporalAttention(channels, config.heads, stamps) for stamps in times]
        )
        self.ff_norm = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, config.temporal_ff)
        self.proj_out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, frames: int, past: KeyValue | None = None) -> Tensor:
        """(B F, C, H, W) -> the same. The first attention sees the past."""
        height = x.shape[2]
        h = rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=frames)
        h = self.proj_in(h.contiguous())  # the view of a single clip would be multiplied pixel by pixel
        for attention in self.attentions:
            h, past = attention(h, past), None
        h = self.proj_out(h + self.ff(self.ff_norm(h)))
        return x + rearrange(h, "(b h w) f c -> (b f) c h w", h=height, w=x.shape[3])


class IntraClipLayer(TemporalLayer):
    """Frames of the current clip only."""

    def __init__(self, channels: int, config: UNetConfig, frames: int) -> None:
        super().__init__(channels, config, [range(frames)] * config.intra_attentions)


class InterClipLayer(TemporalLayer):
    """Motion frames and the current clip along time; only the current clip's frames leave it.

    One attention layer: then nothing ever asks on behalf of the motion frames, and their keys
    and values can be made once per clip.
    """

    def __init__(
        self, channels: int, config: UNetConfig, frames: int, ages: Sequence[int], attentions: int = 1
    ) -> None:
        clip = range(frames)
        both = [*(-1 - age for age in ages), *clip]
        super().__init__(channels, config, [both] + [clip] * (attentions - 1))
        self.motion_frames = len(ages)

    def keys_values(self, features: Tensor, keep: Tensor | None = None) -> KeyValue:
        """Reference-net features of the motion frames (B, M, C, H, W) -> keys, values (B N, M, C)."""
        if features.shape[1] != self.motion_frames:
            raise ValueError(f"{features.shape[1]} motion frames given, the model has {self.motion_frames}.")
        b, m, _, height, width = features.shape
        h = self.norm(rearrange(features, "b m c h w -> (b m) c h w"))
        h = self.proj_in(rearrange(h, "(b m) c h w -> (b h w) m c", m=m).contiguous())
        attention = self.attentions[0]
        made = attention.attn.keys_values(attention.stamp(h, 0))
        everywhere = None if keep is None else repeat(keep, "b -> (b n)", n=height * width)
        return made._replace(keep=everywhere)


class JointLayer(InterClipLayer):
    """The one temporal layer of earlier methods: motion frames and the clip together (paper 3.2, 3.5.2).

    It has the size of the intra-clip layer, whose place it takes. Its first attention is the
    inter-clip layer's; any further one is the intra-clip layer's, since motion frames that had
    attended to the noisy clip would need new keys at every step.
    """

    def __init__(self, channels: int, config: UNetConfig, frames: int, ages: Sequence[int]) -> None:
        super().__init__(channels, config, frames, ages, config.intra_attentions)


class AudioAttention(nn.Module):
    """Noisy features ask, the audio tokens of their own frame answer (paper 3.3)."""

    def __init__(self, channels: int, config: UNetConfig, token_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attn = Attention(channels, config.heads, token_width)
        zero(self.attn.to_out[0])

    def forward(self, x: Tensor, speech: KeyValue | None) -> Tensor:
        """(B F, C, H, W) -> what was heard, to be added. Rows without speech, those after its last,
        get what all-zero tokens give."""
        silence = rearrange(self.attn.to_out[0].bias.to(x), "c -> 1 c 1 1")
        if speech is None:
            return silence
        rows = len(speech.k)
        h = self.norm(rearrange(x[:rows], "b c h w -> b (h w) c"))
        heard = rearrange(self.attn(h, speech), "b (h w) c -> b c h w", h=x.shape[2])
        return heard if rows == len(x) else torch.cat([heard, silence.expand_as(x[rows:])])
