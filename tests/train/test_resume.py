"""A run that was killed and started again ends as if nothing had happened, bit for bit."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import (
    CLIPS,
    OTHER_VAE,
    RECIPE,
    Runs,
    assert_same,
    assert_same_run,
    has_logged,
    log_of,
    place_of,
    state_of,
    steps_of,
    write_clip,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ALL_STEPS = [(stage.name, i + 1) for stage in RECIPE.stages for i in range(stage.steps)]


def has_saved(path: Path) -> bool:
    return (path / "state.pt").is_file()


def is_saving(path: Path) -> bool:
    return (path / "state.pt.partial").exists()


BORDER = (0, RECIPE.stages[0].steps), (1, 0)  # before and after the average becomes the model


def has_just_saved(path: Path) -> bool:
    """A state that is newer than the log."""
    return has_saved(path) and modified(path / "state.pt") > modified(path / "log.jsonl")


def modified(path: Path) -> int:
    return path.stat().st_mtime_ns


def left(steps: int, *places: tuple[int, int] | None) -> Callable[[Path], bool]:
    """Whether a killed run has logged so many steps and saved one of these places."""
    return lambda path: steps_of(path) == ALL_STEPS[:steps] and place_of(path) in places


@pytest.fixture(scope="module")
def straight(runs: Runs) -> Path:
    """A run that two data workers fed, killed between two saves and not resumed yet."""
    return runs.killed("straight", has_logged("two", 3), left(6, (1, 2)), "--workers", 2)


def test_one_kill_after_another_changes_nothing(runs: Runs, straight: Path, finished: Path) -> None:
    path = runs.killed("no-save", has_logged("one", 1), left(1, None))
    path = runs.killed("first-save", is_saving, lambda p: is_saving(p) and left(2, None)(p), begun=path)
    path = runs.killed("after-save", has_saved, left(2, (0, 2)), begun=path)
    path = runs.killed(
        "border", lambda p: has_logged("one", 3)(p) and has_just_saved(p), left(3, *BORDER), begun=path
    )
    with open(path / "log.jsonl", "a") as log:
        log.write('{"stage": "two", "step": 1, "lo')  # a kill in the middle of a line

    path = runs.killed("between", has_logged("two", 3), left(6, (1, 2)), begun=path)
    state = state_of(path)  # has the optimizer, which the last one has not
    assert state["optimizer"]["state"] and state["model"].keys() == state["average"].keys()
    assert_same(state, state_of(straight))

    path = runs.killed(
        "later-save",
        lambda path: has_logged("two", 4)(path) and is_saving(path),
        lambda path: is_saving(path) and left(7, (1, 2))(path),
        begun=path,
    )
    path = runs.finish(path.name)
    assert_same_run(path, finished)
    assert not is_saving(path)


def test_data_workers_change_nothing_and_a_kill_among_them_neither(
    runs: Runs, straight: Path, finished: Path
) -> None:
    path = Path(shutil.copytree(straight, runs.folder / "workers"))
    assert_same_run(runs.finish(path.name, "--workers", 2), finished)


def test_rows_are_logged_once_and_in_order(finished: Path) -> None:
    assert steps_of(finished) == ALL_STEPS
    checks = [(row["stage"], row["step"]) for row in log_of(finished) if "validation" in row]
    one, two = [("one", step) for step in (0, 2, 3)], [("two", step) for step in (0, 2, 4, 5)]
    assert checks == one + two
    assert not list(finished.glob("*.partial"))


def test_a_finished_run_has_nothing_left_to_do(runs: Runs, finished: Path) -> None:
    path = Path(shutil.copytree(finished, runs.folder / "again"))
    (path / "loopy.safetensors").unlink()
    assert_same_run(runs.finish(path.name), finished)


# --- what must not change -----------------------------------------------------------------------


@pytest.fixture
def copy(runs: Runs, finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, runs.folder / tmp_path.name))


def test_another_recipe_is_refused_by_the_names_of_its_differences(runs: Runs, copy: Path) -> None:
    sentence = runs.refused(copy.name, "--seed", 1)
    assert "was begun with another recipe (seed was 0, now 1)" in sentence
    assert json.loads((copy / "recipe.json").read_text())["seed"] == 0
    sentence = runs.refused(copy.name, "--learning-rate", 1e-3, 2e-3)
    assert "stages[1].learning_rate was 0.001, now 0.002" in sentence


def test_a_finished_run_goes_on_with_further_stages(runs: Runs, copy: Path) -> None:
    """The stages that are done stay as they are; the new one starts from their result."""
    recipe = json.loads((copy / "recipe.json").read_text())
    more = {**recipe["stages"][-1], "name": "more", "steps": 2}
    path = copy / "longer.json"
    path.write_text(json.dumps({**recipe, "stages": [*recipe["stages"], more]}))
    runs.finish(copy.name, "--recipe", path)
    assert steps_of(copy) == [*ALL_STEPS, ("more", 1), ("more", 2)]
    assert json.loads((copy / "recipe.json").read_text())["stages"][-1]["name"] == "more"
    assert "was begun with another recipe (stages" in runs.refused(copy.name)  # the shorter one


def test_a_run_from_before_a_field_existed_goes_on(runs: Runs, copy: Path, finished: Path) -> None:
    """Its stages have the field's default, which is what was done then; what made its clips is not known."""
    state = state_of(copy)
    begun = json.loads(state["begun"])
    for stage in begun["recipe"]["stages"]:
        del stage["timestep_power"]
    del begun["encoders"]
    torch.save({**state, "begun": json.dumps(begun)}, copy / "state.pt")
    (copy / "loopy.safetensors").unlink()
    runs.finish(copy.name)
    assert (copy / "loopy.safetensors").is_file() and steps_of(copy) == steps_of(finished)


def test_other_clips_are_refused(runs: Runs, copy: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    other = Runs(tmp_path, tmp_path / "data")
    begun = Path(shutil.copytree(copy, tmp_path / "run"))
    write_clip(tmp_path / "data", replace(CLIPS[0], frames=39))
    assert "was begun with other training clips" in other.refused(begun.name)
    write_clip(tmp_path / "data", CLIPS[0])
    write_clip(tmp_path / "data", replace(CLIPS[0], name="new"))
    assert "was begun with other training clips" in other.refused(begun.name)


def test_clips_of_another_vae_are_refused(copy: Path, tmp_path: Path) -> None:
    for clip in CLIPS:
        write_clip(tmp_path / "data", clip, encoders=OTHER_VAE)
    begun = Path(shutil.copytree(copy, tmp_path / "run"))
    sentence = Runs(tmp_path, tmp_path / "data").refused(begun.name)
    assert f"was begun with clips of another VAE, speech encoder or size than {tmp_path}" in sentence


def test_another_base_below_adapters_is_refused(runs: Runs, finished: Path, tmp_path: Path) -> None:
    """The state holds no frozen weights, so they must come from the same file."""
    base, other = finished / "loopy.safetensors", tmp_path / "other.safetensors"
    tensors = load_file(base)
    tensors["loopy.denoising_unet.conv_in.weight"] += 1
    with safe_open(base, "pt") as file:
        save_file(tensors, other, file.metadata())
    tuned = Runs(tmp_path, runs.data, replace(RECIPE, name="tune", stages=RECIPE.stages[1:], low_rank=2))
    path = tuned.finish("run", "--base", base)
    assert "was begun on another base model" in tuned.refused(path.name, "--base", other)


def test_another_seed_is_another_run(runs: Runs, finished: Path) -> None:
    """Otherwise the equalities above would say little."""
    path = runs.finish("other-seed", "--seed", 1, "--steps", 1, 1)
    assert steps_of(path) == [("one", 1), ("two", 1)]
    first, other = (next(row["loss"] for row in log_of(p) if "loss" in row) for p in (path, finished))
    assert first != other
    kept = json.loads((path / "recipe.json").read_text())
    assert kept["seed"] == 1 and [stage["steps"] for stage in kept["stages"]] == [1, 1]
