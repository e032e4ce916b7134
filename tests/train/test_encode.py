"""Clips -> latents and speech, from real video files and with real networks."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import librosa
import pytest
import torch
import torch.nn.functional as nnf
from runs import contents
from safetensors.torch import save_file
from torch import Tensor

from loopy_model.audio import hear
from loopy_model.config import PUPPET
from loopy_model.pipeline import BUNDLED, Pipeline
from loopy_model.prepare.clips import write_video as write_lossless
from loopy_model.prepare.encode import ClipEncoder, EncodeSettings, encode_clips, summary
from loopy_model.prepare.encoded import path_of, read_metadata
from loopy_model.prepare.encoders import Source, load_speech_encoder, load_vae
from loopy_model.prepare.records import share_of
from loopy_model.train.data import PreparedClips, Window
from loopy_model.video import read_video, write_video

SETTINGS = EncodeSettings(BUNDLED, BUNDLED, 128, device="cpu")
FRAMES = 20


def tone(frames: int, rate: int) -> Tensor:
    """Two channels of a voice-like sound."""
    time = torch.arange(frames * rate // 25) / rate
    sound = 0.3 * torch.sin(2 * torch.pi * (200 + 300 * time) * time) * torch.sin(9 * time).abs()
    return torch.stack([sound, 0.5 * sound])


def pictures(frames: int, size: int, seed: int) -> Tensor:
    """Smooth colours that move."""
    coarse = torch.rand(frames, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nnf.interpolate(coarse, size, mode="bicubic").clamp(0, 1).movedim(1, -1)


def add_clip(
    data: Path, name: str, frames: int = FRAMES, size: int = 128, voiced: bool = True, **record: object
) -> Path:
    """-> its video; the record is what `loopy prepare clips` writes."""
    (data / "clips").mkdir(parents=True, exist_ok=True)
    values = {"name": name, "source": name, "frames": frames, "split": "train", "voiced": voiced} | record
    landmarks = torch.rand(frames, 68, 2, generator=torch.Generator().manual_seed(0))
    save_file(
        {"landmarks": landmarks},
        data / "clips" / f"{name}.safetensors",
        {"format": "loopy-clip", "clip": json.dumps(values)},
    )
    video = data / "clips" / f"{name}.mp4"
    voice = tone(frames, 48_000) if voiced else None
    write_video(video, pictures(frames, size, len(name)), Fraction(25), voice)
    return video


@pytest.fixture
def data(tmp_path: Path) -> Path:
    add_clip(tmp_path, "one", split="test")
    add_clip(tmp_path, "second", frames=18, size=192)
    add_clip(tmp_path, "silent", voiced=False)
    return tmp_path


@pytest.fixture(scope="module")
def bundled() -> Pipeline:
    return Pipeline(BUNDLED)


def encoded(data: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (data / "encoded").glob("*.safetensors")}


def failures(data: Path, shard: str = "1-of-1") -> dict[str, str]:
    path = data / "encoded" / f"failed-{shard}.csv"
    return dict(list(csv.reader(path.open()))[1:]) if path.is_file() else {}


def heard(pipeline: Pipeline, voice: Tensor) -> Tensor:
    with torch.inference_mode():
        return hear(voice, lambda part: pipeline.speech_encoder(part[None])[0], 25).features


# --- what is written ----------------------------------------------------------------------------


@torch.inference_mode()
def test_latents_are_those_of_the_vae_on_the_same_frames(data: Path, bundled: Pipeline) -> None:
    assert encode_clips(data, SETTINGS) == {"encoded": 3, "removed": 0}
    frames = read_video(data / "clips" / "one.mp4")[0]
    latents = contents(path_of(data, "one"))[1]["latents"]
    assert latents.dtype == torch.float16 and latents.shape == (FRAMES, 32, 8, 8)
    assert torch.allclose(latents.float(), bundled.encode(frames), rtol=2e-3, atol=2e-3)

    frames = read_video(data / "clips" / "second.mp4")[0].movedim(-1, 1)
    smaller = nnf.interpolate(frames, 128, mode="bilinear", antialias=True).movedim(1, -1)
    latents = contents(path_of(data, "second"))[1]["latents"]
    assert torch.allclose(latents.float(), bundled.encode(smaller), rtol=2e-3, atol=2e-3)


def test_speech_is_what_the_model_hears_in_use(data: Path, bundled: Pipeline) -> None:
    encode_clips(data, SETTINGS)
    _, _, waveform, rate = read_video(data / "clips" / "one.mp4")
    assert rate == 48_000  # as other programs write it; the model hears 16 kHz
    voice = torch.from_numpy(librosa.resample(waveform.mean(0).numpy(), orig_sr=rate, target_sr=16_000))
    speech = contents(path_of(data, "one"))[1]["speech"]
    assert speech.shape == (FRAMES, *heard(bundled, voice).shape[1:]) and speech.dtype == torch.float16
    expected = heard(bundled, nnf.pad(voice, (0, 16_000))[: FRAMES * 640])
    assert torch.allclose(speech.float(), expected, rtol=2e-3, atol=2e-3)


def test_a_lossless_voice_of_prepared_clips_is_heard_as_it_was(tmp_path: Path, bundled: Pipeline) -> None:
    video = add_clip(tmp_path, "one")
    voice = (tone(FRAMES, 16_000)[0] * 32767).short()
    images = (pictures(FRAMES, 64, 1) * 255).byte().numpy()
    write_lossless(video, iter(images), voice.numpy())
    encode_clips(tmp_path, SETTINGS)
    expected = heard(bundled, voice / 32768)
    speech = contents(path_of(tmp_path, "one"))[1]["speech"]
    assert torch.allclose(speech.float(), expected, rtol=2e-3, atol=2e-3)


def test_encoded_clips_can_be_trained_on(data: Path) -> None:
    encode_clips(data, SETTINGS)
    train = PreparedClips(data, "train", PUPPET)
    assert [(clip.name, clip.frames, clip.voiced) for clip in train.clips] == [
        ("second", 18, True),
        ("silent", FRAMES, False),
    ]
    sample = train.read(Window(train.clips[0], 3, 12, 0))
    assert sample.windows.shape == (12, 5, PUPPET.audio.layers, PUPPET.audio.width)
    header, tensors = contents(path_of(data, "silent"))
    assert tensors.keys() == {"latents", "landmarks"}
    made_by = json.loads(header["encoders"])
    assert made_by["size"] == 128 and made_by["vae"]["path"] == str(BUNDLED)


def test_one_source_is_held_out_where_chance_chose_none(tmp_path: Path) -> None:
    for name, source in (("a-0", "a"), ("a-1", "a"), ("b-0", "b"), ("c-0", "c")):
        add_clip(tmp_path, name, source=source, voiced=source != "c")
    encode_clips(tmp_path, SETTINGS)
    splits: dict[str, set] = {}
    for path in (tmp_path / "encoded").glob("*.safetensors"):
        clip, _ = read_metadata(path)
        splits.setdefault(clip.split, set()).add(clip.name[0])
    assert splits["test"] | splits["train"] == {"a", "b", "c"}
    assert len(splits["test"]) == 1 and not splits["test"] & splits["train"] and splits["test"] != {"c"}


def test_a_shard_that_begins_later_holds_out_the_same_source(tmp_path: Path) -> None:
    first, *later = sorted("abcdefgh", key=share_of, reverse=True)
    for name in (later[0], first):
        add_clip(tmp_path, f"{name}-0", source=name)
    encode_clips(tmp_path, SETTINGS)
    for name in later[1:]:  # each nearer to being chosen than those before
        add_clip(tmp_path, f"{name}-0", source=name)
    add_clip(tmp_path, "chance-0", source="chance", split="test")
    encode_clips(tmp_path, SETTINGS)
    assert {clip.name for clip in PreparedClips(tmp_path, "test", PUPPET).clips} == {
        f"{later[0]}-0",
        "chance-0",
    }


# --- again --------------------------------------------------------------------------------------


def test_the_same_command_encodes_what_is_missing_or_damaged(data: Path) -> None:
    encode_clips(data, SETTINGS)
    before = encoded(data)
    path_of(data, "one").write_bytes(before["one"][:-100])
    path_of(data, "silent").unlink()
    save_file({"x": torch.zeros(1)}, path_of(data, "second"), {"format": "loopy-encoded-clip"})
    assert encode_clips(data, SETTINGS) == {"encoded": 3, "removed": 0}
    assert {name: contents(path_of(data, name))[0] for name in before}
    times = {path: path.stat().st_mtime_ns for path in (data / "encoded").iterdir()}
    assert encode_clips(data, SETTINGS) == {"already there": 3, "removed": 0}
    assert {path: path.stat().st_mtime_ns for path in (data / "encoded").iterdir()} == times


def test_another_size_or_record_is_encoded_again(data: Path) -> None:
    encode_clips(data, SETTINGS)
    smaller = replace(SETTINGS, size=32)
    with pytest.raises(ValueError, match="3 clips in .* were encoded with another size .*or --again"):
        encode_clips(data, smaller)
    smaller = replace(smaller, again=True)
    assert encode_clips(data, smaller)["encoded"] == 3
    assert contents(path_of(data, "one"))[1]["latents"].shape[-2:] == (2, 2)
    add_clip(data, "one", frames=9, split="test")
    assert encode_clips(data, smaller) == {"encoded": 1, "already there": 2, "removed": 0}


def test_a_clip_that_went_away_goes_away_here_too(data: Path) -> None:
    encode_clips(data, SETTINGS)
    (data / "clips" / "second.safetensors").unlink()
    assert encode_clips(data, SETTINGS) == {"already there": 2, "removed": 1}
    assert encoded(data).keys() == {"one", "silent"}


def test_what_another_process_is_still_writing_is_left_alone(data: Path) -> None:
    partial = data / "clips" / ".partial-host1-one.safetensors", path_of(data, ".partial-host1-one")
    for path in partial:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half of it")
    assert encode_clips(data, SETTINGS) == {"encoded": 3, "removed": 0}
    assert "train 2 clips" in summary(data, Counter()) and all(path.exists() for path in partial)


def test_what_came_to_the_clips_meanwhile_is_left_alone(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another shard, which began later, has seen and encoded it."""
    encode = ClipEncoder.encode

    def slowly(self: ClipEncoder, *arguments: object) -> str:
        if not path_of(data, "late").exists():
            add_clip(data, "late")
            path_of(data, "late").parent.mkdir(exist_ok=True)
            path_of(data, "late").write_bytes(b"by another shard")
        return encode(self, *arguments)

    monkeypatch.setattr(ClipEncoder, "encode", slowly)
    assert encode_clips(data, SETTINGS) == {"encoded": 3, "removed": 0}
    assert path_of(data, "late").read_bytes() == b"by another shard"


def test_parts_do_not_overlap_when_clips_come_between_them(data: Path) -> None:
    encode_clips(data, replace(SETTINGS, shard=(0, 2)))
    before = set(encoded(data))
    for name in ("a-new", "b-new", "c-new"):  # they shift the place of all others
        add_clip(data, name)
    assert encode_clips(data, replace(SETTINGS, shard=(1, 2)))["already there"] == 0
    encode_clips(data, replace(SETTINGS, shard=(0, 2)))
    assert set(encoded(data)) >= before and len(encoded(data)) == 6


def test_parts_cover_everything_once(data: Path) -> None:
    whole = data / "encoded"
    add_clip(data, "fourth")
    names: list[str] = []
    for part in range(3):
        before = set(encoded(data))
        encode_clips(data, replace(SETTINGS, shard=(part, 3)))
        names += sorted(set(encoded(data)) - before)
        assert set(encoded(data)) >= before  # and leave each other alone
    assert sorted(names) == ["fourth", "one", "second", "silent"] and whole.is_dir()
    assert encode_clips(data, SETTINGS)["already there"] == 4


# --- what cannot be encoded ---------------------------------------------------------------------


def cut(video: Path) -> None:
    video.write_bytes(video.read_bytes()[:300])


def no_picture(video: Path) -> None:
    import av

    with av.open(str(video), "w") as file:
        stream = file.add_stream("aac", rate=48_000, layout="mono")
        block = av.AudioFrame.from_ndarray(tone(5, 48_000)[:1].numpy(), format="fltp", layout="mono")
        block.sample_rate = 48_000
        for packet in (*stream.encode(block), *stream.encode(None)):
            file.mux(packet)


def damaged_record(video: Path) -> None:
    video.with_suffix(".safetensors").write_bytes(b"garbage " * 9)


def other_record(video: Path) -> None:
    save_file({"other": torch.zeros(1)}, video.with_suffix(".safetensors"), {"clip": "{}"})


def shorter(video: Path) -> None:
    write_video(video, pictures(3, 64, 0), Fraction(25))


def soundless(video: Path) -> None:
    write_video(video, pictures(18, 64, 0), Fraction(25))


@pytest.mark.parametrize(
    "damage", [cut, no_picture, damaged_record, other_record, shorter, soundless, Path.unlink]
)
def test_a_broken_clip_is_listed_and_costs_itself_alone(data: Path, damage: Callable[[Path], None]) -> None:
    damage(data / "clips" / "second.mp4")
    assert encode_clips(data, SETTINGS) == {"encoded": 2, "failed": 1, "removed": 0}
    assert failures(data).keys() == {"second"} and len(failures(data)["second"]) > 15
    assert encoded(data).keys() == {"one", "silent"}
    add_clip(data, "second", frames=18)
    assert encode_clips(data, SETTINGS) == {"encoded": 1, "already there": 2, "removed": 0}
    assert not failures(data) and not list(data.rglob("*.csv")) and not list(data.rglob("*.partial"))


def test_a_clip_that_can_no_longer_be_encoded_does_not_stay_as_another_vae_saw_it(data: Path) -> None:
    encode_clips(data, SETTINGS)
    cut(data / "clips" / "second.mp4")
    encode_clips(data, replace(SETTINGS, size=32, again=True))
    assert encoded(data).keys() == {"one", "silent"}


def test_a_folder_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no clips; run .*prepare clips RAW"):
        encode_clips(tmp_path, SETTINGS)


# --- other networks -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A VAE of diffusers and a wav2vec of transformers, narrow, with random weights in half precision."""
    from diffusers import AutoencoderKL
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("public")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
    )
    vae.half().save_pretrained(folder / "vae")
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2Model(config).half().save_pretrained(folder / "wav2vec")
    return folder / "vae", folder / "wav2vec"


def test_public_formats_are_read(data: Path, public: tuple[Path, Path]) -> None:
    assert encode_clips(data, EncodeSettings(*public, 64, device="cpu"))["encoded"] == 3
    tensors = contents(path_of(data, "one"))[1]
    assert tensors["latents"].shape == (FRAMES, 4, 8, 8) and tensors["speech"].shape == (FRAMES, 4, 16)


@torch.inference_mode()
def test_a_public_vae_gives_the_middle_of_its_posterior(public: tuple[Path, Path]) -> None:
    from diffusers import AutoencoderKL

    images = pictures(2, 64, 0).movedim(-1, 1) * 2 - 1
    known = AutoencoderKL.from_pretrained(public[0], torch_dtype=torch.float32)
    assert torch.equal(load_vae(public[0]).encode(images), known.encode(images).latent_dist.mean)


@torch.inference_mode()
def test_a_public_wav2vec_gives_all_its_hidden_states(public: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

    voice = tone(20, 16_000)[0]
    known = Wav2Vec2Model.from_pretrained(public[1], dtype=torch.float32).eval()
    states = torch.cat(known(voice[None], output_hidden_states=True).hidden_states)
    assert torch.allclose(load_speech_encoder(public[1])(voice), states, atol=1e-5)

    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    known.save_pretrained(tmp_path), extractor.save_pretrained(tmp_path)
    normalised = torch.tensor(extractor(voice.numpy(), sampling_rate=16_000).input_values[0])
    states = torch.cat(known(normalised[None], output_hidden_states=True).hidden_states)
    assert torch.allclose(load_speech_encoder(tmp_path)(voice), states, atol=1e-4)


def test_a_network_is_known_by_its_weights_wherever_it_lies(
    public: tuple[Path, Path], tmp_path: Path
) -> None:
    import shutil

    copy = Path(shutil.copytree(public[0], tmp_path / "copy"))
    assert Source.of(copy).sha256 == Source.of(public[0]).sha256 != Source.of(public[1]).sha256
    (copy / "diffusion_pytorch_model.safetensors").rename(copy / "diffusion_pytorch_model.bin")
    assert Source.of(copy).sha256 == Source.of(public[0]).sha256  # an older kind of file
    (copy / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="has no weights in it"):
        Source.of(copy)


def test_what_is_no_encoder_is_refused(tmp_path: Path, public: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_vae(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.safetensors").write_bytes(b"12345")
    for name in ("empty", "short.safetensors"):
        with pytest.raises(ValueError, match=f"{name} cannot be read .*; copy or download it again"):
            load_vae(tmp_path / name)
    with pytest.raises(ValueError, match="no config.json in it"):
        load_speech_encoder(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not the VAE of Stable Diffusion 1.5"):
        load_vae(tmp_path / "other.safetensors")
