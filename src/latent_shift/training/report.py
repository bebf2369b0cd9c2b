"""The loss log as rows and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

from latent_shift.core.files import atomic_path


def read_log(path: Path) -> list[dict[str, int | float]]:
    """Rows of a `log.jsonl`: step, seconds, loss, learning_rate. A last line cut off by a kill is dropped."""
    rows: list[dict[str, int | float]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def plot_losses(log: Path, picture: Path) -> None:
    """Draws the loss of `log` over the steps, raw and smoothed, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_log(log)
    if not rows:
        return
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    smooth: list[float] = []
    for loss in losses:
        smooth.append(loss if not smooth else 0.9 * smooth[-1] + 0.1 * loss)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9db4d0", linewidth=0.8, label="loss")
    axes.plot(steps, smooth, color="#1f4e8c", linewidth=1.8, label="smoothed")
    axes.set(xlabel=f"optimiser step ({rows[-1]['seconds'] / 60:.0f} minutes)", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=120)
