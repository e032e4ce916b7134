"""Fine-tuning with adapters, and the files it makes."""

import json
import re
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import lively, small_model
from runs import RECIPE, TINY, Runs, contents
from safetensors.torch import save_file
from torch import Tensor

from loopy_model.adapter import NotAnAdapter, apply_adapter, config_with, save_adapter
from loopy_model.model import Loopy
from loopy_model.train.__main__ import build_parser, run, with_base
from loopy_model.train.data import PreparedClips
from loopy_model.train.loop import Trainer
from loopy_model.train.lora import LowRank, adapter_tensors, add_low_rank, is_spatial
from loopy_model.train.stages import RECIPES
from loopy_model.train.state import whole_weights
from loopy_model.weights import ModelCard, load_tensors, read_header

CARD = ModelCard("tuned", "", "", "")
TUNE = replace(RECIPE, stages=(replace(RECIPE.stages[1], learning_rate=1e-2),), low_rank=2)


@torch.no_grad()
def prediction(model: Loopy) -> Tensor:
    """What a model makes of one clip that it sees and hears in full."""
    generator, audio, clip = torch.Generator().manual_seed(3), TINY.audio, TINY.clip

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    windows = randn(1, clip.frames, clip.audio_window, audio.layers, audio.width)
    conditions = model.encode_conditions(
        [site.normed for site in model.read(randn(1, 4, 4, 4))],
        [site.output[None] for site in model.read(randn(clip.motion_frames, 4, 4, 4))],
        windows,
        model.motion_latents_from_audio(windows),
    )
    return model.denoise(randn(1, clip.frames, 4, 4, 4), torch.tensor([500]), conditions)


def with_weights(weights: dict[str, Tensor]) -> Loopy:
    model = Loopy(TINY)
    model.load_state_dict(weights)
    return model


@pytest.fixture(scope="module")
def tuned(clips: tuple[PreparedClips, PreparedClips], tmp_path_factory: pytest.TempPathFactory):  # noqa: ANN201
    """-> base weights, the model after three steps of fine-tuning, its adapter in float32."""
    base, folder = small_model(TINY).state_dict(), tmp_path_factory.mktemp("tuned")
    trainer = Trainer(TUNE, folder, *clips, base=base)
    stage = TUNE.stages[0]
    optimizer, parts = trainer.make_optimizer(stage), trainer.batches(stage, range(3))
    for trainer.step in range(3):
        trainer.train_step(stage, optimizer, *parts)
    path = folder / "adapter.safetensors"
    save_adapter(path, TINY, CARD, adapter_tensors(whole_weights(trainer.objective)), torch.float32)
    return base, trainer.model, path


# --- in training --------------------------------------------------------------------------------


def test_fresh_adapters_change_nothing() -> None:
    model = small_model(TINY)
    before = prediction(model)
    add_low_rank(model, 3)
    model.requires_grad_(False)  # kernels for weights that learn round in another way
    assert torch.equal(prediction(model), before)
    layers = [module for module in model.modules() if isinstance(module, LowRank)]
    blocks = [name for name, _ in model.named_modules() if name.endswith("transformer_blocks.0")]
    assert len(layers) == 6 * len(blocks) > 0  # q, k, v, out and two of the feed-forward


def test_adapters_and_new_layers_are_trained_and_nothing_else() -> None:
    model = lively(Loopy(TINY))
    add_low_rank(model, 3)
    for name, parameter in model.named_parameters():
        is_adapter = name.endswith((".down.weight", ".up.weight"))
        assert parameter.requires_grad == (is_adapter or not is_spatial(name)), name


def test_frozen_weights_did_not_change_and_the_others_did(tuned) -> None:  # noqa: ANN001
    base, model, _ = tuned
    after = {name.replace(".layer.", "."): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(after[name], base[name]) for name in base if is_spatial(name))
    assert [name for name in base if not is_spatial(name) and not torch.equal(after[name], base[name])]
    ups = [tensor for name, tensor in after.items() if name.endswith(".up.weight")]
    # What the reference net makes of its last self-attention is read by nothing.
    assert sum(tensor.any().item() for tensor in ups) >= len(ups) - 6


def test_the_base_with_its_adapter_is_the_trained_model(tuned) -> None:  # noqa: ANN001
    base, model, path = tuned
    trained = prediction(model)
    assert not torch.allclose(prediction(with_weights(base)), trained, atol=1e-2)
    together = prediction(with_weights(apply_adapter(base, path, TINY)))
    assert torch.allclose(together, trained, rtol=1e-5, atol=1e-5)


def test_an_adapter_in_half_precision_is_close(tuned, tmp_path: Path) -> None:  # noqa: ANN001
    base, model, path = tuned
    half = tmp_path / "half.safetensors"
    save_adapter(half, TINY, CARD, contents(path)[1])
    assert half.stat().st_size < path.stat().st_size
    exact, rounded = (apply_adapter(base, p, TINY) for p in (path, half))
    for name in exact:  # float16 keeps 11 bits
        assert torch.allclose(exact[name], rounded[name], rtol=2**-10, atol=1e-4), name
    difference = prediction(with_weights(rounded)) - prediction(model)
    assert difference.square().mean().sqrt() < 0.01 * prediction(model).std()


def test_strength_goes_from_the_base_to_the_trained_model(tuned) -> None:  # noqa: ANN001
    base, _, path = tuned
    none, half, full = (apply_adapter(base, path, TINY, strength) for strength in (0.0, 0.5, 1.0))
    assert none.keys() == half.keys() == base.keys()
    for name, before in base.items():
        assert torch.equal(none[name], before), name
        assert torch.allclose(half[name], (before + full[name]) / 2, atol=1e-6), name


def test_weights_keep_their_precision_and_are_not_changed_in_place(tuned) -> None:  # noqa: ANN001
    base, _, path = tuned
    halves = {name: tensor.half() for name, tensor in base.items()}
    copies = {name: tensor.clone() for name, tensor in halves.items()}
    changed = apply_adapter(halves, path, TINY)
    assert {tensor.dtype for tensor in changed.values()} == {torch.float16}
    assert all(torch.equal(halves[name], copies[name]) for name in halves)


# --- what cannot be used ------------------------------------------------------------------------


def rewritten(path: Path, folder: Path, change) -> Path:  # noqa: ANN001
    header, tensors = contents(path)
    change(header, tensors)
    save_file(tensors, folder / "other.safetensors", header)
    return folder / "other.safetensors"


REFUSALS = {
    "is not a Loopy adapter": lambda header, tensors: header.update(format="loopy"),
    "has adapter version 9": lambda header, tensors: header.update(format_version="9"),
    "a model of other sizes": lambda header, tensors: header.update(
        config=json.dumps(replace(TINY, image_size=64).to_dict())
    ),
    "a damaged header": lambda header, tensors: header.update(config="{"),
    "changes audio_norm.other, which the model does not have": lambda header, tensors: tensors.update(
        {"full.audio_norm.other": torch.zeros(1)}
    ),
    "does not fit its own header": lambda header, tensors: tensors.update(
        {"full.audio_norm.weight": torch.zeros(1)}
    ),
    "does not fit its own header .": lambda header, tensors: tensors.pop(
        next(key for key in tensors if key.endswith(".up"))
    ),
    "does not fit its own header (": lambda header, tensors: tensors.pop(
        next(key for key in tensors if key.endswith(".down"))
    ),
    "does not fit its own header (other.thing": lambda header, tensors: tensors.update(
        {"other.thing": torch.zeros(1)}
    ),
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_an_adapter_that_does_not_belong_is_refused(tuned, tmp_path: Path, sentence: str) -> None:  # noqa: ANN001
    base, _, path = tuned
    other = rewritten(path, tmp_path, REFUSALS[sentence])
    with pytest.raises(NotAnAdapter) as refusal:
        apply_adapter(base, other, TINY)
    assert sentence.rstrip(" .") in str(refusal.value) and str(refusal.value).endswith(".")


def test_a_damaged_number_of_steps_is_refused(tuned, tmp_path: Path) -> None:  # noqa: ANN001
    _, _, path = tuned
    other = rewritten(path, tmp_path, lambda header, tensors: header.update(student_steps="few"))
    with pytest.raises(NotAnAdapter, match="other.safetensors has a damaged header"):
        config_with(other, TINY)


def test_damaged_and_missing_files_are_refused(tuned, tmp_path: Path) -> None:  # noqa: ANN001
    base, _, path = tuned
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(NotAnAdapter, match="cut.safetensors cannot be read"):
        apply_adapter(base, cut, TINY)
    with pytest.raises(NotAnAdapter, match="missing.safetensors"):
        apply_adapter(base, tmp_path / "missing.safetensors", TINY)


def test_the_base_is_let_go_before_training(
    runs: Runs, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as large as the model."""
    given, left = [], []

    class Noted:
        def __init__(self, recipe, run_dir, train, test, settings, base, preview) -> None:  # noqa: ANN001
            given.extend(map(weakref.ref, base.values()))

        def run(self) -> None:
            left.extend(tensor for tensor in given if tensor() is not None)
            raise KeyboardInterrupt

    monkeypatch.setattr("loopy_model.train.__main__.Trainer", Noted)
    what = ["--recipe", "finetune", "--base", finished / "loopy.safetensors", "--preview-every", 0]
    where = ["--data", runs.data, "--run-dir", tmp_path]
    with pytest.raises(KeyboardInterrupt):
        run(build_parser().parse_args(list(map(str, [*where, *what]))))
    assert given and not left


# --- the command --------------------------------------------------------------------------------


def test_fine_tuning_from_the_command_line(runs: Runs, finished: Path) -> None:
    base = finished / "loopy.safetensors"
    what = ["--recipe", "finetune", "--base", base, "--steps", 2, "--batch", 4, "--low-rank", 2]
    path = runs.finish("finetune", *what) / "adapter.safetensors"
    assert path.stat().st_size < base.stat().st_size / 2
    header, tensors = contents(path)
    assert header["format"] == "loopy-adapter" and {t.dtype for t in tensors.values()} == {torch.float16}
    assert json.loads(header["card"])["name"] == "small, fine-tuned"
    weights = load_tensors(base)["loopy"]
    changed = apply_adapter(weights, path, TINY)
    assert prediction(with_weights(changed)).isfinite().all()
    assert {name for name in weights if not is_spatial(name)} & {
        name for name in weights if not torch.equal(weights[name], changed[name])
    }
    saved = torch.load(path.parent / "state.pt", weights_only=True)["model"]
    assert not [name for name in saved if ".layer." in name]  # frozen weights are not kept twice


def test_fine_tuning_without_a_base_or_over_it_is_refused(runs: Runs, finished: Path) -> None:
    assert "trains on top of a model; give it with --base" in runs.refused("no-base", "--recipe", "finetune")
    base = finished / "loopy.safetensors"
    sentence = runs.refused(base.parent.name, "--recipe", "puppet", "--base", base)
    assert re.match(r"--run-dir \S+ would replace \S+loopy.safetensors; give another folder.", sentence)
    assert "adapter.safetensors" in runs.refused(
        "wrong-kind", "--base", runs.folder / "finetune/adapter.safetensors"
    )


def test_with_a_base_every_recipe_trains_a_model_of_its_sizes(finished: Path) -> None:
    base = finished / "loopy.safetensors"
    recipe, weights = with_base(RECIPES["loopy"], base)
    assert recipe == replace(RECIPES["loopy"], config=read_header(base).config)
    assert weights.keys() == load_tensors(base)["loopy"].keys()
