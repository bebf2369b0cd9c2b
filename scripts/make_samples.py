"""Makes the pictures of README and model card: clips of labels picked by rule, never by eye.

    python scripts/make_samples.py --data data/emoji --model emoji

The rule: of the labels that move and may be seen in training, those with the smallest `hash_fraction("sheet", label)`;
seed 0 for all. For held-out families, likewise with `hash_fraction("heldout sheet", label)`. All are loops, since the
README plays them again and again.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from latent_shift.core.seeding import hash_fraction
from latent_shift.data.heldout import load_heldout, stage_records
from latent_shift.data.records import CaptionedVideo, CaptionedVideoFolder
from latent_shift.media import contact_sheet, write_video
from latent_shift.pipelines import LatentShiftPipeline, load_pipeline


def pick_captions(records: list[CaptionedVideo], salt: str, count: int) -> list[str]:
    """Captions of the `count` untoned moving labels with the smallest hash."""
    captions = {
        record.metadata["label"]: record.caption
        for record in records
        if record.metadata["kind"] == "clip" and not record.metadata["tone"]
    }
    return [captions[label] for label in sorted(captions, key=lambda label: hash_fraction(salt, label))[:count]]


def draw(pipeline: LatentShiftPipeline, captions: list[str]) -> list[np.ndarray]:
    """One loop a caption, seed 0, uint8 `(frames, height, width, 3)`."""
    clips = []
    for caption in captions:
        generator = torch.Generator().manual_seed(0)
        output = pipeline(caption, boundary="circular", generator=generator, output_type="np")
        frames = np.asarray(output.frames)[0]
        clips.append((frames * 255).round().astype(np.uint8))
    return clips


def tile(clips: list[np.ndarray], columns: int) -> np.ndarray:
    """Clips side by side, playing together."""
    rows = [np.concatenate(clips[start : start + columns], axis=2) for start in range(0, len(clips), columns)]
    return np.concatenate(rows, axis=1)


def main() -> None:
    """Writes docs/samples.webp (README), docs/samples.png and docs/heldout_samples.png (card)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--output", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    records = list(CaptionedVideoFolder(arguments.data))
    families = load_heldout().families
    heldout = [record for record in records if record.metadata["family"] in families]
    pipeline = load_pipeline(arguments.model)
    pipeline.set_progress_bar_config(disable=True)

    captions = pick_captions(stage_records(records, "video"), "sheet", 15)
    clips = draw(pipeline, captions)
    write_video(arguments.output / "samples.webp", tile(clips, 5), pipeline.config.fps, quality=80)
    write_video(
        arguments.output / "samples.png", contact_sheet([clip[::3] for clip in clips], labels=captions)[None], 1
    )
    missed = pick_captions(heldout, "heldout sheet", 6)
    sheet = contact_sheet([clip[::3] for clip in draw(pipeline, missed)], labels=missed)
    write_video(arguments.output / "heldout_samples.png", sheet[None], 1)
    (arguments.output / "samples.json").write_text(json.dumps({"seen": captions, "held_out": missed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
