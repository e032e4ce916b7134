"""Recipes: what to train, as data."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import RECIPE

from loopy_model.config import LOOPY, PUPPET
from loopy_model.train.__main__ import build_parser, chosen_recipe, settings_of, with_base
from loopy_model.train.loop import Settings
from loopy_model.train.objective import ConditionDropping
from loopy_model.train.stages import RECIPES, Recipe, Stage, read_recipe


def parsed(*arguments: str):  # noqa: ANN202
    return build_parser().parse_args(["--data", "d", "--run-dir", "r", *arguments])


@pytest.mark.parametrize("recipe", [*RECIPES.values(), RECIPE], ids=lambda recipe: recipe.name)
def test_a_recipe_survives_json(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.to_dict()))
    assert read_recipe(str(path)) == recipe
    assert json.loads(json.dumps(recipe.to_dict())) == json.loads(path.read_text())


def test_the_papers_recipe_is_the_default() -> None:
    recipe = chosen_recipe(parsed())
    assert recipe == RECIPES["loopy"] and recipe.config == LOOPY and recipe.optimizer == "adamw"
    assert [stage.spatial_only for stage in recipe.stages] == [True, False]
    for stage in recipe.stages:
        assert (stage.batch, stage.learning_rate, stage.constant) == (24, 1e-5, 1.0)
        assert stage.dropping == ConditionDropping(audio=0.10, reference=0.15, motion=0.40)
        assert stage.dropping.audio_without_reference is None
    assert recipe.low_rank == 0 and RECIPES["puppet"].config == PUPPET
    assert settings_of(parsed("--device", "cpu")) == Settings()


def test_the_command_line_changes_each_stage() -> None:
    recipe = chosen_recipe(parsed("--steps", "5", "6", "--batch", "2", "4", "--learning-rate", "1", "2"))
    assert [(s.steps, s.batch, s.learning_rate) for s in recipe.stages] == [(5, 2, 1.0), (6, 4, 2.0)]
    recipe = chosen_recipe(parsed("--seed", "3", "--optimizer", "adamw8bit", "--recipe", "finetune"))
    assert (recipe.seed, recipe.optimizer, recipe.low_rank) == (3, "adamw8bit", 16)
    assert chosen_recipe(parsed("--recipe", "finetune", "--low-rank", "0")).low_rank == 0


def test_a_value_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="--steps has 3 values, the recipe 2 stages; give one each."):
        chosen_recipe(parsed("--steps", "1", "2", "3"))
    with pytest.raises(ValueError, match="--learning-rate has 1 values, the recipe 2 stages"):
        chosen_recipe(parsed("--learning-rate", "1e-5"))


@pytest.mark.parametrize(
    "option, least", [("--workers", 0), ("--accumulate", 1), ("--save-every", 1), ("--preview-every", 0)]
)
def test_settings_below_the_least_are_refused(option: str, least: int) -> None:
    assert settings_of(parsed("--device", "cpu", option, str(least)))
    with pytest.raises(ValueError, match=f"^{option} is {least - 1}; it must be at least {least}.$"):
        settings_of(parsed("--device", "cpu", option, str(least - 1)))


def test_a_rank_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="recipe finetune: low_rank is -1; give 0 for none, or more."):
        chosen_recipe(parsed("--recipe", "finetune", "--low-rank", "-1"))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="^there is no GPU that PyTorch can use here; "):
        settings_of(parsed("--device", "cuda"))


@pytest.mark.parametrize("name", ["steps", "batch", "warmup"])
@pytest.mark.parametrize("value", [0, -1])
def test_less_than_one_is_refused(name: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"stage one: {name} is {value}; it must be at least 1."):
        replace(RECIPE.stages[0], **{name: value})
    values = RECIPE.to_dict()
    values["stages"][0][name] = value
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="it must be at least 1"):
        read_recipe(str(tmp_path / "recipe.json"))


def changed(**values: object) -> bytes:
    return json.dumps(RECIPE.to_dict() | values).encode()


DAMAGES = {
    "garbage": b"steps: 5",
    "no text": b"\x00\xff\xfe",
    "a list": b"[1, 2]",
    "no stages": b'{"name": "x", "config": null}',
    "an unknown field": changed(stepps=5),
    "an unknown field of a stage": changed(stages=[{"name": "x", "stepps": 5}]),
    "an unknown field of the model": changed(config={"sizes": 5}),
    "words for numbers": changed(stages=[RECIPE.to_dict()["stages"][0] | {"steps": "many"}]),
    "a null where a stage is": changed(stages=[None]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_recipe_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(DAMAGES[damage])
    with pytest.raises(ValueError, match="recipe.json is not a recipe .*start from the recipe.json of a run"):
        read_recipe(str(path))


def test_an_unknown_optimizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_bytes(changed(optimizer="sgd"))
    with pytest.raises(ValueError, match="there is no optimizer sgd; choose adamw, adamw8bit."):
        read_recipe(str(tmp_path / "recipe.json"))


def test_a_recipe_that_is_not_there_is_refused_with_the_names_of_those_that_are() -> None:
    with pytest.raises(
        ValueError, match="there is no recipe lopy; choose loopy, puppet, finetune, distill, or give"
    ):
        read_recipe("lopy")


def test_adapters_need_a_base() -> None:
    for recipe in (RECIPES["finetune"], replace(RECIPE, low_rank=4)):
        with pytest.raises(ValueError, match="give it with --base"):
            with_base(recipe, None)
    assert with_base(RECIPE, None) == (RECIPE, None)


def test_a_stage_says_what_it_is() -> None:
    with pytest.raises(TypeError):
        Stage("x")  # nothing about the work itself has a default


def test_stages_of_the_same_name_are_refused() -> None:
    one, two, *_ = RECIPES["puppet"].stages
    with pytest.raises(ValueError, match="needs stages of different names"):
        replace(RECIPES["puppet"], stages=(one, replace(two, name=one.name)))
