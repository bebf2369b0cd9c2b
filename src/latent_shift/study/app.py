"""The routes of `latent-shift study serve`. Each validates, asks the store, and returns a schema."""

import contextlib
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latent_shift.core.errors import InputError
from latent_shift.core.web import host_name, is_foreign, strict_headers

from .records import Clip, ClipFacts, Shown, Side, State, Status
from .store import ConflictError, Store, UnknownItemError, UnknownRaterError

_MAX_BODY_BYTES = 16 * 1024
_PAGE = {
    "/": "index.html",
    "/app.js": "app.js",
    "/player.js": "player.js",
    "/style.css": "style.css",
    "/icon.svg": "icon.svg",
}
_HEADERS = strict_headers("img-src 'self'")

Position = Annotated[int, Path(ge=1, le=1_000_000)]
"""Counts what one rater was shown."""


class _Body(BaseModel):
    """A body: unknown fields are errors, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Joining(_Body):
    """Somebody wants to take part."""

    consent: Literal[True]
    """Without agreement nobody takes part."""
    worker: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.@:+-]+$")] | None = None
    """What a crowd platform calls this person."""


class Answering(_Body):
    """The answers to both questions."""

    quality: Side
    faithfulness: Side


class StudyView(BaseModel):
    """What everybody may know about the study."""

    title: str
    consent: str
    quality: str
    faithfulness: str
    allow_ties: bool
    pairs: int
    checks: int


class Joined(BaseModel):
    """Whoever has the token is the rater."""

    token: str


class ClipView(ClipFacts):
    """Where a clip's sheets are, and how its frames lie on them."""

    sheets: list[str]


class ItemView(BaseModel):
    """Two clips as one rater sees them."""

    position: int
    prompt: str
    left: ClipView
    right: ClipView
    answers: dict[str, Side] | None


class StateView(BaseModel):
    """Where a rater stands."""

    status: Status
    done: int
    total: int
    item: ItemView | None
    code: str | None
    """The completion code; of a rater for whom nothing is left, or who waits, `full_code`."""
    link: str | None
    """Where to hand in the code."""


class Trained(BaseModel):
    """How the training example went."""

    right: bool


def create_app(store: Store, allowed_hosts: frozenset[str] | None) -> FastAPI:
    """The whole study as an ASGI application.

    Args:
        store: the study; closed when the application ends.
        allowed_hosts: names that the `Host` header may have, without the port; None allows all.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        store.close()

    app = FastAPI(title=store.settings.title, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Guard, allowed_hosts=allowed_hosts)
    _answer_errors(app)
    _add_page(app, store)
    _add_raters(app, store)
    return app


def _add_page(app: FastAPI, store: Store) -> None:
    folder = files("latent_shift.study") / "page"

    def add(route: str, name: str) -> None:
        @app.api_route(route, methods=["GET", "HEAD"])
        def get_page() -> FileResponse:
            return FileResponse(str(folder / name), headers={"Cache-Control": "no-cache"})

    for route, name in _PAGE.items():
        add(route, name)

    @app.api_route("/clips/{name}", methods=["GET", "HEAD"])
    def get_clip(name: str) -> FileResponse:
        """A sheet of a clip. The name is looked up among the study's own; it never becomes a path."""
        path = store.files.get(name)
        if path is None:
            raise HTTPException(404, "there is no such clip")
        return FileResponse(path, headers={"Cache-Control": "private, max-age=86400, immutable"})

    @app.get("/api/study")
    def get_study() -> StudyView:
        """Title, consent and questions."""
        settings = store.settings
        return StudyView(
            title=settings.title,
            consent=settings.consent,
            quality=settings.quality,
            faithfulness=settings.faithfulness,
            allow_ties=settings.allow_ties,
            pairs=store.quota,
            checks=min(settings.checks_per_rater, store.quota),
        )


def _add_raters(app: FastAPI, store: Store) -> None:
    bearer = HTTPBearer(auto_error=False)

    def token_of(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> str:
        if given is None:
            raise HTTPException(401, "a rater's token must be given: Authorization: Bearer TOKEN")
        return given.credentials

    Token = Annotated[str, Depends(token_of)]

    def view(state: State) -> StateView:
        item = None if state.item is None else _item_view(state.item)
        link = store.settings.completion_link(state.code)
        return StateView(status=state.status, done=state.done, total=state.total, item=item, code=state.code, link=link)

    @app.post("/api/raters", status_code=201)
    def join(body: Joining) -> Joined:
        """A new rater."""
        return Joined(token=store.join(body.worker))

    @app.get("/api/state")
    def get_state(token: Token) -> StateView:
        """Where the rater stands, and what to answer now."""
        return view(store.state(token))

    @app.get("/api/items/{position}")
    def get_item(position: Position, token: Token) -> ItemView:
        """What the rater was shown before."""
        return _item_view(store.item(token, position))

    @app.put("/api/items/{position}")
    def answer(position: Position, body: Answering, token: Token) -> StateView:
        """Keeps answers, or changes them."""
        return view(store.answer(token, position, body.model_dump()))

    @app.post("/api/training")
    def train(body: Answering, token: Token) -> Trained:
        """Judges the answers to the training example."""
        return Trained(right=store.train(token, body.model_dump()))

    @app.post("/api/finish")
    def finish(token: Token) -> StateView:
        """Ends the rater's work."""
        return view(store.finish(token))


def _item_view(shown: Shown) -> ItemView:
    return ItemView(
        position=shown.position,
        prompt=shown.prompt,
        left=_clip_view(shown.left),
        right=_clip_view(shown.right),
        answers=shown.answers,
    )


def _clip_view(clip: Clip) -> ClipView:
    sheets = [f"/clips/{clip.file_name(number)}" for number in range(clip.num_sheets)]
    return ClipView(sheets=sheets, **clip.model_dump(exclude={"name"}))


def _answer_errors(app: FastAPI) -> None:
    """Every refusal is `{"error": "one line"}`."""

    def say(status: int, message: object) -> JSONResponse:
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        return JSONResponse({"error": str(message)}, status, headers)

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteHTTPException)
        return say(error.status_code, error.detail)

    async def on_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return say(400, "the body must be valid JSON")
        place = [str(part)[:100] for part in first["loc"] if part not in ("path", "body")]
        return say(400, f"{'.'.join(place) or 'the body'}: {first['msg']}")

    statuses = {InputError: 400, UnknownRaterError: 401, UnknownItemError: 404, ConflictError: 409}

    async def on_refusal(_: Request, error: Exception) -> JSONResponse:
        return say(next(status for kind, status in statuses.items() if isinstance(error, kind)), error)

    async def on_bug(_: Request, _error: Exception) -> JSONResponse:
        return say(500, "the server made a mistake; its log says more")

    app.add_exception_handler(StarletteHTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    for kind in statuses:
        app.add_exception_handler(kind, on_refusal)
    app.add_exception_handler(Exception, on_bug)


class _Guard:
    """Refuses foreign hosts, foreign pages (`core.web`) and large bodies; adds headers."""

    def __init__(self, app: ASGIApp, allowed_hosts: frozenset[str] | None) -> None:
        self._app, self._allowed_hosts = app, allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = 0

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        async def receive_limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > _MAX_BODY_BYTES:
                raise HTTPException(413, f"the body must have at most {_MAX_BODY_BYTES} bytes")
            return message

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        app = self._app if refusal is None else JSONResponse({"error": refusal}, 403)
        await app(scope, receive_limited, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if self._allowed_hosts is not None and host_name(host) not in self._allowed_hosts:
            return "this server does not answer to this Host; see --allow-host"
        if is_foreign(method, host, headers.get("origin")):
            return "pages of other sites may not call this server"
        return None
