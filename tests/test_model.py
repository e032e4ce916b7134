"""Loopy as a whole: the order of figure 2, what reaches which layer, and one full-width step."""

from dataclasses import replace

import pytest
import torch
from oracles import full_width, lively
from torch import Tensor

from loopy_model.conditions import Conditions
from loopy_model.config import LOOPY, TINY, LoopyConfig
from loopy_model.model import Loopy, motion_features

CLIP = TINY.clip


def inputs(config: LoopyConfig, batch: int = 1, size: int = 4, seed: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clip, audio, channels = config.clip, config.audio, config.unet.latent_channels

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    return {
        "noisy": draw(clip.frames, channels, size, size),
        "portrait": draw(channels, size, size),
        "motion": draw(clip.motion_frames, channels, size, size),
        "windows": draw(clip.frames, clip.audio_window, audio.layers, audio.width),
    }


def encode(model: Loopy, values: dict[str, Tensor]) -> Conditions:
    reference = [site.normed for site in model.read(values["portrait"])]
    batch = len(values["portrait"])
    seen = model.read(values["motion"].flatten(0, 1))
    motion = [site.output.unflatten(0, (batch, -1)) for site in seen]
    latents = model.motion_latents_from_audio(values["windows"])
    return model.encode_conditions(reference, motion, values["windows"], latents)


def predict(model: Loopy, values: dict[str, Tensor], timestep: int = 600) -> Tensor:
    t = torch.full((len(values["noisy"]),), timestep)
    return model.denoise(values["noisy"], t, encode(model, values))


@torch.no_grad()
def test_a_fresh_loopy_is_its_trunk_with_reference_attention() -> None:
    torch.manual_seed(0)
    model, values = Loopy(TINY).eval(), inputs(TINY, batch=2)
    conditions, t = encode(model, values), torch.tensor([10, 800])
    trunk = replace(conditions, spatial_only=True, motion_latents=None)
    everything = model.denoise(values["noisy"], t, conditions)
    assert torch.equal(everything, model.denoise(values["noisy"], t, trunk))
    alone = model.denoise(values["noisy"], t, conditions.without_reference())
    assert (everything - alone).abs().max() > 1e-4  # the reference is heard from the start


def test_every_condition_is_heard_once_trained(tiny: Loopy) -> None:
    values, other = inputs(TINY), inputs(TINY, seed=4)
    before = predict(tiny, values)
    for name in values:
        changed = predict(tiny, values | {name: other[name]})
        assert (changed - before).abs().max() > 1e-4, name


def test_a_site_is_spatial_then_inter_then_audio_then_intra(tiny: Loopy) -> None:
    called: list[str] = []
    handles = []
    for block in tiny.denoising_unet.blocks_with_sites():
        for kind in ("resnets", "attentions", "inter_modules", "audio_modules", "intra_modules"):
            for layer in getattr(block, kind):
                handles.append(
                    layer.register_forward_pre_hook(lambda *_, kind=kind: called.append(kind.split("_")[0]))
                )
    predict(tiny, inputs(TINY))
    for handle in handles:
        handle.remove()
    order = " ".join(called)
    site = "resnets attentions inter audio intra"
    # One site on the way down, one in the middle (followed by its second residual block), two up.
    assert order == " ".join([site, site, "resnets", site, site])


def test_what_was_heard_is_added_to_what_the_inter_clip_layer_gave(tiny: Loopy) -> None:
    block = tiny.denoising_unet.down_blocks[0]
    seen: dict[str, list[Tensor]] = {}

    def note(name: str):  # noqa: ANN202
        return lambda _, args, out: seen.update({name: [args[0], out]})

    handles = [
        getattr(block, f"{name}_modules")[0].register_forward_hook(note(name))
        for name in ("inter", "audio", "intra")
    ]
    predict(tiny, inputs(TINY))
    for handle in handles:
        handle.remove()
    assert torch.equal(seen["audio"][0], seen["inter"][1])
    assert torch.equal(seen["intra"][0], seen["inter"][1] + seen["audio"][1])


def test_motion_latents_are_added_to_the_timestep_embedding(tiny: Loopy) -> None:
    values = inputs(TINY)
    conditions = replace(encode(tiny, values), motion_latents=None)
    shift = torch.randn(1, CLIP.frames, TINY.unet.time_channels, generator=torch.Generator().manual_seed(0))
    added = replace(conditions, motion_latents=shift)
    seen: list[Tensor] = []
    handle = tiny.denoising_unet.mid_block.resnets[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[1])
    )
    for c in (conditions, added):
        tiny.denoise(values["noisy"], torch.tensor([600]), c)
    handle.remove()
    assert torch.allclose(seen[1] - seen[0], shift[0], atol=1e-5)


def test_clips_of_a_batch_do_not_see_each_other(tiny: Loopy) -> None:
    both = inputs(TINY, batch=2)
    together = predict(tiny, both)
    for i in range(2):
        alone = predict(tiny, {name: value[i : i + 1] for name, value in both.items()})
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4)


def test_each_clip_of_a_batch_has_its_own_timestep(tiny: Loopy) -> None:
    both = inputs(TINY, batch=2)
    mixed = tiny.denoise(both["noisy"], torch.tensor([100, 900]), encode(tiny, both))
    assert torch.allclose(mixed[:1], predict(tiny, both, 100)[:1], atol=1e-4)
    assert torch.allclose(mixed[1:], predict(tiny, both, 900)[1:], atol=1e-4)


def test_audio_that_is_not_kept_is_all_zero_tokens_and_no_motion_latents(tiny: Loopy) -> None:
    values, t = inputs(TINY, batch=2), torch.tensor([600, 600])
    reference = [site.normed for site in tiny.read(values["portrait"])]
    latents = tiny.motion_latents_from_audio(values["windows"])
    keep = torch.tensor([True, False])
    masked = tiny.encode_conditions(reference, None, values["windows"], latents, keep_audio=keep)
    full = tiny.encode_conditions(reference, None, values["windows"], latents)
    for site in masked.sites:
        k, v = (x.unflatten(0, (2, CLIP.frames)) for x in site.audio[:2])
        assert k[0].any() and v[0].any() and not k[1].any() and not v[1].any()
    assert masked.motion_latents[0].any() and not masked.motion_latents[1].any()
    out, heard, dropped = (tiny.denoise(values["noisy"], t, c) for c in (masked, full, full.without_audio()))
    assert torch.allclose(out[0], heard[0], atol=1e-5)
    assert torch.allclose(out[1], dropped[1], atol=1e-5)  # training and guidance agree


def test_a_reference_that_is_not_kept_is_not_concatenated_nor_are_motion_frames(
    tiny: Loopy,
) -> None:
    values, t = inputs(TINY, batch=2), torch.tensor([600, 600])
    full = encode(tiny, values)
    reference = [site.normed for site in tiny.read(values["portrait"])]
    past = tiny.read(values["motion"].flatten(0, 1))
    motion = [site.output.unflatten(0, (2, -1)) for site in past]
    latents = tiny.motion_latents_from_audio(values["windows"])
    masked = tiny.encode_conditions(
        reference, motion, values["windows"], latents, keep_reference=torch.tensor([False, True])
    )
    out, kept, dropped = (
        tiny.denoise(values["noisy"], t, c) for c in (masked, full, full.without_reference())
    )
    assert torch.allclose(out[0], dropped[0], atol=1e-5)
    assert torch.allclose(out[1], kept[1], atol=1e-5)
    assert (dropped[0] - kept[0]).abs().max() > 1e-3


def test_missing_motion_frames_have_all_zero_features(tiny: Loopy) -> None:
    picture = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    outputs = [site.output[0] for site in tiny.read(picture)]
    features = motion_features([None, outputs, None], outputs)
    assert [f.shape for f in features] == [(1, 3, *o.shape) for o in outputs]
    for site, output in zip(features, outputs):
        assert not site[0, 0].any() and not site[0, 2].any()
        assert torch.equal(site[0, 1], output)


def test_pictures_are_read_one_by_one(tiny: Loopy) -> None:
    pictures = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    together = tiny.read(pictures)
    for i in range(3):
        for both, alone in zip(together, tiny.read(pictures[i : i + 1])):
            assert torch.allclose(both.normed[i], alone.normed[0], atol=1e-4)
            assert torch.allclose(both.output[i], alone.output[0], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_precision_gives_the_same_picture_within_its_own_error(
    tiny: Loopy, dtype: torch.dtype
) -> None:
    model = Loopy(TINY).to(dtype).requires_grad_(False)
    model.load_state_dict(tiny.state_dict())
    values = inputs(TINY)
    out = predict(model, {name: value.to(dtype) for name, value in values.items()})
    assert out.dtype == dtype
    error = (out.float() - predict(tiny, values)).abs().max()
    assert error < (0.15 if dtype is torch.bfloat16 else 1e-4)


def test_training_reaches_every_parameter() -> None:
    model, values = lively(Loopy(TINY)), inputs(TINY)
    scores = torch.ones(1)
    module = model.audio_to_latents
    queries = [
        module.variance_query(source, scores, CLIP.frames) for source in ("head movement", "expression")
    ]
    loss = predict(model, values).square().mean() + sum(module(q).square().mean() for q in queries)
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@torch.no_grad()
def test_one_step_of_the_full_width_with_all_conditions() -> None:
    with torch.device("meta"):
        model = Loopy(LOOPY)
    model, values = full_width(model), inputs(LOOPY, size=8)
    portrait, past = model.read(values["portrait"]), model.read(values["motion"][0, :1])
    newest = [site.output[0] for site in past]
    conditions = model.encode_conditions(
        [site.normed for site in portrait],
        motion_features([newest] + [None] * 19, newest),
        values["windows"],
        model.motion_latents_from_audio(values["windows"]),
    )
    assert len(conditions.sites) == 16
    assert conditions.motion_latents.shape == (1, 12, 1280)
    first = conditions.sites[0]
    assert first.reference.k.shape == (1, 64, 320)
    assert first.motion.k.shape == (64, 20, 320)
    assert first.audio.k.shape == (12, 32, 320)
    prediction = model.denoise(values["noisy"], torch.tensor([961]), conditions)
    assert prediction.shape == (1, 12, 4, 8, 8)
    assert torch.isfinite(prediction).all() and prediction.std() > 0.01


@pytest.mark.parametrize("attention", [(True, False), (True, True), (False, True), (False, False)])
@torch.no_grad()
def test_deep_features_of_the_same_step_change_nothing_and_spare_the_coarser_levels(
    attention: tuple[bool, bool],
) -> None:
    config = replace(TINY, unet=replace(TINY.unet, attention=attention))
    model, values, t = lively(Loopy(config).eval(), 1), inputs(config, size=5), torch.tensor([600])
    conditions, net = encode(model, values), model.denoising_unet
    expected, deep = model.denoise_anew(values["noisy"], t, conditions, None)
    assert torch.equal(expected, model.denoise(values["noisy"], t, conditions))
    below = [*net.down_blocks[1:], net.mid_block, *net.up_blocks[:-1], *net.down_blocks[0].downsamplers]
    for parameter in (p for block in below for p in block.parameters()):
        parameter.fill_(float("nan"))  # whoever computes with these gives it away
    again, same = model.denoise_anew(values["noisy"], t, conditions, deep)
    assert torch.equal(again, expected) and same is deep
    other = model.denoise_anew(values["noisy"], t, conditions, deep.roll(1, -1))[0]
    assert (other - expected).abs().max() > 1e-4
