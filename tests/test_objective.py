"""The training objective (paper eq. 1 and 3.4): draws, what is dropped, and the loss."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from oracles import lively, small_model
from torch import Tensor

from loopy_model.conditions import Conditions, SiteConditions
from loopy_model.config import TINY
from loopy_model.diffusion import NoiseSchedule
from loopy_model.model import Loopy
from loopy_model.train import objective
from loopy_model.train.objective import (
    Batch,
    ConditionDropping,
    Draws,
    dealt,
    draw,
    loss_per_sample,
    stratified,
)
from loopy_model.train.stages import PUPPET_DROPPING, RECIPES, STAGE_ONE, STAGE_TWO

CLIP = TINY.clip
SCHEDULE = NoiseSchedule(TINY.diffusion)


def many_draws(dropping: ConditionDropping, batch: int = 8, steps: int = 4000) -> Draws:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(batch, 1000, dropping, generator) for _ in range(steps)]
    names = [name for name in Draws.__annotations__ if name != "noise"]  # each sample draws its own
    return Draws(**{name: torch.cat([getattr(d, name) for d in drawn]) for name in names})


def rate(dropped: Tensor) -> float:
    return dropped.double().mean().item()


@pytest.fixture(scope="module")
def drawn() -> Draws:
    return many_draws(ConditionDropping())


# --- draws --------------------------------------------------------------------------------------


def test_the_papers_rates_are_the_default() -> None:
    assert ConditionDropping() == ConditionDropping(0.10, 0.15, 0.40, None)
    assert STAGE_ONE.dropping == STAGE_TWO.dropping == ConditionDropping()
    assert (STAGE_TWO.learning_rate, STAGE_TWO.batch) == (1e-5, 24)
    assert [stage.spatial_only for stage in RECIPES["loopy"].stages] == [True, False]


def test_conditions_are_dropped_at_the_papers_rates(drawn: Draws) -> None:
    assert rate(~drawn.keep_audio) == pytest.approx(0.10, abs=0.005)
    assert rate(~drawn.keep_reference) == pytest.approx(0.15, abs=0.005)
    rest = drawn.keep_reference
    assert rate(~drawn.keep_motion[rest]) == pytest.approx(0.40, abs=0.01)


def test_motion_frames_are_dropped_with_the_reference(drawn: Draws) -> None:
    assert not (drawn.keep_motion & ~drawn.keep_reference).any()


def test_audio_is_dropped_independently_of_the_rest(drawn: Draws) -> None:
    for other in (drawn.keep_reference, drawn.keep_motion):
        for value in (True, False):
            assert rate(~drawn.keep_audio[other == value]) == pytest.approx(0.10, abs=0.015)


def test_audio_may_be_dropped_more_where_the_reference_is() -> None:
    drawn = many_draws(PUPPET_DROPPING)
    assert rate(~drawn.keep_audio[~drawn.keep_reference]) == pytest.approx(0.5, abs=0.02)
    assert rate(~drawn.keep_audio[drawn.keep_reference]) == pytest.approx(0.10, abs=0.005)
    assert rate(~drawn.keep_reference) == pytest.approx(0.15, abs=0.005)


def test_the_three_inputs_of_audio_to_latents_are_equally_likely(drawn: Draws) -> None:
    shares = torch.bincount(drawn.source) / len(drawn.source)
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    dropped = drawn.source[~drawn.keep_audio]
    assert (torch.bincount(dropped) / len(dropped)).tolist() == pytest.approx([1 / 3] * 3, abs=0.04)


def test_timesteps_are_uniform_over_the_whole_schedule(drawn: Draws) -> None:
    counts = torch.bincount(drawn.timestep, minlength=1000)
    assert len(counts) == 1000 and counts.min() > 0
    tenths = counts.reshape(10, 100).sum(1) / len(drawn.timestep)
    assert tenths.tolist() == pytest.approx([0.1] * 10, abs=0.005)


def test_every_place_in_the_batch_has_the_same_rates(drawn: Draws) -> None:
    for kept, expected in ((drawn.keep_reference, 0.85), (drawn.keep_motion, 0.51), (drawn.keep_audio, 0.90)):
        rates = kept.reshape(-1, 8).double().mean(0)
        assert rates.tolist() == pytest.approx([expected] * 8, abs=0.03)


def test_a_step_can_be_drawn_again() -> None:
    dropping = ConditionDropping()
    first, again, other = (draw(4, 1000, dropping, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    names = [name for name in Draws.__annotations__ if name != "noise"]
    assert all(torch.equal(getattr(first, n), getattr(again, n)) for n in names)
    assert not torch.equal(first.timestep, other.timestep)
    assert first.noise is None  # each sample draws its own


def test_values_that_travel_together_are_changed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by the loader of data, which pins what has the method: here there is no card to pin for."""
    from torch.utils.data._utils.pin_memory import pin_memory

    batch = Batch(clip=torch.ones(1), reference=torch.zeros(1))
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor + 1)
    [pinned] = pin_memory((batch,))
    assert (pinned.clip, pinned.reference, pinned.motion) == (2, 1, None)
    assert batch.to(torch.device("meta")).clip.device.type == "meta"


def offset_of(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *a, **more: torch.full_like(rand(*a, **more), value))


def test_a_power_below_one_draws_noisy_timesteps_more_often() -> None:
    """u ** 0.5 has the density 2 t: three quarters of the draws lie in the noisier half."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([draw(8, 1000, ConditionDropping(), generator, 0.5).timestep for _ in range(500)])
    assert 0 <= drawn.min() and drawn.max() <= 999
    for limit in (250, 500, 750):
        assert (drawn < limit).float().mean() == pytest.approx((limit / 1000) ** 2, abs=0.01)


@pytest.mark.parametrize("batch", [1, 3, 8, 24])
@pytest.mark.parametrize("p", [0.10, 0.15, 0.49])
@pytest.mark.parametrize("stratified", [stratified, dealt])
def test_stratified_draws_have_the_exact_marginal(
    batch: int, p: float, stratified: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, grid, below = torch.Generator().manual_seed(0), 1000, 0
    for i in range(grid):  # every offset once, instead of at random
        offset_of(monkeypatch, (i + 0.5) / grid)
        values = stratified(batch, generator)
        below += (values < p).sum().item()
        monkeypatch.undo()
    assert below / (grid * batch) == pytest.approx(p, abs=1 / grid)


@pytest.mark.parametrize("stratified", [stratified, dealt])
def test_stratified_draws_have_one_value_in_each_part(
    stratified: Callable, generator: torch.Generator
) -> None:
    for batch in (1, 5, 24):
        values = stratified(batch, generator)
        assert (values * batch).long().sort().values.tolist() == list(range(batch))


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_processes_have_equally_many_samples_with_motion_frames(
    processes: int, generator: torch.Generator
) -> None:
    """Or one more: the motion frames of a sample cost as much as the sample."""
    for _ in range(200):
        kept = draw(24, 1000, ConditionDropping(), generator).keep_motion.reshape(processes, -1).sum(1)
        assert kept.max() - kept.min() <= 1


@pytest.mark.parametrize("batch", [1, 3, 8, 24, 32, 100])
def test_stratified_draws_stay_below_one(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    offset_of(monkeypatch, 1 - 2**-24)  # the largest value that torch.rand gives in float32
    generator = torch.Generator().manual_seed(0)
    assert stratified(batch, generator).max() < 1
    drawn = draw(batch, 1000, ConditionDropping(), generator)
    assert drawn.timestep.max() < 1000 and drawn.source.max() < 3


# --- what the net is given ----------------------------------------------------------------------


def make_batch(size: int, seed: int = 0) -> Batch:
    generator, audio = torch.Generator().manual_seed(seed), TINY.audio

    def randn(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=generator)

    present = torch.tensor([[True, True, True, i % 2 == 0] for i in range(size)])
    return Batch(
        clip=randn(CLIP.frames, 4, 4, 4),
        reference=randn(4, 4, 4),
        motion=randn(CLIP.motion_frames, 4, 4, 4) * present[..., None, None, None],
        present=present,
        windows=randn(CLIP.frames, CLIP.audio_window, audio.layers, audio.width),
        movement=randn(),
        expression=randn(),
    )


def make_draws(size: int, **given: Tensor) -> Draws:
    kept = torch.ones(size, dtype=torch.bool)
    values = dict(
        noise=torch.randn(size, CLIP.frames, 4, 4, 4, generator=torch.Generator().manual_seed(5)),
        timestep=torch.full((size,), 500),
        keep_audio=kept,
        keep_reference=kept,
        keep_motion=kept,
        source=torch.zeros(size, dtype=torch.long),
    )
    return Draws(**(values | given))


def one(values: Batch | Draws, i: int) -> Batch | Draws:
    return type(values)(**{k: v[i : i + 1] for k, v in vars(values).items() if v is not None})


def spy(model: Loopy, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Conditions]]:
    calls: list[tuple[Tensor, Tensor, Conditions]] = []
    denoise = model.denoise

    def note(*args) -> Tensor:  # noqa: ANN002
        calls.append(args)
        return denoise(*args)

    monkeypatch.setattr(model, "denoise", note)
    return calls


def weighted(error: Tensor, draws: Draws) -> list[float]:
    """Mean square of each sample, with the schedule's weight."""
    return (SCHEDULE.loss_weight(draws.timestep) * error.square().mean((1, 2, 3, 4))).tolist()


def test_the_loss_is_the_mean_square_of_prediction_minus_target(
    tiny: Loopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, draws = make_batch(2), make_draws(2, timestep=torch.tensor([3, 999]))
    calls = spy(tiny, monkeypatch)
    loss = loss_per_sample(tiny, SCHEDULE, batch, draws, spatial_only=False)
    noisy, timestep, conditions = calls[0]
    assert torch.equal(timestep, draws.timestep)
    for i in range(2):
        a = SCHEDULE.alphas[draws.timestep[i]].float()
        x_t = a.sqrt() * batch.clip[i] + (1 - a).sqrt() * draws.noise[i]
        assert torch.allclose(noisy[i], x_t, atol=1e-5)
        weight = min(10.0, 1 / (1 - a.item()))  # TINY predicts the picture, as the puppet does
        prediction = tiny.denoise(noisy, timestep, conditions)[i]
        expected = weight * (prediction - batch.clip[i]).pow(2).mean().item()
        assert loss[i].item() == pytest.approx(expected, rel=1e-4)


def test_the_error_of_a_cell_counts_with_its_weight(tiny: Loopy) -> None:
    """Of two cells' errors one counts three times: the mean of the weighted squares, worked out cell by cell."""
    batch, draws = make_batch(2), make_draws(2)
    plain = loss_per_sample(tiny, SCHEDULE, batch, draws, spatial_only=False)
    ones = torch.ones(2, *batch.clip.shape[-2:])
    same = loss_per_sample(tiny, SCHEDULE, replace(batch, weight=ones), draws, spatial_only=False)
    assert torch.equal(same, plain)
    parts = []
    for row in range(ones.shape[1]):
        for column in range(ones.shape[2]):
            only = torch.zeros_like(ones)
            only[:, row, column] = 1
            parts.append(loss_per_sample(tiny, SCHEDULE, replace(batch, weight=only), draws, False))
    assert torch.allclose(sum(parts), plain, rtol=1e-5)
    weight = ones.clone()
    weight[:, 0, 1] = 3
    face = loss_per_sample(tiny, SCHEDULE, replace(batch, weight=weight), draws, spatial_only=False)
    assert torch.allclose(face, plain + 2 * parts[1], rtol=1e-5)


def test_epsilon_models_learn_the_noise(tiny: Loopy, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = NoiseSchedule(replace(TINY.diffusion, prediction="epsilon", zero_terminal_snr=False))
    batch, draws = make_batch(1), make_draws(1)
    monkeypatch.setattr(tiny, "denoise", lambda *_: draws.noise)
    assert loss_per_sample(tiny, paper, batch, draws, spatial_only=False).item() == 0


def test_a_dropped_reference_is_a_run_without_reference_and_motion(tiny: Loopy) -> None:
    keep = torch.tensor([True, False, True])
    batch = make_batch(3)
    draws = make_draws(3, keep_reference=keep, keep_motion=keep)
    together = loss_per_sample(tiny, SCHEDULE, batch, draws, spatial_only=False)

    alone, own = one(batch, 1), one(draws, 1)
    latents = tiny.motion_latents_from_audio(alone.windows)
    blind = tiny.encode_conditions(None, None, alone.windows, latents)
    assert all(site.reference is None and site.motion is None for site in blind.sites)
    noisy = SCHEDULE.add_noise(alone.clip, own.noise, own.timestep)
    error = tiny.denoise(noisy, own.timestep, blind) - SCHEDULE.target(alone.clip, own.noise, own.timestep)
    assert together[1].item() == pytest.approx(weighted(error, own)[0], rel=1e-4)
    for i in (0, 2):  # the neighbours do not notice
        kept = loss_per_sample(tiny, SCHEDULE, one(batch, i), one(draws, i), spatial_only=False)
        assert together[i].item() == pytest.approx(kept.item(), rel=1e-4)


@pytest.mark.parametrize("keep_reference, keep_motion", [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("keep_audio", [0, 1])
def test_training_conditions_are_those_of_the_sampler(
    tiny: Loopy, keep_reference: int, keep_motion: int, keep_audio: int
) -> None:
    """Each combination against conditions that are put together from the parts."""
    batch, keep = make_batch(1), lambda value: torch.tensor([bool(value)])
    draws = make_draws(
        1, keep_reference=keep(keep_reference), keep_motion=keep(keep_motion), keep_audio=keep(keep_audio)
    )
    loss = loss_per_sample(tiny, SCHEDULE, batch, draws, spatial_only=False)

    seen = tiny.read(batch.motion[0])
    motion = [(site.output * (keep_motion * batch.present[0])[:, None, None, None])[None] for site in seen]
    expected = tiny.encode_conditions(
        [site.normed for site in tiny.read(batch.reference)],
        motion,
        batch.windows,
        tiny.motion_latents_from_audio(batch.windows),
    )
    if not keep_reference:
        expected = expected.without_reference()
    if not keep_audio:
        expected = expected.without_audio()
    noisy = SCHEDULE.add_noise(batch.clip, draws.noise, draws.timestep)
    error = tiny.denoise(noisy, draws.timestep, expected) - SCHEDULE.target(
        batch.clip, draws.noise, draws.timestep
    )
    assert loss.item() == pytest.approx(weighted(error, draws)[0], rel=1e-4)


def captured(tiny: Loopy, monkeypatch: pytest.MonkeyPatch, batch: Batch, draws: Draws) -> dict:
    given: dict = {}
    encode = tiny.encode_conditions

    def note(**inputs) -> Conditions:  # noqa: ANN003
        given.update(inputs)
        return encode(**inputs)

    monkeypatch.setattr(tiny, "encode_conditions", note)
    loss_per_sample(tiny, SCHEDULE, batch, draws, spatial_only=False)
    return given


def test_masked_and_missing_motion_frames_are_zero_features(
    tiny: Loopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(3)  # of samples 0 and 2 all four motion frames exist, of 1 the first three
    draws = make_draws(3, keep_motion=torch.tensor([True, True, False]))
    motion = captured(tiny, monkeypatch, batch, draws)["motion"]
    for site, features in enumerate(motion):
        heard = features.flatten(2).any(-1)
        assert heard.tolist() == [[True] * 4, [True] * 3 + [False], [False] * 4]
        expected = tiny.read(batch.motion[1])[site].output
        assert torch.allclose(features[1, :3], expected[:3], atol=1e-4)


def test_dropped_motion_frames_do_not_cost_a_pass(tiny: Loopy, monkeypatch: pytest.MonkeyPatch) -> None:
    read, pictures = tiny.read, []
    monkeypatch.setattr(tiny, "read", lambda x: pictures.append(len(x)) or read(x))
    for kept in ([True, False, False], [False, False, False]):
        draws = make_draws(3, keep_motion=torch.tensor(kept))
        loss_per_sample(tiny, SCHEDULE, make_batch(3), draws, spatial_only=False)
    assert pictures == [3 + 4, 3]


def test_the_drawn_input_makes_the_motion_latents(tiny: Loopy, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, module = make_batch(3), tiny.audio_to_latents
    draws = make_draws(3, source=torch.tensor([2, 0, 1]))
    latents = captured(tiny, monkeypatch, batch, draws)["motion_latents"]
    expected = torch.cat(
        [
            module(module.variance_query("expression", batch.expression[:1], CLIP.frames)),
            tiny.motion_latents_from_audio(batch.windows[1:2]),
            module(module.variance_query("head movement", batch.movement[2:], CLIP.frames)),
        ]
    )
    assert torch.allclose(latents, expected, atol=1e-5)


# --- the two stages -----------------------------------------------------------------------------


def test_stage_one_trains_no_temporal_and_no_audio_layer() -> None:
    model = lively(Loopy(TINY))
    batch, draws = make_batch(2), make_draws(2)
    still = replace(batch, clip=batch.clip[:, :1])
    loss = loss_per_sample(model, SCHEDULE, still, replace(draws, noise=draws.noise[:, :1]), True)
    loss.mean().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    new = (
        "inter_modules",
        "audio_modules",
        "intra_modules",
        "audio_norm",
        "audio_projection",
        "audio_to_latents",
    )
    assert not [name for name in trained if any(part in name for part in new)]
    # Nothing reads what the reference net makes of its last self-attention; all else learns.
    still = {name for name, _ in model.named_parameters() if not any(part in name for part in new)}
    last = "reference_unet.up_blocks.1.attentions.1."
    assert {name for name in still - trained if not name.startswith(last)} == set()


def test_stage_two_trains_everything() -> None:
    model = lively(Loopy(TINY))
    draws = make_draws(3, source=torch.tensor([0, 1, 2]))
    loss_per_sample(model, SCHEDULE, make_batch(3), draws, False).mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_dropped_reference_in_stage_one_is_no_reference() -> None:
    model = small_model(TINY)
    batch = make_batch(2)
    keep = torch.tensor([False, True])
    loss = loss_per_sample(model, SCHEDULE, batch, make_draws(2, keep_reference=keep), True)
    blind = Conditions(tuple(SiteConditions() for _ in range(4)), spatial_only=True)
    draws = make_draws(2)
    noisy = SCHEDULE.add_noise(batch.clip, draws.noise, draws.timestep)
    error = model.denoise(noisy, draws.timestep, blind) - SCHEDULE.target(
        batch.clip, draws.noise, draws.timestep
    )
    assert loss[0].item() == pytest.approx(weighted(error, draws)[0], rel=1e-4)
    assert abs(loss[1].item() - weighted(error, draws)[1]) > 1e-4


def test_overfitting_one_batch_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model, batch = Loopy(TINY), make_batch(2)
    draws = make_draws(2, timestep=torch.tensor([300, 800]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = objective.loss_per_sample(model, SCHEDULE, batch, draws, False).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
