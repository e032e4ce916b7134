"""Guidance (paper 3.4): the branches of the denoising net, and how they become one prediction.

Shapes: F frames, C latent channels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .conditions import Conditions
from .config import LoopyConfig
from .model import BeforeCall, Loopy, no_matter

ONE_BATCH = 2**18  # values of a clip at the first level; the puppet has 37 thousand, SD1.5's size 16 million


class Guidance(NamedTuple):
    """e = audio_ratio (e_audio - e_ref) + ref_ratio (e_ref - e_base) + e_base, paper 3.4."""

    audio_ratio: float = 5.0
    ref_ratio: float = 3.0

    def weights(self) -> tuple[float, float, float]:
        """The same formula as weights of e_audio, e_ref and e_base."""
        return self.audio_ratio, self.ref_ratio - self.audio_ratio, 1 - self.ref_ratio


@dataclass(frozen=True)
class Sparing:
    """In which steps guidance, and the net's coarser levels, are worked out. The default is all, as in the
    paper; else it is approximate."""

    start: float = 0.0  # share of the steps before guidance begins ...
    end: float = 1.0  # ... and ends; outside, the first branch stands alone (Kynkäänniemi et al. 2024)
    every: int = 1  # steps; in between, what it added to the first branch is added again
    deep_every: int = 1  # steps in which the coarser levels of the net are computed; in between, they stay

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"guidance from {self.start:g} to {self.end:g} of the steps is not possible; choose "
                "0 <= start <= end <= 1."
            )
        if self.every < 1:
            raise ValueError(f"guidance in every {self.every}th step is not possible; choose at least 1.")
        if self.deep_every < 1:
            raise ValueError(
                f"all levels in every {self.deep_every}th step is not possible; choose at least 1."
            )


class Pass(NamedTuple):
    """One call of the denoising net, a branch in each row."""

    weights: tuple[float, ...]  # of the rows
    conditions: Conditions


def guidance_passes(conditions: Conditions, guidance: Guidance, in_one_batch: bool) -> list[Pass]:
    """Three branches that differ in what is dropped; one whose weight is zero is not run."""
    branches = _branches(guidance)
    passes = [branches] if in_one_batch else [[branch] for branch in branches]
    return [
        Pass(weights, conditions.for_rows(sum(audio), sum(reference)))
        for weights, audio, reference in (zip(*rows) for rows in passes)
    ]


def first_pass(conditions: Conditions, guidance: Guidance) -> Pass:
    """The first of the same branches alone: e_audio, if the voice counts at all."""
    _, audio, reference = _branches(guidance)[0]
    return Pass((1.0,), conditions.for_rows(audio, reference))


def _branches(guidance: Guidance) -> list[tuple[float, int, int]]:
    """Weight of e_audio, e_ref and e_base, and whether each has audio and reference."""
    keeps = ((1, 1), (0, 1), (0, 0))
    return [(weight, *keep) for weight, keep in zip(guidance.weights(), keeps) if weight]


def is_small(config: LoopyConfig, height: int, width: int) -> bool:
    """Whether all branches go through the net at once: a small net spends most of a pass outside of
    arithmetic, a large one would only need more memory."""
    return config.clip.frames * height * width * config.unet.channels[0] <= ONE_BATCH


def weighted_sum(branches: list[tuple[float, Tensor]]) -> Tensor:
    """The guided prediction (1, F, C, h, w)."""
    return sum(weight * prediction for weight, prediction in branches)[None]  # the host's numbers: no copy


class Predictor:
    """The guided prediction of one clip, step after step."""

    def __init__(
        self,
        model: Loopy,
        conditions: Conditions,
        guidance: Guidance,
        in_one_batch: bool,
        sparing: Sparing = Sparing(),
        dtype: torch.dtype = torch.float32,
        before_call: BeforeCall = no_matter,
    ) -> None:
        self.model, self.sparing, self.dtype, self.before_call = model, sparing, dtype, before_call
        self.first = [first_pass(conditions, guidance)]
        self.all = guidance_passes(conditions, guidance, in_one_batch)
        self.added: Tensor | None = None  # by guidance to the first branch, when it was last worked out
        self.uses = 0  # of `added` that are left
        self.step = 0
        # By number of the pass: the step in which they were made, and the deep features (rows F, C, h, w).
        self.deep: dict[int, tuple[int, Tensor]] = {}

    def __call__(self, x: Tensor, timestep: int, progress: float) -> Tensor:
        """`x` (1, F, C, h, w) -> the same shape; `progress` is the share of the steps that are done."""
        self.step += 1
        if not self.sparing.start <= progress < self.sparing.end:
            return weighted_sum(self._branches(x, timestep, self.first))
        if self.uses:
            self.uses -= 1
            return weighted_sum(self._branches(x, timestep, self.first)) + self.added
        branches = self._branches(x, timestep, self.all)
        guided, self.uses = weighted_sum(branches), self.sparing.every - 1
        if self.uses:
            self.added = guided - branches[0][1]
        return guided

    def _branches(self, x: Tensor, timestep: int, passes: list[Pass]) -> list[tuple[float, Tensor]]:
        """Weight and prediction (F, C, h, w) of every branch for `x`; the nets compute in `dtype`."""
        found = []
        for number, (weights, conditions) in enumerate(passes):
            self.before_call("denoise")
            rows = x.to(self.dtype).expand(len(weights), -1, -1, -1, -1)
            t = torch.full((len(weights),), timestep, device=x.device)
            found += zip(weights, self._prediction(number, rows, t, conditions).to(x))
        return found

    def _prediction(self, number: int, rows: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Of one pass; its deep features serve as many steps as they may, those of a batch also its first branch
        alone."""
        if self.sparing.deep_every == 1:
            return self.model.denoise(rows, t, conditions)
        made, deep = self.deep.get(number, (self.step, rows[:0]))
        pictures = rows.shape[0] * rows.shape[1]
        if len(deep) >= pictures and self.step - made < self.sparing.deep_every:
            return self.model.denoise_anew(rows, t, conditions, deep[:pictures])[0]
        prediction, deep = self.model.denoise_anew(rows, t, conditions, None)
        self.deep[number] = self.step, deep
        return prediction
