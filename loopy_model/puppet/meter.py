"""The face meter: reads how a drawn face is posed, to measure generated videos."""

import torch
from torch import nn
from torch.nn import functional as F

from .motion import MOTION

METER_SIZE = 64


class FaceMeter(nn.Module):
    """Images (N, 3, H, W), 0..1, of any size -> motion (N, 8) in the order of `MOTION`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, 24, 3, padding=1),  # 32 x 32
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2, padding=1),  # 16 x 16
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1),  # 8 x 8
            nn.GroupNorm(8, 48),
            nn.ReLU(),
            nn.Conv2d(48, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 16, 1),
            nn.ReLU(),
            nn.Flatten(),  # positions matter: no pooling
            nn.Linear(16 * 8 * 8, 64),
            nn.ReLU(),
            nn.Linear(64, len(MOTION)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-2:] != (METER_SIZE, METER_SIZE):
            size = (METER_SIZE, METER_SIZE)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.layers(images * 2 - 1)
