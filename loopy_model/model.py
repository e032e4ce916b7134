"""Loopy: two U-Nets, the audio condition module and audio-to-latents (paper Fig. 2).

Two tempos: `read` and `encode_conditions` run once per clip, `denoise` once per step.
Shapes: B clips, F frames, M motion frames, W audio window, L wav2vec layers, D their width.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from .audio_to_latents import AudioProjection, AudioToLatents
from .conditions import Conditions, SiteFeatures
from .config import LoopyConfig
from .unet import DenoisingUNet, ReferenceUNet

Part = Literal["read", "denoise"]
BeforeCall = Callable[[Part], None]  # told which part of the model runs next; may raise to cancel


def no_matter(part: Part) -> None:
    """The `BeforeCall` of those who need none."""


class Loopy(nn.Module):
    """A talking-portrait model; `config` travels with it into its checkpoint."""

    def __init__(self, config: LoopyConfig) -> None:
        super().__init__()
        self.config = config
        self.reference_unet = ReferenceUNet(config.unet)
        self.denoising_unet = DenoisingUNet(config)
        self.add_audio()

    def add_audio(self) -> None:
        """The audio condition module and audio-to-latents, as new; those that were there are replaced."""
        config = self.config
        # wav2vec's hidden states have channels with a spread of 50: without a norm they drown the rest
        self.audio_norm = nn.LayerNorm(config.audio.width)
        self.audio_projection = AudioProjection(config.audio, config.clip.audio_window)
        if config.audio.to_latents:
            self.audio_to_latents = AudioToLatents(
                config.audio, config.clip.audio_window, config.unet.time_channels
            )

    def parts(self) -> dict[Part, nn.Module]:
        """The modules that reading needs, and those of everything else; memory need only hold one."""
        rest = {name: child for name, child in self.named_children() if child is not self.reference_unet}
        return {"read": self.reference_unet, "denoise": nn.ModuleDict(rest)}

    def read(self, latents: Tensor) -> list[SiteFeatures]:
        """Pictures (B, C, h, w), portrait or motion frames -> reference-net features per site."""
        return self.reference_unet(latents)

    def normed_speech(self, windows: Tensor) -> Tensor:
        """What the audio projection reads of the windows (B, F, W, L, D)."""
        return self.audio_norm(windows) if self.config.audio.norm else windows

    def motion_latents_from_audio(self, windows: Tensor) -> Tensor | None:
        """(B, F, W, L, D) -> motion latents (B, F, T); None for a model without audio-to-latents."""
        if not self.config.audio.to_latents:
            return None
        return self.audio_to_latents(self.audio_to_latents.audio_query(self.audio_norm(windows)))

    def encode_conditions(
        self,
        reference: list[Tensor] | None,
        motion: list[Tensor] | None,
        windows: Tensor | None,
        motion_latents: Tensor | None,
        keep_audio: Tensor | None = None,
        keep_reference: Tensor | None = None,
    ) -> Conditions:
        """All keys and values of one clip.

        `reference`: per site (B, N, C), the `normed` features of the portrait; `motion`: per site
        (B, M, C, H, W), the `output` features of the motion frames, zero where there are none;
        `windows` (B, F, W, L, D) of speech; `motion_latents` (B, F, T), None without audio-to-latents.
        In training `keep_audio` and `keep_reference` (B,) switch conditions off per sample.
        """
        tokens = None if windows is None else self.audio_projection(self.normed_speech(windows))
        if keep_audio is not None:
            tokens = tokens * rearrange(keep_audio, "b -> b 1 1 1")
            if motion_latents is not None:
                motion_latents = motion_latents * rearrange(keep_audio, "b -> b 1 1")
        sites = self.denoising_unet.site_conditions(reference, motion, tokens, keep_reference)
        return Conditions(sites, motion_latents)

    def denoise(self, noisy: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        """Noisy latents (B, F, C, h, w), timesteps (B,) -> the prediction, same shape as `noisy`."""
        return self.denoising_unet(noisy, timestep, conditions)[0]

    def denoise_anew(
        self, noisy: Tensor, timestep: Tensor, conditions: Conditions, deep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`denoise`, and the deep features it made. Those of an earlier step, given as `deep`, stand in
        for the same: approximate, and only the finest level is computed (Ma et al. 2024, DeepCache)."""
        return self.denoising_unet(noisy, timestep, conditions, deep)


def motion_features(read: Sequence[Sequence[Tensor] | None], like: Sequence[Tensor]) -> list[Tensor]:
    """M frames' features per site -> per site (1, M, C, H, W), zero where a frame is None.

    `read[m][site]` is (C, H, W); `like[site]` has that shape too and gives it to the empty ones.
    """
    return [
        torch.stack([torch.zeros_like(blank) if frame is None else frame[site] for frame in read])[None]
        for site, blank in enumerate(like)
    ]
