"""What Prometheus may ask for. Labels come from short lists, never from clients."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_CLIP_SECONDS = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """The counters of one server; a registry of its own, so that two servers can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        name = "latent_shift_"
        self.requests = Counter(
            f"{name}http_requests", "Answers to HTTP requests.", ["method", "route", "status"], registry=self.registry
        )
        self.latency = Histogram(
            f"{name}http_seconds", "Time to the first byte of an answer.", ["route"], registry=self.registry
        )
        self.jobs = Counter(f"{name}jobs", "Jobs by how they ended.", ["status"], registry=self.registry)
        self.queued = Gauge(f"{name}jobs_queued", "Jobs that wait.", registry=self.registry)
        self.running = Gauge(f"{name}jobs_running", "Jobs that are being made.", registry=self.registry)
        self.steps = Counter(f"{name}steps", "Denoising steps, one for each clip of a batch.", registry=self.registry)
        self.clip_seconds = Histogram(
            f"{name}clip_seconds",
            "Time from start to end of a completed job.",
            buckets=_CLIP_SECONDS,
            registry=self.registry,
        )
        self.wait_seconds = Histogram(
            f"{name}wait_seconds", "Time in the queue.", buckets=_CLIP_SECONDS, registry=self.registry
        )
