"""Voice -> what wav2vec heard, one window per video frame (paper 3.3).

Shapes: T tokens of wav2vec (50 Hz), F video frames, L layers, D width, W window.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .conditions import Speech
from .config import SAMPLE_RATE

TOKEN_HOP = 320  # samples between two wav2vec tokens: the product of its strides
TOKEN_FIELD = 400  # samples that one token hears

CHUNK = 30 * SAMPLE_RATE  # longer recordings are heard in pieces, so that memory does not grow
OVERLAP = 4 * SAMPLE_RATE  # context that each piece gets on either side; both are whole tokens


def frame_count(samples: int, sample_rate: int, fps: int) -> int:
    """round(duration * fps), in integers: at most half a frame away from the sound."""
    return (2 * samples * fps + sample_rate) // (2 * sample_rate)


def align_to_frames(hidden: Tensor, frames: int | range, fps: int, first_token: int = 0) -> Tensor:
    """Hidden states (L, T, D) -> (F, L, D): linear interpolation at the middle of each frame.

    Token j hears the samples around j*320 + 200; `hidden` begins with `first_token`, its ends are clamped.
    """
    frames = frames if isinstance(frames, range) else range(frames)
    middles = (torch.arange(frames.start, frames.stop, dtype=torch.float64) + 0.5) / fps * SAMPLE_RATE
    last_token = first_token + hidden.shape[1] - 1
    token = ((middles - TOKEN_FIELD / 2) / TOKEN_HOP).clamp(first_token, last_token)
    low = token.floor().long()
    high = (low + 1).clamp(max=last_token)
    share = (token - low).to(hidden)[:, None]
    low, high = (index.to(hidden.device) - first_token for index in (low, high))
    return (hidden[:, low] * (1 - share) + hidden[:, high] * share).transpose(0, 1)


def hear(voice: Tensor | Iterable[Tensor], encode: Callable[[Tensor], Tensor], fps: int) -> Speech:
    """A mono voice (samples,) at 16 kHz, whole or block by block -> its speech features at `fps`.

    `encode` maps (samples,) to all hidden states (L, T, D). A recording shorter than one token's
    hearing is padded with silence; a long one is heard in overlapping pieces.
    """
    features, done = [], 0
    for piece in _pieces(voice.split(CHUNK) if isinstance(voice, Tensor) else voice):
        hidden = encode(_at_least_one_token(piece.voice)).float()
        frames = range(done, frame_count(piece.end, SAMPLE_RATE, fps))
        features.append(align_to_frames(hidden, frames, fps, piece.begin // TOKEN_HOP))
        done = frames.stop
    return Speech(torch.cat(features), fps)


class Piece(NamedTuple):
    voice: Tensor  # from sample `begin` on
    begin: int
    end: int  # where the next piece takes over; what follows here is context


def _pieces(blocks: Iterable[Tensor]) -> Iterator[Piece]:
    """One for each CHUNK, with OVERLAP on either side; the last, maybe empty, takes a short rest too."""
    kept, held, begin, end = [torch.empty(0)], 0, 0, CHUNK
    for block in blocks:
        kept.append(block)
        held += len(block)
        while begin + held > end + OVERLAP:
            voice = torch.cat(kept)
            yield Piece(voice[: end + OVERLAP - begin], begin, end)
            kept = [voice[end - OVERLAP - begin :]]
            held, begin, end = len(kept[0]), end - OVERLAP, end + CHUNK
    yield Piece(torch.cat(kept), begin, begin + held)


def _at_least_one_token(waveform: Tensor) -> Tensor:
    return nnf.pad(waveform, (0, max(0, TOKEN_FIELD - len(waveform))))
