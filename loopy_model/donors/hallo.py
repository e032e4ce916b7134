"""Hallo and Hallo2 (`net.pth`): names, and how its audio layer becomes one with three times the heads."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .plan import Row, Source
from .sd15 import SITES

BLOCK = r"transformer_blocks\.0"
REGIONS = ("full", "face", "lip")  # the three cross-attentions attn2_0, attn2_1, attn2_2
SHARE = 1 / len(REGIONS)
"""Hallo masks its three cross-attentions: all around, face, lips; at each place the masks add up to 1.
Loopy does not know where the face is, so every place gets an equal share of each."""

DEAD = (
    "motion modules that Hallo never runs: it samples in training mode with gradient checkpointing, and "
    "there its blocks without attention skip them"
)

AUDIO_ROWS = (
    Row(
        rf"denoising_unet\.({SITES})\.audio_modules\.(\d)\.(?:{BLOCK}\.)?"
        r"((?:norm|norm[123]|proj_in|proj_out|attn1|ff)\..+)",
        (r"denoising_unet.\1.audio_modules.\2.\3",),
    ),
    Row(r"audioproj\.(.+)", (r"audio_projection.\1",)),
)
OTHER_ROWS = (
    Row(r"denoising_unet\.(?:down_blocks\.3|up_blocks\.0)\.motion_modules\..+", why=DEAD),
    Row(r"face_locator\..+", why="the face locator: Loopy is not told where the face is"),
    Row(
        r"imageproj\..+",
        why="the face's identity tokens: Loopy knows the person from the reference net alone",
    ),
)


def audio_attention(shapes: Mapping[str, torch.Size]) -> Iterator[tuple[str, Source]]:
    """The cross-attention of each audio layer from the donor's three and their output convolutions."""
    for name in shapes:
        layer, _, weight = name.partition(".attn.")
        if weight and ".audio_modules." in layer:
            yield name, _folded(f"{layer}.transformer_blocks.0", weight)


def _folded(donor: str, weight: str) -> Source:
    attentions = [f"{donor}.attn2_{i}" for i in range(len(REGIONS))]
    convolutions = [f"{donor}.zero_conv_{region}" for region in REGIONS]
    if weight == "to_out.0.weight":
        keys = [f"{a}.to_out.0.weight" for a in attentions] + [f"{c}.weight" for c in convolutions]
        return Source(tuple(keys), _outputs, "folded")
    if weight == "to_out.0.bias":
        keys = [f"{a}.to_out.0.bias" for a in attentions]
        keys += [f"{c}.{kind}" for kind in ("weight", "bias") for c in convolutions]
        return Source(tuple(keys), _bias, "folded")
    return Source(tuple(f"{a}.{weight}" for a in attentions), _heads, "folded")


def _heads(*weights: Tensor) -> Tensor:
    """Queries, keys or values of all three, the heads one after the other."""
    return torch.cat(weights)


def _outputs(*weights: Tensor) -> Tensor:
    """conv(share * to_out(heads)) for each region, added: [share Wz Wo] side by side."""
    outs, convolutions = (_float(part) for part in (weights[:3], weights[3:]))
    return torch.cat([SHARE * z.flatten(1) @ o for o, z in zip(outs, convolutions)], 1)


def _bias(*weights: Tensor) -> Tensor:
    """The constant part of the same: sum of Wz (share bo) + bz."""
    outs, convolutions, biases = (_float(weights[i : i + 3]) for i in (0, 3, 6))
    return sum(SHARE * z.flatten(1) @ o + b for o, z, b in zip(outs, convolutions, biases))


def _float(weights: tuple[Tensor, ...]) -> list[Tensor]:
    return [weight.float() for weight in weights]
