"""Mean and covariance of features that never have to be in memory together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from latent_shift.core.errors import InputError
from latent_shift.core.shapes import check_at_least

Matrix = npt.NDArray[np.float64]


@dataclass
class Moments:
    """Mean and covariance in float64, of batch after batch; those of several processes can be merged.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979), which does not lose digits where the
    mean is large beside the spread.

    Attributes:
        dimension: of a row.
        count: rows so far.
        mean: `(dimension,)`.
        scatter: `(dimension, dimension)`: the sum of outer products of the rows' distances from their mean.
    """

    dimension: int
    count: int = 0
    mean: Matrix = field(init=False)
    scatter: Matrix = field(init=False)

    def __post_init__(self) -> None:
        """Starts with no row."""
        check_at_least("dimension", self.dimension, 1)
        self.mean = np.zeros(self.dimension)
        self.scatter = np.zeros((self.dimension, self.dimension))

    def update(self, rows: npt.ArrayLike) -> None:
        """Takes in `(rows, dimension)`, real numbers; of no rows nothing changes.

        Raises:
            InputError: the shape is another, or a number is not finite. Nothing was taken in then.
        """
        values = np.asarray(rows, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != self.dimension:
            raise InputError("rows", values.shape, f"have the shape (rows, {self.dimension})")
        if not np.isfinite(values).all():
            raise InputError("rows", "NaN or infinity", "be finite numbers")
        if len(values):
            mean = values.mean(axis=0)
            centred = values - mean
            self._merge(len(values), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Takes in all rows that `other` took in.

        Raises:
            InputError: its dimension is another.
        """
        if other.dimension != self.dimension:
            raise InputError("other", other.dimension, f"have the dimension {self.dimension}")
        if other.count:
            self._merge(other.count, other.mean, other.scatter)

    @property
    def covariance(self) -> Matrix:
        """Unbiased, `(dimension, dimension)`: divided by `count - 1`.

        Raises:
            InputError: there are fewer than two rows.
        """
        if self.count < 2:
            raise InputError("count", self.count, "be at least 2 for a covariance")
        covariance: Matrix = self.scatter / (self.count - 1)
        return covariance

    def state(self) -> dict[str, Any]:
        """`count`, `mean` and `scatter`, to be kept in a file (`np.savez`) or sent to another process."""
        return {"count": self.count, "mean": self.mean.copy(), "scatter": self.scatter.copy()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Moments:
        """The reverse of `state`.

        Raises:
            InputError: the shapes do not fit.
        """
        mean, scatter = (np.array(state[name], dtype=np.float64) for name in ("mean", "scatter"))
        if mean.ndim != 1 or scatter.shape != (len(mean), len(mean)):
            raise InputError("state", (mean.shape, scatter.shape), "have a mean (n,) and a scatter (n, n)")
        moments = cls(len(mean), int(state["count"]))
        moments.mean, moments.scatter = mean, scatter
        return moments

    def _merge(self, count: int, mean: Matrix, scatter: Matrix) -> None:
        total, step = self.count + count, mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(step, step) * (self.count * count / total)
        self.mean += step * (count / total)
        self.count = total
