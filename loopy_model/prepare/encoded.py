"""The encoded clip: one safetensors file that training reads, and the only home of its format.

Tensors: `latents` (F, C, h, w) float16, VAE latents as the VAE gives them; `speech` (F, L, D) float16,
hidden states of the speech encoder at the middle of each frame, absent where nothing is heard;
`landmarks` (F, 68, 2) float32 in 0..1 of the picture. Metadata: `format`, `clip` (JSON of
`EncodedClip`) and `encoders` (JSON of what made the tensors).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..weights import save_tensors
from .records import whole_files, write_whole

FOLDER = "encoded"  # below the data folder
FORMAT = "loopy-encoded-clip"


class BadClip(ValueError):
    """A clip cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class EncodedClip:
    name: str
    frames: int
    split: str  # "train" or "test"
    voiced: bool  # False: no sound, used in stage one only


def path_of(data: Path, name: str) -> Path:
    return data / FOLDER / f"{name}.safetensors"


def encoded_paths(data: Path) -> list[Path]:
    """Those of all clips, sorted."""
    return whole_files(data / FOLDER, ".safetensors")


def write_encoded(
    data: Path,
    clip: EncodedClip,
    latents: Tensor,
    landmarks: Tensor,
    speech: Tensor | None,
    encoders: dict[str, Any],
) -> None:
    """Writes one clip; its file appears only when it is complete. Raises BadClip for NaN or infinities, and
    CannotWrite."""
    tensors = {"latents": latents.half(), "landmarks": landmarks.float()}
    if speech is not None:
        tensors["speech"] = speech.half()
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BadClip(
                f"{clip.name}: its {name} hold values that float16 cannot; "
                "check the clip and the encoder that was given."
            )
    metadata = {"format": FORMAT, "clip": json.dumps(asdict(clip)), "encoders": json.dumps(encoders)}
    write_whole(path_of(data, clip.name), lambda partial: save_tensors(partial, tensors, metadata))


def read_metadata(path: Path) -> tuple[EncodedClip, dict[str, Any]]:
    """The clip and its encoders, from the header alone."""
    with open_encoded(path) as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise BadClip(f"{path} is not an encoded clip; take it out of the folder.")
    try:
        return EncodedClip(**json.loads(metadata["clip"])), json.loads(metadata["encoders"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadClip(
            f"{path} has a damaged header; delete it and run `python -m loopy_model.prepare encode` again."
        ) from error


def identity(encoders: dict[str, Any]) -> tuple[str | None, str | None, int | None]:
    """SHA-256 of VAE and speech encoder, and the size: the encoders themselves, wherever their files lie now.
    None: the clip does not say."""
    vae, speech = (encoders.get(name, {}).get("sha256") for name in ("vae", "speech"))
    return vae, speech, encoders.get("size")


def different(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What of the encoders is not the same, as in "VAE and size"; empty where all is."""
    pairs = zip(("VAE", "speech encoder", "size"), identity(before), identity(now))
    return " and ".join(name for name, old, new in pairs if old != new)


def open_encoded(path: Path) -> safe_open:
    """The file, mapped into memory; `get_slice` reads a few frames only."""
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise BadClip(
            f"{path} cannot be read ({error}); delete it and run `python -m loopy_model.prepare encode` again."
        ) from error
