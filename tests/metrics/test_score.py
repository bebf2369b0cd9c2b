from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from latent_shift.core.errors import InputError
from latent_shift.metrics import (
    METRICS,
    FeatureInfo,
    ScoreOptions,
    bootstrap_interval,
    clip_similarity,
    inception_score,
    kernel_distance,
    score,
    score_features,
)

INFO = FeatureInfo("some", "clip", 3, "none", "file.pt", "v1", "ab" * 32)
NO_INTERVAL = ScoreOptions(resamples=0)


def draw(seed: int, clips: int, rows: int = 1, dimension: int = 3, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(clips, rows, dimension)) + shift).astype(np.float32)


def test_the_interval_is_as_wide_as_the_mean_is_uncertain() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=400)
    low, high = bootstrap_interval(values.mean(), lambda rng: float(rng.choice(values, 400).mean()), 400)
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * 2 / 20, rel=0.15)
    again = bootstrap_interval(values.mean(), lambda rng: float(rng.choice(values, 400).mean()), 400)
    other = bootstrap_interval(values.mean(), lambda rng: float(rng.choice(values, 400).mean()), 400, seed=1)
    assert again == (low, high) != other
    with pytest.raises(InputError, match="resamples must be at least 2"):
        bootstrap_interval(0.0, lambda rng: 0.0, 1)


@pytest.mark.parametrize("metric", ["fvd", "kvd"])
def test_intervals_cover_what_fresh_sets_give(metric: str) -> None:
    """The spread over resamples is, within a factor, the spread over sets drawn anew."""
    fresh, reaches = [], []
    for seed in range(25):
        real, generated = draw(2 * seed, 150), draw(2 * seed + 1, 150, shift=1.0)
        result = score_features(metric, INFO, generated, real, options=ScoreOptions(resamples=20))
        assert result.interval is not None
        fresh.append(result.value)
        reaches.append((result.interval[1] - result.interval[0]) / 2 / 1.96)
    assert np.mean(reaches) == pytest.approx(np.std(fresh), rel=0.4)


def test_the_interval_of_sets_that_hardly_differ_is_rather_too_wide() -> None:
    """There the kernel distance's own spread falls faster than that of its resamples."""
    fresh, reaches = [], []
    for seed in range(40):
        result = score_features("kid", INFO, draw(2 * seed, 100), draw(2 * seed + 1, 100))
        assert result.interval is not None
        fresh.append(result.value)
        reaches.append((result.interval[1] - result.interval[0]) / 2 / 1.96)
    assert 1.2 < np.mean(reaches) / np.std(fresh) < 2.2


def test_resamples_are_told() -> None:
    told: list[tuple[int, int]] = []
    options = ScoreOptions(resamples=3)
    score_features("flicker", INFO, draw(0, 4), options=options, progress=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_frechet_distance_says_how_many_clips_a_dimension_has() -> None:
    result = score_features("fvd", INFO, draw(0, 4), draw(1, 9), options=NO_INTERVAL)
    assert result.protocol["clips_per_dimension"] == {"real": 3, "generated": 1.33}


@pytest.mark.parametrize("metric", ["fvd", "kvd"])
def test_features_that_are_no_numbers_are_refused(metric: str) -> None:
    rows = draw(0, 9)
    rows[3, 0, 1] = np.nan
    with pytest.raises(InputError, match="must be finite numbers, got 'NaN or infinity'"):
        score_features(metric, INFO, rows, draw(1, 9))


def test_the_kernel_distance_is_over_pairs_of_different_clips() -> None:
    real, generated = draw(0, 9), draw(1, 7, shift=0.5)
    expected = kernel_distance(real[:, 0], generated[:, 0])
    one_row = score_features("kid", INFO, generated, real, options=NO_INTERVAL)
    assert one_row.value == pytest.approx(expected, rel=1e-9)
    assert one_row.interval is None
    # Clips of frames that are all the same say no more than one of their frames.
    still = score_features("kid", INFO, generated.repeat(4, axis=1), real.repeat(4, axis=1), options=NO_INTERVAL)
    assert still.value == pytest.approx(expected, rel=1e-9)
    assert still.protocol["rows_per_clip"] == 4
    # Written out, for clips of different frames.
    real, generated = draw(0, 5, rows=4), draw(1, 6, rows=4, shift=0.5)

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        pairs = [
            (x.astype(np.float64) @ y / 3 + 1) ** 3
            for i, one in enumerate(a)
            for j, other in enumerate(b)
            if not (same and i == j)
            for x in one
            for y in other
        ]
        return float(np.mean(pairs))

    value = score_features("kid", INFO, generated, real, options=NO_INTERVAL).value
    expected = mean(real, real, True) + mean(generated, generated, True) - 2 * mean(real, generated, False)
    assert value == pytest.approx(expected, rel=1e-6)


def test_sets_of_alike_frames_from_one_source_are_near_zero() -> None:
    """Unbiased, though a clip's frames are nearly the same; with pairs within a clip it would be far above."""
    values = []
    for seed in range(40):
        sets = [draw(2 * seed + k, 20) + 0.05 * draw(1000 + 2 * seed + k, 20, rows=8) for k in range(2)]
        values.append(score_features("kid", INFO, *sets, options=NO_INTERVAL).value)
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_a_large_set_gives_some_of_its_clips_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = draw(0, 60, shift=1.0), draw(1, 9)
    whole = score_features("kid", INFO, generated, real, options=NO_INTERVAL)
    monkeypatch.setattr(score, "_KERNEL_ROWS", 20)
    part = score_features("kid", INFO, generated, real, options=NO_INTERVAL)
    assert whole.protocol["compared_clips"] == [60, 9]
    assert part.protocol["compared_clips"] == [20, 9]
    assert part.protocol_hash != whole.protocol_hash
    assert part.value != whole.value
    assert part == score_features("kid", INFO, generated, real, options=NO_INTERVAL)


def test_distances_of_a_set_from_itself_and_in_any_order() -> None:
    rows = draw(0, 40, rows=2)
    shuffled = rows[np.random.default_rng(1).permutation(40)]
    assert score_features("fid", INFO, rows, shuffled, options=NO_INTERVAL).value == pytest.approx(0, abs=1e-6)
    other = draw(3, 40, rows=2)
    for metric in ("fid", "kid"):
        one = score_features(metric, INFO, rows, other, options=NO_INTERVAL).value
        assert score_features(metric, INFO, shuffled, other, options=NO_INTERVAL).value == pytest.approx(one, rel=1e-6)


def test_scores_of_one_set_are_given_for_the_real_one_too() -> None:
    probabilities = np.abs(draw(0, 30)) + 0.1
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    result = score_features("is", INFO, probabilities[:20], probabilities[20:], options=ScoreOptions(2, 5, 7))
    assert result.value == inception_score(probabilities[:20, 0], 2, seed=7).mean
    assert result.real_value == inception_score(probabilities[20:, 0], 2, seed=7).mean
    assert result.protocol["splits"] == 2
    numbers = np.array([[[1.0, 2.0, 1.0]], [[3.0, 6.0, 0.0]]], np.float32)
    for metric, expected in {"frame-difference": 2.0, "flicker": 4.0, "loop-seam": 0.5}.items():
        alone = score_features(metric, INFO, numbers, options=NO_INTERVAL)
        assert (alone.value, alone.real_value) == (expected, None)


def test_clipsim_is_over_all_frames() -> None:
    images, texts = draw(0, 5, rows=4), draw(1, 5)[:, 0]
    result = score_features("clipsim", INFO, images, texts=texts)
    assert result.value == clip_similarity(images, texts)
    assert result.interval is not None


def test_a_result_says_how_it_was_made() -> None:
    result = score_features("kvd", INFO, draw(0, 8), draw(1, 9), options=ScoreOptions(resamples=5, seed=3))
    text = str(result)
    for fact in ("generated_clips=8", "real_clips=9", "resamples=5", "seed=3", "file.pt", "v1", "abababababab"):
        assert fact in text
    assert result.protocol_hash in text
    facts: dict[str, Any] = json.loads(json.dumps(result.to_json()))
    assert facts["protocol"]["features"]["sha256"] == "ab" * 32
    assert facts["value"] == result.value
    assert facts["interval_95"] == list(result.interval or ())
    same = score_features("kvd", INFO, draw(5, 8), draw(6, 9), options=ScoreOptions(resamples=5, seed=3))
    assert same.protocol_hash == result.protocol_hash  # other clips, made the same way
    fewer = score_features("kvd", INFO, draw(0, 7), draw(1, 9), options=ScoreOptions(resamples=5, seed=3))
    assert fewer.protocol_hash != result.protocol_hash


@pytest.mark.parametrize(
    ("metric", "clips", "real", "message"),
    [
        ("fdi", 3, None, "metric must be one of fid, .*, got 'fdi'"),
        ("fid", 3, None, "real must be given for the metric fid"),
        ("kvd", 3, None, "real must be given for the metric kvd"),
        ("fvd", 2, 5, "generated must have at least 3 for .* use KID for less"),
        ("fid", 5, 2, "real must have at least 3 for .* use KID for less"),
        ("kid", 1, 5, "generated must have at least 2 clips"),
        ("clipsim", 3, None, "texts must be given"),
        ("flicker", 0, None, "generated must have at least 1 clip"),
    ],
)
def test_what_cannot_be_scored_is_refused(metric: str, clips: int, real: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score_features(metric, INFO, draw(0, clips), None if real is None else draw(1, real))


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="resamples must be at least 2, got 1"):
        ScoreOptions(resamples=1)
    with pytest.raises(InputError, match="splits must be at least 1"):
        ScoreOptions(splits=0)


def test_every_metric_names_features_that_there_are() -> None:
    from latent_shift.metrics import EXTRACTORS

    assert {metric.features for metric in METRICS.values()} == set(EXTRACTORS)


def test_resamples_of_another_seed_are_others() -> None:
    drawn: list[int] = []

    def draw_one(rng: np.random.Generator) -> float:
        drawn.append(int(rng.integers(2**60)))
        return 0.0

    for seed in (0, 1):
        bootstrap_interval(0.0, draw_one, 10, seed)
    assert len(set(drawn)) == len(drawn) == 20


def test_the_deviation_is_that_of_a_sample() -> None:
    values, half = iter((1.0, 3.0)), 1.959964 * 2**0.5
    assert bootstrap_interval(2.0, lambda _: next(values), 2) == pytest.approx((2 - half, 2 + half))


def test_the_seed_decides_which_clips_of_a_large_set_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = (np.random.default_rng(k).normal(size=(60, 1, 3)).astype(np.float32) for k in range(2))
    monkeypatch.setattr(score, "_KERNEL_ROWS", 20)
    values = [
        score_features("kid", INFO, generated, real, options=ScoreOptions(resamples=0, seed=seed)).value
        for seed in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("metric", ["flicker", "clipsim", "is"])
def test_the_interval_of_a_set_alone_is_of_its_clips(metric: str) -> None:
    """The statistic of clips that are drawn again and again, as numbers: the interval is that of NumPy's resamples."""
    rows = np.abs(draw(0, 60)) + 0.1
    if metric == "is":
        rows /= rows.sum(axis=2, keepdims=True)
    texts = draw(1, 60)[:, 0] if metric == "clipsim" else None

    def score_of(chosen: np.ndarray) -> float:
        if metric == "is":
            return inception_score(rows[chosen, 0]).mean
        if texts is not None:
            return clip_similarity(rows[chosen], texts[chosen])
        return float(rows[chosen, 0, METRICS[metric].column].mean())

    generator = np.random.default_rng(5)
    spread = np.std([score_of(generator.integers(0, 60, 60)) for _ in range(1000)])
    result = score_features(metric, INFO, rows, texts=texts, options=ScoreOptions(resamples=400))
    assert result.interval is not None
    assert (result.interval[1] - result.interval[0]) / 2 / 1.96 == pytest.approx(spread, rel=0.15)


def test_rows_are_summed_in_parts_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = draw(0, 9, rows=3), draw(1, 8, rows=3, shift=0.5)
    whole = score_features("fid", INFO, generated, real, options=NO_INTERVAL).value
    monkeypatch.setattr(score, "_MOMENT_ROWS", 4)
    assert score_features("fid", INFO, generated, real, options=NO_INTERVAL).value == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize(("rows", "compared"), [(1, 20), (4, 5), (30, 2)])
def test_the_kernels_rows_are_counted_and_not_its_clips(
    monkeypatch: pytest.MonkeyPatch, rows: int, compared: int
) -> None:
    monkeypatch.setattr(score, "_KERNEL_ROWS", 20)
    result = score_features("kid", INFO, draw(0, 25, rows=rows), draw(1, 26, rows=rows), options=NO_INTERVAL)
    assert result.protocol["compared_clips"] == [compared, compared]


def test_another_metric_of_the_same_clips_is_another_protocol() -> None:
    results = [score_features(metric, INFO, draw(0, 8), draw(1, 9)) for metric in ("kid", "kvd")]
    assert results[0].protocol == results[1].protocol
    assert results[0].protocol_hash != results[1].protocol_hash
