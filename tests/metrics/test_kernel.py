from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from latent_shift.core.errors import InputError
from latent_shift.metrics import ClipKernelDistance, kernel, kernel_distance

RNG = np.random.default_rng(2)
REAL, GENERATED = RNG.normal(size=(40, 6)), RNG.normal(size=(31, 6)) + 1


def by_the_formula(a: np.ndarray, b: np.ndarray) -> float:
    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    m, n = len(a), len(b)
    within_a = sum(k(a[i], a[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_b = sum(k(b[i], b[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within_a + within_b - 2 * sum(k(x, y) for x in a for y in b) / (m * n)


def test_it_is_the_stated_formula() -> None:
    assert kernel_distance(REAL, GENERATED) == pytest.approx(by_the_formula(REAL, GENERATED), rel=1e-12)
    assert kernel_distance(GENERATED, REAL) == pytest.approx(by_the_formula(REAL, GENERATED), rel=1e-12)


def test_it_is_torchmetrics_kid_of_the_same_features() -> None:
    class Features(torch.nn.Module):
        num_features = 6

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures

    with pytest.warns(UserWarning, match="buffer"):
        theirs = KernelInceptionDistance(feature=Features(), subsets=1, subset_size=30)
    real, generated = torch.from_numpy(REAL[:30]), torch.from_numpy(GENERATED[:30])
    theirs.update(real, real=True)
    theirs.update(generated, real=False)
    assert kernel_distance(REAL[:30], GENERATED[:30]) == pytest.approx(float(theirs.compute()[0]), rel=1e-6)
    assert kernel_distance(REAL[:30], GENERATED[:30]) == pytest.approx(float(poly_mmd(real, generated)), rel=1e-9)


def test_it_is_unbiased() -> None:
    """Two small sets of one distribution: the mean over many draws is 0."""
    rng = np.random.default_rng(0)
    values = [kernel_distance(rng.normal(size=(8, 4)), rng.normal(size=(5, 4))) for _ in range(2000)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3.5 * error
    assert error < 0.05
    # The size of the sets does not move a distance that is not 0 either.
    means = []
    for count in (5, 40):
        far = [kernel_distance(rng.normal(size=(count, 4)), rng.normal(size=(count, 4)) + 1) for _ in range(1000)]
        means.append((np.mean(far), np.std(far) / np.sqrt(len(far))))
    assert abs(means[0][0] - means[1][0]) < 3.5 * np.hypot(means[0][1], means[1][1])


def test_order_does_not_matter() -> None:
    shuffled = kernel_distance(RNG.permutation(REAL), RNG.permutation(GENERATED))
    assert shuffled == pytest.approx(kernel_distance(REAL, GENERATED), rel=1e-10)


def test_subsets_are_drawn_by_the_seed_and_mean_the_same() -> None:
    def subsets(seed: int, number: int = 20) -> float:
        return kernel_distance(REAL, GENERATED, subsets=number, subset_size=10, seed=seed)

    assert subsets(3) == subsets(3)
    assert subsets(3) != subsets(4)
    assert subsets(3, 2000) == pytest.approx(kernel_distance(REAL, GENERATED), rel=0.1)
    # A subset of everything is everything.
    whole = kernel_distance(REAL[:31], GENERATED, subsets=2, subset_size=31)
    assert whole == pytest.approx(kernel_distance(REAL[:31], GENERATED), rel=1e-10)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = RNG.normal(size=(7, 3, 6))
    whole, distance = kernel_distance(REAL, GENERATED), ClipKernelDistance(clips, clips[:4])()
    monkeypatch.setattr(kernel, "_BLOCK_NUMBERS", 50)
    assert kernel_distance(REAL, GENERATED) == pytest.approx(whole, rel=1e-12)
    assert ClipKernelDistance(clips, clips[:4])() == pytest.approx(distance, rel=1e-12)


def test_the_distance_of_clips_is_over_rows_of_different_ones() -> None:
    real, generated = RNG.normal(size=(4, 3, 6)), RNG.normal(size=(3, 2, 6))

    def mean(a: Any, b: Any, same: bool) -> float:
        pairs = [(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if not (same and i == j)]
        return float(np.mean([[(u @ v / 6 + 1) ** 3 for u in x for v in y] for x, y in pairs]))

    def direct(a: Any, b: Any) -> float:
        return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)

    distance = ClipKernelDistance(real, generated)
    assert distance() == pytest.approx(direct(real, generated))
    # Counts choose clips, and a clip that is drawn twice is no pair with itself.
    assert distance([1, 1, 0, 1], [0, 1, 1]) == pytest.approx(direct(real[[0, 1, 3]], generated[1:]))
    assert distance([2, 2, 0, 2]) == pytest.approx(direct(real[[0, 1, 3]], generated))


def test_clips_that_belong_together_are_no_pair() -> None:
    real, generated = RNG.normal(size=(5, 3, 6)), RNG.normal(size=(5, 2, 6))

    def direct(chosen: list[int]) -> float:
        def mean(a: Any, b: Any) -> float:
            pairs = [(a[i], b[j]) for i in chosen for j in chosen if i != j]
            return float(np.mean([[(u @ v / 6 + 1) ** 3 for u in x for v in y] for x, y in pairs]))

        return mean(real, real) + mean(generated, generated) - 2 * mean(real, generated)

    distance = ClipKernelDistance(real, generated, paired=True)
    assert distance() == pytest.approx(direct([0, 1, 2, 3, 4]))
    assert distance([1, 0, 1, 1, 0]) == pytest.approx(direct([0, 2, 3]))
    assert distance([2, 0, 2, 2, 0]) == pytest.approx(direct([0, 2, 3]))
    # The second set's own counts would make other pairs: they are those of the first.
    assert distance([1, 0, 1, 1, 0], [0, 1, 1, 0, 1]) == distance([1, 0, 1, 1, 0])
    with pytest.raises(InputError, match="generated must have 5 clips, as the real set it is paired with, got 4"):
        ClipKernelDistance(real, generated[:4], paired=True)


def test_sets_of_one_distribution_are_at_distance_zero_though_their_clips_are_alike_in_pairs() -> None:
    rng = np.random.default_rng(1)
    paired, apart = [], []
    for _ in range(200):
        subject = rng.normal(size=(20, 1, 8))
        real, generated = (subject + 0.3 * rng.normal(size=(20, 1, 8)) for _ in range(2))
        paired.append(ClipKernelDistance(real, generated, paired=True)())
        apart.append(ClipKernelDistance(real, generated)())
    error = np.std(paired) / np.sqrt(len(paired))
    assert abs(np.mean(paired)) < 3 * error
    assert np.mean(apart) < -20 * error


@pytest.mark.parametrize(
    ("real", "generated", "options", "message"),
    [
        (REAL[:1], GENERATED, {}, "real must have the shape .* at least 2 rows"),
        (REAL, GENERATED[:, :3], {}, "generated must have 6 columns"),
        (REAL, GENERATED * np.nan, {}, "generated must be finite"),
        (REAL, GENERATED, {"subsets": 0}, "subsets must be at least 1"),
        (REAL, GENERATED, {"subsets": 1, "subset_size": 1}, "subset_size must be at least 2"),
        (REAL, GENERATED, {"subsets": 1, "subset_size": 32}, "generated must have at least subset_size = 32 rows"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    real: np.ndarray, generated: np.ndarray, options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        kernel_distance(real, generated, **options)
