"""`latent-shift reproduce`: do the paper's claims hold here, and what of the shift matters?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ._command import Command

reproduce = typer.Typer(help="The paper's claims at emoji scale, and an ablation of the shift.", no_args_is_help=True)


@reproduce.command(cls=Command)
def claims(
    model: Annotated[str, typer.Option(help="Folder of the Latent-Shift model.")],
    twin: Annotated[str, typer.Option(help="Folder of its Latent-VDM twin.")],
    base: Annotated[
        str | None,
        typer.Option(help="Folder of the text-to-image base of both, for Table 5. [default: its rows are left out]"),
    ] = None,
    data: Annotated[Path, typer.Option(help="What `latent-shift data emoji` made.")] = Path("data/emoji"),
    output: Annotated[Path, typer.Option(help="Where clips and their features are kept.")] = Path("runs/evaluation"),
    report: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("runs/reproduce"),
    steps: Annotated[int | None, typer.Option(help="Denoising steps. [default: the solver's, 15]")] = None,
    seeds: Annotated[int, typer.Option(help="Clips of each subject, each with a seed of its own.")] = 3,
    limit: Annotated[int | None, typer.Option(help="At most so many subjects of each set, for trials.")] = None,
    rounds: Annotated[int, typer.Option(help="Clips of each model that are timed.")] = 7,
    batch_size: Annotated[int, typer.Option(help="Clips made at once.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON, for programs.")] = False,
) -> None:
    """The paper's claims, tested on a Latent-Shift model and its Latent-VDM twin. A rerun goes on.

    Examples:
      latent-shift reproduce claims --model runs/emoji-motion/model --twin runs/emoji-vdm/model

      latent-shift reproduce claims --model models/emoji-8-frames/latent_shift --twin models/emoji-8-frames/latent_vdm
    """
    from latent_shift.evaluation import ReproduceOptions
    from latent_shift.evaluation import reproduce as run
    from latent_shift.pipelines.schedulers import DEFAULT_STEPS

    from ._progress import progress_bars
    from ._quiet import quiet_libraries

    options = ReproduceOptions(
        steps=DEFAULT_STEPS if steps is None else steps, seeds=seeds, limit=limit, rounds=rounds, batch_size=batch_size
    )
    quiet_libraries()
    with progress_bars() as show:
        result = run(model, twin, base, data, output, report, options, device, dtype, show)
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    for claim in result["claims"]:
        typer.echo(f"{claim['verdict']:<10} {claim['source']}: {claim['text']} {claim['set'] or ''}".rstrip())
    typer.echo(f"report: {report / 'README.md'}, {report / 'index.html'}")


@reproduce.command()
def ablation(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe of the video stage: recipes/emoji-ablation.toml.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of the recipe: --set steps=100")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where clips and their features are kept.")] = Path("runs/evaluation"),
    report: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("runs/reproduce"),
    steps: Annotated[int | None, typer.Option(help="Denoising steps. [default: the solver's, 15]")] = None,
    seeds: Annotated[int, typer.Option(help="Clips of each label, each with a seed of its own.")] = 3,
    limit: Annotated[int | None, typer.Option(help="At most so many labels, for trials.")] = None,
    batch_size: Annotated[int, typer.Option(help="Clips made at once.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps; of sampling.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16; of sampling.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON, for programs.")] = False,
) -> None:
    """Fold, placement, distance and boundary of the shift, one changed at a time: trains and measures each of them.

    A rerun goes on.

    Examples:
      latent-shift convert models/emoji-8-frames/latent_vdm runs/emoji-8-image --to shift

      latent-shift reproduce ablation recipes/emoji-ablation.toml
    """
    from latent_shift.core.config import load_config
    from latent_shift.evaluation import ReproduceOptions, ablate
    from latent_shift.evaluation.report import ablation_to_markdown
    from latent_shift.pipelines.schedulers import DEFAULT_STEPS
    from latent_shift.training import Recipe

    from ._progress import progress_bars
    from ._quiet import quiet_libraries

    resolved = load_config(Recipe, recipe, settings or ())
    options = ReproduceOptions(
        steps=DEFAULT_STEPS if steps is None else steps, seeds=seeds, limit=limit, batch_size=batch_size
    )
    quiet_libraries()
    with progress_bars() as show:
        result = ablate(resolved, output, report, options, device, dtype, show)
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else ablation_to_markdown(result))
