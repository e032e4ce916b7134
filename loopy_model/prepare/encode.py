"""Clips -> what training reads: VAE latents, speech features and landmarks, one file per clip.

With these cached, 124 frames of motion context cost no encoding in training.
"""

import csv
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as nnf
from einops import rearrange
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from ..audio import hear
from ..config import SAMPLE_RATE, ClipGeometry
from ..video import read_video
from .encoded import FOLDER, BadClip, EncodedClip, path_of, read_metadata, write_encoded
from .encoders import Source, load_speech_encoder, load_vae

PIECE = 16  # frames that pass the VAE at once
FPS = ClipGeometry.fps
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS


@dataclass(frozen=True)
class EncodeSettings:
    vae: Path
    speech: Path
    size: int  # pixels of the pictures that the VAE sees
    device: str = "cpu"
    shard: tuple[int, int] = (0, 1)  # this run's part and the number of parts

    def made_by(self) -> dict:
        vae, speech = Source.of(self.vae), Source.of(self.speech)
        return {"vae": asdict(vae), "speech": asdict(speech), "size": self.size}


def encode_clips(data: Path, settings: EncodeSettings) -> Counter:
    """Encodes what is not encoded yet; a clip that cannot be is listed and left out.

    Encoded clips that are no longer in `clips/` are removed, so that training sees what the report
    shows. Returns how many were encoded, already there, failed and removed. Raises ValueError with a
    sentence when there is nothing to encode.
    """
    paths = sorted((data / "clips").glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{data} has no clips; run `loopy prepare clips RAW {data}` first.")
    part, parts = settings.shard
    encoder = ClipEncoder(settings)
    counts, failed = Counter(), []
    for path in tqdm(paths[part::parts], "encoding"):
        try:
            counts[encoder.encode(data, path)] += 1
        except (ValueError, OSError, RuntimeError) as error:
            counts["failed"] += 1
            failed.append((path.stem, f"{type(error).__name__}: {error}"))
    counts["removed"] = _remove_others(data, {path.stem for path in paths})
    _write_failed(data / FOLDER / f"failed-{part}-of-{parts}.csv", failed)
    return counts


class ClipEncoder:
    """Both encoders, loaded once."""

    def __init__(self, settings: EncodeSettings) -> None:
        self.size, self.device = settings.size, settings.device
        self.vae = load_vae(settings.vae, settings.device)
        self.hear = load_speech_encoder(settings.speech, settings.device)
        self.made_by = settings.made_by()

    @torch.no_grad()
    def encode(self, data: Path, path: Path) -> str:
        """One clip -> "encoded", or "already there"."""
        clip, landmarks = read_clip(path)
        if self._is_there(path_of(data, clip.name), clip):
            return "already there"
        frames, _, waveform, _ = read_video(path.with_suffix(".mp4"))
        if not len(frames) == len(landmarks) == clip.frames:
            raise BadClip(
                f"its video has {len(frames)} frames, its landmarks {len(landmarks)}, its record "
                f"{clip.frames}; run `loopy prepare clips` again with --again."
            )
        speech = self._speech(waveform, clip) if clip.voiced else None
        write_encoded(data, clip, self._latents(frames), landmarks, speech, self.made_by)
        return "encoded"

    def _is_there(self, path: Path, clip: EncodedClip) -> bool:
        try:
            known, made_by = read_metadata(path) if path.is_file() else (None, {})
        except BadClip:
            return False  # damaged: make it again
        return known == clip and _identity(made_by) == _identity(self.made_by)

    def _latents(self, frames: Tensor) -> Tensor:
        images = rearrange(frames, "f h w c -> f c h w")
        pieces = []
        for part in images.split(PIECE):
            part = nnf.interpolate(part.to(self.device), self.size, mode="bilinear", antialias=True)
            pieces.append(self.vae.encode(part * 2 - 1).cpu())
        return torch.cat(pieces)

    def _speech(self, waveform: Tensor | None, clip: EncodedClip) -> Tensor:
        """(F, L, D); the sound is cut or padded to the length of the picture."""
        if waveform is None:
            raise BadClip("its record says that it has sound, its video has none; prepare it again.")
        samples = clip.frames * SAMPLES_PER_FRAME
        voice = waveform.mean(0)[:samples]
        return hear(nnf.pad(voice, (0, samples - len(voice))), self.hear, FPS).features


def read_clip(path: Path) -> tuple[EncodedClip, Tensor]:
    """The record and landmarks (F, 68, 2) that `loopy prepare clips` wrote."""
    with safe_open(str(path), framework="pt") as file:
        record, landmarks = json.loads(file.metadata()["clip"]), file.get_tensor("landmarks")
    return EncodedClip(record["name"], record["frames"], record["split"], record["voiced"]), landmarks


def _identity(made_by: dict) -> tuple:
    """The encoders themselves, wherever their files lie now."""
    return made_by["vae"]["sha256"], made_by["speech"]["sha256"], made_by["size"]


def _remove_others(data: Path, names: set[str]) -> int:
    others = [path for path in (data / FOLDER).glob("*.safetensors") if path.stem not in names]
    for path in others:
        path.unlink(missing_ok=True)
    return len(others)


def _write_failed(path: Path, rows: list[tuple[str, str]]) -> None:
    path.unlink(missing_ok=True)
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("clip", "reason"), *rows])
