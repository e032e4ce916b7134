"""Preview clips: a held-out portrait and voice through the model in training, and its lip sync."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..conditions import Speech
from ..guidance import Guidance
from ..model import Loopy
from ..motion import TemporalSegments
from ..movement import mouth_opening
from ..prepare.encoded import open_encoded, path_of
from ..prepare.encoders import VAE
from ..sampling import Request, generate
from ..video import read_audio, write_video
from .data import PreparedClips

MouthReader = Callable[[Tensor], Tensor]  # frames (F, H, W, 3) 0..1 -> mouth opening (F,), NaN where no face

ROW = 8  # frames of a video that the contact sheet shows
SHOWN = 160  # pixels


class Preview:
    """Generates the beginning of a few held-out clips beside the truth."""

    def __init__(
        self,
        test: PreparedClips,
        vae: VAE | None,  # None in the processes that never show anything
        reader: MouthReader | None,
        clips: int = 2,
        frames: int = 48,
        steps: int = 25,
        guidance: Guidance = Guidance(3.0, 1.5),
        device: str = "cpu",  # where the VAE is
    ) -> None:
        self.test, self.vae, self.reader, self.device = test, vae, reader, device
        self.frames, self.steps, self.guidance = frames, steps, guidance
        self.clips = [clip for clip in test.clips if clip.voiced][:clips]

    @torch.no_grad()
    def __call__(self, model: Loopy, folder: Path, name: str) -> dict[str, float]:
        """Writes `name`-0.mp4, ... and `name`.jpg; returns the mean lip sync, if it can be read."""
        folder.mkdir(parents=True, exist_ok=True)
        rows, correlations = [], []
        for i, clip in enumerate(self.clips):
            with open_encoded(path_of(self.test.data, clip.name)) as file:
                latents, speech = file.get_slice("latents")[: self.frames], file.get_slice("speech")[:]
            truth = self._decode(latents.float())
            made = self._decode(self._generate(model, latents[:1].float(), speech.float()[: self.frames]))
            made = made[: len(truth)]
            write_video(
                folder / f"{name}-{i}.mp4", made, Fraction(self.test.config.clip.fps), *self._sound(clip.name)
            )
            rows += [_row(made), _row(truth)]
            if self.reader is not None:
                correlations.append(correlation(self.reader(made), self.reader(truth)))
        _write_sheet(folder / f"{name}.jpg", rows)
        known = [value for value in correlations if value is not None]
        return {"lip_sync": sum(known) / len(known)} if known else {}

    def _generate(self, model: Loopy, portrait: Tensor, speech: Tensor) -> Tensor:
        clip = self.test.config.clip
        device = next(model.parameters()).device
        request = Request(
            portrait=portrait.to(device),
            speech=Speech(speech.to(device), clip.fps),
            segments=TemporalSegments(clip),
            seed=0,
            steps=self.steps,
            guidance=self.guidance,
        )
        finished = [step.finished for step in generate(model, request) if step.finished is not None]
        return torch.cat(finished).cpu()

    def _decode(self, latents: Tensor) -> Tensor:
        """VAE latents (F, C, h, w) -> frames (F, H, W, 3), 0..1; in float32, whatever the nets train in."""
        with torch.autocast(torch.device(self.device).type, enabled=False):
            parts = [self.vae.decode(part.to(self.device)).cpu() for part in latents.float().split(16)]
        pictures = torch.cat(parts)
        return rearrange(pictures / 2 + 0.5, "f c h w -> f h w c").clamp(0, 1)

    def _sound(self, name: str) -> tuple[Tensor | None, int]:
        video = self.test.data / "clips" / f"{name}.mp4"
        return read_audio(video) if video.is_file() else (None, 16_000)


def correlation(one: Tensor, other: Tensor) -> float | None:
    """Pearson's r over the frames where both are known; None for fewer than half of them or a still mouth."""
    known = torch.isfinite(one) & torch.isfinite(other)
    if known.sum() * 2 < len(known) or min(one[known].std(), other[known].std()) < 1e-6:
        return None
    return torch.corrcoef(torch.stack([one[known], other[known]]))[0, 1].item()


def mouth_reader(spec: str) -> MouthReader | None:
    """ "none", "meter" (the drawn faces' own), or a landmark detector of `prepare clips` ("facemesh", ...)."""
    if spec == "none":
        return None
    if spec == "meter":
        from ..evaluate.held_out import load_meter

        meter = load_meter()
        return lambda frames: meter(rearrange(frames, "f h w c -> f c h w"))[:, 0]
    if spec == "points":
        raise ValueError(
            "points are of the videos they came with; read lips with meter, facemesh or dwpose:..."
        )
    from ..prepare.landmarks import detector_for

    detector = detector_for(spec, Path())

    def read(frames: Tensor) -> Tensor:
        pictures = (frames * 255).round().byte().numpy()
        return torch.stack([_opening(detector(picture, i)) for i, picture in enumerate(pictures)])

    return read


def _opening(faces: list) -> Tensor:
    return mouth_opening(torch.from_numpy(faces[0].points)) if faces else torch.tensor(float("nan"))


def _row(frames: Tensor) -> np.ndarray:
    index = torch.linspace(0, len(frames) - 1, ROW).round().long()
    return (rearrange(frames[index], "f h w c -> h (f w) c") * 255).round().byte().numpy()


def _write_sheet(path: Path, rows: list[np.ndarray]) -> None:
    """Per clip a row of what was generated and a row of the truth, at least SHOWN pixels a frame."""
    from PIL import Image

    sheet = Image.fromarray(np.concatenate(rows))
    scale = max(1, SHOWN // len(rows[0]))
    sheet.resize((scale * sheet.width, scale * sheet.height), Image.Resampling.BICUBIC).save(path, quality=92)
