"""Noise schedule and solvers against diffusers, float64 round trips and known answers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loopy_model.config import LOOPY, PUPPET, DiffusionConfig
from loopy_model.diffusion import NoiseSchedule
from loopy_model.model import Loopy
from loopy_model.solvers import SOLVERS, Ddim, DpmSolver, Solver, UniPc, make_solver
from loopy_model.train.distill import Distillation, DistillationObjective

PAPER, ZERO_SNR = LOOPY.diffusion, replace(PUPPET.diffusion, prediction="v_prediction")
PREDICTIONS, SPACINGS = ("epsilon", "v_prediction", "sample"), ("leading", "trailing", "linspace")


def theirs(config: DiffusionConfig):  # noqa: ANN201
    diffusers = pytest.importorskip("diffusers")
    return diffusers.DDIMScheduler(
        num_train_timesteps=config.train_steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction,
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing=config.spacing,
        steps_offset=config.steps_offset,
        set_alpha_to_one=config.final_alpha_one,
        clip_sample=False,
    )


def every_config() -> list[DiffusionConfig]:
    return [
        DiffusionConfig(
            beta_schedule=betas,
            prediction=prediction,
            zero_terminal_snr=zero,
            spacing=spacing,
            final_alpha_one=one,
        )
        for betas in ("scaled_linear", "linear")
        for prediction in PREDICTIONS
        for zero in (False, True)
        for spacing in SPACINGS
        for one in (False, True)
        if not (zero and prediction == "epsilon" and spacing != "leading")  # refused, see below
    ]


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_epsilon_is_refused_where_the_first_step_has_no_signal(spacing: str) -> None:
    with pytest.raises(ValueError, match="use v_prediction or sample, or leading spacing"):
        DiffusionConfig(prediction="epsilon", zero_terminal_snr=True, spacing=spacing)


@pytest.mark.parametrize("betas", ["scaled_linear", "linear"])
@pytest.mark.parametrize("zero", [False, True])
def test_alphas_are_diffusers(betas: str, zero: bool) -> None:
    config = replace(PAPER, beta_schedule=betas, zero_terminal_snr=zero)
    ours, other = NoiseSchedule(config).alphas, theirs(config).alphas_cumprod.double()
    assert ours.dtype == torch.float64
    assert (ours - other).abs().max() < 2e-6  # theirs are float32
    assert torch.all(ours.diff() < 0)


def test_alphas_of_sd15() -> None:
    alphas = NoiseSchedule(PAPER).alphas
    assert alphas[0].item() == pytest.approx(1 - 0.00085, abs=1e-15)
    first, last = math.sqrt(0.00085), math.sqrt(0.012)
    second = (first + (last - first) / 999) ** 2
    assert alphas[1].item() == pytest.approx((1 - 0.00085) * (1 - second), abs=1e-15)
    assert alphas[-1].item() == pytest.approx(0.00466, abs=1e-5)


def test_zero_terminal_snr_ends_in_exactly_nothing_and_keeps_the_first_alpha() -> None:
    plain, zero = NoiseSchedule(replace(ZERO_SNR, zero_terminal_snr=False)), NoiseSchedule(ZERO_SNR)
    assert zero.alphas[-1].item() == 0.0 and zero.alphas[-2].item() > 0
    assert zero.alphas[0].item() == pytest.approx(plain.alphas[0].item(), abs=1e-15)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 20, 25, 30, 50, 250])
def test_timesteps_are_diffusers(spacing: str, steps: int) -> None:
    config = replace(PAPER, spacing=spacing)
    other = theirs(config)
    other.set_timesteps(steps)
    assert NoiseSchedule(config).timesteps(steps) == other.timesteps.tolist()


def test_the_papers_25_steps() -> None:
    assert NoiseSchedule(PAPER).timesteps(25) == list(range(961, 0, -40))
    assert NoiseSchedule(ZERO_SNR).timesteps(25) == list(range(999, 0, -40))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_any_number_of_steps_goes_down_within_the_schedule(spacing: str) -> None:
    schedule = NoiseSchedule(replace(PAPER, spacing=spacing))
    for steps in (*range(1, 120), 333, 500, 501, 999):
        timesteps = schedule.timesteps(steps)
        assert len(timesteps) == steps
        assert all(a > b for a, b in zip(timesteps, timesteps[1:]))
        assert 999 >= timesteps[0] and timesteps[-1] >= 0


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}; choose 1 to 1000"):
        NoiseSchedule(PAPER).timesteps(steps)


def name_of(config: DiffusionConfig) -> str:
    snr = "zero-snr" if config.zero_terminal_snr else "snr"
    end = "to-1" if config.final_alpha_one else "to-t0"
    return f"{config.beta_schedule}-{config.prediction}-{snr}-{config.spacing}-{end}"


def toy(x: Tensor, timestep: int) -> Tensor:
    return 0.4 * x.roll(1, -1) + math.sin(timestep / 300)


@pytest.mark.parametrize("config", [c for c in every_config() if c.spacing != "linspace"], ids=name_of)
@pytest.mark.parametrize("eta", [0.0, 0.6, 0.99])
@pytest.mark.parametrize("steps", [10, 25])
def test_ddim_walks_where_diffusers_walks(config: DiffusionConfig, steps: int, eta: float) -> None:
    """Not along linspace, where each of their steps ends beside the timestep at which the next begins."""
    schedule, other = NoiseSchedule(config), theirs(config)
    other.set_timesteps(steps)
    # Their table in our precision: then the walks can be compared to the last digits.
    other.alphas_cumprod, other.final_alpha_cumprod = schedule.alphas, schedule.final_alpha
    generator = torch.Generator().manual_seed(0)
    x = y = torch.randn(1, 2, 4, 3, generator=generator, dtype=torch.float64)
    ours = Ddim(schedule, steps, eta)
    for timestep in ours.timesteps:
        fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x, x0 = ours.step(x, toy(x, timestep), timestep, iter([fresh]))
        step = other.step(toy(y, timestep), timestep, y, eta=eta, variance_noise=fresh)
        y = step.prev_sample
        assert torch.allclose(x, y, rtol=1e-9, atol=1e-9)
        assert torch.allclose(x0, step.pred_original_sample, rtol=1e-9, atol=1e-9)


def test_with_eta_one_the_first_noise_is_forgotten_at_zero_signal() -> None:
    """There eq. 16 leaves nothing of it, and a root of 0 (diffusers rounds to below 0: NaN)."""
    schedule, x0 = NoiseSchedule(replace(ZERO_SNR, prediction="sample")), torch.full((1,), 3.0)
    x, _ = Ddim(schedule, 25, 1.0).step(torch.full((1,), 1e6), x0, 999, iter(torch.full((1, 1), -2.0)))
    alpha = schedule.alphas[959]
    assert x.item() == pytest.approx((alpha.sqrt() * 3 - (1 - alpha).sqrt() * 2).item())


def test_ddim_in_float32_stays_near_diffusers_own_table() -> None:
    schedule, other = NoiseSchedule(PAPER), theirs(PAPER)
    other.set_timesteps(25)
    x = y = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = Ddim(schedule, 25)
    for timestep in ours.timesteps:
        x, _ = ours.step(x, toy(x, timestep), timestep, iter([]))
        y = other.step(toy(y, timestep), timestep, y).prev_sample
    assert x.dtype == torch.float32
    assert (x - y).abs().max() < 1e-4 * y.abs().max()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 8, 10, 12, 25])
@pytest.mark.parametrize(
    "kind, theirs", [(DpmSolver, "DPMSolverMultistepScheduler"), (UniPc, "UniPCMultistepScheduler")]
)
def test_solvers_of_few_steps_walk_where_those_of_diffusers_walk(
    kind: type[Solver], theirs: str, steps: int, spacing: str, prediction: str
) -> None:
    schedule = NoiseSchedule(replace(PAPER, spacing=spacing, prediction=prediction, final_alpha_one=True))
    ours = kind(schedule, steps)
    other = getattr(pytest.importorskip("diffusers"), theirs)(
        beta_start=PAPER.beta_start,
        beta_end=PAPER.beta_end,
        beta_schedule=PAPER.beta_schedule,
        prediction_type=prediction,
    )
    if kind is DpmSolver:
        other.set_timesteps(timesteps=ours.timesteps)
    else:  # which cannot be told its timesteps
        other.set_timesteps(steps)
        other.timesteps, alphas = torch.tensor(ours.timesteps), schedule.alphas[ours.timesteps]
        other.sigmas = torch.cat([(1 / alphas - 1).sqrt(), alphas.new_zeros(1)])
    x = y = torch.randn(1, 2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for timestep in ours.timesteps:
        x, _ = ours.step(x, toy(x, timestep), timestep, iter([]))
        y = other.step(toy(y, timestep), timestep, y).prev_sample
        assert (x - y).abs().max() < 1e-4 * y.abs().max()  # theirs computes in float32


@pytest.mark.parametrize("kind", [DpmSolver, UniPc])
def test_second_order_needs_fewer_steps_than_ddim(kind: type[Solver]) -> None:
    """Of data that is one Gaussian (0, 0.5^2) the best prediction is linear, and x_t stays at as many
    standard deviations as the noise was at. Before the last step, which is the same for both."""

    def missed(solver: Solver) -> float:
        x = torch.ones(1, dtype=torch.float64)
        for timestep in solver.timesteps[:-1]:
            alpha = schedule.alphas[timestep]
            x0 = alpha.sqrt() * 0.25 / (0.25 * alpha + 1 - alpha) * x
            x, _ = solver.step(x, x0, timestep, iter([]))
        alpha = schedule.alphas[solver.timesteps[-1]]
        return abs(x / (0.25 * alpha + 1 - alpha).sqrt() - 1).item()

    schedule = NoiseSchedule(PUPPET.diffusion)
    assert missed(kind(schedule, 10)) < missed(Ddim(schedule, 25))
    assert missed(kind(schedule, 16)) < missed(Ddim(schedule, 25)) / 10


@pytest.mark.parametrize("kind", [DpmSolver, UniPc])
def test_second_order_needs_steps_that_differ(kind: type[Solver]) -> None:
    """The paper's leading timesteps end at 999 whatever their offset, so a thousand of them hold it twice."""
    kind(NoiseSchedule(PAPER), 999)
    with pytest.raises(ValueError, match="steps is 1000, of which two are the same; choose fewer"):
        kind(NoiseSchedule(PAPER), 1000)


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no solver euler; choose one of ddim, dpm\+\+ 2m"):
        make_solver("euler", NoiseSchedule(PAPER), 25, 0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("timestep", [0, 1, 400, 998])
@pytest.mark.parametrize("zero", [False, True])
def test_a_perfect_prediction_splits_into_picture_and_noise(
    prediction: str, timestep: int, zero: bool, generator: torch.Generator
) -> None:
    schedule = NoiseSchedule(replace(PAPER, prediction=prediction, zero_terminal_snr=zero))
    x0, noise = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.tensor([timestep, timestep])
    x = schedule.add_noise(x0, noise, t)
    again, eps = schedule.split(x, schedule.target(x0, noise, t), timestep)
    assert torch.allclose(again, x0, atol=1e-10) and torch.allclose(eps, noise, atol=1e-10)


def test_noise_and_targets_are_diffusers(generator: torch.Generator) -> None:
    schedule = NoiseSchedule(replace(PAPER, prediction="v_prediction"))
    other = theirs(schedule.config)
    x0, noise = torch.randn(2, 3, 4, 4, generator=generator)
    t = torch.tensor([0, 500, 999])  # every sample has its own
    for ours, expected in ((schedule.add_noise, other.add_noise), (schedule.target, other.get_velocity)):
        assert torch.allclose(ours(x0, noise, t), expected(x0, noise, t), atol=1e-5)
    assert torch.equal(NoiseSchedule(PAPER).target(x0, noise, t), noise)


def test_at_zero_snr_there_is_only_noise_and_the_velocity_is_minus_the_picture(
    generator: torch.Generator,
) -> None:
    schedule, last = NoiseSchedule(ZERO_SNR), torch.tensor([999])
    x0, noise = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    assert torch.equal(schedule.add_noise(x0, noise, last), noise)
    assert torch.equal(schedule.target(x0, noise, last), -x0)
    assert torch.equal(schedule.split(noise, -x0, 999)[0], x0)


def test_a_picture_is_weighted_as_its_velocity_up_to_a_limit(generator: torch.Generator) -> None:
    """v = (a x_t - x0) / sigma for given x_t, so errors of v are those of x0 over sigma."""
    schedule = NoiseSchedule(PUPPET.diffusion)
    t = torch.tensor([300, 500, 700, 999])
    weight = schedule.loss_weight(t)
    signal, sigma = schedule.alphas[t].sqrt(), (1 - schedule.alphas[t]).sqrt()
    x_t, x0, wrong = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    velocities = [(signal * x_t - x) / sigma for x in (x0, wrong)]
    assert torch.allclose((velocities[0] - velocities[1]) ** 2, weight * (x0 - wrong) ** 2, rtol=1e-5)
    assert weight[-1] == 1 and schedule.loss_weight(torch.tensor([0])) == 10  # 1 / 0.00085 without the limit
    for config in (PAPER, ZERO_SNR):
        assert torch.equal(NoiseSchedule(config).loss_weight(t), torch.ones(4))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 7, 10, 11, 15, 24, 25])
def test_a_net_that_knows_the_picture_arrives_at_it(
    spacing: str, steps: int, name: str, generator: torch.Generator
) -> None:
    schedule = NoiseSchedule(replace(ZERO_SNR, spacing=spacing))
    solver = make_solver(name, schedule, steps, eta=0)
    x0, x = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    first = None
    for timestep in solver.timesteps:
        alpha = schedule.alphas[timestep]
        noise = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        first = noise if first is None else first
        assert torch.allclose(noise, first, atol=1e-9)  # each step ends at the level where the next begins
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * x0
        x, seen = solver.step(x, velocity, timestep, iter([]))
        assert torch.allclose(seen, x0, atol=1e-9)
    assert torch.allclose(x, x0, atol=1e-9)


@pytest.mark.parametrize("steps", [4, 7, 15])
def test_a_students_steps_end_where_the_samplers_do(tiny: Loopy, steps: int) -> None:
    objective = DistillationObjective(tiny, tiny, Distillation(steps, audio_ratio=1, ref_ratio=1))
    after = Ddim(objective.schedule, steps).after
    assert objective.end_of(torch.tensor(list(after))).tolist() == list(after.values())


def test_the_last_alpha_is_one_or_that_of_timestep_zero() -> None:
    paper, ours = NoiseSchedule(PAPER), NoiseSchedule(ZERO_SNR)
    assert paper.alpha_of(-39) == paper.alphas[0]
    assert ours.alpha_of(-1) == 1
    assert paper.alpha_of(1) == paper.alphas[1]
