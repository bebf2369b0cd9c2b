"""What every request must pass before a route sees it, and the headers that every answer gets."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latent_shift.core.web import host_name, is_foreign, strict_headers

from .metrics import Metrics
from .schemas import error_body
from .settings import ServerSettings

_HEADERS = strict_headers("img-src 'self' blob: data:; media-src 'self' blob:")


class Guard:
    """Refuses foreign hosts, foreign pages (`core.web`) and large bodies; adds headers; counts."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-cache")
                self._count(scope, message["status"], time.perf_counter() - started)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        try:
            await self._app(scope, self._limited(receive), send_with_headers)
        except Exception:  # answered with 500 and logged further out
            self._count(scope, 500, time.perf_counter() - started)
            raise

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        hosts = self._settings.allowed_hosts
        if hosts is not None and host_name(host) not in hosts:
            return _refuse(403, "this server does not answer to this Host", "host_not_allowed")
        if is_foreign(method, host, headers.get("origin"), self._settings.allowed_origins):
            return _refuse(403, "pages of other sites may not call this server", "origin_not_allowed")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or len(length) > 15:
            return _refuse(400, "Content-Length must be a number", "invalid_request")
        if int(length) > self._settings.max_body_bytes:
            return _too_large(self._settings.max_body_bytes)
        return None

    def _limited(self, receive: Receive) -> Receive:
        """Counts a body that does not say its length; raises `BodyTooLargeError` where it is too large."""
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._settings.max_body_bytes:
                raise BodyTooLargeError
            return message

        return limited

    def _count(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE") else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.latency.labels(route).observe(seconds)


class BodyTooLargeError(Exception):
    """More of a body came than is allowed."""


def _refuse(status: int, message: str, code: str) -> JSONResponse:
    return JSONResponse(error_body(message, code=code), status)


def _too_large(most: int) -> JSONResponse:
    return _refuse(413, f"the body must have at most {most} bytes", "body_too_large")


def too_large(settings: ServerSettings) -> Callable[[Any, Exception], Awaitable[JSONResponse]]:
    """The answer where a body turns out to be too large while it is read."""

    async def answer(_request: Any, _error: Exception) -> JSONResponse:
        return _too_large(settings.max_body_bytes)

    return answer
