"""The presets hold the paper's numbers, and every config survives its trip through JSON."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from loopy_model.config import LOOPY, PUPPET, TINY, ClipGeometry, LoopyConfig, UNetConfig
from loopy_model.guidance import Guidance
from loopy_model.model import Loopy

PRESETS = pytest.mark.parametrize("config", [LOOPY, PUPPET, TINY], ids=["LOOPY", "PUPPET", "TINY"])


def count(net: torch.nn.Module, among: str = "") -> int:
    return sum(p.numel() for name, p in net.named_parameters() if among in name)


@pytest.fixture(scope="module")
def loopy() -> Loopy:
    with torch.device("meta"):
        return Loopy(LOOPY)


def test_loopy_has_the_papers_numbers() -> None:
    clip, audio = LOOPY.clip, LOOPY.audio
    assert (LOOPY.image_size, clip.fps, clip.frames) == (512, 25, 12)  # 3.5
    assert (clip.stride, clip.ratio, clip.segments) == (4, 2, 5)  # 3.2
    assert (clip.motion_span, clip.motion_frames) == (124, 20)
    assert clip.audio_window == 5  # 3.3: two before, two after
    assert (audio.latent_embeddings, audio.latent_width) == (128, 256)
    assert LOOPY.unet.time_channels == 1280
    assert Guidance() == (5.0, 3.0)  # 3.4
    assert LOOPY.diffusion.prediction == "epsilon"  # eq. 1
    assert LOOPY.latent_scale == 0.18215  # SD1.5's VAE


@pytest.mark.parametrize(
    "part, parameters",
    [
        ("reference_unet", 815_521_280),
        ("denoising_unet", 1_356_322_564),
        ("audio_norm", 1_536),
        ("audio_projection", 36_465_152),
        ("audio_to_latents", 12_291_072),
    ],
)
def test_parameters_of_each_part_of_loopy(loopy: Loopy, part: str, parameters: int) -> None:
    assert count(getattr(loopy, part)) == parameters


def test_parameters_of_loopy_and_of_what_it_adds_to_sd15(loopy: Loopy) -> None:
    net, sd15, head = loopy.denoising_unet, 859_520_964, 2 * 320 + 320 * 4 * 9 + 4
    text = count(net, "audio_modules")  # the audio attention has the size of the text attention
    inter, intra = count(net, "inter_modules"), count(net, "intra_modules")
    assert (inter, text, intra) == (223_651_200, 43_987_520, 273_150_400)
    assert count(net) == sd15 - text + inter + text + intra
    assert count(loopy.reference_unet) == sd15 - text - head
    assert count(loopy) == 2_220_601_604
    assert len(list(loopy.denoising_unet.blocks_with_sites())) == 7
    assert sum(len(block.attentions) for block in net.blocks_with_sites()) == 16


@pytest.mark.parametrize("config, most", [(PUPPET, 4_500_000), (TINY, 200_000)])
def test_the_small_presets_stay_small(config: LoopyConfig, most: int) -> None:
    assert count(Loopy(config)) <= most


@PRESETS
def test_a_config_survives_json(config: LoopyConfig) -> None:
    again = LoopyConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)


def test_ablations_are_in_the_config_and_survive_json() -> None:
    config = replace(
        TINY,
        clip=replace(TINY.clip, sampling="mean"),
        unet=replace(TINY.unet, temporal="joint"),
        audio=replace(TINY.audio, to_latents=False),
    )
    again = LoopyConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config != TINY


@PRESETS
def test_configs_from_before_the_ablations_are_the_full_model(config: LoopyConfig) -> None:
    values = config.to_dict()
    del values["clip"]["sampling"], values["unet"]["temporal"], values["audio"]["to_latents"]
    del values["unet"]["temporal_everywhere"], values["audio"]["layer"], values["audio"]["norm"]
    assert LoopyConfig.from_dict(values) == config
    assert (config.clip.sampling, config.unet.temporal, config.audio.to_latents) == ("uniform", "dual", True)


def test_unknown_ablations_are_refused() -> None:
    with pytest.raises(ValueError, match="^temporal is 'both'; choose one of dual, joint, intra, hallo.$"):
        replace(UNetConfig(), temporal="both")
    with pytest.raises(ValueError, match="^layer is 'deaf'; choose one of attention, transformer.$"):
        replace(LOOPY.audio, layer="deaf")
    with pytest.raises(ValueError, match="^sampling is 'median'; choose one of uniform, mean, random.$"):
        ClipGeometry(sampling="median")


@PRESETS
def test_a_config_is_frozen(config: LoopyConfig) -> None:
    with pytest.raises(FrozenInstanceError):
        config.image_size = 1
    with pytest.raises(FrozenInstanceError):
        config.clip.frames = 1


@pytest.mark.parametrize("part", [None, "clip", "unet", "audio", "diffusion"])
def test_unknown_names_are_refused(part: str | None) -> None:
    values = LOOPY.to_dict()
    (values[part] if part else values)["surprise"] = 1
    with pytest.raises(TypeError, match="surprise"):
        LoopyConfig.from_dict(values)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"channels": (320, 100)}, "differ in length"),
        ({"channels": (320, 648, 1280, 1280)}, "648 channels cannot be cut into 32 groups and 8 heads"),
        ({"heads": 3}, "320 channels cannot be cut into 32 groups and 3 heads"),
    ],
)
def test_widths_that_cannot_be_cut_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(UNetConfig(), **changes)


@pytest.mark.parametrize("context, window", [(0, 1), (1, 3), (2, 5)])
def test_the_audio_window_is_the_frame_and_its_context(context: int, window: int) -> None:
    assert ClipGeometry(audio_context=context).audio_window == window
