"""Judges clips of emoji against the real ones: whether they show their label, and move as that thing moves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from latent_shift.core.files import atomic_path, sha256_file
from latent_shift.data.records import MANIFEST_FILE, METADATA_FILE, CaptionedVideoFolder
from latent_shift.media import Frames, loop_frame_indices, resize_frames
from latent_shift.metrics import (
    LabelledFeatures,
    frame_difference,
    frame_features,
    load_efficientnet_lite0,
    motion_r2,
    unit_rows,
)
from latent_shift.metrics.features import weights_path

from .samples import Progress
from .subjects import Subject

_MATCH_FRAMES = 8
"""A clip is looked at in so many evenly spaced frames."""
_VERSION = 1
"""Of what `Judgement` holds: another one where its arithmetic changes, so that kept numbers are made again."""


@dataclass(frozen=True)
class Judgement:
    """What a clip of one subject is worth.

    Attributes:
        top1: whether the label is the nearest of all labels' real clips; with the right tone, where one is asked for.
        top5: whether it is among the five nearest distinct labels; tone as above.
        tone: whether the tone is right among that label's tones; true where none is asked for.
        r2: `metrics.motion_r2`; None where the real clip does not move.
        ratio: of its mean frame difference to the real clip's; None as for `r2`.
        features: of EfficientNet-Lite0, of up to eight evenly spaced frames.
    """

    top1: bool
    top5: bool
    tone: bool
    r2: float | None
    ratio: float | None
    features: Float32[np.ndarray, "frames 1280"]


class EmojiJudge:
    """Compares clips with all real ones of a folder."""

    def __init__(
        self, folder: CaptionedVideoFolder, output: Path, device: torch.device, progress: Progress | None = None
    ) -> None:
        """Computes the features of every real clip, or takes those of the last run where nothing changed.

        Args:
            folder: what `latent-shift data emoji` made.
            output: where these features are kept.
            device: where the network runs.
            progress: told how far they are.
        """
        self._folder = folder
        self._network = load_efficientnet_lite0(device)
        clips = [record for record in folder if record.metadata["kind"] == "clip"]
        files = (folder.path / METADATA_FILE, folder.path / MANIFEST_FILE, weights_path())
        hashes = " ".join(sha256_file(file) for file in files)
        self.key = hashlib.sha256(f"{hashes} {_MATCH_FRAMES} {_VERSION}".encode()).hexdigest()[:12]
        """Names the real clips, the network and the arithmetic."""
        path = output / f"real-{self.key}.npy"
        if not path.is_file():
            rows = []
            for done, record in enumerate(clips):
                if progress is not None:
                    progress("features of the real clips", done, len(clips))
                rows.append(_mean_row(self.features(folder.read(record.index).frames)))
            with atomic_path(path) as temporary:
                np.save(temporary, np.stack(rows), allow_pickle=False)
        self.reference = LabelledFeatures(
            np.load(path, allow_pickle=False),
            [record.metadata["label"] for record in clips],
            [record.metadata["tone"] if isinstance(record.metadata["tone"], str) else None for record in clips],
        )

    def features(self, frames: Frames) -> Float32[np.ndarray, "frames 1280"]:
        """Of up to eight evenly spaced frames."""
        chosen = loop_frame_indices(len(frames), min(_MATCH_FRAMES, len(frames)))
        return frame_features(self._network, frames[chosen])

    def judge(self, subject: Subject, clip: Frames) -> Judgement:
        """Looks at one clip.

        An image, a clip of one frame, counts as a frozen clip. A smaller clip, or one of fewer frames, is compared with
        the real one as even frames of its whole loop, in that size.
        """
        real = self._folder.read(subject.record).frames
        if len(clip) > 1:
            real = real[loop_frame_indices(len(real), len(clip))]
        real = resize_frames(real, clip.shape[1:3])
        rows = self.features(clip)
        mean = _mean_row(rows)
        near = self.reference.ranked_labels(mean)
        tone = subject.tone is None or self.reference.nearest_tone(mean, subject.label) == subject.tone
        top1, top5 = (tone and subject.label in near[:most] for most in (1, 5))
        r2 = ratio = None
        difference = frame_difference(real)
        if difference > 0:
            moving = np.repeat(clip, len(real), axis=0) if len(clip) == 1 else clip
            r2, ratio = motion_r2(moving, real), frame_difference(moving) / difference
        return Judgement(top1, top5, tone, r2, ratio, rows)


def _mean_row(rows: Float32[np.ndarray, "frames 1280"]) -> Float32[np.ndarray, " 1280"]:
    """Of length 1, so that a product of two is their cosine."""
    row: Float32[np.ndarray, " 1280"] = unit_rows(rows.mean(axis=0, keepdims=True))[0]
    return row
