"""Checkpoints: nothing is lost on the way, and every bad file is refused in one sentence."""

import json
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import small_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from loopy_model import weights
from loopy_model.autoencoder import Autoencoder, AutoencoderConfig
from loopy_model.config import LOOPY, PUPPET, TINY
from loopy_model.model import Loopy
from loopy_model.weights import (
    Header,
    ModelCard,
    NotALoopyModel,
    content_digest,
    load_strictly,
    load_tensors,
    read_header,
    save_checkpoint,
    save_tensors,
)

CARD = ModelCard("tiny", 'nothing: "random" numbers, 世界', "everything", "Apache-2.0")


@pytest.fixture
def model() -> Loopy:
    return small_model(TINY)


@pytest.fixture
def saved(model: Loopy, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, Header(TINY, CARD), {"loopy": model}, torch.float32)
    return path


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Same keys, same precision, same bits."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[key].dtype and torch.equal(tensor, other[key]) for key, tensor in one.items()
    )


def test_fp32_weights_come_back_bit_for_bit(model: Loopy, saved: Path) -> None:
    torch.manual_seed(1)
    again = Loopy(TINY)
    load_strictly(again, load_tensors(saved)["loopy"], saved)
    assert equal(again.state_dict(), model.state_dict())


def test_a_model_on_the_meta_device_takes_the_tensors_as_they_are(model: Loopy, saved: Path) -> None:
    with torch.device("meta"):
        again = Loopy(read_header(saved).config)
    load_strictly(again, load_tensors(saved)["loopy"], saved, assign=True)
    picture = torch.randn(1, 4, 4, 4)
    for ours, theirs in zip(again.read(picture), model.read(picture)):
        assert torch.allclose(ours.output, theirs.output, atol=1e-4)


def test_channels_last_weights_come_back_too(model: Loopy, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model.to(memory_format=torch.channels_last)
    save_checkpoint(path, Header(TINY, CARD), {"loopy": model}, torch.float32)
    assert equal(load_tensors(path)["loopy"], model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_rounded_weight(model: Loopy, tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, Header(TINY, CARD), {"loopy": model}, dtype)
    rounded = {key: tensor.to(dtype) for key, tensor in model.state_dict().items()}
    assert equal(load_tensors(path)["loopy"], rounded)


def test_several_networks_share_a_file_and_do_not_mix(model: Loopy, tmp_path: Path) -> None:
    codec = Autoencoder(AutoencoderConfig(widths=(8, 8, 16)))
    path, sizes = tmp_path / "all.safetensors", {"autoencoder": {"sizes": {"widths": [8, 8, 16]}}}
    save_checkpoint(path, Header(TINY, CARD, sizes), {"loopy": model, "autoencoder": codec}, torch.float32)
    parts = load_tensors(path)
    assert set(parts) == {"loopy", "autoencoder"}
    for name, network in (("loopy", model), ("autoencoder", codec)):
        assert equal(parts[name], network.state_dict())
    assert read_header(path).parts == sizes


@pytest.mark.parametrize("config", [TINY, PUPPET, LOOPY, replace(LOOPY, image_size=256)])
def test_headers_come_back(config: object, tmp_path: Path) -> None:
    path = tmp_path / "h.safetensors"
    header = Header(config, CARD, {"speech_encoder": {"hidden_size": 64}})
    save_file({"loopy.x": torch.zeros(1)}, path, metadata=header.to_metadata())
    assert read_header(path) == header


def test_the_header_says_what_the_file_is(saved: Path) -> None:
    with safe_open(str(saved), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "loopy" and metadata["format_version"] == "1"
    assert json.loads(metadata["card"])["licence"] == "Apache-2.0"
    assert set(json.loads(metadata["config"])) == {
        "image_size",
        "vae_scale_factor",
        "latent_scale",
        "clip",
        "unet",
        "audio",
        "diffusion",
    }


def test_a_failing_save_leaves_the_file_of_before(
    saved: Path, model: Loopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full_disk(tensors: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(weights, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(saved, Header(TINY, CARD), {"loopy": model})
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_folders_are_made(model: Loopy, tmp_path: Path) -> None:
    path = tmp_path / "models" / "loopy" / "a.safetensors"
    save_checkpoint(path, Header(TINY, CARD), {"loopy": model})
    assert read_header(path).config == TINY


# --- bad files ----------------------------------------------------------------------------------


def rewrite(path: Path, **changes: str | None) -> None:
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() | changes
    tensors = load_file(path)
    save_file(tensors, path, metadata={k: v for k, v in metadata.items() if v is not None})


def cut(share: float) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return do


def with_config(**changes: object) -> Callable[[Path], None]:
    return lambda path: rewrite(path, config=json.dumps(TINY.to_dict() | changes))


BAD_FILES: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut in the header": cut(0.02),
    "cut in the tensors": cut(0.7),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a text file": lambda path: path.write_text("<html>404: not found</html>" * 50),
    "a pickle": lambda path: torch.save({"a": torch.zeros(2)}, path),
    "a huge header": lambda path: path.write_bytes(struct.pack("<Q", 2**60) + b"{}"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "not there": lambda path: path.unlink(),
    "another model": lambda path: save_file({"x": torch.zeros(1)}, path, metadata={"format": "pt"}),
    "no metadata": lambda path: save_file({"x": torch.zeros(1)}, path),
    "a newer version": lambda path: rewrite(path, format_version="2"),
    "a strange version": lambda path: rewrite(path, format_version="one"),
    "no version": lambda path: rewrite(path, format_version=None),
    "damaged JSON": lambda path: rewrite(path, config='{"image_size": 64,'),
    "a list as config": lambda path: rewrite(path, config="[]"),
    "nothing as config": lambda path: rewrite(path, config="null"),
    "no config": lambda path: rewrite(path, config=None),
    "no card": lambda path: rewrite(path, card=None),
    "a short card": lambda path: rewrite(path, card='{"name": "x"}'),
    "a damaged part": lambda path: rewrite(path, autoencoder="{"),
    "a part without sizes": lambda path: rewrite(path, autoencoder='{"x": 1}'),
    "a part as large as a house": lambda path: rewrite(
        path, autoencoder='{"sizes": {"widths": [8, 8000000]}}'
    ),
    "layers without end": lambda path: rewrite(path, speech_encoder='{"num_hidden_layers": 1000000}'),
    "code from a hub": lambda path: rewrite(
        path, speech_encoder='{"hidden_size": 64, "attn_implementation": "someone/kernels"}'
    ),
    "an unknown prediction": with_config(diffusion={"prediction": "noise"}),
    "an unknown spacing": with_config(diffusion={"spacing": "wide"}),
    "no training steps": with_config(diffusion={"train_steps": 0}),
    "a version that is no digit": lambda path: rewrite(path, format_version="²"),
    "an unknown setting": with_config(colour="blue"),
    "segments without end": with_config(clip=TINY.to_dict()["clip"] | {"segments": 10**12}),
    "half a frame": with_config(clip=TINY.to_dict()["clip"] | {"frames": 12.5}),
    "a size as large as a house": with_config(audio=TINY.to_dict()["audio"] | {"latent_embeddings": 10**12}),
    "a picture of minus one pixel": with_config(image_size=-1),
    "a part that is no part": with_config(clip=None),
    "an unknown size": with_config(unet=TINY.to_dict()["unet"] | {"depth": 3}),
    "sizes that do not fit": with_config(unet=TINY.to_dict()["unet"] | {"heads": 3}),
    "text for a number": with_config(unet=TINY.to_dict()["unet"] | {"groups": "four"}),
}


def one_sentence(message: str, path: Path) -> bool:
    return path.name in message and "\n" not in message and ". " not in message


@pytest.mark.parametrize("damage", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_refused_in_one_sentence_that_names_it(
    saved: Path, damage: Callable[[Path], None]
) -> None:
    damage(saved)
    with pytest.raises(NotALoopyModel) as refused:
        read_header(saved)
    assert one_sentence(str(refused.value), saved), str(refused.value)


def test_a_newer_version_says_what_to_do(saved: Path) -> None:
    rewrite(saved, format_version="2")
    with pytest.raises(NotALoopyModel, match="version 2.* up to 1.*update"):
        read_header(saved)


@pytest.mark.parametrize(
    "kind, counts",
    [
        ("missing", ["1", "0", "0"]),
        ("extra", ["0", "1", "0"]),
        ("shape", ["0", "0", "1"]),
    ],
)
def test_tensors_that_do_not_fit_are_counted_and_the_first_is_named(
    model: Loopy, saved: Path, kind: str, counts: list[str]
) -> None:
    state, key = load_tensors(saved)["loopy"], "denoising_unet.conv_in.weight"
    before = {k: v.clone() for k, v in model.state_dict().items()}
    if kind == "missing":
        del state[key]
    elif kind == "extra":
        key = "denoising_unet.conv_in.gain"
        state[key] = torch.zeros(1)
    else:
        state[key] = state[key][:-1]
    with pytest.raises(NotALoopyModel) as refused:
        load_strictly(model, state, saved)
    message = str(refused.value)
    assert re.findall(r"\b\d+\b", message.partition("first")[0]) == counts
    assert f"first: {key}" in message and one_sentence(message, saved)
    assert equal(model.state_dict(), before)


def test_the_first_tensor_of_another_shape_is_the_same_on_every_run(model: Loopy, saved: Path) -> None:
    state = {key: tensor[None] for key, tensor in load_tensors(saved)["loopy"].items()}
    with pytest.raises(NotALoopyModel, match=f"first: {min(state)}"):
        load_strictly(model, state, saved)


def test_pickles_are_never_opened(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"loopy": 1}, saved)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    with pytest.raises(NotALoopyModel):
        read_header(saved)


def test_equal_checkpoints_have_one_digest_whatever_the_order_of_their_header(
    model: Loopy, tmp_path: Path
) -> None:
    header, digests = Header(TINY, CARD), set()
    for n in range(4):
        path = tmp_path / f"{n}.safetensors"
        save_checkpoint(path, header, {"loopy": model})
        digests.add(content_digest(path))
    assert len(digests) == 1
    save_checkpoint(path, replace(header, card=replace(CARD, name="other")), {"loopy": model})
    digests.add(content_digest(path))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    save_checkpoint(path, header, {"loopy": model})
    assert len(digests | {content_digest(path)}) == 3


def test_a_place_that_takes_no_file_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """Not one of the weights: what writes many files must know the difference."""
    with pytest.raises(OSError, match="cannot write x.safetensors: .*No such file or directory"):
        save_tensors(tmp_path / "gone" / "x.safetensors", {"a": torch.ones(1)})
