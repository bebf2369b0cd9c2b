"""`latent-shift serve`: the HTTP API and the web page."""

from __future__ import annotations

import ipaddress
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latent_shift.core.config import parse_config
from latent_shift.core.errors import InputError, MissingExtraError
from latent_shift.core.shapes import check_at_least

if TYPE_CHECKING:
    from latent_shift.server import Engine, ServerSettings

_SHUTDOWN_SECONDS = 5


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    folder: Annotated[Path, typer.Option(help="Where jobs and results are kept.")] = Path("latent-shift-server"),
    model: Annotated[str, typer.Option(help="A model by name (emoji) or a folder.")] = "emoji",
    preset: Annotated[
        str | None, typer.Option(help="Instead of a model: paper, paper-vdm, tiny or tiny-vdm, with random weights.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps, or several: cuda:0,cuda:1.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    max_batch: Annotated[int, typer.Option(help="Clips denoised together on a device.")] = 4,
    max_queue: Annotated[int, typer.Option(help="Jobs that wait; one more is answered 429.")] = 100,
    max_steps: Annotated[int, typer.Option(help="Denoising steps of a clip.")] = 100,
    max_frames: Annotated[int | None, typer.Option(help="Frames of a clip. [default: 4 times the model's]")] = None,
    max_side: Annotated[int | None, typer.Option(help="Pixels of a side. [default: twice the model's]")] = None,
    max_jobs_per_key: Annotated[int, typer.Option(help="Unfinished jobs of an API key.")] = 20,
    max_requests_per_minute: Annotated[int, typer.Option(help="Jobs an API key may create in a minute.")] = 120,
    keep_days: Annotated[float, typer.Option(help="Finished jobs are removed after so many days.")] = 30,
    keep_gb: Annotated[float, typer.Option(help="The oldest results are removed beyond this size.")] = 10,
    api_keys: Annotated[
        Path | None, typer.Option(help="A text file with an API key a line. Without it, everybody may call.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name that this server is called by, besides localhost.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A web site whose pages may call the API, as https://example.org.")
    ] = None,
) -> None:
    """Serve an HTTP API in OpenAI's dialect for videos, and a web page.

    Examples:
      latent-shift serve

      latent-shift serve --host 0.0.0.0 --api-keys keys.txt --folder /srv/clips
    """
    for option, value in (("--max-batch", max_batch), ("--max-frames", max_frames), ("--max-side", max_side)):
        check_at_least(option, 1 if value is None else value, 1)
    try:
        from latent_shift.server import ServerSettings
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from error

    limits = {
        "folder": folder,
        "max_queue": max_queue,
        "max_steps": max_steps,
        "max_jobs_per_key": max_jobs_per_key,
        "max_requests_per_minute": max_requests_per_minute,
        "keep_days": keep_days,
        "keep_bytes": keep_gb * 1e9 // 1,
        "api_keys": _read_keys(api_keys),
        "allowed_origins": tuple(allow_origin or ()),
        "allowed_hosts": _hosts(host, allow_host or []),
    }
    parse_config(ServerSettings, limits)  # what is wrong is said before the model is loaded
    with _listen(host, port) as listener:
        engine = _load(model, preset, device, dtype, max_batch)
        limits["max_frames"] = max_frames or 4 * engine.facts.num_frames
        limits["max_side"] = max_side or 2 * max(engine.facts.width, engine.facts.height)
        _run(engine, parse_config(ServerSettings, limits), listener)


def _load(model: str, preset: str | None, device: str, dtype: str, max_batch: int) -> Engine:
    from ._quiet import quiet_libraries

    quiet_libraries()
    from latent_shift.pipelines import load_pipeline, load_preset
    from latent_shift.server.worker import LocalEngine

    devices = device.split(",")
    pipelines = [load_preset(preset, at, dtype) if preset else load_pipeline(model, at, dtype) for at in devices]
    return LocalEngine(preset or Path(model).absolute().name, pipelines, max_batch)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise InputError("--port", port, "be from 0 to 65535")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError("--host and --port", f"{host}:{port}", f"be an address to listen on ({error})") from error


def _run(engine: Engine, settings: ServerSettings, listener: socket.socket) -> None:
    import uvicorn

    from latent_shift.server import create_app

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    config = uvicorn.Config(
        create_app(engine, settings),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        lifespan="on",
    )
    host, port = listener.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    typer.echo(f"http://{address}:{port} serves {engine.facts.name}; Ctrl-C stops it")
    if not (settings.api_keys or _is_loopback(host)):
        typer.echo("latent-shift: warning: whoever reaches this address may use it; see --api-keys", err=True)
    uvicorn.Server(config).run(sockets=[listener])


def _read_keys(path: Path | None) -> frozenset[str]:
    if path is None:
        return frozenset()
    try:
        keys = frozenset(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("--api-keys", str(path), "be a text file that can be read") from error
    if not keys:
        raise InputError("--api-keys", str(path), "hold at least one key")
    return keys


def _hosts(host: str, names: list[str]) -> frozenset[str] | None:
    """On this machine alone, only its own names; elsewhere, the given names, or all."""
    local = {"localhost", "127.0.0.1", "::1"}
    if _is_loopback(host) or names:
        return frozenset({*local, host, *names})
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
