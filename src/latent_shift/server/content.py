"""The file of a clip as an answer, whole or in part."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

NO_CONTENT = "this video has no content: it is not completed"


class ClipResponse(FileResponse):
    """A file, or the part of it that `Range` asks for; what is wrong is raised, so that it gets the API's shape.

    Raises:
        HTTPException: 400 for a `Range` that cannot be read, 416 for one outside the file, 404 where the file was
            deleted just now.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers."""
        start: Message | None = None

        async def send_later(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                _check(message)
                start = message  # held back until the file is open
                return
            if start is not None:
                await send(start)
                start = None
            await send(message)

        try:
            await super().__call__(scope, receive, send_later)
        except FileNotFoundError as error:
            raise HTTPException(404, NO_CONTENT) from error


def _check(start: Message) -> None:
    if start["status"] == 416:
        headers = {name.decode(): value.decode() for name, value in start["headers"] if name == b"content-range"}
        raise HTTPException(416, "Range must lie within the file", headers=headers)
    if start["status"] >= 400:
        raise HTTPException(start["status"], "Range must be bytes=FIRST-LAST")
