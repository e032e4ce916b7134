"""Guidance (paper 3.4): the formula, what each pass sees, and passes that are not needed."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loopy_model.conditions import Conditions, SiteConditions
from loopy_model.config import TINY
from loopy_model.guidance import Guidance, Predictor, Sparing, guidance_passes
from loopy_model.model import Loopy

T = 600


@pytest.fixture
def conditions(tiny: Loopy, generator: torch.Generator) -> Conditions:
    clip, audio, unet = TINY.clip, TINY.audio, TINY.unet
    windows = torch.randn(1, clip.frames, clip.audio_window, audio.layers, audio.width, generator=generator)
    portrait = torch.randn(1, 4, 4, 4, generator=generator)
    past = torch.randn(clip.motion_frames, 4, 4, 4, generator=generator)
    latents = torch.randn(1, clip.frames, unet.time_channels, generator=generator)
    return tiny.encode_conditions(
        [site.normed for site in tiny.read(portrait)],
        [site.output[None] for site in tiny.read(past)],
        windows,
        latents,
    )


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(1, TINY.clip.frames, 4, 4, 4, generator=generator)


APART_OR_TOGETHER = pytest.mark.parametrize("together", [False, True])


def three(model: Loopy, x: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor, Tensor]:
    """e_audio, e_ref and e_base from conditions that are put together by hand."""
    sites = conditions.sites
    silent = tuple(SiteConditions(site.reference, site.motion, None) for site in sites)
    blind = tuple(SiteConditions() for _ in sites)
    branches = (
        Conditions(sites, conditions.motion_latents),  # everything
        Conditions(silent, None),  # neither audio attention nor motion latents
        Conditions(blind, None),  # nothing at all
    )
    return tuple(model.denoise(x, torch.tensor([T]), branch) for branch in branches)


RATIOS = pytest.mark.parametrize(
    "audio, ref",
    [
        (5.0, 3.0),
        (1.0, 1.0),
        (5.0, 1.0),
        (3.0, 3.0),
        (0.0, 3.0),
        (0.0, 0.0),
        (0.0, 1.0),
        (2.5, 3.5),
        (-1.0, 0.5),
    ],
)


@APART_OR_TOGETHER
@RATIOS
def test_guidance_is_the_papers_formula(
    tiny: Loopy, x: Tensor, conditions: Conditions, audio: float, ref: float, together: bool
) -> None:
    e_audio, e_ref, e_base = three(tiny, x, conditions)
    expected = audio * (e_audio - e_ref) + ref * (e_ref - e_base) + e_base
    out = Predictor(tiny, conditions, Guidance(audio, ref), together)(x, T, 0)
    assert (e_audio - e_ref).abs().max() > 1e-3 and (e_ref - e_base).abs().max() > 1e-3
    assert torch.allclose(out, expected, atol=1e-4)


def test_the_formula_by_hand() -> None:
    """Paper 3.4 with its ratios 5 and 3, e_audio 2, e_ref 1.5, e_base 1: 5 x 0.5 + 3 x 0.5 + 1."""
    weights = Guidance(audio_ratio=5, ref_ratio=3).weights()
    assert weights == (5, -2, -2)
    assert sum(w * e for w, e in zip(weights, (2.0, 1.5, 1.0))) == 5.0
    weights = Guidance(audio_ratio=2.5, ref_ratio=1.5).weights()  # 2.5 x (3 + 2) + 1.5 x (-2 - 7) + 7
    assert sum(w * e for w, e in zip(weights, (3.0, -2.0, 7.0))) == 6.0


@RATIOS
def test_weights_are_the_same_formula(audio: float, ref: float) -> None:
    weights = Guidance(audio, ref).weights()
    assert sum(weights) == pytest.approx(1)
    for e in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (3, -2, 7)):
        value = audio * (e[0] - e[1]) + ref * (e[1] - e[2]) + e[2]
        assert sum(w * v for w, v in zip(weights, e)) == pytest.approx(value)


@pytest.mark.parametrize(
    "audio, ref, passes",
    [
        (5.0, 3.0, "audio ref base"),
        (1.0, 1.0, "audio"),
        (5.0, 1.0, "audio ref"),
        (0.0, 1.0, "ref"),
        (3.0, 3.0, "audio base"),
        (0.0, 0.0, "base"),
        (0.0, 3.0, "ref base"),
    ],
)
def test_each_pass_sees_its_conditions_and_a_pass_of_no_weight_is_not_run(
    tiny: Loopy,
    x: Tensor,
    conditions: Conditions,
    monkeypatch: pytest.MonkeyPatch,
    audio: float,
    ref: float,
    passes: str,
) -> None:
    seen: list[str] = []
    asked: list[str] = []

    def denoise(noisy: Tensor, timestep: Tensor, branch: Conditions) -> Tensor:
        assert torch.equal(noisy, x) and timestep.tolist() == [T]
        heard = {branch.motion_latents is not None, *(s.audio is not None for s in branch.sites)}
        looked = {kind is not None for s in branch.sites for kind in (s.reference, s.motion)}
        assert len(heard) == len(looked) == 1, "a condition is dropped everywhere or nowhere"
        seen.append(
            {(True, True): "audio", (False, True): "ref", (False, False): "base"}[heard.pop(), looked.pop()]
        )
        return noisy

    monkeypatch.setattr(tiny, "denoise", denoise)
    predict = Predictor(tiny, conditions, Guidance(audio, ref), False, before_call=asked.append)
    out = predict(x, T, 0)
    assert " ".join(seen) == passes and len(asked) == len(seen)
    assert torch.allclose(out, x, atol=1e-5)  # all passes say the same, and the weights sum to 1


@pytest.mark.parametrize(
    "audio, ref, rows, heard, seen",
    [(5.0, 3.0, 3, 1, 2), (1.0, 1.0, 1, 1, 1), (3.0, 3.0, 2, 1, 1), (0.0, 3.0, 2, 0, 1), (0.0, 0.0, 1, 0, 0)],
)
def test_together_the_first_rows_have_the_conditions(
    conditions: Conditions, audio: float, ref: float, rows: int, heard: int, seen: int
) -> None:
    (together,) = guidance_passes(conditions, Guidance(audio, ref), in_one_batch=True)
    assert len(together.weights) == rows and sum(together.weights) == pytest.approx(1)
    for site, full in zip(together.conditions.sites, conditions.sites):
        for kept, given, count in (
            (site.audio, full.audio, heard),
            (site.reference, full.reference, seen),
            (site.motion, full.motion, seen),
        ):
            assert (kept is None) == (count == 0)
            if kept is not None:
                assert torch.equal(kept.k, given.k.repeat(count, 1, 1))
                assert torch.equal(kept.v, given.v.repeat(count, 1, 1))


def test_the_passes_are_summed_in_the_precision_of_the_latents(
    tiny: Loopy,
    x: Tensor,
    conditions: Conditions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = iter(torch.randn(3, *x.shape, generator=torch.Generator().manual_seed(1)).bfloat16())
    kept: list[Tensor] = []

    def denoise(noisy: Tensor, timestep: Tensor, branch: Conditions) -> Tensor:
        assert noisy.dtype == torch.bfloat16
        kept.append(next(said))
        return kept[-1]

    monkeypatch.setattr(tiny, "denoise", denoise)
    out = Predictor(tiny, conditions, Guidance(5.0, 3.0), False, dtype=torch.bfloat16)(x, T, 0)
    e_audio, e_ref, e_base = (e.float() for e in kept)
    assert out.dtype == torch.float32
    assert torch.allclose(out, 5 * (e_audio - e_ref) + 3 * (e_ref - e_base) + e_base, atol=1e-5)


def test_branches_share_what_they_keep(conditions: Conditions) -> None:
    silent = conditions.without_audio()
    assert replace(silent, motion_latents=conditions.motion_latents).sites != conditions.sites
    for before, after in zip(conditions.sites, silent.sites):
        assert after.reference.k is before.reference.k and after.motion.k is before.motion.k


# --- guidance in some steps only ------------------------------------------------------------------


@APART_OR_TOGETHER
def test_outside_its_interval_guidance_leaves_e_audio(
    tiny: Loopy, x: Tensor, conditions: Conditions, together: bool
) -> None:
    e_audio, e_ref, e_base = three(tiny, x, conditions)
    predict = Predictor(tiny, conditions, Guidance(5.0, 3.0), together, Sparing(0.2, 0.6))
    guided = 5 * (e_audio - e_ref) + 3 * (e_ref - e_base) + e_base
    for progress, expected in (
        (0.0, e_audio),
        (0.19, e_audio),
        (0.2, guided),
        (0.59, guided),
        (0.6, e_audio),
    ):
        assert torch.allclose(predict(x, T, progress), expected, atol=1e-4)


@APART_OR_TOGETHER
def test_between_refreshes_guidance_adds_what_it_added_last(
    tiny: Loopy, x: Tensor, conditions: Conditions, together: bool
) -> None:
    calls: list[int] = []
    predict = Predictor(
        tiny, conditions, Guidance(5.0, 3.0), together, Sparing(every=3), before_call=calls.append
    )
    other = x + 0.5 * x.roll(1, -1)
    e_audio, e_ref, e_base = three(tiny, x, conditions)
    added = 4 * e_audio - 2 * e_ref - 2 * e_base
    spent = []
    for step, noisy in enumerate((x, other, other, x)):
        before = len(calls)
        out = predict(noisy, T, step / 25)
        spent.append(len(calls) - before)
        assert torch.allclose(out, three(tiny, noisy, conditions)[0] + added, atol=1e-4)
    assert spent == ([1, 1, 1, 1] if together else [3, 1, 1, 3])


@pytest.mark.parametrize("audio, ref", [(0.0, 3.0), (0.0, 0.0)])
def test_without_a_voice_the_first_branch_is_another(
    tiny: Loopy, x: Tensor, conditions: Conditions, audio: float, ref: float
) -> None:
    predict = Predictor(tiny, conditions, Guidance(audio, ref), True, Sparing(end=0.0))
    first = {3.0: 1, 0.0: 2}[ref]  # e_ref, e_base
    assert torch.allclose(predict(x, T, 0), three(tiny, x, conditions)[first], atol=1e-5)


# --- deep features in some steps only -------------------------------------------------------------


@APART_OR_TOGETHER
def test_between_refreshes_every_branch_keeps_its_own_deep_features(
    tiny: Loopy, x: Tensor, conditions: Conditions, together: bool
) -> None:
    """At the paper's ratios two branches have the same weight, and must not be taken for each other."""
    assert Guidance(5.0, 3.0).weights() == (5, -2, -2)
    predict = Predictor(tiny, conditions, Guidance(5.0, 3.0), together, Sparing(deep_every=2))
    sites, t = conditions.sites, torch.tensor([T])
    silent = Conditions(tuple(SiteConditions(site.reference, site.motion) for site in sites))
    branches = (conditions, silent, Conditions(tuple(SiteConditions() for _ in sites)))
    other = x + 0.5 * x.roll(1, -1)
    for noisy, seen in ((x, x), (other, x), (other, other), (x, other)):
        deep = [tiny.denoise_anew(seen, t, branch, None)[1] for branch in branches]
        a, b, c = (tiny.denoise_anew(noisy, t, *pair)[0] for pair in zip(branches, deep))
        assert torch.allclose(predict(noisy, T, 0.5), 5 * (a - b) + 3 * (b - c) + c, atol=1e-4)


@APART_OR_TOGETHER
def test_deep_features_serve_the_first_branch_between_the_steps_of_guidance(
    tiny: Loopy, x: Tensor, conditions: Conditions, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    anew: list[bool] = []
    denoise = tiny.denoise_anew

    def watched(rows: Tensor, t: Tensor, branch: Conditions, deep: Tensor | None) -> tuple[Tensor, Tensor]:
        anew.append(deep is None)
        return denoise(rows, t, branch, deep)

    predict = Predictor(tiny, conditions, Guidance(5.0, 3.0), together, Sparing(every=2, deep_every=2))
    other, t = x.roll(1, -1), torch.tensor([T])
    deep = denoise(x, t, conditions, None)[1]
    expected = denoise(other, t, conditions, deep)[0] - denoise(x, t, conditions, None)[0]
    monkeypatch.setattr(tiny, "denoise_anew", watched)
    assert torch.allclose(-predict(x, T, 0) + predict(other, T, 0), expected, atol=1e-4)
    assert anew == ([True, False] if together else [True, True, True, False])
    predict(x, T, 0)
    assert anew[-1]


def test_deep_features_of_a_step_without_guidance_serve_the_branch_alone(
    tiny: Loopy, x: Tensor, conditions: Conditions
) -> None:
    predict = Predictor(tiny, conditions, Guidance(5.0, 3.0), False, Sparing(end=0.5, deep_every=3))
    other, t = x.roll(1, -1), torch.tensor([T])
    predict(x, T, 0.4)
    deep = tiny.denoise_anew(x, t, conditions, None)[1]
    expected = tiny.denoise_anew(other, t, conditions, deep)[0]
    assert torch.allclose(predict(other, T, 0.6), expected, atol=1e-5)


@pytest.mark.parametrize("values", [(-0.1, 1), (0.5, 0.4), (0, 1.1), (0, 1, 0), (0, 1, 1, 0)])
def test_impossible_intervals_are_refused(values: tuple) -> None:
    with pytest.raises(ValueError, match="not possible; choose"):
        Sparing(*values)
