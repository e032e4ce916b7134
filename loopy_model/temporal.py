"""Inter-clip and intra-clip temporal layers and audio cross-attention (paper 3.2, 3.3, Fig. 2).

Shapes: B clips, F frames of a clip, M motion frames, N tokens (= H*W), C channels. Temporal
attention runs along time at each place of the picture, so there the batch is (B N).
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from .conditions import KeyValue, PastTokens
from .config import AudioConfig, UNetConfig
from .layers import Attention, FeedForward, zero


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

    def carry(self, x: Tensor, past: int, keep: Tensor | None) -> Tensor:
        """(B N, M+F, C): all ask, also the first `past` frames; the samples that do not `keep` these
        do not see them."""
        stamped = self.stamp(x, 0)
        k, v, _ = self.attn.keys_values(stamped)
        clip, before = KeyValue(k[:, past:], v[:, past:]), KeyValue(k[:, :past], v[:, :past], keep)
        return x + self.attn(stamped, clip, before)


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
        h = self.attend(self.tokens(x, frames), past)
        h = self.proj_out(h + self.ff(self.ff_norm(h)))
        return x + rearrange(h, "(b h w) f c -> (b f) c h w", h=x.shape[2], w=x.shape[3])

    def tokens(self, x: Tensor, frames: int) -> Tensor:
        """(B F, C, H, W) -> (B N, F, C)."""
        h = rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=frames)
        return self.proj_in(h.contiguous())  # the view of a single clip would be multiplied pixel by pixel

    def attend(self, h: Tensor, past: KeyValue | None) -> Tensor:
        for attention in self.attentions:
            h, past = attention(h, past), None
        return h


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

    def keys_values(self, features: Tensor, keep: Tensor | None = None) -> KeyValue | PastTokens:
        """Reference-net features of the motion frames (B, M, C, H, W) -> keys, values (B N, M, C)."""
        tokens, keep = self.past_tokens(features, keep)
        attention = self.attentions[0]
        return attention.attn.keys_values(attention.stamp(tokens, 0))._replace(keep=keep)

    def past_tokens(self, features: Tensor, keep: Tensor | None) -> PastTokens:
        if features.shape[1] != self.motion_frames:
            raise ValueError(f"{features.shape[1]} motion frames given, the model has {self.motion_frames}.")
        tokens = self.tokens(rearrange(features, "b m c h w -> (b m) c h w"), self.motion_frames)
        places = features.shape[-2] * features.shape[-1]
        return PastTokens(tokens, None if keep is None else repeat(keep, "b -> (b n)", n=places))


class JointLayer(InterClipLayer):
    """The one temporal layer of earlier methods: motion frames and the clip together (paper 3.2, 3.5.2).

    It has the size of the intra-clip layer, whose place it takes. Its first attention is the
    inter-clip layer's; any further one is the intra-clip layer's, since motion frames that had
    attended to the noisy clip would need new keys at every step.
    """

    def __init__(self, channels: int, config: UNetConfig, frames: int, ages: Sequence[int]) -> None:
        super().__init__(channels, config, frames, ages, config.intra_attentions)


class HalloLayer(InterClipLayer):
    """Hallo's temporal layer: motion frames and the clip attend to each other in every attention.

    What a motion frame becomes in the first one depends on the noisy clip, so its tokens are carried
    through the layer at every step, and only the clip's leave it.
    """

    def __init__(self, channels: int, config: UNetConfig, frames: int, ages: Sequence[int]) -> None:
        super().__init__(channels, config, frames, ages)
        both = [*(-1 - age for age in ages), *range(frames)]
        self.attentions = nn.ModuleList(
            [TemporalAttention(channels, config.heads, both) for _ in range(config.intra_attentions)]
        )

    def keys_values(self, features: Tensor, keep: Tensor | None = None) -> PastTokens:
        """Their tokens (B N, M, C): the keys differ from step to step."""
        return self.past_tokens(features, keep)

    def attend(self, h: Tensor, past: PastTokens | None) -> Tensor:
        """(B N, F, C); rows after the last that has motion frames see themselves alone."""
        if past is None:
            return super().attend(h, None)
        rows, m = len(past.tokens), self.motion_frames
        both = torch.cat([past.tokens, h[:rows]], 1)
        for attention in self.attentions:
            both = attention.carry(both, m, past.keep)
        return both[:, m:] if rows == len(h) else torch.cat([both[:, m:], super().attend(h[rows:], None)])


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
        if speech is None:
            return self._silence(x)
        rows = len(speech.k)
        h = self.norm(rearrange(x[:rows], "b c h w -> b (h w) c"))
        heard = rearrange(self.attn(h, speech), "b (h w) c -> b c h w", h=x.shape[2])
        return heard if rows == len(x) else torch.cat([heard, self._silence(x).expand_as(x[rows:])])

    def _silence(self, x: Tensor) -> Tensor:
        return rearrange(self.attn.answer_of_nothing(x), "c -> 1 c 1 1")


class AudioTransformer(nn.Module):
    """Hallo's audio layer: a transformer block, `inner` wide, that looks at the picture and hears.

    Hallo has three cross-attentions, for the lips, the face and all around, each under a mask and with
    an output layer of its own. Under equal masks they are one attention with three times the heads.
    """

    def __init__(self, channels: int, inner: int, config: UNetConfig, token_width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, inner, 1)
        self.norm1 = nn.LayerNorm(inner)
        self.attn1 = Attention(inner, config.heads)
        self.norm2 = nn.LayerNorm(inner)
        self.attn = Attention(inner, 3 * config.heads, token_width, 3 * inner)
        self.norm3 = nn.LayerNorm(inner)
        self.ff = FeedForward(inner, 4)
        self.proj_out = zero(nn.Conv2d(inner, channels, 1))

    def forward(self, x: Tensor, speech: KeyValue | None) -> Tensor:
        """(B F, C, H, W) -> what is to be added; silence as in `AudioAttention`."""
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        normed = self.norm1(h)
        h = h + self.attn1(normed, self.attn1.keys_values(normed))
        h = h + self.hear(self.norm2(h), speech)
        h = h + self.ff(self.norm3(h))
        return self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=x.shape[2]))

    def hear(self, h: Tensor, speech: KeyValue | None) -> Tensor:
        """(B F, N, C) -> the same."""
        if speech is None:
            return self.attn.answer_of_nothing(h).expand_as(h)
        rows = len(speech.k)
        heard = self.attn(h[:rows], speech)
        if rows == len(h):
            return heard
        return torch.cat([heard, self.attn.answer_of_nothing(h).expand_as(h[rows:])])


def audio_layer(
    channels: int, inner: int, config: UNetConfig, audio: AudioConfig
) -> AudioAttention | AudioTransformer:
    """`inner`: the width of Hallo's."""
    if audio.layer == "attention":
        return AudioAttention(channels, config, audio.token_width)
    return AudioTransformer(channels, inner, config, audio.token_width)
