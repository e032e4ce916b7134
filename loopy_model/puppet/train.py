"""What each of the puppet's three networks learns: speech encoder, autoencoder, face meter."""

import random
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from ..audio import align_to_frames
from ..autoencoder import Autoencoder
from ..speech_encoder import SpeechEncoder
from .clips import SIZE, draw_frames, to_bytes, to_signed
from .faces import render
from .fit import Recipe, fit, save_network
from .identity import draw_identity
from .meter import FaceMeter
from .motion import MOTION
from .speech import FPS, SAMPLES_PER_FRAME


def correlation(predicted: torch.Tensor, true: torch.Tensor) -> list[float]:
    """Pearson's r of each channel of (..., C), over all the rest."""
    both = [rearrange(x, "... c -> c (...)") for x in (predicted, true)]
    return [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(*both, strict=True)]


# --- speech encoder ---------------------------------------------------------------------


SPEECH = Recipe(steps=4000, batch=6, rate=2e-3)
_LOUDNESS = ((-0.8, 0.2), (-5.0, -2.2))  # log10 of the gain, and of the noise's rms


class LipReader(nn.Module):
    """Speech encoder plus a linear head that reads the mouth (open, width) per video frame."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SpeechEncoder()
        self.head = nn.Linear(self.encoder.width, 2)

    def forward(self, waveform: torch.Tensor, frames: int) -> torch.Tensor:
        last = self.encoder(waveform)[:, -1]  # (B, tokens, D)
        return self.head(rearrange(align_to_frames(last, frames, FPS), "f b d -> b f d"))


def train_speech_encoder(train: Path, test: Path, run_dir: Path, recipe: Recipe = SPEECH) -> dict:
    """Train on the clips drawn in `train`, report on those in `test`."""
    torch.manual_seed(recipe.seed)
    reader = LipReader()
    waveforms = np.load(train / "waveform.npy", mmap_mode="r")
    visemes = np.load(train / "motion.npy")[..., :2]

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        sound, truth = speech_batch(waveforms, visemes, recipe.batch, generator)
        return F.l1_loss(reader(sound, truth.shape[1]), truth)

    report = partial(judge_speech, reader, test)
    metrics = fit(reader, loss_of, report, recipe, run_dir / "speech")
    save_network(reader.encoder, run_dir / "speech_encoder.safetensors")
    return metrics


def speech_batch(
    waveforms: np.ndarray, visemes: np.ndarray, batch: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of 3 s (B, 48000) and their mouths (B, 75, 2).

    Each window is played 12 % slower to 15 % faster, which moves pitch and formants: this is
    what carries the encoder over to speakers it has not heard.
    """
    frames, sounds, truths = 75, [], []
    for _ in range(batch):
        clip = _draw(len(waveforms), generator)
        length = 66 + _draw(21, generator)  # frames of the original that become 75
        start = _draw(visemes.shape[1] - length, generator)
        samples = slice(start * SAMPLES_PER_FRAME, (start + length) * SAMPLES_PER_FRAME)
        sound = torch.tensor(waveforms[clip, samples].astype(np.float32))
        truth = torch.tensor(visemes[clip, start : start + length])
        sounds.append(_stretch(sound[:, None], frames * SAMPLES_PER_FRAME)[:, 0])
        truths.append(_stretch(truth, frames))
    sound = torch.stack(sounds)
    gain, noise = (10 ** _uniform(batch, low, high, generator) for low, high in _LOUDNESS)
    sound = sound * gain + noise * torch.randn(sound.shape, generator=generator)
    return sound, torch.stack(truths)


def judge_speech(reader: LipReader, test: Path) -> dict[str, float]:
    """Correlation with the true mouth on whole held-out clips."""
    waveforms = torch.tensor(np.load(test / "waveform.npy").astype(np.float32))
    truth = torch.tensor(np.load(test / "motion.npy")[..., :2])
    with torch.no_grad():
        read = torch.cat([reader(clip[None], truth.shape[1]) for clip in waveforms])
    return dict(zip(("open", "width"), correlation(read, truth), strict=True))


def _stretch(track: torch.Tensor, length: int) -> torch.Tensor:
    """(n, C) -> (length, C), linearly; the ends of the interval stay where they are."""
    channels = rearrange(track, "n c -> 1 c n")
    return rearrange(F.interpolate(channels, length, mode="linear"), "1 c n -> n c")


def _draw(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def _uniform(batch: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(batch, 1, generator=generator)


# --- autoencoder ------------------------------------------------------------------------

AUTOENCODER = Recipe(steps=1500, batch=16, rate=1.5e-3)
# Up to this share of the latents' std is added as noise in training: so the decoder learns to clean
# what a denoiser leaves behind, and the encoder to keep apart what must not be confused.
LATENT_NOISE = 0.25
FEATURES = ((0.25, 0.85), (0.2, 0.8))  # rows, columns of a face, of its picture's side: brows to chin
EYES = ((0.3, 0.55), (0.2, 0.8))
MOUTH = ((0.56, 0.85), (0.29, 0.71))


def region(images: torch.Tensor, part: tuple[tuple[float, float], tuple[float, float]]) -> torch.Tensor:
    """That part of (N, 3, S, S)."""
    rows, columns = (slice(*(round(edge * images.shape[-1]) for edge in edges)) for edges in part)
    return images[..., rows, columns]


def draw_faces(motion: np.ndarray, first_seed: int, count: int, size: int = SIZE) -> torch.Tensor:
    """`count` different people, each in a random pose of `motion` (N, F, 8): uint8 images."""
    people = [draw_identity(random.Random(f"face {first_seed + i}")) for i in range(count)]
    poses = drawn_poses(motion, first_seed, count)
    return to_bytes(render(torch.tensor(np.stack(people)), poses, size))


def drawn_poses(motion: np.ndarray, first_seed: int, count: int) -> torch.Tensor:
    """The poses (count, 8) that `draw_faces` gives to these seeds."""
    poses = motion.reshape(-1, motion.shape[-1])
    return torch.tensor(np.random.default_rng(first_seed).choice(poses, count))


def train_autoencoder(
    train: Path, test: Path, run_dir: Path, size: int = SIZE, recipe: Recipe = AUTOENCODER
) -> dict[str, float]:
    """Train on faces of its own seeds in the poses of `train`, report on others in those of `test`."""
    torch.manual_seed(recipe.seed)
    faces, held_out = _still_faces(train, test, size)
    network = Autoencoder()
    network.start_at_principal_components(to_signed(faces[:1024]))

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(faces), (recipe.batch,), generator=generator)
        return reconstruction_loss(network, to_signed(faces[index]), generator)

    report = partial(judge_autoencoder, network, held_out)
    metrics = fit(network, loss_of, report, recipe, run_dir / "autoencoder")
    network.normalise_latents(to_signed(faces[:1024]))
    save_network(network, run_dir / "autoencoder.safetensors")
    return metrics


def _still_faces(train: Path, test: Path, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training faces as bytes, held-out ones as -1..1."""
    faces = draw_faces(np.load(train / "motion.npy"), 100_000, 10_240, size)
    return faces, to_signed(draw_faces(np.load(test / "motion.npy"), 2_000_000, 192, size))


def reconstruction_loss(
    network: Autoencoder, images: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Of the pictures that come back from noisy latents."""
    return weighted_error(network.decode(noisy(network.encode(images), generator)) - images)


def noisy(latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each picture with its own amount of noise."""
    amount = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator)
    return latents + amount * latents.detach().std() * torch.randn(latents.shape, generator=generator)


def weighted_error(error: torch.Tensor) -> torch.Tensor:
    """L1, squared and edge errors; brows to chin count more than hair and wall, eyes and mouth most."""
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    loss = error.abs().mean() + error.square().mean() + 0.5 * edges
    for part, weight in ((FEATURES, 0.7), (EYES, 0.5), (MOUTH, 0.4)):
        inside = region(error, part)
        loss = loss + weight * (inside.abs().mean() + inside.square().mean())
    return loss


DECODER = Recipe(steps=1800, batch=16, rate=1e-3)
CLEANING = "autoencoder_cleaning"  # name of the result


def train_decoder(
    autoencoder: Autoencoder,
    train: Path,
    test: Path,
    run_dir: Path,
    size: int = SIZE,
    recipe: Recipe = DECODER,
) -> dict[str, float]:
    """Teach the decoder alone to clean noisy latents; the latents stay what they are, so a model can
    train on them at the same time."""
    torch.manual_seed(recipe.seed)
    faces, held_out = _still_faces(train, test, size)
    decoder = decoding_part(autoencoder)

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(faces), (recipe.batch,), generator=generator)
        return decoding_loss(autoencoder, to_signed(faces[index]), generator)

    report = partial(judge_autoencoder, autoencoder, held_out)
    metrics = fit(decoder, loss_of, report, recipe, run_dir / "decoder")
    save_network(autoencoder, run_dir / f"{CLEANING}.safetensors")
    return metrics


def decoding_part(network: Autoencoder) -> nn.ModuleDict:
    """What `train_decoder` trains."""
    return nn.ModuleDict({"synthesis": network.synthesis, "decoder": network.decoder})


def decoding_loss(network: Autoencoder, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`reconstruction_loss` of given latents, and the error of mean colours: a cell's wrong colour
    is what shows in flat areas."""
    with torch.no_grad():
        latents = noisy(network.encode(images), generator)
    error = network.decode(latents) - images
    colours = sum(F.avg_pool2d(error, size).abs().mean() for size in (4, 16))
    return weighted_error(error) + colours


@torch.no_grad()
def judge_autoencoder(network: Autoencoder, images: torch.Tensor) -> dict[str, float]:
    """PSNR in dB of clean reconstructions, of eyes and mouth alone, and with noisy latents; std of the
    first and the last latent channel."""
    latents = network.encode(images)
    clean = (network.decode(latents).clamp(-1, 1) - images).square() / 4
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    disturbed = network.decode(latents + 0.2 * latents.std() * noise).clamp(-1, 1)
    stds = latents.std((0, 2, 3))

    def decibels(error: torch.Tensor) -> float:
        return float(-10 * error.mean((1, 2, 3)).log10().mean())

    return {
        "psnr": decibels(clean),
        "psnr_eyes": decibels(region(clean, EYES)),
        "psnr_mouth": decibels(region(clean, MOUTH)),
        "psnr_noisy": decibels((disturbed - images).square() / 4),
        "std_first": float(stds[0]),
        "std_last": float(stds[-1]),
    }


# --- face meter -------------------------------------------------------------------------

METER = Recipe(steps=2500, batch=48, rate=2e-3)


def train_meter(
    autoencoder: Autoencoder, train: Path, test: Path, run_dir: Path, size: int = SIZE, recipe: Recipe = METER
) -> dict[str, float]:
    """Learn to read poses from drawn faces and from the autoencoder's versions of them."""
    torch.manual_seed(recipe.seed)
    motion = np.load(train / "motion.npy")
    faces, poses = draw_faces(motion, 300_000, 10_240, size), drawn_poses(motion, 300_000, 10_240)
    faces = torch.cat([faces[:5120], through_autoencoder(faces[5120:], autoencoder)])
    held_out = _held_out_frames(test, autoencoder, size)
    meter = FaceMeter()

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(faces), (recipe.batch,), generator=generator)
        images = disturb(faces[index].float() / 255, generator)
        return F.smooth_l1_loss(meter(images), poses[index], beta=0.1)

    metrics = fit(meter, loss_of, partial(judge_meter, meter, *held_out), recipe, run_dir / "meter")
    save_network(meter, run_dir / "meter.safetensors")
    return metrics


@torch.no_grad()
def through_autoencoder(faces: torch.Tensor, autoencoder: Autoencoder) -> torch.Tensor:
    """uint8 images -> uint8 reconstructions from slightly noisy latents."""
    generator, parts = torch.Generator().manual_seed(0), []
    for part in faces.split(32):
        latents = autoencoder.encode(to_signed(part))
        latents = latents + 0.08 * torch.randn(latents.shape, generator=generator)
        parts.append(to_bytes(autoencoder.decode(latents).clamp(-1, 1) / 2 + 0.5))
    return torch.cat(parts)


def disturb(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Change brightness and contrast, blur every other batch, add noise; images 0..1."""
    shape = (len(images), 1, 1, 1)
    contrast = 0.85 + 0.3 * torch.rand(shape, generator=generator)
    brightness = 0.16 * torch.rand(shape, generator=generator) - 0.08
    images = (images - 0.5) * contrast + 0.5 + brightness
    if _draw(2, generator):
        images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return images + 0.03 * torch.randn(images.shape, generator=generator)


def _held_out_frames(
    test: Path, autoencoder: Autoencoder, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every fourth frame of the test clips: as drawn, as reconstructed, and the truth."""
    motion, identity = np.load(test / "motion.npy")[:, ::4], np.load(test / "identity.npy")
    clips = zip(identity, motion, strict=True)
    drawn = torch.cat([draw_frames(person, moves, size) for person, moves in clips])
    truth = torch.tensor(motion.reshape(-1, len(MOTION)))
    return drawn, through_autoencoder(drawn, autoencoder), truth


@torch.no_grad()
def judge_meter(
    meter: FaceMeter, drawn: torch.Tensor, reconstructed: torch.Tensor, truth: torch.Tensor
) -> dict[str, float]:
    """Correlation per channel on held-out people, drawn and (ae_*) reconstructed."""
    metrics = {}
    for prefix, images in (("", drawn), ("ae_", reconstructed)):
        read = torch.cat([meter(part.float() / 255) for part in images.split(100)])
        values = correlation(read, truth)
        metrics |= {prefix + name: r for name, r in zip(MOTION, values, strict=True)}
    return metrics
