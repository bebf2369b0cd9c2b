"""Covers `ops.shift_group_norm_silu`: eager against PyTorch's modules, Triton against eager, and who is chosen."""

from __future__ import annotations

import functools
import importlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from latent_shift.core.errors import InputError
from latent_shift.ops import choose_backend, shift_group_norm_silu, temporal_shift_folded

BOUNDARIES = (None, "zero", "circular")
FORMATS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
needs_triton = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the tests' Triton is for Linux on x86-64"
)


def run_case(name: str, device: str, folder: Path) -> None:
    """A function of `triton_cases.py`, in an interpreter of its own."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder)}
    if device == "cpu" and name != "compiles":
        environment["TRITON_INTERPRET"] = "1"
    script = Path(__file__).with_name("triton_cases.py")
    result = subprocess.run(
        [sys.executable, str(script), name, device], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == "passed\n"


def features(dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, ...]:
    """Of two clips of three frames; weight, bias and a gradient from above."""
    generator = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(2, 6, 10, 5, 3, generator=generator)
    weight, bias = torch.randn(2, 10, generator=generator)
    x = x.to(dtype).contiguous(memory_format=layout).requires_grad_()
    return x, weight.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_(), upstream.to(dtype)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eager_is_the_three_modules_bit_for_bit(dtype: torch.dtype, layout: torch.memory_format) -> None:
    x, weight, bias, upstream = features(dtype, layout)
    norm, silu = nn.GroupNorm(5, 10, eps=1e-4), nn.SiLU()
    norm.weight, norm.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    before = x.detach().clone()
    for boundary in BOUNDARIES:
        shifted = x if boundary is None else temporal_shift_folded(x, 3, 4, boundary)
        expected = silu(norm(shifted))
        y = shift_group_norm_silu(x, weight, bias, 5, 1e-4, 3, 4, boundary, backend="eager")
        assert torch.equal(y, expected)
        assert y.stride() == x.stride()
        ours = torch.autograd.grad(y, (x, weight, bias), upstream)
        theirs = torch.autograd.grad(expected, (x, norm.weight, norm.bias), upstream)
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        with torch.no_grad():
            assert torch.equal(shift_group_norm_silu(x, weight, bias, 5, 1e-4, 3, 4, boundary), expected)
        assert torch.equal(x, before)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_statistics_are_those_of_shifted_features(boundary: str | None) -> None:
    # The only group of the middle frame: the past's first channel, its own second, the future's third.
    x = torch.arange(9.0).view(3, 3, 1, 1)
    seen = {None: [3.0, 4.0, 5.0], "zero": [0.0, 4.0, 8.0], "circular": [0.0, 4.0, 8.0]}[boundary]
    normal = (torch.tensor(seen) - 4) / torch.tensor(seen).var(correction=0).sqrt()
    y = shift_group_norm_silu(x, torch.ones(3), torch.zeros(3), 1, 0.0, 3, 3, boundary)
    torch.testing.assert_close(y[1].flatten(), normal / (1 + torch.exp(-normal)))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_gradients_of_eager_are_right_to_second_order(boundary: str | None) -> None:
    x = torch.randn(2, 3, 1, 2, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    call = functools.partial(shift_group_norm_silu, num_groups=1, num_frames=2, boundary=boundary)
    assert torch.autograd.gradcheck(call, (x, weight, bias))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias))


@pytest.mark.usefixtures("as_users_run")
def test_who_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("LATENT_SHIFT_BACKEND", raising=False)
    assert choose_backend("cpu") == ("eager", "Triton has no kernels for the device cpu")
    assert choose_backend("cpu", backend="eager") == ("eager", "backend says so")
    assert choose_backend("cuda", torch.float64) == ("eager", "the Triton kernel has no float64")
    monkeypatch.setenv("LATENT_SHIFT_BACKEND", "eager")
    assert choose_backend("cuda", torch.float16) == ("eager", "LATENT_SHIFT_BACKEND says so")
    assert choose_backend("cpu", backend="auto").reason == "Triton has no kernels for the device cpu"

    x, weight = torch.randn(2, 4, 2, 2), torch.ones(4)
    monkeypatch.setenv("LATENT_SHIFT_BACKEND", "cuda")
    known = "must be one of auto, eager, triton"
    with pytest.raises(InputError, match=f"^LATENT_SHIFT_BACKEND {known}, got 'cuda'$"):
        shift_group_norm_silu(x, weight, weight, 2)
    with pytest.raises(InputError, match=f"^backend {known}, got 'fast'$"):
        shift_group_norm_silu(x, weight, weight, 2, backend="fast")  # type: ignore[arg-type]
    monkeypatch.setenv("LATENT_SHIFT_BACKEND", "triton")
    obstacle = r"must be eager or auto here \(Triton has no kernels for the device cpu\), got 'triton'$"
    with pytest.raises(InputError, match=f"^LATENT_SHIFT_BACKEND {obstacle}"):
        shift_group_norm_silu(x, weight, weight, 2)
    # An argument counts more than the variable.
    expected = nn.functional.silu(nn.functional.group_norm(x, 2, weight, weight))
    assert torch.equal(shift_group_norm_silu(x, weight, weight, 2, boundary=None, backend="eager"), expected)


def test_triton_is_chosen_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("latent_shift.ops.shift_group_norm_silu")
    monkeypatch.delenv("LATENT_SHIFT_BACKEND", raising=False)
    for installed, expected in ((True, "triton"), (False, "eager")):
        monkeypatch.setattr(module, "_triton_is_installed", lambda installed=installed: installed)
        for dtype in DTYPES:
            assert choose_backend("cuda", dtype).backend == expected
    monkeypatch.setattr(module, "_triton_is_installed", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for device in ("cpu", "meta"):
        assert choose_backend(device).backend == "eager"
        assert choose_backend(device, backend="triton").backend == "triton"
    monkeypatch.setattr(module, "_triton_is_installed", lambda: False)
    assert choose_backend("cuda").reason == "Triton is not installed"


@pytest.mark.usefixtures("as_users_run")
def test_messages() -> None:
    x, weight = torch.zeros(4, 6, 2, 2), torch.ones(6)
    call = functools.partial(shift_group_norm_silu, weight=weight, bias=weight)
    cases = {
        r"x must have 4 axes .*, got \(1, 4, 6, 2, 2\)": lambda: call(x[None], num_groups=2),
        "num_groups must divide the 6 channels, got 4": lambda: call(x, num_groups=4),
        "num_groups must divide the 6 channels, got 0": lambda: call(x, num_groups=0),
        "num_frames must divide the folded batch of 4, got 3": lambda: call(x, num_groups=2, num_frames=3),
        "fold must be at least 2, got 1": lambda: call(x, num_groups=2, fold=1),
        "boundary must be one of zero, circular, got 'reflect'": lambda: call(x, num_groups=2, boundary="reflect"),
    }
    for message, check in cases.items():
        with pytest.raises(InputError, match=message):
            check()


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", ["agrees", "views", "operator", "network"])
def test_triton_by_its_interpreter(name: str, tmp_path: Path) -> None:
    run_case(name, "cpu", tmp_path)


@needs_triton
@pytest.mark.slow
def test_triton_kernels_compile_without_a_gpu(tmp_path: Path) -> None:
    run_case("compiles", "cpu", tmp_path)


@needs_triton
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["automatic", "agrees", "views", "operator", "network"])
def test_triton_on_a_gpu(name: str, tmp_path: Path) -> None:
    run_case(name, "cuda", tmp_path)
