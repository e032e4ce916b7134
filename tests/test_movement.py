"""Glo and Exp (paper appendix B, eq. 3-5) worked by hand on tiny arrays."""

import pytest
import torch

from loopy_model.movement import exp, glo, score


def still(frames: int, points: int = 3) -> torch.Tensor:
    return torch.full((frames, points, 2), 0.5, dtype=torch.float64)


def test_a_still_face_neither_moves_nor_changes() -> None:
    assert glo(still(12)) == 0 and exp(still(12)) == 0


def test_equation_3_by_hand() -> None:
    landmarks = still(4)
    landmarks[:, 0, 0] = torch.tensor([0.1, 0.3, 0.1, 0.3])  # deviations 0.1: squares sum to 0.04
    landmarks[:, 0, 1] = torch.tensor([0.2, 0.2, 0.6, 0.6])  # deviations 0.2: squares sum to 0.16
    assert glo(landmarks).item() == pytest.approx((0.04 + 0.16) / 4 * 1000)


def test_glo_reads_the_nose_alone() -> None:
    landmarks = still(5)
    landmarks[:, 1:] = torch.rand(5, 2, 2, dtype=torch.float64)
    assert glo(landmarks) == 0


def test_equations_4_and_5_by_hand() -> None:
    landmarks = torch.zeros(4, 2, 2, dtype=torch.float64)
    landmarks[:, 0] = torch.tensor([0.5, 0.4])
    # Beside the nose: x - 0.5 + y - 0.4 is e = 0, 0.1, 0.3, 0.3, so d = 0.1, 0.2, 0.
    landmarks[:, 1, 0] = 0.5 + torch.tensor([0.0, 0.2, 0.1, 0.5])
    landmarks[:, 1, 1] = 0.4 + torch.tensor([0.0, -0.1, 0.2, -0.2])
    # Their mean is 0.1: deviations 0, 0.1, -0.1, squares sum to 0.02 over three changes.
    assert exp(landmarks).item() == pytest.approx(0.02 / 3 * 1000, rel=1e-5)


def test_exp_is_the_mean_over_the_points() -> None:
    one = torch.rand(6, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    singles = [exp(one[:, [0, point]]) for point in (1, 2)]
    assert exp(one).item() == pytest.approx((sum(singles) / 2).item())


def test_a_head_that_moves_as_a_whole_does_not_change_its_expression() -> None:
    landmarks = still(12)
    landmarks += torch.rand(12, 1, 2, dtype=torch.float64)
    assert glo(landmarks) > 1 and exp(landmarks) < 1e-20


def test_a_steady_change_of_expression_has_no_variance() -> None:
    landmarks = still(12)
    landmarks[:, 1:, 0] += torch.arange(12)[:, None] * 0.01
    assert exp(landmarks) < 1e-12


def test_clips_are_measured_one_by_one() -> None:
    clips = torch.rand(3, 12, 5, 2, generator=torch.Generator().manual_seed(0))
    for measure in (glo, exp):
        assert torch.allclose(measure(clips), torch.stack([measure(clip) for clip in clips]))
        assert measure(clips).shape == (3,)


def test_both_are_variances_as_numpy_knows_them(generator: torch.Generator) -> None:
    clip = torch.rand(12, 5, 2, dtype=torch.float64, generator=generator).numpy()
    assert glo(torch.from_numpy(clip)).item() == pytest.approx(1000 * clip[:, 0].var(0).sum())
    e = (clip[:, 1:] - clip[:, :1]).sum(-1)
    changes = (e[1:] - e[:-1]).var(0).mean()
    assert exp(torch.from_numpy(clip)).item() == pytest.approx(1000 * changes)


def test_the_score_is_log10_with_a_floor() -> None:
    values = score(torch.tensor([0.0, 0.0009, 0.0099, 0.9999, 99.9999]))
    assert values.tolist() == pytest.approx([-4, -3, -2, 0, 2], abs=1e-5)
