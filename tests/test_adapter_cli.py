"""`loopy generate --adapter`: the pipeline with what fine-tuning changed."""

import wave
from pathlib import Path

import pytest
import torch

from loopy_model.adapter import NotAnAdapter, save_adapter
from loopy_model.cli import generate
from loopy_model.config import PUPPET, TINY, LoopyConfig
from loopy_model.pipeline import BUNDLED, Pipeline
from loopy_model.video import read_video
from loopy_model.weights import ModelCard

PORTRAIT = BUNDLED.parents[1] / "portraits" / "mina.png"
NORM = "audio_norm.bias"


def save(path: Path, config: LoopyConfig = PUPPET) -> Path:
    """An adapter that moves one bias to 1."""
    card = ModelCard("test", "nothing", "everything", "Apache-2.0")
    save_adapter(path, config, card, {f"full.{NORM}": torch.ones(PUPPET.audio.width)})
    return path


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    """Half a second of silence."""
    path = tmp_path / "voice.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * 8_000))
    return path


def test_pipeline_takes_the_adapter_in_between(tmp_path: Path) -> None:
    before, path = Pipeline(BUNDLED).model.state_dict(), save(tmp_path / "a.safetensors")
    half = Pipeline(BUNDLED, path, 0.5).model.state_dict()
    assert torch.allclose(half[NORM], (before[NORM] + 1) / 2, atol=1e-3)
    assert [name for name in before if not torch.equal(before[name], half[name])] == [NORM]


def test_pipeline_refuses_an_adapter_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(NotAnAdapter, match="other.safetensors .* base model"):
        Pipeline(BUNDLED, save(tmp_path / "other.safetensors", TINY))


def test_command_makes_another_video_with_an_adapter(tmp_path: Path, voice: Path) -> None:
    adapter = save(tmp_path / "a.safetensors")
    videos = {}
    for strength in (None, "0", "-1"):
        video = tmp_path / f"{strength}.mp4"
        chosen = ["--adapter", str(adapter), "--adapter-strength", strength] if strength else []
        generate([str(PORTRAIT), str(voice), str(video), "--steps", "1", *chosen])
        videos[strength] = read_video(video)[0]
    none, zero, other = (videos[strength] for strength in videos)
    # x264 adds up to 0.003 of its own, and with AVX-512 not the same twice
    assert (zero - none).abs().mean() < 0.005 < 0.01 < (other - none).abs().mean()


@pytest.mark.parametrize(
    "name, why",
    [
        ("gone.safetensors", "^there is no file .*gone.safetensors; check the path.$"),
        (BUNDLED.name, f"^{BUNDLED.name} is not a Loopy adapter; choose .*[.]$"),
    ],
)
def test_command_says_in_one_sentence_what_is_no_adapter(
    tmp_path: Path, voice: Path, name: str, why: str
) -> None:
    file = BUNDLED if name == BUNDLED.name else tmp_path / name
    with pytest.raises(SystemExit, match=why):
        generate([str(PORTRAIT), str(voice), str(tmp_path / "a.mp4"), "--adapter", str(file)])
