"""Donors of reduced width, and of full width on the meta device, as the public files hold them.

Built from diffusers' own classes where it has them; names of other layouts follow by rule.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import MotionAdapter, UNet2DConditionModel
from oracles import lively, spread
from safetensors.torch import save_file
from torch import Tensor, nn

from loopy_model.donors import WeightFile
from loopy_model.donors.sd15 import PREFIX, modules

FULL, SMALL = (320, 640, 1280, 1280), (32, 64, 128, 128)
TOKEN = 16  # width of a text token in reduced nets

State = dict[str, Tensor]

ORIGINAL = {  # diffusers' motion modules -> AnimateDiff's own names
    ".transformer_blocks.": ".temporal_transformer.transformer_blocks.",
    ".attn1.": ".attention_blocks.0.",
    ".attn2.": ".attention_blocks.1.",
    ".norm1.": ".norms.0.",
    ".norm2.": ".norms.1.",
    ".norm3.": ".ff_norm.",
}


@lru_cache
def unet(channels: tuple[int, ...] = SMALL, seed: int = 1) -> UNet2DConditionModel:
    token = 768 if channels == FULL else TOKEN
    with torch.device("meta" if channels == FULL else "cpu"):
        net = UNet2DConditionModel(block_out_channels=channels, cross_attention_dim=token)
    return net if channels == FULL else lively(net, seed)


@lru_cache
def adapter(channels: tuple[int, ...] = SMALL, middle: bool = True, seed: int = 2) -> MotionAdapter:
    with torch.device("meta" if channels == FULL else "cpu"):
        net = MotionAdapter(block_out_channels=channels, use_motion_mid_block=middle)
    return net if channels == FULL else lively(net, seed)


def state(net: nn.Module) -> State:
    return {key: tensor.detach() for key, tensor in net.state_dict().items()}


def without_output(weights: State) -> State:
    return {
        key: tensor for key, tensor in weights.items() if not key.startswith(("conv_out", "conv_norm_out"))
    }


def original_motion(weights: State, encodings: bool = True, length: int = 32) -> State:
    """A MotionAdapter's weights under AnimateDiff's own names, an encoding for each attention."""
    renamed: State = {}
    for key, tensor in weights.items():
        for theirs, original in ORIGINAL.items():
            key = key.replace(theirs, original)
        if "pos_embed.pe" in key:
            for i in range(2 * encodings):
                at = key.replace("pos_embed.pe", f"attention_blocks.{i}.pos_encoder.pe")
                renamed[at] = tensor[:, :length]
            continue
        for layer in ("norm", "proj_in", "proj_out"):
            key = key.replace(f"motion_modules.{layer}", layer)
            head, dot, tail = key.rpartition(f".{layer}.")
            if dot and "temporal_transformer" not in key:
                key = f"{head}.temporal_transformer.{layer}.{tail}"
        renamed[key] = tensor
    return renamed


def single_file(weights: State) -> State:
    """A U-Net as a single-file checkpoint holds it, with some of what else is in such a file."""
    back = {ours: theirs for theirs, ours in modules().items()}
    renamed: State = {}
    for key, tensor in weights.items():
        module = max((m for m in back if key.startswith(f"{m}.")), key=len)
        renamed[PREFIX + back[module] + key.removeprefix(module)] = tensor
    others = (
        "first_stage_model.decoder.conv_in.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        "model_ema.diffusion_modelinput_blocks00weight",
        "model_ema.decay",
        "model_ema.num_updates",
        # The buffers of LDM's DDPM, which the original files hold.
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    )
    return renamed | {key: torch.zeros(3) for key in others}


def sd15_and_animatediff(channels: tuple[int, ...] = SMALL) -> list[WeightFile]:
    return [
        WeightFile("sd15.safetensors", single_file(state(unet(channels)))),
        WeightFile("mm_v2.ckpt", original_motion(state(adapter(channels)))),
    ]


def moore(channels: tuple[int, ...] = SMALL) -> list[WeightFile]:
    pose = {
        "conv_in.weight": torch.zeros(4),
        "blocks.5.weight": torch.zeros(4),
        "conv_out.weight": torch.zeros(4),
    }
    return [
        WeightFile("denoising_unet.pth", state(unet(channels, seed=3))),
        WeightFile("reference_unet.pth", without_output(state(unet(channels, seed=4)))),
        WeightFile("motion_module.pth", original_motion(state(adapter(channels)))),
        WeightFile("pose_guider.pth", pose),
    ]


# --- Hallo and MEMO, whose audio layers no library has ------------------------------------------

Shapes = dict[str, tuple[int, ...]]


def audio_sites(channels: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
    """Name, width outside and width inside of each audio layer. The inside is as wide as what enters
    the residual block before it; on the way up, as the next finer level."""
    for level, width in enumerate(channels[:3]):
        yield f"down_blocks.{level}.audio_modules.0", width, channels[max(level - 1, 0)]
        yield f"down_blocks.{level}.audio_modules.1", width, width
    yield "mid_block.audio_modules.0", channels[3], channels[3]
    for block, level in ((1, 2), (2, 1), (3, 0)):
        for i in range(3):
            yield f"up_blocks.{block}.audio_modules.{i}", channels[level], channels[max(level - 1, 0)]


def linear(name: str, out: int, inside: int, bias: bool = True, *kernel: int) -> Shapes:
    return {f"{name}.weight": (out, inside, *kernel)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def attends(name: str, width: int, context: int, out: int, inner: int) -> Shapes:
    keys = linear(f"{name}.to_k", inner, context, False) | linear(f"{name}.to_v", inner, context, False)
    return linear(f"{name}.to_q", inner, width, False) | keys | linear(f"{name}.to_out.0", out, inner)


def feed_forward(name: str, width: int) -> Shapes:
    return linear(f"{name}.net.0.proj", 8 * width, width) | linear(f"{name}.net.2", width, 4 * width)


def around(site: str, width: int, inner: int) -> Shapes:
    return (
        norm(f"{site}.norm", width)
        | linear(f"{site}.proj_in", inner, width, True, 1, 1)
        | linear(f"{site}.proj_out", width, inner, True, 1, 1)
    )


def hallo_audio(channels: tuple[int, ...], token: int) -> Shapes:
    shapes: Shapes = {}
    for site, width, inner in audio_sites(channels):
        block = f"{site}.transformer_blocks.0"
        shapes |= around(site, width, inner) | feed_forward(f"{block}.ff", inner)
        shapes |= attends(f"{block}.attn1", inner, inner, inner, inner)
        for i, region in enumerate(("full", "face", "lip")):
            shapes |= norm(f"{block}.norm{i + 1}", inner)
            shapes |= attends(f"{block}.attn2_{i}", inner, token, inner, inner)
            shapes |= linear(f"{block}.zero_conv_{region}", inner, inner, True, 1, 1)
    return shapes


def memo_audio(channels: tuple[int, ...], token: int) -> Shapes:
    shapes: Shapes = {}
    for site, width, inner in audio_sites(channels):
        block = f"{site}.transformer_blocks.0"
        shapes |= around(site, width, inner)
        for kind, wide in (("", inner), ("audio_", token)):
            for i, modulated in ((1, wide), (2, wide)):
                at = f"{block}.{kind}norm{i}"
                shapes |= {f"{at}.class_embedder.embedding_table.weight": (10, modulated)}
                shapes |= linear(f"{at}.adaLN_modulation.1", 2 * modulated, modulated)
            shapes |= norm(f"{block}.{kind}norm3", wide) | feed_forward(f"{block}.{kind}ff", wide)
            shapes |= attends(f"{block}.{kind}attn1", wide, wide, wide, inner)
        shapes |= attends(f"{block}.attn2", inner, inner, inner, inner)
        for kind in "kvq":
            shapes |= linear(f"{block}.attn2.add_{kind}_proj", inner, token)
        shapes |= linear(f"{block}.attn2.to_add_out", token, inner)
    # nothing hears what the voice has become after the last layer
    after = re.compile(r"up_blocks\.3\.audio_modules\.2\..*(to_add_out|audio_norm3|audio_ff).*")
    return {name: shape for name, shape in shapes.items() if not after.match(name)}


def audio_projection(part: str, token: int, small: bool) -> Shapes:
    """A window of 5 x 12 hidden states to 32 tokens."""
    heard, hidden, tokens = (5 * 12 * 8, 24, 4) if small else (5 * 12 * 768, 512, 32)
    return (
        linear(f"{part}proj1", hidden, heard)
        | linear(f"{part}proj2", hidden, hidden)
        | linear(f"{part}proj3", tokens * token, hidden)
        | norm(f"{part}norm", token)
    )


def filled(shapes: Shapes, seed: int, meta: bool) -> State:
    """Random numbers with the spread of a trained net's."""
    if meta:
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(seed)
    return {name: spread(name, torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def named(prefix: str, weights: State) -> State:
    return {f"{prefix}{key}": tensor for key, tensor in weights.items()}


def denoising(channels: tuple[int, ...]) -> State:
    return state(unet(channels, seed=3)) | original_motion(state(adapter(channels)))


def hallo(channels: tuple[int, ...] = SMALL) -> list[WeightFile]:
    meta, token = channels == FULL, 768 if channels == FULL else TOKEN
    others = {"face_locator.conv_in.weight": (4,), "imageproj.proj.weight": (4,)}
    heard = audio_projection("audioproj.", token, not meta)
    return [
        WeightFile(
            "net.pth",
            named("denoising_unet.", denoising(channels) | filled(hallo_audio(channels, token), 5, meta))
            | named("reference_unet.", without_output(state(unet(channels, seed=4))))
            | filled(heard | others, 6, meta),
        )
    ]


def memo(channels: tuple[int, ...] = SMALL) -> list[WeightFile]:
    meta, token = channels == FULL, 768 if channels == FULL else TOKEN
    last = re.compile(r"up_blocks\.3\.attentions\.2\.(proj_out|transformer_blocks\.0\.(?!norm1)).*")
    reference = without_output(state(unet(channels, seed=4)))
    return [
        WeightFile("diffusion_net", denoising(channels) | filled(memo_audio(channels, token), 5, meta)),
        WeightFile("reference_net", {k: v for k, v in reference.items() if not last.match(k)}),
        WeightFile("audio_proj", filled(audio_projection("", token, not meta), 6, meta)),
        WeightFile("image_proj", filled(linear("proj", 4, 4) | norm("norm", 4), 7, meta)),
    ]


DONORS = {
    "SD1.5 with AnimateDiff": sd15_and_animatediff,
    "Moore-AnimateAnyone": moore,
    "MEMO": memo,
    "Hallo": hallo,
}


def save(files: list[WeightFile], folder: Path) -> list[Path]:
    """As real files: safetensors and pickles by their names."""
    paths = [folder / file.name for file in files]
    for path, file in zip(paths, files):
        if path.suffix == ".safetensors":
            save_file({key: tensor.clone() for key, tensor in file.tensors.items()}, path)
        else:
            torch.save({"epoch": 1, "state_dict": file.tensors}, path)
    return paths
