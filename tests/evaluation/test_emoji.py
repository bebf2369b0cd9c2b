from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_shift.core.errors import InputError
from latent_shift.data.heldout import load_heldout, stage_records
from latent_shift.data.records import CaptionedVideoFolder
from latent_shift.evaluation import EvaluationOptions, evaluate_emoji, samples
from latent_shift.evaluation import emoji as protocol
from latent_shift.evaluation.judge import EmojiJudge
from latent_shift.evaluation.subjects import SETS, emoji_subjects

OPTIONS = EvaluationOptions(steps=2, loop=True)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def result(road: Path, emoji_data: Path, output: Path) -> dict[str, Any]:
    return evaluate_emoji(
        str(road / "video/model"), emoji_data, output, OPTIONS, str(road / "image/model"), device="cpu", dtype="fp32"
    )


ROWS = {"model": (4, "zero"), "loop": (4, "circular"), "shift_off": (4, None), "base": (1, None)}


def clips_of(output: Path, row: str) -> dict[str, bytes]:
    """The clips with that row's number of frames and boundary."""
    for settings in output.glob("clips-*/settings.json"):
        facts = json.loads(settings.read_text())
        if (facts["frames"], facts["boundary"]) == ROWS[row]:
            files = sorted(settings.parent.glob("*/*.webp"))
            return {str(path.relative_to(output)): path.read_bytes() for path in files}
    return {}


def test_who_is_asked_for(emoji_data: Path) -> None:
    folder = CaptionedVideoFolder(emoji_data)
    subjects = emoji_subjects(folder, labels=5)
    assert tuple(subjects) == SETS
    heldout = load_heldout()
    seen = {record.index for record in stage_records(folder, "video")}
    training = subjects["training"]
    assert len(training) == 5
    assert {subject.record for subject in training} <= seen
    assert all(subject.tone is None and subject.prompt == subject.label for subject in training)
    assert not {subject.record for name in ("heldout", "pairs") for subject in subjects[name]} & seen
    assert [folder[subject.record].metadata["family"] in heldout.families for subject in subjects["heldout"]] == [True]
    (pair,) = subjects["pairs"]
    assert (pair.label, pair.tone) in heldout.pairs
    assert pair.prompt == f"{pair.label}, {pair.tone} skin tone"
    for subject in subjects["paraphrase"]:
        assert subject.prompt == heldout.paraphrases[subject.label]
        assert subject.prompt not in folder[subject.record].captions


def test_labels_are_spread_over_the_groups(emoji_data: Path) -> None:
    # Two of the five labels are people: with three places, each group of one comes before the second person.
    folder = CaptionedVideoFolder(emoji_data)
    groups = [folder[subject.record].metadata["group"] for subject in emoji_subjects(folder, labels=4)["training"]]
    assert groups.count("people-body") == 1
    assert len(set(groups)) == 4


def test_seeds_depend_on_the_subject_alone(emoji_data: Path) -> None:
    folder = CaptionedVideoFolder(emoji_data)
    few, all_of_them = emoji_subjects(folder, labels=2)["training"], emoji_subjects(folder, labels=5)["training"]
    assert all_of_them[:2] == few
    assert len({subject.seed for subject in all_of_them}) == 5
    assert emoji_subjects(folder, labels=2, seed=1)["training"][0].seed != few[0].seed


def test_every_set_is_scored_beside_its_ceiling_and_floors(result: dict[str, Any]) -> None:
    for name in SETS:
        scores = result[name]
        assert set(scores) == {"clips", "match", "motion", "seam", "loop", "ceiling", "floor"}
        assert set(scores["floor"]) == {"base", "shift_off"}
        assert 0 <= scores["match"]["top1"] <= scores["match"]["top5"] <= 1
        # A frozen picture has no motion, and real clips through an autoencoder have it.
        assert scores["floor"]["base"]["motion"] == {"r2": 0, "ratio": 0}
        assert scores["ceiling"]["seam"] == 0  # the squares jump back
        assert ("tone" in scores["match"]) == (name == "pairs")
    assert result["settings"]["heldout"] == "emoji-v1"
    assert result["settings"]["steps"] == 2
    assert json.loads(json.dumps(result)) == result


def test_real_clips_match_themselves(
    road: Path, emoji_data: Path, output: Path, monkeypatch: pytest.MonkeyPatch, result: dict[str, Any]
) -> None:
    """With an autoencoder that changes nothing the ceiling is perfect."""
    monkeypatch.setattr(protocol, "reconstruct", lambda _pipeline, frames: frames)
    scores = evaluate_emoji(
        str(road / "video/model"),
        emoji_data,
        output,
        EvaluationOptions(steps=2, floors=False),
        device="cpu",
        dtype="fp32",
    )
    for name in SETS:
        ceiling = scores[name]["ceiling"]
        assert ceiling["match"] == {key: 1.0 for key in ceiling["match"]}
        assert ceiling["motion"] == {"r2": 1.0, "ratio": 1.0}
        assert scores[name]["match"] == result[name]["match"]
        assert scores[name]["floor"] == {}
    assert scores["autoencoder"]["psnr_db"] > 90


def test_a_second_run_makes_only_what_is_missing(
    road: Path, emoji_data: Path, output: Path, monkeypatch: pytest.MonkeyPatch, result: dict[str, Any]
) -> None:
    before = clips_of(output, "model")
    lost = sorted(before)[1]
    (output / lost).unlink()
    made: list[str] = []
    make = samples.SampleStore._make

    def counted(store: Any, subjects: Any) -> Any:
        made.extend(subject.prompt for subject in subjects)
        return make(store, subjects)

    monkeypatch.setattr(samples.SampleStore, "_make", counted)
    arguments: Any = (emoji_data, output, OPTIONS, str(road / "image/model"), "cpu", "fp32")
    again = evaluate_emoji(str(road / "video/model"), *arguments)
    assert len(made) == 1
    assert clips_of(output, "model") == before
    for name in SETS:
        assert again[name] == result[name]


def test_rows_differ_in_what_they_are(output: Path, result: dict[str, Any]) -> None:
    rows = {row: list(clips_of(output, row).values()) for row in ("model", "loop", "shift_off", "base")}
    assert len({len(clips) for clips in rows.values()}) == 1
    for first, second in zip(rows["model"], rows["shift_off"], strict=True):
        assert first != second
    for first, second in zip(rows["model"], rows["loop"], strict=True):
        assert first != second


def test_the_limit_is_kept_and_said(road: Path, emoji_data: Path, tmp_path: Path) -> None:
    options = EvaluationOptions(steps=1, noise_correlation=0.9, limit=1, sets=("training",), floors=False, batch_size=2)
    scores = evaluate_emoji(str(road / "video/model"), emoji_data, tmp_path, options, device="cpu", dtype="fp32")
    assert scores["training"]["clips"] == 1
    assert scores["settings"]["limit"] == 1
    assert not set(scores) & {"heldout", "pairs", "paraphrase"}


def test_real_features_are_not_taken_for_another_folders(emoji_data: Path, tmp_path: Path, output: Path) -> None:
    folder = CaptionedVideoFolder(emoji_data)
    first = EmojiJudge(folder, tmp_path, torch.device("cpu")).reference
    assert first.features.shape == (7, 1280)
    np.testing.assert_allclose(np.linalg.norm(first.features, axis=1), 1, rtol=1e-5)
    (kept,) = tmp_path.glob("real-*.npy")
    stamp = kept.stat().st_mtime_ns
    EmojiJudge(folder, tmp_path, torch.device("cpu"))
    assert kept.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"limit": 0}, "limit"),
        ({"sets": ("test",)}, "sets"),
        ({"motion_guidance": 1.5}, "motion_guidance"),
        ({"noise_correlation": 1.0}, "noise_correlation"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        EvaluationOptions(**options)


def test_other_folders_are_refused(squares: Path, road: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="latent-shift data emoji"):
        evaluate_emoji(str(road / "video/model"), squares, tmp_path, OPTIONS)
    assert list(tmp_path.iterdir()) == []
