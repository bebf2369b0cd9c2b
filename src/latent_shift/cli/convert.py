"""`latent-shift convert`: pretrained text-to-image models become video models, and back."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A diffusers folder (LDM, Stable Diffusion 1.x, 2.x, XL, or a model of ours), the original single "
            "file of one of them (.ckpt, .safetensors), emoji, or a name of the hub."
        ),
    ],
    destination: Annotated[str, typer.Argument(metavar="DEST", help="The folder to write.")],
    to: Annotated[
        str, typer.Option(help="shift (Latent-Shift), vdm (Latent-VDM), or image (a pipeline of plain diffusers).")
    ],
    variant: Annotated[str | None, typer.Option(help="Of a folder's weights, as in diffusers: fp16.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Of a single file: folder or name of the hub. [default: LDM: ours; else CLIP's on the hub]"),
    ] = None,
    prediction_type: Annotated[
        str | None, typer.Option(help="Of a single file of Stable Diffusion 2.x: v_prediction (768 px) or epsilon.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights that the source does not have (vdm).")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")] = False,
) -> None:
    """Make a video model of a pretrained text-to-image model, or a text-to-image model of a video model.

    Examples:
      latent-shift convert stable-diffusion-v1-5/ models/sd15-shift --to shift

      latent-shift convert models/sd15-shift models/sd15 --to image
    """
    from ._quiet import quiet_libraries

    quiet_libraries()
    from latent_shift.pipelines import convert_model

    made = convert_model(
        source,
        destination,
        to,
        variant=variant,
        tokenizer=tokenizer,
        prediction_type=prediction_type,
        seed=seed,
    )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(made)))
        return
    typer.echo(f"{made.destination}: a {made.pipeline}")
    for name, count in made.parameters.items():
        typer.echo(f"  {name}: {count:,} parameters")
    if made.new_parameters:
        typer.echo(f"  new, not trained: {made.new_parameters:,} parameters of temporal attention")
    if made.left_out:
        typer.echo(f"  left out: {', '.join(made.left_out)}")
