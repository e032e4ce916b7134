"""`loopy generate`: what it says when it cannot."""

import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from loopy_model import cli
from loopy_model.cli import generate, main
from loopy_model.pipeline import BUNDLED, Pipeline
from loopy_model.video import write_video

PORTRAIT = BUNDLED.parents[1] / "portraits" / "mina.png"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of things that are no voice."""
    for name, samples in {"short": 100, "voice": 8_000}.items():
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(np.zeros(samples, dtype="<i2").tobytes())
    Image.new("RGB", (20, 30)).save(tmp_path / "small.png")
    (tmp_path / "text.txt").write_text("no sound and no picture")
    write_video(tmp_path / "silent.mp4", torch.zeros(2, 16, 16, 3), Fraction(25))
    return tmp_path


@pytest.mark.parametrize("asked", [[], ["-h"], ["--help"]])
def test_help_is_no_error(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["loopy", *asked])
    main()
    assert "loopy generate | import | merge" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["loopy", "paint"])
    with pytest.raises(SystemExit, match="loopy generate"):
        main()


@pytest.mark.parametrize(
    "portrait, voice, output, said",
    [
        (PORTRAIT, "short.wav", "a.mp4", r"short.wav has no sound, or less than half a video frame"),
        (PORTRAIT, "silent.mp4", "a.mp4", r"silent.mp4 has no sound, or less than half a video frame"),
        (PORTRAIT, "text.txt", "a.mp4", r"cannot read .*text.txt"),
        (PORTRAIT, "gone.wav", "a.mp4", r"cannot read .*gone.wav"),
        ("text.txt", "voice.wav", "a.mp4", r"cannot read .*text.txt"),
        ("gone.png", "voice.wav", "a.mp4", r"cannot read .*gone.png"),
        ("small.png", "voice.wav", "a.mp4", r"the portrait is 20x30 pixels; use a picture of at least"),
        (PORTRAIT, "voice.wav", "voice.wav", r"voice.wav would replace what it is made from"),
        (PORTRAIT, "voice.wav", ".", r"is a folder; give the file to write"),
        (PORTRAIT, "voice.wav", "gone/a.mp4", r"there is no folder .*gone to write a.mp4 into"),
    ],
)
def test_one_sentence_names_the_file(files: Path, portrait: str, voice: str, output: str, said: str) -> None:
    before = sorted(files.rglob("*"))
    with pytest.raises(SystemExit, match=said):
        generate([str(files / portrait), str(files / voice), str(files / output)])
    assert sorted(files.rglob("*")) == before


def test_a_portrait_is_upright_as_the_phone_was_held(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # to be turned by a quarter
    Image.new("RGB", (100, 60)).save(files / "phone.jpg", exif=turned)

    def stop(pipeline: Pipeline, portrait: torch.Tensor, *_: object, **__: object) -> None:
        raise ValueError(f"seen as {tuple(portrait.shape)}")

    monkeypatch.setattr(Pipeline, "request", stop)
    with pytest.raises(SystemExit, match=r"seen as \(100, 60, 3\)"):
        generate([str(files / "phone.jpg"), str(files / "voice.wav"), str(files / "a.mp4")])


@pytest.mark.parametrize(
    "choice, said",
    [
        (["--steps", "0"], "steps is 0; choose 1 to 1000"),
        (["--eta", "1.5"], "eta is 1.5; choose 0 to 1"),
    ],
)
def test_one_sentence_names_the_number(files: Path, choice: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        generate([str(PORTRAIT), str(files / "voice.wav"), str(files / "a.mp4"), *choice])
    assert not (files / "a.mp4").exists()


def test_a_picture_beyond_pillows_limit_is_refused(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SystemExit, match="cannot read .*mina.png: Image size .* exceeds limit"):
        generate([str(PORTRAIT), str(files / "voice.wav"), str(files / "a.mp4")])


@pytest.mark.parametrize("option", ["--audio-ratio", "--ref-ratio", "--eta", "--adapter-strength"])
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_what_is_no_finite_number_is_refused(
    files: Path, capsys: pytest.CaptureFixture[str], option: str, number: str
) -> None:
    with pytest.raises(SystemExit):
        generate([str(PORTRAIT), str(files / "voice.wav"), str(files / "a.mp4"), option, number])
    assert f"argument {option}: invalid finite value: '{number}'" in capsys.readouterr().err


def test_the_archive_says_what_it_does_not_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "cli.py"))
    monkeypatch.setattr("sys.argv", ["loopy", "train", "--help"])
    with pytest.raises(SystemExit, match="archive has no `loopy train`; take a git checkout"):
        main()
