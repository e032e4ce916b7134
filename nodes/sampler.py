import logging
import math
from collections.abc import Sequence

import comfy.model_management as mm
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io
from torch import Tensor

from ..loopy_model.budget import budget
from ..loopy_model.conditions import Speech
from ..loopy_model.config import ClipGeometry, Sampling
from ..loopy_model.guidance import Guidance
from ..loopy_model.motion import TemporalSegments
from ..loopy_model.portrait import square_portrait
from ..loopy_model.sampling import Request, SamplingOptions, generate, refuse_unlike_distilled
from .audio import check_speech
from .host import Turns
from .types import (
    CATEGORY,
    HostedLoopy,
    LoopyAudioType,
    LoopyModelType,
    MotionFrameSettings,
    MotionFramesType,
    MotionLatentsType,
    SamplingOptionsType,
)


class LoopySampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoopySampler",
            display_name="Loopy Sampler",
            category=CATEGORY,
            description="Generates the talking portrait at 25 fps, clip after clip (of 12 frames in the bundled model), "
            "with DDIM and separate guidance for voice and portrait. The latents go to VAE Decode.",
            search_aliases=["talking head", "lip sync", "audio driven", "portrait animation"],
            inputs=[
                LoopyModelType.Input("loopy_model", tooltip="From Load Loopy Model."),
                io.Vae.Input("vae", tooltip="Encodes the portrait; the VAE that the model was trained with."),
                io.Image.Input(
                    "portrait",
                    tooltip="One face, looking at the camera. The centred square of the picture is used; "
                    "of a batch, the first image.",
                ),
                LoopyAudioType.Input("loopy_audio", tooltip="From Loopy Audio Encode."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same video.",
                ),
                io.Int.Input(
                    "steps",
                    default=Request.steps,
                    min=1,
                    max=1000,
                    tooltip="DDIM steps per clip; the paper uses 25.",
                ),
                io.Float.Input(
                    "audio_ratio",
                    default=Guidance().audio_ratio,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="How strongly the voice drives the face (paper: 5). Lower it when the mouth overacts.",
                ),
                io.Float.Input(
                    "ref_ratio",
                    default=Guidance().ref_ratio,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="How strongly the result keeps to the portrait (paper: 3).",
                ),
                io.Int.Input(
                    "start_frame",
                    default=0,
                    min=0,
                    max=1_000_000,
                    advanced=True,
                    tooltip="First frame of the voice to generate; with past latents, to resume a long video. The latents "
                    "begin there: give the node that writes the video the voice without its first start_frame / 25 "
                    "seconds (Trim Audio Duration, with a duration to the end: as it comes, it is 60 s).",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=1_000_000,
                    advanced=True,
                    tooltip="How many frames to generate; 0 means to the end of the voice.",
                ),
                MotionLatentsType.Input(
                    "motion_latents",
                    optional=True,
                    tooltip="From Loopy Audio-to-Latents; without it, made from the voice.",
                ),
                MotionFramesType.Input(
                    "motion_frames",
                    optional=True,
                    tooltip="From Loopy Temporal Segment Motion Frames; without it, the model's own setting.",
                ),
                SamplingOptionsType.Input(
                    "options",
                    optional=True,
                    tooltip="From Loopy Sampling Options; without it, the paper's DDIM with guidance in every step.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latents", tooltip="One latent per video frame, for VAE Decode."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        loopy_model: HostedLoopy,
        vae,
        portrait: Tensor,
        loopy_audio: Speech,
        seed: int,
        steps: int,
        audio_ratio: float,
        ref_ratio: float,
        start_frame: int,
        frames: int,
        motion_latents: Tensor | None = None,
        motion_frames: MotionFrameSettings | None = None,
        options: SamplingOptions | None = None,
    ) -> io.NodeOutput:
        settings = motion_frames or MotionFrameSettings(TemporalSegments(loopy_model.config.clip), None)
        guidance, options = Guidance(audio_ratio, ref_ratio), options or SamplingOptions()
        _refuse_motion_frames(loopy_model, settings)
        check_speech(loopy_model, loopy_audio)
        if start_frame >= len(loopy_audio):
            raise ValueError(
                f"start_frame is {start_frame}, but the voice has {len(loopy_audio)} frames; choose a smaller "
                "start_frame."
            )
        if motion_latents is not None:
            _refuse_motion_latents(loopy_model, motion_latents, len(loopy_audio))
        refuse_unlike_distilled(loopy_model.config, steps, guidance, options)
        request = Request(
            portrait=_encode(loopy_model, vae, portrait),
            speech=loopy_audio,
            segments=settings.segments,
            seed=seed,
            steps=steps,
            guidance=guidance,
            options=options,
            start=start_frame,
            frames=frames or None,
            past=settings.past,
            motion_latents=motion_latents,
            dtype=loopy_model.compute_dtype,
        )
        return io.NodeOutput({"samples": _run(loopy_model, request)})


def _run(hosted: HostedLoopy, request: Request) -> Tensor:
    """All clips with progress, preview and cancelling -> (frames, C, h, w)."""
    needed = budget(hosted.config, request)
    logging.info("Loopy Sampler: %s", needed)
    # All of a card, since the host takes other models off it and streams the weights; of DirectML it knows nothing.
    card = math.inf if mm.is_directml_enabled() else mm.get_total_memory(hosted.device)
    lacking = needed.lacking(card, mm.get_free_memory(mm.intermediate_device()))
    if lacking:
        raise ValueError(lacking)
    previewer = latent_preview.get_previewer(hosted.device, hosted.latent_format)
    latents = torch.empty(needed.frames, *request.portrait.shape[1:], device=mm.intermediate_device())
    bar, done = None, 0
    for step in generate(hosted.model, request, Turns(hosted, needed)):
        bar = bar or comfy.utils.ProgressBar(step.total)
        x0 = hosted.latent_format.process_in(step.x0)
        bar.update_absolute(
            step.index,
            step.total,
            previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None,
        )
        if step.finished is not None:
            latents[done : done + len(step.finished)] = step.finished
            done += len(step.finished)
    return latents


def _encode(hosted: HostedLoopy, vae, portrait: Tensor) -> Tensor:
    """IMAGE -> VAE latents (1, C, h, w) on the model's device."""
    latents = vae.encode(square_portrait(portrait[0], hosted.config.image_size)[None])
    wanted = hosted.config.unet.latent_channels
    if latents.ndim != 4 or latents.shape[1] != wanted:
        raise ValueError(
            f"the VAE makes latents of {latents.shape[1]} channels, {hosted.file} needs {wanted}; "
            "connect the VAE that the model was trained with (often the vae output of Load Loopy Model)."
        )
    return latents.to(hosted.device, torch.float32)


def _refuse_motion_frames(hosted: HostedLoopy, settings: MotionFrameSettings) -> None:
    """Another number of them, or earlier latents of another size; warns where the net was trained otherwise."""
    clip, given = hosted.config.clip, settings.segments.clip
    if given.motion_frames != clip.motion_frames:
        raise ValueError(
            f"stride {given.stride} x segments {given.segments} makes {given.motion_frames} motion frames, "
            f"{hosted.file} was trained with {clip.motion_frames}; set stride x segments to that."
        )
    if (given.motion_ages, settings.segments.sampling) != (clip.motion_ages, clip.sampling):
        logging.warning(
            "Loopy Sampler: motion frames are %s, %s was trained with %s; what it makes of them is uncertain.",
            _described(given, settings.segments.sampling),
            hosted.file,
            _described(clip, clip.sampling),
        )
    frame = hosted.config.latent_shape
    if settings.past is not None and settings.past.shape[1:] != frame:
        raise ValueError(
            f"past_latents are {_size(settings.past.shape[1:])}, {hosted.file} needs {_size(frame)} (channels, height, "
            "width); use latents from a Loopy Sampler with the same model."
        )


def _refuse_motion_latents(hosted: HostedLoopy, motion_latents: Tensor, frames: int) -> None:
    if not hosted.config.audio.to_latents:
        raise ValueError(f"{hosted.file} reads no motion latents; leave motion_latents unconnected.")
    if motion_latents.shape[:2] != (frames, hosted.config.unet.time_channels):
        raise ValueError(
            "motion_latents were made from another voice or with another model; "
            "connect the same loopy_audio and loopy_model to Loopy Audio-to-Latents."
        )


def _described(clip: ClipGeometry, sampling: Sampling) -> str:
    return f"{sampling} of stride {clip.stride}, ratio {clip.ratio}, segments {clip.segments}"


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
