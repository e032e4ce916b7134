"""Temporal segment module (paper 3.2, eq. 2): 124 past frames abstracted to 20."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import SAMPLINGS, ClipGeometry, Sampling, check_choice

Ages = tuple[int, ...]  # the past frames that one motion frame stands for; age 0 is the newest


@dataclass(frozen=True)
class TemporalSegments:
    """Which past frames each abstracted motion frame stands for.

    Segment k covers stride * ratio**k frames and gives `stride` motion frames: by uniform sampling
    (the default, eq. 2), by the mean of equal parts of the segment, or by random frames of it.
    """

    clip: ClipGeometry
    sampling: Sampling | None = None  # None: the clip's own

    def __post_init__(self) -> None:
        if self.sampling is None:
            object.__setattr__(self, "sampling", self.clip.sampling)  # the dataclass is frozen
        check_choice("sampling", self.sampling, SAMPLINGS)

    def ages(self, generator: torch.Generator | None = None) -> list[Ages]:
        """One entry per motion frame, nearest first."""
        if self.sampling == "random":
            return self._random(generator)
        if self.sampling == "mean":
            steps = [self.clip.ratio ** (i // self.clip.stride) for i in range(self.clip.motion_frames)]
            return [tuple(range(a, a + step)) for a, step in zip(self.clip.motion_ages, steps)]
        return [(age,) for age in self.clip.motion_ages]

    def _random(self, generator: torch.Generator | None) -> list[Ages]:
        picked: list[Ages] = []
        start = 0
        for k in range(self.clip.segments):
            length = self.clip.stride * self.clip.ratio**k
            offsets = torch.randperm(length, generator=generator)[: self.clip.stride].sort().values
            picked += [(start + int(offset),) for offset in offsets]
            start += length
        return picked

    def most_kept(self, hop: int) -> int:
        """At most so many motion frames of earlier clips are asked for again by later ones, where a clip begins
        every `hop` frames. Of means the youngest frames are counted, which two that differ can share."""
        span = self.clip.motion_span
        ages = range(span) if self.sampling == "random" else self.clip.motion_ages
        met = {age + passed for age in ages for passed in range(0, span, hop)}
        asked = {age - to_come for age in ages for to_come in range(hop, span, hop)}
        return sum(age >= 0 for age in met & asked)

    def abstract(self, past: Tensor, ages: list[Ages]) -> tuple[Tensor, Tensor]:
        """Past latents (P, C, h, w), oldest first -> motion frames (M, C, h, w) and present (M,).

        A motion frame that stands for several frames is the mean of those that exist already;
        where none exists it is zero and not present.
        """
        present = torch.tensor([group[0] < len(past) for group in ages])
        latents = past.new_zeros(len(ages), *past.shape[1:])
        for m, group in enumerate(ages):
            index = [len(past) - 1 - age for age in group if age < len(past)]
            if index:
                latents[m] = past[index].mean(0)
        return latents, present
