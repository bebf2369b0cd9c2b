"""`latent-shift reproduce`: do the paper's claims hold here?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    twin: Annotated[str, typer.Option(help="Folder of the Latent-VDM twin.")],
    model: Annotated[str, typer.Option(help="The Latent-Shift model, by name (emoji) or a folder.")] = "emoji",
    base: Annotated[
        str | None,
        typer.Option(help="Folder of the text-to-image base of both, for Table 5. [default: its rows are left out]"),
    ] = None,
    data: Annotated[Path, typer.Option(help="What `latent-shift data emoji` made.")] = Path("data/emoji"),
    output: Annotated[Path, typer.Option(help="Where clips and their features are kept.")] = Path("runs/evaluation"),
    report: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("runs/reproduce"),
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    seeds: Annotated[int, typer.Option(help="Clips of each subject, each with a seed of its own.")] = 3,
    limit: Annotated[int | None, typer.Option(help="At most so many subjects of each set, for trials.")] = None,
    rounds: Annotated[int, typer.Option(help="Clips of each model that are timed.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Clips made at once.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON, for programs.")] = False,
) -> None:
    """The paper's claims, tested on a Latent-Shift model and its Latent-VDM twin. A rerun goes on.

    Examples:
      latent-shift reproduce --twin models/emoji-vdm --base runs/emoji-image/model --report docs/reproduction

      latent-shift reproduce --twin models/emoji-vdm --seeds 1 --limit 10
    """
    from latent_shift.evaluation import ReproduceOptions
    from latent_shift.evaluation import reproduce as run

    from ._progress import progress_bars
    from ._quiet import quiet_libraries

    options = ReproduceOptions(steps=steps, seeds=seeds, limit=limit, rounds=rounds, batch_size=batch_size)
    quiet_libraries()
    with progress_bars() as show:
        result = run(model, twin, base, data, output, report, options, device, dtype, show)
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    for claim in result["claims"]:
        typer.echo(f"{claim['verdict']:<10} {claim['source']}: {claim['text']} {claim['set'] or ''}".rstrip())
    typer.echo(f"report: {report / 'README.md'}, {report / 'index.html'}")
