"""The default model by several solvers and numbers of steps, beside DDPM with 100 (the paper): quality and time.

usage: python scripts/compare_solvers.py LABELS [OUTPUT]

Quality is that of `latent-shift evaluate emoji --set training --limit LABELS`; clips are kept in runs/evaluation, so
that a rerun goes on. Seconds are those of a clip, sampled again in turns, medians of three. Prints a Markdown table,
and draws a chart to OUTPUT (solvers.png).
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from latent_shift.benchmark.timing import take_turns, timed
from latent_shift.evaluation import EvaluationOptions, evaluate_emoji
from latent_shift.pipelines import load_pipeline, make_scheduler

SAMPLERS = [(name, steps) for name in ("dpm++", "unipc") for steps in (10, 15, 20, 25)] + [("ddpm", 100)]
ROUNDS = 3


def measure_quality(labels: int) -> dict[tuple[str, int], dict[str, Any]]:
    """The scores of each sampler."""
    scores = {}
    for name, steps in SAMPLERS:
        options = EvaluationOptions(scheduler=name, steps=steps, sets=("training",), limit=labels, floors=False)
        scores[name, steps] = evaluate_emoji(options=options)["training"]
        print(f"{name} {steps}: {scores[name, steps]['match']} {scores[name, steps]['motion']}", file=sys.stderr)
    return scores


def measure_seconds() -> dict[tuple[str, int], float]:
    """Median seconds of a clip by each sampler."""
    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config

    def draw(name: str, steps: int) -> None:
        pipeline.scheduler = make_scheduler(name, config)
        pipeline("red heart", num_inference_steps=steps)

    draw("dpm++", 2)  # to warm up
    jobs = {f"{name} {steps}": timed(partial(draw, name, steps), pipeline.device) for name, steps in SAMPLERS}
    seconds = take_turns(jobs, ROUNDS)
    return {(name, steps): statistics.median(seconds[f"{name} {steps}"]) for name, steps in SAMPLERS}


def draw_chart(
    scores: dict[tuple[str, int], dict[str, Any]], seconds: dict[tuple[str, int], float], place: Path
) -> None:
    """Match and motion against the seconds of a clip; a point is labelled with its steps."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    measures = {"right label among five": ("match", "top5"), "motion r2": ("motion", "r2")}
    for axes, (title, (group, key)) in zip(panels, measures.items(), strict=True):
        for above, name in zip((7, -14, 7), dict.fromkeys(name for name, _ in SAMPLERS), strict=True):
            own = [sampler for sampler in SAMPLERS if sampler[0] == name]
            places = [(seconds[sampler], scores[sampler][group][key]) for sampler in own]
            axes.plot(*zip(*places, strict=True), marker="o", label=name)
            for (_, steps), point in zip(own, places, strict=True):
                axes.annotate(str(steps), point, textcoords="offset points", xytext=(0, above), ha="center")
        axes.set(title=title, xlabel="seconds a clip", xscale="log")
        axes.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"], minor=False)
        axes.set_xticks([], minor=True)
        axes.axhline(0, color="none")  # one clip is a twentieth: a closer look would show noise
        axes.margins(y=0.2)
        axes.legend()
    figure.savefig(place, dpi=120)


def main() -> None:
    """Measures, prints and draws."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    scores, seconds = measure_quality(int(sys.argv[1])), measure_seconds()
    print("| solver | steps | top-1 | top-5 | motion r2 | motion ratio | seconds |\n|---|---|---|---|---|---|---|")
    for (name, steps), score in scores.items():
        match, motion = score["match"], score["motion"]
        figures = (match["top1"], match["top5"], motion["r2"], motion["ratio"], seconds[name, steps])
        print(f"| {name} | {steps} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
    draw_chart(scores, seconds, Path(sys.argv[2] if len(sys.argv) > 2 else "solvers.png"))


if __name__ == "__main__":
    main()
