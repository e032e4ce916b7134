"""Adapters in Load Loopy Model: what they do to the result, and what is said about files that are none."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from graphs import change, find, node, quick_start, short_start
from safetensors.torch import load_file, save_file
from sentences import assert_clear, complaint
from torch import Tensor

from loopy_model.adapter import save_adapter
from loopy_model.config import PUPPET, TINY, LoopyConfig
from loopy_model.pipeline import BUNDLED, Pipeline
from loopy_model.weights import ModelCard, save_checkpoint
from scripts.client import Client, PromptError
from scripts.host import Host

STUDENT = "loopy-puppet-4-steps.safetensors"
SERIAL = itertools.count()
CARD = ModelCard("test", "nothing", "everything", "Apache-2.0")
SPATIAL = "denoising_unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture
def loras(host: Host) -> Iterator[Path]:
    """The host's folder for adapters, empty before and after."""
    folder = host.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    yield folder
    for file in folder.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def puppet() -> Pipeline:
    return Pipeline(BUNDLED)


def part(puppet: Pipeline, text: str) -> dict[str, Tensor]:
    """The model's weights whose names contain a text."""
    return {name: tensor for name, tensor in puppet.model.state_dict().items() if text in name}


def sixty_fourths(*shape: int) -> Tensor:
    """Random numbers that are exact in half precision, and so are sums of their products in single."""
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randint(-8, 9, shape, generator=generator) / 64


def audio_layers(puppet: Pipeline) -> dict[str, Tensor]:
    """Other weights for the layers that listen."""
    weights = part(puppet, "audio_modules")
    return {name: tensor + sixty_fourths(*tensor.shape) for name, tensor in weights.items()}


def low_rank(puppet: Pipeline) -> tuple[Tensor, Tensor]:
    """A change of rank 4 for one spatial layer."""
    out, into = part(puppet, SPATIAL)[SPATIAL].shape
    return sixty_fourths(4, into), sixty_fourths(out, 4)


def real_change(puppet: Pipeline) -> dict[str, Tensor]:
    down, up = low_rank(puppet)
    full = {f"full.{name}": tensor for name, tensor in audio_layers(puppet).items()}
    return {**full, f"low_rank.{SPATIAL}.down": down, f"low_rank.{SPATIAL}.up": up}


def no_change(puppet: Pipeline) -> dict[str, Tensor]:
    """All that a real adapter has, and nothing learned."""
    down, up = low_rank(puppet)
    full = {f"full.{name}": tensor for name, tensor in part(puppet, "audio_modules").items()}
    return {**full, f"low_rank.{SPATIAL}.down": down, f"low_rank.{SPATIAL}.up": torch.zeros_like(up)}


def save_merged(path: Path) -> None:
    """The checkpoint in which the real change is already made."""
    puppet = Pipeline(BUNDLED)
    down, up = low_rank(puppet)
    merged = {**audio_layers(puppet), SPATIAL: part(puppet, SPATIAL)[SPATIAL] + up @ down}
    puppet.model.load_state_dict(merged, strict=False)
    parts = {"loopy": puppet.model, "speech_encoder": puppet.speech_encoder, "autoencoder": puppet.vae}
    save_checkpoint(path, puppet.header, parts)


def write(path: Path, tensors: dict[str, Tensor], config: LoopyConfig = PUPPET, steps: int = 0) -> None:
    save_adapter(path, config, CARD, tensors, student_steps=steps)


def latents(host: Host, client: Client, sampler: dict | None = None, **values: object) -> Tensor:
    """What the sampler makes, bit for bit, of one short clip with a model that was loaded so."""
    prompt = change(short_start(seed=50), "LoopyLoadModel", **values)
    prompt = change(prompt, "LoopySampler", **(sampler or {}))
    del prompt[find(prompt, "LoopyVideoCombine")]
    # a new name each time: the host would not save again what it has in its cache
    name = f"adapter{next(SERIAL)}"
    prompt["kept"] = node("SaveLatent", samples=[find(prompt, "LoopySampler"), 0], filename_prefix=name)
    [file] = client.run(prompt)["kept"]["latents"]
    path = host.output / file["subfolder"] / file["filename"]
    made = load_file(path)["latent_tensor"]
    path.unlink()  # other tests look into this folder
    return made


def adapters_offered(client: Client) -> list[str]:
    spec = client.request("/object_info/LoopyLoadModel")["LoopyLoadModel"]["input"]["optional"]["adapter"]
    return spec[1]["options"] if spec[0] == "COMBO" else spec[0]


# Choosing


def test_host_without_adapters_offers_none_and_the_bundled_one(client: Client) -> None:
    assert adapters_offered(client) == ["none", STUDENT]


def test_files_of_the_folder_are_offered(client: Client, loras: Path, puppet: Pipeline) -> None:
    write(loras / "mine.safetensors", no_change(puppet))
    assert adapters_offered(client) == ["none", STUDENT, "mine.safetensors"]


# What an adapter does


def test_graph_from_before_adapters_runs_as_before(host: Host, client: Client) -> None:
    old = latents(host, client, adapter=None, adapter_strength=None)
    assert torch.equal(old, latents(host, client, adapter="none", adapter_strength=1.0))


def test_adapter_that_learned_nothing_changes_no_bit(
    host: Host, client: Client, loras: Path, puppet: Pipeline
) -> None:
    write(loras / "nothing.safetensors", no_change(puppet))
    assert torch.equal(
        latents(host, client, adapter="nothing.safetensors"), latents(host, client, adapter="none")
    )


def test_adapter_equals_the_merged_checkpoint(
    host: Host, client: Client, loras: Path, model_folder: Path, puppet: Pipeline
) -> None:
    write(loras / "real.safetensors", real_change(puppet))
    save_merged(model_folder / "merged.safetensors")
    adapted = latents(host, client, adapter="real.safetensors")
    assert torch.equal(adapted, latents(host, client, model_name="merged.safetensors"))
    assert not torch.equal(adapted, latents(host, client))


def test_strength_0_is_the_model_without_it(
    host: Host, client: Client, loras: Path, puppet: Pipeline
) -> None:
    write(loras / "real.safetensors", real_change(puppet))
    strengths = (0.0, 0.5, 1.0, -1.0)
    made = {s: latents(host, client, adapter="real.safetensors", adapter_strength=s) for s in strengths}
    without = latents(host, client)
    assert [s for s in strengths if torch.equal(made[s], without)] == [0.0]
    assert not torch.equal(made[0.5], made[1.0])


def test_model_is_loaded_again_when_the_adapter_changed(
    client: Client, loras: Path, puppet: Pipeline
) -> None:
    prompt = change(short_start(seed=51), "LoopyLoadModel", adapter="mine.safetensors")
    loader, cached = find(prompt, "LoopyLoadModel"), []
    for tensors in (no_change(puppet), None, real_change(puppet)):
        if tensors:
            write(loras / "mine.safetensors", tensors)
        run = client.queue(prompt)
        run.wait()
        cached.append(loader in run.cached)
    assert cached == [False, True, False]


def test_student_samples_as_it_was_distilled_and_in_no_other_way(
    client: Client, loras: Path, puppet: Pipeline
) -> None:
    write(loras / "student.safetensors", no_change(puppet), steps=2)
    prompt = change(short_start(seed=53), "LoopyLoadModel", adapter="student.safetensors")
    sentence = complaint(client, change(prompt, "LoopySampler", steps=25, audio_ratio=1.0, ref_ratio=1.0))
    assert_clear(sentence, "distilled for 2 steps")
    assert client.run(change(prompt, "LoopySampler", steps=2, audio_ratio=1.0, ref_ratio=1.0))


def test_bundled_student_makes_what_the_model_makes(
    host: Host, client: Client, loras: Path, puppet: Pipeline
) -> None:
    """Not bit for bit, but nearly."""
    exact = latents(host, client, sampler={"steps": 25, "audio_ratio": 1.5, "ref_ratio": 1.5})
    student = latents(host, client, sampler={"steps": 4, "audio_ratio": 1, "ref_ratio": 1}, adapter=STUDENT)
    assert 0 < (student - exact).square().mean() < 0.1 * exact.var()


# What is no adapter of this model


def refusal(client: Client, name: str) -> str:
    return complaint(client, change(short_start(seed=52), "LoopyLoadModel", adapter=name))


def test_file_of_something_else(client: Client, loras: Path) -> None:
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(4, 4)}, loras / "style.safetensors")
    sentence = refusal(client, "style.safetensors")
    assert_clear(sentence, "style.safetensors")
    assert "not a Loopy adapter" in sentence and "recipe finetune or distill" in sentence


def test_adapter_of_another_model(client: Client, loras: Path) -> None:
    write(loras / "other.safetensors", {"full.audio_norm.weight": torch.ones(8)}, TINY)
    sentence = refusal(client, "other.safetensors")
    assert_clear(sentence, "other.safetensors")
    assert "base model" in sentence


def test_adapter_that_was_cut_short(client: Client, loras: Path, puppet: Pipeline) -> None:
    write(loras / "half.safetensors", real_change(puppet))
    data = (loras / "half.safetensors").read_bytes()
    (loras / "half.safetensors").write_bytes(data[: len(data) // 2])
    assert_clear(refusal(client, "half.safetensors"), "half.safetensors")


def test_adapter_in_the_folder_of_models(client: Client, model_folder: Path, puppet: Pipeline) -> None:
    write(model_folder / "adapter.safetensors", real_change(puppet))
    prompt = change(short_start(seed=52), "LoopyLoadModel", model_name="adapter.safetensors")
    sentence = complaint(client, prompt)
    assert_clear(sentence, "adapter.safetensors")
    assert "models/loras" in sentence


def test_adapter_that_is_gone(client: Client) -> None:
    assert "gone.safetensors" in refusal(client, "gone.safetensors")  # the host's own sentence


def test_adapter_that_goes_while_its_graph_waits(client: Client, loras: Path, puppet: Pipeline) -> None:
    write(loras / "gone.safetensors", no_change(puppet))
    before = client.queue(change(quick_start(), "LoopySampler", seed=53))
    waiting = client.queue(change(short_start(seed=53), "LoopyLoadModel", adapter="gone.safetensors"))
    (loras / "gone.safetensors").unlink()
    client.interrupt()
    assert [event["type"] for event in before.follow()][-1] == "execution_interrupted"
    with pytest.raises(PromptError) as caught:
        waiting.wait()
    assert_clear(str(caught.value).split(": ", 1)[1], "gone.safetensors")
