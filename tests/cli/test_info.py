from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compilers import needs_compiler

import latent_shift
from latent_shift.ops import _native
from latent_shift.pipelines import convert_model, load_preset

from .conftest import Run


def test_what_is_installed(run: Run) -> None:
    facts = json.loads(run("info", "--json", "--device", "cpu").out)
    assert set(facts) == {"versions", "machine"}
    assert facts["versions"]["latent_shift"] == latent_shift.__version__
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["machine"]["device"] == "cpu"
    assert facts["machine"]["dtype"] in ("bfloat16", "float32")
    obstacle = _native.obstacle()
    if not obstacle and facts["machine"]["dtype"] == "float32":
        obstacle = "networks in float32 are not in channels_last"
    assert facts["machine"]["backend"] == (f"eager ({obstacle})" if obstacle else "native (one pass over the features)")


@needs_compiler
@pytest.mark.parametrize("asked", [None, "native"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_who_is_said_to_compute_does(run: Run, monkeypatch: pytest.MonkeyPatch, asked: str | None, dtype: str) -> None:
    monkeypatch.delenv("LATENT_SHIFT_BACKEND", raising=False)
    if asked:
        monkeypatch.setenv("LATENT_SHIFT_BACKEND", asked)
    resolved = torch.float32 if dtype == "fp32" else torch.bfloat16
    monkeypatch.setattr("latent_shift.pipelines.loading.resolve_dtype", lambda *_: resolved)
    said = json.loads(run("info", "--json", "--device", "cpu").out)["machine"]["backend"].split()[0]
    calls: list[str] = []
    forward = _native.forward
    monkeypatch.setattr(
        _native, "forward", lambda *arguments, **named: calls.append("") or forward(*arguments, **named)
    )
    pipeline = load_preset("tiny", "cpu", "auto")
    sample = torch.zeros(1, 4, 2, 16, 16, dtype=resolved)
    text = torch.zeros(1, 3, pipeline.unet.config.cross_attention_dim, dtype=resolved)
    with torch.no_grad():
        pipeline.unet(sample, 1, text)
    assert said == ("native" if calls else "eager")
    assert bool(calls) == (dtype == "bf16" or asked == "native")


def test_who_computes_and_who_cannot(run: Run, as_users_run: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_SHIFT_BACKEND", "eager")
    assert "  backend: eager (LATENT_SHIFT_BACKEND says so)" in run("info", "--device", "cpu").out
    monkeypatch.setenv("LATENT_SHIFT_BACKEND", "tritn")
    result = run("info", "--device", "cpu")
    assert result.code == 2
    assert (
        result.err
        == "latent-shift: error: LATENT_SHIFT_BACKEND must be one of auto, eager, native, triton, got 'tritn'\n"
    )


def test_the_papers_size(run: Run) -> None:
    facts = json.loads(run("info", "--preset", "paper", "--json").out)
    assert facts["preset"]["parameters"] == {
        "unet": 872_300_484,
        "vae": 83_653_863,
        "text_encoder": 581_994_042,
        "text_encoder_without_head": 542_895_360,
    }
    assert "unet: 872,300,484" in run("info", "--preset", "paper").out


def test_a_models_size(run: Run, road: Path) -> None:
    facts = json.loads(run("info", "--model", road / "video/model", "--json").out)
    assert set(facts["model"]["parameters"]) == {"unet", "vae", "text_encoder"}
    assert min(facts["model"]["parameters"].values()) > 0


def test_every_text_encoder_counts(run: Run, tmp_path: Path) -> None:
    from pipelines.pretrained import make_pipeline

    make_pipeline("sdxl", tmp_path / "words").save_pretrained(tmp_path / "image")
    convert_model(tmp_path / "image", tmp_path / "video", "shift")
    facts = json.loads(run("info", "--model", tmp_path / "video", "--json").out)
    assert list(facts["model"]["parameters"]) == ["unet", "vae", "text_encoder", "text_encoder_2"]


def test_what_is_unknown_is_one_line(run: Run, as_users_run: None) -> None:
    result = run("info", "--preset", "papre")
    assert result.code == 2
    assert result.err.startswith("latent-shift: error: --preset must be one of paper")
    assert run("info", "--model", "nowhere").code == 2
