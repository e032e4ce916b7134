"""SyncNet: the layout of its weights, its inputs, and the arithmetic of the scores."""

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from loopy_model.prepare.sync import (
    BATCH,
    MAX_OFFSET,
    LipSync,
    SyncNet,
    load_syncnet,
    mfcc_windows,
    score_from_embeddings,
    sync_scorer,
    windows,
)

# Parameters of the two towers as published: kernel shape of each weight, by its place.
KERNELS = {
    "netcnnaud.0": (64, 1, 3, 3),
    "netcnnaud.4": (192, 64, 3, 3),
    "netcnnaud.8": (384, 192, 3, 3),
    "netcnnaud.11": (256, 384, 3, 3),
    "netcnnaud.14": (256, 256, 3, 3),
    "netcnnaud.18": (512, 256, 5, 4),
    "netcnnlip.0": (96, 3, 5, 7, 7),
    "netcnnlip.4": (256, 96, 1, 5, 5),
    "netcnnlip.8": (256, 256, 1, 3, 3),
    "netcnnlip.11": (256, 256, 1, 3, 3),
    "netcnnlip.14": (256, 256, 1, 3, 3),
    "netcnnlip.18": (512, 256, 1, 6, 6),
    "netfcaud.0": (512, 512),
    "netfcaud.3": (1024, 512),
    "netfclip.0": (512, 512),
    "netfclip.3": (1024, 512),
}
NORMS = {
    **{f"netcnnaud.{place}": width for place, width in [(1, 64), (5, 192), (9, 384), (12, 256), (15, 256)]},
    **{f"netcnnlip.{place}": width for place, width in [(1, 96), (5, 256), (9, 256), (12, 256), (15, 256)]},
    **{f"{name}.{place}": 512 for name in ("netcnnaud", "netcnnlip") for place in (19,)},
    **{f"{name}.1": 512 for name in ("netfcaud", "netfclip")},
}


def published_layout() -> dict[str, torch.Tensor]:
    """Random weights under the published names, as a file of 2017 has them: no `num_batches_tracked`."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in KERNELS.items():
        fan_in = int(np.prod(shape[1:]))
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        state[f"{name}.bias"] = torch.zeros(shape[0])
    for name, width in NORMS.items():
        state |= {f"{name}.{part}": torch.ones(width) for part in ("weight", "running_var")}
        state |= {f"{name}.{part}": torch.zeros(width) for part in ("bias", "running_mean")}
    state["netfclip.3.weight"] *= 0.05  # as long as the voice's: pictures of noise are loud
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sync") / "syncnet_v2.model"
    torch.save(published_layout(), path)
    return path


def test_weights_of_the_published_layout_load_strictly(weights: Path) -> None:
    network, state = load_syncnet(weights), published_layout()
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state.pop(name))
    assert not state and not network.training


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_other_weights_are_refused(tmp_path: Path, change: str) -> None:
    state = published_layout()
    if change == "missing":
        del state["netfclip.3.bias"]
    elif change == "surplus":
        state["netfclip.4.weight"] = torch.ones(1)
    else:
        state["netcnnaud.0.weight"] = torch.ones(64, 3, 3, 3)
    torch.save(state, tmp_path / "other.model")
    with pytest.raises(ValueError, match="other.model is not SyncNet's state dict .* syncnet_v2.model"):
        sync_scorer(tmp_path / "other.model")


class Gadget:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"netcnnaud.0.weight": Gadget()}, tmp_path / "bad.model")
    with pytest.raises(ValueError, match="is not SyncNet's state dict"):
        sync_scorer(tmp_path / "bad.model")
    assert "executed" not in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing.model does not exist.*syncnet_v2.model"):
        sync_scorer(tmp_path / "nothing.model")


@pytest.mark.parametrize("frames", [6, 25, 50])
def test_mfcc_rows_reach_exactly_the_windows(frames: int) -> None:
    """The published ratio: window w holds the 20 rows from 4 w on, and the last row is used."""
    from python_speech_features import mfcc

    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, frames * 640).astype(np.float32)
    count = windows(frames, len(waveform))
    found = mfcc_windows(waveform, count)
    rows = mfcc(np.round(waveform * 32768), 16000)
    assert count == frames - 5 and found.shape == (count, 13, 20)
    assert len(rows) == 4 * frames - 1
    for w in (0, count - 1):
        np.testing.assert_allclose(found[w], rows[4 * w : 4 * w + 20].T, rtol=1e-5)


def test_windows_take_the_shorter_of_sound_and_video() -> None:
    assert windows(30, 20 * 640) == 15 and windows(20, 30 * 640 + 639) == 15
    with pytest.raises(ValueError, match="5 frames with 64000 samples are too short.*6 frames"):
        windows(5, 64000)


@pytest.mark.parametrize("shift", [-7, 0, 4])
def test_a_known_shift_is_found(shift: int) -> None:
    """`shift` > 0: each window of the voice stands `shift` places before its lips."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(140, 1024, generator=generator)
    lips, voice = truth[20:120], truth[20 + shift : 120 + shift]
    score = score_from_embeddings(lips, voice)
    assert score.offset == shift
    # Where they agree only the windows that fell off the end, beside zeros, are apart: about sqrt(1024).
    assert score.distance == pytest.approx(32 * abs(shift) / 100, abs=0.4)
    # Elsewhere two independent vectors are apart by about sqrt(2 * 1024), or sqrt(1024) beside zeros.
    far = (2 * 1024) ** 0.5
    assert far - 4 < score.confidence + score.distance < far


def test_scores_by_hand() -> None:
    """One window: at offset 0 the distance is |lips - voice|, at the 30 others |lips - 0|."""
    lips, voice = torch.zeros(1, 1024), torch.zeros(1, 1024)
    lips[0, :2] = torch.tensor([3.0, 4.0])
    voice[0, :2] = torch.tensor([3.0, 2.0])
    score = score_from_embeddings(lips, voice)
    assert score.distance == pytest.approx(2, abs=1e-3)
    assert score.confidence == pytest.approx(5 - 2, abs=1e-3)
    assert score.offset == 0


def reference(name: str) -> ModuleType:
    """A module of syncnet-python, without its package, which wants more than these two."""
    folder = Path(find_spec("syncnet_python").submodule_search_locations[0])
    spec = spec_from_file_location(name, folder / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("late", [0, 3])
def test_against_the_published_evaluation(weights: Path, tmp_path: Path, late: int) -> None:
    """Same weights, pictures and sound: the same offset, confidence and distance."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (24, 224, 224, 3), dtype=np.uint8)
    sound = (3000 * rng.standard_normal(24 * 640 + late * 640)).astype(np.int16)[late * 640 :]
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number:03}.jpg", quality=95)
    wavfile.write(tmp_path / "audio.wav", 16000, sound)

    theirs = reference("SyncNetModel").S()
    theirs.load_state_dict(published_layout(), strict=False)  # a file of 2017 has no `num_batches_tracked`
    options = SimpleNamespace(tmp_dir=str(tmp_path), batch_size=20, vshift=MAX_OFFSET)
    offset, confidence, distance = (
        reference("SyncNetInstance").SyncNetInstance(theirs, "cpu").evaluate(options)
    )

    read = [cv2.imread(str(path))[..., ::-1] for path in sorted(tmp_path.glob("*.jpg"))]
    ours = sync_scorer(weights)(np.stack(read), sound.astype(np.float32) / 32768)
    assert ours.offset == offset
    assert ours.confidence == pytest.approx(confidence, rel=1e-4)
    assert ours.distance == pytest.approx(distance, rel=1e-5)


def test_batches_change_nothing(weights: Path) -> None:
    """A clip longer than a batch: window w is what its five frames alone give."""
    scorer = sync_scorer(weights)
    assert isinstance(scorer, LipSync)
    frames = np.random.default_rng(0).integers(0, 256, (BATCH + 7, 40, 40, 3), dtype=np.uint8)
    lips = scorer.lips(frames)
    assert lips.shape == (BATCH + 3, 1024)
    for w in (0, BATCH - 1, BATCH, BATCH + 2):
        alone = scorer.network.lips(scorer.pictures(frames[w : w + 5]))
        torch.testing.assert_close(lips[w : w + 1], alone, rtol=1e-3, atol=1e-3)


def test_pictures_are_bgr_of_full_range(weights: Path) -> None:
    scorer = LipSync(SyncNet().eval())
    red = np.zeros((1, 512, 512, 3), np.uint8)
    red[..., 0] = 255
    picture = scorer.pictures(red)
    assert picture.shape == (1, 3, 224, 224)
    assert picture[0, :, 100, 100].tolist() == pytest.approx([0, 0, 255])


def test_a_clip_gets_a_score(weights: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
    score = sync_scorer(weights)(frames, rng.uniform(-0.1, 0.1, 10 * 640).astype(np.float32))
    assert np.isfinite(score.confidence) and score.confidence >= 0
    assert score.distance > 0 and -15 <= score.offset <= 15
