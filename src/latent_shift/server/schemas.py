"""What travels: OpenAI's dialect for videos, with the fields of this model beside its own."""

from __future__ import annotations

import secrets
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from latent_shift.core.errors import InputError
from latent_shift.core.shapes import check_divisible

from .engine import ClipRequest, ModelFacts
from .jobs import Snapshot
from .settings import ServerSettings

MAX_SEED = 2**53 - 1
"""The largest whole number that every JSON reader keeps."""

_STATUS: dict[str, Literal["queued", "in_progress", "completed"]] = {
    "queued": "queued",
    "running": "in_progress",
    "completed": "completed",
}


class _Schema(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


class VideoRequest(_Schema):
    """A clip to make. What is left out is the model's own."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"prompt": "a waving hand", "seed": 1}]})

    prompt: Annotated[str, StringConstraints(min_length=1)]
    """The sentence."""
    model: str | None = None
    """One of `GET /v1/models`."""
    seconds: (
        Annotated[str, StringConstraints(pattern=r"^[0-9]{1,4}(\.[0-9]{1,3})?$")]
        | Annotated[float, Field(gt=0, le=9999, allow_inf_nan=False)]
        | None
    ) = None
    """Length; the number of frames follows from it."""
    size: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,5}x[0-9]{1,5}$")] | None = None
    """WIDTHxHEIGHT in pixels."""
    negative_prompt: str = ""
    """What to lead away from; needs guidance."""
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    """The same seed and settings give the same clip; drawn where it is left out."""
    frames: int | None = Field(default=None, ge=1)
    """Instead of `seconds`; 1 makes an image."""
    fps: float | None = Field(default=None, ge=0.1, le=50, allow_inf_nan=False)
    """Frames a second of the files."""
    steps: int | None = Field(default=None, ge=1)
    """Denoising steps."""
    guidance_scale: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    """Guidance; 1 or less turns it off."""
    scheduler: str | None = None
    """Solver of the denoising, one of the model's `schedulers`."""
    loop: bool = False
    """A seamless loop (circular shift)."""


class VideoForm(VideoRequest):
    """The same as a form. Of a form, all values are texts."""


class VideoError(_Schema):
    """Why there is no clip."""

    code: Literal["generation_failed", "cancelled"]
    message: str


class Video(_Schema):
    """A job and, when it is completed, its clip."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    """A cancelled job is `failed`, with the error code `cancelled`: the dialect has no other word."""
    progress: int = Field(ge=0, le=100)
    """Percent."""
    created_at: int
    """Seconds since 1970."""
    started_at: int | None = None
    completed_at: int | None = None
    expires_at: int | None = None
    """When the clip will be removed at the latest."""
    error: VideoError | None = None
    prompt: str
    remixed_from_video_id: None = None
    seconds: str
    """Length of the clip."""
    size: str
    """WIDTHxHEIGHT in pixels."""
    queue_position: int | None = None
    """Jobs before this one, while it is queued."""
    step: int
    """Denoising steps that are done."""
    negative_prompt: str
    seed: int
    frames: int
    fps: float
    steps: int
    guidance_scale: float
    scheduler: str
    loop: bool


class VideoList(_Schema):
    """A page of jobs."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    """Give it as `after` for the next page."""
    has_more: bool


class VideoDeleted(_Schema):
    """The answer to DELETE."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool
    """False where the job was not finished: it is cancelled and stays in the list."""


class Model(_Schema):
    """A model, and what it makes where a request does not say."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When this server started."""
    owned_by: str = "latent-shift"
    frames: int
    fps: float
    width: int
    height: int
    size_factor: int
    """Width and height must be divisible by it."""
    steps: int
    guidance_scale: float
    scheduler: str
    schedulers: dict[str, int]
    """Names, and the usual number of steps of each."""
    loops: bool
    """Whether every clip of it is a loop."""
    max_frames: int
    max_side: int
    max_steps: int
    max_prompt_chars: int


class ModelList(_Schema):
    """The models of this server."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(_Schema):
    """How the server is."""

    status: Literal["ok", "failing"]
    """`failing` where a device has stopped taking jobs; the log says why."""
    version: str
    queued: int
    running: int
    busy: int
    """Devices that make something now; one whose job was cancelled does so until its current step is done."""


class ErrorDetail(_Schema):
    """What is wrong."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None
    """The field that is wrong, where it is one."""
    code: str | None


class ErrorBody(_Schema):
    """Every error has this shape."""

    error: ErrorDetail


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An `ErrorBody` as a dict; a long message is cut."""
    message = message if len(message) <= 500 else f"{message[:500]}..."
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def resolve_request(request: VideoRequest, facts: ModelFacts, settings: ServerSettings) -> ClipRequest:
    """Fills the gaps of a request, and checks it against the model and the limits.

    Raises:
        InputError: names the field, its value and what was expected.
    """
    _check_text("prompt", request.prompt, settings.max_prompt_chars)
    _check_text("negative_prompt", request.negative_prompt, settings.max_prompt_chars)
    if not request.prompt.strip():
        raise InputError("prompt", request.prompt, "have a word")
    if request.model not in (None, facts.name):
        raise InputError("model", request.model, f"be {facts.name}, the model of this server")
    scheduler = facts.scheduler if request.scheduler is None else request.scheduler
    if scheduler not in facts.schedulers:
        raise InputError("scheduler", scheduler, f"be one of {', '.join(facts.schedulers)}")
    steps = facts.schedulers[scheduler] if request.steps is None else request.steps
    fps = facts.fps if request.fps is None else request.fps
    frames = _frames(request, facts, fps)
    width, height = _size(request, facts, settings.max_side)
    _check_most("steps", steps, min(settings.max_steps, facts.max_steps))
    _check_most("frames" if request.seconds is None else "seconds", frames, settings.max_frames, " frames")
    guidance = facts.guidance_scale if request.guidance_scale is None else request.guidance_scale
    if request.negative_prompt and guidance <= 1:
        expected = f"be left out where guidance is off (its scale is {guidance:g})"
        raise InputError("negative_prompt", request.negative_prompt, expected)
    return ClipRequest(
        model=facts.name,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
        num_frames=frames,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        loop=request.loop,
        fps=fps,
    )


def to_video(snapshot: Snapshot, keep_seconds: float) -> Video:
    """A job as clients see it."""
    job, request = snapshot.job, snapshot.job.request
    done = job.status == "completed"
    error = None
    if job.status == "cancelled":
        error = VideoError(code="cancelled", message="the job was cancelled")
    elif job.status == "failed":
        error = VideoError(code="generation_failed", message=job.error or "the clip could not be made")
    step = request.num_inference_steps if done else snapshot.step
    return Video(
        id=job.id,
        model=request.model,
        status=_STATUS.get(job.status, "failed"),
        progress=100 if done else min(99, 100 * step // request.num_inference_steps),
        created_at=int(job.created_at),
        started_at=None if job.started_at is None else int(job.started_at),
        completed_at=None if job.finished_at is None else int(job.finished_at),
        expires_at=int(job.finished_at + keep_seconds) if done and job.finished_at else None,
        error=error,
        prompt=job.prompt,
        seconds=f"{request.num_frames / request.fps:.3f}".rstrip("0").rstrip("."),
        size=f"{request.width}x{request.height}",
        queue_position=snapshot.position,
        step=step,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        frames=request.num_frames,
        fps=request.fps,
        steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        scheduler=request.scheduler,
        loop=request.loop,
    )


def to_model(facts: ModelFacts, settings: ServerSettings, created: int) -> Model:
    """A model as clients see it."""
    return Model(
        id=facts.name,
        created=created,
        frames=facts.num_frames,
        fps=facts.fps,
        width=facts.width,
        height=facts.height,
        size_factor=facts.size_factor,
        steps=facts.schedulers[facts.scheduler],
        guidance_scale=facts.guidance_scale,
        scheduler=facts.scheduler,
        schedulers=facts.schedulers,
        loops=facts.loops,
        max_frames=settings.max_frames,
        max_side=settings.max_side,
        max_steps=min(settings.max_steps, facts.max_steps),
        max_prompt_chars=settings.max_prompt_chars,
    )


def _frames(request: VideoRequest, facts: ModelFacts, fps: float) -> int:
    if request.frames is not None and request.seconds is not None:
        raise InputError("frames", request.frames, "be left out where seconds is given")
    if request.seconds is None:
        return request.frames or facts.num_frames
    seconds = float(request.seconds)
    if not seconds > 0:
        raise InputError("seconds", request.seconds, "be more than 0")
    return max(1, round(seconds * fps))


def _size(request: VideoRequest, facts: ModelFacts, most: int) -> tuple[int, int]:
    if request.size is None:
        return facts.width, facts.height
    width, height = map(int, request.size.split("x"))
    for side in (width, height):
        check_divisible("size", side, facts.size_factor)
        _check_most("size", side, most, " pixels a side")
    return width, height


def _check_most(argument: str, value: int, most: int, what: str = "") -> None:
    if value > most:
        raise InputError(argument, value, f"be at most {most}{what}")


def _check_text(argument: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InputError(argument, f"{len(text)} characters", f"have at most {most} characters")
    for letter in text:
        if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\r\t":
            raise InputError(argument, letter, "hold no control characters")
