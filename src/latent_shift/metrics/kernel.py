"""KID: an unbiased distance of two sets of features, whatever their size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latent_shift.core.errors import InputError
from latent_shift.core.shapes import check_at_least

Rows = npt.NDArray[np.float64]

_BLOCK_NUMBERS = 16_000_000
"""Of a kernel matrix, at once in memory (128 MB)."""


def kernel_distance(
    real: npt.ArrayLike,
    generated: npt.ArrayLike,
    *,
    subsets: int | None = None,
    subset_size: int = 1000,
    seed: int = 0,
) -> float:
    """The squared maximum mean discrepancy with the kernel (x.y / n + 1)^3, as its unbiased estimate, in float64.

    Source: the KID of arXiv:1801.01401 (Sec. 4; MMD_u^2 of Gretton et al., 2012, Eq. 3). Its expected value does not
    depend on the number of rows, so small sets can be compared; near zero it may be negative.

    Args:
        real: `(rows, n)`.
        generated: `(rows, n)`; another number of rows is fine.
        subsets: None compares all rows at once, which is exact; a number is the mean over so many random subsets,
            which is the habit for large sets.
        subset_size: rows of a subset, drawn from each set without repetition.
        seed: of the subsets.

    Raises:
        InputError: shapes do not fit, a number is not finite, a set has fewer than 2 rows or than a subset.
    """
    a, b = _rows("real", real), _rows("generated", generated)
    if a.shape[1] != b.shape[1]:
        raise InputError("generated", b.shape, f"have {a.shape[1]} columns, as the real set")
    if subsets is None:
        return _unbiased(a, b)
    check_at_least("subsets", subsets, 1)
    check_at_least("subset_size", subset_size, 2)
    for name, rows in (("real", a), ("generated", b)):
        if len(rows) < subset_size:
            raise InputError(name, len(rows), f"have at least subset_size = {subset_size} rows")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        chosen = (rows[rng.choice(len(rows), subset_size, replace=False)] for rows in (a, b))
        values.append(_unbiased(*chosen))
    return float(np.mean(values))


class ClipKernelDistance:
    """`kernel_distance` of two sets of clips with several rows each, over pairs of rows of different clips.

    Rows of one clip are alike, no sample of a set: pairs of them would bias the estimate.
    """

    def __init__(self, real: Rows, generated: Rows, paired: bool = False) -> None:
        """Compares all clips with all.

        Args:
            real: `(clips, rows, n)`.
            generated: `(other clips, other rows, n)`.
            paired: whether clip i of both sets is of one subject. The two are then no independent draws, and are left
                out of the mean over pairs across the sets, which they would bias (Gretton et al., 2012, Lemma 6).

        Raises:
            InputError: paired sets of different sizes, or a number is not finite.
        """
        for name, rows in (("real", real), ("generated", generated)):
            if not np.isfinite(rows).all():
                raise InputError(name, "NaN or infinity", "be finite numbers")
        if paired and len(real) != len(generated):
            raise InputError("generated", len(generated), f"have {len(real)} clips, as the real set it is paired with")
        sets, self._paired = (real, generated), paired
        self._within = [_kernel_sums(rows, rows) / rows.shape[1] ** 2 for rows in sets]
        self._across = _kernel_sums(*sets) / (real.shape[1] * generated.shape[1])

    def __call__(self, real: npt.ArrayLike | None = None, generated: npt.ArrayLike | None = None) -> float:
        """The distance.

        Args:
            real: how often each real clip is in the set, as a bootstrap draws them; once each where None.
            generated: the same of the generated clips; of paired sets it is that of the real ones.
        """
        counts = [
            np.ones(len(means)) if count is None else np.asarray(count, dtype=np.float64)
            for means, count in zip(self._within, (real, real if self._paired else generated), strict=True)
        ]
        within = sum(_mean_over_pairs(means, count) for means, count in zip(self._within, counts, strict=True))
        if self._paired:
            return within - 2 * _mean_over_pairs(self._across, counts[0])
        return float(within - 2 * counts[0] @ self._across @ counts[1] / (counts[0].sum() * counts[1].sum()))


def _mean_over_pairs(kernel: Rows, counts: Rows) -> float:
    """Mean kernel of two clips that are different ones, and not the same drawn twice."""
    same = np.square(counts)
    pairs = float(counts.sum() ** 2 - same.sum())
    return float((counts @ kernel @ counts - same @ np.diagonal(kernel)) / pairs) if pairs else 0.0


def _kernel_sums(a: Rows, b: Rows) -> Rows:
    """Sums of the kernel over all rows of two clips, for each pair of clips.

    Args:
        a: `(clips, rows, n)`.
        b: `(other clips, rows, n)`.

    Returns:
        `(clips, other clips)`.
    """
    flat = b.reshape(-1, b.shape[-1])
    step = max(1, _BLOCK_NUMBERS // (a.shape[1] * len(flat)))
    sums = np.empty((len(a), len(b)))
    for start in range(0, len(a), step):
        part = a[start : start + step]
        values = _kernel(part.reshape(-1, a.shape[-1]), flat)
        sums[start : start + step] = values.reshape(len(part), a.shape[1], len(b), b.shape[1]).sum(axis=(1, 3))
    return sums


def _self_kernel(a: Rows) -> Rows:
    """The kernel of each row with itself."""
    values: Rows = (np.square(a).sum(axis=-1) / a.shape[-1] + 1) ** 3
    return values


def _unbiased(a: Rows, b: Rows) -> float:
    within = [(_total(rows, rows) - _self_kernel(rows).sum()) / (len(rows) * (len(rows) - 1)) for rows in (a, b)]
    return float(within[0] + within[1] - 2 * _total(a, b) / (len(a) * len(b)))


def _total(a: Rows, b: Rows) -> float:
    step = max(1, _BLOCK_NUMBERS // len(b))
    return sum(float(_kernel(a[start : start + step], b).sum()) for start in range(0, len(a), step))


def _kernel(a: Rows, b: Rows) -> Rows:
    values: Rows = a @ b.T
    values /= a.shape[1]
    values += 1
    values *= np.square(values)
    return values


def _rows(name: str, value: npt.ArrayLike) -> Rows:
    rows = np.asarray(value, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2 or not rows.shape[1]:
        raise InputError(name, rows.shape, "have the shape (rows, n), with at least 2 rows")
    if not np.isfinite(rows).all():
        raise InputError(name, "NaN or infinity", "be finite numbers")
    return rows
