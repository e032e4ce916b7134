"""Settings of the nodes that the quick start does not use."""

import copy

import pytest
from graphs import change, find, inputs, short_start

from scripts.client import Client


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_weights_of_every_precision(client: Client, precision: str) -> None:
    client.run(change(short_start(seed=30), "LoopyLoadModel", weight_dtype=precision))


@pytest.mark.parametrize(
    ("sampling", "source"), [("mean", "head movement"), ("random", "expression"), ("uniform", "audio")]
)
def test_every_sampling_and_source_over_two_clips(client: Client, sampling: str, source: str) -> None:
    prompt = change(short_start(seed=31, frames=24), "LoopyMotionFrames", sampling=sampling)
    client.run(change(prompt, "LoopyAudioToLatents", source=source, level=1.0))


def test_video_is_continued_from_its_own_latents(client: Client) -> None:
    prompt = short_start(seed=32, frames=12)
    sampler, motion = find(prompt, "LoopySampler"), find(prompt, "LoopyMotionFrames")
    prompt["101"], prompt["102"] = copy.deepcopy(prompt[motion]), copy.deepcopy(prompt[sampler])
    inputs(prompt, "VAEDecode")["samples"] = ["102", 0]
    prompt["101"]["inputs"]["past_latents"] = [sampler, 0]
    prompt["102"]["inputs"].update(motion_frames=["101", 0], start_frame=12)
    client.run(prompt)
