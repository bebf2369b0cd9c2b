"""`latent-shift generate`: clips from sentences."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_shift.core.errors import InputError
from latent_shift.core.shapes import check_at_least, check_interval, is_text

if TYPE_CHECKING:
    from latent_shift import LatentShiftPipeline


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="One or several sentences.", show_default=False)] = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="Where to. The ending says what: .mp4 .webm .gif .webp, .png .jpg (contact sheet; the image itself "
            "for one frame), or name/ (a folder of PNG frames). Several clips get numbers.",
        ),
    ] = "clip.mp4",
    prompt_file: Annotated[
        Path | None, typer.Option(help="A text file with a sentence a line, besides the arguments.")
    ] = None,
    negative: Annotated[str, typer.Option(help="What the clip should not show.")] = "",
    frames: Annotated[
        int | None, typer.Option(help="Frames of a clip; 1 makes an image. [default: the model's]")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Pixels: one number, or WIDTHxHEIGHT. [default: the model's]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps. [default: the scheduler's (dpm++: 15), or 4 with --fast]")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; 1 turns guidance off. [default: the model's]")
    ] = None,
    motion_guidance: Annotated[
        float | None,
        typer.Option(help="Share of guidance that acts on motion, 0 to 1; less is calmer. [default: the model's]"),
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Shares of the steps where guidance starts and stops; 0 1 is all. [default: the model's]"),
    ] = None,
    noise_correlation: Annotated[
        float | None,
        typer.Option(help="Of neighbouring frames' noise, 0 to below 1; higher moves less. [default: the model's]"),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="dpm++, unipc, euler, ddim, ddpm (the paper's, 100 steps), ddim-trailing (distilled). [default: dpm++]"
        ),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="4 steps without guidance, distilled: a quarter of the time.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Clip number n of a sentence has the seed SEED + n, from n = 0.")] = 0,
    num_videos: Annotated[int, typer.Option(help="Clips for each sentence.")] = 1,
    fps: Annotated[float | None, typer.Option(help="Frames a second of the file. [default: the model's]")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="A seamless loop; twice the time, and calmer.")] = False,
    model: Annotated[str, typer.Option(help="A model by name (emoji) or a folder.")] = "emoji",
    preset: Annotated[
        str | None, typer.Option(help="Random weights instead of a model: paper, small, tiny, or these with -vdm.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")] = False,
) -> None:
    """Make clips from sentences.

    Examples:
      latent-shift generate "a waving hand" -o wave.mp4

      latent-shift generate "red heart" "a rocket" --loop --num-videos 2 -o clips.webp
    """
    sentences = _sentences(prompts, prompt_file)
    if not is_text(negative):
        raise InputError("--negative", negative, "be UTF-8 text")
    check_at_least("--num-videos", num_videos, 1)
    check_at_least("--frames", 1 if frames is None else frames, 1)
    check_at_least("--steps", 1 if steps is None else steps, 1)
    if guidance is not None and not math.isfinite(guidance):
        raise InputError("--guidance", guidance, "be a number")
    if motion_guidance is not None and not 0 <= motion_guidance <= 1:
        raise InputError("--motion-guidance", motion_guidance, "be in [0, 1]")
    if guidance_interval is not None:
        check_interval("--guidance-interval", guidance_interval)
    if noise_correlation is not None and not 0 <= noise_correlation < 1:
        raise InputError("--noise-correlation", noise_correlation, "be in [0, 1)")
    if not -(2**63) <= seed < 2**63 - num_videos:
        raise InputError("--seed", seed, "be a whole number of 64 bits")
    if preset and model != "emoji":
        raise InputError("--preset", preset, "be given without --model")
    if preset and fast:
        raise InputError("--fast", fast, "be given with a model and no preset")
    width, height = _parse_size(size)
    places = _places(output, len(sentences) * num_videos)
    _check_outputs(output, places, fps)

    started = time.perf_counter()
    pipeline, scheduler, usual_steps = _load(model, preset, device, dtype, scheduler, fast)
    model = preset or model
    load_seconds = time.perf_counter() - started
    from latent_shift.pipelines.inputs import check_size

    check_size("--size", pipeline, width, height)
    scale = pipeline.config.default_guidance_scale if guidance is None else guidance
    if negative and scale <= 1:
        raise InputError("--negative", negative, f"be left out where guidance is off (its scale is {scale:g})")
    options = {
        "negative_prompt": negative,
        "num_frames": frames,
        "height": height,
        "width": width,
        "num_inference_steps": steps or usual_steps,
        "guidance_scale": guidance,
        "motion_guidance": motion_guidance,
        "guidance_interval": guidance_interval,
        "noise_correlation": noise_correlation,
        "boundary": "circular" if loop else "default",
    }
    clips = []
    jobs = [(sentence, seed + number) for sentence in sentences for number in range(num_videos)]
    for (sentence, clip_seed), place in zip(jobs, places, strict=True):
        clip = _make(pipeline, sentence, clip_seed, place, fps, model, scheduler, options)
        clips.append(clip)
        if not as_json:
            frames = f"{clip['frames']} frame" + "s" * (clip["frames"] > 1)
            typer.echo(f"{clip['path']}: {frames} in {clip['seconds']:.1f} s (seed {clip_seed})")
    if as_json:
        typer.echo(json.dumps({"clips": clips, "load_seconds": round(load_seconds, 3)}, ensure_ascii=False))


def _make(
    pipeline: LatentShiftPipeline,
    prompt: str,
    seed: int,
    place: str,
    fps: float | None,
    model: str,
    scheduler: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    import numpy as np
    import torch

    from latent_shift.media import to_uint8, write_video
    from latent_shift.pipelines.generation import check_finite, clip_settings

    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    made: Any = pipeline(prompt, generator=generator, output_type="np", **options)
    frames = np.asarray(made.frames)[0]
    check_finite(frames, pipeline, prompt, seed)
    rate = fps or pipeline.config.fps
    settings = clip_settings(
        pipeline,
        model,
        scheduler,
        prompt,
        options["negative_prompt"],
        seed,
        options["num_inference_steps"],
        options["boundary"],
        len(frames),
        guidance_scale=options["guidance_scale"],
        motion_guidance=options["motion_guidance"],
        guidance_interval=options["guidance_interval"],
        noise_correlation=options["noise_correlation"],
    )
    metadata = {key: str(value) for key, value in settings.items()}
    write_video(place, to_uint8(frames), rate, metadata)
    seconds = time.perf_counter() - started
    size = {"frames": frames.shape[0], "height": frames.shape[1], "width": frames.shape[2], "fps": rate}
    return {"path": place, **settings, **size, "seconds": round(seconds, 3)}


def _load(
    model: str, preset: str | None, device: str, dtype: str, scheduler: str | None, fast: bool
) -> tuple[LatentShiftPipeline, str, int]:
    """The pipeline, its scheduler's name, and that one's usual steps."""
    from ._quiet import quiet_libraries

    quiet_libraries()
    from latent_shift.pipelines import find_scheduler, load_pipeline, load_preset, make_scheduler

    find_scheduler(scheduler, fast, "--scheduler")
    pipeline = load_preset(preset, device, dtype) if preset else load_pipeline(model, device, dtype, fast)
    name, steps = find_scheduler(scheduler, pipeline.is_fast, "--scheduler")
    pipeline.scheduler = make_scheduler(name, pipeline.scheduler.config)
    pipeline.set_progress_bar_config(leave=False, desc="denoising", disable=None)
    return pipeline, name, pipeline.config.distilled_steps or steps


def _sentences(prompts: list[str] | None, prompt_file: Path | None) -> list[str]:
    sentences = list(prompts or [])
    if prompt_file is not None:
        try:
            lines = prompt_file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("--prompt-file", str(prompt_file), "be a text file that can be read") from error
        sentences += [line.strip() for line in lines if line.strip()]
    if not sentences:
        raise InputError("prompt", "", "be given, as an argument or in --prompt-file")
    for sentence in sentences:
        if not is_text(sentence):
            raise InputError("prompt", sentence, "be UTF-8 text")
        if not sentence.strip():
            raise InputError("prompt", sentence, "have a word")
    return sentences


def _places(output: str, count: int) -> list[str]:
    if count == 1:
        return [output]
    base = output.rstrip("/")
    path = Path(base)
    if not path.name:
        return [output]  # refused by the check of its name
    end = "/" if output != base else ""
    return [str(path.with_name(f"{path.stem}_{number:03d}{path.suffix}")) + end for number in range(count)]


def _check_outputs(output: str, places: list[str], fps: float | None) -> None:
    """What writing would refuse later, refused before any work."""
    from latent_shift.media import check_output_path
    from latent_shift.media.output import output_kind

    most = 50 if output_kind(output) == ".gif" else 1000
    if fps is not None and not 0.01 <= fps <= most:
        raise InputError("--fps", fps, f"be from 0.01 to {most}")
    for place in places:
        check_output_path(place)


def _parse_size(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    parts = size.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError("--size", size, "be a number of pixels or WIDTHxHEIGHT")
    return int(parts[0]), int(parts[-1])
