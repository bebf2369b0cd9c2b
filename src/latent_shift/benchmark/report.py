"""A measurement as Markdown and as pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from latent_shift.core.errors import InputError, MissingExtraError
from latent_shift.core.files import atomic_path, write_json

from .networks import MODELS

_COLORS = ("#1f4e8c", "#c8553d")


def check_output(folder: Path) -> None:
    """Raises where the report could not be written: before the measurement, and not after it.

    Raises:
        InputError: the folder cannot be made.
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "train")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("output", str(folder), f"be a folder that can be made ({error.strerror})") from error


def write_report(result: dict[str, Any], folder: Path) -> None:
    """Writes `results.json`, `README.md`, `forward.png` and, where frames were swept, `frames.png`."""
    check_output(folder)
    write_json(folder / "results.json", result)
    _draw_forward(result, folder / "forward.png")
    if result["frames"]:
        _draw_frames(result, folder / "frames.png")
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(to_markdown(result, pictures=True), encoding="utf-8")


def to_markdown(result: dict[str, Any], pictures: bool = False) -> str:
    """The tables, what they were measured on, and how."""
    parts = [
        f"# Size and speed, preset `{result['preset']}`, {result['dtype']}",
        f"{result['date']}, {result['device']}, {result['machine']['threads']} threads. "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
        + f". At most {result['rates']['matrix_flop_per_s'] / 1e12:.4g} TFLOP a second in matrix products, and "
        f"{result['rates']['copy_bytes_per_s'] / 1e9:.4g} GB a second in copies.",
        "## One forward",
        _table(
            "network | parameters | TFLOP | seconds | floor, s | times the plain U-Net | peak memory | format",
            [_forward_row(name, row) for name, row in result["forward"].items() if row["seconds"] is not None],
        ),
    ]
    left_out = [f"{MODELS[name]}: {row['reason']}" for name, row in result["forward"].items() if "reason" in row]
    if left_out:
        parts.append(f"Not measured: {'; '.join(left_out)}.")
    parts += [row["peak_memory_reason"] + "." for row in result["forward"].values() if "peak_memory_reason" in row]
    shift = result["forward"]["latent_shift"]
    if "ratio_to_latent_shift_off" in shift:
        ratio = _spread(shift, "ratio_to_latent_shift_off", "{:.3f}")
        parts.append(f"The shift on costs {ratio} times the same code with the shift off.")
    if result["shift"] and shift["seconds"]:
        alone = result["shift"]
        share, ends = (np.divide(alone[key], shift["seconds"]) for key in ("seconds", "seconds_range"))
        added = _spread({"share": share, "share_range": ends}, "share", "{:.2%}")
        parts.append(
            f"By the operations alone, with the shift and without it in turns, the shifts of the {alone['blocks']} "
            f"ResNet blocks add {added} to the forward."
        )
    if pictures:
        parts.append("![Seconds of a forward](forward.png)")
    if result["training"]:
        rows = [
            [MODELS[name], _spread(row, "seconds", "{:.4g}"), _spread(row, "ratio_to_unet2d", "{:.3f}")]
            for name, row in result["training"].items()
        ]
        parts += ["## One training step", _table("network | seconds | times the plain U-Net", rows)]
    if result["clip"]:
        rows = [_clip_row(name, row) for name, row in result["clip"].items()]
        head = "network | text, s | denoising, s | decoding, s | together, s | s a step | all steps together, s"
        measured = result["options"]["clip_steps"]
        note = f"Measured: {measured} of {result['options']['steps']} steps. `~` marks what is estimated from them."
        parts += ["## A whole clip", _table(head, rows), note]
    if result["frames"]:
        parts += ["## Cost against frames", _frames_table(result["frames"])]
        parts += ["![Seconds against frames](frames.png)"] if pictures else []
    if result["profile"]:
        kinds = list(dict.fromkeys(kind for row in result["profile"].values() for kind in row))
        shares = [
            [MODELS[name], *(f"{row.get(kind, 0):.1%}" for kind in kinds)] for name, row in result["profile"].items()
        ]
        parts += ["## Where the time of a forward goes", _table(" | ".join(["network", *kinds]), shares)]
    if result["ops"]:
        head = "operation | backend | channels | side | microseconds | floor, microseconds"
        parts += ["## The operation alone", _table(head, [_op_row(row) for row in result["ops"]])]
    parts += ["## How it was measured", "\n".join(f"- {line}" for line in result["protocol"])]
    return "\n\n".join(parts) + "\n"


def _table(head: str, rows: list[list[str]]) -> str:
    columns = head.count("|") + 1
    lines = [f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _spread(row: dict[str, Any], name: str, form: str) -> str:
    least, largest = row[f"{name}_range"]
    return f"{form.format(row[name])} ({form.format(least)} to {form.format(largest)})"


def _forward_row(name: str, row: dict[str, Any]) -> list[str]:
    peak = row["peak_memory_bytes"]
    return [
        MODELS[name],
        f"{row['parameters'] / 1e6:,.1f} M",
        f"{row['flops'] / 1e12:.4g}",
        _spread(row, "seconds", "{:.4g}"),
        f"{row['floor_seconds']:.4g}",
        _spread(row, "ratio_to_unet2d", "{:.3f}"),
        "-" if peak is None else f"{peak / 2**30:.2f} GiB",
        row["memory_format"],
    ]


def _op_row(row: dict[str, Any]) -> list[str]:
    micro = {key: [1e6 * value for value in row[key]] for key in ("seconds_range",)} | {"seconds": 1e6 * row["seconds"]}
    return [
        row["operation"],
        row["backend"],
        str(row["channels"]),
        str(row["side"]),
        _spread(micro, "seconds", "{:.4g}"),
        f"{1e6 * row['floor_seconds']:.4g}",
    ]


def _clip_row(name: str, row: dict[str, Any]) -> list[str]:
    whole, estimated = row["total_seconds"], row["estimated_total_seconds"]
    parts = [_spread(row, f"{part}_seconds", "{:.4g}") for part in ("text", "denoising", "decoding", "total")]
    last = f"{whole:.4g}" if estimated is None else f"~ {estimated:.4g}"
    return [MODELS[name], *parts, f"{row['seconds_per_step']:.4g}", last]


def _frames_table(frames: dict[str, dict[str, Any]]) -> str:
    numbers = [key for key in next(iter(frames.values())) if key != "linear_fit"]
    rows = []
    for name, row in frames.items():
        fit = row["linear_fit"]
        cells = [_spread(row[key], "seconds", "{:.4g}") for key in numbers]
        rows.append([MODELS[name], *cells, f"{fit['seconds_per_frame']:.4g}", f"{fit['max_relative_deviation']:.1%}"])
    return _table(" | ".join(["network", *(f"{key}, s" for key in numbers), "s a frame", "off the line"]), rows)


def _draw_forward(result: dict[str, Any], picture: Path) -> None:
    rows = {name: row for name, row in result["forward"].items() if row["seconds"] is not None}
    figure, axes = _figure(len(rows) * 0.5 + 1.5)
    medians = [row["seconds"] for row in rows.values()]
    errors = [[abs(row["seconds"] - row["seconds_range"][side]) for row in rows.values()] for side in (0, 1)]
    colors = [_COLORS[name.startswith("latent_shift")] for name in rows]
    bars = axes.barh(
        [MODELS[name].replace("`", "").replace(" (", "\n(") for name in rows],
        medians,
        xerr=errors,
        color=colors,
        ecolor="#555",
    )
    axes.bar_label(bars, [f"{row['ratio_to_unet2d']:.2f} x" for row in rows.values()], padding=6)
    axes.set(
        xlabel=f"seconds a forward ({result['dtype']}, {result['device']})",
        xlim=(0, 1.15 * max(row["seconds_range"][1] for row in rows.values())),
    )
    axes.invert_yaxis()
    _save(figure, picture)


def _draw_frames(result: dict[str, Any], picture: Path) -> None:
    figure, axes = _figure(4)
    for color, (name, row) in zip(_COLORS, result["frames"].items(), strict=False):
        points = {int(key): value["seconds"] for key, value in row.items() if key != "linear_fit"}
        slope, most = row["linear_fit"]["seconds_per_frame"], max(points)
        axes.plot([0, most], [0, slope * most], color=color, linewidth=0.8)
        axes.plot(list(points), list(points.values()), "o", color=color, label=MODELS[name])
    axes.set(xlabel="frames", ylabel=f"seconds a forward ({result['dtype']})", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, picture)


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Any, picture: Path) -> None:
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=120)
