from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_shift.core.errors import InputError
from latent_shift.data.heldout import family_of, load_heldout, read_labels, stage_records
from latent_shift.data.records import CaptionedVideoFolder, write_records
from latent_shift.evaluation import EvaluationOptions, evaluate_emoji, samples
from latent_shift.evaluation import emoji as protocol
from latent_shift.evaluation.judge import EmojiJudge
from latent_shift.evaluation.subjects import SETS, Subject, emoji_subjects
from latent_shift.media import resize_frames, write_video
from latent_shift.metrics import LabelledFeatures, frame_features, load_efficientnet_lite0, unit_rows
from latent_shift.pipelines import load_pipeline

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


def list_labels(folder: Path, backwards: bool = False) -> CaptionedVideoFolder:
    """Every label that moves, untoned, in three groups; there is nothing in the files."""
    labels = [info for info in read_labels() if info.clip]
    records = []
    for number, info in enumerate(labels):
        facts = {"label": info.label, "tone": None, "family": family_of(info.label), "hexcode": info.hexcode}
        facts |= {"group": str(number % 3), "kind": "clip"}
        facts |= {"heldout_tag": load_heldout().paraphrases.get(info.label)}
        name = f"{number}.webp"
        records.append({"file_name": name, "caption": info.label, "captions": [info.label], "metadata": facts})
    folder.mkdir()
    for record in records:
        (folder / record["file_name"]).touch()
    write_records(folder, records[::-1] if backwards else records)
    return CaptionedVideoFolder(folder)


def test_who_is_asked_for_follows_from_the_labels_and_not_from_their_order(tmp_path: Path) -> None:
    there, back = (emoji_subjects(list_labels(tmp_path / str(n), backwards=bool(n)), labels=20) for n in range(2))
    for name in SETS:
        asked = [{(subject.prompt, subject.seed) for subject in one[name]} for one in (there, back)]
        assert asked[0] == asked[1]


def test_one_label_of_each_held_out_family_is_asked_for(tmp_path: Path) -> None:
    folder = list_labels(tmp_path / "data")
    asked = [folder[subject.record].metadata for subject in emoji_subjects(folder)["heldout"]]
    assert {facts["family"]: facts["hexcode"] for facts in asked} == load_heldout().families
    assert len(asked) == len(load_heldout().families)


@pytest.fixture
def loop(tmp_path: Path) -> tuple[EmojiJudge, Subject, np.ndarray]:
    """A judge of one clip of 12 frames, and that clip."""
    frames = np.full((12, 32, 32, 3), 255, np.uint8)
    for index in range(12):
        row, column = 10 + round(8 * np.sin(index * np.pi / 6)), 10 + round(8 * np.cos(index * np.pi / 6))
        frames[index, row : row + 9, column : column + 9] = (200, 10 * index, 40)
    write_video(tmp_path / "data/clip.webp", frames, 8.0, lossless=True)
    facts = {"label": "frog", "tone": None, "kind": "clip"}
    write_records(tmp_path / "data", [{"file_name": "clip.webp", "caption": "frog", "metadata": facts}])
    (tmp_path / "data/dataset.json").write_text("{}")
    judge = EmojiJudge(CaptionedVideoFolder(tmp_path / "data"), tmp_path / "kept", torch.device("cpu"))
    return judge, Subject("frog", "frog", None, 0, 0), frames


def test_a_clip_is_looked_at_in_frames_of_all_of_it(loop: tuple[EmojiJudge, Subject, np.ndarray]) -> None:
    judge, _, frames = loop
    expected = frame_features(load_efficientnet_lite0(), frames[[0, 1, 3, 4, 6, 7, 9, 10]])
    np.testing.assert_allclose(judge.features(frames), expected, atol=1e-4)


def test_a_shorter_and_smaller_clip_is_compared_with_the_whole_loop(
    loop: tuple[EmojiJudge, Subject, np.ndarray],
) -> None:
    judge, subject, frames = loop
    for clip in (frames, frames[::2], resize_frames(frames[::3], 16)):
        found = judge.judge(subject, clip)
        assert (found.r2, found.ratio) == (pytest.approx(1), pytest.approx(1))


def test_the_first_and_the_first_five_labels_count(
    loop: tuple[EmojiJudge, Subject, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, subject, frames = loop
    seen = judge.features(frames)
    monkeypatch.setattr(judge, "features", lambda _frames: seen)  # the clip is the same all along
    mean = unit_rows(seen.mean(axis=0, keepdims=True))[0]
    other = np.roll(mean, 1) - (np.roll(mean, 1) @ mean) * mean
    angles = np.linspace(0, 1, 7)[:, None]
    rows = (np.cos(angles) * mean + np.sin(angles) * other / np.linalg.norm(other)).astype(np.float32)
    judge.reference = LabelledFeatures(rows, list("abcdefg"), ["dark", *[None] * 6])
    for place, label in enumerate("abcdefg"):
        found = judge.judge(dataclasses.replace(subject, label=label), frames)
        assert (found.top1, found.top5, found.tone) == (place < 1, place < 5, True)
    for tone in ("dark", "light"):
        found = judge.judge(dataclasses.replace(subject, label="a", tone=tone), frames)
        assert (found.top1, found.top5, found.tone) == (tone == "dark",) * 3


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
    assert result["autoencoder"]["frames"] == 1  # of four frames every sixth, of the held-out family alone
    assert json.loads(json.dumps(result)) == result


def test_frames_go_through_the_autoencoder_by_the_mean(road: Path) -> None:
    pipeline = load_pipeline(str(road / "video/model"), "cpu", "fp32")
    with torch.no_grad():
        pipeline.vae.encoder[-1].bias += 4  # a posterior of many values
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    ours = [protocol.reconstruct(pipeline, frames, chunk) for chunk in (8, 2)]
    np.testing.assert_allclose(ours[0].astype(int), ours[1], atol=1)


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
    other = Path(shutil.copytree(emoji_data, tmp_path / "other"))
    lines = (other / "metadata.jsonl").read_text().splitlines()
    write_records(other, [json.loads(line) for line in reversed(lines)])
    turned = EmojiJudge(CaptionedVideoFolder(other), tmp_path, torch.device("cpu")).reference
    np.testing.assert_array_equal(turned.features, first.features[::-1])


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
