"""The report of `latent-shift reproduce`: Markdown, and the same as one HTML file that needs no other."""

from __future__ import annotations

import base64
import importlib.util
import mimetypes
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from markdown_it import MarkdownIt

from latent_shift.core.errors import InputError, MissingExtraError
from latent_shift.core.files import atomic_path, read_json_object, write_json
from latent_shift.media import Frames, contact_sheet, write_video

from .claims import MIN_FAMILIES, MIN_ROUNDS, STATISTICS, Estimate
from .systems import SYSTEMS

_RESULTS, _ABLATION = "results.json", "ablation.json"
_VIDEOS = ("real", "latent_shift", "latent_vdm", "latent_shift_off")
_TITLES = {"real": "real clips", "base": "text-to-image base", **{name: how.title for name, how in SYSTEMS.items()}}
_SETS = {
    "training": "training labels",
    "heldout": "held-out families (one still seen, no motion)",
    "pairs": "held-out pairs of label and skin tone (tone right, too)",
    "paraphrase": "the training labels' paraphrases",
}
_STATISTICS = {str(key): title for key, title in STATISTICS.items()} | {
    "parameters": "parameters",
    "seconds": "seconds a clip",
}
_CLAIM_HEAD = "verdict | claim | set | gain | statistic | source"
_ONE_RUN = "Intervals are over families of labels; what another training run would change is not in them."
_GAINS = {"held": "better", "not held": "worse", "undecided": "undecided", "too few": "too few"}
_COLORS = {"latent_shift": "#c8553d", "latent_vdm": "#1f4e8c"}
_STYLE = """
:root { color-scheme: light dark; --quiet: light-dark(#5d596d, #aaa6bd); --soft: light-dark(#e4e1ee, #353344); }
body { margin: 0 auto; padding: 24px 16px 48px; max-width: 980px; background: light-dark(#fff, #17161d);
  color: light-dark(#1c1a27, #efedf7);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; min-width: 780px; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-top: 1px solid var(--soft); }
th { border: 0; color: var(--quiet); font-weight: 500; }
"""


def check_report(folder: Path) -> None:
    """Raises where the report could not be written: before the clips are made, and not after it.

    Raises:
        InputError: the folder cannot be made.
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "train")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("report", str(folder), f"be a folder that can be made ({error.strerror})") from error


def write_report(result: dict[str, Any], folder: Path, clips: Mapping[str, Sequence[Frames]]) -> None:
    """Writes `README.md`, `index.html`, `results.json`, `scores.png`, `videos.webp` and `images.png`.

    Args:
        result: what `reproduce` measured.
        folder: where to; what `write_ablation` wrote there becomes a section.
        clips: of each system, and of "real", the clips of the subjects `result["shown"]`.
    """
    videos = {name: clips[name] for name in _VIDEOS if name in clips}
    write_video(folder / "videos.webp", _grid(videos), 8.0, quality=80)
    images = {name: clips[name] for name in clips if name not in _VIDEOS}
    write_video(folder / "images.png", _grid(images)[:1], 1.0)
    _draw_scores(result, folder / "scores.png")
    write_json(folder / _RESULTS, result)
    _write_pages(folder)


def write_ablation(result: dict[str, Any], folder: Path) -> None:
    """Writes `ablation.json` and `ablation.md`, and again the pages of a report that is in the folder."""
    write_json(folder / _ABLATION, result)
    _write(folder / "ablation.md", ablation_to_markdown(result))
    if (folder / _RESULTS).is_file():
        _write_pages(folder)


def _write_pages(folder: Path) -> None:
    ablation = folder / _ABLATION
    text = to_markdown(read_json_object(folder / _RESULTS), read_json_object(ablation) if ablation.is_file() else None)
    _write(folder / "README.md", text)
    _write(folder / "index.html", to_html(text, folder))


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def ablation_to_markdown(result: dict[str, Any]) -> str:
    """The table of the variants, each compared with the first."""
    settings, variants = result["settings"], result["variants"]
    (_, first), *others = variants.items()
    keys = list(first["scores"])
    scores = [
        [row["title"], f"{row['loss']:.3f}", *(_estimate(row["scores"][key]) for key in keys)]
        for row in variants.values()
    ]
    gains = [
        [
            row["title"],
            _estimate(row["loss_gain"]),
            *(f"{_estimate(gain)}: {_GAINS[gain['verdict']]}" for gain in row["gains"].values()),
        ]
        for _, row in others
    ]
    parts = [
        "## Ablation: what of the shift matters",
        f"Runs of {settings['steps']} steps of {settings['batch_size']} clips, {settings['frames']} frames of "
        f"{settings['size']} x {settings['size']}, one of each variant, from the same weights, with the same clips in "
        "the same order and the same noise (but noise that follows the frames around a loop is another where the ends "
        f"are zeros, and the last has another seed). Of each of {settings['subjects']} training labels so many clips: "
        f"{settings['seeds']}; in {settings['sampling_steps']} denoising steps with guidance "
        f"{settings['guidance_scale']:g}, {settings['dtype']}.",
        _table(" | ".join(["variant", "training loss", *(_STATISTICS[key] for key in keys)]), scores),
        f'Gains over "{first["title"]}", on the same labels, with 95 % intervals. {_ONE_RUN} '
        "The last row shows what another seed changes: a gain that is no larger says nothing. Training losses are "
        "means over the second half of a run; their gains are of the same clips, noise and timesteps in both runs, so "
        "they tell more than a clip a label can (loops are another task than clips with ends, and the other seed has "
        "other batches).",
        _table(" | ".join(["variant", "training loss", *(_STATISTICS[key] for key in others[0][1]["gains"])]), gains),
    ]
    return "\n\n".join(parts) + "\n"


def rounded(estimate: Estimate) -> dict[str, float]:
    """To four digits."""
    return {key: float(f"{value:.4g}") for key, value in estimate._asdict().items()}


def to_markdown(result: dict[str, Any], ablation: dict[str, Any] | None = None) -> str:
    """The report of `reproduce`, with what `ablate` found as a section."""
    settings, scores, prompts = result["settings"], result["scores"], result["shown"]
    told, close, asked = (
        [claim for claim in result["claims"] if bool(claim["source"]) == own and claim["stated"] == stated]
        for own, stated in ((True, True), (True, False), (False, True))
    )
    parts = [
        "# The paper's claims, at emoji scale",
        _lead(result),
        "## Which claims hold",
        "Match stands for the paper's CLIPSIM, kernel distances for its FID and FVD, and its Inception Score has no "
        "counterpart. A gain is by how much the first system of the claim is better than the second, with its 95 % "
        "interval. Held: the whole interval is above 0; not held: below; undecided: it has 0 in it. Too few: "
        f"fewer than {MIN_FAMILIES} families of labels, or {MIN_ROUNDS} rounds, decide nothing. {_ONE_RUN}",
        _table(_CLAIM_HEAD, _claim_rows(told)),
        "The paper calls the two comparable in FID (15.23 and 14.25) and FVD (360.04 and 358.34), with Latent-VDM a "
        "little better; the FIDs of its Table 5 are closer still (0.13 and 0.28 apart). Which one is nearer to real "
        "frames and clips here, in the direction of the paper's numbers:",
        _table(_CLAIM_HEAD, _claim_rows(close)),
        "Not in the paper, which measures no motion:",
        _table(_CLAIM_HEAD, _claim_rows(asked)),
        "## Tables 1 and 2: text to video",
        "![Both models on each set, with 95 % intervals](scores.png)",
    ]
    for name, title in _SETS.items():
        rows = [(system, scores[name][system]) for system in ("latent_shift", "latent_vdm")]
        parts += [f"### {title[0].upper()}{title[1:]}: {scores[name]['subjects']}", _score_table(rows)]
    parts += [
        "## Table 4: size and speed",
        _table("system | U-Net | autoencoder | text encoder | all | seconds a clip", _size_rows(result)),
        "## Table 5, Figs. 6 and 7: frozen images, and the shift left out",
        "On the training labels. An image counts as a frozen clip. The paper finetunes on text-video data only; the "
        "recipes of the default model also show still pictures in the video stage (`diffusion.image_share`), which "
        "helps either model to draw images." + _what_stays_on(settings),
        _score_table([(name, row) for name, row in scores["training"].items() if name in SYSTEMS]),
        f"The first {len(prompts)} training labels ({', '.join(prompts)}), first seed, as clips and as images:",
        f"![Clips, {_rows_of(_VIDEOS, result)}](videos.webp)",
        f"![Images, {_rows_of([name for name in result['systems'] if name not in _VIDEOS], result)}](images.png)",
        *([ablation_to_markdown(ablation).strip()] if ablation else []),
        "## How it was measured",
        _method(result),
    ]
    return "\n\n".join(parts) + "\n"


def to_html(text: str, folder: Path) -> str:
    """Markdown as one page: the pictures of `folder` are in it."""

    def embed(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:{mimetypes.guess_type(match[1])[0]};base64,{data}"'

    body = re.sub(r'src="([\w.]+)"', embed, MarkdownIt("commonmark").enable("table").render(text))
    scroll = '<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>'
    body = body.replace("<table>", scroll).replace("</table>", "</table></div>")
    closing = "<details open><summary>Moving pictures; close to stop them</summary>"
    body = re.sub(r'<p>(<img src="data:image/webp[^>]*>)</p>', rf"{closing}\1</details>", body)
    title = escape(text.splitlines()[0].removeprefix("# "))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def _lead(result: dict[str, Any]) -> str:
    settings = result["settings"]
    verdicts = [
        claim["verdict"]
        for claim in result["claims"]
        if claim["source"] and claim["stated"] and claim["set"] in (None, "training")
    ]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in _GAINS if name in verdicts)
    limit = f" At most {settings['limit']} subjects of each set: a trial." if settings["limit"] else ""
    base = "" if "base" in settings["models"] else " Without the text-to-image base: its rows and claims are left out."
    return (
        f"Latent-Shift beside Latent-VDM on animated emoji, {settings['seeds']} clips of {settings['frames']} frames a "
        f"subject, each with a seed of its own; one training run of each model. Of {len(verdicts)} claims of the "
        f"paper, asked of the training labels: {counts}.{limit}{base}"
    )


def _method(result: dict[str, Any]) -> str:
    settings = result["settings"]
    models = [
        f"{_TITLES[name]}: `{one['model']}`, sha256 {one['sha256'][:12]}" for name, one in settings["models"].items()
    ]
    lines = [
        *models,
        "Both have the same autoencoder, text encoder, solver, and settings of the network and of sampling, which is "
        "checked; that their recipes were the same but for the network is not.",
        f"{settings['machine']}, {settings['threads']} threads, {settings['dtype']}, PyTorch {settings['torch']}, "
        f"latent-shift {settings['latent_shift']}.",
        f"Denoising steps: {settings['steps']}. Guidance, the share of it that motion has, and correlation of the "
        "first step's noise: "
        + "; ".join(
            f"{_TITLES[name]} {settings['guidance_scale'][name]:g}, {settings['motion_guidance'][name]:g} and "
            f"{settings['noise_correlation'][name]:g}"
            for name in settings["guidance_scale"]
        )
        + ".",
        "Who is asked for, top-1, top-5, motion r2 and ratio: as `latent-shift evaluate emoji`.",
        "Kernel distances: unbiased, of EfficientNet-Lite0's features of eight evenly spaced frames a clip (an image "
        "is one), to the same subjects' real clips in the size of the models; a clip and its own real one are no pair. "
        "As `lite0-frames-kd` and `lite0-clips-kd` in docs/metrics.md but for frames and pairs: compare them within "
        "this report only. They are no published KID or FVD.",
        f"Intervals: score +- 1.96 standard deviations over {settings['resamples']} bootstrap resamples of the "
        "families of labels, each with all its subjects and seeds; both systems of a claim on the same resamples. Many "
        "claims are tested at once and no interval is widened for that.",
        "Seconds: medians over rounds in turns, after a warm-up, from the sentence to the frames; in brackets the "
        "least and the largest of the rounds, as also in the gain of Table 4's speed.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _claim_rows(claims: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each claim and set."""
    return [
        [
            claim["verdict"],
            claim["text"],
            claim["set"] or "-",
            _estimate(claim["gain"]),
            _STATISTICS[claim["statistic"]],
            claim["source"] or "-",
        ]
        for claim in claims
    ]


def _what_stays_on(settings: dict[str, Any]) -> str:
    """What the shift off leaves to tie frames."""
    correlation = settings["noise_correlation"]["latent_shift"]
    text = (
        f"\n\nWith the shift off, neighbouring frames begin from noise that correlates by {correlation:g}, as with it."
    )
    if settings["loop"]:
        text += (
            " These models draw loops, and a loop of one frame is its own neighbour: one frame with and without the "
            "shift is the same by construction, so that Latent-Shift's images need the shift (Fig. 6) cannot be asked."
        )
    return text


def _score_table(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    keys = [key for key in _STATISTICS if any(key in row for _, row in rows)]
    cells = [
        [_TITLES[name], str(row["seeds"]), *("-" if row[key] is None else _estimate(row[key]) for key in keys)]
        for name, row in rows
    ]
    return _table(" | ".join(["system", "seeds", *(_STATISTICS[key] for key in keys)]), cells)


def _size_rows(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, size in result["size"].items():
        low, high = result["speed"][name]["seconds_range"]
        seconds = f"{result['speed'][name]['seconds']:.2f} ({low:.2f} to {high:.2f})"
        rows.append([_TITLES[name], *(f"{size[part] / 1e6:.2f} M" for part in size), seconds])
    return rows


def _rows_of(names: Sequence[str], result: dict[str, Any]) -> str:
    return "from the top: " + "; ".join(_TITLES[name] for name in names if name in result["systems"] or name == "real")


def _estimate(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _table(head: str, rows: list[list[str]]) -> str:
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def _grid(systems: Mapping[str, Sequence[Frames]]) -> Frames:
    """A clip of clips: a named row for each system, a column for each subject; an image stands still."""
    frames = max(len(clip) for clips in systems.values() for clip in clips)
    titles = [_TITLES[name] for name in systems]
    pictures = []
    for index in range(frames):
        rows = [np.stack([clip[index * len(clip) // frames] for clip in clips]) for clips in systems.values()]
        pictures.append(contact_sheet(rows, labels=titles))
    return np.stack(pictures)


def _draw_scores(result: dict[str, Any], picture: Path) -> None:
    """Top-5 and motion r2 of both models on each set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key in zip(figure.subplots(1, 2), ("top5", "r2"), strict=True):
        for place, (name, color) in enumerate(_COLORS.items()):
            found = [result["scores"][one][name][key] for one in _SETS]
            values = [one["value"] for one in found]
            reach = [[one["value"] - one["low"] for one in found], [one["high"] - one["value"] for one in found]]
            heights = [row + 0.2 * place - 0.1 for row in range(len(found))]
            axes.errorbar(values, heights, xerr=reach, fmt="o", color=color, label=_TITLES[name])
        axes.set(xlabel=_STATISTICS[key], yticks=range(len(_SETS)), yticklabels=list(_SETS))
        axes.invert_yaxis()
        axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=120)
