import comfy.model_management as mm
import torch
from comfy_api.latest import io
from torch import Tensor

from ..loopy_model.audio import hear
from ..loopy_model.audio_to_latents import SOURCES, log_variance_at
from ..loopy_model.conditions import Speech
from ..loopy_model.config import SAMPLE_RATE, AudioConfig
from .host import as_in_training, at_16_khz
from .types import CATEGORY, HostedLoopy, LoopyAudioType, LoopyModelType, MotionLatentsType


def mono(audio: dict | None) -> Tensor:
    """AUDIO of any rate and channels -> (samples,) at 16 kHz."""
    if audio is None or audio["waveform"].shape[-1] == 0:
        raise ValueError(
            "the audio is empty; connect a recording with sound (a video without a sound track has none)."
        )
    waveform = audio["waveform"][0].to("cpu", torch.float32).mean(0)
    return at_16_khz(waveform, int(audio["sample_rate"]))


class LoopyAudioEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoopyAudioEncode",
            display_name="Loopy Audio Encode (wav2vec)",
            category=CATEGORY,
            description="Turns a voice into what the model hears: the hidden states of wav2vec, one set per video frame; "
            "each frame then hears itself, two frames before and two after. Any rate, mono or stereo, any "
            "length. Music in the background weakens lip sync: separate the voice first.",
            inputs=[
                LoopyModelType.Input(
                    "loopy_model", tooltip="Says how many frames per second and which layers are needed."
                ),
                io.AudioEncoder.Input(
                    "audio_encoder",
                    tooltip="From Load Loopy Model, or Load Audio Encoder with the "
                    "wav2vec that the model was trained with.",
                ),
                io.Audio.Input(
                    "audio",
                    tooltip="The voice; of a batch, the first. The video gets round(duration x 25) frames.",
                ),
            ],
            outputs=[
                LoopyAudioType.Output(
                    display_name="loopy_audio", tooltip="Speech features for the whole recording."
                )
            ],
        )

    @classmethod
    def execute(cls, loopy_model: HostedLoopy, audio_encoder, audio: dict) -> io.NodeOutput:
        def encode(waveform: Tensor) -> Tensor:
            mm.throw_exception_if_processing_interrupted()
            voice = as_in_training(waveform, audio_encoder)
            output = audio_encoder.encode_audio(voice[None, None], SAMPLE_RATE)
            return torch.cat(output["encoded_audio_all_layers"]).to(mm.intermediate_device())

        speech = hear(mono(audio), encode, loopy_model.config.clip.fps)
        if not len(speech):
            raise ValueError("the audio is shorter than half a video frame (20 ms); use a longer recording.")
        _check_fits(speech, loopy_model.config.audio, loopy_model.file)
        return io.NodeOutput(speech)


def _check_fits(speech: Speech, wanted: AudioConfig, file: str) -> None:
    layers, width = speech.features.shape[1:]
    if width != wanted.width or layers < wanted.layers:
        raise ValueError(
            f"the audio encoder gives {layers} layers of {width} channels, {file} needs "
            f"{wanted.layers} of {wanted.width}; connect the encoder that the model was trained with."
        )


def check_speech(hosted: HostedLoopy, speech: Speech) -> None:
    """Raises ValueError where the speech was encoded for another model."""
    layers, width = speech.features.shape[1:]
    wanted, fps = hosted.config.audio, hosted.config.clip.fps
    if width != wanted.width or layers < wanted.layers or speech.fps != fps:
        raise ValueError(
            f"loopy_audio was made for another model than {hosted.file}; run Loopy Audio Encode with this model."
        )


class LoopyAudioToLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoopyAudioToLatents",
            display_name="Loopy Audio-to-Latents",
            category=CATEGORY,
            description="Makes the motion latents that steer the whole picture through the timestep embedding. From the "
            "audio (as in the paper), or from a wanted amount of head movement or expression. Optional: "
            "without this node the sampler uses the audio.",
            inputs=[
                LoopyModelType.Input(
                    "loopy_model", tooltip="The model whose audio-to-latents module is used."
                ),
                LoopyAudioType.Input("loopy_audio", tooltip="From Loopy Audio Encode."),
                io.Combo.Input(
                    "source",
                    options=list(SOURCES),
                    default="audio",
                    tooltip="What the motion latents are made from. audio follows the voice; the other two "
                    "take the level below.",
                ),
                io.Float.Input(
                    "level",
                    default=0.5,
                    min=0.0,
                    max=1.5,
                    step=0.05,
                    tooltip="Amount of head movement or expression: 0 calm, 1 lively; in the bundled model as the calmest "
                    "and the liveliest of its training clips, in others between two fixed amounts. Not used when the "
                    "source is audio. A higher audio_ratio in Loopy Sampler follows it more strictly.",
                ),
            ],
            outputs=[
                MotionLatentsType.Output(
                    display_name="motion_latents", tooltip="One motion latent per frame."
                )
            ],
        )

    @classmethod
    def execute(
        cls, loopy_model: HostedLoopy, loopy_audio: Speech, source: str, level: float
    ) -> io.NodeOutput:
        if not loopy_model.config.audio.to_latents:
            raise ValueError(
                f"{loopy_model.file} has no audio-to-latents module; leave this node out and the sampler's "
                "motion_latents unconnected."
            )
        check_speech(loopy_model, loopy_audio)
        mm.load_models_gpu([loopy_model.patchers["denoise"]])
        if source == "audio":
            latents = _from_audio(loopy_model, loopy_audio)
        else:
            latents = _from_level(loopy_model, source, level).expand(len(loopy_audio), -1)
        return io.NodeOutput(latents.to(mm.intermediate_device(), torch.float32))


def _from_audio(hosted: HostedLoopy, speech: Speech) -> Tensor:
    """(frames, T), a few hundred frames at a time: windows are five times as large as the features."""
    model, clip, audio = hosted.model, hosted.config.clip, hosted.config.audio
    parts = []
    for start in range(0, len(speech), 256):
        frames = min(256, len(speech) - start)
        windows = speech.windows(start, frames, clip.audio_context, audio.layers)
        windows = windows.to(hosted.device, hosted.compute_dtype)
        parts.append(model.motion_latents_from_audio(windows)[0])
    return torch.cat(parts)


def _from_level(hosted: HostedLoopy, source: str, level: float) -> Tensor:
    """(1, T), for every frame."""
    module = hosted.model.audio_to_latents
    log_variance = torch.tensor(
        [log_variance_at(hosted.config.audio, source, level)],
        device=hosted.device,
        dtype=hosted.compute_dtype,
    )
    return module(module.variance_query(source, log_variance, 1))[0]
