"""The two networks whose outputs are cached: the image autoencoder (VAE) and the speech encoder.

Both come from local files: a Loopy checkpoint that carries them, or the public formats. Nothing is
downloaded.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..autoencoder import Autoencoder, AutoencoderConfig
from ..speech_encoder import SpeechEncoder
from ..weights import NotALoopyModel, load_strictly, load_tensors, read_header
from .records import digest_of

WEIGHTS = (".safetensors", ".bin")


def refuse_missing_gpu(device: str | None) -> None:
    """Raises ValueError with one sentence."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no GPU that PyTorch can use here; leave --device out, or give cpu.")


class VAE(Protocol):
    def encode(self, images: Tensor) -> Tensor:
        """(F, 3, H, W) in -1..1 -> latents (F, C, h, w), unscaled."""

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse."""


@dataclass(frozen=True)
class Source:
    """Where a network came from: enough to know it again, and to find it."""

    path: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Source":
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in WEIGHTS]
        if not files:
            raise ValueError(f"{path} has no weights in it ({' or '.join(WEIGHTS)}); download it again.")
        return cls(str(path.absolute()), digest_of(max(files, key=lambda p: p.stat().st_size)))


def load_vae(path: Path, device: str = "cpu") -> VAE:
    """A Loopy checkpoint with its own VAE, a diffusers folder, or one safetensors file of SD's VAE.

    Raises ValueError with a sentence.
    """
    with _explained(path):
        return _load_vae(path, device)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What the libraries say of files that they cannot read, as a sentence that names the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"{path} cannot be read ({first}); copy or download it again.") from error


def _load_vae(path: Path, device: str) -> VAE:
    if is_loopy(path):
        header = read_header(path)
        if "autoencoder" not in header.parts:
            raise ValueError(f"{path.name} carries no VAE; give a diffusers VAE with --vae.")
        module = Autoencoder(AutoencoderConfig(**header.parts["autoencoder"]["sizes"]))
        state = {k: v.float() for k, v in load_tensors(path)["autoencoder"].items()}
        load_strictly(module, state, path)
        return _ready(module, device)
    return DiffusersVAE(_ready(_diffusers_vae(path), device))


class DiffusersVAE:
    """AutoencoderKL behind our interface; the mean of the posterior, so that a clip has one encoding."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images).latent_dist.mode()

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents).sample


def _diffusers_vae(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers warns of parts that nobody asked for
        from diffusers import AutoencoderKL
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    if path.is_dir():
        return AutoencoderKL.from_pretrained(path, local_files_only=True)
    # SD1.5's VAE; its file says nothing about its own sizes
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    )
    state = _safetensors(path)
    if any(key.startswith(("decoder.up.", "first_stage_model.")) for key in state):
        state = convert_ldm_vae_checkpoint(state, model.config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"{path.name} is not the VAE of Stable Diffusion 1.5 ({len(missing)} weights missing, "
            f"{len(unexpected)} unexpected); give such a file, or a diffusers VAE folder."
        )
    return model


def load_speech_encoder(path: Path, device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """A Loopy checkpoint with its own encoder, or a transformers wav2vec 2.0 folder -> a function
    from a voice (samples,) at 16 kHz to all hidden states (L, T, D). Raises ValueError with a sentence."""
    if is_loopy(path):
        header = read_header(path)
        if "speech_encoder" not in header.parts:
            raise ValueError(
                f"{path.name} carries no speech encoder; give a wav2vec 2.0 folder with --speech."
            )
        module = SpeechEncoder(header.parts["speech_encoder"])
        load_strictly(module, {k: v.float() for k, v in load_tensors(path)["speech_encoder"].items()}, path)
        module = _ready(module, device)
        return lambda voice: module(voice[None].to(device))[0]
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} is not a folder with a wav2vec 2.0 of transformers (no config.json in it).")
    with _explained(path):
        return _transformers_wav2vec(path, device)


def _transformers_wav2vec(path: Path, device: str) -> Callable[[Tensor], Tensor]:
    from transformers import Wav2Vec2Model

    model = _ready(Wav2Vec2Model.from_pretrained(path, local_files_only=True), device)
    preprocessor = path / "preprocessor_config.json"
    normalise = preprocessor.is_file() and json.loads(preprocessor.read_text()).get("do_normalize", True)

    def encode(voice: Tensor) -> Tensor:
        if normalise:
            voice = (voice - voice.mean()) / (voice.var(correction=0) + 1e-7).sqrt()
        states = model(voice[None].to(device), output_hidden_states=True).hidden_states
        return torch.cat(states)

    return encode


def is_loopy(path: Path) -> bool:
    """Is it a checkpoint of ours? Raises ValueError when there is nothing."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; check the path.")
    try:
        return path.is_file() and bool(read_header(path))
    except NotALoopyModel:
        return False


def _safetensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name} is not a safetensors file; convert it first.")
    return load_file(path)


def _ready(module: nn.Module, device: str) -> nn.Module:
    return module.eval().requires_grad_(False).to(device, torch.float32)
