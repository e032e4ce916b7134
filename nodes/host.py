"""Where the pack touches ComfyUI's internals: weights, memory, VAE, audio encoder."""

import logging
import math
from pathlib import Path

import comfy.latent_formats
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch
import torchaudio
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ..loopy_model.autoencoder import Autoencoder, AutoencoderConfig
from ..loopy_model.budget import Budget
from ..loopy_model.config import SAMPLE_RATE, LoopyConfig
from ..loopy_model.layers import Attention
from ..loopy_model.model import Loopy, Part
from ..loopy_model.speech_encoder import SpeechEncoder
from ..loopy_model.video import resampled
from ..loopy_model.weights import load_strictly
from .types import HostedLoopy

ASSETS = Path(__file__).parents[1] / "assets"
MODEL_FOLDER = "loopy"
ADAPTER_FOLDERS = ("loopy_adapters", "loras")  # the pack's own, and where users put theirs
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Values of torchaudio's: 44.1 kHz needs 70 thousand, 11.025 kHz, the most of the usual rates, 282 thousand.
LARGEST_KERNEL = 2**20

STREAMABLE = {
    nn.Linear: "Linear",
    nn.Conv1d: "Conv1d",
    nn.Conv2d: "Conv2d",
    nn.GroupNorm: "GroupNorm",
    nn.LayerNorm: "LayerNorm",
}


def register_folders() -> None:
    """models/loopy, extra_model_paths' `loopy:` entries, and what comes with the pack."""
    folder_paths.add_model_folder_path(MODEL_FOLDER, str(Path(folder_paths.models_dir) / MODEL_FOLDER))
    folder_paths.add_model_folder_path(MODEL_FOLDER, str(ASSETS / "models"))
    folder_paths.add_model_folder_path(ADAPTER_FOLDERS[0], str(ASSETS / "adapters"))
    for name in (MODEL_FOLDER, ADAPTER_FOLDERS[0]):
        folder_paths.folder_names_and_paths[name][1].update({".safetensors", ".sft"})


def hosted_loopy(
    config: LoopyConfig, state: dict[str, Tensor], weight_dtype: str, path: Path, preview: dict | None
) -> HostedLoopy:
    """Weights -> a model that the host can load, stream and unload."""
    device = mm.get_torch_device()
    count = sum(tensor.numel() for tensor in state.values())
    stored = next((tensor.dtype for tensor in state.values()), None)  # without any, they are refused below
    dtype = DTYPES.get(weight_dtype) or mm.unet_dtype(device, model_params=count, weight_dtype=stored)
    compute = mm.unet_manual_cast(dtype, device) or dtype
    with torch.device("meta"):
        model = Loopy(config)
    load_strictly(model, {k: v.to(dtype) for k, v in state.items()}, path, assign=True)
    if mm.force_channels_last():  # the user's switch
        model.to(memory_format=torch.channels_last)
    patchers = _managed(model, dtype, compute, device)
    logging.info(
        "%s: %.1f M parameters, weights in %s, computing in %s", path.name, count / 1e6, dtype, compute
    )
    return HostedLoopy(model, patchers, config, _latent_format(config, preview), compute, path.name)


def _managed(
    model: Loopy, dtype: torch.dtype, compute: torch.dtype, device: torch.device
) -> dict[Part, comfy.model_patcher.ModelPatcher]:
    model.eval().requires_grad_(False)
    # Not `pick_operations`: its fast layers need their own constructors.
    use_host_layers(model, comfy.ops.disable_weight_init if dtype == compute else comfy.ops.manual_cast)
    mm.archive_model_dtypes(model)
    # CoreModelPatcher is looked up at call time: the host replaces it when dynamic VRAM starts.
    return {
        part: comfy.model_patcher.CoreModelPatcher(
            module, load_device=device, offload_device=mm.unet_offload_device()
        )
        for part, module in model.parts().items()
    }


class Turns:
    """Before each pass of a run: stops when the user cancels, and has the host load the part whose turn it is.
    On a card that cannot hold both, the host takes the reference net off it once it has read."""

    def __init__(self, hosted: HostedLoopy, needed: Budget) -> None:
        self.hosted, self.needed = hosted, {"read": needed.reading, "denoise": needed.working}
        self.present: Part | None = None

    def __call__(self, part: Part) -> None:
        mm.throw_exception_if_processing_interrupted()
        if part != self.present:
            mm.load_models_gpu([self.hosted.patchers[part]], memory_required=self.needed[part])
            self.present = part


def use_host_layers(model: nn.Module, operations: type) -> None:
    """Leaf layers become the host's, which cast and stream their own weights; so does attention."""
    for module in model.modules():
        if type(module) in STREAMABLE:
            module.__class__ = getattr(operations, STREAMABLE[type(module)])
        elif isinstance(module, Attention):
            module.attend = optimized_attention


def _latent_format(config: LoopyConfig, preview: dict | None) -> comfy.latent_formats.LatentFormat:
    """What the live preview needs: SD1.5's colours, or those in the checkpoint's own header."""
    if config.unet.latent_channels == 4:
        return comfy.latent_formats.SD15(config.latent_scale)
    latent_format = comfy.latent_formats.LatentFormat()
    latent_format.scale_factor = config.latent_scale
    latent_format.latent_channels = config.unet.latent_channels
    if preview:
        latent_format.latent_rgb_factors = preview["factors"]
        latent_format.latent_rgb_factors_bias = preview["bias"]
    return latent_format


def autoencoder_vae(config: AutoencoderConfig, state: dict[str, Tensor], path: Path) -> comfy.sd.VAE:
    """The checkpoint's own autoencoder as a stock VAE, tiling and out-of-memory fallback included."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    model = Autoencoder(config)
    load_strictly(model, {k: v.float() for k, v in state.items()}, path)
    use_host_layers(model, comfy.ops.disable_weight_init)  # which stream where nothing may stay on the card
    vae.disable_offload = True
    vae.first_stage_model = model.eval().requires_grad_(False)
    vae.patcher = (
        comfy.model_patcher.ModelPatcher(  # as the host does where nothing is to be taken off the card
            model, load_device=vae.device, offload_device=mm.vae_offload_device()
        )
    )
    vae.latent_channels = config.latent_channels
    vae.downscale_ratio = vae.upscale_ratio = config.patch
    # Per latent cell in float32: a handful of copies of the largest level, plus the pixels.
    levels = (width * 4**above for above, width in enumerate(reversed(config.widths)))
    live = 4 * (8 * max(levels) + 4 * config.patch_values)
    vae.memory_used_encode = lambda shape, dtype: live * shape[2] * shape[3] // config.patch**2
    vae.memory_used_decode = lambda shape, dtype: live * shape[2] * shape[3]
    return vae


def as_in_training(voice: Tensor, audio_encoder: object) -> Tensor:
    """(samples,) with a mean of 0 and a variance of 1 where the encoder is a wav2vec 2.0 of the host's that does not
    make it so itself, as transformers' processor does when clips are prepared (decision 60)."""
    if getattr(getattr(audio_encoder, "model", None), "do_normalize", True):
        return voice
    return (voice - voice.mean()) / (voice.var(correction=0) + 1e-7).sqrt()


def at_16_khz(voice: Tensor, rate: int) -> Tensor:
    """A mono voice (samples,) of any rate, in float32. torchaudio's kernel has a value for each sample of either rate
    until both meet again: of 47187 Hz gigabytes, so that other rates than the usual ones are left to ffmpeg."""
    common = math.gcd(rate, SAMPLE_RATE)
    if rate // common * (SAMPLE_RATE // common) > LARGEST_KERNEL:
        return resampled(voice, rate, SAMPLE_RATE)
    return torchaudio.functional.resample(voice, rate, SAMPLE_RATE)


class HostedSpeechEncoder:
    """The checkpoint's own wav2vec behind the interface of the host's AUDIO_ENCODER."""

    def __init__(self, sizes: dict, state: dict[str, Tensor], path: Path) -> None:
        model = SpeechEncoder(sizes)
        load_strictly(model, {k: v.float() for k, v in state.items()}, path)
        self.model = model.eval().requires_grad_(False)
        self.load_device = mm.text_encoder_device()
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.model, load_device=self.load_device, offload_device=mm.text_encoder_offload_device()
        )

    def encode_audio(self, audio: Tensor, sample_rate: int) -> dict:
        """(B, channels, samples) -> all hidden states, as the stock encoders return them."""
        mm.load_models_gpu([self.patcher], force_full_load=True)
        voices = torch.stack([at_16_khz(voice, sample_rate) for voice in audio.mean(1)])
        hidden = self.model(voices.to(self.load_device))  # (B, L, T, D)
        layers = tuple(hidden.unbind(1))
        return {
            "encoded_audio": layers[-1],
            "encoded_audio_all_layers": layers,
            "audio_samples": voices.shape[1],
        }
