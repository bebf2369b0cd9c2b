"""`latent-shift evaluate folder` on clips from a disk, beside the feature network alone on the same frames in memory.

Writes CLIPS clips of 16 frames of 64 x 64 (H.264, a moving texture), half of them the real ones, and prints seconds of
the whole command's work (finding, decoding, features, kernel distance, bootstrap) and of `lite0-clips` alone, in turns,
with the median of the rounds' ratios.

usage: python scripts/evaluate_speed.py [CLIPS] [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from latent_shift.benchmark.timing import take_turns, timed
from latent_shift.evaluation.clip_files import list_clips
from latent_shift.evaluation.folder import FolderOptions, evaluate_folder
from latent_shift.media import Frames, read_video, write_video
from latent_shift.metrics.extractors import load_extractor
from latent_shift.metrics.stream import extract_features

CPU = torch.device("cpu")
OPTIONS = FolderOptions(metrics=("lite0-clips-kd",))


def write_clips(folder: Path, count: int) -> None:
    """Clips of a texture that moves by whole pixels."""
    rng = np.random.default_rng(0)
    for number in range(count):
        texture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        step = rng.integers(-3, 4, 2)
        clip = np.stack([np.roll(texture, tuple(step * moment), axis=(0, 1)) for moment in range(16)])
        write_video(folder / ("real" if number % 2 else "generated") / f"{number:05d}.mp4", clip, 8.0)


def network_alone(clips: list[Frames]) -> None:
    """Features of all clips, in the batches of the command."""
    extract_features(load_extractor("lite0-clips", Path("models/metrics"), CPU), clips, OPTIONS.batch_size)


def main() -> None:
    """Prints both times and their ratio."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(folder, count)
        clips = [read_video(path).frames for path in list_clips(folder, "generated")]
        command = partial(evaluate_folder, folder / "generated", folder / "real", OPTIONS, device="cpu")
        jobs = {"command": command, "network": partial(network_alone, clips)}
        started = time.perf_counter()
        network_alone(clips[: 4 * OPTIONS.batch_size])  # to warm up
        print(f"warm after {time.perf_counter() - started:.1f} s")
        seconds = take_turns({job: timed(run, CPU) for job, run in jobs.items()}, rounds)
    ratios = [own / least for own, least in zip(seconds["command"], seconds["network"], strict=True)]
    medians = {job: statistics.median(values) for job, values in seconds.items()}
    print(
        f"{count} clips: the command {medians['command']:.1f} s, the network alone {medians['network']:.1f} s, "
        f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
