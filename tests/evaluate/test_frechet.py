"""The Fréchet distance against values by hand, pytorch-fid, and where covariances have no inverse."""

import numpy as np
import pytest
from pytorch_fid.fid_score import calculate_frechet_distance

from loopy_model.evaluate.frechet import frechet_distance


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(N, D) whose mean and covariance (N - 1) are exactly these."""
    noise = np.random.default_rng(seed).normal(size=(count, len(mean)))
    noise -= noise.mean(0)
    noise = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise, rowvar=False)).T)
    return noise @ np.linalg.cholesky(covariance).T + mean


def by_pytorch_fid(first: np.ndarray, second: np.ndarray) -> float:
    """What pytorch-fid, the reference in PyTorch, makes of the same features."""
    moments = [part for own in (first, second) for part in (own.mean(0), np.cov(own, rowvar=False))]
    return float(calculate_frechet_distance(*moments))


def test_one_dimension_by_hand() -> None:
    """Means 1 and 3, variances 2 and 8: 4 + (sqrt 8 - sqrt 2)^2 = 4 + 2."""
    assert frechet_distance([[0.0], [2.0]], [[1.0], [5.0]]) == pytest.approx(4 + 2)


def test_diagonal_covariances_by_hand() -> None:
    """|m1 - m2|^2 = 25, standard deviations (1, 2, 3) and (4, 2, 1): 9 + 0 + 4."""
    first = gaussian(np.zeros(3), np.diag([1.0, 4.0, 9.0]), 20, 0)
    second = gaussian(np.array([3.0, 4.0, 0.0]), np.diag([16.0, 4.0, 1.0]), 35, 1)
    assert frechet_distance(first, second) == pytest.approx(25 + 9 + 0 + 4)


def test_commuting_covariances_by_hand() -> None:
    """Turned by one rotation, roots of eigenvalues (1, 3) and (2, 5) are 1 and 2 apart."""
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    covariances = [turn @ np.diag(np.square(roots)) @ turn.T for roots in ([1.0, 3.0], [2.0, 5.0])]
    samples = [gaussian(np.ones(2), covariance, 30, 2) for covariance in covariances]
    assert frechet_distance(*samples) == pytest.approx(1 + 4)


@pytest.mark.parametrize("counts", [(60, 80), (12, 80), (12, 11)])
def test_against_pytorch_fid(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(10, 10))
    first = rng.normal(size=(counts[0], 10)) @ mix
    second = rng.normal(size=(counts[1], 10)) + 0.5
    assert frechet_distance(first, second) == pytest.approx(by_pytorch_fid(first, second), rel=1e-6)


def test_fewer_samples_than_features_by_hand() -> None:
    """Rank one each, along axes 0 and 1 of 100: nothing in common, so the variances add up."""
    first, second = np.zeros((2, 100)), np.zeros((2, 100))
    first[:, 0] = [-1, 1]  # variance 2
    second[:, 1] = [-2, 2]  # variance 8
    assert frechet_distance(first, second) == pytest.approx(10)
    assert frechet_distance(first, 2 * first) == pytest.approx((np.sqrt(8) - np.sqrt(2)) ** 2)


def test_no_distance_to_itself_in_any_order() -> None:
    samples = np.random.default_rng(4).normal(1e3, 1, size=(40, 60)).astype(np.float32)
    assert frechet_distance(samples, samples[::-1]) < 1e-8


@pytest.mark.parametrize(
    "first, second, words",
    [
        (np.ones((1, 3)), np.ones((5, 3)), "at least two samples.*more or longer"),
        (np.ones((5, 3)), np.ones((5, 4)), "3 and 4 wide"),
        (np.full((5, 3), np.nan), np.ones((5, 3)), "NaN"),
    ],
)
def test_what_cannot_be_compared_is_refused(first: np.ndarray, second: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        frechet_distance(first, second)
