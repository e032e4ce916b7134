"""Noise schedule, training targets and what a prediction says; shared by training and sampling.

Symbols of DDPM/DDIM: x0 clean, eps noise, x_t = sqrt(a_t) x0 + sqrt(1-a_t) eps with a_t = alpha-bar.
"""

import torch
from torch import Tensor

from .config import DiffusionConfig

LARGEST_WEIGHT = 10.0


class NoiseSchedule:
    """alpha-bar in float64 and everything that is computed from it."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.alphas = _alphas_cumprod(config)  # (train_steps,)
        self.final_alpha = self.alphas.new_ones(()) if config.final_alpha_one else self.alphas[0]
        self._with_final = torch.cat([self.alphas, self.final_alpha[None]])  # index -1 is the picture

    def timesteps(self, steps: int) -> list[int]:
        """Timesteps from noise to picture (Lin et al. 2024, table 2, names the three spacings). The leading ones,
        diffusers' too, begin far below noise where many steps do not divide the schedule: 334 of them at 667."""
        total, spacing = self.config.train_steps, self.config.spacing
        if not 1 <= steps <= total:
            raise ValueError(f"steps is {steps}; choose 1 to {total}.")
        if spacing == "trailing":
            return [round(total - i * total / steps) - 1 for i in range(steps)]
        if spacing == "linspace":
            return torch.linspace(0, total - 1, steps, dtype=torch.float64).round().long().flip(0).tolist()
        leading = [i * (total // steps) + self.config.steps_offset for i in reversed(range(steps))]
        return [min(t, total - 1) for t in leading]

    def alpha_of(self, timestep: int) -> Tensor:
        """alpha-bar of a timestep; below 0 that of the picture itself."""
        return self.alphas[timestep] if timestep >= 0 else self.final_alpha

    def add_noise(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        signal, sigma = self.weights(timestep, x0)
        return signal * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What the net learns: the noise (paper eq. 1), the clean picture, or the velocity of
        Salimans & Ho 2022."""
        if self.config.prediction == "epsilon":
            return noise
        if self.config.prediction == "sample":
            return x0
        signal, sigma = self.weights(timestep, x0)
        return signal * noise - sigma * x0

    def loss_weight(self, timestep: Tensor) -> Tensor:
        """(B,) Of the squared error. The clean picture's is weighted as the velocity's, 1 / sigma^2, up
        to a limit: a thin net predicts the picture, which has few degrees of freedom, better than the
        noise in all of its latents (Li & He 2025)."""
        if self.config.prediction != "sample":
            return torch.ones_like(timestep, dtype=torch.float32)
        alpha = self.alphas.to(timestep.device)[timestep]
        return (1 / (1 - alpha)).clamp(max=LARGEST_WEIGHT).float()

    def split(self, x: Tensor, prediction: Tensor, timestep: int | Tensor) -> tuple[Tensor, Tensor]:
        """Noisy latents and the net's prediction -> (x0, eps). `timestep` is one for all, or (B,)."""
        if isinstance(timestep, int):
            signal, sigma = signal_and_sigma_of(self.alphas[timestep])
        else:
            signal, sigma = self.weights(timestep, x)
        if self.config.prediction == "epsilon":
            return (x - sigma * prediction) / signal, prediction
        if self.config.prediction == "sample":
            return prediction, (x - signal * prediction) / sigma
        return signal * x - sigma * prediction, signal * prediction + sigma * x

    def weights(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and sigma per sample, shaped to broadcast over (B, ...); timestep -1 is the picture itself."""
        alpha = self._with_final.to(timestep.device)[timestep].reshape(-1, *[1] * (like.ndim - 1))
        signal, sigma = signal_and_sigma(alpha)
        return signal.to(like), sigma.to(like)


def signal_and_sigma(alpha: Tensor) -> tuple[Tensor, Tensor]:
    return alpha.sqrt(), (1 - alpha).sqrt()


def signal_and_sigma_of(alpha: Tensor) -> tuple[float, float]:
    """The same of one alpha-bar as plain numbers: a tensor would have to be copied to the device, and every step
    would wait for it."""
    signal, sigma = signal_and_sigma(alpha)
    return signal.item(), sigma.item()


def _alphas_cumprod(config: DiffusionConfig) -> Tensor:
    start, end, total = config.beta_start, config.beta_end, config.train_steps
    if config.beta_schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, total, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(start, end, total, dtype=torch.float64)
    alphas = torch.cumprod(1 - betas, 0)
    return _zero_terminal_snr(alphas) if config.zero_terminal_snr else alphas


def _zero_terminal_snr(alphas: Tensor) -> Tensor:
    """Lin et al. 2024, algorithm 1: shift and scale sqrt(alpha-bar) so that the last one is 0."""
    root = alphas.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
