"""Shift, GroupNorm and SiLU in C++, for features in channels_last on a CPU; compiled once for each machine.

PyTorch's GroupNorm is slow where channels are last and a group is narrower than a vector, and convolutions are slow
where they are not last. `_native.cpp` needs no headers but the compiler's own, so compiling takes about a second; the
library is kept in the user's cache. `_fused.py` calls `forward` and `backward`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("_native.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
_WIDE_VECTORS = ("-mprefer-vector-width=512",)
"""Else GCC uses half of what AVX-512 has; no other architecture knows the flag."""
_COMPILE_SECONDS = 120
_NAMES = {torch.float32: "float", torch.bfloat16: "bfloat16"}

DTYPES = tuple(_NAMES)


class _Sizes(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("pictures", "channels", "pixels", "groups", "frames"),
            *("shifted", "distance", "circular", "splits", "affine_stride", "activate"),
        )
    )


def obstacle() -> str:
    """Why it cannot be used on this machine; empty where it can. Compiles it if need be."""
    found = _library()
    return found if isinstance(found, str) else ""


def lay_out(x: Tensor) -> Tensor:
    """`x` in channels_last."""
    return x.contiguous(memory_format=torch.channels_last)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    outputs: tuple[Tensor, Tensor, Tensor],
    eps: float,
    num_frames: int,
    k: int,
    distance: int,
    circular: bool,
    activate: bool,
) -> None:
    """Fills `outputs`: the result, and mean and reciprocal deviation of each picture's groups."""
    sizes = _sizes(x, weight, outputs[1].shape[1], num_frames, k, distance, circular, activate)
    _call("forward", x.dtype, sizes, ctypes.c_float(eps), x, weight.float(), bias.float(), *outputs)


def backward(
    upstream: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    moments: tuple[Tensor, Tensor],
    outputs: tuple[Tensor, Tensor, Tensor],
    num_frames: int,
    k: int,
    distance: int,
    circular: bool,
    activate: bool,
) -> None:
    """Fills `outputs`: the gradient of `x`, and of weight and bias for each picture."""
    sizes = _sizes(x, weight, moments[0].shape[1], num_frames, k, distance, circular, activate)
    _call("backward", x.dtype, sizes, upstream, x, weight.float(), bias.float(), *moments, *outputs)


def _sizes(
    x: Tensor, weight: Tensor, num_groups: int, num_frames: int, k: int, distance: int, circular: bool, activate: bool
) -> _Sizes:
    pictures, channels, height, width = x.shape
    divisors = (number for number in range(1, num_groups + 1) if num_groups % number == 0)
    splits = next(number for number in divisors if number == num_groups or number * pictures >= torch.get_num_threads())
    affine_stride = channels if weight.dim() == 2 else 0
    features = (pictures, channels, height * width, num_groups, num_frames)
    return _Sizes(*features, k, distance, circular, splits, affine_stride, activate)


def _call(name: str, dtype: torch.dtype, sizes: _Sizes, *arguments: Tensor | ctypes.c_float) -> None:
    library = _library()
    assert isinstance(library, ctypes.CDLL), library
    pointers = (ctypes.c_void_p(one.data_ptr()) if isinstance(one, Tensor) else one for one in arguments)
    getattr(library, f"{name}_{_NAMES[dtype]}")(ctypes.byref(sizes), *pointers)


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled library, or why there is none."""
    if platform.system() != "Linux":
        return "its compilation is only known for Linux"
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        return f"no compiler {os.environ.get('CXX') or 'g++'} was found"
    flags = (*_FLAGS, *(_WIDE_VECTORS if platform.machine() == "x86_64" else ()))
    try:
        target = _cached(compiler, flags)
        if not target.exists():
            _compile(compiler, flags, target)
        return ctypes.CDLL(str(target))
    except subprocess.CalledProcessError as error:
        return f"{compiler} failed: {(error.stderr.strip().splitlines() or ['it said nothing'])[-1]}"
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        return str(error)


def _cached(compiler: str, flags: tuple[str, ...]) -> Path:
    """Where the library of this source, compiler and processor is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))]
    built = Path(compiler).stat()
    key = repr((_SOURCE.read_bytes(), flags, compiler, built.st_mtime_ns, built.st_size, cpu[:1]))
    return cache / "latent-shift" / f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"


def _compile(compiler: str, flags: tuple[str, ...], target: Path) -> None:
    """Links without an OpenMP library, so that it shares the threads of the one that PyTorch has loaded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        compiled, linked = Path(folder) / "native.o", Path(folder) / "native.so"
        for command in (
            [compiler, *flags, "-c", str(_SOURCE), "-o", str(compiled)],
            [compiler, "-shared", str(compiled), "-o", str(linked)],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
        linked.replace(target)
