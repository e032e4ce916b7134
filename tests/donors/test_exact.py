"""An imported model computes what its donor computes, before anything is trained.

The donor runs in diffusers' classes; its reference attention is written once more here, in a few lines.
One thing in diffusers' motion module is not AnimateDiff's: its group norm runs over all frames of a clip
together, that of AnimateDiff's own code (and of its relatives) over each frame alone, as ours does. So
either theirs is made to run over frames, or ours over clips; nothing else is changed.
"""

import re
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from make_donors import TOKEN, adapter, moore, original_motion, sd15_and_animatediff, state, unet
from oracles import attention
from torch import Tensor, nn

from loopy_model.conditions import Conditions
from loopy_model.diffusion import NoiseSchedule
from loopy_model.donors import Import, WeightFile, build, prepare
from loopy_model.model import Loopy

SIZE, TIMESTEP = 8, 431
CLOSE = 1e-4  # the largest difference, float32


class BesideReference:
    """Self-attention whose keys and values are its own tokens and those of the reference picture."""

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference  # (N, C), normed

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        rows = []
        for own in hidden_states:
            seen = torch.cat([own, self.reference])
            rows.append(attention(attn.to_q(own), attn.to_k(seen), attn.to_v(seen), attn.heads))
        return attn.to_out[0](torch.stack(rows))


class PerFrame(nn.Module):
    """The norm of diffusers' motion module, for each frame alone: (B, C, F, h, w) -> the same."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.norm(frame) for frame in x.unbind(2)], 2)


class PerClip(nn.Module):
    """The norm of our temporal layer, over a clip's frames together: (F, C, h, w) -> the same."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(0, 1)[None])[0].transpose(0, 1)


def wrap_norms(net: nn.Module, kind: str, wrapper: type[nn.Module]) -> nn.Module:
    """The net with other norms in its layers of a kind."""
    layers = [m for name, m in net.named_modules() if re.search(rf"{kind}\.\d$", name)]
    assert len(layers) >= 20
    for layer in layers:
        layer.norm = wrapper(layer.norm)
    return net


def no_text(rows: int) -> Tensor:
    return torch.zeros(rows, 1, TOKEN)


def read_picture(net: UNet2DConditionModel, picture: Tensor) -> dict[str, Tensor]:
    """What each spatial self-attention reads in a clean picture at timestep 0."""
    seen: dict[str, Tensor] = {}

    def listen(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_pre_hook(lambda _, args: seen.update({name: args[0][0]}))

    handles = [listen(name, module) for name, module in net.named_modules() if name.endswith(".attn1")]
    net(picture, 0, no_text(1))
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def donor_predicts(net: UNetMotionModel, noisy: Tensor, seen: dict[str, Tensor]) -> Tensor:
    """(1, F, C, h, w) -> the same. `seen`: what the reference net read; nothing without a portrait."""
    before = dict(net.attn_processors)
    net.set_attn_processor(
        before | {f"{name}.processor": BesideReference(tokens) for name, tokens in seen.items()}
    )
    made = net(noisy.transpose(1, 2), TIMESTEP, no_text(noisy.shape[1])).sample.transpose(1, 2)
    net.set_attn_processor(before)
    return made


def values(model: Loopy) -> dict[str, Tensor]:
    generator, clip, audio = torch.Generator().manual_seed(5), model.config.clip, model.config.audio

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator)

    return {
        "noisy": draw(clip.frames, 4, SIZE, SIZE),
        "portrait": draw(4, SIZE, SIZE),
        "motion": draw(clip.motion_frames, 4, SIZE, SIZE),
        "windows": draw(clip.frames, clip.audio_window, audio.layers, audio.width),
    }


def conditions(model: Loopy, given: dict[str, Tensor], *kinds: str) -> Conditions:
    """Of the kinds that are named: portrait, motion, voice."""
    portrait = [site.normed for site in model.read(given["portrait"])]
    motion = [site.output[None] for site in model.read(given["motion"][0])]
    return model.encode_conditions(
        portrait if "portrait" in kinds else None,
        motion if "motion" in kinds else None,
        given["windows"] if "voice" in kinds else None,
        model.motion_latents_from_audio(given["windows"]) if "voice" in kinds else None,
    )


@torch.no_grad()
def loopy_predicts(model: Loopy, given: dict[str, Tensor], *kinds: str) -> Tensor:
    return model.denoise(given["noisy"], torch.tensor([TIMESTEP]), conditions(model, given, *kinds))


def difference(one: Tensor, other: Tensor) -> float:
    assert other.std() > 0.1  # the comparison means something
    largest = (one - other).abs().max().item()
    print(f"largest difference {largest:.1e} at a spread of {other.std():.2f}")  # pytest -rP shows it
    return largest


# --- donors and what is made of them ------------------------------------------------------------

Nets = tuple[UNetMotionModel, UNet2DConditionModel]


def motion_net(spatial: UNet2DConditionModel, motion: MotionAdapter) -> UNetMotionModel:
    """Norms as in AnimateDiff's own code."""
    return wrap_norms(UNetMotionModel.from_unet2d(spatial, motion).eval(), "motion_modules", PerFrame)


def sd15_nets() -> Nets:
    return motion_net(unet(), adapter()), unet()


def moore_nets() -> Nets:
    return motion_net(unet(seed=3), adapter()), unet(seed=4)


PAIRS = {"SD1.5 with AnimateDiff": (sd15_nets, sd15_and_animatediff), "Moore": (moore_nets, moore)}


@pytest.fixture(scope="module", params=PAIRS)
def nets_and_files(request: pytest.FixtureRequest) -> tuple[Nets, list[WeightFile]]:
    nets, files = PAIRS[request.param]
    return nets(), files()


def made(files: list[WeightFile], layout: str = "loopy") -> Loopy:
    plan: Import = prepare(files, layout)
    return build(plan.plan, plan.donor)


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
