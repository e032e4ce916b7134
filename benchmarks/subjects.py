"""What is measured: Loopy, and diffusers' own U-Nets of the same width as yardsticks."""

from dataclasses import replace

import torch
from torch import nn

from loopy_model.conditions import Conditions
from loopy_model.config import LOOPY, ClipGeometry, LoopyConfig
from loopy_model.guidance import Guidance, Predictor, is_small
from loopy_model.model import Loopy

from .measure import Work

TEXT_TOKENS, TEXT_WIDTH = 77, 768  # what the yardsticks hear instead of a voice

# The branches of guidance that a step runs; a branch whose weight is zero is left out.
BRANCHES = {
    "audio, reference, base": Guidance(5, 3),
    "audio, reference": Guidance(3, 1),
    "audio, base": Guidance(3, 3),
    "audio": Guidance(1, 1),
}


def sized(width: str, latent_size: int, clip: ClipGeometry = LOOPY.clip) -> LoopyConfig:
    """The paper's model, at SD1.5's width or at one that two CPU cores can run."""
    channels = {"full": LOOPY.unet.channels, "reduced": (64, 128, 256, 256)}[width]
    unet = replace(LOOPY.unet, channels=channels)
    return replace(LOOPY, unet=unet, clip=clip, image_size=latent_size * LOOPY.vae_scale_factor)


class Sampling:
    """A model with random weights and the conditions of one clip, every motion frame given."""

    def __init__(self, config: LoopyConfig, device: str, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        with torch.device(device):
            model = Loopy(config)
        self.model = model.to(dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.portrait = [site.normed for site in self.read(1)]
        self.motion = [site.output[None] for site in self.read(config.clip.motion_frames)]

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    @property
    def latents(self) -> tuple[int, int, int]:
        return self.config.unet.latent_channels, self.config.latent_size, self.config.latent_size

    def read(self, frames: int) -> list:
        """So many pictures through the reference net."""
        return self.model.read(self.randn(frames, *self.latents))

    def encode(self) -> Conditions:
        """All keys and values of a clip, from what the reference net has read."""
        clip, audio = self.config.clip, self.config.audio
        windows = self.randn(1, clip.frames, clip.audio_window, audio.layers, audio.width)
        return self.model.encode_conditions(
            reference=self.portrait,
            motion=self.motion,
            windows=windows,
            motion_latents=self.model.motion_latents_from_audio(windows),
        )

    def step(self, guidance: Guidance) -> Work:
        """One denoising step as the sampler runs it."""
        size = self.config.latent_size
        small = is_small(self.config, size, size)
        predict = Predictor(self.model, self.encode(), guidance, small, dtype=self.dtype)
        x = torch.randn(1, self.config.clip.frames, *self.latents, device=self.device)
        return lambda: predict(x, 500, 0)


def decoder(config: LoopyConfig, device: str, dtype: torch.dtype) -> Work:
    """SD1.5's VAE decodes the frames of one clip; narrower in proportion where the model is."""
    from diffusers import AutoencoderKL

    widths = tuple(width * config.unet.channels[0] // 320 for width in (128, 256, 512, 512))
    widths, blocks = tuple(width // 8 * 8 for width in widths), len(widths)
    vae = AutoencoderKL(
        block_out_channels=widths,
        layers_per_block=2,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
    )
    vae = vae.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
    size = config.latent_size
    latents = torch.randn(config.clip.frames, 4, size, size, device=device, dtype=dtype)
    return lambda: [vae.decode(frame[None]) for frame in latents]


def yardsticks(config: LoopyConfig, device: str, dtype: torch.dtype) -> dict[str, Work]:
    """A pass each of AnimateDiff's and of SD1.5's U-Net over the frames of one clip."""
    from diffusers import UNet2DConditionModel, UNetMotionModel

    unet, frames, size = config.unet, config.clip.frames, config.latent_size
    shape = dict(
        sample_size=size,
        in_channels=unet.latent_channels,
        out_channels=unet.latent_channels,
        block_out_channels=unet.channels,
        cross_attention_dim=TEXT_WIDTH,
    )
    motion = UNetMotionModel(**shape, num_attention_heads=unet.heads, motion_num_attention_heads=unet.heads)
    plain = UNet2DConditionModel(**shape, attention_head_dim=unet.heads)  # diffusers' name for their number

    def ready(net: nn.Module) -> nn.Module:
        return net.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)

    ready(motion), ready(plain)
    made = dict(device=device, dtype=dtype)
    text = torch.randn(frames, TEXT_TOKENS, TEXT_WIDTH, **made)
    video = torch.randn(1, unet.latent_channels, frames, size, size, **made)
    pictures = torch.randn(frames, unet.latent_channels, size, size, **made)
    t = torch.tensor(500, device=device)
    return {
        "UNetMotionModel": lambda: motion(video, t, encoder_hidden_states=text),
        "UNet2DConditionModel": lambda: plain(pictures, t, encoder_hidden_states=text),
    }
