"""The training objective (paper eq. 1 and 3.4): a pure function of model, batch and draws.

Shapes: B clips, F frames, M motion frames, W audio window, L wav2vec layers, D their width.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from ..conditions import Conditions
from ..diffusion import NoiseSchedule
from ..model import Loopy

Own = TypeVar("Own", bound="Tensors")


class Tensors:
    """What the dataclasses of tensors below have in common; a tensor may be None."""

    def given(self) -> dict[str, Tensor]:
        """Those that are not None, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in values.items() if tensor is not None}

    def changed(self: Own, change: Callable[[Tensor], Tensor]) -> Own:
        return replace(self, **{name: change(tensor) for name, tensor in self.given().items()})

    def to(self: Own, device: torch.device) -> Own:
        return self.changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self: Own) -> Own:
        """By this name, DataLoader asks for it: without, `to` waits for each copy to a card."""
        return self.changed(Tensor.pin_memory)


@dataclass(frozen=True)
class Batch(Tensors):
    clip: Tensor  # (B, F, C, h, w) model latents of the frames to generate
    reference: Tensor  # (B, C, h, w) another frame of the same video
    # Stage one reads nothing of what follows.
    motion: Tensor | None = None  # (B, M, C, h, w) abstracted motion frames, zeros where not present
    present: Tensor | None = None  # (B, M) bool: False = before the video begins
    windows: Tensor | None = None  # (B, F, W, L, D) speech
    movement: Tensor | None = None  # (B,) log10 Glo of the clip
    expression: Tensor | None = None  # (B,) log10 Exp of the clip
    weight: Tensor | None = None  # (B, h, w) of the squared error; None: 1


@dataclass(frozen=True)
class ConditionDropping:
    """Probabilities of paper 3.4."""

    audio: float = 0.10  # audio embeddings and motion latents become zero
    reference: float = 0.15  # reference and motion frames are not concatenated at all
    motion: float = 0.40  # motion features become zero, where the reference was kept
    audio_without_reference: float | None = None  # instead of `audio` where the reference is dropped


@dataclass(frozen=True)
class Draws(Tensors):
    """What is random about the loss of one batch; windows and motion frames are drawn with the data."""

    timestep: Tensor  # (B,)
    keep_audio: Tensor  # (B,) bool
    keep_reference: Tensor  # (B,) bool
    keep_motion: Tensor  # (B,) bool; only where the reference is kept
    source: Tensor  # (B,) 0 audio, 1 head movement, 2 expression: what audio-to-latents reads
    noise: Tensor | None = None  # like Batch.clip; each sample draws its own


def stratified(batch: int, generator: torch.Generator) -> Tensor:
    """Uniform (B,) in [0, 1) with one value in each B-th: the rates are exact in the mean, and the
    number of kept samples hardly varies, which keeps tensor shapes few."""
    return _strata(batch, generator)[torch.randperm(batch, generator=generator)]


def dealt(batch: int, generator: torch.Generator) -> Tensor:
    """The same, low and high values in turn: what one of 2, 4 or 8 processes has of the batch holds its share of
    either. Samples that keep their motion frames take twice the time, and the slowest process is waited for."""
    order = sorted(range(batch), key=_bits_reversed)
    first = int(torch.randint(batch, (), generator=generator))
    return _strata(batch, generator)[order].roll(first)


def _strata(batch: int, generator: torch.Generator) -> Tensor:
    offset = torch.rand((), generator=generator).double()  # in float32 the last value rounds up to 1
    return (torch.arange(batch) + offset) / batch


def _bits_reversed(number: int) -> int:
    """Neighbours in the order of these lie far apart (van der Corput)."""
    return int(f"{number:032b}"[::-1], 2)


def draw(
    batch: int,
    train_steps: int,
    dropping: ConditionDropping,
    generator: torch.Generator,
    timestep_power: float = 1.0,
) -> Draws:
    """All draws of a step but the noise, from one CPU generator: a step can be repeated exactly.
    Timesteps are `train_steps` * u ** `timestep_power`, u uniform: below 1 draws noisy ones more often."""
    u = dealt(batch, generator)  # one number decides reference and motion frames together
    keep_reference = u >= dropping.reference
    keep_motion = u >= dropping.reference + (1 - dropping.reference) * dropping.motion
    alone = dropping.audio if dropping.audio_without_reference is None else dropping.audio_without_reference
    audio_rate = torch.where(keep_reference, dropping.audio, alone)
    return Draws(
        timestep=(stratified(batch, generator) ** timestep_power * train_steps).long(),
        keep_audio=stratified(batch, generator) >= audio_rate,
        keep_reference=keep_reference,
        keep_motion=keep_motion,
        source=(stratified(batch, generator) * 3).long(),
    )


class Objective(nn.Module):
    """The loss as one module, so that it can be wrapped for several processes."""

    def __init__(self, model: Loopy) -> None:
        super().__init__()
        self.model = model
        self.schedule = NoiseSchedule(model.config.diffusion)

    def forward(self, batch: Batch, draws: Draws, spatial_only: bool) -> Tensor:
        return loss_per_sample(self.model, self.schedule, batch, draws, spatial_only)


def loss_per_sample(
    model: Loopy, schedule: NoiseSchedule, batch: Batch, draws: Draws, spatial_only: bool
) -> Tensor:
    """Mean squared error of the prediction (eq. 1), (B,)."""
    noisy = schedule.add_noise(batch.clip, draws.noise, draws.timestep)
    encode = encode_reference if spatial_only else encode_all
    prediction = model.denoise(noisy, draws.timestep, encode(model, batch, draws))
    target = schedule.target(batch.clip, draws.noise, draws.timestep)
    return weighted_error(prediction, target, batch, schedule.loss_weight(draws.timestep))


def weighted_error(prediction: Tensor, target: Tensor, batch: Batch, weight: Tensor) -> Tensor:
    """Mean squared error per sample (B,), times its `weight` (B,), in cells by `batch.weight`."""
    squares = (prediction - target).square()
    if batch.weight is not None:
        squares = rearrange(batch.weight, "b h w -> b 1 1 h w") * squares
    return weight.to(squares) * squares.mean((1, 2, 3, 4))


def encode_reference(model: Loopy, batch: Batch, draws: Draws) -> Conditions:
    """Stage one: the portrait alone."""
    reference = [site.normed for site in model.read(batch.reference)]
    sites = model.denoising_unet.site_conditions(reference, None, None, draws.keep_reference)
    return Conditions(sites, spatial_only=True)


def encode_all(model: Loopy, batch: Batch, draws: Draws) -> Conditions:
    """Stage two. Only motion frames that are kept, and looked at, pass through the reference net."""
    clips, kept = len(batch.clip), draws.keep_motion & model.config.unet.sees_motion_frames
    seen = model.read(torch.cat([batch.reference, rearrange(batch.motion[kept], "k m c h w -> (k m) c h w")]))
    return model.encode_conditions(
        reference=[site.normed[:clips] for site in seen],
        motion=[_masked(site.output[clips:], batch.present, kept) for site in seen],
        windows=batch.windows,
        motion_latents=_motion_latents(model, batch, draws.source),
        keep_audio=draws.keep_audio,
        keep_reference=draws.keep_reference,
    )


def _masked(features: Tensor, present: Tensor, kept: Tensor) -> Tensor:
    """Features (K M, C, H, W) of the kept samples -> (B, M, C, H, W), zero elsewhere."""
    b, m = present.shape
    full = features.new_zeros(b, m, *features.shape[1:])
    kept_features = rearrange(features, "(k m) c h w -> k m c h w", m=m)
    full[kept] = kept_features * rearrange(present[kept], "k m -> k m 1 1 1")
    return full


def _motion_latents(model: Loopy, batch: Batch, source: Tensor) -> Tensor | None:
    """One of the three inputs per sample, as drawn; None for a model without audio-to-latents."""
    if not model.config.audio.to_latents:
        return None
    module, frames = model.audio_to_latents, batch.clip.shape[1]
    queries = torch.stack(
        [
            module.audio_query(model.audio_norm(batch.windows)),
            module.variance_query("head movement", batch.movement, frames),
            module.variance_query("expression", batch.expression, frames),
        ]
    )  # (3, B, F, 256)
    return module(queries[source, torch.arange(len(source))])
