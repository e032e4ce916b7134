"""The bundled model's image autoencoder: 8x8 patches to 16 channels and back.

A linear patch transform, started at the principal components of face patches, carries most
of the picture; small residual convolutions on both sides correct it. It trains in minutes.
Shapes: N images, C latent channels, H W pixels.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class AutoencoderConfig:
    """`patch` pixels per latent cell and side; `width` channels inside."""

    patch: int = 8
    latent_channels: int = 16
    width: int = 128
    encoder_blocks: int = 1
    decoder_blocks: int = 3
    groups: int = 8

    @property
    def patch_values(self) -> int:
        return 3 * self.patch**2


class ResidualBlock(nn.Module):
    """(N, C, H, W) -> same; starts as the identity."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Correction(nn.Module):
    """What the linear transform misses: convolution, residual blocks, projection from zero."""

    def __init__(self, inputs: int, outputs: int, blocks: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, config.width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(config.width, config.groups) for _ in range(blocks))
        self.norm_out = nn.GroupNorm(config.groups, config.width)
        self.conv_out = nn.Conv2d(config.width, outputs, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv_in(x)
        for block in self.blocks:
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Autoencoder(nn.Module):
    """Images (N, 3, H, W) in -1..1 <-> latents (N, C, H / 8, W / 8) of mean 0 and about unit std.

    The channels are only partly whitened: the std falls with the square root of a component's
    std in the picture. Under equal noise on all channels this gives the smallest error in the
    picture, so what a denoiser leaves behind shows least.
    """

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AutoencoderConfig()
        values, channels = config.patch_values, config.latent_channels
        self.analysis = nn.Conv2d(values, channels, 1)
        self.synthesis = nn.Conv2d(channels, values, 1)
        self.encoder = Correction(values, channels, config.encoder_blocks, config)
        self.decoder = Correction(channels, values, config.decoder_blocks, config)
        self.register_buffer("latent_mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(1, 1, 1, 1))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        patch = self.config.patch
        if height % patch or width % patch:
            raise ValueError(f"image size {height}x{width} is not a multiple of {patch}.")
        patches = F.pixel_unshuffle(images, patch)  # (N, 3 * 64, H / 8, W / 8)
        latents = self.analysis(patches) + self.encoder(patches)
        return (latents - self.latent_mean) / self.latent_std

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        latents = latents * self.latent_std + self.latent_mean
        patches = self.synthesis(latents) + self.decoder(latents)
        return F.pixel_shuffle(patches, self.config.patch)

    @torch.no_grad()
    def start_at_principal_components(self, images: torch.Tensor) -> None:
        """Set the linear transform from the patches of `images` (N, 3, H, W), -1..1."""
        patches = F.pixel_unshuffle(images, self.config.patch).movedim(1, -1).flatten(0, 2)
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
        top = slice(-self.config.latent_channels, None)
        stds, basis = values[top].flip(0).sqrt(), vectors[:, top].flip(1).T  # (C), (C, 192)
        gains = torch.sqrt(stds.mean() / stds)[:, None] / stds.mean()  # sum of variances = C
        self.analysis.weight.copy_((basis * gains)[:, :, None, None])
        self.analysis.bias.copy_(-(basis * gains) @ mean)
        self.synthesis.weight.copy_((basis / gains).T[:, :, None, None])
        self.synthesis.bias.copy_(mean)

    @torch.no_grad()
    def normalise_latents(self, images: torch.Tensor) -> None:
        """Measure mean per channel and overall std on `images`; afterwards they are 0 and 1."""
        self.latent_mean.zero_()
        self.latent_std.fill_(1.0)
        latents = self.encode(images)
        self.latent_mean.copy_(latents.mean((0, 2, 3), keepdim=True))
        variance = latents.var((0, 2, 3)).mean()
        self.latent_std.copy_(variance.sqrt())
