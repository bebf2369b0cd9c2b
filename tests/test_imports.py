"""What importing the package loads, and that its public names are there."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import latent_shift

HEAVY = ("torch", "diffusers", "transformers", "av", "matplotlib", "PIL", "numpy")
LIGHT = [
    "latent_shift",
    "latent_shift.core.config",
    "latent_shift.cli",
    "latent_shift.data",
    "latent_shift.metrics",
    "latent_shift.training",
    "latent_shift.server",
    "latent_shift.study",
    "latent_shift.study.app",
]


def loaded(code: str) -> set[str]:
    """Top-level modules of a fresh interpreter after some code."""
    code += "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


@pytest.mark.parametrize("module", LIGHT)
def test_importing_loads_no_heavy_library(module: str) -> None:
    assert loaded(f"import {module}").isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "module", ["latent_shift.media", "latent_shift.data.heldout", "latent_shift.data.emoji", "latent_shift.data.clips"]
)
def test_media_and_data_never_load_torch(module: str) -> None:
    assert loaded(f"import {module}").isdisjoint({"torch", "diffusers", "transformers", "av"})


def test_public_names_resolve() -> None:
    namespace: dict[str, object] = {}
    exec("from latent_shift import *", namespace)
    assert set(latent_shift.__all__) <= namespace.keys()
    assert set(latent_shift.__all__) <= set(dir(latent_shift))
    for name in ("LatentShiftPipeline", "LatentShiftUNet", "PatchAutoencoderKL", "temporal_shift"):
        assert namespace[name] is getattr(latent_shift, name)
        assert callable(namespace[name])


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'latent_shift' has no attribute 'LatentShfit'"):
        latent_shift.LatentShfit  # noqa: B018


ROOMS = [
    "core",
    "ops",
    "media",
    "models",
    "data",
    "metrics",
    "pipelines",
    "training",
    "benchmark",
    "evaluation",
    "server",
    "study",
    "cli",
]


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_imports_and_every_name_of_its_room_resolves(room: str) -> None:
    package = importlib.import_module(f"latent_shift.{room}")
    for info in pkgutil.iter_modules(package.__path__):
        if info.name == "_triton":
            continue  # its functions are source code for Triton, which checks of annotations change: tests/ops runs it
        importlib.import_module(f"latent_shift.{room}.{info.name}")
    for name in getattr(package, "__all__", []):
        assert getattr(package, name) is not None
