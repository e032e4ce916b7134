"""Bundled portraits and voices, so that a graph can start from nothing."""

from pathlib import Path

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..loopy_model.video import read_audio
from .host import ASSETS
from .types import CATEGORY


def _names(folder: str) -> list[str]:
    return sorted(
        path.name for path in (ASSETS / folder).iterdir() if path.suffix in {".png", ".flac", ".wav"}
    )


def _file(folder: str, name: str) -> Path:
    """Only a name from the list is opened, whatever the prompt says."""
    if name not in _names(folder):
        raise ValueError(
            f"{name} is not among the bundled {folder}; choose one of {', '.join(_names(folder))}."
        )
    return ASSETS / folder / name


class LoopySamplePortrait(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoopySamplePortrait",
            display_name="Loopy Sample Portrait",
            category=CATEGORY,
            description="A drawn portrait that comes with the pack; the bundled puppet model animates faces like it. "
            "Use Load Image for your own pictures with a full-size model.",
            inputs=[io.Combo.Input("portrait", options=_names("portraits"), tooltip="Which drawn portrait.")],
            outputs=[io.Image.Output(display_name="portrait", tooltip="The portrait, 512x512.")],
        )

    @classmethod
    def execute(cls, portrait: str) -> io.NodeOutput:
        with Image.open(_file("portraits", portrait)) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
        return io.NodeOutput(torch.from_numpy(pixels)[None])


class LoopySampleVoice(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoopySampleVoice",
            display_name="Loopy Sample Voice",
            category=CATEGORY,
            description="A short synthetic sentence that comes with the pack. Use Load Audio for your own voice.",
            inputs=[io.Combo.Input("voice", options=_names("voices"), tooltip="Which sentence.")],
            outputs=[io.Audio.Output(display_name="audio", tooltip="The voice.")],
        )

    @classmethod
    def execute(cls, voice: str) -> io.NodeOutput:
        waveform, rate = read_audio(_file("voices", voice))
        return io.NodeOutput({"waveform": waveform[None], "sample_rate": rate})
