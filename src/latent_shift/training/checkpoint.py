"""Checkpoints: safetensors and a manifest with hashes, written aside and renamed; the newest whole one is found."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.files import atomic_path, sha256_file, write_json

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"


def save_checkpoint(
    root: Path,
    step: int,
    groups: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 2,
    keep_every: int | None = None,
) -> Path:
    """Writes `root/step_XXXXXXXX`, whole or not at all, then removes all but the newest `keep`.

    Args:
        root: folder of the run's checkpoints.
        step: optimiser steps done.
        groups: named sets of tensors, one file each.
        state: JSON values stored in the manifest.
        keep: how many checkpoints stay.
        keep_every: those at multiples of so many steps stay, too.

    Raises:
        InputError: the folder cannot be written.
        DataError: the disk is full, or fails. The checkpoints that were there stay.
    """
    place = root / f"step_{step:08d}"
    for half_written in root.glob(".step_*"):  # by a run that was killed while it wrote
        shutil.rmtree(half_written, ignore_errors=True)
    with atomic_path(place) as temporary:
        try:
            temporary.mkdir()
            for name, tensors in groups.items():
                contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
                save_file(contiguous, temporary / f"{name}.safetensors")
            hashes = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
            write_json(temporary / _MANIFEST, {"step": step, "state": dict(state), "sha256": hashes})
        except (OSError, SafetensorError, InputError) as error:
            raise DataError(f"checkpoint {place} cannot be written ({error}); the one before it stays") from error
    found = _checkpoints(root)
    later = [old for old in found if _step(old) > step]  # damaged ones, without which the run went on
    passing = [old for old in found if _step(old) <= step and (not keep_every or _step(old) % keep_every)]
    for old in later + passing[keep:]:
        shutil.rmtree(old)
    return place


def has_checkpoints(root: Path) -> bool:
    """Whether a run has kept any, whole or damaged."""
    return bool(_checkpoints(root))


def latest_checkpoint(root: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], int] | None:
    """The newest whole checkpoint as (tensor groups, state, step), or None where there is none.

    A damaged one is reported in the log and the one before it is taken.

    Raises:
        DataError: if there are checkpoints and every one is damaged.
    """
    for place in _checkpoints(root):
        try:
            manifest = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
            for name, digest in manifest["sha256"].items():
                if sha256_file(place / name) != digest:
                    raise DataError(f"{place / name} does not have the hash of its manifest")
            groups = {name.removesuffix(".safetensors"): load_file(place / name) for name in manifest["sha256"]}
        except (OSError, ValueError, KeyError, SafetensorError, DataError) as error:
            logger.warning("checkpoint %s is damaged (%s); trying the one before", place.name, error)
            continue
        return groups, manifest["state"], manifest["step"]
    _refuse_damaged(root)
    return None


def checkpoint_state(root: Path) -> dict[str, Any] | None:
    """The state that the newest checkpoint keeps, or None where there is none; its tensors are not looked at.

    Raises:
        DataError: if there are checkpoints and no manifest can be read.
    """
    for place in _checkpoints(root):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return dict(json.loads((place / _MANIFEST).read_text(encoding="utf-8"))["state"])
    _refuse_damaged(root)
    return None


def _refuse_damaged(root: Path) -> None:
    if has_checkpoints(root):
        raise DataError(f"every checkpoint below {root} is damaged; remove the folder to start anew")


def _checkpoints(root: Path) -> list[Path]:
    """The newest first; a copy that somebody made of one (`step_00000100.bak`) is none of the run's."""
    places = (path for path in root.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name) and path.is_dir())
    return sorted(places, key=_step, reverse=True)


def _step(place: Path) -> int:
    return int(place.name.removeprefix("step_"))
