from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from latent_shift.core.errors import InputError
from latent_shift.metrics import Moments, frechet_distance, moments_distance

RNG = np.random.default_rng(0)


def rows(count: int, dimension: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    mixing = np.random.default_rng(dimension).normal(size=(dimension, dimension))
    return scale * RNG.normal(size=(count, dimension)) @ mixing + shift


def moments(values: np.ndarray) -> Moments:
    result = Moments(values.shape[1])
    result.update(values)
    return result


def covariance(dimension: int, rank: int | None = None) -> np.ndarray:
    factor = RNG.normal(size=(dimension, rank or dimension))
    return factor @ factor.T


def test_gaussians_with_commuting_covariances_have_a_closed_form() -> None:
    # Of diagonal covariances: sum (mean difference)^2 + (difference of deviations)^2.
    mean_a, mean_b = RNG.normal(size=(2, 6))
    dev_a, dev_b = RNG.uniform(0.1, 3, size=(2, 6))
    turn = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    expected = np.square(mean_a - mean_b).sum() + np.square(dev_a - dev_b).sum()
    cov_a, cov_b = (turn * dev_a**2) @ turn.T, (turn * dev_b**2) @ turn.T
    assert frechet_distance(turn @ mean_a, cov_a, turn @ mean_b, cov_b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance([1.0], [[4.0]], [3.0], [[9.0]]) == pytest.approx(4 + 1)


def test_it_is_scipys_root_of_the_product() -> None:
    a, b, mean_a, mean_b = covariance(30), covariance(30), RNG.normal(size=30), RNG.normal(size=30)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = np.square(mean_a - mean_b).sum() + np.trace(a + b - 2 * root)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(mean_b, b, mean_a, a) == pytest.approx(expected, rel=1e-9)


def test_it_is_torchmetrics_fid_of_the_same_features() -> None:
    class Features(torch.nn.Module):
        num_features = 24

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures

    real, generated = rows(60, 24), rows(50, 24, 1.3, 0.2)
    theirs = FrechetInceptionDistance(feature=Features(), input_img_size=(24,)).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(real), real=True)
    theirs.update(torch.from_numpy(generated), real=False)
    assert moments_distance(moments(real), moments(generated)) == pytest.approx(float(theirs.compute()), rel=1e-9)


def test_equal_sets_are_at_distance_zero_even_where_the_covariance_is_singular() -> None:
    for cov in (covariance(40), covariance(40, rank=3), np.zeros((40, 40))):
        mean = RNG.normal(size=40)
        assert frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-5)


def test_singular_covariances_that_share_no_direction_are_far_apart() -> None:
    # tr(root) is 0 then; scipy's sqrtm fails or warns here.
    a, b = np.diag([1.0, 2.0, 0.0, 0.0]), np.diag([0.0, 0.0, 3.0, 4.0])
    assert frechet_distance(np.zeros(4), a, np.zeros(4), b) == pytest.approx(10)


def test_order_does_not_matter() -> None:
    real, generated = rows(200, 12), rows(150, 12, 1.1)
    there = moments_distance(moments(real), moments(generated))
    shuffled = moments_distance(moments(RNG.permutation(real)), moments(RNG.permutation(generated)))
    assert shuffled == pytest.approx(there, rel=1e-9)
    assert moments_distance(moments(generated), moments(real)) == pytest.approx(there, rel=1e-9)


def test_fewer_rows_than_numbers_are_refused_and_kid_is_named() -> None:
    enough, few = moments(rows(12, 12)), moments(rows(11, 12))
    assert moments_distance(enough, enough) == pytest.approx(0, abs=1e-4)
    with pytest.raises(InputError, match="real must have at least 12 for .* use KID for less, got 11"):
        moments_distance(few, enough)
    with pytest.raises(InputError, match="generated must"):
        moments_distance(enough, few)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean_b": np.zeros(2)}, "mean_b must have the shape"),
        ({"cov_a": np.zeros((3, 2))}, "cov_a must have the shape"),
        ({"cov_b": np.triu(np.ones((3, 3)))}, "cov_b must be symmetric"),
        ({"mean_a": np.full(3, np.nan)}, "mean_a must be finite numbers"),
        ({"cov_b": np.full((3, 3), np.inf)}, "cov_b must be finite numbers"),
    ],
)
def test_what_is_no_gaussian_is_refused(changes: dict[str, np.ndarray], message: str) -> None:
    arguments = {"mean_a": np.zeros(3), "cov_a": np.eye(3), "mean_b": np.zeros(3), "cov_b": np.eye(3), **changes}
    with pytest.raises(InputError, match=message):
        frechet_distance(**arguments)
