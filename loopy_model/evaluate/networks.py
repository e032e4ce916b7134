"""The networks that the paper's metrics stand on: files that the user brings, and how each is called.

None comes with this project: most licences forbid commercial use or say nothing about the weights. A
file is TorchScript (`torch.jit.load`), but for SyncNet, whose architecture is in `prepare/sync.py`. What
each takes and gives is written at its input function here and, with the way to make it, in
docs/evaluation.md. B pictures or pieces of video, D features, H x W pixels.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor


class NotMeasured(ValueError):
    """One sentence on why a metric has no value."""


@dataclass(frozen=True)
class Network:
    """What a missing file's sentence needs."""

    files: tuple[str, ...]  # names in the user's folder: the first that is there is taken
    origin: str
    licence: str

    def find(self, folder: Path | None) -> Path:
        """Raises NotMeasured that names file and licence."""
        for name in self.files:
            if folder is not None and (folder / name).is_file():
                return folder / name
        raise NotMeasured(
            f"it needs {' or '.join(self.files)} in the folder of --networks "
            f"({self.origin}; licence: {self.licence})."
        )


AMT = Network(
    ("amt-s.pt",),
    "traced from amt-s.pth of github.com/MCG-NKU/AMT",
    "CC BY-NC 4.0, not for commercial use; the weights' Hugging Face page says CC BY-NC-SA 4.0",
)
SYNCNET = Network(
    ("syncnet_v2.model",),
    "www.robots.ox.ac.uk/~vgg/software/lipsync, with github.com/joonson/syncnet_python",
    "code MIT, none is stated for the weights",
)
INCEPTION = Network(
    ("inception-2015-12-05.pt", "fid.pt"),
    "the first as NVIDIA publishes it for stylegan2-ada-pytorch, the second traced from "
    "github.com/mseitzer/pytorch-fid with pt_inception-2015-12-05-6726825d.pth",
    "the first NVIDIA Source Code License, research and evaluation only, as we read it; the second Apache-2.0 for the code, "
    "none is stated for the weights",
)
RESNET = Network(
    ("fvd_r.pt",),
    "traced from resnet-50-kinetics.pth of github.com/kenshohara/video-classification-3d-cnn-pytorch",
    "MIT for the code, none is stated for the weights",
)
I3D = Network(
    ("i3d_torchscript.pt", "fvd_i.pt"),
    "the first as github.com/universome/stylegan-v publishes it, a port of DeepMind's kinetics-i3d; the second "
    "any other I3D under the same contract",
    "none is stated for the port, kinetics-i3d is Apache-2.0",
)
DEEP3D = Network(
    ("expression.pt",),
    "traced from epoch_20.pth of github.com/sicxu/Deep3DFaceRecon_pytorch",
    "MIT for the code, none is stated for the weights; the Basel Face Model, which is for registered users, is not needed",
)
STANDARD_FACE = Network(
    ("similarity_Lm3D_all.mat",),
    "from the folder BFM of github.com/sicxu/Deep3DFaceRecon_pytorch",
    "MIT with its repository",
)
Q_ALIGN = Network(
    ("iqa.pt",),
    "traced from huggingface.co/q-future/one-align",
    "MIT on its page; the code's repository has S-Lab License 1.0, not for commercial use",
)

KINETICS_MEAN = (114.7748, 107.7354, 99.4750)  # RGB, what the ResNet was trained around
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # RGB, the border that Q-Align puts around a picture
PIECE = 16  # frames of video that the ResNet sees, and here I3D as well
BATCH = 16  # pictures
PIECES = 4  # pieces of video in a batch
EXPRESSION = slice(80, 144)  # of the 257 numbers of a face: 64 for the expression
EXPRESSION_WIDTH, FACE_WIDTH = 64, 257

Call = Callable[[Tensor], Tensor]


def load(path: Path, device: str) -> torch.jit.ScriptModule:
    """Raises NotMeasured when the file is no TorchScript."""
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise NotMeasured(
            f"{path} is not a TorchScript file ({_last_line(error)}); docs/evaluation.md says how to make it."
        ) from error


def features_of(path: Path, device: str) -> Call:
    """A batch -> (B, D) float32 on the CPU. The two published files want to be asked for features."""
    network = load(path, device)
    options = {
        "inception-2015-12-05.pt": {"return_features": True},
        "i3d_torchscript.pt": {"rescale": False, "resize": False, "return_features": True},
    }.get(path.name, {})

    def call(batch: Tensor) -> Tensor:
        return _answer(path, lambda: network(batch.to(device), **options), batch, 2)

    return call


def scores_of(path: Path, device: str) -> Call:
    """A batch -> (B,) float32 on the CPU."""
    network = load(path, device)
    return lambda batch: _answer(path, lambda: network(batch.to(device)), batch, 1)


def middle_of(path: Path, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Two frames (1, 3, H, W), 0..1, of any size -> the one between them, 0..1 on the CPU. The network
    sees them with their borders repeated to multiples of 16 pixels, as VBench does it."""
    network = load(path, device)

    def call(before: Tensor, after: Tensor) -> Tensor:
        height, width = before.shape[-2:]
        left, top = -width % 16 // 2, -height % 16 // 2
        sides = (left, -width % 16 - left, top, -height % 16 - top)
        pair = [nnf.pad(frame, sides, mode="replicate").to(device) for frame in (before, after)]
        middle = _answer(path, lambda: network(*pair), pair[0], 4)
        if middle.shape != pair[0].shape:
            raise NotMeasured(f"{path} gave {tuple(middle.shape)} for {tuple(pair[0].shape)}; make it again.")
        return middle[..., top : top + height, left : left + width]

    return call


def _answer(path: Path, call: Callable[[], Tensor], batch: Tensor, dimensions: int) -> Tensor:
    """What the network gives, as float32 on the CPU; NotMeasured where it is not what it should be."""
    try:
        with torch.inference_mode():
            answer = call()
    except (RuntimeError, torch.jit.Error) as error:
        raise NotMeasured(
            f"{path} fails on an input of shape {tuple(batch.shape)} ({_last_line(error)}); "
            "docs/evaluation.md says what it must take."
        ) from error
    shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    if not isinstance(answer, Tensor) or answer.ndim != dimensions or len(answer) != len(batch):
        raise NotMeasured(
            f"{path} gave {shape} for an input of shape {tuple(batch.shape)}; docs/evaluation.md says what "
            "it must give."
        )
    answer = answer.float().cpu()
    if not torch.isfinite(answer).all():
        raise NotMeasured(f"{path} gave NaN or infinite values; make the file again in float32.")
    return answer


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def collect(call: Call, batches: Iterable[Tensor]) -> np.ndarray:
    """-> (N, D) float32 or (N,)."""
    return torch.cat([call(batch) for batch in batches]).numpy()


# --- what the networks see, from frames (F, H, W, 3) uint8 ---------------------------------------


def pictures(frames: np.ndarray) -> Iterator[Tensor]:
    """FID: every frame, (B, 3, H, W) uint8 RGB; the network resizes them itself."""
    for part in _batches(frames, BATCH):
        yield rearrange(torch.from_numpy(part), "b h w c -> b c h w").contiguous()


def pieces_for_resnet(frames: np.ndarray) -> Iterator[Tensor]:
    """FVD-R: (B, 3, 16, 112, 112) RGB, 0..255 less the mean of Kinetics."""
    mean = torch.tensor(KINETICS_MEAN)[:, None, None, None]
    return (piece - mean for piece in _pieces(frames, 112))


def pieces_for_i3d(frames: np.ndarray) -> Iterator[Tensor]:
    """FVD-I: (B, 3, 16, 224, 224) RGB, -1..1."""
    return (piece / 127.5 - 1 for piece in _pieces(frames, 224))


def _pieces(frames: np.ndarray, size: int) -> Iterator[Tensor]:
    """Neighbouring pieces of 16 frames, 0..255; what remains at the end is left out."""
    count = len(frames) // PIECE
    if not count:
        raise NotMeasured(f"it needs {PIECE} frames of each video, and one has {len(frames)}.")
    for part in _batches(frames[: count * PIECE], PIECES * PIECE):
        yield rearrange(_resized(part, size), "(b t) c h w -> b c t h w", t=PIECE)


def seconds(frames: np.ndarray, fps: int) -> Iterator[Tensor]:
    """IQA: one frame of each second, (B, 3, 448, 448) RGB 0..1, in a square of the mean colour."""
    for part in _batches(frames[::fps], 1):
        height, width = part.shape[1:3]
        side = max(height, width)
        square = np.empty((len(part), side, side, 3), np.uint8)
        square[:] = np.multiply(CLIP_MEAN, 255).astype(np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[:, top : top + height, left : left + width] = part
        yield _resized(square, 448) / 255


def faces(crops: np.ndarray) -> Iterator[Tensor]:
    """E-FID: aligned faces (F, 224, 224, 3) uint8 -> (B, 3, 224, 224) RGB 0..1."""
    return (batch.float() / 255 for batch in pictures(crops))


def expression(answer: np.ndarray) -> np.ndarray:
    """(N, 64), or all 257 coefficients of a face -> (N, 64)."""
    if answer.shape[1] not in (EXPRESSION_WIDTH, FACE_WIDTH):
        raise NotMeasured(
            f"expression.pt gives {answer.shape[1]} numbers for a face; it must give 64, or all 257."
        )
    return answer[:, EXPRESSION] if answer.shape[1] == FACE_WIDTH else answer


def _resized(frames: np.ndarray, size: int) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, size, size) float 0..255, the whole picture."""
    planes = rearrange(torch.from_numpy(frames), "b h w c -> b c h w").float()
    planes = nnf.interpolate(planes, size=(size, size), mode="bicubic", antialias=True)
    return planes.clamp(0, 255)


def _batches(frames: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (frames[start : start + size] for start in range(0, len(frames), size))
