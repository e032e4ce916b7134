"""Few-step distillation: against the sampler's own steps, by hand, and as runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import small_model
from runs import RECIPE, TINY, Runs, assert_same_run, contents, has_logged, log_of, place_of

from loopy_model.adapter import config_with, merge
from loopy_model.conditions import Conditions, Speech
from loopy_model.config import DiffusionConfig
from loopy_model.guidance import Guidance, Predictor
from loopy_model.model import Loopy
from loopy_model.motion import TemporalSegments
from loopy_model.pipeline import BUNDLED
from loopy_model.sampling import Request, SamplingOptions, generate, refuse_unlike_distilled
from loopy_model.solvers import Ddim
from loopy_model.train.__main__ import build_parser, chosen_recipe, make_preview
from loopy_model.train.data import Place, PreparedClips, Samples, collate
from loopy_model.train.distill import Distillation, DistillationObjective
from loopy_model.train.loop import Trainer
from loopy_model.train.objective import Batch, Draws
from loopy_model.train.plan import cost_of, fixed_memory, skeleton
from loopy_model.train.record import with_condition
from loopy_model.train.stages import RECIPES, ConditionDropping
from loopy_model.train.state import snapshot
from loopy_model.weights import Header, ModelCard, read_header, save_checkpoint

NOTHING = iter(())  # DDIM takes no fresh noise
STAGE = replace(RECIPE.stages[1], dropping=ConditionDropping(0, 0, 0.25), learning_rate=3e-3)
PLAN = Distillation(4, 2.0, 1.5, substeps=5)
DISTIL = replace(RECIPE, config=None, stages=(STAGE,), distillation=PLAN)
DIFFUSION = {
    "sample": TINY.diffusion,
    "v_prediction": replace(TINY.diffusion, prediction="v_prediction"),
    "epsilon": DiffusionConfig(),
}


def model_of(name: str, seed: int = 0) -> Loopy:
    return small_model(replace(TINY, diffusion=DIFFUSION[name]), seed)


def read(clips: PreparedClips, count: int = 1) -> tuple[Batch, Draws]:
    """Samples with every condition."""
    samples = Samples(clips, STAGE, (0, 0), batch=count)
    batch, draws = collate([samples[Place(0, i)] for i in range(count)])
    return batch, with_condition(draws, "all")


def at(draws: Draws, timestep: int) -> Draws:
    return replace(draws, timestep=torch.full_like(draws.timestep, timestep))


def conditions_of(model: Loopy, batch: Batch) -> Conditions:
    """As the sampler makes them, of one clip."""
    seen = model.read(batch.motion[0])
    kept = batch.present[0][:, None, None, None]
    return model.encode_conditions(
        [site.normed for site in model.read(batch.reference)],
        [(site.output * kept)[None] for site in seen],
        batch.windows,
        model.motion_latents_from_audio(batch.windows),
    )


# --- what the teacher shows ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", DIFFUSION)
def test_the_teacher_goes_as_the_sampler_does(clips: tuple[PreparedClips, PreparedClips], kind: str) -> None:
    teacher, (batch, draws) = model_of(kind), read(clips[0])
    objective = DistillationObjective(teacher, teacher, PLAN)
    start = objective.starts[2].item()
    noisy = objective.schedule.add_noise(batch.clip, draws.noise, torch.tensor([start]))
    landed = objective.teach(noisy, batch, at(draws, start))

    predict = Predictor(teacher, conditions_of(teacher, batch), Guidance(2.0, 1.5), in_one_batch=False)
    solver = Ddim(objective.schedule, 4 * 5)
    first = solver.timesteps.index(start)
    x = noisy
    for timestep in solver.timesteps[first : first + 5]:
        x, _ = solver.step(x, predict(x, timestep, 0.0), timestep, NOTHING)
    assert torch.allclose(landed, x, rtol=1e-4, atol=1e-5)
    assert (landed - noisy).abs().mean() > 0.05


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("kind", DIFFUSION)
def test_a_student_that_hits_its_target_lands_where_the_teacher_does(
    clips: tuple[PreparedClips, PreparedClips], kind: str, step: int
) -> None:
    teacher, (batch, draws) = model_of(kind), read(clips[0])
    objective = DistillationObjective(teacher, teacher, PLAN)
    schedule, start = objective.schedule, objective.starts[step]
    noisy = schedule.add_noise(batch.clip, draws.noise, start[None])
    landed = objective.teach(noisy, batch, at(draws, start.item()))
    x0, noise = objective.wanted(noisy, start[None], landed)
    target = schedule.target(x0, noise, start[None])
    after, shown = Ddim(schedule, 4).step(noisy, target, start.item(), NOTHING)
    assert torch.allclose(after, landed, rtol=1e-4, atol=1e-4)
    assert torch.allclose(shown, x0, rtol=1e-3, atol=1e-3)


def test_by_hand(clips: tuple[PreparedClips, PreparedClips]) -> None:
    """Signal 0.6 and sigma 0.8 at the start, 0.8 and 0.6 at the end of a step from x0 = 2, noise = -1 ..."""
    objective = DistillationObjective(*[model_of("sample")] * 2, PLAN)
    objective.schedule.weights = lambda timestep, like: (
        (torch.tensor(0.6), torch.tensor(0.8)) if timestep == 749 else (torch.tensor(0.8), torch.tensor(0.6))
    )
    # ... are 0.6 * 2 - 0.8 = 0.4 and 0.8 * 2 - 0.6 = 1.
    x0, noise = objective.wanted(torch.tensor([0.4]), torch.tensor(749), torch.tensor([1.0]))
    assert x0.item() == pytest.approx(2) and noise.item() == pytest.approx(-1)


def test_timesteps_belong_to_the_steps_of_the_sampler() -> None:
    objective = DistillationObjective(*[model_of("sample")] * 2, PLAN)
    drawn = torch.tensor([0, 249, 250, 499, 500, 749, 750, 999])
    assert objective.start_of(drawn).tolist() == [249, 249, 499, 499, 749, 749, 999, 999]
    assert objective.end_of(torch.tensor([249, 499, 999])).tolist() == [-1, 249, 749]
    assert Ddim(objective.schedule, 4).timesteps == objective.starts.flip(0).tolist()


def test_errors_weigh_by_how_far_they_move_where_a_step_ends() -> None:
    """Against the sampler itself: the same error in each step's prediction, from anywhere."""
    x, prediction, error = torch.randn(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    for kind in ("epsilon", "v_prediction"):
        objective = DistillationObjective(*[model_of(kind)] * 2, PLAN)
        moved = []
        for start in objective.starts.tolist():
            landed, other = (
                Ddim(objective.schedule, 4).step(x, said, start, NOTHING)[0]
                for said in (prediction, prediction + error)
            )
            moved.append(((other - landed).square().sum() / error.square().sum()).item())
        weights = objective.loss_weight(objective.starts)
        assert weights.tolist() == pytest.approx([m / sum(moved) * 4 for m in moved], rel=1e-3)
        assert weights.mean().item() == pytest.approx(1)
        assert max(moved) / min(moved) > (14 if kind == "epsilon" else 1)
    pictures = DistillationObjective(*[model_of("sample")] * 2, PLAN)
    assert torch.equal(pictures.loss_weight(pictures.starts), pictures.schedule.loss_weight(pictures.starts))


def test_a_loss_is_weighted_by_its_step(clips: tuple[PreparedClips, PreparedClips]) -> None:
    teacher, (batch, draws) = model_of("epsilon"), read(clips[0])
    objective = DistillationObjective(teacher, teacher, PLAN)
    weighted = [objective(batch, at(draws, timestep), False) for timestep in (0, 999)]
    weights = objective.loss_weight(objective.starts[[0, -1]])
    objective.loss_weight = lambda start: torch.ones(len(start))
    plain = [objective(batch, at(draws, timestep), False) for timestep in (0, 999)]
    assert torch.allclose(torch.cat(weighted), weights * torch.cat(plain))


@pytest.mark.parametrize("kind", DIFFUSION)
def test_the_first_step_is_learnt_on_noise_alone(
    clips: tuple[PreparedClips, PreparedClips], kind: str
) -> None:
    """As the sampler begins, though SD1.5's schedule leaves a signal of 0.07 there."""
    batch, draws = read(clips[0], 2)
    objective = DistillationObjective(*[model_of(kind)] * 2, PLAN)
    draws = replace(draws, timestep=torch.tensor([999, 749]))
    noisy = objective.noisy(batch.clip, draws)
    assert torch.equal(noisy[0], draws.noise[0])
    scheduled = objective.schedule.add_noise(batch.clip, draws.noise, draws.timestep)
    assert torch.equal(noisy, scheduled) == objective.schedule.config.zero_terminal_snr
    assert (noisy[1] - draws.noise[1]).abs().mean() > 0.05


def test_a_student_like_its_teacher_has_nothing_to_learn_of_single_steps_without_guidance(
    clips: tuple[PreparedClips, PreparedClips],
) -> None:
    model, (batch, draws) = model_of("sample"), read(clips[0], 4)
    same = DistillationObjective(model, model, Distillation(4, 1.0, 1.0, 1))
    assert same(batch, draws, False).max() < 1e-8
    guided = DistillationObjective(model, model, Distillation(4, 2.0, 1.5, 1))
    further = DistillationObjective(model, model, Distillation(4, 1.0, 1.0, 5))
    assert guided(batch, draws, False).min() > 1e-6 and further(batch, draws, False)[1:].max() > 1e-6


# --- training -----------------------------------------------------------------------------------


def trained(
    clips: tuple[PreparedClips, PreparedClips], folder: Path, steps: int
) -> tuple[Trainer, list[dict[str, float]]]:
    """-> the trainer after some steps, and the held-out losses before and after."""
    recipe = replace(DISTIL, config=TINY, stages=(replace(STAGE, steps=steps),), low_rank=4)
    trainer = Trainer(recipe, folder, *clips, base=model_of("sample").state_dict())
    stage = recipe.stages[0]
    optimizer, parts = trainer.make_optimizer(stage), trainer.batches(stage, range(steps))
    losses = [trainer.validate(stage)]
    for trainer.step in range(steps):
        trainer.train_step(stage, optimizer, *parts)
    return trainer, [*losses, trainer.validate(stage)]


def test_the_student_comes_closer_and_the_teacher_stays(
    clips: tuple[PreparedClips, PreparedClips], tmp_path: Path
) -> None:
    trainer, (before, after) = trained(clips, tmp_path, 30)
    assert after["all"] < 0.85 * before["all"] and after.keys() == {"all", "no motion frames"}
    (teacher,) = trainer.objective._teacher
    for name, tensor in model_of("sample").state_dict().items():
        assert torch.equal(teacher.state_dict()[name], tensor), name
    assert not any("teacher" in name for name in snapshot(trainer.objective, trainer.average, None)["model"])
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


# --- runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    card = ModelCard("small", "noise", "Of no use.", "Apache-2.0")
    save_checkpoint(path, Header(TINY, card), {"loopy": model_of("sample")}, torch.float32)
    return path


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("students"), data, replace(DISTIL, low_rank=2))


def test_a_teacher_can_work_in_lower_precision(students: Runs, base: Path) -> None:
    run = students.finish("bf16", "--base", base, "--student-steps", 2, "--mixed-precision", "bf16")
    assert (run / "adapter.safetensors").is_file()


def test_a_run_ends_with_an_adapter_that_says_how_to_sample(students: Runs, base: Path) -> None:
    run = students.finish("whole", "--base", base, "--student-steps", 2, "--guidance", 1.5, 1.25)
    card = json.loads(contents(run / "adapter.safetensors")[0]["card"])
    assert card["limits"].startswith(
        "Distilled: sample with ddim, 2 steps, and 1 for both ratios; the guidance (1.5 and 1.25) is within. "
    )
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["distillation"] == {"steps": 2, "substeps": 5, "audio_ratio": 1.5, "ref_ratio": 1.25}


def test_a_model_with_a_student_in_it_samples_as_it_was_distilled(
    students: Runs, base: Path, tmp_path: Path
) -> None:
    """Trailing steps, of which the first is on pure noise, whatever the teacher's were."""
    adapter = students.finish("first", "--base", base) / "adapter.safetensors"
    diffusion = config_with(adapter, TINY).diffusion
    assert (diffusion.student_steps, diffusion.spacing) == (4, "trailing")
    assert config_with(adapter, TINY, 0.5) == TINY
    leading = replace(TINY, diffusion=DIFFUSION["epsilon"])
    assert leading.of_student(4).diffusion == replace(
        DIFFUSION["epsilon"], spacing="trailing", student_steps=4
    )

    merged = tmp_path / "merged.safetensors"
    merge(base, adapter, merged)
    header = read_header(merged)
    assert header.config == config_with(adapter, TINY)
    assert header.card.limits.startswith("Distilled: ") and header.card.limits.endswith("Of no use.")


def test_another_way_to_sample_a_student_is_refused_in_one_sentence() -> None:
    fits, student = (4, Guidance(1.0, 1.0), SamplingOptions()), TINY.of_student(4)
    refuse_unlike_distilled(student, *fits)
    for place, other in enumerate((8, Guidance(1.0, 1.5), SamplingOptions("unipc"))):
        asked = [*fits[:place], other, *fits[place + 1 :]]
        refuse_unlike_distilled(TINY, *asked)
        with pytest.raises(ValueError, match="distilled for 4 steps without guidance; set steps to 4, both"):
            refuse_unlike_distilled(student, *asked)
    speech = Speech(torch.zeros(4, TINY.audio.layers, TINY.audio.width), 25)
    request = Request(torch.zeros(1, 4, 4, 4), speech, TemporalSegments(TINY.clip), steps=5)
    with pytest.raises(ValueError, match="distilled for 4 steps"):
        next(generate(small_model(student), request))


def test_a_killed_run_goes_on_as_if_nothing_had_happened(students: Runs, base: Path) -> None:
    whole = students.finish("uninterrupted", "--base", base)
    killed = students.killed(
        "killed", has_logged("two", 3), lambda path: place_of(path) == (0, 2), "--base", base
    )
    again = students.finish(killed.name, "--base", base)
    assert_same_run(whole, again, "adapter.safetensors")
    assert len([row for row in log_of(again) if "loss" in row]) == 5


def test_another_teacher_is_refused(students: Runs, base: Path, tmp_path: Path) -> None:
    students.finish("first", "--base", base)
    other = tmp_path / "other.safetensors"
    card = ModelCard("other", "noise", "Of no use.", "Apache-2.0")
    save_checkpoint(other, Header(TINY, card), {"loopy": model_of("sample", 1)}, torch.float32)
    assert "begun on another base model" in students.refused("first", "--base", other)


def test_what_does_not_fit_is_one_sentence(students: Runs, base: Path) -> None:
    assert "give it with --base" in students.refused("none")
    sentence = students.refused("zero", "--base", base, "--student-steps", 0)
    assert sentence == "distillation: steps is 0; it must be at least 1."


def recipe_of(*arguments: str):  # noqa: ANN201
    return chosen_recipe(build_parser().parse_args(["--data", "d", "--run-dir", "r", *arguments]))


def test_the_command_line_chooses_the_teachers_ratios_and_the_students_steps() -> None:
    chosen = recipe_of("--recipe", "distill", "--guidance", "5", "3", "--student-steps", "8").distillation
    assert chosen == replace(RECIPES["distill"].distillation, steps=8, audio_ratio=5, ref_ratio=3)
    with pytest.raises(ValueError, match="recipe finetune does not distil; leave"):
        recipe_of("--recipe", "finetune", "--student-steps", "8")


@pytest.mark.parametrize("made", [True, False], ids=["being made", "trained further"])
def test_the_preview_samples_a_student_in_its_own_way(data: Path, made: bool) -> None:
    args = build_parser().parse_args(["--data", str(data), "--run-dir", "x", "--vae", str(BUNDLED)])
    args.device = "cpu"
    test = PreparedClips(data, "test", TINY if made else TINY.of_student(3))
    preview = make_preview(args, test, Distillation(3, 2.0, 1.5) if made else None)
    assert (preview.steps, preview.guidance) == (3, Guidance(1, 1))


def test_single_frames_teach_no_steps() -> None:
    with pytest.raises(ValueError, match="none of its stages can be spatial_only"):
        replace(DISTIL, stages=RECIPE.stages)


def test_the_plan_counts_the_teacher(tmp_path: Path) -> None:
    """Its forward passes: conditions once, and `substeps` times as many branches as have a weight."""
    flop = {
        plan: cost_of(TINY, STAGE, distillation=plan and Distillation(4, *plan)).flop
        for plan in (None, (1.0, 1.0, 1), (1.0, 1.0, 2), (3.0, 1.5, 2))
    }
    branch = flop[1.0, 1.0, 2] - flop[1.0, 1.0, 1]
    assert 0 < branch < flop[1.0, 1.0, 1] - flop[None] < flop[None]
    assert branch < flop[3.0, 1.5, 2] - flop[1.0, 1.0, 2] < 4 * branch  # two more, with fewer conditions
    model = skeleton(TINY)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert fixed_memory(model, DISTIL) - fixed_memory(model, replace(DISTIL, distillation=None)) == weights
