"""The routes. Each validates, asks `Jobs`, and returns a schema."""

import base64
import contextlib
import hashlib
import hmac
import os
import re
import time
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Annotated, Any, Literal

import pydantic_core
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware.cors import CORSMiddleware

from latent_shift import __version__
from latent_shift.core.config import unknown_key
from latent_shift.core.errors import InputError

from .content import NO_CONTENT, ClipResponse
from .engine import VARIANTS, Engine
from .guard import BodyTooLargeError, Guard, too_large
from .jobs import BusyError, Jobs, Snapshot
from .metrics import Metrics
from .schemas import (
    ErrorBody,
    Health,
    Model,
    ModelList,
    Video,
    VideoDeleted,
    VideoForm,
    VideoList,
    VideoRequest,
    error_body,
    resolve_request,
    to_model,
    to_video,
)
from .settings import ServerSettings
from .store import Store

_POLL_MS = "500"
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_PAGES = {"/": "index.html", "/docs": "docs.html"}

_bearer = HTTPBearer(auto_error=False, description="An API key, where the server has some.")


def create_app(engine: Engine, settings: ServerSettings) -> FastAPI:
    """The whole service as an ASGI application.

    Args:
        engine: makes the clips.
        settings: limits, keys and the folder of jobs and results.

    Raises:
        InputError: the folder cannot be used, or another server uses it.
        DataError: its database is damaged.
    """
    metrics = Metrics()
    store = Store(settings.folder)
    jobs = Jobs(store, engine, settings, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with jobs.running():
            yield

    app = FastAPI(
        title="Latent-Shift",
        version=__version__,
        summary="Clips from sentences, in the dialect of OpenAI's videos API.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={status: {"model": ErrorBody} for status in (400, 401, 403, 404, 405, 413)},
    )
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.allowed_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],  # OpenAI's client sends a dozen of its own
        expose_headers=["Retry-After", "openai-poll-after-ms"],
    )
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    _answer_errors(app, settings)
    _add_videos(app, jobs, store, settings)
    _add_service(app, jobs, settings, metrics)
    _add_page(app)
    app.state.end_streams = jobs.end_streams
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_videos(app: FastAPI, jobs: Jobs, store: Store, settings: ServerSettings) -> None:
    keep_seconds = settings.keep_days * 86400
    Owner = Annotated[str, Depends(_owner_of(settings))]

    def video(snapshot: Snapshot) -> Video:
        return to_video(snapshot, keep_seconds)

    def find(video_id: str, owner: str) -> Snapshot:
        found = jobs.find(video_id, owner)
        if found is None:
            raise HTTPException(404, "there is no video of this id")
        return found

    bodies = {"application/json": VideoRequest, "multipart/form-data": VideoForm}
    references = {kind: {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}} for kind, body in bodies.items()}

    @app.post(
        "/v1/videos",
        tags=["videos"],
        responses={415: {"model": ErrorBody}, 429: {"model": ErrorBody}},
        openapi_extra={"requestBody": {"required": True, "content": references}},
    )
    async def create_video(request: Request, owner: Owner) -> Video:
        """Accepts a clip to be made; ask for it again, or follow its events, until it is completed."""
        wanted = resolve_request(await _read_request(request), jobs.engine.facts, settings)
        return video(await run_in_threadpool(jobs.submit, owner, wanted, limited=bool(settings.api_keys)))

    @app.get("/v1/videos", tags=["videos"])
    def list_videos(
        owner: Owner,
        after: Annotated[str | None, Query(description="`last_id` of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        search: Annotated[str, Query(max_length=200, description="Text that the prompt holds.")] = "",
    ) -> VideoList:
        """The jobs, the newest first."""
        cursor = None
        if after is not None:
            last = jobs.find(after, owner)
            if last is None:
                raise InputError("after", after, "be the id of a video")
            cursor = last.job.number
        page, more = jobs.page(owner, cursor, limit, newest_first=order == "desc", search=search)
        data = [video(snapshot) for snapshot in page]
        first, last_id = (data[0].id, data[-1].id) if data else (None, None)
        return VideoList(data=data, first_id=first, last_id=last_id, has_more=more)

    @app.get("/v1/videos/{video_id}", tags=["videos"])
    def get_video(video_id: str, owner: Owner, response: Response) -> Video:
        """A job: its status, its progress."""
        response.headers["openai-poll-after-ms"] = _POLL_MS
        return video(find(video_id, owner))

    @app.delete("/v1/videos/{video_id}", tags=["videos"])
    def delete_video(video_id: str, owner: Owner) -> VideoDeleted:
        """Cancels a job that is not finished; deletes one that is, with its clip."""
        return VideoDeleted(id=video_id, deleted=jobs.remove(find(video_id, owner).job))

    @app.head("/v1/videos/{video_id}/content", include_in_schema=False)
    @app.get(
        "/v1/videos/{video_id}/content",
        tags=["videos"],
        response_class=FileResponse,
        responses={
            200: {"content": {kind: {} for kind in _media_types()}, "description": "The file."},
            206: {
                "content": {kind: {} for kind in [*_media_types(), "multipart/byteranges"]},
                "description": "A part of it, or several.",
            },
            416: {"model": ErrorBody, "description": "There is no such part."},
        },
    )
    def get_content(
        video_id: str,
        owner: Owner,
        variant: Literal["video", "webp", "gif", "thumbnail", "spritesheet"] = "video",
        _part: Annotated[str | None, Header(alias="Range", description="`bytes=FIRST-LAST`: a part of it.")] = None,
    ) -> FileResponse:
        """The clip: `video` is MP4, `thumbnail` the first frame (PNG), `spritesheet` all frames on one JPEG."""
        job = find(video_id, owner).job
        path = store.folder(job.id) / VARIANTS[variant]
        try:
            facts = os.stat(path) if job.status == "completed" else None
        except FileNotFoundError:  # it was deleted just now
            facts = None
        if facts is None:
            raise HTTPException(404, NO_CONTENT)
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        name = f"{_slug(job.prompt)}-{job.request.seed}{path.suffix}"
        return ClipResponse(path, headers=headers, filename=name, stat_result=facts, content_disposition_type="inline")

    @app.get(
        "/v1/videos/{video_id}/events",
        tags=["videos"],
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "description": "Server-sent events, until the end."}},
    )
    async def watch_video(video_id: str, owner: Owner) -> StreamingResponse:
        """A `video` event at every change: the job, and as `preview` a frame (JPEG, data URL) while it is made."""
        await run_in_threadpool(find, video_id, owner)

        async def events() -> AsyncIterator[str]:
            async for snapshot in jobs.watch(video_id, owner):
                yield ": still here\n\n" if snapshot is None else _event(video(snapshot), snapshot.preview)

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _add_service(app: FastAPI, jobs: Jobs, settings: ServerSettings, metrics: Metrics) -> None:
    needs_key = [Depends(_owner_of(settings))]
    created = int(time.time())

    def model() -> Model:
        return to_model(jobs.engine.facts, settings, created)

    @app.get("/v1/models", tags=["models"], dependencies=needs_key)
    def list_models() -> ModelList:
        """The models, and the limits of a request."""
        return ModelList(data=[model()])

    @app.get("/v1/models/{model_id:path}", tags=["models"], dependencies=needs_key)
    def get_model(model_id: str) -> Model:
        """One model."""
        if model_id != jobs.engine.facts.name:
            raise HTTPException(404, "there is no model of this name")
        return model()

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["service"], responses={503: {"model": Health}})
    def get_health(response: Response) -> Health:
        """200 while all devices take jobs, 503 otherwise."""
        healthy = jobs.engine.healthy()
        response.status_code = 200 if healthy else 503
        queued, running = jobs.counts()
        status: Literal["ok", "failing"] = "ok" if healthy else "failing"
        return Health(status=status, version=__version__, queued=queued, running=running, busy=jobs.engine.busy())

    @app.get(
        "/metrics",
        tags=["service"],
        dependencies=needs_key,
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus."}},
    )
    def get_metrics() -> Response:
        """Counters in Prometheus' format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    folder = str(files("latent_shift.server") / "page")

    def add(route: str, name: str) -> None:
        @app.api_route(route, methods=["GET", "HEAD"], include_in_schema=False)
        def get_page() -> FileResponse:
            return FileResponse(f"{folder}/{name}")

    for route, name in _PAGES.items():
        add(route, name)
    app.mount("/static", StaticFiles(directory=folder))


def _owner_of(settings: ServerSettings) -> Any:
    """A dependency: whose call it is. A hash, so that the database holds no key; empty where there are no keys."""
    owners = {_digest(key): _digest(key)[:16] for key in settings.api_keys}

    def owner(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
        if not owners:
            return ""
        digest = _digest(given.credentials) if given else ""
        for known, name in owners.items():
            if hmac.compare_digest(known, digest):
                return name
        message = "a valid API key must be given: Authorization: Bearer KEY"
        raise HTTPException(401, message, headers={"WWW-Authenticate": "Bearer"})

    return owner


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


async def _read_request(request: Request) -> VideoRequest:
    """The body, JSON or a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            tree = pydantic_core.from_json(await request.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body must be valid JSON ({error})") from error
        return VideoRequest.model_validate(tree, strict=True)
    if kind == "multipart/form-data":
        try:
            async with request.form(max_files=1, max_fields=50) as form:
                return VideoForm.model_validate(_fields(form))
        except (MultiPartException, StarletteHTTPException) as error:
            reason = getattr(error, "message", None) or getattr(error, "detail", "")
            raise HTTPException(400, f"the body must be a valid form ({reason})") from error
    raise HTTPException(415, "Content-Type must be application/json or multipart/form-data")


def _fields(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            raise InputError(name[:100], "a file", "be left out: this model takes no files")
        if name in fields:
            raise InputError(name[:100], "several values", "be given once")
        fields[name] = value
    return fields


def _event(video: Video, preview: bytes | None) -> str:
    data = video.model_dump(mode="json")
    if preview is not None:
        data["preview"] = f"data:image/jpeg;base64,{base64.b64encode(preview).decode()}"
    return f"event: video\ndata: {pydantic_core.to_json(data).decode()}\n\n"


def _slug(prompt: str) -> str:
    """A file name of a prompt: a to z, digits and hyphens."""
    return _NOT_IN_NAMES.sub("-", prompt.lower())[:40].strip("-") or "clip"


def _media_types() -> list[str]:
    return ["video/mp4", "image/webp", "image/gif", "image/png", "image/jpeg"]


def _answer_errors(app: FastAPI, settings: ServerSettings) -> None:
    codes = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteHTTPException)
        kind = "authentication_error" if error.status_code == 401 else "invalid_request_error"
        body = error_body(str(error.detail), kind=kind, code=codes.get(error.status_code))
        return JSONResponse(body, error.status_code, headers=error.headers)

    async def on_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError | ValidationError)
        first = error.errors()[0]
        place = [str(part)[:100] for part in first["loc"] if part not in ("query", "path", "body")]
        name = place[0] if place else None
        if name and first["type"] == "extra_forbidden":
            message = str(unknown_key(name, sorted(VideoRequest.model_fields)))
        else:
            message = f"{name or 'the body'}: {first['msg']}"
        return JSONResponse(error_body(message, param=name, code="invalid_value"), 400)

    async def on_input(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, InputError)
        return JSONResponse(error_body(str(error), param=error.argument, code="invalid_value"), 400)

    async def on_busy(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, BusyError)
        body = error_body(str(error), kind="rate_limit_error", code="rate_limit_exceeded")
        return JSONResponse(body, 429, headers={"Retry-After": str(error.retry_after)})

    async def on_bug(_: Request, _error: Exception) -> JSONResponse:
        return JSONResponse(error_body("the server made a mistake; its log says more", kind="server_error"), 500)

    app.add_exception_handler(StarletteHTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(ValidationError, on_validation)
    app.add_exception_handler(InputError, on_input)
    app.add_exception_handler(BusyError, on_busy)
    app.add_exception_handler(BodyTooLargeError, too_large(settings))
    app.add_exception_handler(Exception, on_bug)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the bodies that are read by hand, and with 400 where FastAPI would answer 422."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        schemas = document["components"]["schemas"]
        for body in (VideoRequest, VideoForm):
            schemas[body.__name__] = body.model_json_schema(ref_template="#/components/schemas/{model}")
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        app.openapi_schema = document
    return app.openapi_schema
