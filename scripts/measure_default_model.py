"""Prints what the model card says was measured, as JSON.

    python scripts/measure_default_model.py --data data/emoji --model emoji

PSNR of the autoencoder over every sixth frame of the clips of held-out families; seconds for one clip after loading;
and for 8 labels of the training data picked by hash, the mean absolute frame difference of the generated clip over that
of the real one, with the shift and with the shift off.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latent_shift.core.seeding import hash_fraction
from latent_shift.data.heldout import load_heldout, stage_records
from latent_shift.data.records import CaptionedVideoFolder
from latent_shift.pipelines import LatentShiftPipeline, load_pipeline


def autoencoder_psnr(pipeline: LatentShiftPipeline, folder: CaptionedVideoFolder) -> dict[str, Any]:
    """Mean over frames of the PSNR in dB, frames that no stage saw (but for one still a family)."""
    families = load_heldout().families
    values: list[float] = []
    for record in folder:
        if record.metadata["kind"] == "clip" and record.metadata["family"] in families:
            frames = folder.read(record.index).frames[::6]
            pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).to(pipeline.device).float() / 127.5 - 1
            latents = pipeline.vae.encode(pictures.to(pipeline.vae.dtype)).latent_dist.mean
            rebuilt = pipeline.vae.decode(latents).sample.float()
            rebuilt = ((rebuilt + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).cpu().numpy()
            error = np.square(rebuilt - frames.astype(np.float64)).mean(axis=(1, 2, 3))
            values += (10 * np.log10(255**2 / error)).tolist()
    return {"frames": len(values), "psnr_db": round(float(np.mean(values)), 2)}


def generate(pipeline: LatentShiftPipeline, caption: str, boundary: str | None) -> np.ndarray:
    """One clip, seed 0, `(frames, height, width, 3)` in [0, 255]."""
    generator = torch.Generator().manual_seed(0)
    output = pipeline(caption, generator=generator, output_type="np", boundary=boundary)
    return np.asarray(output.frames)[0] * 255


def motion_ratios(pipeline: LatentShiftPipeline, folder: CaptionedVideoFolder, count: int = 8) -> dict[str, Any]:
    """Median ratio of mean absolute frame differences, generated over real."""
    moving = {
        record.metadata["label"]: record
        for record in stage_records(folder, "video")
        if record.metadata["kind"] == "clip" and not record.metadata["tone"]
    }
    labels = sorted(moving, key=lambda label: hash_fraction("motion", label))[:count]
    ratios: dict[str, list[float]] = {"shift": [], "shift_off": []}
    seconds = []
    for label in labels:
        record = moving[label]
        real = np.abs(np.diff(folder.read(record.index).frames.astype(np.float64), axis=0)).mean()
        for name, boundary in (("shift", "zero"), ("shift_off", None)):
            started = time.perf_counter()
            clip = generate(pipeline, record.caption, boundary)
            seconds.append(time.perf_counter() - started)
            ratios[name].append(float(np.abs(np.diff(clip, axis=0)).mean() / real))
    medians = {name: round(statistics.median(values), 2) for name, values in ratios.items()}
    return {"labels": labels, "motion_ratio": medians, "clip_seconds_median": round(statistics.median(seconds), 1)}


@torch.no_grad()
def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--model", default="emoji")
    arguments = parser.parse_args()
    pipeline = load_pipeline(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    folder = CaptionedVideoFolder(arguments.data)
    parameters = {name: sum(p.numel() for p in getattr(pipeline, name).parameters()) for name in ("unet", "vae")}
    parameters["text_encoder"] = sum(p.numel() for p in pipeline.text_encoder.parameters())
    result = {
        "parameters": parameters,
        "autoencoder": autoencoder_psnr(pipeline, folder),
        **motion_ratios(pipeline, folder),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
