"""The pack on real hosts: what it registers, what the quick start makes, cancelling, chaining."""

import itertools
import json
import math
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from graphs import VOICES, bare, change, find, inputs, node, quick_start, short_start
from media import Video, read_video, sound_seconds

from loopy_model.config import PUPPET
from loopy_model.video import read_video as read_pictures
from scripts.client import LOCAL, Client, Run
from scripts.environment import ROOT
from scripts.host import PACK, Host

INPUTS = {
    "LoopyLoadModel": ["model_name", "weight_dtype", "adapter", "adapter_strength"],
    "LoopySamplePortrait": ["portrait"],
    "LoopySampleVoice": ["voice"],
    "LoopyAudioEncode": ["loopy_model", "audio_encoder", "audio"],
    "LoopyAudioToLatents": ["loopy_model", "loopy_audio", "source", "level"],
    "LoopyMotionFrames": ["sampling", "stride", "ratio", "segments", "past_latents"],
    "LoopySampler": [
        *("loopy_model", "vae", "portrait", "loopy_audio", "seed", "steps", "audio_ratio"),
        *("ref_ratio", "start_frame", "frames", "motion_latents", "motion_frames", "options"),
    ],
    "LoopyVideoCombine": ["images", "fps", "filename_prefix", "audio"],
    "LoopyLatentsToVideo": ["latents", "vae", "fps", "filename_prefix", "audio"],
    "LoopySamplingOptions": [
        "solver",
        "eta",
        "guidance_start",
        "guidance_end",
        "guidance_every",
        "deep_every",
    ],
}
OUTPUTS = {
    "LoopyLoadModel": ["LOOPY_MODEL", "AUDIO_ENCODER", "VAE"],
    "LoopySamplePortrait": ["IMAGE"],
    "LoopySampleVoice": ["AUDIO"],
    "LoopyAudioEncode": ["LOOPY_AUDIO"],
    "LoopyAudioToLatents": ["LOOPY_MOTION_LATENTS"],
    "LoopyMotionFrames": ["LOOPY_MOTION_FRAMES"],
    "LoopySampler": ["LATENT"],
    "LoopyVideoCombine": ["VIDEO"],
    "LoopyLatentsToVideo": ["VIDEO"],
    "LoopySamplingOptions": ["LOOPY_SAMPLING_OPTIONS"],
}
DEFAULTS = {
    "LoopyLoadModel": {"weight_dtype": "default", "adapter": "none", "adapter_strength": 1.0},
    "LoopyMotionFrames": {"stride": 4, "ratio": 2, "segments": 5},
    "LoopySampler": {
        **{"steps": 25, "audio_ratio": 5.0, "ref_ratio": 3.0, "start_frame": 0, "frames": 0},
    },
    "LoopyVideoCombine": {"fps": 25.0},
    "LoopyLatentsToVideo": {"fps": 25.0},
    "LoopySamplingOptions": {
        **{"solver": "ddim", "eta": 0.0, "guidance_start": 0.0, "guidance_end": 1.0},
        **{"guidance_every": 1, "deep_every": 1},
    },
}
CHOICES = {
    ("LoopyLoadModel", "weight_dtype"): ["default", "fp32", "fp16", "bf16"],
    ("LoopyAudioToLatents", "source"): ["audio", "head movement", "expression"],
    ("LoopyMotionFrames", "sampling"): ["uniform", "mean", "random"],
    ("LoopySamplingOptions", "solver"): ["ddim", "dpm++ 2m", "unipc"],
}


def options(info: dict, name: str) -> dict:
    """What a node says of one of its inputs."""
    [spec] = [group[name] for group in info["input"].values() if name in group]
    return spec[1]


def choices(info: dict, name: str) -> list[str]:
    [spec] = [group[name] for group in info["input"].values() if name in group]
    return spec[1]["options"] if spec[0] == "COMBO" else spec[0]


# What the host registers


@pytest.mark.parametrize("node_id", INPUTS)
def test_node_is_registered_as_promised(client: Client, node_id: str) -> None:
    info = client.request(f"/object_info/{node_id}")[node_id]
    assert info["category"] == "Loopy"
    groups = (info["input_order"].get(group, []) for group in ("required", "optional"))
    assert [name for group in groups for name in group] == INPUTS[node_id]
    assert info["output"] == OUTPUTS[node_id]
    for name, default in DEFAULTS.get(node_id, {}).items():
        assert options(info, name)["default"] == default


@pytest.mark.parametrize("node_id", INPUTS)
def test_node_explains_itself(client: Client, node_id: str) -> None:
    info = client.request(f"/object_info/{node_id}")[node_id]
    assert info["description"]
    assert all(options(info, name).get("tooltip") for name in INPUTS[node_id])
    assert len(info["output_tooltips"]) == len(info["output"]) and all(info["output_tooltips"])


@pytest.mark.parametrize(("node_id", "name"), CHOICES)
def test_choices_are_those_promised(client: Client, node_id: str, name: str) -> None:
    info = client.request(f"/object_info/{node_id}")[node_id]
    assert choices(info, name) == CHOICES[node_id, name]


def test_bundled_files_are_offered(client: Client) -> None:
    info = client.object_info()
    assert "loopy-puppet.safetensors" in choices(info["LoopyLoadModel"], "model_name")
    portraits = {path.name for path in (ROOT / "assets" / "portraits").glob("*.png")}
    assert set(choices(info["LoopySamplePortrait"], "portrait")) == portraits
    assert len(choices(info["LoopySampleVoice"], "voice")) > 0


@pytest.mark.parametrize("node_id", INPUTS)
def test_help_page_is_where_the_frontend_looks(host: Host, node_id: str) -> None:
    with LOCAL.open(f"{host.url}/extensions/{PACK}/docs/{node_id}.md") as page:
        assert len(page.read()) > 100


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_bundled_workflows_show_every_input(path: Path) -> None:
    """Also those that have come since the graph was drawn."""
    for drawn in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        shown = {slot["name"] for slot in drawn["inputs"]}
        assert set(INPUTS.get(drawn["type"], [])) <= shown, drawn["type"]


def test_archive_for_users_has_help_and_workflows_and_no_tests() -> None:
    """.comfyignore is read as .gitignore is."""

    def files(*options: str) -> set[str]:
        listed = subprocess.run(
            ["git", "ls-files", *options], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return set(listed.stdout.splitlines())

    shipped = files() - files("--cached", "--ignored", "--exclude-from=.comfyignore")
    assert {f"web/docs/{node_id}.md" for node_id in INPUTS} <= shipped
    assert {
        "workflows/loopy_quick_start.json",
        "loopy_model/sampling.py",
        "assets/models/loopy-puppet.safetensors",
    } <= shipped
    assert not [
        name for name in shipped if name.startswith(("tests/", "docs/", "benchmarks/", "loopy_model/train/"))
    ]


def test_pack_has_no_other_nodes(client: Client) -> None:
    module = f"custom_nodes.{PACK}"
    ours = {key for key, info in client.object_info().items() if info["python_module"] == module}
    assert ours == set(INPUTS)


def test_start_up_log_has_no_complaint_about_us(host: Host) -> None:
    lines = host.log_lines()
    start_up = lines[: next(i for i, line in enumerate(lines) if "To see the GUI" in line)]
    complaint = re.compile("error|warning|fail|cannot|deprecat|Traceback|File ", re.IGNORECASE)
    assert not [line for line in start_up if "loopy" in line.lower() and complaint.search(line)]


# The quick start


@dataclass
class Finished:
    """The quick start after its first run."""

    run: Run
    path: Path
    video: Video


@pytest.fixture(scope="module")
def finished(host: Host, client: Client) -> Finished:
    prompt = quick_start()
    workflow = json.loads((ROOT / "workflows" / "loopy_quick_start.json").read_text())
    run = client.queue(prompt, workflow, previews="latent2rgb")
    [file] = run.wait()[find(prompt, "LoopyVideoCombine")]["images"]
    path = host.output / file["subfolder"] / file["filename"]
    return Finished(run, path, read_video(path))


def test_quick_start_makes_a_playable_video(finished: Finished) -> None:
    assert finished.path.suffix == ".mp4"
    assert (finished.video.codec, finished.video.audio_codec) == ("h264", "aac")
    assert finished.video.size == (512, 512)


def test_video_is_as_long_as_the_voice(finished: Finished) -> None:
    voice = sound_seconds(VOICES / inputs(quick_start(), "LoopySampleVoice")["voice"])
    half_a_frame = 0.5 / 25
    assert finished.video.fps == 25
    assert finished.video.frames == round(voice * 25)
    assert abs(finished.video.seconds - finished.video.audio_seconds) <= half_a_frame


def test_video_carries_its_graph(finished: Finished) -> None:
    assert bare(json.loads(finished.video.metadata["prompt"])) == bare(quick_start())
    assert json.loads(finished.video.metadata["workflow"])["nodes"]


def test_video_tells_nobody_where_its_maker_keeps_files(host: Host, finished: Finished) -> None:
    """The host notes in the prompt what a node says of its files."""
    told = json.dumps(finished.video.metadata)
    assert "loopy-puppet.safetensors" in told
    assert not [place for place in (host.base, host.tree, ROOT) if str(place) in told]


def test_progress_counts_the_steps_of_all_clips(finished: Finished) -> None:
    prompt = quick_start()
    sampler = find(prompt, "LoopySampler")
    clips = math.ceil(finished.video.frames / PUPPET.clip.frames)
    progress = [data for data in finished.run.data("progress") if data["node"] == sampler]
    assert {data["max"] for data in progress} == {clips * inputs(prompt, "LoopySampler")["steps"]}
    assert [data["value"] for data in progress] == sorted(data["value"] for data in progress)
    assert progress[-1]["value"] == progress[-1]["max"]


def test_previews_arrive(finished: Finished) -> None:
    assert finished.run.previews > 0


def test_second_run_is_fully_cached(client: Client, finished: Finished) -> None:
    run = client.queue(quick_start())
    run.wait()
    assert run.cached == set(quick_start())


# Cancelling


def test_cancelling_works_within_one_model_call(host: Host, client: Client) -> None:
    prompt = change(quick_start(), "LoopySampler", seed=9001)
    files = set(host.output.rglob("*"))
    client.run(change(prompt, "LoopySampler", steps=1, frames=12))  # everything is loaded
    times: list[float] = []
    run = client.queue(prompt)
    for event in run.follow():
        if event["type"] == "progress":
            times.append(time.monotonic())
            if len(times) == 4:
                client.interrupt()
    one_call = max(late - early for early, late in itertools.pairwise(times[:4]))
    assert run.events[-1]["type"] == "execution_interrupted"
    assert time.monotonic() - times[3] <= 2 * one_call + 0.5  # the call under way, and the message
    assert len(set(host.output.rglob("*")) - files) == 1  # the first run's file only


def test_run_after_a_cancelled_one_works(host: Host, client: Client) -> None:
    prompt = short_start(seed=9002)
    run = client.queue(change(prompt, "LoopySampler", frames=0))
    for event in run.follow():
        if event["type"] == "progress":
            client.interrupt()
    [file] = client.run(prompt)[find(prompt, "LoopyVideoCombine")]["images"]
    assert read_video(host.output / file["subfolder"] / file["filename"]).frames == 12


# Chaining with stock nodes, and the parts of the graph that the quick start leaves alone


def test_latents_and_images_go_on_into_stock_nodes(client: Client) -> None:
    prompt = short_start(seed=1)
    images = [find(prompt, "VAEDecode"), 0]
    prompt["scaled"] = node("ImageScaleBy", image=images, upscale_method="bicubic", scale_by=1.5)
    prompt["shown"] = node("PreviewImage", images=["scaled", 0])
    assert len(client.run(prompt)["shown"]["images"]) == 12


def test_video_goes_on_into_stock_nodes(host: Host, client: Client) -> None:
    prompt = short_start(seed=2)
    video = [find(prompt, "LoopyVideoCombine"), 0]
    prompt["saved"] = node("SaveVideo", video=video, filename_prefix="again", format="auto", codec="auto")
    prompt["parts"] = node("GetVideoComponents", video=video)
    prompt["shown"] = node("PreviewImage", images=["parts", 0])
    prompt["heard"] = node("PreviewAudio", audio=["parts", 1])
    outputs = client.run(prompt)
    [file] = outputs["saved"]["images"]
    assert read_video(host.output / file["subfolder"] / file["filename"]).frames == 12
    assert len(outputs["shown"]["images"]) == 12 and len(outputs["heard"]["audio"]) == 1


def test_latents_become_the_same_video_without_images(host: Host, client: Client) -> None:
    prompt = short_start(seed=8, steps=1, frames=60)  # more than are decoded at once
    prompt = change(prompt, "LoopyVideoCombine", images=[find(prompt, "VAEDecode"), 0])  # not scaled
    decode, combine = inputs(prompt, "VAEDecode"), inputs(prompt, "LoopyVideoCombine")
    values = {name: combine[name] for name in ("fps", "filename_prefix", "audio")}
    prompt["straight"] = node("LoopyLatentsToVideo", latents=decode["samples"], vae=decode["vae"], **values)
    outputs = client.run(prompt)
    files = [outputs[key]["images"][0] for key in ("straight", find(prompt, "LoopyVideoCombine"))]
    one, other = (read_pictures(host.output / file["subfolder"] / file["filename"])[0] for file in files)
    # Decoded in parts, a value may round to the other side, and the codec then decides otherwise for a few blocks.
    apart, shifted = ((one[first:] - other[: 60 - first]).abs().mean() for first in (0, 1))
    assert len(one) == len(other) == 60 and apart < 0.2 / 255 < shifted / 3


def with_options(prompt: dict, **values: object) -> dict:
    prompt["options"] = node("LoopySamplingOptions", **DEFAULTS["LoopySamplingOptions"] | values)
    return change(prompt, "LoopySampler", options=["options", 0])


def test_sampling_options_as_they_come_change_nothing(host: Host, client: Client) -> None:
    videos = []
    for prompt in (short_start(seed=9), with_options(short_start(seed=9))):
        [file] = client.run(prompt)[find(prompt, "LoopyVideoCombine")]["images"]
        videos.append(read_pictures(host.output / file["subfolder"] / file["filename"])[0])
    assert len(videos[0]) == 12 and (videos[0] == videos[1]).all()


@pytest.mark.parametrize(
    "values",
    [
        {"solver": "dpm++ 2m"},
        {"solver": "unipc"},
        {"eta": 1.0},
        {"guidance_end": 0.5},
        {"guidance_every": 2},
        {"deep_every": 2},
    ],
)
def test_every_sampling_option_runs(client: Client, values: dict) -> None:
    assert client.run(with_options(short_start(seed=10), **values))


def test_optional_inputs_are_optional(client: Client) -> None:
    prompt = short_start(seed=3, motion_latents=None, motion_frames=None)
    assert client.run(change(prompt, "LoopyVideoCombine", audio=None))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_every_weight_type_runs(client: Client, dtype: str) -> None:
    assert client.run(change(short_start(seed=4), "LoopyLoadModel", weight_dtype=dtype))


@pytest.mark.parametrize("source", ["audio", "head movement", "expression"])
def test_every_motion_source_runs(client: Client, source: str) -> None:
    assert client.run(change(short_start(seed=5), "LoopyAudioToLatents", source=source, level=0.8))


@pytest.mark.parametrize("sampling", ["uniform", "mean", "random"])
def test_every_way_to_pick_motion_frames_runs(client: Client, sampling: str) -> None:
    prompt = short_start(seed=6, frames=24)
    assert client.run(change(prompt, "LoopyMotionFrames", sampling=sampling))


@pytest.mark.parametrize(
    "values, said",
    [
        ({"ratio": 1}, "uniform of stride 4, ratio 1"),
        ({"sampling": "mean"}, "mean of stride 4, ratio 2"),
        ({}, ""),
    ],
)
def test_motion_frames_of_another_kind_than_trained_are_warned_of(
    host: Host, client: Client, values: dict, said: str
) -> None:
    before = len(host.log_lines())
    client.run(change(short_start(seed=11 + len(said), steps=1), "LoopyMotionFrames", **values))
    warnings = [line for line in host.log_lines()[before:] if "motion frames are" in line]
    assert len(warnings) == bool(said)
    assert all(said in line and "was trained with uniform of stride 4, ratio 2" in line for line in warnings)


def test_video_can_be_continued(client: Client) -> None:
    """The latents of one sampler are the past of the next, which starts where it ended."""
    prompt = short_start(seed=7)
    first, how = inputs(prompt, "LoopySampler"), inputs(prompt, "LoopyMotionFrames")
    made = [find(prompt, "LoopySampler"), 0]
    prompt["past"] = node("LoopyMotionFrames", **how, past_latents=made)
    prompt["next"] = node("LoopySampler", **{**first, "start_frame": 12, "motion_frames": ["past", 0]})
    prompt["decoded"] = node("VAEDecode", samples=["next", 0], vae=first["vae"])
    prompt["shown"] = node("PreviewImage", images=["decoded", 0])
    assert len(client.run(prompt)["shown"]["images"]) == 12
