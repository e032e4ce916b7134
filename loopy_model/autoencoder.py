"""The bundled model's image autoencoder: 16x16 patches to 32 channels and back.

A linear patch transform, started at the principal components of face patches, carries most
of the picture; two small convolutional pyramids correct it. It trains in minutes.
Shapes: N images, C latent channels, H W pixels.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .config import check_sizes


@dataclass(frozen=True)
class AutoencoderConfig:
    """`widths` and blocks of the pyramids from fine to coarse; each level halves the picture.

    The finest level sees cells of `fold` pixels, the coarsest is the latents' grid.
    """

    latent_channels: int = 32
    fold: int = 4
    widths: tuple[int, ...] = (32, 64, 128)
    encoder_blocks: tuple[int, ...] = (1, 1, 1)
    decoder_blocks: tuple[int, ...] = (1, 2, 3)
    groups: int = 8

    def __post_init__(self) -> None:
        for name in ("widths", "encoder_blocks", "decoder_blocks"):  # JSON makes them lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_sizes("an autoencoder", vars(self))

    @property
    def patch(self) -> int:
        """Pixels per latent cell and side."""
        return self.fold * 2 ** (len(self.widths) - 1)

    @property
    def patch_values(self) -> int:
        return 3 * self.patch**2

    @property
    def fold_values(self) -> int:
        return 3 * self.fold**2


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


def _blocks(width: int, count: int, groups: int) -> list[nn.Module]:
    return [ResidualBlock(width, groups) for _ in range(count)]


def _out(inputs: int, outputs: int, kernel: int, groups: int) -> list[nn.Module]:
    """The last layers of a correction, which starts at zero."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return [nn.GroupNorm(groups, inputs), nn.SiLU(), conv]


def _encoder(config: AutoencoderConfig) -> nn.Sequential:
    """Images -> what the linear analysis misses."""
    widths = config.widths
    layers = [nn.PixelUnshuffle(config.fold), nn.Conv2d(config.fold_values, widths[0], 3, padding=1)]
    for level, (width, blocks) in enumerate(zip(widths, config.encoder_blocks, strict=True)):
        if level:
            layers.append(nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1))
        layers += _blocks(width, blocks, config.groups)
    return nn.Sequential(*layers, *_out(widths[-1], config.latent_channels, 1, config.groups))


def _decoder(config: AutoencoderConfig) -> nn.Sequential:
    """Latents -> what the linear synthesis misses. Convolutions at every size let neighbouring
    cells agree, so that no border between them shows."""
    widths = config.widths
    layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)]
    for level in reversed(range(len(widths))):
        layers += _blocks(widths[level], config.decoder_blocks[level], config.groups)
        if level:
            layers += [nn.Conv2d(widths[level], 4 * widths[level - 1], 1), nn.PixelShuffle(2)]
    return nn.Sequential(
        *layers, *_out(widths[0], config.fold_values, 3, config.groups), nn.PixelShuffle(config.fold)
    )


class Autoencoder(nn.Module):
    """Images (N, 3, H, W) in -1..1 <-> latents (N, C, H / 16, W / 16) of mean 0 and about unit std.

    The channels start only partly whitened: the std falls with the square root of a component's
    std in the picture. Under equal noise on all channels this gives the smallest error in the
    picture, so what a denoiser leaves behind shows least.
    """

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AutoencoderConfig()
        values, channels = config.patch_values, config.latent_channels
        self.analysis = nn.Conv2d(values, channels, 1)
        self.synthesis = nn.Conv2d(channels, values, 1)
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)
        self.register_buffer("latent_mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(1, 1, 1, 1))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        patch = self.config.patch
        if height % patch or width % patch:
            raise ValueError(f"image size {height}x{width} is not a multiple of {patch}.")
        patches = F.pixel_unshuffle(images, patch)  # (N, 3 * 256, H / 16, W / 16)
        latents = self.analysis(patches) + self.encoder(images)
        return (latents - self.latent_mean.to(latents)) / self.latent_std.to(latents)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        latents = latents * self.latent_std.to(latents) + self.latent_mean.to(latents)
        return F.pixel_shuffle(self.synthesis(latents), self.config.patch) + self.decoder(latents)

    @torch.no_grad()
    def start_at_principal_components(self, images: torch.Tensor) -> None:
        """Set the linear transform from the patches of `images` (N, 3, H, W), -1..1."""
        patches = F.pixel_unshuffle(images, self.config.patch).movedim(1, -1).flatten(0, 2)
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
        top = slice(-self.config.latent_channels, None)
        stds, basis = values[top].flip(0).sqrt(), vectors[:, top].flip(1).T  # (C), (C, 768)
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
        latents = torch.cat([self.encode(part) for part in images.split(64)])
        self.latent_mean.copy_(latents.mean((0, 2, 3), keepdim=True))
        variance = latents.var((0, 2, 3)).mean()
        self.latent_std.copy_(variance.sqrt())
