"""How fast one worker of the clip loader is against PyAV's bare decoding of the same files, on one thread each.

usage: python scripts/loader_speed.py [--videos N] [--seconds S] [--rounds N] [--keyframe-every N]

Writes films of moving, grainy texture at WebVid's size (596 x 336, 30 frames a second, H.264) and prints, as medians of
interleaved rounds of processor time:

- bare_fps: frames a second of `container.decode` over whole files: nothing is converted or kept;
- bare_clips_fps: the same for the loader's clips: open, seek, decode to the clip's last frame, nothing else;
- loader_fps: the frames of those same spans a second, from the keyframe before a clip to its last frame, as the loader
  goes through them: 16 of each come out, resized and cropped to 256 x 256.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from latent_shift.data import ClipConfig, ClipLoader, open_source
from latent_shift.media import probe_video

HEIGHT, WIDTH, FPS = 336, 596, 30


def main() -> None:
    """Prints the medians and their ratio as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=12, help="length of a film")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keyframe-every", type=int, default=250, help="frames from keyframe to keyframe")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_films(Path(folder), arguments.videos, arguments.seconds * FPS, arguments.keyframe_every)
        print(json.dumps(measure(Path(folder), arguments.rounds), indent=2))


def write_films(folder: Path, count: int, num_frames: int, keyframe_every: int) -> None:
    """Films that are as hard to decode as filmed ones: a texture that moves, with grain."""
    random = np.random.default_rng(0)
    texture = Image.fromarray(random.integers(0, 255, (60, 90, 3), dtype=np.uint8))
    picture = np.asarray(texture.resize((1400, 900), Image.Resampling.BICUBIC)) // 2 + 60
    for number in range(count):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "medium"})
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
            stream.codec_context.gop_size = keyframe_every
            for index in range(num_frames):
                top, left = int(250 + 200 * np.sin(index / 40 + number)), int(400 + 350 * np.cos(index / 31))
                frame = picture[top : top + HEIGHT, left : left + WIDTH]
                grain = random.integers(0, 28, frame.shape, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame + grain, format="rgb24")))
            container.mux(stream.encode())
        (folder / f"{number}.txt").write_text("a moving texture")


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """Runs all three in turn, `rounds` times."""
    source = open_source(f"files:{folder}")
    loader = ClipLoader(source, ClipConfig(), seed=0)
    positions = range(4 * len(source))
    clips = [loader[position] for position in positions]

    def bare() -> int:
        return sum(decode_whole(record.path) for record in source)

    def bare_clips() -> int:
        return sum(decode_clip(clip.record.path, clip.start_s, loader.config) for clip in clips)

    spanned = bare_clips()

    def load() -> int:
        for position in positions:
            loader[position]
        return spanned

    rates: dict[str, list[float]] = {"bare_fps": [], "bare_clips_fps": [], "loader_fps": []}
    for _ in range(rounds):
        for name, work in zip(rates, (bare, bare_clips, load), strict=True):
            rates[name].append(frames_per_second(work))
    ratios = [mine / theirs for mine, theirs in zip(rates["loader_fps"], rates["bare_fps"], strict=True)]
    clip_ratios = [mine / theirs for mine, theirs in zip(rates["loader_fps"], rates["bare_clips_fps"], strict=True)]
    megabits = sum(record.path.stat().st_size for record in source) * 8e-6
    seconds = sum(probe_video(record.path).duration_s for record in source)
    return {
        "megabits_a_second": round(megabits / seconds, 2),
        "frames_spanned_by_a_clip": round(spanned / len(positions), 1),
        **{name: round(statistics.median(values), 1) for name, values in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_least": round(min(ratios), 3),
        "ratio_most": round(max(ratios), 3),
        "ratio_to_bare_clips": round(statistics.median(clip_ratios), 3),
    }


def decode_clip(path: Path, start_s: float, config: ClipConfig) -> int:
    """Seeks, and decodes to the clip's last frame; the number of frames."""
    end_s = start_s + config.duration_s * (config.num_frames - 1) / config.num_frames
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        container.seek(int(start_s / stream.time_base), stream=stream)
        count = 0
        for frame in container.decode(stream):
            count += 1
            if frame.time >= end_s - 1 / FPS:
                break
        return count


def decode_whole(path: Path) -> int:
    """What PyAV does at the least: every frame decoded, on one thread, none converted."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        return sum(1 for _ in container.decode(stream))


def frames_per_second(work: Callable[[], int]) -> float:
    """Frames a second of processor time, so that other work on the machine does not count."""
    start = time.process_time()
    frames = work()
    return frames / (time.process_time() - start)


if __name__ == "__main__":
    main()
