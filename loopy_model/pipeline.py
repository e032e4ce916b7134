"""A checkpoint that carries everything -> a talking portrait, outside ComfyUI."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from .adapter import apply_adapter, config_with
from .audio import hear
from .audio_to_latents import Source, log_variance_at
from .autoencoder import Autoencoder, AutoencoderConfig
from .config import PUPPET_RATIOS, SAMPLE_RATE
from .guidance import Guidance
from .model import Loopy
from .motion import TemporalSegments
from .portrait import square_portrait
from .sampling import Request, SamplingOptions, Step, generate
from .speech_encoder import SpeechEncoder
from .video import resampled
from .weights import NotALoopyModel, load_strictly, load_tensors, read_header

BUNDLED = Path(__file__).parents[1] / "assets" / "models" / "loopy-puppet.safetensors"


class Pipeline:
    """Portrait and waveform in, frames out."""

    def __init__(self, checkpoint: Path, adapter: Path | None = None, adapter_strength: float = 1.0) -> None:
        header, tensors = read_header(checkpoint), load_tensors(checkpoint)
        if header.parts.keys() != {"speech_encoder", "autoencoder"}:
            raise NotALoopyModel(
                f"{checkpoint.name} carries no audio encoder or VAE of its own; "
                "use it in ComfyUI, where both can be connected."
            )
        self.header, self.config = header, header.config
        if adapter:
            weights = tensors.get("loopy", {})
            tensors["loopy"] = apply_adapter(weights, adapter, header.config, adapter_strength)
            self.config = config_with(adapter, header.config, adapter_strength)
        self.model = Loopy(self.config)
        self.speech_encoder = SpeechEncoder(header.parts["speech_encoder"])
        self.vae = Autoencoder(AutoencoderConfig(**header.parts["autoencoder"]["sizes"]))
        for part, module in (
            ("loopy", self.model),
            ("speech_encoder", self.speech_encoder),
            ("autoencoder", self.vae),
        ):
            load_strictly(module, {k: v.float() for k, v in tensors.get(part, {}).items()}, checkpoint)
            module.eval().requires_grad_(False)

    def __call__(
        self, portrait: Tensor, waveform: Tensor, sample_rate: int, *choices: object, **more: object
    ) -> Tensor:
        """Portrait (H, W, C) 0..1, waveform (channels, samples) -> frames (F, size, size, 3) 0..1. The
        choices are those of `request`, in its order."""
        voice = waveform.mean(0)
        if sample_rate != SAMPLE_RATE:
            voice = resampled(voice, sample_rate, SAMPLE_RATE)
        request = self.request(portrait, voice, *choices, **more)
        if not len(request.speech):
            raise ValueError("the voice is shorter than half a video frame (20 ms); use a longer recording.")
        return torch.cat(list(self.clips(request)))

    @torch.inference_mode()
    def request(
        self,
        portrait: Tensor,
        voice: Tensor | Iterable[Tensor],
        guidance: Guidance = Guidance(*PUPPET_RATIOS),  # only puppets carry everything
        steps: int = 25,
        seed: int = 0,
        past: Tensor | None = None,
        level: tuple[Source, float] | None = None,
        options: SamplingOptions = SamplingOptions(),
    ) -> Request:
        """Portrait (H, W, C) 0..1, voice (samples,) at 16 kHz, whole or block by block -> everything
        encoded, nothing generated.

        `past` frames (P, size, size, 3) belong to the first P frames of the voice; what is generated
        goes on after them. A `level` of head movement or expression, 0 calm .. 1 lively, takes the
        voice's place in audio-to-latents.
        """
        speech = hear(voice, lambda part: self.speech_encoder(part[None])[0], self.config.clip.fps)
        if past is not None:
            self._refuse_past(past, len(speech))
        return Request(
            portrait=self.encode(square_portrait(portrait, self.config.image_size)[None]),
            speech=speech,
            segments=TemporalSegments(self.config.clip),
            seed=seed,
            steps=steps,
            guidance=guidance,
            options=options,
            start=0 if past is None else len(past),
            past=None if past is None else self.encode(past),
            motion_latents=level and self._motion_latents(*level, len(speech)),
        )

    def _refuse_past(self, past: Tensor, frames: int) -> None:
        size = self.config.image_size
        if past.shape[1:] != (size, size, 3):
            raise ValueError(
                f"past is {tuple(past.shape)}; this model needs frames of {size}x{size}: (P, {size}, {size}, 3)."
            )
        if len(past) >= frames:
            raise ValueError(
                f"past has {len(past)} frames, but the voice only {frames}; give fewer, or a longer voice."
            )

    @torch.inference_mode()
    def clips(
        self, request: Request, on_step: Callable[[Step], None] = lambda step: None
    ) -> Iterator[Tensor]:
        """Clip by clip, as they are made: nothing of the video stays but what later clips remember."""
        for step in generate(self.model, request):
            on_step(step)
            if step.finished is not None:
                yield self.decode(step.finished)

    def _motion_latents(self, source: Source, level: float, frames: int) -> Tensor:
        """(frames, T), the same for every frame."""
        module, log_variance = self.model.audio_to_latents, log_variance_at(self.config.audio, source, level)
        return module(module.variance_query(source, torch.tensor([log_variance]), 1))[0].expand(frames, -1)

    def encode(self, images: Tensor) -> Tensor:
        """(F, H, W, 3) 0..1 -> VAE latents (F, C, h, w)."""
        return self.vae.encode(rearrange(images, "f h w c -> f c h w") * 2 - 1)

    def decode(self, latents: Tensor) -> Tensor:
        """VAE latents (F, C, h, w) -> (F, H, W, 3) 0..1."""
        return rearrange(self.vae.decode(latents) / 2 + 0.5, "f c h w -> f h w c").clamp(0, 1)
