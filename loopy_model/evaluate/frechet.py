"""Fréchet distance of two sets of features: the arithmetic of FID, FVD and E-FID."""

import numpy as np


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the Gaussians through (N, D) and (M, D) features
    (Heusel et al. 2017, eq. 6; Unterthiner et al. 2019, eq. 2), covariances with N - 1.

    In float64 and without a matrix root: with C = A^T A the trace of the root is the sum of the singular
    values of A1 A2^T, which is exact where C1 C2 is singular too (fewer samples than D, the usual case
    here). Raises ValueError for fewer than two samples, unlike widths or values that are not finite.
    """
    first, second = _checked(first), _checked(second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"the features are {first.shape[1]} and {second.shape[1]} wide; take both from one network."
        )
    between = np.square(first.mean(0) - second.mean(0)).sum()
    a, b = _factor(first), _factor(second)
    root = np.linalg.norm(a @ b.T, ord="nuc")
    distance = between + np.square(a).sum() + np.square(b).sum() - 2 * root
    return float(max(distance, 0.0))  # rounding


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"a Fréchet distance needs at least two samples, features of shape {features.shape} were given; "
            "take more or longer videos."
        )
    if not np.isfinite(features).all():
        raise ValueError("the features hold NaN or infinite values; check the network that made them.")
    return features


def _factor(features: np.ndarray) -> np.ndarray:
    """A with A^T A = covariance, of at most D rows."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return centred if len(centred) <= centred.shape[1] else np.linalg.qr(centred, mode="r")
