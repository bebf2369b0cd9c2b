"""`latent-shift serve`: the HTTP API and the web page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_shift.core.config import parse_config
from latent_shift.core.errors import InputError, MissingExtraError
from latent_shift.core.shapes import check_at_least, check_number

from ._listen import allowed_hosts, allowed_origins, listen, run

if TYPE_CHECKING:
    from latent_shift.server import Engine


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    folder: Annotated[Path, typer.Option(help="Where jobs and results are kept.")] = Path("latent-shift-server"),
    model: Annotated[str, typer.Option(help="A model by name (emoji) or a folder.")] = "emoji",
    preset: Annotated[
        str | None, typer.Option(help="Random weights instead of a model: paper, small, tiny, or these with -vdm.")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="4 steps without guidance, distilled: a quarter of the time.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps, or several: cuda:0,cuda:1.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    max_batch: Annotated[int, typer.Option(help="Clips denoised together on a device.")] = 4,
    max_queue: Annotated[int, typer.Option(help="Jobs that wait; one more is answered 429.")] = 100,
    max_steps: Annotated[int, typer.Option(help="Denoising steps of a clip.")] = 100,
    max_frames: Annotated[int | None, typer.Option(help="Frames of a clip. [default: 4 times the model's]")] = None,
    max_side: Annotated[int | None, typer.Option(help="Pixels of a side. [default: twice the model's]")] = None,
    max_prompt_chars: Annotated[int, typer.Option(help="Length of a prompt, and of a negative prompt.")] = 1000,
    max_body_kb: Annotated[int, typer.Option(help="Size of a request, in units of 1024 bytes.")] = 64,
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
    given = {name: value for name, value in (("max_frames", max_frames), ("max_side", max_side)) if value is not None}
    for name, value in {**given, "max_batch": max_batch, "max_body_kb": max_body_kb}.items():
        check_at_least(name, value, 1)
    check_number("keep_gb", keep_gb, 1e-9)
    if preset and fast:
        raise InputError("--fast", fast, "be given with a model and no preset")
    try:
        from latent_shift.server import ServerSettings, create_app
        from latent_shift.server.store import Store
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from error

    limits: dict[str, Any] = {
        **given,
        "folder": folder,
        "max_queue": max_queue,
        "max_steps": max_steps,
        "max_prompt_chars": max_prompt_chars,
        "max_body_bytes": max_body_kb * 1024,
        "max_jobs_per_key": max_jobs_per_key,
        "max_requests_per_minute": max_requests_per_minute,
        "keep_days": keep_days,
        "keep_bytes": keep_gb * 1e9 // 1,
        "api_keys": _read_keys(api_keys),
        "allowed_origins": allowed_origins(allow_origin or []),
        "allowed_hosts": allowed_hosts(host, allow_host or []),
    }
    parse_config(ServerSettings, limits)  # what is wrong is said before the model is loaded
    with listen(host, port) as listener:
        Store(folder).close()  # so is what is wrong with the folder
        engine = _load(model, preset, fast, device, dtype, max_batch)
        limits.setdefault("max_frames", 4 * engine.facts.num_frames)
        limits.setdefault("max_side", 2 * max(engine.facts.width, engine.facts.height))
        app = create_app(engine, parse_config(ServerSettings, limits))
        warning = None if limits["api_keys"] else "may use it; see --api-keys"
        run(app, listener, f"serves {engine.facts.name}", warning)


def _load(model: str, preset: str | None, fast: bool, device: str, dtype: str, max_batch: int) -> Engine:
    from ._quiet import quiet_libraries

    quiet_libraries()
    from latent_shift.pipelines import find_scheduler, load_pipeline, load_preset
    from latent_shift.server.worker import LocalEngine

    devices = device.split(",")
    pipelines = [load_preset(preset, at, dtype) if preset else load_pipeline(model, at, dtype, fast) for at in devices]
    scheduler, _ = find_scheduler(None, pipelines[0].is_fast)
    name = preset or _name(Path(model).absolute())
    return LocalEngine(f"{name}-fast" if fast else name, pipelines, max_batch, scheduler)


def _name(folder: Path) -> str:
    """What clients call a model: its folder, or the run that made it, of which every model is in `model`."""
    return folder.parent.name if folder.name == "model" else folder.name


def _read_keys(path: Path | None) -> frozenset[str]:
    if path is None:
        return frozenset()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("--api-keys", str(path), "be a text file that can be read") from error
    keys = frozenset(line.strip() for line in lines if line.strip())
    if any(len(key.split()) > 1 for key in keys):
        raise InputError("--api-keys", str(path), "hold a key a line, without spaces in it")
    if not keys:
        raise InputError("--api-keys", str(path), "hold at least one key")
    return keys
