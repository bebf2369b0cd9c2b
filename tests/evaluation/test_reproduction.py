"""Covers `latent-shift reproduce`: what is measured, the claims, and the report."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import check_page, chromium, watch
from safetensors.torch import load_file, save_file

from latent_shift.core.errors import InputError
from latent_shift.evaluation import EvaluationOptions, ReproduceOptions, claims, evaluate_emoji, reproduce, reproduction
from latent_shift.evaluation.claims import CLAIMS, STATISTICS, Claim, Comparison, Estimate, verdict
from latent_shift.evaluation.judge import EmojiJudge
from latent_shift.evaluation.report import write_ablation
from latent_shift.evaluation.samples import SampleStore
from latent_shift.evaluation.subjects import SETS
from latent_shift.evaluation.systems import SYSTEMS, Measured
from latent_shift.media import read_video
from latent_shift.metrics import ClipKernelDistance, ScoreOptions, score_features
from latent_shift.metrics.extractors import load_extractor
from latent_shift.pipelines import convert_model, load_pipeline

from .conftest import write_emoji

OPTIONS = ReproduceOptions(steps=1, seeds=2, labels=2, rounds=2, resamples=20)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture(scope="module")
def place(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data and an untrained twin; clips and reports go beside them."""
    place = tmp_path_factory.mktemp("reproduce")
    write_emoji(place / "data", hidden=2)
    convert_model(str(road / "video/model"), place / "twin", "vdm")
    return place


def run(place: Path, road: Path, report: str = "report", **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "model": str(road / "video/model"),
        "twin": str(place / "twin"),
        "base": str(road / "image/model"),
        "data": place / "data",
        "output": place / "clips",
        "report": place / report,
        "options": OPTIONS,
        "device": "cpu",
        "dtype": "fp32",
    }
    return reproduce(**{**given, **changes})


@pytest.fixture(scope="module")
def result(place: Path, road: Path) -> dict[str, Any]:
    return run(place, road)


def make_measured(top5: Any, features: Any = None) -> Measured:
    """A system of whose numbers only some are of interest."""
    values = np.asarray(top5, dtype=np.float64)
    if features is None:
        features = np.zeros((*values.shape, 8, 4))
    return Measured(values, values, values, values, values, np.asarray(features, dtype=np.float16))


def make_claim(statistic: Any) -> Claim:
    return Claim("here", "a beats b", statistic, "a", "b")


def test_every_system_is_measured_on_its_sets(result: dict[str, Any]) -> None:
    assert tuple(result["scores"]) == SETS
    for name, scores in result["scores"].items():
        asked = {system for system, how in SYSTEMS.items() if name in how.sets}
        assert set(scores) == {"subjects", *asked}
        for system in asked:
            row = dict(scores[system])
            assert row.pop("seeds") == (2 if SYSTEMS[system].all_seeds else 1)
            assert set(row) == set(STATISTICS) - (set() if name == "pairs" else {"tone"})
            assert (row["lite0-clips-kd"] is None) == SYSTEMS[system].image
            for statistic, found in row.items():
                if found is not None:
                    assert found["low"] <= found["value"] <= found["high"], statistic
    assert result["scores"]["training"]["base_image"]["r2"]["value"] == 0
    assert json.loads(json.dumps(result)) == result


def test_every_claim_is_decided_on_its_sets(result: dict[str, Any]) -> None:
    found = [(claim["text"], claim["set"]) for claim in result["claims"] if claim["source"] != "Table 4"]
    assert sorted(found) == sorted((claim.text, name) for claim in CLAIMS for name in claim.sets)
    # Two subjects, two rounds: nothing can be decided but what is counted.
    assert {claim["statistic"] for claim in result["claims"] if claim["verdict"] != "too few"} == {"parameters"}
    # The same weights and temporal attention beside them: more parameters.
    (size,) = (claim for claim in result["claims"] if claim["statistic"] == "parameters")
    assert size["verdict"] == "held"
    both = result["size"]
    assert both["latent_shift"]["vae"] == both["latent_vdm"]["vae"]
    assert both["latent_vdm"]["total"] / both["latent_shift"]["total"] - 1 == pytest.approx(
        size["gain"]["value"], rel=1e-3
    )
    (speed,) = (claim for claim in result["claims"] if claim["statistic"] == "seconds")
    assert speed["gain"]["value"] == pytest.approx(result["speed"]["ratio"]["vdm_to_shift"] - 1, rel=1e-3)


def test_a_rerun_makes_nothing_and_says_the_same(
    place: Path, road: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*_: Any) -> None:
        raise AssertionError("a clip is made again")

    monkeypatch.setattr(SampleStore, "_make", make)
    monkeypatch.setattr(EmojiJudge, "judge", make)
    monkeypatch.setattr(reproduction, "_speed", lambda *_: result["speed"])
    assert run(place, road, "again") == result
    names = ("README.md", "index.html", "results.json", "images.png", "videos.webp", "scores.png")
    assert sorted(path.name for path in (place / "again").iterdir()) == sorted(names)
    for name in names[:3]:
        assert (place / "again" / name).read_bytes() == (place / "report" / name).read_bytes()


def test_scores_of_one_seed_are_those_of_the_evaluation_and_clips_are_shared(
    place: Path, road: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    del result  # its clips are there
    monkeypatch.setattr(SampleStore, "_make", None)
    one = run(place, road, "one", options=ReproduceOptions(steps=1, seeds=1, labels=2, rounds=2, resamples=2))["scores"]
    where: Any = {"device": "cpu", "dtype": "fp32"}
    model, options = str(road / "video/model"), EvaluationOptions(steps=1, labels=2, floors=False)
    scores = evaluate_emoji(model, place / "data", place / "clips", options, **where)
    for name in SETS:
        row, expected = one[name]["latent_shift"], scores[name]
        for key in expected["match"]:
            assert row[key]["value"] == pytest.approx(expected["match"][key], abs=1e-3)
        for key in ("r2", "ratio"):
            assert row[key]["value"] == pytest.approx(expected["motion"][key], rel=1e-3, abs=1e-4)
    options = EvaluationOptions(steps=1, labels=2, sets=("training",))
    floor = evaluate_emoji(model, place / "data", place / "clips", options, **where)["training"]["floor"]
    off = one["training"]["latent_shift_off"]["r2"]["value"]
    assert off == pytest.approx(floor["shift_off"]["motion"]["r2"], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.3, "held"), (-0.3, -0.1, "not held"), (-0.1, 0.1, "undecided"), (0, 0.1, "undecided")],
)
def test_a_claim_is_decided_by_its_whole_interval(low: float, high: float, expected: str) -> None:
    gain = Estimate((low + high) / 2, low, high)
    assert verdict(gain, 20) == expected
    assert verdict(gain, 19) == "too few"
    assert verdict(gain, 6, 6) == expected


def test_what_is_better_for_certain_is_held_and_what_is_worse_is_not(rng: np.random.Generator) -> None:
    real = rng.normal(size=(30, 8, 4)).astype(np.float16)
    near, far = real[:, None] + 0.1, real[:, None] + 3
    good = make_measured(rng.random((30, 2)) < 0.9, np.repeat(near, 2, axis=1))
    bad = make_measured(rng.random((30, 2)) < 0.1, np.repeat(far, 2, axis=1))
    for statistic in STATISTICS:
        claim = make_claim(statistic)
        assert verdict(Comparison({"a": good, "b": bad}, real).gain(claim), 30) == "held", statistic
        assert verdict(Comparison({"a": bad, "b": good}, real).gain(claim), 30) == "not held", statistic
        gain = Comparison({"a": good, "b": good}, real).gain(claim)
        assert gain == Estimate(0, 0, 0)
        assert verdict(gain, 30) == "undecided"


def test_the_interval_is_of_the_difference_on_the_same_subjects(rng: np.random.Generator) -> None:
    """Subjects differ much, the systems by one subject in ten: only pairing shows it."""
    first = rng.random((200, 1)) < 0.5
    second = first & (rng.random((200, 1)) > 0.2)
    real = np.zeros((200, 8, 4), dtype=np.float16)
    comparison = Comparison({"a": make_measured(first), "b": make_measured(second)}, real, resamples=400)
    scores = [comparison.score(name, "top5") for name in "ab"]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0].low < scores[1].high
    gain = comparison.gain(make_claim("top5"))
    assert gain.value == pytest.approx(float(first.mean() - second.mean()))
    assert verdict(gain, 200) == "held"
    p = float((first != second).mean())
    assert gain.high - gain.value == pytest.approx(1.96 * np.sqrt(p * (1 - p) / 200), rel=0.15)


def test_motion_is_the_median_over_clips_that_move() -> None:
    values = np.array([[0.0], [0.1], [0.4], [9.0], [np.nan]])
    comparison = Comparison({"a": make_measured(values)}, np.zeros((5, 8, 4), dtype=np.float16))
    for statistic in ("r2", "ratio"):
        found = comparison.score("a", statistic)
        assert found is not None
        assert found.value == 0.25


def test_families_are_drawn_as_a_whole(rng: np.random.Generator) -> None:
    """Four alike in each family tell as much as one."""
    first = np.repeat(rng.random((50, 1)) < 0.5, 4, axis=0)
    real, families = np.zeros((200, 8, 4), dtype=np.float16), [f"family {index // 4}" for index in range(200)]
    measured = {"a": make_measured(first)}
    alone, together = (Comparison(measured, real, one, resamples=400).score("a", "top5") for one in (None, families))
    assert alone is not None
    assert together is not None
    assert alone.value == together.value
    assert (together.high - together.value) / (alone.high - alone.value) == pytest.approx(2, rel=0.15)
    # So they count as one where it is asked whether there are enough.
    assert [Comparison(measured, real, one).families for one in (None, families)] == [200, 50]


def test_families_and_not_subjects_decide_whether_there_are_enough(
    place: Path, road: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def record(gain: Estimate, count: int, least: int = claims.MIN_FAMILIES) -> str:
        if least == claims.MIN_FAMILIES:
            counts.append(count)
        return verdict(gain, count, least)

    def in_one_family(measured: Any, real: Any, families: list[str], resamples: int) -> Comparison:
        return Comparison(measured, real, ["one"] * len(families), resamples)

    monkeypatch.setattr(reproduction, "_speed", lambda *_: result["speed"])
    monkeypatch.setattr(reproduction, "verdict", record)
    monkeypatch.setattr(reproduction, "Comparison", in_one_family)
    run(place, road, "one-family")
    assert set(counts) == {1}


def test_the_paper_says_what_the_claims_say() -> None:
    close = [(claim.source, claim.stated) for claim in CLAIMS if claim.statistic.startswith("lite0")]
    assert close == [(source, False) for source, _ in close]  # 0.98, 1.68, 0.13 and 0.28 apart
    (removed,) = (claim for claim in CLAIMS if claim.second == "latent_vdm_off_image")
    assert removed.text.startswith("Removing the temporal attention of Latent-VDM does not help")


@pytest.mark.parametrize("name", ["lite0-frames", "lite0-clips"])
def test_kernel_distances_are_those_of_the_metrics_but_for_pairs(
    name: str, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apart(real: Any, generated: Any, paired: bool) -> ClipKernelDistance:
        assert paired
        return ClipKernelDistance(real, generated)

    monkeypatch.setattr(claims, "ClipKernelDistance", apart)
    clips = [torch.from_numpy(rng.integers(0, high, (5, 8, 32, 32, 3), dtype=np.uint8)) for high in (256, 100)]
    extractor, frames = load_extractor(name, tmp_path), load_extractor("lite0-frames", tmp_path)
    real, generated = (extractor(one).numpy() for one in clips)
    metric: Any = f"{name}-kd"
    expected = score_features(metric, extractor.info, generated, real, options=ScoreOptions(resamples=0)).value
    real, generated = (frames(one).numpy().astype(np.float16) for one in clips)
    found = Comparison({"a": make_measured(np.ones((5, 1)), generated[:, None])}, real).score("a", metric)
    assert found is not None
    assert found.value == pytest.approx(expected, rel=0.01)


def test_the_report_has_every_claim_and_needs_nothing_else(place: Path, result: dict[str, Any]) -> None:
    text, page = (place / "report/README.md").read_text(), (place / "report/index.html").read_text()
    for claim in result["claims"]:
        row = f"| {claim['verdict']} | {claim['text']} | {claim['set'] or '-'} |"
        assert text.count(row) == 1
    assert re.findall(r"!\[.*?\]\((.*?)\)", text) == ["scores.png", "videos.webp", "images.png"]
    assert "![Clips, from the top: real clips; Latent-Shift; Latent-VDM; Latent-Shift, shift off](" in text
    assert re.search(r"<details open><summary>[^<]*</summary><img src=\"data:image/webp[^>]*></details>", page)
    assert page.count('<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>') == page.count(
        "<table>"
    )
    assert page.count('src="data:image/') == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<table>" in page
    assert "Of 10 claims of the paper, asked of the training labels: 1 held, 9 too few." in text
    assert "neighbouring frames begin from noise that correlates by 0.5, as with it." in text
    assert json.loads((place / "report/results.json").read_text()) == result
    videos = read_video(place / "report/videos.webp").frames
    assert len(videos) == 4
    assert (place / "report/scores.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_page_can_be_used_by_everybody(place: Path, result: dict[str, Any]) -> None:
    del result  # its report is there
    with chromium() as browser:
        page = browser.new_page()
        problems = watch(page, "file:")
        page.goto((place / "report/index.html").as_uri())
        check_page(page, "reproduction")
    assert problems == []


def test_without_the_base_its_claims_are_left_out(place: Path, road: Path, result: dict[str, Any]) -> None:
    short = run(place, road, "short", base=None)
    about_base = [claim for claim in result["claims"] if "base_image" in (claim["first"], claim["second"])]
    assert len(about_base) == 3
    assert len(short["claims"]) == len(result["claims"]) - 3
    assert "Without the text-to-image base" in (place / "short/README.md").read_text()


def test_models_that_are_something_else_are_refused(place: Path, road: Path, tmp_path: Path) -> None:
    shift, twin = str(road / "video/model"), str(place / "twin")
    with pytest.raises(InputError, match="twin must be a model whose U-Net is a LatentVDMUNet"):
        run(place, road, output=tmp_path, twin=shift)
    with pytest.raises(InputError, match="model must be a video model whose U-Net is a LatentShiftUNet"):
        run(place, road, output=tmp_path, model=twin)
    convert_model(str(road / "image/model"), tmp_path / "image-twin", "vdm")
    with pytest.raises(InputError, match=r"twin must have the model's default_frames \(4, not 1\)"):
        run(place, road, output=tmp_path / "clips", twin=str(tmp_path / "image-twin"))
    with pytest.raises(InputError, match="base must be a text-to-image model, of one frame of 16 pixels"):
        run(place, road, output=tmp_path / "clips", base=shift)
    for argument in ("model", "twin", "base"):
        with pytest.raises(InputError, match=f"^{argument} must be one of emoji or a folder"):
            run(place, road, output=tmp_path / "clips", **{argument: "nowhere"})
    assert not list(tmp_path.rglob("*.webp"))


@pytest.mark.parametrize(
    ("part", "fact", "value", "message"),
    [
        ("", "default_guidance_scale", 2.0, r"default_guidance_scale \(4.0, not 2.0\)"),
        ("", "default_motion_guidance", 0.5, r"default_motion_guidance \(1.0, not 0.5\)"),
        ("", "mask_padding", False, r"mask_padding \(True, not False\)"),
        ("", "fps", 12, r"fps \(8.0, not 12\)"),
        ("", "default_noise_correlation", 0.1, r"first step's noise_correlation \(0.5, not 0.1\)"),
        ("unet", "default_boundary", "circular", r"unet's default_boundary \(zero, not circular\)"),
        ("unet", "noise_correlation", 0.2, r"first step's noise_correlation \(0.5, not 0.2\)"),
        ("scheduler", "prediction_type", "v_prediction", r"scheduler's prediction_type \(epsilon, not v_prediction\)"),
    ],
)
def test_a_twin_that_is_sampled_otherwise_is_refused(
    place: Path, road: Path, tmp_path: Path, part: str, fact: str, value: Any, message: str
) -> None:
    shutil.copytree(place / "twin", tmp_path / "twin")
    config = tmp_path / "twin" / part / {"": "model_index.json", "unet": "config.json"}.get(part, f"{part}_config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), fact: value}))
    with pytest.raises(InputError, match=f"twin must have the model's {message}"):
        run(place, road, output=tmp_path / "clips", twin=str(tmp_path / "twin"))


@pytest.mark.parametrize(
    ("argument", "part", "key", "message"),
    [
        ("twin", "vae", "decoder", "twin must have the model's vae, weight for weight"),
        ("twin", "text_encoder", "", "twin must have the model's text_encoder, weight for weight"),
        ("base", "vae", "encoder", "base must have the model's latents: the encoder of its autoencoder is another"),
        ("base", "vae", "decoder", ""),
    ],
)
def test_parts_that_both_have_are_the_same(
    place: Path, road: Path, tmp_path: Path, argument: str, part: str, key: str, message: str
) -> None:
    shutil.copytree(place / "twin" if argument == "twin" else road / "image/model", tmp_path / "changed")
    (file,) = (tmp_path / "changed" / part).glob("*.safetensors")
    weights = load_file(file)
    name = min(name for name, value in weights.items() if name.startswith(key) and value.is_floating_point())
    save_file({**weights, name: weights[name] + 1}, file, {"format": "pt"})
    pipelines = {
        "latent_shift": load_pipeline(str(road / "video/model"), "cpu", "fp32"),
        "latent_vdm": load_pipeline(str(place / "twin"), "cpu", "fp32"),
        "base": load_pipeline(str(road / "image/model"), "cpu", "fp32"),
    }
    pipelines["latent_vdm" if argument == "twin" else "base"] = load_pipeline(str(tmp_path / "changed"), "cpu", "fp32")
    with pytest.raises(InputError, match=f"^{message}") if message else contextlib.nullcontext():
        reproduction._check_models(pipelines, dict.fromkeys(pipelines, "here"))


def test_of_loops_nobody_claims_that_an_image_needs_the_shift(place: Path, road: Path, tmp_path: Path) -> None:
    models = {}
    for name, source in (("model", road / "video/model"), ("twin", place / "twin")):
        models[name] = str(shutil.copytree(source, tmp_path / name))
        config = tmp_path / name / "unet/config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "default_boundary": "circular"}))
    loops = run(
        place, road, options=replace(OPTIONS, limit=2), output=tmp_path / "clips", report=tmp_path / "r", **models
    )
    assert "latent_shift_off_image" not in loops["systems"]
    pairs = [{claim["first"], claim["second"]} for claim in loops["claims"]]
    assert {"latent_shift_image", "latent_vdm_image"} in pairs
    assert {"latent_shift_image", "latent_shift_off_image"} not in pairs
    assert "one frame with and without the shift is the same by construction" in (tmp_path / "r/README.md").read_text()


def test_an_ablation_joins_the_report_that_is_there(place: Path, result: dict[str, Any], tmp_path: Path) -> None:
    del result  # its report is there
    shutil.copytree(place / "report", tmp_path / "report")
    number = {"value": 0.125, "low": 0.1, "high": 0.15}
    counts = ("steps", "batch_size", "frames", "size", "seeds", "subjects", "sampling_steps", "guidance_scale")
    settings = {**dict.fromkeys(counts, 3), "dtype": "bfloat16"}
    variants = {
        "paper": {"title": "a third", "loss": 0.75, "scores": {"top5": number}},
        "fold-4": {
            **{"title": "a quarter", "loss": 0.5, "scores": {"top5": number}},
            **{"loss_gain": number, "gains": {"top5": {**number, "verdict": "held"}}},
        },
    }
    write_ablation({"settings": settings, "variants": variants}, tmp_path / "report")
    before, text = ((folder / "report/README.md").read_text() for folder in (place, tmp_path))
    section = (tmp_path / "report/ablation.md").read_text().strip()
    assert "| a quarter | 0.500 | 0.125 (0.100 to 0.150) |" in section
    assert "| a quarter | 0.125 (0.100 to 0.150) | 0.125 (0.100 to 0.150): better |" in section
    assert text.replace(section + "\n\n", "") == before
    assert "<td>a quarter</td>" in (tmp_path / "report/index.html").read_text()


def test_too_few_subjects_are_refused(place: Path, road: Path, emoji_data: Path) -> None:
    with pytest.raises(InputError, match="have at least 2 subjects in the set heldout"):
        run(place, road, data=emoji_data)


@pytest.mark.parametrize("options", [{"seeds": 0}, {"limit": 1}, {"resamples": 1}, {"rounds": 0}, {"steps": 0}])
def test_wrong_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        ReproduceOptions(**options)
