"""Model, autoencoder and speech encoder -> the one file that comes with the pack."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch.nn import functional as F

from ..autoencoder import Autoencoder
from ..config import PUPPET
from ..model import Loopy
from ..prepare.encoded import FOLDER, open_encoded
from ..speech_encoder import SpeechEncoder
from ..weights import (
    Header,
    ModelCard,
    load_strictly,
    load_tensors,
    read_header,
    save_checkpoint,
    write_tensors,
)
from .train import CLEANING


def card(size: int, clips: str) -> ModelCard:
    """Of a model of pictures of `size` pixels; `clips` says how many it was trained on."""
    return ModelCard(
        name="Loopy puppet",
        trained_on=f"{clips}: faces drawn by loopy_model.puppet.faces, speech by espeak-ng; no photograph, "
        "no recording of a person",
        limits=f"Animates drawn faces like the bundled portraits at {size}x{size} pixels. It shows that every part "
        "works; it cannot animate photographs. An independent implementation of the Loopy paper; ByteDance released "
        "no weights.",
        licence="Apache-2.0",
    )


def pack(lab: Path, loopy: Path, result: Path) -> Path:
    """`lab` is the run directory of `loopy_model.puppet`, `loopy` the model that
    `loopy_model.train` exported. Weights are stored in float16."""
    autoencoder, speech = Autoencoder().eval(), SpeechEncoder().eval()
    cleaning = lab / f"{CLEANING}.safetensors"
    load_strictly(autoencoder, load_file(cleaning), cleaning)
    load_strictly(speech, load_file(lab / "speech_encoder.safetensors"), lab / "speech_encoder.safetensors")
    config = read_header(loopy).config
    model = Loopy(config)
    load_strictly(model, load_tensors(loopy)["loopy"], loopy)
    preview = preview_colours(autoencoder, held_out_latents(lab / "prepared"))
    clips = f"{len(list((lab / 'prepared' / FOLDER).glob('train-*.safetensors')))} clips of 12 s"
    header = Header(config, card(config.image_size, clips), _sizes(autoencoder, speech, preview))
    save_checkpoint(result, header, {"loopy": model, "speech_encoder": speech, "autoencoder": autoencoder})
    return result


def pack_encoders(
    autoencoder: Autoencoder, speech: SpeechEncoder, result: Path, size: int = PUPPET.image_size
) -> None:
    """Both encoders in one checkpoint without a model, in float32: what encodes the training clips."""
    header = Header(
        replace(PUPPET, image_size=size), card(size, "drawn clips"), _sizes(autoencoder, speech, None)
    )
    save_checkpoint(result, header, {"speech_encoder": speech, "autoencoder": autoencoder}, torch.float32)


def _sizes(autoencoder: Autoencoder, speech: SpeechEncoder, preview: dict | None) -> dict[str, dict]:
    return {
        "speech_encoder": speech.config,
        "autoencoder": {"sizes": asdict(autoencoder.config), "preview": preview},
    }


def held_out_latents(prepared: Path) -> torch.Tensor:
    """Every 20th frame of the test clips, (N, C, h, w)."""
    parts = []
    for path in sorted((prepared / FOLDER).glob("test-*.safetensors")):
        with open_encoded(path) as file:
            parts.append(file.get_tensor("latents")[::20].float())
    return torch.cat(parts)


def pack_meter(lab: Path, result: Path) -> None:
    """The face meter in float16, for `loopy_model.evaluate`."""
    half = {key: tensor.half() for key, tensor in load_file(lab / "meter.safetensors").items()}
    write_tensors(result, half, {"format": "loopy-face-meter"})


@torch.no_grad()
def preview_colours(autoencoder: Autoencoder, latents: torch.Tensor) -> dict[str, list]:
    """Least squares from a latent cell to the mean colour (-1..1) of its patch, for live previews."""
    colours = F.avg_pool2d(autoencoder.decode(latents), autoencoder.config.patch)
    x = rearrange(latents, "n c h w -> (n h w) c")
    y = rearrange(colours, "n c h w -> (n h w) c")
    solution = torch.linalg.lstsq(F.pad(x, (0, 1), value=1.0), y).solution  # (C + 1, 3)
    solution = solution.double().round(decimals=4)  # below that, two runs on the same latents differ
    return {"factors": solution[:-1].tolist(), "bias": solution[-1].tolist()}
