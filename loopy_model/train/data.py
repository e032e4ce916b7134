"""Encoded clips on disk -> training samples.

Sample i of step s is a function of (seed, stage, s, i) alone. So the number of data workers, of
processes and of pieces that a batch is cut into changes nothing, and a resumed run reads what an
uninterrupted one would have read.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..config import LoopyConfig
from ..motion import Ages, TemporalSegments
from ..movement import EYES_AND_MOUTH, exp, glo, log_variance
from ..prepare.encoded import (
    BadClip,
    EncodedClip,
    different,
    encoded_paths,
    open_encoded,
    path_of,
    read_metadata,
)
from .objective import Batch, Draws, draw
from .stages import Stage

Values = TypeVar("Values", Batch, Draws)

# First words of the seeds: numpy's SeedSequence takes (1, 2) and (1, 2, 0) for the same.
WINDOWS, DRAWS, NOISE, MOTION, PAST_NOISE = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Window:
    """What one sample shows: `frames` from `start` on, and another frame as the portrait."""

    clip: EncodedClip
    start: int
    frames: int
    portrait: int

    def __str__(self) -> str:
        return f"{self.clip.name} (frames {self.start} to {self.start + self.frames - 1})"


class PreparedClips:
    """The encoded clips of one split, "train" or "test", and the encoders that made both splits."""

    def __init__(self, data: Path, split: str, config: LoopyConfig) -> None:
        self.data, self.split, self.config = data, split, config
        self.segments = TemporalSegments(config.clip)
        paths = encoded_paths(data)
        if not paths:
            missing = "has no encoded clips" if data.is_dir() else "does not exist"
            raise BadClip(f"{data} {missing}; `python -m loopy_model.prepare encode` makes such a folder.")
        first, self.encoders = read_metadata(paths[0])
        self.clips: list[EncodedClip] = []
        for path in tqdm(paths, f"{split} clips", disable=len(paths) < 2000):
            clip, encoders = read_metadata(path)
            if what := different(self.encoders, encoders):
                raise BadClip(
                    f"{data} has clips of more than one {what} ({first.name} and {clip.name}); "
                    "encode them all alike with `python -m loopy_model.prepare encode --again`."
                )
            if clip.split == split:
                self.clips.append(clip)

    def fingerprint(self) -> str:
        """Changes when a clip comes, goes or changes its length: then the draws change too."""
        names = "\n".join(f"{clip.name} {clip.frames} {clip.voiced}" for clip in self.clips)
        return hashlib.sha256(names.encode()).hexdigest()

    def summary(self) -> dict[str, str | int | float]:
        """Facts for the plan and the report."""
        frames = sum(clip.frames for clip in self.clips)
        return {
            "folder": str(self.data),
            "split": self.split,
            "clips": len(self.clips),
            "minutes": round(frames / self.config.clip.fps / 60, 1),
            "silent": sum(not clip.voiced for clip in self.clips),
        }

    def refuse_without_clips_for(self, stage: Stage) -> None:
        self.pool(stage)

    def pool(self, stage: Stage) -> "Pool":
        """The clips that can serve a stage. Raises BadClip when there are none."""
        frames = 1 if stage.spatial_only else self.config.clip.frames
        usable = [c for c in self.clips if c.frames >= frames and (c.voiced or stage.spatial_only)]
        if not usable:
            kind = "clip" if stage.spatial_only else f"clip with sound and {frames} frames"
            raise BadClip(
                f"{self.data} has no {self.split} {kind} for stage {stage.name}; prepare more videos"
                + (
                    ", or choose test videos with `prepare clips --test NAME`."
                    if self.split == "test"
                    else "."
                )
            )
        return Pool(usable, frames)

    def read(self, window: Window, generator: torch.Generator | None = None) -> Batch:
        """One sample, a `Batch` whose tensors lack the first dimension. The generator decides which
        motion frames there are where the model's sampling is random."""
        path = path_of(self.data, window.clip.name)
        try:
            with open_encoded(path) as file:
                sample = self._sample(file, window, self.segments.ages(generator))
        except (SafetensorError, IndexError, OSError) as error:
            raise BadClip(
                f"{path} cannot be read ({error}); delete it and run `python -m loopy_model.prepare encode` again."
            ) from error
        for field, tensor in sample.given().items():
            if not torch.isfinite(tensor).all():
                raise BadClip(f"{window} in {path} holds NaN or infinite values ({field}); encode it again.")
        return sample

    def face_weight(self, clip: EncodedClip, weight: float) -> Tensor:
        """(h, w) `weight` in the latent cells over which eyes or mouth ever pass, 1 elsewhere. The same
        all through a video: what depended on a clip's own frames would shift what the net expects."""
        with open_encoded(path_of(self.data, clip.name)) as file:
            points = file.get_tensor("landmarks")[:, EYES_AND_MOUTH].reshape(-1, 2)
        side = self.config.latent_size
        column, row = (points * side).long().clamp(0, side - 1).unbind(-1)
        weights = torch.ones(side, side)
        weights[row, column] = weight
        return weights

    def _sample(self, file, window: Window, ages: list[Ages]) -> Batch:  # noqa: ANN001
        latents, start, frames = file.get_slice("latents"), window.start, window.frames
        self._refuse_other_latents(latents.get_shape(), window.clip)
        scale = self.config.latent_scale
        still = Batch(
            clip=latents[start : start + frames].float() * scale,
            reference=latents[window.portrait : window.portrait + 1][0].float() * scale,
        )
        if frames == 1:
            return still
        motion, present = self._motion_frames(latents, start, ages)
        landmarks = file.get_slice("landmarks")[start : start + frames]
        return replace(
            still,
            motion=motion * scale,
            present=present,
            windows=self._windows(file.get_slice("speech"), window),
            movement=log_variance(glo(landmarks)),
            expression=log_variance(exp(landmarks)),
        )

    def _motion_frames(self, latents, start: int, ages: list[Ages]) -> tuple[Tensor, Tensor]:  # noqa: ANN001
        """Those of the clip that begins at `start`, as at inference: (M, C, h, w) and present (M,)."""
        if self.segments.sampling == "uniform":  # 20 frames of 124: reads no more than these
            past = [start - 1 - age for (age,) in ages]
            zero = torch.zeros(latents.get_shape()[1:])
            frames = [latents[t : t + 1][0].float() if t >= 0 else zero for t in past]
            return torch.stack(frames), torch.tensor(past) >= 0
        past = latents[max(start - self.config.clip.motion_span, 0) : start]
        return self.segments.abstract(past.float(), ages)

    def _refuse_other_latents(self, shape: list[int], clip: EncodedClip) -> None:
        channels, size = self.config.unet.latent_channels, self.config.image_size
        factor = self.config.vae_scale_factor
        if shape[1] != channels:
            raise BadClip(
                f"{clip.name} has latents of {shape[1]} channels, the model {channels}; "
                "encode the clips with the model's own VAE."
            )
        if shape[2:] != [self.config.latent_size] * 2:
            raise BadClip(
                f"{clip.name} was encoded at {factor * shape[3]}x{factor * shape[2]} pixels, the model's pictures have "
                f"{size}; encode the clips again with --size {size}."
            )

    def _windows(self, speech, window: Window) -> Tensor:  # noqa: ANN001
        """(F, W, L, D), clamped at the ends of the video as at inference."""
        _, layers, width = speech.get_shape()
        audio = self.config.audio
        if layers < audio.layers or width != audio.width:
            raise BadClip(
                f"{window.clip.name} has speech of {layers} layers of width {width}, the model reads {audio.layers} "
                f"of width {audio.width}; encode the clips with the model's own speech encoder."
            )
        context, last = self.config.clip.audio_context, window.clip.frames - 1
        first, end = window.start - context, window.start + window.frames + context
        heard = speech[max(first, 0) : min(end, last + 1)].float()[:, -audio.layers :]
        frames = torch.arange(window.start, window.start + window.frames)[:, None]
        index = (frames + torch.arange(-context, context + 1)).clamp(0, last)
        return heard[index - max(first, 0)]


@dataclass(frozen=True)
class Pool:
    """Every place where a sample of `frames` frames can start, all equally likely."""

    clips: list[EncodedClip]
    frames: int

    def draw(self, count: int, rng: np.random.Generator) -> list[Window]:
        """`count` windows; `rng` alone decides which."""
        place, portrait = rng.integers(self._edges[-1], size=count), rng.random(count)
        index = np.searchsorted(self._edges[1:], place, side="right")
        start = place - self._edges[index]
        return [
            Window(self.clips[i], int(s), self.frames, int(p * self.clips[i].frames))
            for i, s, p in zip(index, start, portrait)
        ]

    @cached_property
    def _edges(self) -> np.ndarray:
        """(clips + 1,) Where the places of each clip begin, and where the last one's end."""
        return np.cumsum([0, *(clip.frames - self.frames + 1 for clip in self.clips)])


class Place(NamedTuple):
    """Sample `index` of the whole batch of a step."""

    step: int
    index: int


class Samples(Dataset):
    """Sample and draws of any place of a stage, for any number of data workers."""

    def __init__(
        self, clips: PreparedClips, stage: Stage, seed: tuple[int, int], batch: int | None = None
    ) -> None:
        self.clips, self.stage, self.seed = clips, stage, seed
        self.pool, self.batch = clips.pool(stage), batch or stage.batch

    def windows(self, step: int) -> list[Window]:
        """What the whole batch of a step shows."""
        return self.pool.draw(self.batch, np.random.default_rng((WINDOWS, *self.seed, step)))

    def draws(self, step: int) -> Draws:
        """The whole batch's draws but the noise."""
        generator = _generator(DRAWS, *self.seed, step)
        total, stage = self.clips.config.diffusion.train_steps, self.stage
        return draw(self.batch, total, stage.dropping, generator, stage.timestep_power)

    def __getitem__(self, place: Place) -> tuple[Batch, Draws] | BadClip:
        # An exception would reach the main process wrapped in the worker's traceback.
        try:
            window = self.windows(place.step)[place.index]
            sample = self.clips.read(window, _generator(MOTION, *self.seed, *place))
            if self.stage.face_weight != 1:
                sample = replace(sample, weight=self.clips.face_weight(window.clip, self.stage.face_weight))
            if self.stage.motion_noise and sample.motion is not None:
                generator = _generator(PAST_NOISE, *self.seed, *place)
                sample = replace(sample, motion=disturbed(sample, self.stage.motion_noise, generator))
        except BadClip as error:
            return error
        own = self.draws(place.step).changed(lambda tensor: tensor[place.index])
        noise = torch.randn(sample.clip.shape, generator=_generator(NOISE, *self.seed, *place))
        return sample, replace(own, noise=noise)


def disturbed(sample: Batch, most: float, generator: torch.Generator) -> Tensor:
    """The sample's motion frames (M, C, h, w) with noise of 0 to `most` standard deviations, all by the same.
    At inference they are the model's own frames, not quite clean: a model that takes over what is wrong with
    them makes it worse from clip to clip."""
    noise = torch.randn(sample.motion.shape, generator=generator)
    amount = most * torch.rand((), generator=generator)
    return sample.motion + amount * noise * rearrange(sample.present, "m -> m 1 1 1")


@dataclass(frozen=True)
class Schedule:
    """Which samples this process reads in which order: `steps` x `pieces` of a batch each."""

    steps: range
    batch: int
    pieces: int = 1  # pieces that one process goes through in turn (gradient accumulation)
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.batch % (self.pieces * self.processes):
            raise ValueError(
                f"a batch of {self.batch} cannot be cut evenly for {self.processes} process(es) and "
                f"--accumulate {self.pieces}; change one of the three."
            )

    @property
    def piece(self) -> int:
        """Samples that pass through the net at once."""
        return self.batch // (self.pieces * self.processes)

    def __len__(self) -> int:
        return len(self.steps) * self.pieces

    def __iter__(self) -> Iterator[list[Place]]:
        for step in self.steps:
            for piece in range(self.pieces):
                first = (piece * self.processes + self.rank) * self.piece
                yield [Place(step, first + i) for i in range(self.piece)]


def load(samples: Samples, schedule: Schedule, workers: int, device: torch.device) -> DataLoader:
    """Batches in the order of the schedule."""
    return DataLoader(
        samples,
        batch_sampler=schedule,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )


def collate(samples: list[tuple[Batch, Draws] | BadClip]) -> tuple[Batch, Draws] | BadClip:
    bad = [sample for sample in samples if isinstance(sample, BadClip)]
    return bad[0] if bad else tuple(_stack(values) for values in zip(*samples))


def _stack(values: list[Values]) -> Values:
    stacked = {name: torch.stack([getattr(v, name) for v in values]) for name in values[0].given()}
    return replace(values[0], **stacked)


def _generator(*seed: int) -> torch.Generator:
    words = np.random.SeedSequence(seed).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))
