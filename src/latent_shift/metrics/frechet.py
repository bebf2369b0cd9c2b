"""The distance of two Gaussians: what FID and FVD are, once features have been taken."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latent_shift.core.errors import InputError

from .moments import Matrix, Moments


def frechet_distance(mean_a: npt.ArrayLike, cov_a: npt.ArrayLike, mean_b: npt.ArrayLike, cov_b: npt.ArrayLike) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), in float64.

    Source: Dowson and Landau (1982); as the FID in arXiv:1706.08500, Eq. 6. The trace of the root is the sum of the
    roots of the eigenvalues of the symmetric S cov_b S with S = cov_a^(1/2), which has those of cov_a cov_b. So nothing
    becomes complex or fails where a covariance is singular, as a Schur method (scipy's `sqrtm`) can.

    Args:
        mean_a: `(n,)`.
        cov_a: `(n, n)`, symmetric and positive semidefinite but for rounding.
        mean_b: `(n,)`.
        cov_b: `(n, n)`.

    Returns:
        At least 0; the square of a distance.

    Raises:
        InputError: shapes do not fit, a number is not finite, or a covariance is not symmetric.
    """
    means = _finite("mean_a", mean_a), _finite("mean_b", mean_b)
    covs = _finite("cov_a", cov_a), _finite("cov_b", cov_b)
    size = means[0].size
    for name, mean, cov in zip("ab", means, covs, strict=True):
        if mean.shape != (size,):
            raise InputError(f"mean_{name}", mean.shape, f"have the shape ({size},)")
        if cov.shape != (size, size):
            raise InputError(f"cov_{name}", cov.shape, f"have the shape ({size}, {size})")
        if not np.allclose(cov, cov.T, rtol=1e-6, atol=1e-9 * max(1.0, float(np.abs(cov).max()))):
            raise InputError(f"cov_{name}", "a matrix that is not", "be symmetric")
    root = _root(covs[0])
    product = root @ covs[1] @ root
    roots = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0, None))
    step = means[0] - means[1]
    distance = step @ step + np.trace(covs[0]) + np.trace(covs[1]) - 2 * roots.sum()
    return max(0.0, float(distance))


def moments_distance(real: Moments, generated: Moments) -> float:
    """`frechet_distance` of two sets of features.

    Raises:
        InputError: a set has fewer rows than a row has numbers: its covariance then says more about the number of rows
            than about the set.
    """
    for name, moments in (("real", real), ("generated", generated)):
        check_enough(name, moments.count, moments.dimension)
    return frechet_distance(real.mean, real.covariance, generated.mean, generated.covariance)


def check_enough(name: str, count: int, dimension: int) -> None:
    """Raises `InputError` where a Frechet distance has fewer samples than the features' dimension, and names KID."""
    if count < dimension:
        expected = f"have at least {dimension} for a Frechet distance, the dimension of the features; use KID for less"
        raise InputError(name, count, expected)


def _root(cov: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    root: Matrix = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


def _finite(name: str, value: npt.ArrayLike) -> Matrix:
    array = np.asarray(value, dtype=np.float64)
    if not np.isfinite(array).all():
        raise InputError(name, "NaN or infinity", "be finite numbers")
    return array
