"""AnimateDiff's motion modules, which its relatives share: names, and where they go in Loopy.

A motion module has the shape of our intra-clip layer. The inter-clip layer starts as a copy of it with
the first attention alone and stays silent, because its output projection starts at zero.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ..config import ClipGeometry
from .plan import Row, Source
from .sd15 import SITES

PLACES = r"(?:down_blocks|up_blocks)\.\d|mid_block"
MODULE = r"motion_modules\.(\d)\.temporal_transformer"
BLOCK = "transformer_blocks.0"

BOTH = {  # AnimateDiff's name -> ours, in the intra-clip layer and in the inter-clip layer
    "norm": "norm",
    "proj_in": "proj_in",
    f"{BLOCK}.norms.0": "attentions.0.norm",
    f"{BLOCK}.attention_blocks.0": "attentions.0.attn",
    f"{BLOCK}.ff_norm": "ff_norm",
    f"{BLOCK}.ff": "ff",
}
INTRA = {  # in the intra-clip layer alone
    f"{BLOCK}.norms.1": "attentions.1.norm",
    f"{BLOCK}.attention_blocks.1": "attentions.1.attn",
    "proj_out": "proj_out",
}
ENCODING = (
    "positional encoding: computed by its own formula, which goes on into the past of the motion frames"
)
DIFFUSERS = {  # diffusers' MotionAdapter -> AnimateDiff
    "attn1": "attention_blocks.0",
    "attn2": "attention_blocks.1",
    "norm1": "norms.0",
    "norm2": "norms.1",
    "norm3": "ff_norm",
}


def original_name(key: str) -> str:
    """A motion module's weight in diffusers' layout -> in AnimateDiff's, where it has another one."""
    if "temporal_transformer" in key:
        return key
    start, _, rest = re.split(r"(?<=motion_modules\.\d)(\.)", key, maxsplit=1)
    inner = re.match(rf"{BLOCK}\.(\w+)", rest)
    if inner and inner[1] in DIFFUSERS:
        rest = rest.replace(inner[1], DIFFUSERS[inner[1]], 1)
    return f"{start}.temporal_transformer.{rest}"


def motion_rows(part: str, inter: bool) -> tuple[Row, ...]:
    """Motion modules whose weights start with `part`; `inter`: the model has inter-clip layers."""

    def row(places: str, theirs: str, ours: str, *kinds: str) -> Row:
        to = tuple(rf"denoising_unet.\1.{kind}.\2.{ours}.\3" for kind in kinds)
        return Row(rf"{part}\.({places})\.{MODULE}\.{re.escape(theirs)}\.((?!pos_).+)", to)

    at_sites = ("intra_modules", "inter_modules") if inter else ("intra_modules",)
    return (
        *(row(SITES, theirs, ours, *at_sites) for theirs, ours in BOTH.items()),
        *(row(PLACES, theirs, ours, "intra_modules") for theirs, ours in (BOTH | INTRA).items()),
        Row(rf"{part}\..+\.pos_(?:encoder|embed)\.pe", why=ENCODING),
    )


# --- temporal embeddings ------------------------------------------------------------------------


def sinusoids(times: Sequence[float], channels: int) -> Tensor:
    """(T, C): AnimateDiff's positional encoding (Vaswani et al. 2017), here at any time in frames."""
    rates = torch.exp(torch.arange(0, channels, 2) * (-math.log(10_000) / channels))
    angles = torch.tensor(times, dtype=torch.float32)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def positions(
    shapes: Mapping[str, torch.Size],
    donor: Mapping[str, Tensor],
    part: str,
    clip: ClipGeometry,
    first: int = 0,
) -> Iterator[tuple[str, Source]]:
    """Temporal embeddings of all layers. The clip's frames have the donor's numbers `first`,
    `first` + 1, ...; motion frames count down from there, into numbers that the donor never had.

    The layers' own sinusoids are not kept: the attention weights come from the donor and know its waves.
    """
    times = [*(first - 1 - age for age in clip.motion_ages), *range(first, first + clip.frames)]
    for name in (name for name in shapes if name.endswith(".positions")):
        rows, channels = shapes[name]
        here = times[-rows:]
        key = _encoding(name, donor, part)
        if key and min(here) >= 0 and max(here) < donor[key].shape[1]:
            yield name, Source((key,), partial(_rows, times=here), "taken")
        else:
            yield name, Source((), partial(sinusoids, here, channels), "computed")


def _encoding(name: str, donor: Mapping[str, Tensor], part: str) -> str | None:
    """The donor's encoding for an attention of ours; AnimateLCM has none, diffusers one for two."""
    block, module, attention = re.fullmatch(
        rf"\w+\.({PLACES})\.\w+\.(\d)\.attentions\.(\d)\.positions", name
    ).groups()
    start = f"{part}.{block}.motion_modules.{module}.temporal_transformer.{BLOCK}"
    keys = (f"{start}.attention_blocks.{attention}.pos_encoder.pe", f"{start}.pos_embed.pe")
    return next((key for key in keys if key in donor), None)


def _rows(encoding: Tensor, times: Sequence[int]) -> Tensor:
    return encoding[0, times]
