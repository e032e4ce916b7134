"""Sync-C and Sync-D: how well lips and voice agree, by SyncNet.

Network and scores of Chung & Zisserman, "Out of time" (2016) with the weights of 2017, which the paper's
filter (appendix A: confidence of at least 2.5) and its tables stand on. The weights are the user's.
Shapes: F frames, W windows, D 1024.
"""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn

FPS = 25
SAMPLE_RATE = 16000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS  # 640
FACE_SIZE = 224  # pixels of the lip network's pictures
WINDOW = 5  # video frames, 0.2 s
MFCC_PER_FRAME = 4  # 100 Hz
MFCC_WINDOW = WINDOW * MFCC_PER_FRAME
MAX_OFFSET = 15  # frames that the voice is moved, both ways
BATCH = 32  # frames in memory at a time


class SyncScore(NamedTuple):
    confidence: float  # Sync-C: median minus least distance over the offsets
    distance: float  # Sync-D: the least distance
    offset: int  # frames; positive: the voice comes too early, by so many


class SyncScorer(Protocol):
    """frames (F, H, W, 3) uint8 RGB at 25 fps, waveform (samples,) float32 at 16 kHz -> score."""

    def __call__(self, frames: np.ndarray, waveform: np.ndarray) -> SyncScore: ...


def sync_scorer(weights: Path, device: str = "cpu") -> SyncScorer:
    """SyncNet with the weights of `syncnet_v2.model`; raises ValueError when the file is another."""
    try:
        import python_speech_features  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "the sync score needs python_speech_features; install it with `pip install python_speech_features`."
        ) from error
    return LipSync(load_syncnet(weights).to(device))


def load_syncnet(path: Path) -> "SyncNet":
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; it should be SyncNet's syncnet_v2.model, which its authors publish at "
            "www.robots.ox.ac.uk/~vgg/software/lipsync with github.com/joonson/syncnet_python (code MIT; "
            "no licence is stated for the weights)."
        )
    network = SyncNet()
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds, some of them pages long
        raise ValueError(
            f"{path} is not SyncNet's state dict ({type(error).__name__}); use the file syncnet_v2.model."
        ) from error
    return network.eval().requires_grad_(False)


class SyncNet(nn.Module):
    """Two towers into one space; 0.2 s of voice and of face that belong together lie close."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(  # (N, 1, 13, 20) -> (N, 512, 1, 1)
            *_block2(1, 64, 3, padding=1),
            nn.MaxPool2d(1),
            *_block2(64, 192, 3, padding=1),
            nn.MaxPool2d(3, stride=(1, 2)),
            *_block2(192, 384, 3, padding=1),
            *_block2(384, 256, 3, padding=1),
            *_block2(256, 256, 3, padding=1),
            nn.MaxPool2d(3, stride=2),
            *_block2(256, 512, (5, 4)),
        )
        self.netcnnlip = nn.Sequential(  # (N, 3, F, 224, 224) -> (N, 512, F - 4, 1, 1)
            *_block3(3, 96, (WINDOW, 7, 7), stride=(1, 2, 2)),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_block3(96, 256, (1, 5, 5), stride=(1, 2, 2), padding=(0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            *_block3(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_block3(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_block3(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_block3(256, 512, (1, 6, 6)),
        )
        self.netfcaud, self.netfclip = _head(), _head()

    def voice(self, mfcc: Tensor) -> Tensor:
        """(W, 13, 20) -> (W, D)"""
        return self.netfcaud(self.netcnnaud(mfcc[:, None]).flatten(1))

    def lips(self, frames: Tensor) -> Tensor:
        """(F, 3, 224, 224), BGR 0..255 -> (F - 4, D). Only the first layer looks along time, so that
        neighbouring windows share their work."""
        features = self.netcnnlip(rearrange(frames, "f c h w -> 1 c f h w"))
        return self.netfclip(rearrange(features, "1 d f 1 1 -> f d"))


def _block2(*sizes: int | tuple, **options: int) -> list[nn.Module]:
    return [nn.Conv2d(*sizes, **options), nn.BatchNorm2d(sizes[1]), nn.ReLU()]


def _block3(*sizes: int | tuple, **options: tuple) -> list[nn.Module]:
    return [nn.Conv3d(*sizes, **options), nn.BatchNorm3d(sizes[1]), nn.ReLU()]


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))


class LipSync:
    """The scorer of the published evaluation.

    Frames are the square face crop, whole face, of any size: the network saw crops around the box of
    a face detector (forehead to chin), 1.4 times its size, with the extra height below the chin. A
    looser or tighter crop lowers the confidence, so compare only scores of equal crops.
    """

    def __init__(self, network: SyncNet) -> None:
        self.network = network
        self.device = next(network.parameters()).device

    @torch.no_grad()
    def __call__(self, frames: np.ndarray, waveform: np.ndarray) -> SyncScore:
        count = windows(len(frames), len(waveform))
        voice = self.network.voice(mfcc_windows(waveform, count).to(self.device))
        return score_from_embeddings(self.lips(frames[: count + WINDOW - 1]), voice)

    def lips(self, frames: np.ndarray) -> Tensor:
        """(F, H, W, 3) -> (F - 4, D), a batch at a time."""
        starts = range(0, len(frames) - WINDOW + 1, BATCH)
        parts = (frames[start : start + BATCH + WINDOW - 1] for start in starts)
        return torch.cat([self.network.lips(self.pictures(part)) for part in parts])

    def pictures(self, frames: np.ndarray) -> Tensor:
        """(F, H, W, 3) uint8 RGB -> (F, 3, 224, 224) BGR 0..255, as the network was trained."""
        bgr = torch.from_numpy(np.ascontiguousarray(frames[..., ::-1])).to(self.device)
        bgr = rearrange(bgr, "f h w c -> f c h w").float()
        size = (FACE_SIZE, FACE_SIZE)
        return nnf.interpolate(bgr, size=size, mode="bilinear", antialias=True, align_corners=False)


def windows(frames: int, samples: int) -> int:
    """Number of windows that both the video and the 25 ms frames of its MFCC reach: the MFCC of F video
    frames has 4 F - 1 rows, one too few for the last window."""
    count = min(frames, samples // SAMPLES_PER_FRAME) - WINDOW
    if count < 1:
        raise ValueError(
            f"{frames} frames with {samples} samples are too short for a sync score; "
            f"it needs {WINDOW + 1} frames with their sound."
        )
    return count


def mfcc_windows(waveform: np.ndarray, count: int) -> Tensor:
    """waveform (samples,) -1..1 -> (W, 13, 20): window w begins with video frame w."""
    from python_speech_features import mfcc

    loudness = np.clip(np.round(waveform * 32768), -32768, 32767)  # the network has heard 16 bit integers
    rows = torch.from_numpy(mfcc(loudness, SAMPLE_RATE)).float()  # (100 Hz, 13)
    return rows.unfold(0, MFCC_WINDOW, MFCC_PER_FRAME)[:count]


def score_from_embeddings(lips: Tensor, voice: Tensor) -> SyncScore:
    """Two (W, D) -> score. The voice is moved by -15..15 windows; beyond its ends it is zero, as in
    the published evaluation, so that each offset is a mean over all W."""
    padded = nnf.pad(voice, (0, 0, MAX_OFFSET, MAX_OFFSET))
    moved = padded.unfold(0, len(lips), 1)  # (31, D, W): row k is the voice k - 15 windows later
    distances = (moved - lips.T + 1e-6).norm(dim=1).mean(dim=1)  # (31,)
    least, place = distances.min(dim=0)
    return SyncScore(
        confidence=float(distances.median() - least),
        distance=float(least),
        offset=MAX_OFFSET - int(place),
    )
