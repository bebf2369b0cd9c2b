"""Covers `latent_shift.media.write` and the writing halves of the formats."""

from __future__ import annotations

import stat
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import GifImagePlugin, Image

from latent_shift.core.errors import InputError
from latent_shift.media import Frames, read_video, write_video
from latent_shift.media._pyav import exact_rate

from .conftest import Moving

ANIMATED = ["clip.mp4", "clip.webm", "clip.gif", "clip.webp", "clip/"]
ALL = [*ANIMATED, "clip.png", "clip.jpg", "clip"]


def psnr(first: Frames, second: Frames) -> float:
    """Peak signal-to-noise ratio in dB."""
    error = np.mean((first.astype(float) - second) ** 2)
    return float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("name", ["clip.webp", "clip/", "clip"])
def test_lossless_formats_keep_every_bit(tmp_path: Path, moving: Moving, name: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 15, 17, 3)).astype(np.uint8)
    for clip in (frames, moving()):
        write_video(f"{tmp_path}/{name}", clip, 8, lossless=True)
        np.testing.assert_array_equal(read_video(f"{tmp_path}/{name}").frames, clip)


@pytest.mark.parametrize(("name", "least"), [("clip.mp4", 35), ("clip.webm", 35), ("clip.webp", 35), ("clip.gif", 30)])
def test_lossy_formats_stay_close(tmp_path: Path, moving: Moving, name: str, least: float) -> None:
    frames = moving()
    write_video(tmp_path / name, frames, 8)
    read = read_video(tmp_path / name).frames
    assert read.shape == frames.shape
    assert psnr(read, frames) > least
    assert np.abs(read.mean((0, 1, 2)) - frames.mean((0, 1, 2))).max() < 0.8, "a colour cast"


def test_a_gif_of_few_colours_keeps_every_bit(tmp_path: Path, moving: Moving) -> None:
    frames = moving() // 64 * 64
    write_video(tmp_path / "clip.gif", frames, 8)
    np.testing.assert_array_equal(read_video(tmp_path / "clip.gif").frames, frames)


def test_the_palette_of_a_gif_is_of_all_its_frames(tmp_path: Path) -> None:
    y, x = np.mgrid[0:32, 0:32] * 8
    frames = np.zeros((8, 32, 32, 3), np.uint8)
    frames[:4, :, :, 0], frames[:4, :, :, 1] = x, y  # red and green
    frames[4:, :, :, 2], frames[4:, :, :, 1] = x, y  # blue and green
    write_video(tmp_path / "clip.gif", frames, 8)
    read = read_video(tmp_path / "clip.gif").frames
    assert min(psnr(read[:4], frames[:4]), psnr(read[4:], frames[4:])) > 25


@pytest.mark.parametrize("name", ANIMATED)
@pytest.mark.parametrize("num_frames", [1, 2, 9])
def test_equal_frames_are_not_merged(tmp_path: Path, moving: Moving, name: str, num_frames: int) -> None:
    # Pillow's and libwebp's own writers turn equal neighbours into one longer frame.
    frames = np.repeat(moving(1), num_frames, axis=0)
    write_video(f"{tmp_path}/{name}", frames, 8)
    assert read_video(f"{tmp_path}/{name}").frames.shape == frames.shape


@pytest.mark.parametrize("name", ALL)
def test_metadata_comes_back(tmp_path: Path, moving: Moving, metadata: dict[str, str], name: str) -> None:
    write_video(f"{tmp_path}/{name}", moving(3), 8, metadata)
    assert read_video(f"{tmp_path}/{name}").metadata == metadata
    write_video(f"{tmp_path}/{name}", moving(3), 8)
    assert read_video(f"{tmp_path}/{name}").metadata == {}


@pytest.mark.parametrize("name", ["clip.gif", "clip.jpg", "clip.webp", "clip.mp4"])
def test_long_metadata_and_control_characters(tmp_path: Path, moving: Moving, name: str) -> None:
    metadata = {"prompt": "lang " * 2000, "odd": "a\0b\x1fc", "": "empty key"}
    write_video(tmp_path / name, moving(2), 8, metadata)
    assert read_video(tmp_path / name).metadata == metadata


def test_ordinary_programs_see_the_metadata(tmp_path: Path, moving: Moving) -> None:
    metadata = {"prompt": "a cat 🐱", "seed": "7"}
    for suffix in ("mp4", "png", "gif", "webp"):
        write_video(tmp_path / f"clip.{suffix}", moving(2), 8, metadata)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.metadata["prompt"] == "a cat 🐱"
        assert container.metadata["seed"] == "7"
        assert container.metadata["comment"] == '{"prompt": "a cat 🐱", "seed": "7"}'
    with Image.open(tmp_path / "clip.png") as image:
        assert '"seed": "7"' in image.info["Comment"]
    with Image.open(tmp_path / "clip.gif") as image:
        assert b'"seed": "7"' in image.info["comment"]
    with Image.open(tmp_path / "clip.webp") as image:
        assert '"seed": "7"' in image.getexif()[0x010E]


@pytest.mark.parametrize("name", ANIMATED)
@pytest.mark.parametrize("fps", [8, 23.976, 30, 12.5])
def test_fps_comes_back(tmp_path: Path, moving: Moving, name: str, fps: float) -> None:
    write_video(f"{tmp_path}/{name}", moving(12, 16, 16), fps)
    # A GIF counts in 10 ms, a WebP in 1 ms; the total is right to half of that.
    tolerance = {"clip.gif": 0.013, "clip.webp": 0.0013}.get(name, 1e-4)
    assert read_video(f"{tmp_path}/{name}").fps == pytest.approx(fps, rel=tolerance)


def test_rates_are_exact_fractions() -> None:
    assert exact_rate(8) == 8
    assert exact_rate(23.976) == exact_rate(24000 / 1001) == Fraction(24000, 1001)
    assert exact_rate(29.97) == Fraction(30000, 1001)
    assert exact_rate(12.5) == Fraction(25, 2)
    assert exact_rate(0.01) == Fraction(1, 100)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_rounded_durations_add_up_and_loop_for_ever(tmp_path: Path, moving: Moving, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_video(path, moving(24, 16, 16), 24)
    with Image.open(path) as image:
        durations = []
        for index in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(index)
            image.load()
            durations.append(image.info["duration"])
        assert image.info["loop"] == 0
    assert sum(durations) == 1000
    assert max(durations) - min(durations) <= (10 if suffix == "gif" else 1)


def test_mp4_is_what_browsers_play(tmp_path: Path, moving: Moving) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, moving(), 8, {"prompt": "a square"})
    content = path.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)


@pytest.mark.parametrize(
    ("name", "fine", "coarse"),
    [
        ("clip.mp4", {"crf": 4}, {"crf": 40}),
        ("clip.webm", {"crf": 4}, {"crf": 60}),
        ("clip.webp", {"quality": 95}, {"quality": 5}),
        ("clip.jpg", {"quality": 95}, {"quality": 5}),
    ],
)
def test_quality_costs_bytes(
    tmp_path: Path, moving: Moving, name: str, fine: dict[str, int], coarse: dict[str, int]
) -> None:
    sizes = []
    for options in (fine, coarse):
        write_video(tmp_path / name, moving(), 8, **options)  # type: ignore[arg-type]
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes[0] > sizes[1]


def test_arguments_that_do_not_suit_the_format(tmp_path: Path, moving: Moving) -> None:
    odd = moving(2, 15, 17)
    for suffix in ("mp4", "webm"):
        with pytest.raises(InputError, match=f"frames must have an even width and height for .{suffix}, got '17x15'"):
            write_video(tmp_path / f"clip.{suffix}", odd, 8)
    with pytest.raises(InputError, match="fps must be at most 50 for .gif"):
        write_video(tmp_path / "clip.gif", odd, 60)
    with pytest.raises(InputError, match="crf must be from 0 to 51 for .mp4, got 52"):
        write_video(tmp_path / "clip.mp4", moving(2), 8, crf=52)
    with pytest.raises(InputError, match="quality must be from 0 to 100, got 101"):
        write_video(tmp_path / "clip.webp", odd, 8, quality=101)
    with pytest.raises(InputError, match="lossless must be false for .mp4"):
        write_video(tmp_path / "clip.mp4", moving(2), 8, lossless=True)
    with pytest.raises(InputError, match="frames must have the shape"):
        write_video(tmp_path / "clip.mp4", odd[0], 8)
    assert not list(tmp_path.iterdir())


class EncoderError(Exception):
    """Stands for whatever an encoder may raise."""


def break_encoder(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Makes the second frame of a clip fail."""
    calls = []

    def fail_second(real, *args, **kwargs):  # noqa: ANN001, ANN002, ANN003, ANN202
        calls.append(1)
        if len(calls) == 2 or name.endswith(("png", "jpg")):
            raise EncoderError
        return real(*args, **kwargs)

    if name.endswith(("mp4", "webm")):
        real_frame = av.VideoFrame

        class Frame:
            @staticmethod
            def from_ndarray(*args, **kwargs):  # noqa: ANN002, ANN003, ANN205
                return fail_second(real_frame.from_ndarray, *args, **kwargs)

        monkeypatch.setattr(av, "VideoFrame", Frame)
    elif name.endswith("gif"):
        real_data = GifImagePlugin.getdata
        monkeypatch.setattr(GifImagePlugin, "getdata", lambda *a, **k: fail_second(real_data, *a, **k))
    else:
        real_save = Image.Image.save
        monkeypatch.setattr(Image.Image, "save", lambda *a, **k: fail_second(real_save, *a, **k))


@pytest.mark.parametrize("name", ALL)
def test_a_failing_encoder_leaves_what_was_there(
    tmp_path: Path, moving: Moving, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = f"{tmp_path}/{name}"
    write_video(path, moving(3), 8, {"take": "1"})
    with monkeypatch.context() as patch:
        break_encoder(patch, name)
        with pytest.raises(EncoderError):
            write_video(path, moving(4), 8, {"take": "2"})
    assert [entry.name for entry in tmp_path.iterdir()] == [Path(name).name]
    assert read_video(path).metadata == {"take": "1"}
    write_video(path, moving(4), 8, {"take": "2"})
    assert read_video(path).metadata == {"take": "2"}
    assert [entry.name for entry in tmp_path.iterdir()] == [Path(name).name]


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("clip.webp", 16384, r"frames must be at most 16383 pixels wide and high for \.webp, got '16384x2'"),
        ("clip.gif", 65536, r"frames must be at most 65535 pixels wide and high for \.gif, got '65536x2'"),
        ("clip.mp4", 16400, "frames must have a size that libx264 can write, got '16400x2'"),
        ("clip.webm", 70000, "frames must have a size that libvpx-vp9 can write, got '70000x2'"),
    ],
)
def test_sizes_that_a_format_does_not_have_are_named(tmp_path: Path, name: str, width: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_video(tmp_path / name, np.zeros((1, 2, width, 3), np.uint8), 8)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(tmp_path: Path, moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"output must be a place that can be written \(No space left on device\)"):
        write_video(tmp_path / "clip.webp", moving(2), 8)
    assert not list(tmp_path.iterdir())


def test_views_and_reversed_clips_are_written(tmp_path: Path, moving: Moving) -> None:
    frames = moving(6, 32, 32)[::-2, :, ::-1, ::-1]
    for name in ANIMATED:
        write_video(f"{tmp_path}/{name}", frames, 8)
    np.testing.assert_array_equal(read_video(f"{tmp_path}/clip/").frames, frames)


def test_files_have_the_permissions_of_any_new_file(tmp_path: Path, moving: Moving) -> None:
    (tmp_path / "plain").touch()
    write_video(tmp_path / "clip.webp", moving(2), 8)
    assert stat.S_IMODE((tmp_path / "clip.webp").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
