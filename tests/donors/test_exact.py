"""An imported model computes what its donor computes, before anything is trained."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNetMotionModel
from make_donors import adapter, moore, original_motion, sd15_and_animatediff, state, unet
from side_by_side import (
    CLOSE,
    SIZE,
    TIMESTEP,
    PerClip,
    conditions,
    difference,
    donor_predicts,
    loopy_predicts,
    made,
    motion_net,
    no_text,
    read_picture,
    values,
    wrap_norms,
)

from loopy_model.diffusion import NoiseSchedule
from loopy_model.donors import WeightFile, prepare
from loopy_model.model import Loopy

# --- donors and what is made of them ------------------------------------------------------------

Nets = tuple[UNetMotionModel, UNet2DConditionModel]


def sd15_nets() -> Nets:
    return motion_net(unet(), adapter()), unet()


def moore_nets() -> Nets:
    return motion_net(unet(seed=3), adapter()), unet(seed=4)


PAIRS = {"SD1.5 with AnimateDiff": (sd15_nets, sd15_and_animatediff), "Moore": (moore_nets, moore)}


@pytest.fixture(scope="module", params=PAIRS)
def nets_and_files(request: pytest.FixtureRequest) -> tuple[Nets, list[WeightFile]]:
    nets, files = PAIRS[request.param]
    return nets(), files()


@pytest.fixture(scope="module")
def model(nets_and_files: tuple[Nets, list[WeightFile]]) -> Loopy:
    return made(nets_and_files[1])


@torch.no_grad()
@pytest.mark.parametrize(
    "kinds", [(), ("motion", "voice"), ("portrait",), ("portrait", "motion", "voice")], ids=" ".join
)
def test_the_model_computes_what_the_donor_computes(
    nets_and_files: tuple[Nets, list[WeightFile]], model: Loopy, kinds: tuple[str, ...]
) -> None:
    (net, reader), _ = nets_and_files
    given = values(model)
    seen = read_picture(reader, given["portrait"]) if "portrait" in kinds else {}
    theirs = donor_predicts(net, given["noisy"], seen)
    assert difference(loopy_predicts(model, given, *kinds), theirs) <= CLOSE


def test_one_temporal_layer_computes_it_too_without_motion_frames(
    nets_and_files: tuple[Nets, list[WeightFile]],
) -> None:
    (net, reader), files = nets_and_files
    model = made(files, "joint")
    given = values(model)
    theirs = donor_predicts(net, given["noisy"], read_picture(reader, given["portrait"]))
    assert difference(loopy_predicts(model, given, "portrait", "voice"), theirs) <= CLOSE
    assert difference(loopy_predicts(model, given, "portrait", "motion"), theirs) > 100 * CLOSE


@torch.no_grad()
def test_the_portrait_and_the_motion_modules_matter(
    nets_and_files: tuple[Nets, list[WeightFile]], model: Loopy
) -> None:
    """What the other tests compare is not blind to them."""
    given = values(model)
    everything = loopy_predicts(model, given, "portrait")
    assert difference(loopy_predicts(model, given), everything) > 100 * CLOSE
    for block in (model.denoising_unet.down_blocks[3], model.denoising_unet.mid_block):
        for layer in block.intra_modules:
            kept = layer.proj_out.weight.clone()
            layer.proj_out.weight.zero_()
            assert difference(loopy_predicts(model, given, "portrait"), everything) > CLOSE
            layer.proj_out.weight.copy_(kept)


@torch.no_grad()
def test_the_text_attentions_bias_is_not_lost() -> None:
    """Zero tokens silence the text attention but for it."""
    net = deepcopy(unet())
    files = [WeightFile("unet", state(unet())), WeightFile("mm", original_motion(state(adapter())))]
    model, noisy = made(files), torch.randn(1, 1, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(6))
    still = replace(conditions(model, values(model)), spatial_only=True)
    ours = model.denoise(noisy, torch.tensor([TIMESTEP]), still)[0]
    assert difference(ours, net(noisy[0], TIMESTEP, no_text(1)).sample) <= CLOSE
    for name, parameter in net.named_parameters():
        if name.endswith("attn2.to_out.0.bias"):
            parameter.zero_()
    assert difference(ours, net(noisy[0], TIMESTEP, no_text(1)).sample) > 10 * CLOSE


# --- motion modules of other versions -----------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v3", "AnimateLCM", "diffusers"])
def test_every_version_of_the_motion_module_is_exact(version: str) -> None:
    """v1: no module in the middle, 24 encodings; v3: none in the middle; AnimateLCM: no encodings."""
    motion = adapter(middle=version in ("AnimateLCM", "diffusers"))
    weights = state(motion)
    if version != "diffusers":
        length = 24 if version == "v1" else 32
        weights = original_motion(weights, encodings=version != "AnimateLCM", length=length)
    net = motion_net(unet(), motion)
    model = made([WeightFile("mm", weights), WeightFile("unet", state(unet()))])
    given = values(model)
    assert (
        difference(loopy_predicts(model, given, "motion"), donor_predicts(net, given["noisy"], {})) <= CLOSE
    )


def test_with_norms_over_clips_it_is_diffusers_motion_model_as_it_stands() -> None:
    """The whole model in one file."""
    net = UNetMotionModel.from_unet2d(unet(), adapter()).eval()
    model = made([WeightFile("unet_motion", state(net))])
    wrap_norms(model.denoising_unet, "intra_modules", PerClip)
    given = values(model)
    theirs = donor_predicts(net, given["noisy"], read_picture(unet(), given["portrait"]))
    assert difference(loopy_predicts(model, given, "portrait", "motion", "voice"), theirs) <= CLOSE


# --- noise --------------------------------------------------------------------------------------

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", steps_offset=1, clip_sample=False)
ZERO_SNR = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")


@pytest.mark.parametrize(
    "files, settings",
    [(sd15_and_animatediff, BETAS), (moore, BETAS | ZERO_SNR)],
    ids=["AnimateDiff", "Moore"],
)
def test_the_header_names_the_noise_that_the_donor_samples_with(files, settings: dict) -> None:  # noqa: ANN001
    """The settings are those of the donors' own inference files."""
    theirs = DDIMScheduler(**settings)
    theirs.set_timesteps(25)
    ours = NoiseSchedule(prepare(files()).plan.config.diffusion)
    assert (ours.alphas - theirs.alphas_cumprod).abs().max() < 1e-5
    assert ours.timesteps(25) == theirs.timesteps.tolist()
    assert ours.final_alpha == theirs.final_alpha_cumprod
    assert ours.config.prediction == theirs.config.prediction_type
