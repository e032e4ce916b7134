"""What a weight file is, told from the names of its weights, never from its own name."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from . import animatediff, sd15
from .read import NotADonor, WeightFile

Names = Callable[[Mapping[str, Tensor]], dict[str, str]]


class Kind(NamedTuple):
    """A kind of file: it has weights that match each of `has` and none that matches `lacks`."""

    has: tuple[str, ...]
    names: Names  # its weights -> their names here, the first word is the part
    lacks: str = r"(?!)"


class Refused(NamedTuple):
    """A kind of file that is known and of no use here."""

    has: tuple[str, ...]
    why: str  # ends the sentence "FILE ..."
    lacks: str = r"(?!)"


PARTS = {
    "unet": "a U-Net of the SD1.5 family",
    "motion": "AnimateDiff's motion module (such as mm_sd_v15_v2.ckpt)",
    "reference": "a reference net (such as reference_unet.pth of Moore-AnimateAnyone)",
    "pose_guider": "a pose guider",
    "memo": "MEMO's diffusion net",
    "audio_proj": "an audio projection (MEMO's audio_proj)",
    "image_proj": "a projection of the face's identity (MEMO's image_proj)",
    "denoising_unet": "Hallo's denoising net",
    "reference_unet": "Hallo's reference net",
    "audioproj": "Hallo's audio projection",
    "face_locator": "Hallo's face locator",
    "imageproj": "Hallo's identity projection",
    "file": "the rest of a single-file checkpoint",
}


def below(part: str) -> Names:
    return lambda keys: {key: f"{part}.{key}" for key in keys}


def as_they_are(keys: Mapping[str, Tensor]) -> dict[str, str]:
    return {key: key for key in keys}


def unet_and_motion(keys: Mapping[str, Tensor]) -> dict[str, str]:
    """A denoising net in diffusers' names, motion modules included if it has any."""
    return {
        key: f"motion.{animatediff.original_name(key)}" if "motion_modules." in key else f"unet.{key}"
        for key in keys
    }


TRUNK = (r"conv_in\.weight", r"down_blocks\.0\.resnets\.0\.conv1\.weight", r"up_blocks\.\d\.attentions\..+")

REFUSED = (
    Refused((r"loopy\.denoising_unet\..+",), "is a Loopy model already; put it into models/loopy"),
    Refused((r".+[._]lora[._].+",), "is a LoRA; merge it into its model first, or leave it out"),
    Refused((r"(control_model|controlnet_|input_hint_block).+",), "is a ControlNet; give a whole model"),
    Refused(
        (r".+\.attn1_5\..+",),
        "is V-Express, whose weights are for non-commercial research and whose second reference "
        "attention has no place in Loopy; give another donor",
    ),
    Refused(
        (r"(model\.diffusion_model\.label_emb|add_embedding)\..+",),
        "is an SDXL model; give one of the SD1.5 family",
    ),
    Refused(
        (r"(first_stage_model\.|vae\.)?decoder\.conv_in\.weight",),
        "is a VAE; load it with Load VAE",
        sd15.PREFIX,
    ),
    Refused((r"(.*\.)?text_model\..+",), "is a text encoder, which Loopy does not have", sd15.PREFIX),
)

KINDS = (
    Kind((r"denoising_unet\..+\.attn2_0\..+", r"reference_unet\..+"), as_they_are),
    Kind((*TRUNK, r".+\.attn2\.add_k_proj\..+"), below("memo")),
    Kind((r"(model\.diffusion_model\.)?input_blocks\.0\.0\.weight",), sd15.single_file_names),
    Kind((*TRUNK, r"conv_out\.weight"), unet_and_motion),
    Kind(TRUNK, below("reference"), lacks=r"conv_out\.weight"),
    Kind((r".*motion_modules\.\d\..+",), unet_and_motion, lacks=r".*resnets\..+"),
    Kind((r"conv_in\.weight", r"blocks\.5\.weight", r"conv_out\.weight"), below("pose_guider")),
    Kind((r"proj1\.weight", r"proj3\.weight", r"norm\.weight"), below("audio_proj")),
    Kind((r"proj\.weight", r"norm\.weight"), below("image_proj")),
    Kind((r"conv_layers\.0\.weight", r"final_proj\.weight"), below("pose_guider")),
)


def recognise(file: WeightFile) -> dict[str, Tensor] | None:
    """The file's weights under their names here. None for a stranger that merely lay in a folder.
    Raises NotADonor."""
    for refused in REFUSED:
        if _fits(file, refused):
            if file.found:
                return None
            raise NotADonor(f"{file.name} {refused.why}.")
    for kind in KINDS:
        if _fits(file, kind):
            names = kind.names(file.tensors)
            return {names[key]: tensor for key, tensor in file.tensors.items()}
    if file.found:
        return None
    raise NotADonor(
        f"{file.name} is no model that can be imported (its first weight is {min(file.tensors)}); "
        "docs/importing.md of the repository lists those that can."
    )


def _fits(file: WeightFile, kind: Kind | Refused) -> bool:
    def any_matches(pattern: str) -> bool:
        return any(re.match(pattern, key) for key in file.tensors)

    return all(map(any_matches, kind.has)) and not any_matches(kind.lacks)


def parts_of(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}
