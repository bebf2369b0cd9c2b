"""Scores of one set alone: the Inception Score from probabilities, CLIPSIM from features."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from latent_shift.core.errors import InputError
from latent_shift.core.shapes import check_at_least


class InceptionScore(NamedTuple):
    """Mean and standard deviation over splits; the deviation of one split is 0."""

    mean: float
    std: float


def inception_score(probabilities: npt.ArrayLike, splits: int = 1, seed: int | None = None) -> InceptionScore:
    """The exponential of the mean KL divergence of each row from the mean row: from 1 to the number of classes.

    Source: arXiv:1606.03498, Sec. 4. With several splits each is scored alone, against its own mean row; a split of n
    rows cannot score more than n, so the score depends on `splits` and on the number of rows: say both.

    Args:
        probabilities: `(rows, classes)`, of a classifier; rows sum to 1.
        splits: parts of equal size but for one row.
        seed: shuffles the rows before they are split; None keeps their order.

    Raises:
        InputError: the rows are no probabilities, or there are fewer than splits.
    """
    rows = np.asarray(probabilities, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError("probabilities", rows.shape, "have the shape (rows, classes)")
    if not (rows >= 0).all() or not np.allclose(rows.sum(axis=1), 1, atol=1e-4):
        raise InputError("probabilities", "other numbers", "be at least 0 and sum to 1 in each row")
    check_at_least("splits", splits, 1)
    if len(rows) < splits:
        raise InputError("splits", splits, f"be at most the number of rows, {len(rows)}")
    if seed is not None:
        rows = np.random.default_rng(seed).permutation(rows)
    scores = [_exp_information(part) for part in np.array_split(rows, splits)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def clip_similarity(image_features: npt.ArrayLike, text_features: npt.ArrayLike) -> float:
    """CLIPSIM: the mean over clips of the mean over frames of cos(frame, sentence); raw, neither scaled nor clipped.

    Source: GODIVA, arXiv:2104.14806, Sec. 4.1. With CLIP ViT-B/32, papers report 0.25 to 0.31.

    Args:
        image_features: `(clips, frames, n)`, CLIP's projected features of frames, of any length.
        text_features: `(clips, n)`, of each clip's sentence.

    Raises:
        InputError: shapes do not fit, there are no rows, or one has no length.
    """
    return float(clip_similarities(image_features, text_features).mean())


def clip_similarities(image_features: npt.ArrayLike, text_features: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """`clip_similarity` of each clip, `(clips,)`, in [-1, 1]; arguments and errors are those."""
    images, texts = np.asarray(image_features), np.asarray(text_features, dtype=np.float64)
    if images.ndim != 3 or 0 in images.shape:
        raise InputError("image_features", images.shape, "have the shape (clips, frames, n)")
    if texts.shape != (images.shape[0], images.shape[2]):
        raise InputError("text_features", texts.shape, f"have the shape {(images.shape[0], images.shape[2])}")
    similarities = np.empty(len(images))
    for index, (frames, text) in enumerate(zip(images, texts, strict=True)):  # of all in float64 there may be gigabytes
        rows = frames.astype(np.float64)
        lengths = np.linalg.norm(rows, axis=-1) * np.linalg.norm(text)
        if not ((lengths > 0).all() and np.isfinite(lengths).all()):
            raise InputError("features", "a row without direction", "be finite and not zero")
        similarities[index] = (rows @ text / lengths).mean()
    return similarities


def _exp_information(rows: npt.NDArray[np.float64]) -> float:
    mean = rows.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(rows > 0, rows * (np.log(rows) - np.log(mean)), 0.0)
    return float(np.exp(terms.sum(axis=1).mean()))
