from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latent_shift import benchmark
from latent_shift.benchmark import MODELS

from .conftest import Refused, Run

QUICK = ("benchmark", "--preset", "tiny", "--rounds", "1", "--device", "cpu")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def record(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        return {"asked": True}

    monkeypatch.setattr(benchmark, "benchmark", record)
    return calls


def test_options_arrive(run: Run, asked: list[Any]) -> None:
    flags = (
        "--models",
        "latent_vdm, unet3d",
        "--no-compile",
        "--clip-steps",
        "5",
        "--no-memory",
        "--dtype",
        "fp32",
        "--train-rounds",
        "2",
    )
    result = run(*QUICK, *flags, "--json")
    assert json.loads(result.out) == {"asked": True}
    preset, options, device, dtype, _ = asked[0]
    assert (preset, device, dtype) == ("tiny", "cpu", "fp32")
    assert options == benchmark.BenchmarkOptions(
        models=("latent_vdm", "unet3d"), rounds=1, train_rounds=2, compile=False, clip_steps=5, memory=False
    )
    run("benchmark", "--json")
    assert asked[1][1] == benchmark.BenchmarkOptions()
    assert asked[1][3] == "bf16"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--models", "unet4d"), "--models must be among latent_shift, "),
        (("--preset", "tiny-vdm"), "--preset must be paper, small or tiny"),
        (("--rounds", "0"), "--rounds must be at least 1, got 0"),
        (("--dtype", "fp8"), "--dtype must be one of auto, fp32, bf16, fp16, got 'fp8'"),
        (("--output", "/dev/null/folder"), "--output must be a folder that can be made"),
    ],
)
def test_wrong_options_are_one_line(refused: Refused, as_users_run: None, flags: tuple[str, ...], named: str) -> None:
    assert refused("benchmark", *flags).startswith(named)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile
def test_the_whole_command(run: Run, tmp_path: Path) -> None:
    flags = ("--clip-rounds", "0", "--sweep-rounds", "1", "--output", tmp_path / "report")
    result = run(*QUICK, *flags, "--json")
    assert result.code == 0
    measured = json.loads(result.out)
    assert measured == json.loads((tmp_path / "report/results.json").read_text())
    assert set(measured["forward"]) == set(MODELS)
    assert measured["forward"]["unet2d_compiled"]["seconds"] > 0
    assert measured["forward"]["unet2d_compiled"]["compile_seconds"] > 0
    assert measured["forward"]["unet_motion"]["peak_memory_bytes"] > 0
    assert measured["clip"] == {}
    assert list(measured["frames"]["latent_shift"]) == ["4", "8", "16", "32", "64", "128", "linear_fit"]
