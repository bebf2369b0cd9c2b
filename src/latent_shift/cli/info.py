"""`latent-shift info`: what is installed, and how large a model is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn


def info(
    preset: Annotated[str | None, typer.Option(help="paper, small, tiny, or these with -vdm; needs no memory.")] = None,
    model: Annotated[str | None, typer.Option(help="A model by name (emoji) or a folder.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")] = False,
) -> None:
    """Say what is installed, what would be used, and how many parameters a model has.

    Examples:
      latent-shift info

      latent-shift info --preset paper --json
    """
    from ._quiet import quiet_libraries

    quiet_libraries()
    facts = {"versions": _versions(), "machine": _machine(device)}
    if preset is not None:
        from latent_shift.models.presets import find_preset

        facts["preset"] = {"name": preset, "parameters": _parameters(find_preset(preset).build())}
    if model is not None:
        from latent_shift.pipelines import load_pipeline
        from latent_shift.pipelines.components import text_encoders

        parts = load_pipeline(model, "cpu").components
        networks = {name: parts[name] for name in ("unet", "vae", *text_encoders(parts))}
        facts["model"] = {"name": model, "parameters": _parameters(networks)}
    typer.echo(json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts)))


def _parameters(networks: dict[str, nn.Module]) -> dict[str, int]:
    counts = {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}
    head = getattr(
        networks["text_encoder"], "to_logits", None
    )  # LDM's encoder carries an output layer that it never uses
    if head is not None:
        unused = sum(weight.numel() for weight in head.parameters())
        counts["text_encoder_without_head"] = counts["text_encoder"] - unused
    return counts


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    from latent_shift import __version__

    libraries = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"latent_shift": __version__, "python": platform.python_version(), **libraries}


def _machine(device: str) -> dict[str, Any]:
    import torch

    from latent_shift.models.layers import takes_native
    from latent_shift.ops import choose_backend
    from latent_shift.pipelines.loading import resolve_device, resolve_dtype

    target, dtype = resolve_device(device), resolve_dtype("auto", device)
    name = torch.cuda.get_device_name(target) if target.type == "cuda" else target.type
    backend, reason = choose_backend(target, dtype)
    if backend == "native" and not takes_native(dtype):
        backend, reason = "eager", f"networks in {str(dtype).removeprefix('torch.')} are not in channels_last"
    return {
        "device": name,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "backend": f"{backend} ({reason})",
    }


def _lines(facts: dict[str, Any], indent: str = "") -> list[str]:
    lines: list[str] = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {value:,}" if isinstance(value, int) else f"{indent}{name}: {value}")
    return lines
