"""The ablations of the paper's table 3: each can be trained, run, stored, and differs where it should."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import lively, small_model
from test_model import encode, inputs, predict
from torch import Tensor

from loopy_model.conditions import Speech
from loopy_model.config import LOOPY, PUPPET, TINY, LoopyConfig
from loopy_model.diffusion import NoiseSchedule
from loopy_model.model import Loopy
from loopy_model.motion import TemporalSegments
from loopy_model.sampling import Request, generate
from loopy_model.train.objective import Batch, ConditionDropping, draw, loss_per_sample
from loopy_model.weights import Header, ModelCard, load_strictly, load_tensors, read_header, save_checkpoint


def variant(temporal: str = "dual", to_latents: bool = True, **clip: int | str) -> LoopyConfig:
    return replace(
        TINY,
        clip=replace(TINY.clip, **clip),
        unet=replace(TINY.unet, temporal=temporal),
        audio=replace(TINY.audio, to_latents=to_latents),
    )


VARIANTS = {
    "full": TINY,
    "no inter-clip layer, its motion frames in the other": variant("joint", segments=1),
    "no inter-clip layer, no motion frames": variant("intra"),
    "no temporal segment module": variant(segments=1),
    "no audio-to-latents": variant(to_latents=False),
    "one temporal layer, consecutive motion frames": variant("joint", ratio=1),
    "one temporal layer of two attentions": replace(
        TINY, unet=replace(TINY.unet, temporal="joint", intra_attentions=2)
    ),
    "the paper's simple baseline": variant("joint", to_latents=False, segments=1),
    "Hallo's temporal and audio layers": replace(
        variant("hallo", segments=1, ratio=1),
        unet=replace(TINY.unet, temporal="hallo", intra_attentions=2),
        audio=replace(TINY.audio, layer="transformer", norm=False),
    ),
    "temporal layers everywhere": replace(TINY, unet=replace(TINY.unet, temporal_everywhere=True)),
    "r = 1": variant(ratio=1),
    "mean": variant(sampling="mean"),
    "random": variant(sampling="random"),
}
EVERY_VARIANT = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
ABLATED = ("joint", "intra")


def random_batch(config: LoopyConfig, size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    clip, audio, side = config.clip, config.audio, config.latent_size

    def randn(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=generator)

    return Batch(
        clip=randn(clip.frames, 4, side, side),
        reference=randn(4, side, side),
        motion=randn(clip.motion_frames, 4, side, side),
        present=torch.ones(size, clip.motion_frames, dtype=torch.bool),
        windows=randn(clip.frames, clip.audio_window, audio.layers, audio.width),
        movement=randn(),
        expression=randn(),
    )


def losses(model: Loopy, size: int = 6, dropping: ConditionDropping | None = None) -> Tensor:
    """Of one step, with its own draws."""
    generator, batch = torch.Generator().manual_seed(1), random_batch(model.config, size)
    draws = draw(size, 1000, dropping or ConditionDropping(), generator)
    draws = replace(draws, noise=torch.randn(batch.clip.shape, generator=generator))
    return loss_per_sample(model, NoiseSchedule(model.config.diffusion), batch, draws, False)


# --- every variant ------------------------------------------------------------------------------


@EVERY_VARIANT
def test_a_training_step_reaches_every_parameter_and_lowers_the_loss(config: LoopyConfig) -> None:
    model = lively(Loopy(config))
    before = losses(model).mean()
    before.backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    if config.unet.temporal in ("intra", "hallo"):  # of the last site only what is normed is used
        silent = {name for name in silent if not name.startswith("reference_unet.up_blocks.1.attentions.1.")}
    assert not silent
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert losses(model).mean() < before


@EVERY_VARIANT
def test_clips_can_be_generated(config: LoopyConfig, speak: Callable[..., Speech]) -> None:
    model, speech = small_model(config), speak(10, config)
    portrait = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    request = Request(portrait, speech, TemporalSegments(config.clip), steps=2)
    finished = [step.finished for step in generate(model, request) if step.finished is not None]
    frames = torch.cat(finished)
    assert frames.shape == (10, 4, 4, 4) and torch.isfinite(frames).all() and frames.std() > 0.1


@EVERY_VARIANT
def test_a_checkpoint_keeps_the_variant(config: LoopyConfig, tmp_path: Path) -> None:
    model, path = small_model(config), tmp_path / "model.safetensors"
    save_checkpoint(path, Header(config, ModelCard("n", "t", "l", "c")), {"loopy": model}, torch.float32)
    again = Loopy(read_header(path).config)
    load_strictly(again, load_tensors(path)["loopy"], path)
    assert again.config == config
    values = inputs(config)
    assert torch.equal(predict(again.eval().requires_grad_(False), values), predict(model, values))


@EVERY_VARIANT
@torch.no_grad()
def test_a_fresh_model_is_its_spatial_part(config: LoopyConfig) -> None:
    torch.manual_seed(0)
    model, values, t = Loopy(config).eval(), inputs(config), torch.tensor([600])
    conditions = encode(model, values)
    trunk = replace(conditions, spatial_only=True, motion_latents=None)
    everything = model.denoise(values["noisy"], t, conditions)
    assert torch.equal(everything, model.denoise(values["noisy"], t, trunk))


# --- temporal layers ----------------------------------------------------------------------------


def test_the_full_model_has_the_weights_that_it_always_had() -> None:
    """Names and shapes of every weight of the paper's size; stored checkpoints hang on them."""
    with torch.device("meta"):
        state = Loopy(LOOPY).state_dict()
    lines = "\n".join(sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in state.items()))
    assert len(state) == 2047
    assert hashlib.sha256(lines.encode()).hexdigest().startswith("eec941204369358d")


@pytest.mark.parametrize("temporal, heard", [("dual", True), ("joint", True), ("intra", False)])
def test_motion_frames_change_the_clip_where_a_layer_sees_them(temporal: str, heard: bool) -> None:
    model = small_model(variant(temporal))
    values, other = inputs(model.config), inputs(model.config, seed=4)
    before, after = predict(model, values), predict(model, values | {"motion": other["motion"]})
    assert (after - before).abs().max() > 1e-3 if heard else torch.equal(after, before)


def test_without_a_layer_that_sees_them_motion_frames_cost_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pictures = small_model(variant("intra")), []
    read = model.read
    monkeypatch.setattr(model, "read", lambda x: pictures.append(len(x)) or read(x))
    losses(model, size=3)
    assert pictures == [3]


@pytest.mark.parametrize("temporal", ABLATED)
def test_the_one_temporal_layer_comes_after_the_audio(temporal: str) -> None:
    model, called, handles = small_model(variant(temporal)), [], []
    for block in model.denoising_unet.blocks_with_sites():
        assert not hasattr(block, "inter_modules")
        for kind in ("attentions", "audio_modules", "intra_modules"):
            for layer in getattr(block, kind):
                handles.append(layer.register_forward_pre_hook(lambda *_, kind=kind: called.append(kind)))
    predict(model, inputs(model.config))
    for handle in handles:
        handle.remove()
    assert called == 4 * ["attentions", "audio_modules", "intra_modules"]


@pytest.mark.parametrize("preset", [LOOPY, PUPPET], ids=["LOOPY", "PUPPET"])
def test_the_one_temporal_layer_has_the_size_of_the_intra_clip_layer(preset: LoopyConfig) -> None:
    """All weights but one row of temporal embeddings for each motion frame and site."""
    with torch.device("meta"):
        nets = {
            temporal: Loopy(replace(preset, unet=replace(preset.unet, temporal=temporal)))
            for temporal in ("dual", *ABLATED)
        }
    shapes = {name: {k: v.shape for k, v in net.state_dict().items()} for name, net in nets.items()}
    dual = {k: v for k, v in shapes["dual"].items() if "inter_modules" not in k}
    assert shapes["intra"] == dual and shapes["joint"].keys() == dual.keys()
    grown = {k for k in dual if shapes["joint"][k] != dual[k]}
    assert grown == {k for k in dual if k.endswith("attentions.0.positions")}
    more = {shapes["joint"][k][0] - dual[k][0] for k in grown}
    assert more == {preset.clip.motion_frames}


# --- audio-to-latents ---------------------------------------------------------------------------


def test_without_audio_to_latents_nothing_reaches_the_timestep_embedding() -> None:
    model = small_model(variant(to_latents=False))
    assert not [name for name, _ in model.named_parameters() if "latents" in name]
    values = inputs(model.config)
    assert model.motion_latents_from_audio(values["windows"]) is None
    conditions = encode(model, values)
    assert conditions.motion_latents is None and conditions.without_audio().motion_latents is None


def test_without_audio_to_latents_the_cross_attention_still_hears() -> None:
    model = small_model(variant(to_latents=False))
    values, other = inputs(model.config), inputs(model.config, seed=4)
    heard = predict(model, values | {"windows": other["windows"]}) - predict(model, values)
    assert heard.abs().max() > 1e-4


def test_the_other_weights_start_the_same_with_and_without_audio_to_latents() -> None:
    models = []
    for to_latents in (True, False):
        torch.manual_seed(0)
        models.append(Loopy(variant(to_latents=to_latents)).state_dict())
    full, less = models
    assert {k for k in full.keys() - less.keys()} == {k for k in full if k.startswith("audio_to_latents.")}
    assert all(torch.equal(full[name], less[name]) for name in less)
