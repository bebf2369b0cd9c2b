"""Clips through networks, a batch at a time: only features are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float32

from latent_shift.core.errors import InputError
from latent_shift.core.shapes import check_at_least
from latent_shift.media import Frames, even_frame_indices

from .extractors import FeatureExtractor

FeatureRows = Float32[np.ndarray, "_ _ _"]
"""`(clips, rows, dimension)`."""


class FramesFor(NamedTuple):
    """An extractor, and how many evenly spaced frames of each clip it gets; None: all."""

    extractor: FeatureExtractor
    frames: int | None = None


def extract_features(extractor: FeatureExtractor, clips: Iterable[Frames], batch_size: int = 8) -> FeatureRows:
    """Features of clips, in their order.

    Args:
        extractor: what makes them.
        clips: `(frames, height, width, 3)` each, uint8, all with as many frames; consumed as a stream.
        batch_size: clips at once; changes features only within rounding.

    Returns:
        `(clips, rows, dimension)`: as many rows a clip as it has frames, or one.

    Raises:
        InputError: the network cannot take so many frames, or clips differ in their number of frames.
    """
    return extract_together({"": FramesFor(extractor)}, clips, batch_size)[""]


def extract_together(
    networks: Mapping[str, FramesFor], clips: Iterable[Frames], batch_size: int = 8
) -> dict[str, FeatureRows]:
    """The features of several extractors, from one pass over the clips; see `extract_features`."""
    check_at_least("batch_size", batch_size, 1)
    rows: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in networks}
    for batch in _batches(clips, batch_size):
        for name, (extractor, frames) in networks.items():
            count = batch.shape[1]
            chosen = batch if frames is None else batch[:, even_frame_indices(count, min(frames, count))]
            rows[name].append(extractor(torch.from_numpy(np.ascontiguousarray(chosen))).numpy())
    return {
        name: np.concatenate(parts) if parts else np.zeros((0, 1, networks[name].extractor.info.dimension), np.float32)
        for name, parts in rows.items()
    }


def _batches(clips: Iterable[Frames], size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Up to `size` neighbours of one shape at a time."""
    batch: list[Frames] = []
    for clip in clips:
        if batch and len(clip) != len(batch[0]):
            raise InputError("clips", f"{len(clip)} frames", f"all have {len(batch[0])} frames, as the clip before")
        if batch and (len(batch) == size or clip.shape != batch[0].shape):
            yield np.stack(batch)
            batch = []
        batch.append(clip)
    if batch:
        yield np.stack(batch)
