"""Which records a stage may see."""

from __future__ import annotations

import numpy as np

from latent_shift.core.errors import InputError
from latent_shift.data.heldout import stage_records, verify_heldout
from latent_shift.data.records import CaptionedVideo, CaptionedVideoFolder

from .config import Recipe


def select_records(folder: CaptionedVideoFolder, recipe: Recipe) -> list[CaptionedVideo]:
    """The records of `folder` that the recipe's stage may see, by the folder's held-out list.

    Raises:
        InputError: the folder carries a held-out list that this version does not know, or nothing is left.
    """
    verify_heldout(folder.manifest, folder.path)
    records = stage_records(folder, recipe.stage)
    if not records:
        raise InputError("data.folder", recipe.data.folder, f"have records for the {recipe.stage} stage")
    return records


def check_frame_size(frames: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Returns `frames`, `(n, height, width, 3)`.

    Raises:
        InputError: they have another size than the recipe says.
    """
    height, width = frames.shape[1:3]
    if (height, width) != (recipe.data.size, recipe.data.size):
        raise InputError("data.size", recipe.data.size, f"be the size of the folder's frames ({width}x{height})")
    return frames
