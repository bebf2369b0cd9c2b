"""The seam between the service and what makes clips: submit, cancel, and events that come back.

The service knows this module alone, so that clips may be made by threads of this process (`worker.LocalEngine`) or by
other machines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from latent_shift.core.config import Config

VARIANTS = {
    "video": "clip.mp4",
    "webp": "clip.webp",
    "gif": "clip.gif",
    "thumbnail": "still.png",
    "spritesheet": "sheet.jpg",
}
"""The files of a result. `still.png` is the first frame; of an image, the image itself."""


class ClipRequest(Config):
    """A clip that was asked for, with nothing left open. The names are the pipeline's."""

    model: str
    prompt: str
    negative_prompt: str
    seed: int
    num_frames: int
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    loop: bool
    """Circular shift, for a seamless loop; else the model's own boundary."""
    fps: float
    """Frames a second of the files."""

    @property
    def shape(self) -> tuple[Any, ...]:
        """What clips must have in common to be made in one batch."""
        own = ("prompt", "negative_prompt", "seed", "fps")
        return tuple(value for name, value in self if name not in own)


class ModelFacts(Config):
    """What the service must know of a model to check a request and to fill its gaps."""

    name: str
    num_frames: int
    width: int
    height: int
    size_factor: int
    """Width and height must be divisible by it."""
    guidance_scale: float
    fps: float
    schedulers: dict[str, int]
    """Names, and the usual number of steps of each."""
    scheduler: str
    """The one that is used where none is asked for."""
    max_steps: int
    """Steps of training: no scheduler makes more."""
    loops: bool
    """Whether every clip of it is a loop."""


@dataclass(frozen=True)
class Event:
    """Something happened to a job."""

    job_id: str


class Started(Event):
    """The job has a device now."""


@dataclass(frozen=True)
class Progress(Event):
    """A denoising step is done."""

    step: int
    """From 1."""
    steps: int
    preview: bytes | None = None
    """JPEG of one frame as the model now takes it to be; None where there is no newer one."""


class Finished(Event):
    """All of `VARIANTS` are in the job's folder."""


@dataclass(frozen=True)
class Failed(Event):
    """The clip could not be made."""

    message: str


@runtime_checkable
class Engine(Protocol):
    """Makes clips. Every method is safe to call from any thread."""

    facts: ModelFacts
    """Of the model that it serves."""

    def start(self, report: Callable[[Event], None]) -> None:
        """Begins; `report` is called with each event, from any thread."""

    def submit(self, job_id: str, request: ClipRequest, folder: Path) -> None:
        """Queues a job. Its `VARIANTS` are written to `folder`, whole or not at all."""

    def cancel(self, job_id: str) -> None:
        """Forgets a job. If it runs, its device is free after the current step; no event follows that."""

    def stop(self) -> None:
        """Ends after the current step. What ran or waited is left undone, without an event."""

    def busy(self) -> int:
        """Devices that make something now. A cancelled job keeps its device until the current step is done."""

    def healthy(self) -> bool:
        """Whether every device still takes jobs."""
