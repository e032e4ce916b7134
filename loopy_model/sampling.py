"""Clip-after-clip generation (paper 3.4).

Latents here are VAE latents as they travel between nodes, unscaled; the model's own scale is
applied just before they enter it. Shapes: F frames, M motion frames, C latent channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .conditions import Conditions, Speech
from .config import LoopyConfig
from .diffusion import NoiseSchedule
from .guidance import Guidance, Predictor, Sparing, is_small
from .model import BeforeCall, Loopy, motion_features, no_matter
from .motion import Ages, TemporalSegments
from .solvers import make_solver


class Step(NamedTuple):
    """One finished denoising step."""

    index: int  # counts the steps of all clips, from 1
    total: int
    x0: Tensor  # (F, C, h, w): the clip as the model sees it now, VAE latents
    finished: Tensor | None  # (F', C, h, w) VAE latents, with the clip's last step; F' <= F


@dataclass(frozen=True)
class SamplingOptions:
    """How a clip gets from noise to picture. The defaults are the paper's; all else trades something."""

    solver: str = "ddim"  # one of `solvers.SOLVERS`
    eta: float = 0.0  # of ddim: share of DDPM's fresh noise in every step
    sparing: Sparing = Sparing()

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta:g}; choose 0 to 1.")


@dataclass(frozen=True)
class Request:
    """What to generate."""

    portrait: Tensor  # (1, C, h, w) VAE latents
    speech: Speech
    segments: TemporalSegments
    seed: int = 0
    steps: int = 25
    guidance: Guidance = Guidance()
    options: SamplingOptions = SamplingOptions()
    start: int = 0  # first frame of the speech to generate
    frames: int | None = None  # how many; None = to the end of the speech
    past: Tensor | None = None  # (P, C, h, w) VAE latents of the frames before `start`
    motion_latents: Tensor | None = None  # (speech frames, T); None = made from the speech
    dtype: torch.dtype = torch.float32  # what the nets compute in; the latents stay float32

    @property
    def stop(self) -> int:
        return len(self.speech) if self.frames is None else min(self.start + self.frames, len(self.speech))


def refuse_unlike_distilled(
    config: LoopyConfig, steps: int, guidance: Guidance, options: SamplingOptions
) -> None:
    """Raises ValueError where a student would be sampled in another way than it was distilled for."""
    own = config.diffusion.student_steps
    if own and (steps, guidance, options) != (own, Guidance(1.0, 1.0), SamplingOptions()):
        raise ValueError(
            f"the model was distilled for {own} steps without guidance; set steps to {own}, both ratios to 1, "
            "and leave the sampling options as they come."
        )


def generate(model: Loopy, request: Request, before_call: BeforeCall = no_matter) -> Iterator[Step]:
    """Clip after clip, in order, each frame once; yields after every step.

    `before_call` runs before each pass through a net, and may raise to cancel. The noise of a frame
    depends on the seed and the frame's number alone, so a run that is resumed at a clip's border
    from its own latents (`past`, `start`) continues exactly.
    """
    refuse_unlike_distilled(model.config, request.steps, request.guidance, request.options)
    memory, scale = MotionMemory(model, request, before_call), model.config.latent_scale
    reference = [site.normed for site in memory.read(request.portrait)]
    starts = range(request.start, request.stop, model.config.clip.frames)
    total = len(starts) * request.steps
    for number, start in enumerate(starts):
        steps = _one_clip(model, request, reference, memory, start, before_call)
        for i, (x, x0) in enumerate(steps, 1):
            finished = x[0, : request.stop - start] / scale if i == request.steps else None
            if finished is not None:
                memory.remember(finished)
            yield Step(number * request.steps + i, total, x0[0] / scale, finished)


def _one_clip(
    model: Loopy,
    request: Request,
    reference: list[Tensor],
    memory: "MotionMemory",
    start: int,
    before_call: BeforeCall,
) -> Iterator[tuple[Tensor, Tensor]]:
    """After every step the noisy latents and x0, (1, F, C, h, w). What a clip keeps for its steps, the keys and
    values above all, is gone with this function before the next clip is read."""
    motion = memory.recall(start)
    before_call("denoise")
    conditions = _conditions(model, request, reference, motion, start)
    del motion  # as large as half of the keys and values made of it
    options, small = request.options, is_small(model.config, *request.portrait.shape[-2:])
    predict = Predictor(
        model, conditions, request.guidance, small, options.sparing, request.dtype, before_call
    )
    schedule, noise = (
        NoiseSchedule(model.config.diffusion),
        frame_noise(request, start, model.config.clip.frames),
    )
    solver, x = make_solver(options.solver, schedule, request.steps, options.eta), next(noise)
    for i, timestep in enumerate(solver.timesteps):
        x, x0 = solver.step(x, predict(x, timestep, i / request.steps), timestep, noise)
        yield x, x0


def frame_noise(request: Request, start: int, frames: int) -> Iterator[Tensor]:
    """(1, F, C, h, w), again and again: each frame has its own generator, on the CPU, and so the same
    noise on every machine, in whatever clip it is."""
    shape = request.portrait.shape[1:]
    generators = [torch.Generator().manual_seed(_mix(request.seed, start + i)) for i in range(frames)]
    while True:
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        yield noise.to(request.portrait)[None]


def _mix(seed: int, frame: int) -> int:
    """Every bit of both reaches the low 32, which are all that torch's CPU generator looks at."""
    return _splitmix(_splitmix(seed) + frame)


def _splitmix(z: int) -> int:
    """One step of splitmix64 (Steele et al. 2014)."""
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def _conditions(
    model: Loopy, request: Request, reference: list[Tensor], motion: list[Tensor] | None, start: int
) -> Conditions:
    clip = model.config.clip
    windows = request.speech.windows(start, clip.frames, clip.audio_context, model.config.audio.layers)
    windows = windows.to(request.portrait.device, request.dtype)
    if request.motion_latents is None:
        latents = model.motion_latents_from_audio(windows)
    else:
        index = torch.arange(start, start + clip.frames).clamp(max=len(request.motion_latents) - 1)
        latents = request.motion_latents[index].to(windows)[None]
    return model.encode_conditions(reference, motion, windows, latents)


class MotionMemory:
    """The frames so far and the reference-net features of those that later clips will ask for."""

    def __init__(self, model: Loopy, request: Request, before_call: BeforeCall) -> None:
        self.model, self.request, self.before_call = model, request, before_call
        portrait, span = request.portrait, request.segments.clip.motion_span
        # A copy: a view would keep the whole past in memory.
        self.past = portrait[:0] if request.past is None else request.past[-span:].to(portrait, copy=True)
        self.features: dict[Ages, list[Tensor]] = {}  # by the numbers of the frames averaged
        self.blank: list[Tensor] = []

    def read(self, latents: Tensor) -> list:
        """VAE latents (B, C, h, w) -> features; one pass of the reference net. The first, that of the portrait,
        tells `recall` what a frame that is not there looks like."""
        self.before_call("read")
        seen = self.model.read((latents * self.model.config.latent_scale).to(self.request.dtype))
        self.blank = [torch.zeros_like(site.output[0]) for site in seen]
        return seen

    def remember(self, finished: Tensor) -> None:
        """Keeps as many frames as the segments reach back."""
        self.past = torch.cat([self.past, finished])[-self.request.segments.clip.motion_span :]

    def recall(self, start: int) -> list[Tensor] | None:
        """Per site (1, M, C, H, W) for the clip that begins at frame `start`; only motion frames
        that no earlier clip has encoded pass through the net. None if no layer looks at them."""
        if not self.model.config.unet.sees_motion_frames:
            return None
        generator = torch.Generator().manual_seed(_mix(self.request.seed, ~start))
        ages = self.request.segments.ages(generator)
        latents, present = self.request.segments.abstract(self.past, ages)
        names = _names(start, ages, start - len(self.past))
        new = [m for m, name in enumerate(names) if present[m] and name not in self.features]
        for m in new:  # one by one: then the features do not depend on which others were new
            self.features[names[m]] = [site.output[0] for site in self.read(latents[m : m + 1])]
        frames = [self.features[name] if there else None for name, there in zip(names, present.tolist())]
        self._forget(start, ages)
        return motion_features(frames, self.blank)

    def _forget(self, start: int, ages: list[Ages]) -> None:
        """Drops features that no later clip can ask for; a full-size frame's weigh 23 MB."""
        segments, frames = self.request.segments, self.model.config.clip.frames
        span, oldest = segments.clip.motion_span, start - len(self.past)
        groups = ages if segments.sampling != "random" else [(age,) for age in range(span)]
        later = range(start + frames, start + span, frames)
        asked = {name for begin in later for name in _names(begin, groups, oldest)}
        self.features = {name: kept for name, kept in self.features.items() if name in asked}


def _names(start: int, ages: list[Ages], oldest: int) -> list[Ages]:
    """The numbers, from `oldest` on, of the frames behind each motion frame of the clip that begins at `start`."""
    return [tuple(start - 1 - age for age in group if start - 1 - age >= oldest) for group in ages]
