from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_shift import evaluation
from latent_shift.evaluation import protocols
from latent_shift.evaluation.folder import DEFAULT_METRICS
from latent_shift.media import write_video

from .conftest import Refused, Run

SCORES = {"clips": 2, "match": {"top1": 0.5, "top5": 1.0}, "motion": {"r2": 0.25, "ratio": None}}
RESULT: dict[str, Any] = {
    "settings": {"model": "emoji"},
    "training": {**SCORES, "seam": 0.875, "ceiling": {**SCORES, "seam": 1.0}, "floor": {"base": SCORES}},
    "autoencoder": {"frames": 4, "psnr_db": 31.5},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def record(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        return RESULT

    monkeypatch.setattr(evaluation, "evaluate_emoji", record)
    return calls


def test_options_arrive(run: Run, asked: list[Any]) -> None:
    flags = ("--set", "pairs", "--set", "training", "--loop", "--no-floors", "--limit", "3", "--guidance", "2.5")
    flags = (*flags, "--motion-guidance", "0.5", "--guidance-interval", "0.1", "0.7", "--noise-correlation", "0.9")
    result = run("evaluate", "emoji", "--model", "m", "--data", "d", "--base", "b", *flags, "--json")
    assert json.loads(result.out) == RESULT
    model, data, output, options, base, device, dtype, _ = asked[0]
    assert (model, str(data), str(output), base, device, dtype) == ("m", "d", "runs/evaluation", "b", "auto", "auto")
    assert options == evaluation.EvaluationOptions(
        guidance_scale=2.5,
        motion_guidance=0.5,
        guidance_interval=(0.1, 0.7),
        noise_correlation=0.9,
        limit=3,
        sets=("pairs", "training"),
        loop=True,
        floors=False,
    )


def test_the_table_has_a_line_for_each_row(run: Run, asked: list[Any]) -> None:
    header, *lines = run("evaluate", "emoji").out.splitlines()
    assert header.split() == ["clips", "top-1", "top-5", "tone", "r2", "ratio", "seam"]
    assert lines[0].split() == ["training", "2", "0.500", "1.000", "0.250", "0.875"]
    assert [line.split()[0] for line in lines] == ["training", "ceiling", "floor:", "autoencoder"]
    assert "31.5 dB" in lines[-1]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--set", "test"), "--set must be among training, heldout, pairs, paraphrase, got 'test'"),
        (("--steps", "0"), "--steps must be at least 1, got 0"),
        (("--data", "nowhere"), "--data must be a folder that exists, got 'nowhere'"),
    ],
)
def test_wrong_options_are_one_line(run: Run, as_users_run: None, flags: tuple[str, ...], named: str) -> None:
    result = run("evaluate", "emoji", *flags)
    assert result.code == 2
    assert result.err == f"latent-shift: error: {named}\n"


def write_clips(folder: Path, count: int) -> Path:
    for number in range(count):
        frames = np.random.default_rng(number).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
        write_video(folder / f"{number}.webp", frames, 8.0, lossless=True)
    return folder


def test_a_folder_is_scored(run: Run, tmp_path: Path) -> None:
    generated, real = write_clips(tmp_path / "generated", 3), write_clips(tmp_path / "real", 4)
    flags = ("--frames", "4", "--resamples", "4", "--device", "cpu")
    result = run("evaluate", "folder", generated, "--real", real, *flags)
    assert [line.split()[0] for line in result.out.splitlines()[::2]] == list(DEFAULT_METRICS)
    assert all("protocol=" in line for line in result.out.splitlines()[1::2])
    as_json = run("evaluate", "folder", generated, "--real", real, *flags, "--metric", "lite0-clips-kd", "--json")
    (scores,) = json.loads(as_json.out)
    assert (scores["metric"], scores["protocol"]["real_clips"]) == ("lite0-clips-kd", 4)
    # Without real clips: what needs none.
    alone = run("evaluate", "folder", generated, *flags)
    assert [line.split()[0] for line in alone.out.splitlines()[::2]] == ["frame-difference", "flicker", "loop-seam"]


def test_missing_weights_are_one_line(refused: Refused, tmp_path: Path) -> None:
    generated = write_clips(tmp_path / "generated", 1)
    line = refused("evaluate", "folder", generated, "--real", generated, "--metric", "fvd")
    assert line.startswith("--weights must hold i3d_torchscript.pt: fetch https://")
    assert "sha256 bec6519f" in line
    assert "models/metrics/i3d_torchscript.pt" in line
    assert refused("evaluate", "folder", "nowhere").startswith("generated must be a folder that exists")


@pytest.mark.parametrize("name", ["msrvtt", "ucf101"])
def test_protocols_get_their_options(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked = protocols.Protocol(name, [], [], (), {})
    seen: list[Any] = []
    monkeypatch.setattr(protocols, name, lambda *arguments: seen.append(arguments) or asked)

    def evaluate(*arguments: Any) -> protocols.Evaluated:
        seen.append(arguments)
        return protocols.Evaluated(Path("clips-1"), {"steps": 7}, 3, 8, [])

    monkeypatch.setattr(evaluation, "evaluate_protocol", evaluate)
    own = ("--captions", "one", "--frames", "1") if name == "msrvtt" else ("--samples", "8")
    flags = (
        "--model",
        "m",
        "--part",
        "2/8",
        "--steps",
        "7",
        "--metric",
        "flicker",
        "--seed",
        "5",
        "--resamples",
        "7",
        *own,
    )
    result = run("evaluate", name, "data", *flags)
    assert result.out.splitlines()[0] == "clips-1: 3 of 8 clips (steps=7)"
    (data, _, seed), (protocol, model, output, options, *_) = seen
    assert (data, seed, protocol, model, str(output)) == ("data", 5, asked, "m", "runs/evaluation")
    expected = evaluation.ProtocolOptions(steps=7, part=(2, 8), metrics=("flicker",), resamples=7)
    assert options == replace(expected, frames=1 if name == "msrvtt" else None)
    assert json.loads(run("evaluate", name, "data", *flags, "--json").out) == {
        "folder": "clips-1",
        "made": 3,
        "wanted": 8,
        "settings": {"steps": 7},
        "scores": [],
    }


def test_a_protocol_takes_a_model_or_clips(run: Run, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "ucf101", lambda *_: protocols.Protocol("ucf101", [], [], (), {}))
    one = "--model must be given, or --clips, one of the two, got"
    assert refused("evaluate", "ucf101", "data") == f"{one} None"
    assert refused("evaluate", "ucf101", "data", "--model", "m", "--clips", "c") == f"{one} 'm'"
    for name, flags in {
        "ucf101": (("--steps", "7"), ("--dtype", "fp16"), ("--seed", "3"), ("--samples", "9"), ("--output", "o")),
        "msrvtt": (("--scheduler", "ddpm"), ("--captions", "one"), ("--part", "1/2"), ("--batch-size", "2")),
    }.items():
        for flag in flags:
            expected = f"--clips must be given without {flag[0]}: its clips are there, got 'c'"
            assert refused("evaluate", name, "data", "--clips", "c", *flag) == expected
    seen: list[Any] = []

    def score(*arguments: Any) -> protocols.Evaluated:
        seen.append(arguments)
        return protocols.Evaluated(Path("c"), {}, 3, 8, [])

    monkeypatch.setattr(evaluation, "score_protocol", score)
    result = run("evaluate", "ucf101", "data", "--clips", "c", "--metric", "flicker", "--resamples", "9")
    assert result.out.splitlines()[0] == "c: 3 of 8 clips"
    assert (seen[0][1], seen[0][2], seen[0][-1]) == (Path("c"), ("flicker",), 9)


def test_a_part_that_is_none_is_refused(refused: Refused) -> None:
    message = refused("evaluate", "ucf101", "data", "--model", "m", "--part", "2")
    assert message == "--part must be NUMBER/OF, as 2/8, got '2'"
