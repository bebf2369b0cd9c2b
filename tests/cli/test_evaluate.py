from __future__ import annotations

import json
from typing import Any

import pytest

from latent_shift import evaluation

from .conftest import Run

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
    result = run("evaluate", "emoji", "--model", "m", "--data", "d", "--base", "b", *flags, "--json")
    assert json.loads(result.out) == RESULT
    model, data, output, options, base, device, dtype, _ = asked[0]
    assert (model, str(data), str(output), base, device, dtype) == ("m", "d", "runs/evaluation", "b", "auto", "auto")
    assert options == evaluation.EvaluationOptions(
        guidance_scale=2.5, limit=3, sets=("pairs", "training"), loop=True, floors=False
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
        (("--set", "test"), "sets must be among training, heldout, pairs, paraphrase, got 'test'"),
        (("--steps", "0"), "steps must be at least 1, got 0"),
        (("--data", "nowhere"), "data must be a folder that exists, got 'nowhere'"),
    ],
)
def test_wrong_options_are_one_line(run: Run, as_users_run: None, flags: tuple[str, ...], named: str) -> None:
    result = run("evaluate", "emoji", *flags)
    assert result.code == 2
    assert result.err == f"latent-shift: error: {named}\n"
