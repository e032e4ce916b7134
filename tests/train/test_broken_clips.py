"""What is wrong with the data or the numbers ends a run with one sentence."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import (
    CLIPS,
    RECIPE,
    Runs,
    assert_same,
    contents,
    place_of,
    state_of,
    tensors_of,
    write_clip,
    write_clips,
)
from safetensors.torch import save_file

from loopy_model.model import Loopy
from loopy_model.train.data import PreparedClips
from loopy_model.train.loop import Settings, Trainer
from loopy_model.weights import Header, ModelCard, save_checkpoint

FEW = (CLIPS[1], replace(CLIPS[2], frames=8), CLIPS[5])  # middle, one-start, held-out


@pytest.fixture
def broken(tmp_path: Path) -> Runs:
    """Clips of its own, to be broken."""
    return Runs(tmp_path, write_clips(tmp_path / "data", FEW))


def rewrite(path: Path, **tensors: torch.Tensor) -> None:
    """Around `write_encoded`, which refuses NaN."""
    header, known = contents(path)
    save_file(known | tensors, path, header)


@pytest.mark.parametrize("workers", [0, 2])
def test_nan_in_a_clip_stops_the_run_with_its_name(broken: Runs, workers: int) -> None:
    latents = tensors_of(CLIPS[1])["latents"].half()
    latents[:, 0, 0, 0] = float("nan")
    rewrite(broken.data / "encoded" / "middle.safetensors", latents=latents)
    sentence = broken.refused("run", "--workers", workers)
    assert sentence.startswith("middle (frames ") and "holds NaN or infinite values (clip)" in sentence


def test_nan_in_speech_or_landmarks_is_found_where_it_is_read(tmp_path: Path) -> None:
    from loopy_model.prepare.encoded import BadClip
    from loopy_model.train.data import Window

    clip = CLIPS[0]
    path = write_clip(tmp_path, clip)
    for name, field in (("speech", "windows"), ("landmarks", "movement"), ("latents", "motion")):
        tensors = {k: t.half() if k != "landmarks" else t for k, t in tensors_of(clip).items()}
        tensors[name][9] = float("inf")
        rewrite(path, **tensors)
        clips = PreparedClips(tmp_path, "train", RECIPE.config)
        clips.read(Window(clip, 20, 4, 0))
        with pytest.raises(BadClip, match=f"long .frames .* holds NaN or infinite values .{field}"):
            clips.read(Window(clip, 10 if name == "latents" else 8, 4, 0))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def garbage(path: Path) -> None:
    path.write_bytes(b"no tensors in here " * 50)


def other_kind(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path)


def no_record(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path, {"format": "loopy-encoded-clip"})


@pytest.mark.parametrize("damage", [cut, garbage, other_kind, no_record])
def test_a_damaged_file_is_named_before_anything_begins(broken: Runs, damage) -> None:  # noqa: ANN001
    path = broken.data / "encoded" / "middle.safetensors"
    damage(path)
    sentence = broken.refused("run")
    assert str(path) in sentence and sentence.endswith(".")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_damaged_later_is_named_too(broken: Runs, workers: int) -> None:
    """Its header is whole, a tensor is missing."""
    path = broken.data / "encoded" / "middle.safetensors"
    header, tensors = contents(path)
    del tensors["latents"]
    save_file(tensors, path, header)
    sentence = broken.refused("run", "--workers", workers)
    assert str(path) in sentence and "prepare encode` again" in sentence


def test_no_clips_at_all_and_no_test_clips_are_a_sentence_each(broken: Runs) -> None:
    (broken.data / "encoded" / "held-out.safetensors").unlink()
    assert "has no test clip for stage one" in broken.refused("run")
    for path in (broken.data / "encoded").iterdir():
        path.unlink()
    assert "has no encoded clips; `python -m loopy_model.prepare encode`" in broken.refused("run")


# --- numbers ------------------------------------------------------------------------------------


def test_a_run_that_diverges_names_step_stage_and_samples_and_keeps_its_state(broken: Runs) -> None:
    """The rate of stage two is absurd; the state from the end of stage one is as it was."""
    sentence = broken.refused("run", "--learning-rate", 1e-3, 1e30, "--save-every", 100)
    assert "of stage two is nan" in sentence or "of stage two is inf" in sentence
    assert "the loss of step 2" in sentence and "(frames " in sentence
    path = broken.folder / "run"
    assert place_of(path) == (1, 0)
    assert all(torch.isfinite(t).all() for t in state_of(path)["model"].values())


def test_weights_that_make_nothing_of_held_out_clips_are_not_kept(broken: Runs) -> None:
    sentence = broken.refused("run", "--learning-rate", 1e-3, 1e30, "--save-every", 1)
    assert sentence.startswith("the held-out loss (all) after step 1 of stage two is ")
    assert place_of(broken.folder / "run") == (1, 0)


def test_a_base_of_infinite_weights_stops_at_the_first_step(broken: Runs, tmp_path: Path) -> None:
    model = Loopy(RECIPE.config)
    torch.nn.init.constant_(model.denoising_unet.conv_out.weight, float("inf"))
    card = ModelCard("base", "", "", "")
    save_checkpoint(
        tmp_path / "base.safetensors", Header(RECIPE.config, card), {"loopy": model}, torch.float32
    )
    sentence = broken.refused("run", "--base", tmp_path / "base.safetensors")
    assert sentence.startswith("the loss of step 1 of stage one is ") and "(frames " in sentence
    assert state_of(broken.folder / "run") is None


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(
    clips: tuple[PreparedClips, PreparedClips], tmp_path: Path
) -> None:
    trainer = Trainer(RECIPE, tmp_path, *clips, Settings())
    stage = RECIPE.stages[0]
    trainer.model.denoising_unet.conv_out.bias.register_hook(lambda gradient: gradient * float("nan"))
    before = {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="the gradient of step 1 of stage one is nan; run"):
        trainer.train_step(stage, trainer.make_optimizer(stage), *trainer.batches(stage, range(1)))
    assert_same(dict(trainer.model.state_dict()), before)
