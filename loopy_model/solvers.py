"""From noise to picture, step by step: DDIM, and for few steps DPM-Solver++ and UniPC. Each clip has its own solver.

Symbols as in `diffusion`: x_t = signal x0 + sigma noise, with signal = sqrt(a_t) and sigma = sqrt(1 - a_t).
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from .diffusion import NoiseSchedule, signal_and_sigma_of


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
        self.after = _after(self.timesteps)

    def step(
        self, x: Tensor, prediction: Tensor, timestep: int, fresh: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor]:
        x0, noise = self.schedule.split(x, prediction, timestep)
        now, then = self.schedule.alphas[timestep], self.schedule.alpha_of(self.after[timestep])
        signal, sigma = signal_and_sigma_of(then)
        if not self.eta:
            return signal * x0 + sigma * noise, x0
        added = self.eta**2 * (1 - then) / (1 - now) * (1 - now / then)  # variance
        kept = (1 - then - added).clamp(min=0)  # it rounds to below 0 where nothing is kept
        return signal * x0 + kept.sqrt().item() * noise + added.sqrt().item() * next(fresh), x0


class DpmSolver:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): DDIM whose x0 is where the last two predictions
    point. The first step has only one, and the last arrives: both are DDIM's own."""

    def __init__(self, schedule: NoiseSchedule, steps: int) -> None:
        self.schedule, self.timesteps = schedule, schedule.timesteps(steps)
        if len(set(self.timesteps)) < steps:  # the leading ones, of as many steps as there are timesteps
            raise ValueError(
                f"steps is {steps}, of which two are the same; choose fewer, or the solver ddim."
            )
        self.after = _after(self.timesteps)
        self.before: tuple[Tensor, Tensor] | None = None  # x0 and alpha-bar of the step before

    def step(
        self, x: Tensor, prediction: Tensor, timestep: int, fresh: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor]:
        x0, _ = self.schedule.split(x, prediction, timestep)
        return self.ahead(x, x0, timestep), x0

    def ahead(self, x: Tensor, x0: Tensor, timestep: int) -> Tensor:
        """The latents one step on; remembers x0 for the next step."""
        now, then = self.schedule.alphas[timestep], self.schedule.alpha_of(self.after[timestep])
        aim = x0
        if self.before is not None and self.after[timestep] >= 0:
            x0_before, before = self.before
            # Half of the way ahead as a share of the way behind, in log signal-to-noise; 0 after pure noise.
            share = _log_snr(then).sub(_log_snr(now)) / (2 * (_log_snr(now) - _log_snr(before)))
            aim = x0 + share.item() * (x0 - x0_before)
        self.before = x0, now
        (signal, sigma), (next_signal, next_sigma) = signal_and_sigma_of(now), signal_and_sigma_of(then)
        return next_signal * aim + next_sigma / sigma * (x - signal * aim)


class UniPc:
    """UniPC-2, predicting x0, with B_2 (Zhao et al. 2023), here B(h) = 1 - e^-h. Its predictor is
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
        b = -torch.expm1(-h)  # B(h)
        rho_1, rho_2 = torch.tensor(0.0), torch.tensor(0.5)  # the first step knows no x0 before it: order 1
        older = torch.zeros_like(x)  # D_1 / r_1
        if len(self.past) == 2:
            _, x0_before, before = self.past[0]
            r_1 = (_log_snr(before) - _log_snr(alpha)) / h  # minus infinity after pure noise
            # rho_1 + rho_2 = g_1 and r_1 rho_1 + rho_2 = g_2, where g_k = k! h phi_(k+1)(-h) / B(h)
            g_1 = 1 / b - 1 / h
            g_2 = 1 / b - 2 * g_1 / h
            rho_1 = (g_1 - g_2) / (1 - r_1)
            rho_2, older = g_1 - rho_1, (1 / r_1).item() * (x0_before - x0)
        aim = x0 + rho_1.item() * older + rho_2.item() * (x0_here - x0)
        (_, sigma_before), (signal, sigma) = signal_and_sigma_of(alpha), signal_and_sigma_of(here)
        return sigma / sigma_before * x + signal * b.item() * aim


def _after(timesteps: list[int]) -> dict[int, int]:
    """Where the step from each timestep ends; -1 is the picture."""
    return dict(zip(timesteps, [*timesteps[1:], -1]))


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
