"""Voice -> what wav2vec heard, one window per video frame (paper 3.3).

Shapes: T tokens of wav2vec (50 Hz), F video frames, L layers, D width, W window.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .conditions import Speech
from .config import SAMPLE_RATE

TOKEN_HOP = 320  # samples between two wav2vec tokens: the product of its strides
TOKEN_FIELD = 400  # samples that one token hears

CHUNK = 60 * SAMPLE_RATE  # longer recordings are heard in pieces, so that memory does not grow
OVERLAP = 4 * SAMPLE_RATE  # context that each piece gets on either side


def frame_count(samples: int, sample_rate: int, fps: int) -> int:
    """round(duration * fps), in integers: at most half a frame away from the sound."""
    return (2 * samples * fps + sample_rate) // (2 * sample_rate)


def resample(voice: Tensor, sample_rate: int) -> Tensor:
    """A mono voice (samples,) of any rate -> 16 kHz."""
    if sample_rate == SAMPLE_RATE:
        return voice
    import librosa

    return torch.from_numpy(librosa.resample(voice.numpy(), orig_sr=sample_rate, target_sr=SAMPLE_RATE))


def align_to_frames(hidden: Tensor, frames: int, fps: int) -> Tensor:
    """Hidden states (L, T, D) -> (F, L, D): linear interpolation at the middle of each frame.

    Token j hears the samples around j*320 + 200; the ends are clamped.
    """
    middles = (torch.arange(frames, dtype=torch.float64) + 0.5) / fps * SAMPLE_RATE
    index = ((middles - TOKEN_FIELD / 2) / TOKEN_HOP).clamp(0, hidden.shape[1] - 1)
    low = index.floor().long().to(hidden.device)
    high = (low + 1).clamp(max=hidden.shape[1] - 1)
    share = (index - index.floor()).to(hidden)[:, None]
    return (hidden[:, low] * (1 - share) + hidden[:, high] * share).transpose(0, 1)


def hear(waveform: Tensor, encode: Callable[[Tensor], Tensor], fps: int) -> Speech:
    """A mono voice (samples,) at 16 kHz -> its speech features at `fps`.

    `encode` maps (samples,) to all hidden states (L, T, D). A recording shorter than one token's
    hearing is padded with silence; one longer than a minute is heard in overlapping pieces.
    """
    frames = frame_count(len(waveform), SAMPLE_RATE, fps)
    if len(waveform) <= CHUNK:
        hidden = encode(_at_least_one_token(waveform))
    else:
        hidden = torch.cat([_piece(waveform, start, encode) for start in range(0, len(waveform), CHUNK)], 1)
    return Speech(align_to_frames(hidden.float(), frames, fps), fps)


def _at_least_one_token(waveform: Tensor) -> Tensor:
    return nnf.pad(waveform, (0, max(0, TOKEN_FIELD - len(waveform))))


def _piece(waveform: Tensor, start: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Hidden states of the tokens that begin in [start, start + CHUNK), heard with context."""
    begin = max(0, start - OVERLAP)
    hidden = encode(_at_least_one_token(waveform[begin : start + CHUNK + OVERLAP]))
    first = (start - begin) // TOKEN_HOP
    return hidden[:, first : first + CHUNK // TOKEN_HOP]
