"""Files as users have them: what is opened, how it is told apart, what is refused, and the command."""

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from make_donors import (
    SMALL,
    adapter,
    hallo,
    memo,
    moore,
    original_motion,
    save,
    sd15_and_animatediff,
    state,
    unet,
    without_output,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from loopy_model import cli
from loopy_model.adapter import apply_adapter
from loopy_model.donors import NotADonor, WeightFile, build, prepare, read, write
from loopy_model.prepare.encoded import EncodedClip, write_encoded
from loopy_model.weights import load_tensors, read_header

State = dict[str, Tensor]


def files(*paths: Path) -> list[WeightFile]:
    return [file for path in paths for file in read(path)]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["loopy", "import", *map(str, arguments)])
    cli.main()


def refusal(*given: WeightFile | Path) -> str:
    with pytest.raises(NotADonor) as refused:
        prepare([one for file in given for one in (read(file) if isinstance(file, Path) else [file])])
    message = str(refused.value)
    assert "\n" not in message and ". " not in message and message.endswith("."), message
    return message


@pytest.fixture(scope="module")
def small() -> State:
    return state(unet())


@pytest.fixture(scope="module")
def motion() -> State:
    return original_motion(state(adapter()))


# --- the command --------------------------------------------------------------------------------


def test_the_command_writes_a_checkpoint_that_loads_strictly_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    donors, path = save(sd15_and_animatediff(), tmp_path), tmp_path / "models" / "imported.safetensors"
    run(monkeypatch, *reversed(donors), "--output", path, "--dtype", "fp32", "--seed", 5)
    made = prepare(files(*donors))
    said = capsys.readouterr().out
    assert said == f"{made.report}\n{path}\n"
    assert "OpenRAIL-M" in said and "epsilon, linear betas" in said and "does not hear the voice" in said

    header, weights = read_header(path), load_tensors(path)["loopy"]
    assert header.config == made.plan.config and header.parts == {}
    assert header.card.limits.startswith("Before fine-tuning it does not hear")
    expected = build(made.plan, made.donor, seed=5).state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_dry_run_reports_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    donors = save(moore(), tmp_path)
    run(monkeypatch, tmp_path, "--output", tmp_path / "made.safetensors", "--layout", "joint", "--dry-run")
    assert "Moore" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == sorted(donors)


def test_a_refusal_is_one_sentence_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "made.safetensors"
    with pytest.raises(SystemExit, match="^there is no file .*nothing.ckpt; check the path.$"):
        run(monkeypatch, tmp_path / "nothing.ckpt", "--output", path)
    assert not path.exists()


def test_a_donor_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, *_ = save(moore(), tmp_path)
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=f"{path.name} would replace what it is made from"):
        run(monkeypatch, path, "--output", path)
    assert path.read_bytes() == before
    with pytest.raises(SystemExit, match=f"{path.name} would replace what it is made from"):
        run(monkeypatch, tmp_path, "--output", path)
    assert path.read_bytes() == before


# --- what is opened -----------------------------------------------------------------------------


def same(one: list[WeightFile], other: list[WeightFile]) -> bool:
    """The same weights for the same places."""
    made, expected = (prepare(given) for given in (one, other))
    return made.plan.sources.keys() == expected.plan.sources.keys() and all(
        torch.equal(made.donor[key], expected.donor[key])
        for source in made.plan.sources.values()
        for key in source.keys
    )


def test_a_diffusers_folder_is_a_unet_whatever_else_lies_in_it(
    tmp_path: Path, small: State, motion: State
) -> None:
    folder = tmp_path / "sd15"
    for inner in ("unet", "vae", "text_encoder"):
        (folder / inner).mkdir(parents=True)
    save_file(small, folder / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(
        {k: v.half() for k, v in small.items()}, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    )
    torch.save(small, folder / "unet" / "diffusion_pytorch_model.bin")
    save_file(
        {"decoder.conv_in.weight": torch.zeros(1)}, folder / "vae" / "diffusion_pytorch_model.safetensors"
    )
    save_file({"text_model.x": torch.zeros(1)}, folder / "text_encoder" / "model.safetensors")
    given = [*files(folder), WeightFile("mm", motion)]
    assert same(given, [WeightFile("unet", small), WeightFile("mm", motion)])
    assert prepare(given).unused == ("sd15/text_encoder/model.safetensors", "sd15/vae")


def test_shards_are_put_together_by_their_index(tmp_path: Path, small: State, motion: State) -> None:
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    keys = sorted(small)
    halves = (keys[: len(keys) // 2], keys[len(keys) // 2 :])
    for name, half in zip(names, halves):
        save_file({key: small[key] for key in half}, tmp_path / name)
    index = {key: name for name, half in zip(names, halves) for key in half}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    given = [*files(tmp_path), WeightFile("mm", motion)]
    assert same(given, [WeightFile("unet", small), WeightFile("mm", motion)])
    (tmp_path / names[1]).unlink()
    assert "missing beside its index" in refusal(tmp_path)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}, lambda s: {"module": s}]
)
def test_pickles_are_opened_with_and_without_a_wrapper(
    tmp_path: Path, motion: State, small: State, new_format: bool, wrap: Callable
) -> None:
    parallel = {f"module.{key}": tensor for key, tensor in motion.items()}
    torch.save(wrap(parallel), tmp_path / "a.ckpt", _use_new_zipfile_serialization=new_format)
    given = [*files(tmp_path / "a.ckpt"), WeightFile("unet", small)]
    assert same(given, [WeightFile("unet", small), WeightFile("mm", motion)])


class Trap:
    """Runs when it is unpickled without care."""

    def __reduce__(self) -> tuple:
        return (open, ("trapped", "w"))


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": Trap()}, tmp_path / "trap.ckpt")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.ckpt", "bare.pth"):
        assert re.match(
            rf"{name} holds more than weights and is not opened.*\.safetensors", refusal(tmp_path / name)
        )
    assert not (tmp_path / "trapped").exists()


def test_pickles_are_not_opened_by_a_pytorch_that_may_run_them(
    tmp_path: Path, motion: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = save([WeightFile("a.ckpt", motion)], tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    assert "a.ckpt is not opened by PyTorch 2.5.1+cpu" in refusal(path)
    (path,) = save([WeightFile("a.safetensors", motion)], tmp_path)
    assert files(path)


@pytest.mark.parametrize(
    "text", ['{"weight_map": {', "{}", "[]", '{"weight_map": {"a": 5}}', '{"weight_map": 3}']
)
def test_a_damaged_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json cannot be read" in refusal(tmp_path)


def test_a_page_instead_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("hello world")
    assert "a.pth" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize(
    "text, what",
    [
        ("version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        ("<!DOCTYPE html>", "a web page"),
    ],
)
def test_what_a_download_left_instead_of_weights_is_named(
    tmp_path: Path, name: str, text: str, what: str
) -> None:
    (tmp_path / name).write_text(text)
    assert refusal(tmp_path / name) == f"{name} is {what} instead of the weights; download the file itself."


def test_a_file_that_cannot_be_opened_does_harm_only_where_something_is_missing(
    tmp_path: Path, motion: State, small: State
) -> None:
    save([WeightFile("mm.ckpt", motion)], tmp_path)
    (tmp_path / "other.pth").write_text("hello world")
    net = WeightFile("unet", small)
    assert prepare([*files(tmp_path), net]).unused == (f"{tmp_path.name}/other.pth",)
    assert refusal(tmp_path).startswith("other.pth ")
    (tmp_path / "mm.ckpt").unlink()
    assert refusal(tmp_path).startswith("other.pth ")


def test_quantised_weights_are_refused(small: State, motion: State) -> None:
    key = min(key for key in small if key.endswith("attn1.to_q.weight"))
    whole = WeightFile("unet", small | {key: small[key].to(torch.int8)})
    assert f"{key} holds whole numbers" in refusal(whole, WeightFile("mm", motion))


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_a_file_cut_short_is_refused(tmp_path: Path, motion: State, name: str) -> None:
    (path,) = save([WeightFile(name, motion)], tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{name} cannot be read; it may be incomplete" in refusal(path)


def test_aniportrait_differs_from_moore_by_its_pose_guider_alone() -> None:
    *nets, pose = moore()
    other = {
        "conv_layers.0.weight": torch.zeros(1),
        "final_proj.weight": torch.zeros(1),
        "scale": torch.zeros(1),
    }
    assert same([*nets, WeightFile("pose_guider.pth", other)], [*nets, pose])


# --- what is refused ----------------------------------------------------------------------------

ZERO = torch.zeros(1)


def without(weights: State, *starts: str) -> State:
    return {key: tensor for key, tensor in weights.items() if not key.startswith(starts)}


STRANGERS = {
    "is a LoRA": {"down_blocks.0.attn.to_q.lora_down.weight": ZERO},
    "is a VAE; load it with Load VAE": {"first_stage_model.decoder.conv_in.weight": ZERO},
    "is a text encoder": {"text_model.encoder.layers.0.weight": ZERO},
    "is a ControlNet": {"control_model.input_blocks.0.0.weight": ZERO},
    "is an SDXL model": {"model.diffusion_model.label_emb.0.0.weight": ZERO},
    "is V-Express": {"down_blocks.0.attentions.0.transformer_blocks.0.attn1_5.to_q.weight": ZERO},
    "is a Loopy model already": {"loopy.denoising_unet.conv_in.weight": ZERO},
    r"is no model that can be imported \(its first weight is a\)": {"b": ZERO, "a": ZERO},
}


@pytest.mark.parametrize("why", STRANGERS)
def test_files_of_other_kinds_are_refused_by_what_they_are(why: str) -> None:
    assert re.match(rf"file\.bin {why}", refusal(WeightFile("file.bin", STRANGERS[why])))


def test_what_is_missing_is_named(small: State, motion: State) -> None:
    net, module = WeightFile("net", small), WeightFile("mm", motion)
    assert "a motion module" in refusal(net).replace("AnimateDiff's motion module", "a motion module")
    assert re.search(
        r"hold AnimateDiff's motion module.*U-Net of the SD1.5 family is missing", refusal(module)
    )
    reference = WeightFile("reference", without_output(small))
    assert re.search(r"for Moore.*AnimateDiff's motion module .* is missing", refusal(net, reference))


def test_two_of_a_kind_are_refused(small: State, motion: State) -> None:
    given = WeightFile("a.ckpt", motion), WeightFile("b.ckpt", motion), WeightFile("net", small)
    assert "a.ckpt and b.ckpt are both AnimateDiff's motion module" in refusal(*given)


def test_nets_of_other_shapes_are_refused(small: State, motion: State) -> None:
    module = WeightFile("mm", motion)
    site = "down_blocks.0.attentions.0.proj_in.weight"
    linear = WeightFile("sd2", small | {site: small[site][:, :, 0, 0]})
    assert "not of SD1.5's shape (SD2 or SDXL?)" in refusal(linear, module)
    wide = torch.zeros(SMALL[0], 9, 3, 3)
    assert "reads 9 channels instead of 4" in refusal(
        WeightFile("p", small | {"conv_in.weight": wide}), module
    )
    larger = original_motion(state(adapter((64, 128, 128, 128))))
    assert "belong to models of other sizes" in refusal(WeightFile("net", small), WeightFile("mm", larger))


def test_echomimic_is_refused(small: State, motion: State) -> None:
    hears = {k: torch.zeros(len(v), 384) if "attn2.to_k" in k else v for k, v in small.items()}
    assert "is EchoMimic's" in refusal(WeightFile("net", hears), WeightFile("mm", motion))


def test_incomplete_and_strange_donors_are_refused(small: State, motion: State) -> None:
    net, module = WeightFile("net", small), WeightFile("mm", motion)
    cut = WeightFile("cut", without(motion, "up_blocks.3.motion_modules.2"))
    assert re.search(
        r"incomplete: 2[0-9] weights are missing \(first: denoising_unet.up_blocks.3", refusal(net, cut)
    )
    (net_pth,) = hallo()
    lips = "denoising_unet.mid_block.audio_modules.0.transformer_blocks.0.attn2_2.to_q.weight"
    deaf = WeightFile("net.pth", without(net_pth.tensors, lips))
    assert f"incomplete: 1 weights are missing (first: {lips})" in refusal(deaf)
    narrow = WeightFile("net.pth", net_pth.tensors | {lips: torch.zeros(3, 5)})
    assert f"{lips} (3, 5) cannot become denoising_unet.mid_block.audio_modules.0.attn.to_q" in refusal(
        narrow
    )
    odd = WeightFile("odd", small | {"class_embedding.weight": ZERO})
    assert "unet.class_embedding.weight is a weight that no known model" in refusal(odd, module)
    deep = motion | {"up_blocks.3.motion_modules.7.temporal_transformer.proj_out.bias": ZERO}
    assert "has no place in SD1.5's shape" in refusal(net, WeightFile("deep", deep))


@pytest.mark.parametrize(
    "name",
    [
        "audioproj.proj1.weight",
        "audioproj.proj3.weight",
        "audioproj.norm.weight",
        "denoising_unet.conv_in.weight",
        "denoising_unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    ],
)
def test_donors_without_the_weights_that_tell_the_sizes_are_refused(name: str) -> None:
    (net_pth,) = hallo()
    for weights in (
        without(net_pth.tensors, name),
        net_pth.tensors | {name: ZERO},
        net_pth.tensors | {name: torch.zeros(0)},
    ):
        refusal(WeightFile("net.pth", weights))


# --- afterwards ---------------------------------------------------------------------------------


@pytest.mark.parametrize("donor, layout", [(memo, "loopy"), (hallo, "joint")], ids=["MEMO", "Hallo"])
def test_an_imported_model_can_be_fine_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, donor: Callable, layout: str
) -> None:
    """One step of the recipe by its own command, on small latents of random numbers."""
    base, data, result = tmp_path / "base.safetensors", tmp_path / "data", tmp_path / "run"
    made = prepare(donor(), layout)
    config = replace(made.plan.config, image_size=64)  # that of the clips: the full size is slow
    write(replace(made, plan=replace(made.plan, config=config)), base)
    for split in ("train", "test"):
        encoded = torch.randn(18, 4, 8, 8), torch.rand(18, 68, 2), torch.randn(18, 12, config.audio.width)
        write_encoded(data, EncodedClip(split, 18, split, True), *encoded, {"size": 64})
    arguments = ["--base", base, "--data", data, "--run-dir", result, "--steps", 1, "--batch", 1]
    arguments += ["--recipe", "finetune", "--preview-every", 0, "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["loopy", "train", *map(str, arguments)])
    cli.main()

    weights = load_tensors(base)["loopy"]
    tuned = apply_adapter(weights, result / "adapter.safetensors", config)
    trained = {name for name in tuned if not torch.equal(tuned[name], weights[name])}
    places = ("mid_block.audio_modules.0", "up_blocks.3.intra_modules.2")
    places += ("down_blocks.3.intra_modules.1", "inter_modules") if layout == "loopy" else ()
    for place in places:
        assert any(place in name for name in trained), place
    with safe_open(str(result / "adapter.safetensors"), framework="pt") as file:
        card = json.loads(file.metadata()["card"])
    assert made.family.title in card["trained_on"] and "OpenRAIL-M" in card["licence"]
