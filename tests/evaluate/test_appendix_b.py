"""Equations 3-7 of the paper's appendix B by hand, from landmarks in pixels to the numbers of a video."""

import numpy as np
import pytest
import torch

from loopy_model.evaluate.measures import Recording, landmarks, movement, of_all_frames, sync
from loopy_model.evaluate.networks import NotMeasured
from loopy_model.movement import NOSE_TIP, UPPER_FACE, dexp, dglo, exp, glo
from loopy_model.prepare.landmarks import Face
from loopy_model.prepare.sync import SyncScore

WIDTH, HEIGHT, BROW = 400, 200, 19


def still(frames: int) -> torch.Tensor:
    """All points in the middle, 0..1."""
    return torch.full((frames, 68, 2), 0.5, dtype=torch.float64)


def nodding(deviation: float) -> torch.Tensor:
    """Four frames; the nose goes up and down by `deviation`, everything else with it."""
    points = still(4)
    points[..., 1] += deviation * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    return points


def frowning(change: float) -> torch.Tensor:
    """Five frames; one brow goes there and back by `change`."""
    points = still(5)
    points[:, BROW, 0] += change * torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    return points


def test_equation_3_is_the_sum_of_both_variances_times_1000() -> None:
    assert glo(nodding(0.03)).item() == pytest.approx(1000 * 0.03**2)


def test_equations_4_and_5_for_one_brow() -> None:
    """d = +c, -c, +c, -c with mean 0: a variance of c^2, in one of 36 points."""
    assert exp(frowning(0.06)).item() == pytest.approx(1000 * 0.06**2 / len(UPPER_FACE))


@pytest.mark.parametrize("generated, real", [(0.03, 0.01), (0.01, 0.03)])
def test_equation_6_is_absolute(generated: float, real: float) -> None:
    """Section 3.5: "DGlo and DExp represent the absolute differences from the ground truth"."""
    assert dglo(nodding(generated), nodding(real)).item() == pytest.approx(1000 * (0.03**2 - 0.01**2))
    assert dglo(nodding(generated), nodding(generated)) == 0


@pytest.mark.parametrize("generated, real", [(0.06, 0.02), (0.02, 0.06)])
def test_equation_7_is_absolute(generated: float, real: float) -> None:
    wanted = 1000 * (0.06**2 - 0.02**2) / len(UPPER_FACE)
    assert dexp(frowning(generated), frowning(real)).item() == pytest.approx(wanted)


def test_a_head_that_nods_has_no_expression_and_a_frown_no_head_movement() -> None:
    assert dexp(nodding(0.03), still(4)) < 1e-20 and dglo(frowning(0.06), still(5)) == 0


def test_a_video_is_measured_in_shares_of_its_width_and_height() -> None:
    """Equation 3 takes x and y in 0..1: 40 of 400 pixels aside are 0.1, 10 of 200 down are 0.05."""
    points = np.full((2, 68, 2), 100, np.float32)
    points[1, NOSE_TIP] += [40, 10]
    found = movement(points, HEIGHT, WIDTH)
    assert found.glo == pytest.approx(1000 * (0.05**2 + 0.025**2))
    assert found.nose_x == pytest.approx([0.25, 0.35]) and found.nose_y == pytest.approx([0.5, 0.55])


def test_the_mouth_is_measured_in_pixels() -> None:
    points = np.zeros((1, 68, 2), np.float32)
    points[0, [36, 45], 0] = [100, 180]  # outer corners of the eyes
    points[0, [62, 66], 1] = [150, 170]  # inner lips
    assert movement(points, HEIGHT, WIDTH).opening == pytest.approx([20 / 80])


def listen(frames: np.ndarray, waveform: np.ndarray) -> SyncScore:
    """Stands for SyncNet: how bright the lips' pictures are, how loud the voice."""
    assert frames.shape[1:] == (224, 224, 3) and frames.dtype == np.uint8
    return SyncScore(float(frames.mean()), float(np.abs(waveform).max()), 0)


def test_syncnet_sees_the_face_alone_and_hears_full_scale() -> None:
    """The face is a white square in the dark. With 0.3 of its height as forehead, the crop's side is 1.4
    x 1.3 of the face's: the face fills 1 / 1.82^2 of it."""
    frames = np.zeros((6, 200, 300, 3), np.uint8)
    frames[:, 80:120, 130:170] = 255
    points = np.zeros((6, 68, 2), np.float32)
    points[:, 0], points[:, 1:] = [130, 80], [170, 120]
    voice = np.zeros(6 * 640, np.int16)
    voice[100] = -16384
    confidence, distance = sync(Recording(frames, voice), points, listen)
    assert confidence == pytest.approx(255 / 1.82**2, rel=0.02) and distance == 0.5


@pytest.mark.parametrize("voice", [None, np.zeros(6 * 640, np.int16)])
def test_a_silent_video_has_no_sync(voice: np.ndarray | None) -> None:
    with pytest.raises(NotMeasured, match="no sound"):
        sync(Recording(np.zeros((6, 8, 8, 3), np.uint8), voice), np.zeros((6, 68, 2)), listen)


class Blinking:
    """A detector that sees a face in the given frames only."""

    def __init__(self, seen: set[int]) -> None:
        self.seen = seen

    def __call__(self, picture: np.ndarray, index: int) -> list[Face]:
        return [Face(np.full((68, 2), index, np.float32), 1.0)] if index in self.seen else []


def test_short_gaps_of_the_detector_are_interpolated_and_long_ones_are_not() -> None:
    frames = np.zeros((9, 4, 4, 3), np.uint8)
    found = landmarks(frames, Blinking({0, 1, 4, 5, 6, 7, 8}))
    assert np.allclose(of_all_frames(found)[:, 0, 0], np.arange(9))
    with pytest.raises(NotMeasured, match="6 of 9 frames show no face"):
        of_all_frames(landmarks(frames, Blinking({0, 1, 8})))
