"""Leaf modules of both U-Nets, under the parameter names that diffusers gives SD1.5.

Shapes: B batch, F frames, N tokens (= H*W), C channels. Frames are folded into the batch, (B F),
wherever a layer treats them one by one.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as nnf
from einops import rearrange, repeat
from torch import Tensor, nn

from .conditions import KeyValue

CACHED_VALUES = 2**19
"""What a layer works on at once on a CPU, a feed-forward's wide inside or an attention's keys: 2 MB in float32,
which stay in the cache of one core, and in memory that is there already."""
VECTOR = 16
"""Numbers that a CPU multiplies at once; attention over many keys gains from heads filled up to it."""


def keeps_all(x: Tensor) -> bool:
    """Whether a layer works on all of `x` at once: on a card, and where gradients need it all anyway."""
    return x.device.type != "cpu" or torch.is_grad_enabled()


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention, (B, N, C) with (B, K, C) -> (B, N, C)."""
    q, k, v = (rearrange(x, "b n (h c) -> b h n c", h=heads) for x in (q, k, v))
    width = q.shape[-1]
    if q.device.type == "cpu" and width < VECTOR and k.shape[-2] > VECTOR**2:
        q, k, v = (nnf.pad(x, (0, VECTOR - width)) for x in (q, k, v))
    out = nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=width**-0.5)
    return rearrange(out[..., :width], "b h n c -> b n (h c)")


class Attention(nn.Module):
    """Attention whose keys and values can be made ahead of time."""

    # The host replaces this by its own attention (sage, flash, ...); same signature as `attend`.
    attend: Callable[..., Tensor] = staticmethod(attend)

    def __init__(
        self, channels: int, heads: int, context: int | None = None, inner: int | None = None
    ) -> None:
        """`context`: width of what answers, `inner`: of queries, keys and values; both else `channels`."""
        super().__init__()
        self.heads = heads
        inner = inner or channels
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(context or channels, inner, bias=False)
        self.to_v = nn.Linear(context or channels, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def keys_values(self, context: Tensor) -> KeyValue:
        return KeyValue(self.to_k(context), self.to_v(context))

    def forward(self, x: Tensor, own: KeyValue, extra: KeyValue | None = None) -> Tensor:
        """`x` (B, N, C) asks; `extra` keys, if any, stand beside the `own` ones of the first rows."""
        q, keys = self.to_q(x), own.k.shape[1] + (0 if extra is None else extra.k.shape[1])
        at_once = len(q) if keeps_all(q) else max(1, CACHED_VALUES // (keys * own.k.shape[2]))
        parts = []
        for first in range(0, len(q), at_once):
            rows = slice(first, first + at_once)
            beside = extra.part(rows) if extra is not None and first < len(extra.k) else None
            parts += self._answers(q[rows], own.part(rows), beside)
        return self.to_out[0](parts[0] if len(parts) == 1 else torch.cat(parts))

    def answer_of_nothing(self, like: Tensor) -> Tensor:
        """(C,): where keys and values are all zero. By the layer itself, whose weights the host may be streaming."""
        return self.to_out[0](like.new_zeros(self.to_out[0].in_features))

    def _answers(self, q: Tensor, own: KeyValue, extra: KeyValue | None) -> Iterator[Tensor]:
        """To the rows that have `extra` keys, and to the others."""
        rows = 0 if extra is None else len(extra.k)
        if rows:
            mask = _mask(extra.keep, own.k.shape[1], extra.k.shape[1])
            k, v = torch.cat([own.k[:rows], extra.k], 1), torch.cat([own.v[:rows], extra.v], 1)
            yield self.attend(q[:rows], k, v, self.heads, mask=mask)
        if rows < len(q):
            yield self.attend(q[rows:], own.k[rows:], own.v[rows:], self.heads)


def _mask(keep: Tensor | None, own: int, extra: int) -> Tensor | None:
    if keep is None:
        return None
    always = keep.new_ones(len(keep), own)
    return rearrange(torch.cat([always, repeat(keep, "b -> b n", n=extra)], 1), "b n -> b 1 1 n")


class FeedForward(nn.Module):
    """GEGLU, `multiple` times as wide inside."""

    class GEGLU(nn.Module):
        def __init__(self, channels: int, inner: int) -> None:
            super().__init__()
            self.proj = nn.Linear(channels, 2 * inner)

        def forward(self, x: Tensor) -> Tensor:
            value, gate = self.proj(x).chunk(2, -1)
            return value * nnf.gelu(gate)

    def __init__(self, channels: int, multiple: int) -> None:
        super().__init__()
        inner = channels * multiple
        self.rows = max(1, CACHED_VALUES // (2 * inner))  # that a CPU's cache holds
        # Index 1 is diffusers' dropout, which keeps the public keys net.0 and net.2.
        self.net = nn.ModuleList([self.GEGLU(channels, inner), nn.Identity(), nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(.., C) -> the same."""
        if keeps_all(x):
            return self.net[2](self.net[0](x))
        parts = x.reshape(-1, x.shape[-1]).split(self.rows)
        return torch.cat([self.net[2](self.net[0](part)) for part in parts]).view_as(x)


class ResnetBlock(nn.Module):
    """SD1.5's residual block with the time embedding added in the middle."""

    def __init__(self, in_channels: int, channels: int, time_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-5)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, channels)
        self.norm2 = nn.GroupNorm(groups, channels, eps=1e-5)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        if in_channels != channels:
            self.conv_shortcut = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(nnf.silu(self.norm1(x)))
        h = h + rearrange(self.time_emb_proj(nnf.silu(temb)), "b c -> b c 1 1")
        h = self.conv2(nnf.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class SpatialBlock(nn.Module):
    """SD1.5's transformer block without the text cross-attention, which nothing feeds in Loopy."""

    def __init__(self, channels: int, heads: int, ff: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, ff)

    def forward(self, x: Tensor, reference: KeyValue | None) -> tuple[Tensor, Tensor]:
        """(B, N, C) -> the same, and what the self-attention read."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, self.attn1.keys_values(normed), reference)
        return x + self.ff(self.norm3(x)), normed


class SpatialTransformer(nn.Module):
    """Spatial self-attention at one site; keys of the reference image stand beside its own."""

    def __init__(self, channels: int, heads: int, groups: int, ff: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([SpatialBlock(channels, heads, ff)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, reference: KeyValue | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the same, and the tokens (B, N, C) that the attention read."""
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        h, normed = self.transformer_blocks[0](h, reference)
        return x + self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=x.shape[2])), normed

    def keys_values(self, normed: Tensor) -> KeyValue:
        return self.transformer_blocks[0].attn1.keys_values(normed)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """To the height and width of the skip connection that follows, so odd sizes fit too."""
        return self.conv(nnf.interpolate(x, size=tuple(size), mode="nearest"))


class TimestepEmbedding(nn.Module):
    """Sinusoids of the timestep (DDPM; cosines first, as SD1.5 does) through two linear layers."""

    def __init__(self, channels: int, time_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1 = nn.Linear(channels, time_channels)
        self.linear_2 = nn.Linear(time_channels, time_channels)

    def forward(self, timestep: Tensor, like: Tensor) -> Tensor:
        """(B,) -> (B, time_channels) in the device and precision of `like`."""
        half = self.channels // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, device=like.device) / half)
        angles = timestep.to(like.device).float()[:, None] * rates
        waves = torch.cat([angles.cos(), angles.sin()], -1).to(like.dtype)
        return self.linear_2(nnf.silu(self.linear_1(waves)))


def zero(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """New layers start silent, so that a freshly built net equals its SD1.5 part."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
