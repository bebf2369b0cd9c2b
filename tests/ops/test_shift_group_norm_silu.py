"""Covers `ops.shift_group_norm_silu`: eager against PyTorch's modules, Triton against eager, and who is chosen."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from compilers import needs_compiler
from torch import Tensor, nn

from latent_shift.core.errors import InputError
from latent_shift.ops import (
    Backend,
    Boundary,
    _native,
    choose_backend,
    group_norm,
    shift_group_norm_silu,
    temporal_shift_folded,
)

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
            assert torch.equal(shift_group_norm_silu(x, weight, bias, 5, 1e-4, 3, 4, boundary, "eager"), expected)
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
    assert choose_backend("mps") == ("eager", "there is no other for the device mps")
    assert choose_backend("cpu", torch.float16) == ("eager", "the C++ has no float16")
    assert choose_backend("cpu", backend="eager") == ("eager", "backend says so")
    assert choose_backend("cuda", torch.float64) == ("eager", "the Triton kernel has no float64")
    monkeypatch.setenv("LATENT_SHIFT_BACKEND", "eager")
    assert choose_backend("cuda", torch.float16) == ("eager", "LATENT_SHIFT_BACKEND says so")
    assert choose_backend("cpu", torch.float64, backend="auto").reason == "the C++ has no float64"

    x, weight = torch.randn(2, 4, 2, 2), torch.ones(4)
    monkeypatch.setenv("LATENT_SHIFT_BACKEND", "cuda")
    known = "must be one of auto, eager, native, triton"
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
    monkeypatch.setattr(module, "_gpu_obstacle", lambda: "")
    for installed, expected in ((True, "triton"), (False, "eager")):
        monkeypatch.setattr(module, "_triton_is_installed", lambda installed=installed: installed)
        for dtype in DTYPES:
            assert choose_backend("cuda", dtype).backend == expected
    monkeypatch.setattr(module, "_triton_is_installed", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for device in ("cpu", "meta"):
        assert choose_backend(device).backend != "triton"
        assert choose_backend(device, backend="triton").backend == "triton"
    monkeypatch.setattr(module, "_triton_is_installed", lambda: False)
    assert choose_backend("cuda").reason == "Triton is not installed"


def test_a_gpu_that_triton_cannot_use_is_left_to_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("latent_shift.ops.shift_group_norm_silu")
    monkeypatch.delenv("LATENT_SHIFT_BACKEND", raising=False)
    monkeypatch.setattr(module, "_triton_is_installed", lambda: True)
    monkeypatch.setattr(module, "_gpu_obstacle", lambda: "Triton failed: Failed to find C compiler")
    assert choose_backend("cuda") == ("eager", "Triton failed: Failed to find C compiler")
    with pytest.raises(InputError, match=r"backend must be eager or auto here \(Triton failed: Failed to find C"):
        choose_backend("cuda", backend="triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_why_there_is_no_gpu_for_triton() -> None:
    pytest.importorskip("triton")
    assert importlib.import_module("latent_shift.ops._triton").obstacle().startswith("Triton failed: ")


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("backend", ["eager", pytest.param("native", marks=needs_compiler)])
def test_what_would_be_read_beyond_its_end_is_refused(backend: Backend) -> None:
    x, eight = torch.randn(4, 8, 4, 4).to(memory_format=torch.channels_last), torch.ones(8)
    call = functools.partial(shift_group_norm_silu, x, num_groups=2, num_frames=2, backend=backend)
    rows = torch.ones(4, 8)
    cases: dict[str, Callable[[], Tensor]] = {
        r"weight must have the shape \(8,\), got \(4,\)": lambda: call(eight[:4], eight),
        r"bias must have the shape \(8,\), got \(4, 8\)": lambda: call(eight, rows),
        r"time_scale must have the shape \(4, 8\), got \(2, 8\)": lambda: call(
            eight, eight, time_scale=rows[:2], time_bias=rows
        ),
        r"time_bias must have the shape \(4, 8\), got \(8,\)": lambda: call(
            eight, eight, time_scale=rows, time_bias=eight
        ),
        "weight must be on the device of the features, cpu, got 'meta'": lambda: call(eight.to("meta"), eight),
    }
    for message, check in cases.items():
        with pytest.raises(InputError, match=message):
            check()
    with pytest.raises(InputError, match=r"weight must have the shape \(8,\), got \(4,\)"):
        group_norm(x, eight[:4], eight, 2, backend=backend)


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
        "distance must be at least 1, got 0": lambda: call(x, num_groups=2, distance=0),
        "time_bias must be given with time_scale, or not at all, got None": lambda: call(
            x, num_groups=2, time_scale=torch.ones(4, 6)
        ),
        "time_bias must be given with time_scale, or not at all, got 'a tensor'": lambda: call(
            x, num_groups=2, time_bias=torch.ones(4, 6)
        ),
    }
    for message, check in cases.items():
        with pytest.raises(InputError, match=message):
            check()


def gradients(inputs: Sequence[Tensor], upstream: Tensor, call: Callable[..., Tensor]) -> list[Tensor]:
    """The result, and the gradients of all inputs."""
    inputs = [one.detach().requires_grad_() for one in inputs]
    y = call(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, upstream)]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", [(6, 10, 5, 3, 5), (2, 6, 1, 2, 1), (6, 64, 16, 16, 16), (3, 96, 9, 2, 32)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("timed", [False, True], ids=["", "time"])
@pytest.mark.parametrize("distance", [1, 2, 7])
def test_native_agrees(
    dtype: torch.dtype, shape: tuple[int, ...], boundary: Boundary | None, timed: bool, distance: int
) -> None:
    *size, groups = shape
    frames = 1 if size[0] == 2 else 3
    generator = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(2, *size, generator=generator)
    x = x * 2 + 5
    affine = list(torch.randn(2, size[1], generator=generator))
    affine += list(torch.randn(2, *size[:2], generator=generator)) if timed else []
    x, upstream = (one.to(dtype, memory_format=torch.channels_last) for one in (x, upstream))
    affine = [one.to(dtype) for one in affine]

    def call(backend: Backend, x: Tensor, weight: Tensor, bias: Tensor, *time: Tensor) -> Tensor:
        times = time or (None, None)
        return shift_group_norm_silu(x, weight, bias, groups, 1e-5, frames, 3, boundary, backend, *times, distance)

    exact = gradients([one.double() for one in (x, *affine)], upstream.double(), functools.partial(call, "eager"))
    tolerance = 1e-5 if dtype == torch.float32 else 1.6e-2
    for count in (1, 2, 7):
        with threads(count):
            ours = gradients([x, *affine], upstream, functools.partial(call, "native"))
        for own, expected in zip(ours, exact, strict=True):
            assert own.dtype == dtype
            error = (own.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-2)
            assert error <= tolerance, float(error)
        assert ours[0].stride() == ours[1].stride() == x.stride()


@needs_compiler
def test_native_sums_do_not_depend_on_threads_nor_on_other_pictures() -> None:
    x = torch.randn(4, 96, 8, 8).bfloat16().to(memory_format=torch.channels_last)
    call = functools.partial(
        shift_group_norm_silu, weight=torch.randn(96), bias=torch.randn(96), num_groups=8, boundary=None
    )
    together = call(x, backend="native")
    for count in (1, 3, 8):
        with threads(count):
            assert torch.equal(torch.cat([call(one, backend="native") for one in x.split(1)]), together)


@needs_compiler
def test_native_takes_numbers_that_are_not_finite_or_far_from_zero() -> None:
    x = torch.randn(2, 4, 3, 3).bfloat16().to(memory_format=torch.channels_last)
    x[0, 0, 0, 0] = float("nan")
    weight = torch.ones(4)
    y = shift_group_norm_silu(x, weight, weight, 2, boundary=None, backend="native")
    assert y[0, :2].isnan().all()
    assert not y[0, 2:].isnan().any()
    assert not y[1].isnan().any()
    far = shift_group_norm_silu(x[1:], weight * 1e4, weight, 2, boundary=None, backend="native")
    assert far.isfinite().all()
    assert far.max() > 1e3
    assert far.min() > -1


@needs_compiler
@pytest.mark.parametrize("side", [3, 16, 64])
@pytest.mark.parametrize("offset", [0.0, 20.0, 1000.0])
def test_native_is_exact_where_one_pixel_is_unlike_the_others(side: int, offset: float) -> None:
    """Corners differ in the output of every convolution with zeros around."""
    x = torch.randn(2, 64, side, side, generator=torch.Generator().manual_seed(0))
    x[:, :, 0, 0] += offset
    x[:, :, -1, -1] -= offset / 2
    one = torch.ones(64)
    found = group_norm(x.to(memory_format=torch.channels_last), one, one, 32, backend="native")
    expected = nn.functional.group_norm(x.double(), 32, one.double(), one.double())
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5


@needs_compiler
def test_group_norm_alone() -> None:
    x, weight, bias, upstream = features(torch.float32, torch.channels_last)
    norm = functools.partial(nn.functional.group_norm, num_groups=5)
    exact = gradients([x, weight, bias], upstream, lambda x, *affine: norm(x, weight=affine[0], bias=affine[1]))
    for backend in ("native", "eager"):
        ours = gradients([x, weight, bias], upstream, functools.partial(group_norm, num_groups=5, backend=backend))
        for own, expected in zip(ours, exact, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="num_groups must divide the 10 channels, got 3"):
        group_norm(x, weight, bias, 3)


@needs_compiler
def test_native_leaves_other_layouts_and_compiled_graphs_to_eager() -> None:
    x, weight, bias, _ = features(torch.float32, torch.contiguous_format)
    call = functools.partial(shift_group_norm_silu, x, weight, bias, 5, 1e-5, 3, 3, "circular")
    assert torch.equal(call(backend="native"), call(backend="eager"))
    script = """
import functools, torch
from latent_shift.ops import shift_group_norm_silu
x, weight = torch.randn(3, 6, 4, 4).to(memory_format=torch.channels_last), torch.ones(6)
call = functools.partial(shift_group_norm_silu, x, weight, weight, 2, 1e-5, 3)
compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
print(torch.equal(compiled(backend="native"), call(backend="eager")))
"""  # in an interpreter of its own, since checks of annotations cannot be compiled
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


@needs_compiler
def test_native_is_an_operator() -> None:
    x, weight, bias, _ = features(torch.float32, torch.channels_last)
    shift_group_norm_silu(x, weight, bias, 5, backend="native")
    operator = torch.ops.latent_shift.shift_group_norm_silu.default
    torch.library.opcheck(operator, (x, weight, bias, 5, 1e-5, 3, 3, 1, False, True, "native"))
    empty = shift_group_norm_silu(x[:0], weight, bias, 5, backend="native")
    assert empty.shape == (0, *x.shape[1:])


def test_native_is_compiled_once_and_says_why_not(tmp_path: Path) -> None:
    script = "from latent_shift.ops import choose_backend; print('|'.join(choose_backend('cpu')))"

    def choose(**environment: str) -> str:
        known = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **environment}
        known.pop("LATENT_SHIFT_BACKEND", None)
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=known, capture_output=True, text=True, check=True).stdout

    assert choose(CXX="no-such-compiler") == "eager|no compiler no-such-compiler was found\n"
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho first >&2\necho it broke >&2\nexit 1\n")
    failing.chmod(0o755)
    assert choose(CXX=str(failing)) == f"eager|{failing} failed: it broke\n"
    assert not list((tmp_path / "cache").rglob("*.so"))
    (tmp_path / "file").touch()
    assert choose(XDG_CACHE_HOME=str(tmp_path / "file")).startswith("eager|")
    if not _native.obstacle():
        assert choose() == "native|one pass over the features\n"
        (library,) = (tmp_path / "cache").rglob("*.so")
        built = library.stat().st_mtime_ns
        assert choose() == "native|one pass over the features\n"
        assert library.stat().st_mtime_ns == built
        assert list((tmp_path / "cache").rglob("*")) == [library.parent, library]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc/cpuinfo")
def test_another_processor_or_compiler_gets_a_library_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of users are shared between machines, and instructions that a processor lacks end the process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = tmp_path / "g++"
    compiler.write_text("one")
    places = []
    for known in ("fpu sse2", "fpu sse2", "fpu sse2 avx512f"):
        monkeypatch.setattr(Path, "read_text", lambda *_, known=known: f"processor : 0\nflags : {known}\n")
        places.append(_native._cached(str(compiler), ("-O3",)))
    places.append(_native._cached(str(compiler), ("-O2",)))
    compiler.write_text("another")
    places.append(_native._cached(str(compiler), ("-O2",)))
    assert places[0] == places[1]
    assert len(set(places)) == 4


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", ["agrees", "views", "time", "operator", "network"])
def test_triton_by_its_interpreter(name: str, tmp_path: Path) -> None:
    run_case(name, "cpu", tmp_path)


@needs_triton
@pytest.mark.slow
def test_triton_kernels_compile_without_a_gpu(tmp_path: Path) -> None:
    run_case("compiles", "cpu", tmp_path)


@needs_triton
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["automatic", "agrees", "views", "time", "operator", "network"])
def test_triton_on_a_gpu(name: str, tmp_path: Path) -> None:
    run_case(name, "cuda", tmp_path)


@needs_compiler
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # of `torch.func.jvp`
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_tangents_are_those_of_eager(boundary: Boundary | None) -> None:
    """PyTorch takes the forward-mode derivative of an operator that has none to be zero, and says nothing."""
    x, weight, bias, upstream = features(torch.float32, torch.channels_last)
    x = x.detach()
    outputs = []
    for backend in ("eager", "native"):

        def run(x: Tensor, weight: Tensor, bias: Tensor, backend: Backend = backend) -> Tensor:
            return shift_group_norm_silu(x, weight, bias, 2, num_frames=3, boundary=boundary, backend=backend)

        inputs = (x, weight.detach(), bias.detach())
        value, tangent = torch.func.jvp(run, inputs, (upstream, *inputs[1:]))
        batched = torch.func.vmap(run, (0, None, None))(torch.stack([x, upstream]), *inputs[1:])
        gradient = torch.func.grad(lambda *inputs, run=run: run(*inputs).square().sum())(*inputs)
        step = 1e-3
        moved = run(x + step * upstream, (1 + step) * inputs[1], (1 + step) * inputs[2]) - run(*inputs)
        torch.testing.assert_close(tangent, moved / step, rtol=0.02, atol=0.02)
        outputs.append((value, tangent, batched, gradient))
    torch.testing.assert_close(outputs[0], outputs[1])
