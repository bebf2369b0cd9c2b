"""A score that says how it was made."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MetricResult:
    """A score, how sure it is, and everything that it depends on.

    Attributes:
        metric: its name, one of `METRICS`.
        value: the score.
        interval: 95 % bootstrap interval; None where none was asked for.
        real_value: the score of the real clips, for scores of one set alone; None where there is none.
        protocol: how it was made, in words and numbers that JSON can hold.
    """

    metric: str
    value: float
    interval: tuple[float, float] | None
    real_value: float | None = None
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def protocol_hash(self) -> str:
        """Scores of the same metric with the same hash were made the same way, from as many clips."""
        text = json.dumps([self.metric, self.protocol], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "metric": self.metric,
            "value": self.value,
            "interval_95": None if self.interval is None else list(self.interval),
            "real_value": self.real_value,
            "protocol": self.protocol,
            "protocol_hash": self.protocol_hash,
        }

    def __str__(self) -> str:
        """Two lines: the score, and its protocol."""
        parts = [f"{self.metric:<18}{self.value:>12.6g}"]
        if self.interval is not None:
            parts.append(f"  95 %: {self.interval[0]:.6g} to {self.interval[1]:.6g}")
        if self.real_value is not None:
            parts.append(f"  real clips: {self.real_value:.6g}")
        features = self.protocol.get("features")
        facts = [f"{key}={value}" for key, value in self.protocol.items() if key != "features" and value is not None]
        if features:
            facts.append(f"features={features['name']} ({features['weights']}, {features['revision']}")
            facts[-1] += f", sha256 {features['sha256'][:12]}; {features['resize']})" if features["sha256"] else ")"
        return f"{''.join(parts)}\n  {', '.join(facts)}, protocol={self.protocol_hash}"
