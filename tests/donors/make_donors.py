"""Donors of reduced width, and of full width on the meta device, as the public files hold them.

Built from diffusers' own classes where it has them; names of other layouts follow by rule.
"""

from functools import lru_cache
from pathlib import Path

import torch
from diffusers import MotionAdapter, UNet2DConditionModel
from oracles import lively
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
        "alphas_cumprod",
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


DONORS = {"SD1.5 with AnimateDiff": sd15_and_animatediff, "Moore-AnimateAnyone": moore}


def save(files: list[WeightFile], folder: Path) -> list[Path]:
    """As real files: safetensors and pickles by their names."""
    paths = [folder / file.name for file in files]
    for path, file in zip(paths, files):
        if path.suffix == ".safetensors":
            save_file({key: tensor.clone() for key, tensor in file.tensors.items()}, path)
        else:
            torch.save({"epoch": 1, "state_dict": file.tensors}, path)
    return paths
