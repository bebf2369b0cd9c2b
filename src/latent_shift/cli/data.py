"""`latent-shift data`: makes and looks at captioned-video folders."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._command import Command

if TYPE_CHECKING:
    from latent_shift.data import SourceReport

data = typer.Typer(
    name="data", help="Make captioned-video folders, and check any.", no_args_is_help=True, rich_markup_mode=None
)


@data.callback()
def _data() -> None:
    """Groups the commands."""


@data.command(cls=Command)
def emoji(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")] = Path("data/emoji"),
    packages: Annotated[
        Path | None, typer.Option(help="Folder with the npm tarballs, if they were fetched before.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes. [default: one a core]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, for programs.")] = False,
) -> None:
    """Fetch Microsoft's animated Fluent emoji (MIT) through npm and write captioned clips; a rerun goes on.

    Examples:
      latent-shift data emoji --output data/emoji

      latent-shift data emoji --packages downloads/ --workers 4
    """
    from latent_shift.data.emoji import build_emoji

    from ._progress import progress_bars

    with progress_bars() as show:
        summary = build_emoji(output, packages=packages, workers=workers, progress=show)
    values = dataclasses.asdict(summary)
    typer.echo(json.dumps(values, default=str, ensure_ascii=False) if as_json else _lines(values))


@data.command(cls=Command)
def cache(
    source: Annotated[str, typer.Argument(help="A path, or kind:path, as for `data check`.")],
    output: Annotated[Path, typer.Argument(help="Folder for caches; a recipe finds it as data.cache.")],
    model: Annotated[str, typer.Option(help="Whose autoencoder and text encoder encode: a name or a folder.")],
    num_frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 16,
    duration: Annotated[str, typer.Option(help="Length of a clip, seconds; or whole.")] = "2.0",
    size: Annotated[int, typer.Option(help="Height and width of a clip, pixels.")] = 256,
    short: Annotated[str, typer.Option(help="Videos shorter than a clip: drop, or take whole.")] = "drop",
    max_bad_share: Annotated[float, typer.Option(help="Share of the videos that may be bad.")] = 0.1,
    seed: Annotated[int, typer.Option(help="The recipe's seed: decides where clips start.")] = 0,
    stage: Annotated[str, typer.Option(help="The recipe's stage; of the emoji, some are held out of some.")] = "video",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Encode one clip of each video, and its captions, once; a rerun goes on. A recipe with the same settings uses it.

    Examples:
      latent-shift data cache webvid:webvid.csv caches/webvid --model models/ldm-shift

      latent-shift data cache data/shapes runs/cache --model emoji --num-frames 8 --duration whole --size 64
    """
    from latent_shift.core.config import parse_config
    from latent_shift.pipelines import load_pipeline
    from latent_shift.training.config import DataConfig
    from latent_shift.training.encoding import open_clip_cache
    from latent_shift.training.sources import open_records

    from ._progress import progress_bars
    from ._quiet import quiet_libraries

    quiet_libraries()
    settings = {
        "source": source,
        "cache": str(output),
        "num_frames": num_frames,
        "duration_s": duration,
        "size": size,
        "short": short,
        "max_bad_share": max_bad_share,
    }
    config = parse_config(DataConfig, settings)
    records = open_records(source, stage)
    pipeline = load_pipeline(model, device, "fp32")
    with progress_bars() as show:
        made = open_clip_cache(pipeline, records, config, seed, show)
    typer.echo(f"{output}: {len(records):,} records, {len(made.frames):,} frames")


@data.command(cls=Command)
def shard(
    source: Annotated[str, typer.Argument(help="A path, or kind:path, as for `data check`.")],
    output: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    shard_mb: Annotated[float, typer.Option(help="Megabytes a shard.")] = 256,
) -> None:
    """Pack captioned video into WebDataset tar files, for disks and stores that like few large files; a rerun goes on.

    Examples:
      latent-shift data shard webvid:webvid.csv shards/webvid

      latent-shift data check shards:https://example.org/webvid/index.jsonl --sample 20
    """
    from latent_shift.data import open_source
    from latent_shift.data.shards import write_shards

    from ._progress import progress_bars

    opened = open_source(source)
    with progress_bars() as show:
        count = write_shards(opened, output, shard_mb, show)
    left_out = f"; {len(opened.dropped):,} dropped (`latent-shift data check` says why)" if opened.dropped else ""
    typer.echo(f"{output}: {len(opened):,} records in {count:,} shards{left_out}")


@data.command(cls=Command)
def shapes(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")] = Path("data/shapes"),
    size: Annotated[int, typer.Option(help="Height and width, pixels.")] = 64,
    num_frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 8,
) -> None:
    """Draw eight captioned clips of a shape that moves: data for a first training run, without any download.

    Examples:
      latent-shift data shapes

      latent-shift train recipes/tiny.toml
    """
    from latent_shift.data.shapes import write_shapes

    typer.echo(f"{output}: {write_shapes(output, size, num_frames)} clips")


@data.command(cls=Command)
def check(
    source: Annotated[
        str,
        typer.Argument(help="A path, or kind:path with kind folder, files, table, webvid, ucf101, msrvtt or shards."),
    ],
    sample: Annotated[int | None, typer.Option(help="Decode a clip of this many records. [default: 100]")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Decode a clip of every record.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of some clips (.png or .jpg).")] = None,
    num_frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 16,
    duration: Annotated[str, typer.Option(help="Length of a clip, seconds; or whole.")] = "2.0",
    size: Annotated[int, typer.Option(help="Height and width of a clip, pixels.")] = 256,
    short: Annotated[str, typer.Option(help="Videos shorter than a clip: drop, or take whole.")] = "drop",
    seed: Annotated[int, typer.Option(help="Decides the sample and where clips start.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, for programs.")] = False,
) -> None:
    """Read clips of captioned video as training would; say what is in it and what is dropped. 1 if nothing is left.

    Examples:
      latent-shift data check data/emoji --sample 50 --sheet sheet.png

      latent-shift data check "ucf101:data/UCF-101?split=train" --all --json
    """
    from latent_shift.core.config import parse_config
    from latent_shift.core.errors import InputError
    from latent_shift.data import ClipConfig, check_source, open_source
    from latent_shift.media import check_output_path, contact_sheet, write_video

    from ._progress import progress_bars

    if everything and sample is not None:
        raise InputError("sample", sample, "be left out where --all is given")
    if sheet is not None:
        if sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise InputError("sheet", str(sheet), "end in .png or .jpg")
        check_output_path(sheet)
    settings = {"num_frames": num_frames, "duration_s": duration, "size": size, "short": short}
    config = parse_config(ClipConfig, settings)
    with progress_bars() as show:
        count = None if everything else 100 if sample is None else sample
        report = check_source(open_source(source), config, sample=count, seed=seed, progress=show)
    if sheet is not None and report.clips:
        frames, captions = zip(*report.clips, strict=True)
        write_video(sheet, contact_sheet(frames, labels=captions)[None], 1)
    typer.echo(json.dumps(_report_values(report), ensure_ascii=False) if as_json else _report_text(report))
    if not report.usable:
        raise typer.Exit(1)


def _report_values(report: SourceReport) -> dict[str, Any]:
    return dataclasses.asdict(dataclasses.replace(report, clips=[])) | {"clips": len(report.clips)}


def _report_text(report: SourceReport) -> str:
    lines = [
        f"{report.source} ({report.kind})",
        f"records: {report.records:,}   captions: {report.captions:,}",
        f"decoded: {report.checked:,}   usable: {report.usable:,} (of them still images: {report.stills:,})",
        "sizes: " + (", ".join(f"{size} ({count:,})" for size, count in report.sizes.items()) or "-"),
    ]
    for name, spread in (
        ("duration, s", report.duration_s),
        ("frames a second", report.fps),
        ("words a caption", report.caption_words),
    ):
        numbers = f"{spread.least:g} to {spread.most:g}, median {spread.median:g}" if spread else "-"
        lines.append(f"{name}: {numbers}")
    lines.append(f"dropped: {len(report.dropped):,}")
    reasons = Counter(entry.reason for entry in report.dropped)
    if 1 < len(reasons) < len(report.dropped):
        lines += [f"  {count:,} x {reason}" for reason, count in reasons.most_common()]
    lines += [f"  {entry.file}: {entry.reason}" for entry in report.dropped]
    if not report.usable:
        lines.append("nothing is left to train on; give --num-frames, --duration, --size, --short as in the recipe")
    return "\n".join(lines)


def _lines(values: dict[str, object]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in values.items())
