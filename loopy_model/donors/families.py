"""The families of donors: what a family consists of, where it goes, what it can do, what it demands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..config import LOOPY, AudioConfig, ClipGeometry, DiffusionConfig, LoopyConfig
from . import hallo, memo, sd15
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
    before: Mapping[Layout, str]  # "Before fine-tuning ...": what the model can do then
    exact: Mapping[Layout, str]  # with what a new import agrees to rounding
    licence: str


def both(
    text: str, joint: str = "looks back with layers that never saw an earlier frame"
) -> dict[Layout, str]:
    """`text` with what each layout makes of earlier clips in the place of {past}."""
    return {
        "loopy": text.format(past="knows nothing of earlier clips"),
        "joint": text.format(past=joint),
    }


def like(donor: str) -> dict[Layout, str]:
    """The one temporal layer of `joint` sees motion frames from the start, which the donor never did."""
    return {
        "loopy": f"it computes what {donor} computes",
        "joint": f"without motion frames it computes what {donor} computes",
    }


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


def layout_of(config: LoopyConfig) -> Layout:
    return "loopy" if config.unet.temporal == "dual" else "joint"


SD15_ANIMATEDIFF = Family(
    title="Stable Diffusion 1.5 with AnimateDiff",
    parts=("unet", "motion"),
    extras=("file",),
    rows=lambda config: (
        *sd15.spatial_rows("unet", "denoising_unet", "reference_unet"),
        *motion_rows("motion", config.unet.temporal == "dual"),
        *sd15.FILE_ROWS,
    ),
    special=encodings,
    config=config_of(EPSILON, "unet", "the U-Net"),
    own=own_of,
    before=both(
        "it does not hear the voice and {past}; each clip is a short moving picture that resembles the portrait "
        "only as far as reference attention carries in a net that was not trained for it."
    ),
    exact=like("AnimateDiff with zero text tokens, and with reference attention where a portrait is given"),
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
        *motion_rows("motion", config.unet.temporal == "dual"),
        Row(
            r"pose_guider\..+", why="the pose guider: Loopy is driven by the voice, not by a skeleton or mesh"
        ),
    ),
    special=encodings,
    config=config_of(VELOCITY, "unet", "the denoising net"),
    own=own_of,
    before=both(
        "it keeps the person of the portrait and moves as it likes; it does not hear the voice, {past}, and misses "
        "the skeleton or mesh that it was trained with."
    ),
    exact=like("the donor with a zero image token and a zero pose feature"),
    licence="Apache-2.0, which asks to keep its notices; both were trained on top of SD1.5 (CreativeML "
    "OpenRAIL-M), whose use restrictions must be passed on.",
)


# --- the relatives that hear the voice ----------------------------------------------------------


def audio_of(donor: Mapping[str, Tensor], part: str) -> AudioConfig:
    """Sizes of the audio projection, which is the same in Hallo, MEMO and Loopy but for the norm before."""
    (hidden, heard), tokens = donor[f"{part}.proj1.weight"].shape, donor[f"{part}.proj3.weight"].shape[0]
    audio, token_width = LOOPY.audio, donor[f"{part}.norm.weight"].shape[0]
    return replace(
        audio,
        width=heard // (LOOPY.clip.audio_window * audio.layers),
        hidden=hidden,
        tokens=tokens // token_width,
        token_width=token_width,
        norm=False,
    )


def memo_config(donor: Mapping[str, Tensor], layout: Layout) -> LoopyConfig:
    config = config_of(VELOCITY, "memo", "MEMO's diffusion net")(donor, layout)
    return replace(config, audio=audio_of(donor, "audio_proj"))


MEMO = Family(
    title="MEMO",
    parts=("memo", "reference", "audio_proj"),
    extras=("image_proj",),
    rows=lambda config: (
        *memo.LAST_ROWS,
        *memo.OTHER_ROWS,
        *motion_rows("memo", config.unet.temporal == "dual"),
        *sd15.spatial_rows("memo", "denoising_unet"),
        *sd15.spatial_rows("reference", "reference_unet"),
    ),
    special=lambda shapes, donor, config: dict(positions(shapes, donor, "memo", config.clip)),
    config=memo_config,
    own=lambda donor: r"denoising_unet\..+\.(inter|audio)_modules\..+|audio_(norm|to_latents)\..+",
    before=both(
        "it makes nothing of use: MEMO was trained by flow matching, with linear attention along time, and Loopy "
        "has neither; its weights are a start for training and no more."
    ),
    exact=both("not as a whole; spatial layers and audio projection compute what MEMO's do"),
    licence="code Apache-2.0, which asks to keep its notices; its README calls the weights a preview model for "
    "research purposes. Trained on top of SD1.5 (CreativeML OpenRAIL-M), whose use restrictions must be passed on.",
)

HALLO_CLIP = ClipGeometry(frames=16, stride=2, ratio=1, segments=1)
"""16 frames, and the two before them as they are."""


def hallo_config(donor: Mapping[str, Tensor], layout: Layout) -> LoopyConfig:
    """joint: Hallo's own layers and clips. loopy: the paper's temporal layers and clips."""
    joint = layout == "joint"
    unet = sd15.unet_config(donor, "denoising_unet", "Hallo's denoising net")
    return replace(
        LOOPY,
        clip=HALLO_CLIP if joint else LOOPY.clip,
        unet=replace(unet, temporal="hallo" if joint else "dual"),
        audio=replace(audio_of(donor, "audioproj"), layer="transformer"),
        diffusion=VELOCITY,
    )


def hallo_special(
    shapes: Mapping[str, torch.Size], donor: Mapping[str, Tensor], config: LoopyConfig
) -> dict[str, Source]:
    """Hallo counts two motion frames before the clip."""
    past = positions(shapes, donor, "denoising_unet", config.clip, first=HALLO_CLIP.motion_frames)
    return dict(past) | dict(hallo.audio_attention(shapes))


HALLO_ALIKE = "Hallo with zero identity tokens, no face locator, and masks of a third everywhere"

HALLO = Family(
    title="Hallo or Hallo2",
    parts=("denoising_unet", "reference_unet", "audioproj"),
    extras=("face_locator", "imageproj"),
    rows=lambda config: (
        *hallo.OTHER_ROWS,
        *hallo.AUDIO_ROWS,
        *motion_rows("denoising_unet", config.unet.temporal == "dual"),
        *sd15.spatial_rows("denoising_unet", "denoising_unet"),
        *sd15.spatial_rows("reference_unet", "reference_unet"),
    ),
    special=hallo_special,
    config=hallo_config,
    own=lambda donor: r"denoising_unet\..+\.inter_modules\..+|audio_(norm|to_latents)\..+",
    before=both(
        "it hears the voice and keeps the person, but lips, face and surroundings follow the voice by one common "
        "rule, because Loopy has no masks of them; it misses the face's place and identity tokens, gets wav2vec "
        "features that are brought to frames after the transformer instead of before it, and {past}.",
        joint="looks back two frames, as Hallo does",
    ),
    exact={
        "joint": f"it computes what {HALLO_ALIKE} computes",
        "loopy": f"without motion frames it computes what {HALLO_ALIKE} computes without its own two, "
        "the clip's frames counted from 2 as before",
    },
    licence="code MIT, which asks to keep its notice; read the weights' page for their terms. Trained on top of "
    "SD1.5 (CreativeML OpenRAIL-M), whose use restrictions must be passed on.",
)

FAMILIES = (SD15_ANIMATEDIFF, MOORE, MEMO, HALLO)
