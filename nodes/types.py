"""What travels on the pack's own wires; everything else is a stock type."""

from dataclasses import dataclass

import torch
from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..loopy_model.config import LoopyConfig
from ..loopy_model.model import Loopy, Part
from ..loopy_model.motion import TemporalSegments

CATEGORY = "Loopy"

LoopyModelType = io.Custom("LOOPY_MODEL")  # HostedLoopy
LoopyAudioType = io.Custom("LOOPY_AUDIO")  # loopy_model.conditions.Speech
MotionLatentsType = io.Custom("LOOPY_MOTION_LATENTS")  # Tensor (speech frames, time channels)
MotionFramesType = io.Custom("LOOPY_MOTION_FRAMES")  # MotionFrameSettings
SamplingOptionsType = io.Custom("LOOPY_SAMPLING_OPTIONS")  # loopy_model.sampling.SamplingOptions


@dataclass(frozen=True)
class HostedLoopy:
    """A Loopy model in the hands of the host's memory management."""

    model: Loopy
    patchers: dict[Part, ModelPatcher]  # of `model.parts()`: the host can take one off the card for the other
    config: LoopyConfig
    latent_format: LatentFormat
    compute_dtype: torch.dtype
    file: str

    def get_models(self) -> list[ModelPatcher]:
        """Asked by the host, which spares what the running graph uses."""
        return list(self.patchers.values())

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.patchers["denoise"].load_device


@dataclass(frozen=True)
class MotionFrameSettings:
    segments: TemporalSegments
    past: Tensor | None  # (P, C, h, w) VAE latents of an earlier video, oldest first
