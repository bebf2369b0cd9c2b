"""`latent-shift benchmark`: size and speed, beside what else there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def benchmark(
    preset: Annotated[str, typer.Option(help="paper, small or tiny; random weights.")] = "paper",
    models: Annotated[
        str | None,
        typer.Option(
            help="Names with commas: latent_shift, latent_shift_off, latent_vdm, unet2d, unet2d_compiled, unet3d, "
            "unet_motion. unet2d is always measured. [default: all]"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Timed forwards of each network.")] = 7,
    train_rounds: Annotated[
        int, typer.Option(help="Timed training steps (forward and backward) of each; 0 for none. Needs the memory.")
    ] = 0,
    compile_floor: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Measure unet2d_compiled; compiling takes minutes.")
    ] = True,
    steps: Annotated[int, typer.Option(help="Denoising steps of a whole clip.")] = 100,
    clip_steps: Annotated[
        int | None, typer.Option(help="How many of them are run. [default: all on a GPU, else 2]")
    ] = None,
    clip_rounds: Annotated[int, typer.Option(help="Timed clips of each network; 0 for none.")] = 3,
    sweep_rounds: Annotated[int, typer.Option(help="Timed forwards of 4 to 128 frames; 0 for none.")] = 3,
    op_rounds: Annotated[
        int, typer.Option(help="Timed calls of the shift alone, and with norm and SiLU; 0 for none.")
    ] = 7,
    profile: Annotated[bool, typer.Option(help="Say where the time of a forward goes.")] = True,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in a process for each network.")] = True,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for results.json, README.md and charts (PNG).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="bf16, fp32 (as the paper sampled), fp16 or auto.")] = "bf16",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")] = False,
) -> None:
    """Measure size and speed of Latent-Shift, Latent-VDM, the plain U-Net, ModelScope's and AnimateDiff's (Table 4).

    Examples:
      latent-shift benchmark --preset paper --json

      latent-shift benchmark --preset small --models latent_shift_off --train-rounds 15 --clip-rounds 0

      latent-shift benchmark --models latent_shift,latent_shift_off --dtype fp32 --output benchmarks/shift
    """
    from latent_shift.benchmark import MODELS, BenchmarkOptions, write_report
    from latent_shift.benchmark import benchmark as measure
    from latent_shift.benchmark.report import check_output, to_markdown

    from ._progress import progress_bars
    from ._quiet import quiet_libraries

    options = BenchmarkOptions(
        models=tuple(MODELS) if models is None else tuple(name.strip() for name in models.split(",")),
        rounds=rounds,
        train_rounds=train_rounds,
        compile=compile_floor,
        steps=steps,
        clip_steps=clip_steps,
        clip_rounds=clip_rounds,
        memory=memory,
        sweep_rounds=sweep_rounds,
        op_rounds=op_rounds,
        profile=profile,
    )
    quiet_libraries()
    if output is not None:
        check_output(output)
    with progress_bars() as show:
        result = measure(preset, options, device, dtype, show)
    if output is not None:
        write_report(result, output)
    typer.echo(json.dumps(result, indent=2) if as_json else to_markdown(result))
