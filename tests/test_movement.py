"""Glo and Exp (paper appendix B, eq. 3-5) and the mouth, worked by hand on points made for it."""

import pytest
import torch

from loopy_model.movement import NOSE_TIP, UPPER_FACE, exp, glo, log_variance, mouth_opening, mouth_width

CHIN, BROW = 8, 19


def still(frames: int) -> torch.Tensor:
    return torch.full((frames, 68, 2), 0.5, dtype=torch.float64)


def test_a_still_face_neither_moves_nor_changes() -> None:
    assert glo(still(12)) == 0 and exp(still(12)) == 0


def test_equation_3_by_hand() -> None:
    landmarks = still(4)
    landmarks[:, NOSE_TIP, 0] = torch.tensor([0.1, 0.3, 0.1, 0.3])  # deviations 0.1: squares sum to 0.04
    landmarks[:, NOSE_TIP, 1] = torch.tensor([0.2, 0.2, 0.6, 0.6])  # deviations 0.2: squares sum to 0.16
    assert glo(landmarks).item() == pytest.approx((0.04 + 0.16) / 4 * 1000)


def test_glo_reads_the_nose_tip_alone(generator: torch.Generator) -> None:
    landmarks = torch.rand(5, 68, 2, generator=generator)
    landmarks[:, 30] = 0.5
    assert glo(landmarks) == 0


def test_equations_4_and_5_by_hand() -> None:
    landmarks = torch.zeros(4, 68, 2, dtype=torch.float64)
    landmarks[:] = torch.tensor([0.5, 0.4])
    # Beside the nose: x - 0.5 + y - 0.4 is e = 0, 0.1, 0.3, 0.3, so d = 0.1, 0.2, 0.
    landmarks[:, BROW, 0] += torch.tensor([0.0, 0.2, 0.1, 0.5])
    landmarks[:, BROW, 1] += torch.tensor([0.0, -0.1, 0.2, -0.2])
    # Their mean is 0.1: deviations 0, 0.1, -0.1, squares sum to 0.02 over three changes. The other
    # 35 points rest.
    assert exp(landmarks).item() == pytest.approx(0.02 / 3 / 36 * 1000, rel=1e-5)


def test_exp_is_the_mean_over_the_upper_face(generator: torch.Generator) -> None:
    together = still(6)
    together[:, UPPER_FACE] = torch.rand(6, 36, 2, dtype=torch.float64, generator=generator)
    alone = []
    for point in UPPER_FACE:
        landmarks = still(6)
        landmarks[:, point] = together[:, point]
        alone.append(exp(landmarks))
    assert exp(together).item() == pytest.approx(sum(alone).item())


def test_the_upper_face_has_no_point_that_the_lips_move(generator: torch.Generator) -> None:
    """Jaw 3-13 and mouth 48-67 may do what they like."""
    landmarks = still(12)
    lower = [*range(3, 14), *range(48, 68)]
    landmarks[:, lower] = torch.rand(12, len(lower), 2, dtype=torch.float64, generator=generator)
    assert exp(landmarks) == 0
    landmarks[0, 2] += 0.1
    assert exp(landmarks) > 0


def test_a_head_that_moves_as_a_whole_does_not_change_its_expression() -> None:
    landmarks = still(12)
    landmarks += torch.rand(12, 1, 2, dtype=torch.float64)
    assert glo(landmarks) > 1 and exp(landmarks) < 1e-20


def test_a_steady_change_of_expression_has_no_variance() -> None:
    landmarks = still(12)
    landmarks[:, UPPER_FACE, 0] += torch.arange(12)[:, None] * 0.01
    assert exp(landmarks) < 1e-12


def test_clips_are_measured_one_by_one() -> None:
    clips = torch.rand(3, 12, 68, 2, generator=torch.Generator().manual_seed(0))
    for measure, shape in ((glo, (3,)), (exp, (3,)), (mouth_opening, (3, 12)), (mouth_width, (3, 12))):
        assert torch.allclose(measure(clips), torch.stack([measure(clip) for clip in clips]))
        assert measure(clips).shape == shape


def test_both_are_variances_as_numpy_knows_them(generator: torch.Generator) -> None:
    clip = torch.rand(12, 68, 2, dtype=torch.float64, generator=generator).numpy()
    assert glo(torch.from_numpy(clip)).item() == pytest.approx(1000 * clip[:, 30].var(0).sum())
    others = [0, 1, 2, 14, 15, 16, *range(17, 30), *range(31, 48)]
    e = (clip[:, others] - clip[:, [30]]).sum(-1)
    changes = (e[1:] - e[:-1]).var(0).mean()
    assert exp(torch.from_numpy(clip)).item() == pytest.approx(1000 * changes)


def test_the_score_is_log10_with_a_floor() -> None:
    values = log_variance(torch.tensor([0.0, 0.0009, 0.0099, 0.9999, 99.9999]))
    assert values.tolist() == pytest.approx([-4, -3, -2, 0, 2], abs=1e-5)


def a_mouth() -> torch.Tensor:
    """Eye corners 0.4 apart, inner lips 0.1, mouth corners 0.2; one frame."""
    landmarks = still(1)
    landmarks[0, [36, 45], 0] = torch.tensor([0.3, 0.7], dtype=torch.float64)
    landmarks[0, [62, 66], 1] = torch.tensor([0.6, 0.7], dtype=torch.float64)
    landmarks[0, [60, 64], 0] = torch.tensor([0.4, 0.6], dtype=torch.float64)
    return landmarks


def test_the_mouth_by_hand() -> None:
    assert mouth_opening(a_mouth()).tolist() == pytest.approx([0.25])
    assert mouth_width(a_mouth()).tolist() == pytest.approx([0.5])


def test_the_mouth_is_the_same_on_a_smaller_face_that_is_turned_and_elsewhere() -> None:
    turned = a_mouth() - 0.5
    turned = 0.5 * torch.stack([-turned[..., 1], turned[..., 0]], -1) + 0.3
    assert torch.allclose(mouth_opening(turned), mouth_opening(a_mouth()))
    assert torch.allclose(mouth_width(turned), mouth_width(a_mouth()))
