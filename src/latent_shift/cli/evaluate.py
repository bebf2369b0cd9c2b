"""`latent-shift evaluate`: measures models, and clips by anybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from latent_shift.core.errors import InputError

from ._command import Command

if TYPE_CHECKING:
    from latent_shift.evaluation import ProtocolOptions
    from latent_shift.evaluation.protocols import Protocol

evaluate = typer.Typer(
    name="evaluate", help="Measure models, and clips by anybody.", no_args_is_help=True, rich_markup_mode=None
)


@evaluate.command(cls=Command)
def emoji(
    model: Annotated[str, typer.Option(help="A model by name (emoji) or a folder.")] = "emoji",
    data: Annotated[Path, typer.Option(help="The folder that `latent-shift data emoji` made.")] = Path("data/emoji"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the clips are kept.")] = Path("runs/evaluation"),
    base: Annotated[str | None, typer.Option(help="Folder of the text-to-image base, for its floor row.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="training, heldout, pairs, paraphrase. [default: all]")
    ] = None,
    loop: Annotated[
        bool, typer.Option("--loop", help="Also make every clip as a loop, and see whether it closes.")
    ] = False,
    floors: Annotated[bool, typer.Option(help="Also make every clip with the shift off.")] = True,
    limit: Annotated[int | None, typer.Option(help="At most so many clips of each set, for trials.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="The model distilled to few steps.")] = False,
    scheduler: Annotated[
        str | None, typer.Option(help="dpm++, unipc, euler, ddim or ddpm. [default: dpm++]", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. [default: the scheduler's]")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. [default: the model's]")] = None,
    motion_guidance: Annotated[
        float | None, typer.Option(help="Share of guidance that acts on motion, 0 to 1. [default: the model's]")
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Shares of the steps where guidance starts and stops. [default: the model's]"),
    ] = None,
    noise_correlation: Annotated[
        float | None, typer.Option(help="Of neighbouring frames' noise, 0 to below 1. [default: the model's]")
    ] = None,
    seed: Annotated[int, typer.Option(help="All clips' seeds follow from it.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Clips made at once.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON, for programs.")] = False,
) -> None:
    """Does the emoji model draw what the sentence says, and move as that thing moves? A rerun goes on.

    Examples:
      latent-shift evaluate emoji --loop --base runs/emoji-image/model --json

      latent-shift evaluate emoji --model runs/emoji-video/model --set training --limit 20 --no-floors
    """
    from latent_shift.evaluation import EvaluationOptions, evaluate_emoji
    from latent_shift.evaluation.subjects import SETS

    from ._progress import progress_bars
    from ._quiet import quiet_libraries

    options = EvaluationOptions(
        scheduler=scheduler,
        steps=steps,
        fast=fast,
        guidance_scale=guidance,
        motion_guidance=motion_guidance,
        guidance_interval=guidance_interval,
        noise_correlation=noise_correlation,
        seed=seed,
        limit=limit,
        loop=loop,
        floors=floors,
        batch_size=batch_size,
        sets=tuple(sets or SETS),
    )
    quiet_libraries()
    with progress_bars() as show:
        result = evaluate_emoji(model, data, output, options, base, device, dtype, show)
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else _table(result))


@evaluate.command(cls=Command)
def folder(
    generated: Annotated[Path, typer.Argument(help="Folder of clips: videos, animations, or PNG frames.")],
    real: Annotated[Path | None, typer.Option(help="Folder of real clips, to compare with.")] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", help="A name of docs/metrics.md; may be repeated. [default: five that need no download]"
        ),
    ] = None,
    weights: Annotated[Path, typer.Option(help="Folder of the weight files that you fetched.")] = Path(
        "models/metrics"
    ),
    frames: Annotated[int, typer.Option(help="Frames of a clip; 1 for images.")] = 16,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second. [default: neighbouring frames of each file]")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Pixels, scaled and cropped square. [default: as it is]")] = None,
    image_frames: Annotated[int, typer.Option(help="Frames of a clip that scores of frames use.")] = 1,
    limit: Annotated[int | None, typer.Option(help="At most so many clips of each folder, drawn at random.")] = None,
    splits: Annotated[int, typer.Option(help="Parts that the Inception Score is averaged over.")] = 1,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of the interval; 0 for none.")] = 50,
    seed: Annotated[int, typer.Option(help="Of windows, splits and resamples.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Clips at once in a network.")] = 8,
    threads: Annotated[int, typer.Option(help="Threads that decode.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON, for programs.")] = False,
) -> None:
    """Scores a folder of clips, whoever made them. Each score says how it was made.

    Examples:
      latent-shift evaluate folder clips --real data/emoji/clips --frames 24

      latent-shift evaluate folder clips --real UCF-101 --metric fvd --metric is --fps 25 --size 128 --json
    """
    from latent_shift.evaluation import FolderOptions, evaluate_folder
    from latent_shift.metrics import ScoreOptions

    from ._progress import progress_bars
    from ._quiet import quiet_libraries

    options = FolderOptions(
        metrics=_as_tuple(metrics),
        frames=frames,
        fps=fps,
        size=size,
        image_frames=image_frames,
        limit=limit,
        batch_size=batch_size,
        threads=threads,
        score=ScoreOptions(splits=splits, resamples=resamples, seed=seed),
    )
    quiet_libraries()
    with progress_bars() as show:
        results = evaluate_folder(generated, real, options, weights, device, show)
    if as_json:
        typer.echo(json.dumps([result.to_json() for result in results], indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(map(str, results)))


Model = Annotated[str | None, typer.Option(help="A model by name or a folder.", show_default=False)]
Clips = Annotated[
    Path | None, typer.Option(help="Score this folder of clips, whoever made them, instead of a model's.")
]
_OUTPUT, _SAMPLES = Path("runs/evaluation"), 10_000
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the clips are kept.")]
Part = Annotated[
    str | None, typer.Option(help="Make only a share of the clips, as 2/8, and score nothing; for several machines.")
]
Scheduler = Annotated[str, typer.Option(help="dpm++, unipc, euler, ddim, or ddpm (the paper's, 100 steps).")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps. [default: the scheduler's]")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale. [default: the model's]")]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", help="A name of docs/metrics.md instead of the protocol's; may be repeated."),
]
Resamples = Annotated[int, typer.Option(help="Bootstrap resamples of the intervals; 0 for none.")]
Weights = Annotated[Path, typer.Option(help="Folder of the weight files that you fetched.")]
Seed = Annotated[int, typer.Option(help="All clips' seeds follow from it.")]
BatchSize = Annotated[int, typer.Option(help="Clips made at once.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the scores as JSON, for programs.")]


@evaluate.command(cls=Command)
def msrvtt(
    data: Annotated[str, typer.Argument(help="MSR-VTT's JSON, or its folder.")],
    model: Model = None,
    clips: Clips = None,
    captions: Annotated[str, typer.Option(help="all, as the paper, or one of each video.")] = "all",
    frames: Annotated[
        int | None, typer.Option(help="Of a clip; 1 for images, as the paper's Table 5. [default: the model's]")
    ] = None,
    output: Output = _OUTPUT,
    part: Part = None,
    scheduler: Scheduler = "dpm++",
    steps: Steps = None,
    guidance: Guidance = None,
    metrics: Metrics = None,
    resamples: Resamples = 50,
    weights: Weights = Path("models/metrics"),
    seed: Seed = 0,
    batch_size: BatchSize = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """The paper's Tables 1 and 5: FID and CLIPSIM of frames over MSR-VTT's test captions. A rerun goes on.

    Examples:
      latent-shift evaluate msrvtt data/msrvtt --model my-model --scheduler ddpm

      latent-shift evaluate msrvtt data/msrvtt --model my-model --captions one --part 1/4

      latent-shift evaluate msrvtt data/msrvtt --model my-model --frames 1
    """
    from latent_shift.evaluation import ProtocolOptions, protocols

    part_of = _read_part(part)
    options = ProtocolOptions(scheduler, steps, guidance, batch_size, part_of, _as_tuple(metrics), resamples, frames)
    asked = {"--captions": captions != "all", "--frames": frames is not None, "--seed": seed != 0}
    _check_clips(clips, options, asked | {"--output": output != _OUTPUT, "--dtype": dtype != "auto"})
    protocol = protocols.msrvtt(data, cast("Any", captions), seed)
    _evaluate(protocol, model, clips, output, options, weights, device, dtype, as_json)


@evaluate.command(cls=Command)
def ucf101(
    data: Annotated[str, typer.Argument(help="The folder of UCF-101.")],
    model: Model = None,
    clips: Clips = None,
    samples: Annotated[int, typer.Option(help="Clips to make.")] = _SAMPLES,
    output: Output = _OUTPUT,
    part: Part = None,
    scheduler: Scheduler = "dpm++",
    steps: Steps = None,
    guidance: Guidance = None,
    metrics: Metrics = None,
    resamples: Resamples = 50,
    weights: Weights = Path("models/metrics"),
    seed: Seed = 0,
    batch_size: BatchSize = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """The paper's Table 2: Inception Score and FVD of a model finetuned on UCF-101. A rerun goes on.

    Examples:
      latent-shift evaluate ucf101 data/UCF-101 --model runs/paper-ucf101/model --scheduler ddpm

      latent-shift evaluate ucf101 data/UCF-101 --clips rival/clips --metric fvd --json
    """
    from latent_shift.evaluation import ProtocolOptions, protocols

    part_of = _read_part(part)
    options = ProtocolOptions(scheduler, steps, guidance, batch_size, part_of, _as_tuple(metrics), resamples)
    asked = {"--samples": samples != _SAMPLES, "--seed": seed != 0}
    _check_clips(clips, options, asked | {"--output": output != _OUTPUT, "--dtype": dtype != "auto"})
    protocol = protocols.ucf101(data, samples, seed)
    _evaluate(protocol, model, clips, output, options, weights, device, dtype, as_json)


def _evaluate(
    protocol: Protocol,
    model: str | None,
    clips: Path | None,
    output: Path,
    options: ProtocolOptions,
    weights: Path,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    from latent_shift.evaluation import evaluate_protocol, score_protocol

    from ._progress import progress_bars
    from ._quiet import quiet_libraries

    quiet_libraries()
    with progress_bars() as show:
        if model is not None and clips is None:
            done = evaluate_protocol(protocol, model, output, options, weights, device, dtype, show)
        elif clips is not None and model is None:
            done = score_protocol(protocol, clips, options.metrics, weights, device, show, options.resamples)
        else:
            raise InputError("--model", model, "be given, or --clips, one of the two")
    if as_json:
        scores = [result.to_json() for result in done.results]
        facts = {"folder": str(done.folder), "made": done.made, "wanted": done.wanted}
        facts |= {"settings": done.settings, "scores": scores}
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    made_with = ", ".join(f"{name}={value}" for name, value in done.settings.items())
    typer.echo(f"{done.folder}: {done.made} of {done.wanted} clips" + (f" ({made_with})" if made_with else ""))
    typer.echo("\n".join(map(str, done.results)) or "scores: the same command without --part")


def _check_clips(clips: Path | None, options: ProtocolOptions, others: dict[str, bool]) -> None:
    """Raises `InputError` where options that say how clips are made are given for clips that somebody has made."""
    given = {"--part": options.part, "--steps": options.steps, "--guidance": options.guidance_scale}
    changed = {name: value is not None for name, value in given.items()} | others
    changed |= {"--scheduler": options.scheduler != "dpm++", "--batch-size": options.batch_size != 1}
    if clips is not None and any(changed.values()):
        names = ", ".join(name for name, is_changed in changed.items() if is_changed)
        raise InputError("--clips", str(clips), f"be given without {names}: its clips are there")


def _read_part(part: str | None) -> tuple[int, int] | None:
    if part is None:
        return None
    number, _, parts = part.partition("/")
    if not (number.isdecimal() and parts.isdecimal()):
        raise InputError("--part", part, "be NUMBER/OF, as 2/8")
    return int(number), int(parts)


def _as_tuple(names: list[str] | None) -> tuple[str, ...] | None:
    return tuple(names) if names else None


def _table(result: dict[str, Any]) -> str:
    """The scores, a row each."""
    lines = [f"{'':24}{'clips':>6}{'top-1':>8}{'top-5':>8}{'tone':>8}{'r2':>8}{'ratio':>8}{'seam':>8}"]
    for name in (name for name, value in result.items() if isinstance(value, dict) and "match" in value):
        scores = result[name]
        rows = {name: scores, "  ceiling": scores["ceiling"]}
        rows |= {f"  floor: {row}": floor for row, floor in scores["floor"].items()}
        for title, row in rows.items():
            match, motion = row["match"], row["motion"]
            values = [match["top1"], match["top5"], match.get("tone"), motion["r2"], motion["ratio"], row.get("seam")]
            cells = "".join(f"{'' if value is None else format(value, '.3f'):>8}" for value in values)
            lines.append(f"{title:24}{row['clips']:>6}{cells}")
    return "\n".join([*lines, f"autoencoder on unseen frames: {result['autoencoder']['psnr_db']} dB PSNR"])
