"""The two U-Nets of Fig. 2: one SD1.5-shaped trunk, built twice, features passed explicitly.

Parameter names are diffusers' SD1.5 names, so public weights load strictly; the layers that Loopy
adds stand beside them as `inter_modules`, `audio_modules` and `intra_modules`. Ablated nets have no
`inter_modules`, and the one temporal layer that is left is called `intra_modules`. An attention *site*
is a place where the trunk attends; both nets have the same sites in the same order. Imported models
(`temporal_everywhere`) have intra-clip layers also after residual blocks without a site.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as nnf
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .conditions import Conditions, KeyValue, SiteConditions, SiteFeatures
from .config import LoopyConfig, UNetConfig
from .layers import Downsample, ResnetBlock, SpatialTransformer, TimestepEmbedding, Upsample
from .temporal import HalloLayer, InterClipLayer, IntraClipLayer, JointLayer, audio_layer

AfterResidual = Callable[["Block", int, Tensor], Tensor]  # what happens after residual block i of a block


class Block(nn.Module):
    """Residual blocks of one level, each followed by an attention site if the level has them."""

    checkpointing = False  # training may set it: activations are made again when the gradients need them

    def __init__(self, inputs: list[int], channels: int, config: UNetConfig, sites: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResnetBlock(width, channels, config.time_channels, config.groups) for width in inputs]
        )
        if sites:
            transformers = [
                SpatialTransformer(channels, config.heads, config.groups, config.spatial_ff)
                for _ in range(sites)
            ]
            self.attentions = nn.ModuleList(transformers)

    @property
    def has_sites(self) -> bool:
        return hasattr(self, "attentions")

    def add_conditions(self, config: LoopyConfig) -> None:
        """Loopy's own layers, one set per site."""
        channels, clip, unet = self.resnets[0].conv1.out_channels, config.clip, config.unet
        if not self.has_sites:
            if unet.temporal_everywhere:
                self.intra_modules = nn.ModuleList(
                    [IntraClipLayer(channels, unet, clip.frames) for _ in self.resnets]
                )
            return
        sites = range(len(self.attentions))
        if unet.temporal == "dual":
            self.inter_modules = nn.ModuleList(
                [InterClipLayer(channels, unet, clip.frames, clip.motion_ages) for _ in sites]
            )
        self.audio_modules = nn.ModuleList(
            [audio_layer(channels, self.hallo_width(i), unet, config.audio) for i in sites]
        )
        if unet.temporal in ("joint", "hallo"):
            layer = JointLayer if unet.temporal == "joint" else HalloLayer
            self.intra_modules = nn.ModuleList(
                [layer(channels, unet, clip.frames, clip.motion_ages) for _ in sites]
            )
        else:
            self.intra_modules = nn.ModuleList([IntraClipLayer(channels, unet, clip.frames) for _ in sites])

    def hallo_width(self, i: int) -> int:
        """Inside Hallo's audio layer at site `i`: as wide as what enters the residual block before it."""
        return self.resnets[i].conv1.in_channels

    def layer_with_motion_frames(self, i: int) -> InterClipLayer | None:
        """The temporal layer of site `i` in which motion frames stand beside the clip."""
        layer = (self.inter_modules if hasattr(self, "inter_modules") else self.intra_modules)[i]
        return layer if isinstance(layer, InterClipLayer) else None

    def run(self, layer: nn.Module, *inputs: Any) -> Any:
        return checkpoint(layer, *inputs, use_reentrant=False) if self.checkpointing else layer(*inputs)

    def layer(self, i: int, x: Tensor, temb: Tensor, after_residual: AfterResidual) -> Tensor:
        return after_residual(self, i, self.run(self.resnets[i], x, temb))


class DownBlock(Block):
    def __init__(
        self, inputs: list[int], channels: int, config: UNetConfig, attention: bool, last: bool
    ) -> None:
        super().__init__(inputs, channels, config, len(inputs) if attention else 0)
        if not last:
            self.downsamplers = nn.ModuleList([Downsample(channels)])

    def forward(
        self,
        x: Tensor,
        temb: Tensor,
        after_residual: AfterResidual,
        skips: list[Tensor],
        goes_on: bool = True,
    ) -> Tensor:
        """`goes_on`: to the next coarser level, if there is one."""
        for i in range(len(self.resnets)):
            x = self.layer(i, x, temb, after_residual)
            skips.append(x)
        if goes_on and hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
            skips.append(x)
        return x


class MidBlock(Block):
    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__([channels, channels], channels, config, 1)

    def forward(self, x: Tensor, temb: Tensor, after_residual: AfterResidual) -> Tensor:
        return self.run(self.resnets[1], self.layer(0, x, temb, after_residual), temb)


class UpBlock(Block):
    def hallo_width(self, i: int) -> int:
        """On the way up all are as wide as the next finer level, whose features the last block gets."""
        return self.resnets[-1].conv1.in_channels - self.resnets[-1].conv1.out_channels

    def __init__(
        self, inputs: list[int], channels: int, config: UNetConfig, attention: bool, last: bool
    ) -> None:
        super().__init__(inputs, channels, config, len(inputs) if attention else 0)
        if not last:
            self.upsamplers = nn.ModuleList([Upsample(channels)])

    def forward(self, x: Tensor, temb: Tensor, after_residual: AfterResidual, skips: list[Tensor]) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, torch.cat([x, skips.pop()], 1), temb, after_residual)
        return self.upsamplers[0](x, skips[-1].shape[-2:]) if hasattr(self, "upsamplers") else x


class UNet(nn.Module):
    """SD1.5's trunk. What happens at an attention site is for the two nets to say."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, layers, last = config.channels, config.layers, len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], config.time_channels)

        skips = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            inputs = [skips[-1]] + [width] * (layers - 1)
            self.down_blocks.append(DownBlock(inputs, width, config, config.attention[i], i == last))
            skips += [width] * (layers if i == last else layers + 1)

        self.mid_block = MidBlock(widths[-1], config)

        below = widths[-1]
        self.up_blocks = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            inputs = [(below if j == 0 else width) + skips.pop() for j in range(layers + 1)]
            self.up_blocks.append(UpBlock(inputs, width, config, config.attention[i], i == 0))
            below = width

    def blocks(self) -> Iterator[Block]:
        yield from (*self.down_blocks, self.mid_block, *self.up_blocks)

    def blocks_with_sites(self) -> Iterator[Block]:
        return (block for block in self.blocks() if block.has_sites)

    def trunk(
        self, x: Tensor, temb: Tensor, after_residual: AfterResidual, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> (B, channels[0], h, w), and what came up to the finest level from those below it.
        Given as `deep`, what came up at another step takes its place, and only the finest level runs."""
        x = self.conv_in(x)
        skips = [x]
        finest, *down_blocks = self.down_blocks
        *up_blocks, last = self.up_blocks
        x = finest(x, temb, after_residual, skips, goes_on=deep is None)
        if deep is None:
            for block in down_blocks:
                x = block(x, temb, after_residual, skips)
            deep = self.mid_block(x, temb, after_residual)
            for block in up_blocks:
                deep = block(deep, temb, after_residual, skips)
        return last(deep, temb, after_residual, skips), deep


class ReferenceUNet(UNet):
    """Reads pictures one by one, the portrait and the motion frames, and shows what it saw."""

    def forward(self, latents: Tensor) -> list[SiteFeatures]:
        """(B, C, h, w) -> the features of every site. Clean pictures: the timestep is 0."""
        seen: list[SiteFeatures] = []
        shows_normed = self.config.temporal == "hallo"

        def read(block: Block, i: int, x: Tensor) -> Tensor:
            if not block.has_sites:
                return x
            x, normed = block.run(block.attentions[i], x)
            normed_map = rearrange(normed, "b (h w) c -> b c h w", h=x.shape[2])
            seen.append(SiteFeatures(normed, normed_map if shows_normed else x))
            return x

        temb = self.time_embedding(latents.new_zeros(len(latents)), latents)
        self.trunk(latents, temb, read)
        return seen


class DenoisingUNet(UNet):
    """Predicts the noise of a clip (or what `DiffusionConfig.prediction` says) from the noisy clip and its conditions."""

    def __init__(self, config: LoopyConfig) -> None:
        super().__init__(config.unet)
        self.add_conditions(config)
        width = config.unet.channels[0]
        self.conv_norm_out = nn.GroupNorm(config.unet.groups, width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, config.unet.latent_channels, 3, padding=1)

    def add_conditions(self, config: LoopyConfig) -> None:
        """Loopy's own layers, as new; those that were there are replaced."""
        for block in self.blocks():
            block.add_conditions(config)

    def forward(
        self, noisy: Tensor, timestep: Tensor, conditions: Conditions, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Noisy latents (B, F, C, h, w) at timesteps (B,) -> prediction of the same shape, and the deep
        features (B F, C, h, w); see `trunk` for `deep`."""
        frames = noisy.shape[1]
        sites = iter(conditions.sites if deep is None else self._at_finest_level(conditions.sites))

        def attend(block: Block, i: int, x: Tensor, site: SiteConditions) -> Tensor:
            x, _ = block.run(block.attentions[i], x, _per_frame(site.reference, frames))
            if conditions.spatial_only:
                return x
            past = site.motion
            if hasattr(block, "inter_modules"):
                x, past = block.run(block.inter_modules[i], x, frames, past), None
            x = x + block.run(block.audio_modules[i], x, site.audio)
            return block.run(block.intra_modules[i], x, frames, past)

        def after_residual(block: Block, i: int, x: Tensor) -> Tensor:
            if block.has_sites:
                return attend(block, i, x, next(sites))
            if conditions.spatial_only or not hasattr(block, "intra_modules"):
                return x
            return block.run(block.intra_modules[i], x, frames)

        temb = self.time_embedding(timestep, noisy)  # (B, T)
        temb = repeat(temb, "b t -> b f t", f=frames)
        if conditions.motion_latents is not None:
            heard = len(conditions.motion_latents)  # guidance in one batch: only the first rows hear
            temb = torch.cat([temb[:heard] + conditions.motion_latents, temb[heard:]])
        x = rearrange(noisy, "b f c h w -> (b f) c h w")
        x, deep = self.trunk(x, rearrange(temb, "b f t -> (b f) t"), after_residual, deep)
        x = self.conv_out(nnf.silu(self.conv_norm_out(x)))
        return rearrange(x, "(b f) c h w -> b f c h w", f=frames), deep

    def _at_finest_level(self, sites: tuple[SiteConditions, ...]) -> tuple[SiteConditions, ...]:
        """The first on the way down and the last on the way up."""
        ends = (self.down_blocks[0], self.up_blocks[-1])
        down, up = (len(block.attentions) if block.has_sites else 0 for block in ends)
        return sites[:down] + sites[len(sites) - up :]

    def site_conditions(
        self,
        reference: list[Tensor] | None,
        motion: list[Tensor] | None,
        tokens: Tensor | None,
        keep: Tensor | None,
    ) -> tuple[SiteConditions, ...]:
        """Makes each site's keys and values once: `reference` (B, N, C) and `motion`
        (B, M, C, H, W) per site, audio `tokens` (B, F, n, c), `keep` (B,) for the first two.
        Where no layer sees motion frames, `motion` is not used."""
        made = []
        for block in self.blocks_with_sites():
            for i, (attention, audio) in enumerate(zip(block.attentions, block.audio_modules)):
                site, temporal = len(made), block.layer_with_motion_frames(i)
                made.append(
                    SiteConditions(
                        reference=reference and attention.keys_values(reference[site])._replace(keep=keep),
                        motion=motion and temporal and temporal.keys_values(motion[site], keep),
                        audio=None
                        if tokens is None
                        else audio.attn.keys_values(rearrange(tokens, "b f n c -> (b f) n c")),
                    )
                )
        return tuple(made)


def _per_frame(reference: KeyValue | None, frames: int) -> KeyValue | None:
    """The portrait's keys, seen from every frame of its clip: (B, N, C) -> (B F, N, C)."""
    if reference is None:
        return None
    k, v = (repeat(x, "b n c -> (b f) n c", f=frames) for x in reference[:2])
    keep = None if reference.keep is None else repeat(reference.keep, "b -> (b f)", f=frames)
    return KeyValue(k, v, keep)
