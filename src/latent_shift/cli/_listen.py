"""What `serve` and `study serve` share: an address, the names it answers to, and the web server's loop."""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import TYPE_CHECKING

import typer

from latent_shift.core.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

_SHUTDOWN_SECONDS = 5


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
    """Names that requests may ask for: on this machine alone, only its own; elsewhere, the given ones, or all."""
    local = {"localhost", "127.0.0.1", "::1"}
    if _is_loopback(host) or names:
        return frozenset({*local, host, *names})
    return None


def run(app: FastAPI, listener: socket.socket, does: str, warning: str | None) -> None:
    """Serves until it is told to stop.

    Args:
        app: what answers.
        listener: see `listen`.
        does: what is said after the address.
        warning: what is said where others can reach the address; None for nothing.
    """
    import uvicorn

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
    uvicorn.Server(config).run(sockets=[listener])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
