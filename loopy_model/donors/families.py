"""The families of donors: what a family consists of, where it goes, what it can do, what it demands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..config import LOOPY, DiffusionConfig, LoopyConfig
from . import sd15
from .animatediff import motion_rows, positions
from .plan import Row, Source, Special

Layout = Literal["loopy", "joint"]
"""loopy: the paper's, with an inter-clip layer that starts silent. joint: one temporal layer, in which
motion frames stand beside the clip, as in the donors that have motion frames (table 3, "1 temp.")."""

OWN = r"denoising_unet\..+\.(inter|audio)_modules\..+|audio_(norm|projection|to_latents)\..+"
NO_MIDDLE = r"|denoising_unet\.mid_block\.intra_modules\..+"


@dataclass(frozen=True)
class Family:
    """One kind of donor."""

    title: str
    parts: tuple[str, ...]  # that must be there
    extras: tuple[str, ...]  # that may be there
    rows: Callable[[LoopyConfig], tuple[Row, ...]]
    special: Special
    config: Callable[[Mapping[str, Tensor], Layout], LoopyConfig]
    own: Callable[[Mapping[str, Tensor]], str]  # pattern of the Loopy weights that start without the donor
    before: str  # what the model can do before fine-tuning
    exact: str  # with which model it agrees to the last bits, and when
    licence: str


# --- noise schedules, as the donors sample ------------------------------------------------------

EPSILON = DiffusionConfig(beta_schedule="linear", final_alpha_one=True)
"""AnimateDiff's; the four numbers besides are SD1.5's."""

VELOCITY = replace(EPSILON, prediction="v_prediction", zero_terminal_snr=True, spacing="trailing")
"""Moore-AnimateAnyone's, AniPortrait's and Hallo's at inference (they train with scaled_linear)."""


# --- SD1.5 with AnimateDiff, and the relatives that have a reference net beside -----------------


def config_of(
    diffusion: DiffusionConfig, part: str, name: str
) -> Callable[[Mapping[str, Tensor], Layout], LoopyConfig]:
    """The paper's numbers on the donor's widths, with its schedule, and AnimateDiff's 21 places."""

    def config(donor: Mapping[str, Tensor], layout: Layout) -> LoopyConfig:
        unet = replace(
            sd15.unet_config(donor, part, name),
            temporal="dual" if layout == "loopy" else "joint",
            temporal_everywhere=True,
        )
        return replace(LOOPY, unet=unet, diffusion=diffusion)

    return config


def own_of(donor: Mapping[str, Tensor]) -> str:
    """AnimateDiff v1 and v3 have no motion module in the middle."""
    middle = any(key.startswith("motion.mid_block.") for key in donor)
    return OWN if middle else OWN + NO_MIDDLE


def encodings(
    shapes: Mapping[str, torch.Size], donor: Mapping[str, Tensor], config: LoopyConfig
) -> dict[str, Source]:
    return dict(positions(shapes, donor, "motion", config.clip))


def inter(config: LoopyConfig) -> bool:
    return config.unet.temporal == "dual"


SD15_ANIMATEDIFF = Family(
    title="Stable Diffusion 1.5 with AnimateDiff",
    parts=("unet", "motion"),
    extras=("file",),
    rows=lambda config: (
        *sd15.spatial_rows("unet", "denoising_unet", "reference_unet"),
        *motion_rows("motion", inter(config)),
        *sd15.FILE_ROWS,
    ),
    special=encodings,
    config=config_of(EPSILON, "unet", "the U-Net"),
    own=own_of,
    before="it does not hear the voice and knows nothing of earlier clips; each clip is a short moving picture "
    "that resembles the portrait only as far as reference attention carries in a net that was not trained for it.",
    exact="AnimateDiff with zero text tokens, without a portrait",
    licence="SD1.5: CreativeML OpenRAIL-M, whose use restrictions must be passed on with whatever is made from "
    "it. AnimateDiff: Apache-2.0, which asks to keep its notices. A merged or fine-tuned checkpoint may have "
    "terms of its own: read its page.",
)

MOORE = Family(
    title="Moore-AnimateAnyone or AniPortrait",
    parts=("unet", "reference", "motion"),
    extras=("pose_guider",),
    rows=lambda config: (
        *sd15.spatial_rows("unet", "denoising_unet"),
        *sd15.spatial_rows("reference", "reference_unet"),
        *motion_rows("motion", inter(config)),
        Row(
            r"pose_guider\..+", why="the pose guider: Loopy is driven by the voice, not by a skeleton or mesh"
        ),
    ),
    special=encodings,
    config=config_of(VELOCITY, "unet", "the denoising net"),
    own=own_of,
    before="it keeps the person of the portrait and moves as it likes; it does not hear the voice, knows nothing "
    "of earlier clips, and misses the skeleton or mesh that it was trained with.",
    exact="the donor with a zero image token and a zero pose feature",
    licence="Apache-2.0, which asks to keep its notices; both were trained on top of SD1.5 (CreativeML "
    "OpenRAIL-M), whose use restrictions must be passed on.",
)

FAMILIES = (SD15_ANIMATEDIFF, MOORE)
