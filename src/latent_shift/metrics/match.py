"""Whether a clip shows what it should: retrieval of its label among real clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32


@dataclass(frozen=True)
class LabelledFeatures:
    """Real clips to be compared with.

    Attributes:
        features: `(clips, width)`, rows of length 1.
        labels: of each clip; several clips may share one.
        tones: of each clip, what tells apart clips of one label; None where it has none.
    """

    features: Float32[np.ndarray, "clips width"]
    labels: Sequence[str]
    tones: Sequence[str | None]

    def ranked_labels(self, feature: Float32[np.ndarray, " width"]) -> list[str]:
        """The distinct labels, the one with the clip of the highest cosine first."""
        order = np.argsort(-(self.features @ feature), kind="stable")
        return list(dict.fromkeys(self.labels[index] for index in order))

    def nearest_tone(self, feature: Float32[np.ndarray, " width"], label: str) -> str | None:
        """The tone of the nearest clip of `label`."""
        cosines = self.features @ feature
        own = [index for index, name in enumerate(self.labels) if name == label]
        return self.tones[max(own, key=lambda index: float(cosines[index]))]
