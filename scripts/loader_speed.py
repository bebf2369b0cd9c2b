"""How fast one worker of the clip loader is against PyAV's bare decoding of the same files, on one thread each.

usage: python scripts/loader_speed.py [--videos N] [--seconds S] [--rounds N] [--keyframe-every N]

Writes films of moving, noisy texture at WebVid's size (596 x 336, 30 frames a second, H.264) and prints, as medians of
interleaved rounds of processor time:

- bare: frames a second of `container.decode` over whole files: nothing is converted or kept;
- loader: frames a second that the loader decodes, with opening, seeking, choosing, resizing and cropping to 256 x 256
  in its time. It decodes every frame from the keyframe before a clip to the clip's end, and gives 16 of them.
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
from latent_shift.media import VideoReader, probe_video

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
    """Runs both in turn, `rounds` times."""
    source = open_source(f"files:{folder}")
    loader = CountingLoader(source, ClipConfig(), seed=0)

    def bare() -> int:
        return sum(decode_whole(record.path) for record in source)

    def load() -> int:
        before = loader.decoded
        for _ in source:
            loader[loader.position]
            loader.position += 1
        return loader.decoded - before

    bare(), load()  # files come from memory from here on
    rates: dict[str, list[float]] = {"bare": [], "loader": []}
    for _ in range(rounds):
        rates["bare"].append(frames_per_second(bare))
        rates["loader"].append(frames_per_second(load))
    megabits = sum(record.path.stat().st_size for record in source) * 8e-6
    seconds = sum(probe_video(record.path).duration_s for record in source)
    ratios = [mine / theirs for mine, theirs in zip(rates["loader"], rates["bare"], strict=True)]
    return {
        "megabits_a_second": round(megabits / seconds, 2),
        "bare_fps": round(statistics.median(rates["bare"]), 1),
        "loader_fps": round(statistics.median(rates["loader"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_least": round(min(ratios), 3),
        "ratio_most": round(max(ratios), 3),
        "decoded_a_clip": round(loader.decoded / loader.position, 1),
    }


class CountingLoader(ClipLoader):
    """Counts the frames that are decoded for its clips."""

    decoded = 0
    position = 0

    def cut(self, video: VideoReader, position: int) -> tuple[np.ndarray, float]:
        """As the loader does."""
        result = super().cut(video, position)
        self.decoded += video.decoded_frames
        return result


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
