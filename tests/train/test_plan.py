"""What a run will need, counted before it begins."""

import re
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from runs import RECIPE, TINY, Runs

from loopy_model.config import LoopyConfig
from loopy_model.model import Loopy
from loopy_model.train import plan
from loopy_model.train.data import PreparedClips
from loopy_model.train.loop import Settings, Trainer
from loopy_model.train.lora import add_low_rank
from loopy_model.train.plan import cost_of, fixed_memory, lacking, part_of, skeleton

ONE, TWO = RECIPE.stages
AUDIO, SETTINGS = TINY.audio, Settings()
# Counting walks through every layer, so it is done on a model with few.
SMALL = replace(TINY, unet=replace(TINY.unet, channels=(8,), attention=(True,)))


@cache
def flop(config: LoopyConfig = SMALL, stage=TWO, **more: object) -> int:  # noqa: ANN001
    return cost_of(config, stage, **more).flop


def with_frames(frames: int) -> LoopyConfig:
    return replace(SMALL, clip=replace(SMALL.clip, frames=frames))


def test_linear_layers_are_counted_as_by_hand() -> None:
    """The audio projection: (in, h), (h, h) and (h, out) for each frame, forward and twice backward."""
    into = SMALL.clip.audio_window * AUDIO.layers * AUDIO.width
    out = AUDIO.tokens * AUDIO.token_width
    small, large = (flop(replace(SMALL, audio=replace(AUDIO, hidden=h))) for h in (16, 40))
    assert large - small == 3 * 2 * SMALL.clip.frames * ((into + out) * (40 - 16) + 40**2 - 16**2)


def test_attention_is_counted_as_by_hand() -> None:
    """One more embedding of audio-to-latents: its key and value, and for each frame two products."""
    width, frames = AUDIO.latent_width, SMALL.clip.frames
    more = replace(SMALL, audio=replace(AUDIO, latent_embeddings=AUDIO.latent_embeddings + 1))
    assert flop(more) - flop() == 3 * (2 * 2 * width**2 + 2 * 2 * frames * width)


def test_stage_two_grows_with_its_frames_and_stage_one_does_not() -> None:
    counts = [flop(with_frames(frames)) for frames in (3, 4, 5, 6)]
    first = [b - a for a, b in zip(counts, counts[1:])]
    second = [b - a for a, b in zip(first, first[1:])]
    assert second[0] == second[1] > 0  # attention along time: frames ask frames
    assert second[0] < 0.05 * first[0]  # all else is linear
    assert flop(with_frames(3), ONE) == flop(with_frames(6), ONE) < counts[0]


def test_checkpointing_costs_at_most_one_more_forward_pass_and_keeps_less() -> None:
    plain, slim = cost_of(SMALL, TWO), cost_of(SMALL, TWO, checkpointing=True)
    assert 1.2 < slim.flop / plain.flop <= 4 / 3  # forward is a third
    assert slim.activations < plain.activations / 2


def test_adapters_cost_less_than_training_everything() -> None:
    assert flop(low_rank=2) < flop()


@pytest.mark.parametrize("low_rank", [0, 2])
def test_the_parts_sum_to_the_model(low_rank: int) -> None:
    model = Loopy(TINY)
    if low_rank:
        add_low_rank(model, low_rank)
    rows = [re.findall(r"^(.*?)\s+([\d,]+)\s+([\d,]+)$", line) for line in plan._parameters(model)[1:]]
    found = {name: [int(n.replace(",", "")) for n in counts] for [(name, *counts)] in rows}
    everything = found.pop("all")
    assert [sum(column) for column in zip(*found.values())] == everything
    sizes = [(p.numel(), p.numel() * p.requires_grad) for p in model.parameters()]
    assert [sum(column) for column in zip(*sizes)] == everything
    assert found.keys() == {
        "reference net",
        "denoising net, spatial layers",
        "denoising net, inter-clip temporal layers",
        "denoising net, audio cross-attention",
        "denoising net, intra-clip temporal layers",
        "audio projection",
        "audio-to-latents",
    }
    assert (
        part_of("denoising_unet.mid_block.audio_modules.0.norm.weight")
        == "denoising net, audio cross-attention"
    )


def test_fixed_memory_by_hand() -> None:
    model = skeleton(TINY)
    count = sum(p.numel() for p in Loopy(TINY).parameters())
    assert fixed_memory(model, RECIPE) == count * (4 + 4 + 8 + 4)  # weight, gradient, moments, average
    assert fixed_memory(model, replace(RECIPE, optimizer="adamw8bit")) == count * (4 + 4 + 2 + 4)
    adapted = skeleton(TINY, low_rank=2)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained < count / 2
    everything = sum(p.numel() for p in adapted.parameters())
    assert fixed_memory(adapted, replace(RECIPE, low_rank=2)) == 4 * everything + 16 * trained
    frozen = everything - trained
    assert fixed_memory(adapted, replace(RECIPE, low_rank=2), torch.bfloat16) == 2 * frozen + 20 * trained


def test_a_run_that_cannot_fit_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, pieces = replace(RECIPE, stages=(ONE,)), {"one": 4}
    assert lacking(recipe, SMALL, SETTINGS, pieces) is None
    needed = fixed_memory(skeleton(SMALL), recipe) + 4 * cost_of(SMALL, ONE).activations
    for there, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(plan, "_free_memory", lambda there=there: there)
        assert (lacking(recipe, SMALL, SETTINGS, pieces) is None) == fits
    for other in ({"checkpointing": True}, {"mixed_precision": "bf16"}):
        assert lacking(recipe, SMALL, replace(SETTINGS, **other), pieces) is None
    assert lacking(recipe, SMALL, SETTINGS, pieces, processes=2)
    assert lacking(recipe, SMALL, replace(SETTINGS, shard=True), pieces, processes=2) is None


def test_a_system_that_does_not_tell_the_peak_memory_gives_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither /proc nor `resource`."""
    assert plan.peak_memory(torch.device("cpu")) > 1e6
    monkeypatch.setattr(plan.Path, "is_file", lambda path: False)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert plan.peak_memory(torch.device("cpu")) == 0


def test_a_dry_run_prints_the_plan_and_keeps_nothing(runs: Runs) -> None:
    command = runs.start("dry", "--dry-run", "--accumulate", 2)
    assert command.wait() == 0, command.text
    text = Path(f"{command.output}.0").read_text()
    parameters = sum(p.numel() for p in Loopy(TINY).parameters())
    for expected in (
        "train      5 clips,      0.1 minutes, 1 without sound",
        "test       2 clips,      0.0 minutes, 1 without sound",
        "denoising net, inter-clip temporal layers",
        f"all{parameters:45,}{parameters:14,}",
        "stage one: 3 steps of 4 single frames = 12 samples",
        "stage two: 5 steps of 4 4-frame clips = 20 samples",
        "GB for weights, gradients, optimiser and average, and 2 x",
        "more with --checkpointing",
    ):
        assert expected in text, text
    times = re.findall(r"stage (\w+): ([\d.e-]+) s a step", text)
    assert [stage for stage, _ in times] == ["one", "two"] and all(float(s) > 0 for _, s in times)
    assert {file.suffix for file in (runs.folder / "dry").glob("*.*")} <= {".json"}  # what would be run


def test_steps_that_are_only_measured_leave_a_finished_run_alone(
    clips: tuple[PreparedClips, PreparedClips], finished: Path, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    files = {path: path.read_bytes() for path in run_dir.glob("*.*")}
    text = plan.measured(Trainer(replace(RECIPE, seed=5), run_dir, *clips))
    assert re.findall(r"stage (\w+): .* h for (\d) steps; peak memory", text) == [("one", "3"), ("two", "5")]
    assert {path: path.read_bytes() for path in run_dir.glob("*.*")} == files
