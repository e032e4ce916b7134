"""A donor in diffusers' classes beside the Loopy model that is made of it.

The donor's reference attention is written once more here, in a few lines. One thing in diffusers' motion
module is not AnimateDiff's: its group norm runs over all frames of a clip together, that of AnimateDiff's
own code (and of its relatives) over each frame alone, as ours does. `PerFrame` and `PerClip` make one
like the other; nothing else is changed.
"""

import re

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from make_donors import TOKEN
from oracles import attention
from torch import Tensor, nn

from loopy_model.conditions import Conditions
from loopy_model.donors import WeightFile, build, prepare
from loopy_model.model import Loopy

SIZE, TIMESTEP = 8, 431
CLOSE = 1e-4  # the largest difference, float32


class BesideReference:
    """Self-attention whose keys and values are its own tokens and those of the reference picture."""

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference  # (N, C), normed

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        rows = []
        for own in hidden_states:
            seen = torch.cat([own, self.reference])
            rows.append(attention(attn.to_q(own), attn.to_k(seen), attn.to_v(seen), attn.heads))
        return attn.to_out[0](torch.stack(rows))


class PerFrame(nn.Module):
    """The norm of diffusers' motion module, for each frame alone: (B, C, F, h, w) -> the same."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.norm(frame) for frame in x.unbind(2)], 2)


class PerClip(nn.Module):
    """The norm of our temporal layer, over a clip's frames together: (F, C, h, w) -> the same."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(0, 1)[None])[0].transpose(0, 1)


def wrap_norms(net: nn.Module, kind: str, wrapper: type[nn.Module]) -> nn.Module:
    """The net with other norms in its layers of a kind."""
    layers = [m for name, m in net.named_modules() if re.search(rf"{kind}\.\d$", name)]
    assert len(layers) >= 20
    for layer in layers:
        layer.norm = wrapper(layer.norm)
    return net


def no_text(rows: int) -> Tensor:
    return torch.zeros(rows, 1, TOKEN)


def read_picture(net: UNet2DConditionModel, picture: Tensor) -> dict[str, Tensor]:
    """What each spatial self-attention reads in a clean picture at timestep 0."""
    seen: dict[str, Tensor] = {}

    def listen(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_pre_hook(lambda _, args: seen.update({name: args[0][0]}))

    handles = [listen(name, module) for name, module in net.named_modules() if name.endswith(".attn1")]
    net(picture, 0, no_text(1))
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def donor_predicts(net: UNetMotionModel, noisy: Tensor, seen: dict[str, Tensor]) -> Tensor:
    """(1, F, C, h, w) -> the same. `seen`: what the reference net read; nothing without a portrait."""
    before = dict(net.attn_processors)
    net.set_attn_processor(
        before | {f"{name}.processor": BesideReference(tokens) for name, tokens in seen.items()}
    )
    made = net(noisy.transpose(1, 2), TIMESTEP, no_text(noisy.shape[1])).sample.transpose(1, 2)
    net.set_attn_processor(before)
    return made


def values(model: Loopy) -> dict[str, Tensor]:
    generator, clip, audio = torch.Generator().manual_seed(5), model.config.clip, model.config.audio

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator)

    return {
        "noisy": draw(clip.frames, 4, SIZE, SIZE),
        "portrait": draw(4, SIZE, SIZE),
        "motion": draw(clip.motion_frames, 4, SIZE, SIZE),
        "windows": draw(clip.frames, clip.audio_window, audio.layers, audio.width),
    }


def conditions(model: Loopy, given: dict[str, Tensor], *kinds: str) -> Conditions:
    """Of the kinds that are named: portrait, motion, voice."""
    portrait = [site.normed for site in model.read(given["portrait"])]
    motion = [site.output[None] for site in model.read(given["motion"][0])]
    return model.encode_conditions(
        portrait if "portrait" in kinds else None,
        motion if "motion" in kinds else None,
        given["windows"] if "voice" in kinds else None,
        model.motion_latents_from_audio(given["windows"]) if "voice" in kinds else None,
    )


@torch.no_grad()
def loopy_predicts(model: Loopy, given: dict[str, Tensor], *kinds: str) -> Tensor:
    return model.denoise(given["noisy"], torch.tensor([TIMESTEP]), conditions(model, given, *kinds))


def difference(one: Tensor, other: Tensor) -> float:
    assert other.std() > 0.1  # the comparison means something
    largest = (one - other).abs().max().item()
    print(f"largest difference {largest:.1e} at a spread of {other.std():.2f}")  # pytest -rP shows it
    return largest


def motion_net(spatial: UNet2DConditionModel, motion: MotionAdapter) -> UNetMotionModel:
    """Norms as in AnimateDiff's own code."""
    return wrap_norms(UNetMotionModel.from_unet2d(spatial, motion).eval(), "motion_modules", PerFrame)


def made(files: list[WeightFile], layout: str = "loopy") -> Loopy:
    plan = prepare(files, layout)
    return build(plan.plan, plan.donor)
