"""Few-step distillation: one step of the student lands where several guided steps of the teacher do.

Progressive distillation (Salimans & Ho 2022, appendix D) from many steps to few at once, of a teacher with
guidance (Meng et al. 2023): the student needs neither the teacher's many steps nor its further branches.
Shapes as in `objective`.
"""

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from ..conditions import Conditions
from ..diffusion import NoiseSchedule
from ..guidance import Guidance
from ..model import Loopy
from .objective import Batch, Draws, Objective, encode_all, weighted_error


@dataclass(frozen=True)
class Distillation:
    """What the student is to do in one pass per step."""

    steps: int  # of DDIM, from noise to picture
    audio_ratio: float  # of the teacher's guidance
    ref_ratio: float
    substeps: int = 4  # of the teacher within each of the student's steps

    def __post_init__(self) -> None:
        for name in ("steps", "substeps"):
            if getattr(self, name) < 1:
                raise ValueError(f"distillation: {name} is {getattr(self, name)}; it must be at least 1.")

    @property
    def guidance(self) -> Guidance:
        return Guidance(self.audio_ratio, self.ref_ratio)

    @property
    def advice(self) -> str:
        """How the result is sampled, for its card."""
        return (
            f"Distilled: sample with ddim, {self.steps} steps, and 1 for both ratios; the guidance "
            f"({self.audio_ratio:g} and {self.ref_ratio:g}) is within."
        )


class DistillationObjective(Objective):
    """The loss of a student. Its timesteps are those of the few-step sampler."""

    def __init__(self, model: Loopy, teacher: Loopy, plan: Distillation) -> None:
        super().__init__(model)
        self.plan, self.schedule = plan, NoiseSchedule(model.config.of_student(plan.steps).diffusion)
        self._teacher = (teacher.requires_grad_(False).eval(),)  # in a tuple: neither trained nor saved
        self.starts = torch.tensor(sorted(self.schedule.timesteps(plan.steps)))

    def forward(self, batch: Batch, draws: Draws, spatial_only: bool) -> Tensor:
        """(B,); `spatial_only` is not for students."""
        draws = replace(draws, timestep=self.start_of(draws.timestep))
        noisy = self.noisy(batch.clip, draws)
        x0, noise = self.wanted(noisy, draws.timestep, self.teach(noisy, batch, draws))
        prediction = self.model.denoise(noisy, draws.timestep, encode_all(self.model, batch, draws))
        target = self.schedule.target(x0, noise, draws.timestep)
        return weighted_error(prediction, target, batch, self.loss_weight(draws.timestep))

    def start_of(self, timestep: Tensor) -> Tensor:
        """The timestep of the student's step that a uniform one belongs to."""
        index = timestep * self.plan.steps // self.schedule.config.train_steps
        return self.starts.to(timestep.device)[index]

    def end_of(self, start: Tensor) -> Tensor:
        """Where that step ends, as in `solvers.Ddim`; -1 is the picture."""
        starts = self.starts.to(start.device)
        return torch.cat([-torch.ones_like(starts[:1]), starts])[torch.searchsorted(starts, start)]

    def noisy(self, clip: Tensor, draws: Draws) -> Tensor:
        """Where the student's step begins, (B, F, C, h, w): its first on noise alone, as in sampling, also where
        the schedule leaves some signal at the end."""
        is_first = (draws.timestep == self.starts[-1].item()).to(clip.device)
        noisy = self.schedule.add_noise(clip, draws.noise, draws.timestep)
        return torch.where(rearrange(is_first, "b -> b 1 1 1 1"), draws.noise, noisy)

    def loss_weight(self, start: Tensor) -> Tensor:
        """(B,) Of the squared error: as much as it moves where the step ends, 1 in the mean of all steps. The
        clean picture's is weighted as in training."""
        if self.schedule.config.prediction == "sample":
            return self.schedule.loss_weight(start)
        return (self._reach(start).square() / self._reach(self.starts).square().mean()).float()

    def _reach(self, start: Tensor) -> Tensor:
        """(n,) How far an error of 1 in the prediction moves where the step ends, which is linear in it."""
        error = torch.ones(start.shape, dtype=torch.float64, device=start.device)
        x0, noise = self.schedule.split(torch.zeros_like(error), error, start)
        return self.schedule.add_noise(x0, noise, self.end_of(start))

    @torch.no_grad()
    def teach(self, noisy: Tensor, batch: Batch, draws: Draws) -> Tensor:
        """The teacher's guided DDIM steps from the noisy clip -> where they end, (B, F, C, h, w)."""
        (teacher,) = self._teacher
        conditions = encode_all(teacher, batch, draws)
        x, start, end = noisy, draws.timestep, self.end_of(draws.timestep)
        shares = torch.arange(self.plan.substeps + 1) / self.plan.substeps
        times = [(start + share * (end - start)).round().long() for share in shares.tolist()]
        for now, then in zip(times, times[1:]):
            prediction = guided(teacher, x, now, conditions, self.plan.guidance)
            x0, noise = self.schedule.split(x, prediction, now)
            x = self.schedule.add_noise(x0, noise, then)
        return x

    def wanted(self, noisy: Tensor, start: Tensor, landed: Tensor) -> tuple[Tensor, Tensor]:
        """The x0 and noise with which one DDIM step from `noisy` ends at `landed`: the two equations
        noisy = signal x0 + sigma noise, at both ends of the step, solved for both."""
        signal, sigma = self.schedule.weights(start, noisy)
        next_signal, next_sigma = self.schedule.weights(self.end_of(start), noisy)
        x0 = (sigma * landed - next_sigma * noisy) / (sigma * next_signal - next_sigma * signal)
        return x0, (noisy - signal * x0) / sigma


def guided(model: Loopy, x: Tensor, timestep: Tensor, conditions: Conditions, guidance: Guidance) -> Tensor:
    """The guided prediction (paper 3.4) of B clips at once, float32."""
    no_audio = conditions.without_audio()
    branches = zip(guidance.weights(), (conditions, no_audio, no_audio.without_reference()))
    return sum(weight * model.denoise(x, timestep, kept).float() for weight, kept in branches if weight)
