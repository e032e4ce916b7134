"""The average of the weights, the learning rate, and what a state keeps."""

import gc
import math
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import RECIPE, TINY, assert_same
from torch import nn

from loopy_model.config import LOOPY
from loopy_model.model import Loopy
from loopy_model.train.data import PreparedClips
from loopy_model.train.loop import Trainer
from loopy_model.train.lora import is_spatial
from loopy_model.train.objective import Draws
from loopy_model.train.record import mean_per_condition, validation_conditions, with_condition
from loopy_model.train.stages import RECIPES, STAGE_ONE, Stage, learning_rate_factor
from loopy_model.train.state import Average, read_state, restore, snapshot, write_state

Clips = tuple[PreparedClips, PreparedClips]


def number(value: float) -> nn.Module:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


# --- average ------------------------------------------------------------------------------------


def test_the_average_has_a_memory_that_grows() -> None:
    module = number(0)
    average = Average(module, decay=0.5)
    by_hand = 0.0
    for count, value in enumerate([1.0, 3.0, -2.0, 5.0]):
        nn.init.constant_(module.weight, value)
        average.update()
        keep = count / (count + 20)  # 0, 1/21, 2/22, 3/23
        by_hand = keep * by_hand + (1 - keep) * value
        assert average.values[0].item() == pytest.approx(by_hand, rel=1e-6)
    assert average.count == 4


def test_the_memory_of_the_average_ends_at_its_decay() -> None:
    module = number(1)
    average = Average(module, decay=0.9)
    average.values[0].zero_()
    average.count = 10_000
    average.update()
    assert average.values[0].item() == pytest.approx(0.1)
    average.count = 60  # 60 / 80 is below the decay
    average.update()
    assert average.values[0].item() == pytest.approx(0.75 * 0.1 + 0.25)


@pytest.mark.parametrize("error", [None, KeyError, KeyboardInterrupt])
def test_an_applied_average_goes_away_without_a_trace(error: type | None) -> None:
    torch.manual_seed(0)
    module = nn.Linear(5, 5)
    average = Average(module, decay=0.9)
    with torch.no_grad():
        module.weight += 1 / 3
    before, averaged = module.weight.clone(), average.values[0].clone()
    try:
        with average.applied():
            assert torch.equal(module.weight, averaged)
            if error:
                raise error
    except (KeyError, KeyboardInterrupt):
        pass
    assert torch.equal(module.weight, before) and torch.equal(average.values[0], averaged)
    assert not torch.equal(before, averaged)


def test_adopting_the_average_begins_it_again() -> None:
    module = number(4)
    average = Average(module, decay=0.9)
    average.values[0].fill_(2)
    average.count = 7
    average.adopt()
    assert module.weight.item() == 2 and average.count == 0


def test_the_average_leaves_frozen_weights_alone() -> None:
    module = nn.Sequential(number(1).requires_grad_(False), number(2))
    average = Average(module, decay=0.9)
    assert len(average.values) == 1 and average.values[0].item() == 2


# --- state --------------------------------------------------------------------------------------


def test_a_state_brings_everything_back(tmp_path: Path) -> None:
    def made(seed: int) -> tuple:
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        module[0].bias.requires_grad_(False)
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 0.1)
        return module, Average(module, 0.9), optimizer

    def step(module: nn.Module, average: Average, optimizer: torch.optim.Optimizer) -> None:
        module(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    first, second = made(0), made(1)
    with torch.no_grad():
        second[0][0].bias.copy_(first[0][0].bias)  # frozen: comes with the model
    step(*first), step(*first)
    write_state(tmp_path / "state.pt", snapshot(*first))
    restore(read_state(tmp_path / "state.pt"), *second)
    for _ in range(2):
        assert_same(snapshot(*first), snapshot(*second))
        step(*first), step(*second)
    assert second[1].count == 4 and not list(tmp_path.glob("*.partial"))


# --- learning rate ------------------------------------------------------------------------------


def test_the_learning_rate_rises_stays_and_falls_by_half_a_cosine() -> None:
    stage = Stage(
        "x", steps=100, batch=1, learning_rate=1.0, spatial_only=True, warmup=10, constant=0.5, final=0.2
    )
    by_hand = {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 50: 1.0, 75: 0.2 + 0.8 * 0.5, 100: 0.2}
    for step, factor in by_hand.items():
        assert learning_rate_factor(stage, step) == pytest.approx(factor), step
    quarter = 0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5))  # 62.5: a quarter of the fall
    assert learning_rate_factor(replace(stage, steps=200), 125) == pytest.approx(quarter)


def test_the_papers_learning_rate_is_constant() -> None:
    assert {learning_rate_factor(STAGE_ONE, step) for step in range(50, 30_000, 97)} == {1.0}


@pytest.mark.parametrize("stage", [stage for recipe in RECIPES.values() for stage in recipe.stages], ids=str)
def test_learning_rates_stay_positive_and_end_at_their_share(stage: Stage) -> None:
    factors = [learning_rate_factor(stage, step) for step in range(stage.steps)]
    assert 0 < min(factors) and max(factors) == 1.0
    if stage.constant < 1:
        assert factors[-1] == pytest.approx(stage.final, abs=1e-3)
    assert RECIPES["loopy"].config == LOOPY


# --- the trainer --------------------------------------------------------------------------------


@pytest.fixture
def trainer(clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    monkeypatch.setattr("loopy_model.train.loop.VALIDATION_SAMPLES", 2)
    return Trainer(RECIPE, tmp_path, *clips)


def step(trainer: Trainer, stage: Stage) -> tuple[torch.Tensor, float]:
    return trainer.train_step(stage, trainer.make_optimizer(stage), *trainer.batches(stage, range(9)))


def test_validation_is_repeatable_and_leaves_no_trace(trainer: Trainer) -> None:
    trainer.stage_index = 1
    step(trainer, RECIPE.stages[1])
    trainer.average.values[0] += 0.1  # so that they differ
    before = snapshot(trainer.objective, trainer.average, None)
    random = torch.get_rng_state()
    first = trainer.validate(RECIPE.stages[1])
    assert first == trainer.validate(RECIPE.stages[1])
    assert first.keys() == {"all", "no reference", "no audio", "no motion frames"}
    assert len(set(first.values())) > 1
    assert_same(snapshot(trainer.objective, trainer.average, None), before)
    assert torch.equal(torch.get_rng_state(), random)


def test_validation_is_comparable_from_stage_to_stage(trainer: Trainer) -> None:
    stage = RECIPE.stages[1]
    plain = trainer.validate(stage)
    trainer.stage_index = 1
    assert plain == trainer.validate(replace(stage, timestep_power=0.25, face_weight=3.0, motion_noise=0.2))


def test_validation_is_of_the_averaged_weights(trainer: Trainer) -> None:
    before = trainer.validate(RECIPE.stages[0])
    with torch.no_grad():
        trainer.model.denoising_unet.conv_out.bias += 1
    assert trainer.validate(RECIPE.stages[0]) == before
    trainer.average.restart()
    assert trainer.validate(RECIPE.stages[0]) != before


def test_a_state_is_let_go_before_the_first_step(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as large as the model, its average and the optimiser together."""
    stage = RECIPE.stages[0]
    optimizer = trainer.make_optimizer(stage)
    trainer.train_step(stage, optimizer, *trainer.batches(stage, range(9)))
    trainer.step = 1
    trainer._save(optimizer)
    read, left = [], []

    def noted(path: Path) -> dict:
        state = read_state(path)
        moments = (tensor for own in state["optimizer"]["state"].values() for tensor in own.values())
        read.extend(map(weakref.ref, (*state["model"].values(), *state["average"].values(), *moments)))
        return state

    def first_step(*_: object) -> None:
        gc.collect()
        left.extend(tensor for tensor in read if tensor() is not None)
        raise KeyboardInterrupt

    monkeypatch.setattr("loopy_model.train.loop.read_state", noted)
    monkeypatch.setattr(trainer, "train_step", first_step)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert read and not left


def test_stage_one_leaves_the_new_layers_untouched(trainer: Trainer) -> None:
    torch.manual_seed(RECIPE.seed)
    fresh = Loopy(TINY).state_dict()
    step(trainer, RECIPE.stages[0])
    changed = {
        key for key, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, fresh[key])
    }
    assert all(is_spatial(name) for name in changed)
    assert {"reference_unet.conv_in.weight", "denoising_unet.conv_in.weight"} <= changed


# --- the means of the log -----------------------------------------------------------------------


def bits(text: str) -> torch.Tensor:
    return torch.tensor([letter == "x" for letter in text])


def test_means_per_condition_by_hand() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    draws = Draws(
        timestep=torch.zeros(6).long(),
        keep_reference=bits("xxxx.."),
        keep_motion=bits("xx...."),
        keep_audio=bits("x.x.x."),
        source=torch.tensor([0, 1, 1, 2, 0, 2]),
    )
    assert mean_per_condition(losses, draws, RECIPE.stages[1]) == {
        "no reference": (16.0 + 32.0) / 2,
        "all": 1.0,
        "no motion frames": 4.0,
        "no audio": (2.0 + 8.0) / 2,
        "motion latents from audio": (1.0 + 16.0) / 2,
        "motion latents from head movement": 4.0,
    }
    assert mean_per_condition(losses, draws, RECIPE.stages[0]) == {"no reference": 24.0, "all": 15 / 4}


def test_held_out_clips_are_seen_under_each_condition_by_hand() -> None:
    draws = Draws(torch.tensor([5, 6]), bits("x."), bits(".x"), bits(".x"), torch.tensor([1, 2]))
    kept = {"all": "xxx", "no reference": "..x", "no motion frames": "x.x", "no audio": "xx."}
    for name, (reference, motion, audio) in kept.items():
        given = with_condition(draws, name)
        assert torch.equal(given.keep_reference, bits(2 * reference)), name
        assert torch.equal(given.keep_motion, bits(2 * motion)), name
        assert torch.equal(given.keep_audio, bits(2 * audio)), name
        assert given.timestep.tolist() == [5, 6] and given.source.tolist() == [0, 0]
    assert kept.keys() == set(validation_conditions(RECIPE.stages[1]))
    assert set(validation_conditions(RECIPE.stages[0])) == {"all", "no reference"}
