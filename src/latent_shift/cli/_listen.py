"""What `serve` and `study serve` share: an address, the names it answers to, and the web server's loop."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from typing import TYPE_CHECKING

import typer

from latent_shift.core.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

_SHUTDOWN_SECONDS = 5
_NAME = re.compile(r"[a-z0-9._-]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]+)?")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; 0 takes a free port.

    Raises:
        InputError: the port is out of range, or the address is not this machine's or is taken.
    """
    if not 0 <= port <= 65535:
        raise InputError("--port", port, "be from 0 to 65535")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError("--host and --port", f"{host}:{port}", f"be an address to listen on ({error})") from error


def allowed_hosts(host: str, names: list[str]) -> frozenset[str] | None:
    """Names that requests may ask for: on this machine alone, only its own; elsewhere, the given ones, or all.

    Raises:
        InputError: one of the names is none.
    """
    local = {"localhost", "127.0.0.1", "::1"}
    if _is_loopback(host) or names:
        return frozenset({*local, host.lower(), *map(_host_name, names)})
    return None


def allowed_origins(origins: list[str]) -> tuple[str, ...]:
    """Web sites as browsers name them in `Origin`.

    Raises:
        InputError: one of them is none.
    """
    named = tuple(origin.lower().removesuffix("/") for origin in origins)
    for given, origin in zip(origins, named, strict=True):
        if not _ORIGIN.fullmatch(origin):
            raise InputError("--allow-origin", given, "be one web site without a path, as https://example.org")
    return named


def run(app: FastAPI, listener: socket.socket, does: str, warning: str | None) -> None:
    """Serves until it is told to stop.

    Args:
        app: what answers; `app.state.end_streams`, where it has one, is called at the stop.
        listener: see `listen`.
        does: what is said after the address.
        warning: what is said where others can reach the address; None for nothing.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            getattr(app.state, "end_streams", lambda: None)()  # it would wait for them, and then break them off
            await super().shutdown(sockets)

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        lifespan="on",
    )
    host, port = listener.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    typer.echo(f"http://{address}:{port} {does}; Ctrl-C stops it")
    if warning and not _is_loopback(host):
        typer.echo(f"latent-shift: warning: whoever reaches this address {warning}", err=True)
    Server(config).run(sockets=[listener])


def _host_name(given: str) -> str:
    """The name as the guards of the servers compare it."""
    name = given.lower().strip("[]").rstrip(".")
    if not _NAME.fullmatch(name) and not _is_address(name):
        raise InputError("--allow-host", given, "be a name without scheme, port and path, as example.org")
    return name


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else host.lower() == "localhost"
