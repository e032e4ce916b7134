"""Stable Diffusion 1.5: the names of its single-file checkpoints, and where its U-Net goes in Loopy.

Loopy's trunk has diffusers' names, so a U-Net in diffusers' layout needs no table; one from a single
file is renamed first. What Loopy has no place for is the text cross-attention.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..config import UNetConfig
from .plan import Row
from .read import NotADonor

SD15 = UNetConfig()
PREFIX = "model.diffusion_model."
SITES = r"(?:down_blocks\.[0-2]|mid_block|up_blocks\.[1-3])"  # blocks whose level has attention

WHISPER = 384  # channels of whisper-tiny, which EchoMimic's cross-attention reads instead of text

TEXT = (
    "cross-attention to text or image tokens, which nothing feeds in Loopy: given zero tokens it adds its "
    "output bias, and this is folded into the self-attention's"
)
NO_OUTPUT = "the reference net has no output of its own"

# --- names of single files ----------------------------------------------------------------------

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def modules(config: UNetConfig = SD15) -> dict[str, str]:
    """LDM's module -> diffusers'. LDM counts input and output blocks through all levels, and a
    downsampler is an input block of its own."""
    names, last = dict(ENDS), len(config.channels) - 1
    number = 1
    for level, attention in enumerate(config.attention):
        for i in range(config.layers):
            names |= _block(f"input_blocks.{number}", f"down_blocks.{level}", i, attention)
            number += 1
        if level < last:
            names[f"input_blocks.{number}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            number += 1
    names |= _block("middle_block", "mid_block", 0, True)
    names |= _resnet("middle_block.2", "mid_block.resnets.1")
    number = 0
    for level, attention in enumerate(reversed(config.attention)):
        for i in range(config.layers + 1):
            names |= _block(f"output_blocks.{number}", f"up_blocks.{level}", i, attention)
            number += 1
        if level < last:  # an upsampler stands behind whatever else is in the level's last block
            behind = f"output_blocks.{number - 1}.{1 + attention}.conv"
            names[behind] = f"up_blocks.{level}.upsamplers.0.conv"
    return names


def _block(ldm: str, block: str, i: int, attention: bool) -> dict[str, str]:
    site = {f"{ldm}.1": f"{block}.attentions.{i}"} if attention else {}
    return _resnet(f"{ldm}.0", f"{block}.resnets.{i}") | site


def _resnet(ldm: str, diffusers: str) -> dict[str, str]:
    return {f"{ldm}.{theirs}": f"{diffusers}.{ours}" for theirs, ours in RESNET.items()}


def single_file_names(keys: Mapping[str, Tensor]) -> dict[str, str]:
    """Weight of a single file -> its name here: the U-Net's below `unet.`, everything else below `file.`."""
    prefix = PREFIX if any(key.startswith(PREFIX) for key in keys) else ""
    known = modules()
    return {key: _renamed(key, prefix, known) for key in keys}


def _renamed(key: str, prefix: str, known: Mapping[str, str]) -> str:
    for module in _modules_of(key.removeprefix(prefix)) if key.startswith(prefix) else ():
        if module in known:
            return "unet." + known[module] + key.removeprefix(prefix + module)
    return f"file.{key}"


def _modules_of(key: str) -> Iterator[str]:
    """a.b.c.weight -> a.b.c, a.b, a."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


FILE_ROWS = (
    Row(r"file\.first_stage_model\..+", why="the VAE: load the same file with the host's Load Checkpoint"),
    Row(
        r"file\.(cond_stage_model|conditioner|embedder)\..+",
        why="the text encoder, which Loopy does not have",
    ),
    Row(r"file\.model_ema\..+", why="averaged weights: those that are used elsewhere are the others"),
    Row(
        r"file\.(betas|alphas_.+|sqrt_.+|log_.+|posterior_.+|logvar|scale_factor|denoiser\..+)",
        why="the noise schedule: it stands in the header",
    ),
)

# --- where the U-Net goes -----------------------------------------------------------------------


def spatial_rows(part: str, *nets: str) -> tuple[Row, ...]:
    """A whole U-Net, or one without an output, whose weights start with `part`, becomes `nets`."""

    def to(name: str, *nets: str) -> tuple[str, ...]:
        return tuple(f"{net}.{name}" for net in nets)

    denoising = [net for net in nets if net == "denoising_unet"]
    return (
        Row(rf"{part}\.(.+)\.attn2\.to_out\.0\.bias", to(r"\1.attn1.to_out.0.bias", *nets)),
        Row(rf"{part}\..+\.transformer_blocks\.0\.(attn2|norm2)\..+", why=TEXT),
        Row(rf"{part}\.(conv_(?:norm_)?out\..+)", to(r"\1", *denoising), NO_OUTPUT),
        Row(rf"{part}\.((?:conv_in|time_embedding|(?:down|up)_blocks\.\d|mid_block)\..+)", to(r"\1", *nets)),
    )


def unet_config(donor: Mapping[str, Tensor], part: str, name: str) -> UNetConfig:
    """SD1.5's sizes with the donor's widths. Raises NotADonor for its relatives of another shape."""
    widths = [
        donor.get(f"{part}.down_blocks.{level}.resnets.0.conv1.weight", torch.empty(0)).shape[0]
        for level in range(len(SD15.channels))
    ]
    proj_in = donor.get(f"{part}.down_blocks.0.attentions.0.proj_in.weight")
    if 0 in widths or proj_in is None or proj_in.ndim != 4:
        raise NotADonor(f"{name} is not of SD1.5's shape (SD2 or SDXL?); give a model of the SD1.5 family.")
    if donor[f"{part}.conv_in.weight"].shape[1] != SD15.latent_channels:
        raise NotADonor(
            f"{name} reads {donor[f'{part}.conv_in.weight'].shape[1]} channels instead of 4, as inpainting "
            "models do; give a model that makes whole pictures."
        )
    if donor[f"{part}.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape[1] == WHISPER:
        raise NotADonor(
            f"{name} is EchoMimic's, which hears the voice in the place of the text and has no part for it in "
            "Loopy; give another donor."
        )
    try:
        return UNetConfig(channels=tuple(widths))
    except ValueError as error:
        raise NotADonor(f"{name} is not of SD1.5's shape: {error}") from error
