"""Covers `latent-shift reproduce`; what it measures is tested in tests/evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latent_shift import evaluation

from .conftest import Refused, Run

RESULT = {
    "claims": [
        {"verdict": "held", "source": "Table 4", "text": "It is smaller.", "set": None},
        {"verdict": "not held", "source": "Fig. 7", "text": "It moves.", "set": "pairs"},
    ]
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Into it go the arguments that the command makes."""
    calls: list[Any] = []

    def record(*arguments: Any) -> Any:
        calls.append(arguments)
        return RESULT

    monkeypatch.setattr(evaluation, "reproduce", record)
    monkeypatch.setattr(evaluation, "ablate", record)
    return calls


def test_options_arrive(run: Run, asked: list[Any]) -> None:
    flags = ("--seeds", "2", "--limit", "5", "--steps", "7", "--rounds", "3", "--batch-size", "4", "--json")
    result = run("reproduce", "claims", "--model", "m", "--twin", "t", "--base", "b", "--report", "r", *flags)
    assert json.loads(result.out) == RESULT
    model, twin, base, data, output, report, options, device, dtype, _ = asked[0]
    assert (model, twin, base, device, dtype) == ("m", "t", "b", "auto", "auto")
    assert (str(data), str(output), str(report)) == ("data/emoji", "runs/evaluation", "r")
    assert options == evaluation.ReproduceOptions(steps=7, seeds=2, limit=5, rounds=3, batch_size=4)


def test_a_line_says_of_each_claim_whether_it_holds(run: Run, asked: list[Any]) -> None:
    lines = run("reproduce", "claims", "--model", "m", "--twin", "t").out.splitlines()
    assert asked[0][:3] == ("m", "t", None)
    assert lines == [
        "held       Table 4: It is smaller.",
        "not held   Fig. 7: It moves. pairs",
        "report: runs/reproduce/README.md, runs/reproduce/index.html",
    ]


def test_wrong_options_are_one_line(refused: Refused) -> None:
    claims = ("reproduce", "claims", "--model", "emoji", "--twin")
    assert refused(*claims, "t", "--seeds", "0").startswith("--seeds must be at least 1")
    assert refused(*claims, "nowhere").startswith("--twin must be one of emoji or a folder")
    assert refused("reproduce", "ablation", "nowhere.toml").startswith("recipe")


def test_the_recipe_of_an_ablation_can_be_changed(run: Run, asked: list[Any]) -> None:
    recipe = Path(__file__).parents[2] / "recipes/emoji-ablation.toml"
    result = run("reproduce", "ablation", recipe, "--set", "steps=7", "--seeds", "2", "--report", "r", "--json")
    assert json.loads(result.out) == RESULT
    resolved, output, report, options, *_ = asked[0]
    assert (resolved.steps, resolved.data.size, resolved.stage) == (7, 64, "video")
    assert (str(output), str(report), options) == ("runs/evaluation", "r", evaluation.ReproduceOptions(seeds=2))
