"""From noise to picture, step by step: DDIM, and for few steps DPM-Solver++ and UniPC. Each clip has its own solver.

Symbols as in `diffusion`: x_t = signal x0 + sigma noise, with signal = sqrt(a_t) and sigma = sqrt(1 - a_t).
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from .diffusion import NoiseSchedule, signal_and_sigma


class Solver(Protocol):
    timesteps: list[int]

    def step(
        self, x: Tensor, prediction: Tensor, timestep: int, fresh: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Noisy latents and the net's prediction -> (latents one step on, x0 so far). Takes what noise it
        needs from `fresh`."""


class Ddim:
    """Song et al. 2020, eq. 12 and 16. `eta` 0 keeps the first noise throughout, as the paper's sampler
    does; with `eta` 1 a step forgets of it what DDPM would, and adds fresh noise instead."""

    def __init__(self, schedule: NoiseSchedule, steps: int, eta: float = 0.0) -> None:
        self.schedule, self.eta = schedule, eta
        self.timesteps = schedule.timesteps(steps)
        self.hop = schedule.config.train_steps // steps

    def step(
        self, x: Tensor, prediction: Tensor, timestep: int, fresh: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor]:
        x0, noise = self.schedule.split(x, prediction, timestep)
        now, then = self.schedule.alphas[timestep], self.schedule.alpha_of(timestep - self.hop)
        signal, sigma = (w.to(x) for w in signal_and_sigma(then))
        if not self.eta:
            return signal * x0 + sigma * noise, x0
        added = self.eta**2 * (1 - then) / (1 - now) * (1 - now / then)  # variance
        kept = (1 - then - added).clamp(min=0)  # it rounds to below 0 where nothing is kept
        return signal * x0 + kept.sqrt().to(x) * noise + added.sqrt().to(x) * next(fresh), x0


class DpmSolver:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): DDIM whose x0 is where the last two predictions
    point. The first step has only one, and the last arrives: both are DDIM's own."""

    def __init__(self, schedule: NoiseSchedule, steps: int) -> None:
        self.schedule, self.timesteps = schedule, schedule.timesteps(steps)
        self.after = dict(zip(self.timesteps, [*self.timesteps[1:], -1]))
        self.before: tuple[Tensor, Tensor] | None = None  # x0 and alpha-bar of the step before

    def step(
        self, x: Tensor, prediction: Tensor, timestep: int, fresh: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor]:
        x0, _ = self.schedule.split(x, prediction, timestep)
        return self.ahead(x, x0, timestep), x0

    def ahead(self, x: Tensor, x0: Tensor, timestep: int) -> Tensor:
        """The latents one step on."""
        now, then = self.schedule.alphas[timestep], self.schedule.alpha_of(self.after[timestep])
        aim = x0
        if self.before is not None and self.after[timestep] >= 0:
            x0_before, before = self.before
            # Half of the way ahead as a share of the way behind, in log signal-to-noise; 0 after pure noise.
            share = _log_snr(then).sub(_log_snr(now)) / (2 * (_log_snr(now) - _log_snr(before)))
            aim = x0 + share.to(x) * (x0 - x0_before)
        self.before = x0, now
        signal, sigma = (w.to(x) for w in signal_and_sigma(now))
        next_signal, next_sigma = (w.to(x) for w in signal_and_sigma(then))
        return next_signal * aim + next_sigma / sigma * (x - signal * aim)


class UniPc:
    """UniPC-2 with B(h) = e^h - 1 (Zhao et al. 2023, algorithms 5 and 6, predicting x0). Its predictor is
    DPM-Solver++(2M); what the net says where that arrived corrects the step that led there, without a
    further pass."""

    def __init__(self, schedule: NoiseSchedule, steps: int) -> None:
        self.schedule, self.predictor = schedule, DpmSolver(schedule, steps)
        self.timesteps = self.predictor.timesteps
        self.past: list[tuple[Tensor, Tensor, Tensor]] = []  # of the last two steps: x, x0, alpha-bar

    def step(
        self, x: Tensor, prediction: Tensor, timestep: int, fresh: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor]:
        x0, _ = self.schedule.split(x, prediction, timestep)
        alpha = self.schedule.alphas[timestep]
        x = self._corrected(x0, alpha) if self.past else x
        self.past = [*self.past[-1:], (x, x0, alpha)]
        return self.predictor.ahead(x, x0, timestep), x0

    def _corrected(self, x0_here: Tensor, here: Tensor) -> Tensor:
        """The last step once more, now that x0 is known where it ended."""
        x, x0, alpha = self.past[-1]
        h = _log_snr(here) - _log_snr(alpha)
        gain = -torch.expm1(-h)
        bend, share = 0.0, torch.tensor(0.5)  # of the first step, which has no x0 before it
        if len(self.past) == 2:
            _, x0_before, before = self.past[0]
            behind = (_log_snr(before) - _log_snr(alpha)) / h  # minus infinity after pure noise
            first = 1 / gain - 1 / h
            second = 1 / gain - 2 * first / h
            old = (first - second) / (1 - behind)
            bend, share = (old / behind).to(x) * (x0_before - x0), first - old
        aim = x0 + bend + share.to(x) * (x0_here - x0)
        signal, sigma = (w.to(x) for w in signal_and_sigma(here))
        sigma_before = signal_and_sigma(alpha)[1].to(x)
        return sigma / sigma_before * x + signal * gain.to(x) * aim


def _log_snr(alpha: Tensor) -> Tensor:
    """lambda of Lu et al.: log(signal / sigma)."""
    return (alpha / (1 - alpha)).log() / 2


SOLVERS = ("ddim", "dpm++ 2m", "unipc")


def make_solver(name: str, schedule: NoiseSchedule, steps: int, eta: float) -> Solver:
    """Raises ValueError for another name than those of `SOLVERS`."""
    if name == "ddim":
        return Ddim(schedule, steps, eta)
    if name == "dpm++ 2m":
        return DpmSolver(schedule, steps)
    if name == "unipc":
        return UniPc(schedule, steps)
    raise ValueError(f"there is no solver {name}; choose one of {', '.join(SOLVERS)}.")
