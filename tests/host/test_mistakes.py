"""What people feed the nodes with by mistake: it works, or one sentence says what to change."""

from datetime import datetime
from pathlib import Path

import pytest
import torch
from graphs import change, find, inputs, node, short_start, swap, with_portrait, with_voice
from media import Video, read_video, write_picture, write_tone
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentences import assert_clear, complaint

from loopy_model.config import TINY
from loopy_model.model import Loopy
from loopy_model.weights import Header, ModelCard, save_checkpoint
from scripts.client import Client, Prompt, PromptError
from scripts.host import Host


@pytest.fixture(autouse=True)
def nothing_half_written(host: Host) -> None:
    """After each test the output folder holds complete videos only, and nothing is outside."""
    yield
    outside = [path for path in host.base.iterdir() if path.suffix]
    assert [path.name for path in outside] == ["comfyui.log"]
    for path in host.output.rglob("*"):
        assert path.is_dir() or (path.suffix == ".mp4" and read_video(path).frames > 0), path


def make(host: Host, client: Client, prompt: Prompt) -> Video:
    [file] = client.run(prompt)[find(prompt, "LoopyVideoCombine")]["images"]
    return read_video(host.output / file["subfolder"] / file["filename"])


def works_or_explains(client: Client, prompt: Prompt, *names: str) -> None:
    try:
        client.run(prompt)
    except PromptError as error:
        assert_clear(str(error).split(": ", 1)[1], *names)


# Model files


def test_file_of_another_model(client: Client, model_folder: Path) -> None:
    save_file({"model.weight": torch.zeros(4, 4)}, model_folder / "other.safetensors")
    prompt = change(short_start(seed=10), "LoopyLoadModel", model_name="other.safetensors")
    assert_clear(complaint(client, prompt), "other.safetensors")


def test_download_that_was_cut_short(client: Client, model_folder: Path, bundled_model: Path) -> None:
    data = bundled_model.read_bytes()
    (model_folder / "half.safetensors").write_bytes(data[: len(data) // 2])
    prompt = change(short_start(seed=10), "LoopyLoadModel", model_name="half.safetensors")
    assert_clear(complaint(client, prompt), "half.safetensors")


@pytest.mark.parametrize("part", ["loopy", "speech_encoder", "autoencoder"])
def test_model_without_the_weights_of_a_part(
    client: Client, model_folder: Path, bundled_model: Path, part: str
) -> None:
    with safe_open(str(bundled_model), framework="pt") as file:
        metadata = file.metadata()
    kept = {name: weight for name, weight in load_file(bundled_model).items() if not name.startswith(part)}
    save_file(kept, model_folder / f"no-{part}.safetensors", metadata)
    prompt = change(short_start(seed=10), "LoopyLoadModel", model_name=f"no-{part}.safetensors")
    assert_clear(complaint(client, prompt), f"no-{part}.safetensors does not fit its own header")


@pytest.mark.parametrize("content", ["", "<html>Please log in to download this file.</html>"])
def test_text_with_the_name_of_a_model(client: Client, model_folder: Path, content: str) -> None:
    (model_folder / "page.safetensors").write_text(content)
    prompt = change(short_start(seed=10), "LoopyLoadModel", model_name="page.safetensors")
    assert_clear(complaint(client, prompt), "page.safetensors")


def test_model_file_that_is_gone(client: Client) -> None:
    prompt = change(short_start(seed=10), "LoopyLoadModel", model_name="gone.safetensors")
    assert "gone.safetensors" in complaint(client, prompt)  # the host's own sentence


# Voices


def test_empty_audio(client: Client) -> None:
    empty = {"duration": 0.0, "sample_rate": 16_000, "channels": 1}
    prompt = swap(short_start(seed=11, frames=0), "LoopySampleVoice", "EmptyAudio", **empty)
    assert_clear(complaint(client, prompt), "audio")


def test_silent_audio(host: Host, client: Client) -> None:
    silence = {"duration": 0.6, "sample_rate": 44_100, "channels": 2}
    prompt = swap(short_start(seed=11, frames=0), "LoopySampleVoice", "EmptyAudio", **silence)
    assert make(host, client, prompt).frames == 15


@pytest.mark.parametrize(
    ("rate", "channels"), [(8_000, 1), (44_100, 2), (96_000, 2), (192_000, 1), (47_187, 1), (16_000, 6)]
)
def test_audio_of_any_rate(host: Host, client: Client, input_folder: Path, rate: int, channels: int) -> None:
    write_tone(input_folder / f"{rate}-{channels}.wav", 0.6, rate, channels)
    prompt = with_voice(short_start(seed=12, frames=0), f"{rate}-{channels}.wav")
    video = make(host, client, prompt)
    assert video.frames == 15
    assert abs(video.seconds - video.audio_seconds) <= 0.5 / 25


def test_very_short_audio(host: Host, client: Client, input_folder: Path) -> None:
    write_tone(input_folder / "0.1.wav", 0.1)
    assert (
        make(host, client, with_voice(short_start(seed=13, frames=0), "0.1.wav")).frames == 3
    )  # 2.5 of them


def test_audio_of_less_than_half_a_frame(client: Client, input_folder: Path) -> None:
    write_tone(input_folder / "0.01.wav", 0.01)
    prompt = with_voice(short_start(seed=13, frames=0), "0.01.wav")
    assert_clear(complaint(client, prompt), "the audio is shorter than half a video frame")


def test_start_behind_the_end_of_the_audio(client: Client) -> None:
    prompt = short_start(seed=13, start_frame=100_000, frames=0)
    assert_clear(complaint(client, prompt), "start_frame")


def test_past_latents_of_another_size(client: Client) -> None:
    prompt = short_start(seed=15)
    sampler = find(prompt, "LoopySampler")
    larger = {"upscale_method": "bilinear", "width": 128, "height": 128, "crop": "disabled"}
    prompt["larger"] = node("LatentUpscale", samples=[sampler, 0], **larger)
    prompt["again"] = node(
        "LoopyMotionFrames", **inputs(prompt, "LoopyMotionFrames"), past_latents=["larger", 0]
    )
    prompt["on"] = node("LoopySampler", **inputs(prompt, "LoopySampler"))
    prompt["on"]["inputs"].update(motion_frames=["again", 0], start_frame=12)
    inputs(prompt, "VAEDecode")["samples"] = ["on", 0]
    assert_clear(complaint(client, prompt), "past_latents are 32 x 16 x 16")


def test_speech_of_another_model(client: Client, model_folder: Path) -> None:
    """Both where it is turned into motion latents and where it is sampled."""
    torch.manual_seed(0)
    save_checkpoint(
        model_folder / "other.safetensors",
        Header(TINY, ModelCard("", "", "", "")),
        {"loopy": Loopy(TINY)},
        torch.float32,
    )
    prompt = short_start(seed=16)
    prompt["other"] = node("LoopyLoadModel", model_name="other.safetensors", weight_dtype="default")
    for reader in ("LoopyAudioToLatents", "LoopySampler"):
        changed = change(prompt, reader, loopy_model=["other", 0])
        if reader == "LoopySampler":
            changed = change(changed, reader, motion_latents=None, motion_frames=None)
        assert_clear(
            complaint(client, changed), "loopy_audio was made for another model than other.safetensors"
        )


# Portraits


@pytest.mark.parametrize(("width", "height"), [(33, 500), (2000, 61)])
def test_portrait_of_any_size(
    host: Host, client: Client, input_folder: Path, width: int, height: int
) -> None:
    write_picture(input_folder / f"{width}x{height}.png", width, height)
    prompt = with_portrait(short_start(seed=14), f"{width}x{height}.png")
    assert make(host, client, prompt).frames == 12


@pytest.mark.parametrize("side", [10, 1])
def test_portrait_that_is_too_small(client: Client, input_folder: Path, side: int) -> None:
    write_picture(input_folder / f"{side}.png", side, side)
    prompt = with_portrait(short_start(seed=14), f"{side}.png")
    assert_clear(complaint(client, prompt), f"the portrait is {side}x{side} pixels")


def test_several_portraits(host: Host, client: Client) -> None:
    batch = {"width": 64, "height": 64, "batch_size": 3, "color": 0}
    prompt = swap(short_start(seed=14), "LoopySamplePortrait", "EmptyImage", **batch)
    assert make(host, client, prompt).frames == 12


# Video Combine


def combine(width: int = 64, height: int = 64, frames: int = 5, **values: object) -> Prompt:
    """Video Combine alone, on grey pictures."""
    grey = node("EmptyImage", width=width, height=height, batch_size=frames, color=0x808080)
    video = {"images": ["grey", 0], "fps": 25.0, "filename_prefix": "mistakes", **values}
    return {"grey": grey, "combine": node("LoopyVideoCombine", **video)}


def test_cancelling_while_images_are_written(host: Host, client: Client) -> None:
    files = set(host.output.rglob("*"))
    run = client.queue(combine(width=128, height=128, frames=960))
    for event in run.follow():
        if event["type"] == "progress":
            client.interrupt()
    assert run.events[-1]["type"] == "execution_interrupted"
    progress = [data for data in run.data("progress") if data["node"] == "combine"]
    assert {data["max"] for data in progress} == {960} and progress[-1]["value"] < 960
    assert set(host.output.rglob("*")) == files


def test_pictures_of_odd_size(host: Host, client: Client) -> None:
    video = make(host, client, combine(width=65, height=33))
    assert video.frames == 5 and abs(video.size[0] - 65) <= 1 and abs(video.size[1] - 33) <= 1


def test_pictures_with_alpha(host: Host, client: Client) -> None:
    prompt = combine(width=65, height=33)
    prompt["mask"] = node("SolidMask", value=0.5, width=65, height=33)
    prompt["alpha"] = node("JoinImageWithAlpha", image=["grey", 0], alpha=["mask", 0])
    inputs(prompt, "LoopyVideoCombine")["images"] = ["alpha", 0]
    assert make(host, client, prompt).codec == "h264"


def test_one_picture(host: Host, client: Client) -> None:
    assert make(host, client, combine(frames=1)).frames == 1


def test_pictures_of_one_pixel(client: Client) -> None:
    works_or_explains(client, combine(width=1, height=1), "images")


def test_latents_of_another_kind_of_model_are_refused(client: Client) -> None:
    prompt = short_start(seed=10)
    prompt["other"] = node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1)
    vae = inputs(prompt, "VAEDecode")["vae"]
    prompt["straight"] = node(
        "LoopyLatentsToVideo", latents=["other", 0], vae=vae, fps=25.0, filename_prefix="x"
    )
    del prompt[find(prompt, "LoopyVideoCombine")]
    assert_clear(complaint(client, prompt), "the latents have 5 dimensions")


def test_no_audio(host: Host, client: Client) -> None:
    assert make(host, client, combine()).audio_codec is None


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.05, 10.0])
def test_audio_of_another_length(host: Host, client: Client, seconds: float) -> None:
    prompt = combine(frames=25, audio=["silence", 0])
    prompt["silence"] = node("EmptyAudio", duration=seconds, sample_rate=192_000, channels=2)
    video = make(host, client, prompt)
    assert video.frames == 25 and video.seconds == pytest.approx(1, abs=1e-3)
    assert video.audio_seconds <= 1 + 0.5 / 25


@pytest.mark.parametrize("fps", [1.0, 23.976, 60.0])
def test_other_frame_rates(host: Host, client: Client, fps: float) -> None:
    assert make(host, client, combine(fps=fps)).fps == pytest.approx(fps, abs=1e-2)


@pytest.mark.parametrize("prefix", ["../../escape", "/tmp/escape", "..", "a/../../escape"])
def test_file_name_that_leads_out_of_the_output_folder(client: Client, prefix: str) -> None:
    assert_clear(complaint(client, combine(filename_prefix=prefix)), "filename_prefix")


@pytest.mark.parametrize("prefix", ["", "sub/folder/name", "%date:yyyy%", "ünï çødé", "a:b?c*d"])
def test_unusual_file_names(client: Client, prefix: str) -> None:
    works_or_explains(client, combine(filename_prefix=prefix), "filename_prefix")


def saved_as(host: Host, client: Client, prefix: str, fps: float) -> str:
    prompt = combine(filename_prefix=prefix, frames=2, fps=fps)
    [file] = client.run(prompt)["combine"]["images"]
    return (host.output / file["subfolder"] / file["filename"]).relative_to(host.output).as_posix()


def test_no_video_is_written_over_another(host: Host, client: Client) -> None:
    """Also where the prefix ends in a slash, as the name of a folder does."""
    names = [saved_as(host, client, "again/", fps) for fps in (24.0, 25.0)]
    assert names == ["again_00001_.mp4", "again_00002_.mp4"]


def test_dates_and_values_in_a_file_name(host: Host, client: Client) -> None:
    name = saved_as(host, client, "%date:yyyy/MM-dd%/%EmptyImage.width% wide, %fps% %date:yy.M%", 25.0)
    now = datetime.now()
    assert name == f"{now:%Y}/{now:%m-%d}/64 wide, %fps% {now:%y}.{now.month}_00001_.mp4"


def test_a_long_text_in_a_file_name_is_cut(host: Host, client: Client) -> None:
    prompt = combine(filename_prefix="%Text.value%-é", frames=2)
    prompt["text"] = {
        "class_type": "PrimitiveString",
        "inputs": {"value": "ü" * 300},
        "_meta": {"title": "Text"},
    }
    [file] = client.run(prompt)["combine"]["images"]
    assert file["filename"] == f"{'ü' * 40}-é_00001_.mp4"
