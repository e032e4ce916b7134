"""Clips -> what training reads: VAE latents, speech features and landmarks, one file per clip.

With these cached, 124 frames of motion context cost no encoding in training.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import librosa
import torch
import torch.nn.functional as nnf
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from ..audio import hear
from ..config import LOOPY, SAMPLE_RATE, ClipGeometry, LoopyConfig
from ..video import read_video
from ..weights import read_header
from .encoded import (
    FOLDER,
    BadClip,
    EncodedClip,
    different,
    encoded_paths,
    path_of,
    read_metadata,
    write_encoded,
)
from .encoders import Source, is_loopy, load_speech_encoder, load_vae, refuse_missing_gpu
from .records import (
    CannotWrite,
    held_out_sources,
    read_held_out,
    shard_of,
    whole_files,
    write_held_out,
)

PIECE = 16  # frames that pass the VAE at once
FPS = ClipGeometry.fps
PREPARE_AGAIN = "delete it and run `python -m loopy_model.prepare clips` again."
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS


@dataclass(frozen=True)
class EncodeSettings:
    vae: Path
    speech: Path
    size: int  # pixels of the pictures that the VAE sees
    device: str | None = None  # None: what is there
    shard: tuple[int, int] = (0, 1)  # this run's part and the number of parts
    again: bool = False  # other encoders than before may replace what is there

    def made_by(self) -> dict:
        vae, speech = Source.of(self.vae), Source.of(self.speech)
        return {"vae": asdict(vae), "speech": asdict(speech), "size": self.size}


def encode_clips(data: Path, settings: EncodeSettings) -> Counter:
    """Encodes what is not encoded yet; a clip that cannot be is listed and left out.

    Encoded clips that are no longer in `clips/` are removed, so that training sees what the report
    shows. Returns how many were encoded, already there, failed and removed. Raises ValueError with a
    sentence when there is nothing to encode, CannotWrite when the disk does not take it.
    """
    paths = _clip_paths(data)
    if not paths:
        raise ValueError(f"{data} has no clips; run `python -m loopy_model.prepare clips RAW {data}` first.")
    factor = config_of(settings.vae).vae_scale_factor
    if settings.size < 16 or settings.size % factor:
        raise ValueError(f"--size {settings.size}: the VAE needs a multiple of {factor}.")
    refuse_missing_gpu(settings.device)
    part, parts = settings.shard
    encoder = ClipEncoder(settings)
    if not settings.again:
        _refuse_other_encoders(data, encoder.made_by)
    test_sources = _test_sources(data, paths)
    counts, failed = Counter(), []
    for path in tqdm([path for path in paths if shard_of(path.stem, parts) == part], "encoding"):
        try:
            counts[encoder.encode(data, path, test_sources)] += 1
        except (OSError, CannotWrite):
            raise  # the disk, not the clip: reading gives BadClip
        except Exception as error:  # whatever is wrong with a clip costs that clip alone
            path_of(data, path.stem).unlink(missing_ok=True)  # made by other encoders
            counts["failed"] += 1
            failed.append((path.stem, str(error) or type(error).__name__))
    counts["removed"] = _remove_others(data)
    _write_failed(data / FOLDER / f"failed-{part + 1}-of-{parts}.csv", failed)
    return counts


def summary(data: Path, counts: Counter) -> str:
    """The run's report: what was done, what training will find, and what failed."""
    clips = [read_metadata(path)[0] for path in encoded_paths(data)]
    lines = [", ".join(f"{count} {what}" for what, count in counts.items() if count)]
    for split in ("train", "test"):
        own = [clip for clip in clips if clip.split == split]
        minutes, voiced = sum(clip.frames for clip in own) / FPS / 60, sum(clip.voiced for clip in own)
        lines.append(f"{split:5} {len(own)} clips, {minutes:.1f} minutes, {voiced} of them with sound")
    for path in sorted((data / FOLDER).glob("failed-*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            failed = list(csv.reader(file))[1:]
        lines += [f"not encoded: {name}: {reason}" for name, reason in failed[:5]]
        if len(failed) > 5:
            lines.append(f"and {len(failed) - 5} more, in {path}")
    return "\n".join(lines)


def size_of(vae: Path) -> int:
    """Pixels of a Loopy checkpoint's pictures; the paper's 512 for other VAEs."""
    return config_of(vae).image_size


def config_of(vae: Path) -> LoopyConfig:
    """That of a Loopy checkpoint; the paper's for other VAEs."""
    return read_header(vae).config if is_loopy(vae) else LOOPY


class ClipEncoder:
    """Both encoders, loaded once."""

    def __init__(self, settings: EncodeSettings) -> None:
        self.size = settings.size
        self.device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.vae = load_vae(settings.vae, self.device)
        self.hear = load_speech_encoder(settings.speech, self.device)
        self.made_by = settings.made_by()

    @torch.no_grad()
    def encode(self, data: Path, path: Path, test_sources: set[str]) -> str:
        """One clip -> "encoded", or "already there"."""
        clip, landmarks = read_clip(path, test_sources)
        if self._is_there(path_of(data, clip.name), clip):
            return "already there"
        frames, waveform, rate = _read(path.with_suffix(".mp4"))
        if not len(frames) == len(landmarks) == clip.frames:
            raise BadClip(
                f"its video has {len(frames)} frames, its landmarks {len(landmarks)}, its record "
                f"{clip.frames}; {PREPARE_AGAIN}"
            )
        speech = self._speech(waveform, rate, clip) if clip.voiced else None
        write_encoded(data, clip, self._latents(frames), landmarks, speech, self.made_by)
        return "encoded"

    def _is_there(self, path: Path, clip: EncodedClip) -> bool:
        try:
            known, made_by = read_metadata(path) if path.is_file() else (None, {})
        except BadClip:
            return False  # damaged: make it again
        return known == clip and not different(made_by, self.made_by)

    def _latents(self, frames: Tensor) -> Tensor:
        images = rearrange(frames, "f h w c -> f c h w")
        pieces = []
        for part in images.split(PIECE):
            part = nnf.interpolate(part.to(self.device), self.size, mode="bilinear", antialias=True)
            pieces.append(self.vae.encode(part * 2 - 1).cpu())
        return torch.cat(pieces)

    def _speech(self, waveform: Tensor | None, rate: int, clip: EncodedClip) -> Tensor:
        """(F, L, D); the sound is cut or padded to the length of the picture."""
        if waveform is None:
            raise BadClip(f"its record says that it has sound, its video has none; {PREPARE_AGAIN}")
        samples = clip.frames * SAMPLES_PER_FRAME
        voice = resample(waveform.mean(0), rate)[:samples]
        return hear(nnf.pad(voice, (0, samples - len(voice))), self.hear, FPS).features.cpu()


def resample(voice: Tensor, rate: int) -> Tensor:
    """A mono voice (samples,) of any rate -> 16 kHz."""
    return torch.from_numpy(librosa.resample(voice.numpy(), orig_sr=rate, target_sr=SAMPLE_RATE))


def read_clip(path: Path, test_sources: set[str]) -> tuple[EncodedClip, Tensor]:
    """What `prepare clips` wrote of a clip, and its landmarks (F, 68, 2)."""
    with safe_open(str(path), framework="pt") as file:
        record, landmarks = json.loads(file.metadata()["clip"]), file.get_tensor("landmarks")
    split = "test" if record["source"] in test_sources else "train"
    return EncodedClip(record["name"], record["frames"], split, record["voiced"]), landmarks


def _clip_paths(data: Path) -> list[Path]:
    """Landmarks and record of every clip that `prepare clips` has written so far, sorted."""
    return whole_files(data / "clips", ".safetensors")


def _test_sources(data: Path, paths: list[Path]) -> set[str]:
    """The raw videos for testing. One that chance did not choose is written down: a shard that begins
    later sees more videos, and would choose another."""
    records = list(_records(paths))
    sources = held_out_sources(records, read_held_out(data))
    for source in sources - {source for source, split, _ in records if split == "test"}:
        write_held_out(data, source)
    return sources


def _records(paths: list[Path]) -> Iterator[tuple[str, str, bool]]:
    """Source, split and whether there is sound, of every clip that can be read."""
    for path in paths:
        with suppress(SafetensorError, KeyError, ValueError), safe_open(str(path), framework="pt") as file:
            record = json.loads(file.metadata()["clip"])  # a damaged one is listed when its turn comes
            yield record["source"], record["split"], record["voiced"]


def _read(path: Path) -> tuple[Tensor, Tensor | None, int]:
    """Frames (F, H, W, 3) 0..1, waveform and its rate."""
    try:
        frames, _, waveform, rate = read_video(path)
    except (OSError, ValueError, IndexError) as error:  # PyAV's errors are of these kinds
        raise BadClip(f"{path} cannot be read; {PREPARE_AGAIN} ({error})") from error
    return frames, waveform, rate


def _refuse_other_encoders(data: Path, made_by: dict) -> None:
    """What took a night is not made again by a forgotten flag."""
    others = []
    for path in encoded_paths(data):
        with suppress(BadClip):
            before = read_metadata(path)[1]
            if different(before, made_by):
                others.append(before)
    if others:
        before, what = others[0], different(others[0], made_by)
        raise ValueError(
            f"{len(others)} clips in {data} were encoded with another {what} (VAE {Path(before['vae']['path']).name}, "
            f"speech encoder {Path(before['speech']['path']).name}, size {before['size']}); give the same, "
            "or --again to encode them anew."
        )


def _remove_others(data: Path) -> int:
    paths = encoded_paths(data)
    names = {path.stem for path in _clip_paths(data)}  # listed last: a clip comes before its encoding
    others = [path for path in paths if path.stem not in names]
    for path in others:
        path.unlink(missing_ok=True)
    return len(others)


def _write_failed(path: Path, rows: list[tuple[str, str]]) -> None:
    path.unlink(missing_ok=True)
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("clip", "reason"), *rows])
