"""Loading the parts of a model folder, with one clear error where a file is missing or damaged."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
from safetensors import SafetensorError

import latent_shift
from latent_shift.core.errors import DataError, InputError, LatentShiftError


def component_class(folder: Path, name: str) -> Any:
    """The class that `model_index.json` of a pipeline folder names for a part.

    Raises:
        InputError: the folder is no pipeline, or it names a class that neither diffusers nor this package has.
    """
    index = folder / "model_index.json"
    try:
        library, class_name = json.loads(index.read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("model", str(folder), f"be a folder with a model_index.json that names its {name}") from error
    source = latent_shift if library == "latent_shift" else diffusers
    if not hasattr(source, class_name):
        raise InputError(f"{name} in {index}", f"{library}.{class_name}", "be a class of diffusers or latent_shift")
    return getattr(source, class_name)


def load_component(loaded_class: Any, folder: Path, **kwargs: Any) -> Any:
    """`loaded_class.from_pretrained(folder)`, strict: every key must be there and fit.

    Raises:
        InputError: a key is missing, unexpected or has another shape.
        DataError: a file is missing or damaged.
    """
    with damaged_files_named(folder):
        component, report = loaded_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    wrong = {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report.get(key)}
    if wrong:
        kind, keys = next(iter(wrong.items()))
        raise InputError(f"weights in {folder}", f"{kind.replace('_', ' ')} {list(keys)[:3]}", "fit the network")
    return component


@contextlib.contextmanager
def damaged_files_named(folder: Path) -> Iterator[None]:
    """Turns what libraries raise on a missing or damaged file into one `DataError` that names the folder."""
    try:
        yield
    except LatentShiftError:
        raise
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{_damaged_file(folder) or folder} cannot be loaded: {first_line}") from error


def _damaged_file(folder: Path) -> Path | None:
    """The first weight file below `folder` whose header or length is wrong."""
    from safetensors import safe_open

    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError):
            return path
    return None
