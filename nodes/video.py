import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain

import comfy.model_management as mm
import comfy.utils
from comfy.cli_args import args
from comfy_api.latest import InputImpl, io, ui
from torch import Tensor

from ..loopy_model.video import write_video
from .file_names import free_path
from .types import CATEGORY

PART = 48  # frames that are decoded and written at once

FPS = io.Float.Input(
    "fps",
    default=25.0,
    min=1.0,
    max=120.0,
    step=0.001,
    tooltip="Frames per second. Loopy generates 25; change it only after frame interpolation.",
)
PREFIX = io.String.Input(
    "filename_prefix",
    default="loopy/talking",
    tooltip="Name below the output folder; folders are made, a number is added. %date:yyyy-MM-dd% and "
    "%Node.widget% are filled in.",
)
VOICE = io.Audio.Input(
    "audio",
    optional=True,
    tooltip="The voice, from the first image on; of a batch, the first. Cut where the images end. Of a part that was "
    "made from start_frame on, the voice without its first start_frame / 25 seconds (Trim Audio Duration, with a "
    "duration to the end: as it comes, it is 60 s). Without it the video is silent.",
)


def _schema_of_writer(first: list[io.Input], **said: object) -> io.Schema:
    """Of a node that writes one video; `first` are its inputs before the common ones."""
    return io.Schema(
        category=CATEGORY,
        is_output_node=True,
        inputs=[*first, FPS, PREFIX, VOICE],
        outputs=[io.Video.Output(display_name="video", tooltip="The written file, for video nodes.")],
        hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        **said,
    )


class LoopyVideoCombine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema_of_writer(
            [
                io.Image.Input(
                    "images",
                    tooltip="The frames. Alpha is dropped; an odd width or height grows by one pixel.",
                )
            ],
            node_id="LoopyVideoCombine",
            display_name="Loopy Video Combine",
            description="Writes the images and the voice into one mp4 (H.264, AAC) in the output folder and shows it here. "
            "The workflow is stored in the file: drop the mp4 on ComfyUI to get it back.",
            search_aliases=["save video", "mp4"],
        )

    @classmethod
    def execute(
        cls, images: Tensor, fps: float, filename_prefix: str, audio: dict | None = None
    ) -> io.NodeOutput:
        return _save(_in_parts(images, lambda part: part), fps, filename_prefix, audio, cls.hidden)


class LoopyLatentsToVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema_of_writer(
            [
                io.Latent.Input("latents", tooltip="From Loopy Sampler."),
                io.Vae.Input("vae", tooltip="The VAE that the sampler used."),
            ],
            node_id="LoopyLatentsToVideo",
            display_name="Loopy Latents to Video",
            description="VAE Decode and Video Combine in one, for long videos: a few frames at a time are decoded and "
            "written, so the images are never in memory as a whole. Ten minutes of them would take gigabytes.",
            search_aliases=["save video", "mp4", "long video"],
        )

    @classmethod
    def execute(
        cls, latents: dict, vae, fps: float, filename_prefix: str, audio: dict | None = None
    ) -> io.NodeOutput:
        samples = latents["samples"]
        if samples.ndim != 4:
            raise ValueError(
                f"the latents have {samples.ndim} dimensions instead of one picture each; "
                "connect the latents of a Loopy Sampler."
            )
        return _save(_in_parts(samples, vae.decode), fps, filename_prefix, audio, cls.hidden)


def _in_parts(frames: Tensor, images_of: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Images or latents -> images a few at a time, with progress and cancelling between them."""
    bar = comfy.utils.ProgressBar(len(frames))
    for part in frames.split(PART):
        mm.throw_exception_if_processing_interrupted()
        yield images_of(part)
        bar.update(len(part))


def _save(parts: Iterator[Tensor], fps: float, prefix: str, audio: dict | None, hidden) -> io.NodeOutput:
    first = next(parts)
    path, subfolder = free_path(prefix, first.shape[2], first.shape[1], hidden.prompt)
    waveform, rate = (None, 0) if audio is None else (audio["waveform"][0], int(audio["sample_rate"]))
    frames = chain([first], parts)
    write_video(path, frames, Fraction(round(fps * 1000), 1000), waveform, rate, _metadata(hidden))
    shown = ui.SavedResult(path.name, subfolder, io.FolderType.output)
    return io.NodeOutput(InputImpl.VideoFromFile(str(path)), ui=ui.PreviewVideo([shown]))


def _metadata(hidden) -> dict[str, str]:
    """What SaveVideo stores too: the prompt and the workflow."""
    if args.disable_metadata:
        return {}
    values = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {name: json.dumps(value) for name, value in values.items() if value is not None}
