from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.inception import InceptionScore as TheirInceptionScore

from latent_shift.core.errors import InputError
from latent_shift.metrics import clip_similarity, inception_score

RNG = np.random.default_rng(3)


def softmax(rows: np.ndarray) -> np.ndarray:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_known_classifiers_have_known_scores() -> None:
    sure = np.eye(7)[np.arange(70) % 7]
    assert inception_score(sure).mean == pytest.approx(7)  # every class, and sure of it
    assert inception_score(np.full((70, 7), 1 / 7)).mean == pytest.approx(1)  # never sure
    assert inception_score(np.eye(7)[np.zeros(70, int)]).mean == pytest.approx(1)  # one class only
    # Right with p, otherwise evenly wrong: log k - H(p).
    p, k = 0.9, 5
    rows = np.full((50, k), (1 - p) / (k - 1))
    rows[np.arange(50), np.arange(50) % k] = p
    entropy = -(p * np.log(p) + (1 - p) * np.log((1 - p) / (k - 1)))
    assert inception_score(rows).mean == pytest.approx(k / np.exp(entropy))


def test_it_is_torchmetrics_score_of_the_same_logits() -> None:
    class Logits(torch.nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures

    logits = RNG.normal(size=(60, 11)) * 2
    with pytest.warns(UserWarning, match="buffer"):
        theirs = TheirInceptionScore(feature=Logits(), splits=1)
    theirs.update(torch.from_numpy(logits))
    with pytest.warns(UserWarning, match="degrees of freedom"):
        expected = float(theirs.compute()[0])
    assert inception_score(softmax(logits)).mean == pytest.approx(expected, rel=1e-6)


def test_splits_are_scored_alone() -> None:
    rows = softmax(RNG.normal(size=(20, 4)) * 3)
    halves = [inception_score(part).mean for part in (rows[:10], rows[10:])]
    score = inception_score(rows, splits=2)
    assert score.mean == pytest.approx(np.mean(halves))
    assert score.std == pytest.approx(np.std(halves))
    # A split of n rows cannot score more than n.
    assert inception_score(np.eye(20), splits=10).mean == pytest.approx(2)
    assert inception_score(rows).std == 0


def test_order_matters_only_for_splits_and_the_seed_decides_it() -> None:
    rows = softmax(RNG.normal(size=(30, 4)) * 3)
    shuffled = RNG.permutation(rows)
    assert inception_score(shuffled).mean == pytest.approx(inception_score(rows).mean, rel=1e-12)
    by_seed = [inception_score(rows, splits=3, seed=seed).mean for seed in (0, 0, 1)]
    assert by_seed[0] == by_seed[1] != by_seed[2]


def test_clipsim_is_the_mean_cosine() -> None:
    images = np.array([[[2.0, 0.0], [0.0, 5.0]], [[1.0, 1.0], [-1.0, -1.0]]])
    texts = np.array([[3.0, 0.0], [0.0, 1.0]])
    # Frames: 1 and 0; cos 45 and -cos 45. Neither scaled nor clipped at 0.
    assert clip_similarity(images, texts) == pytest.approx(0.25)
    assert clip_similarity(images[1:, 1:], texts[1:]) == pytest.approx(-np.sqrt(0.5))


@pytest.mark.parametrize(
    ("rows", "splits", "message"),
    [
        (np.zeros((0, 3)), 1, "probabilities must have the shape"),
        (np.ones((4, 3)), 1, "probabilities must be at least 0 and sum to 1"),
        (np.array([[1.5, -0.5]]), 1, "probabilities must be at least 0"),
        (np.array([[np.nan, 1.0]]), 1, "probabilities must be at least 0"),
        (np.eye(3), 4, "splits must be at most the number of rows, 3"),
        (np.eye(3), 0, "splits must be at least 1"),
    ],
)
def test_no_probabilities_are_refused(rows: np.ndarray, splits: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        inception_score(rows, splits)


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 3)), "image_features must have the shape"),
        (np.ones((2, 1, 3)), np.ones((1, 3)), r"text_features must have the shape \(2, 3\)"),
        (np.zeros((2, 1, 3)), np.ones((2, 3)), "features must be finite and not zero"),
        (np.ones((2, 1, 3)), np.full((2, 3), np.nan), "features must be finite and not zero"),
    ],
)
def test_features_without_direction_are_refused(images: np.ndarray, texts: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        clip_similarity(images, texts)
