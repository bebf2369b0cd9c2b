"""Covers `latent_shift.media.read`, `_images`, `_whole` and the reading halves of the formats."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from latent_shift.core.errors import DataError, InputError
from latent_shift.media import contact_sheet, probe_video, read_metadata, read_video, write_video

from .conftest import Moving
from .films import write_film

FILES = ["clip.mp4", "clip.webm", "clip.gif", "clip.webp", "clip.png", "clip.jpg"]


def save_animation(path: Path, images: list[Image.Image], durations: list[int]) -> None:
    """What another program would write: Pillow's own animation writer."""
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, lossless=True)


@pytest.mark.parametrize("name", ["foreign.webp", "foreign.gif", "foreign.png"])
def test_every_frame_of_an_animated_image_is_read(tmp_path: Path, moving: Moving, name: str) -> None:
    # PyAV gives one frame of an animated WebP, or a decoding error; it must never see one.
    frames = moving(9)
    save_animation(tmp_path / name, [Image.fromarray(frame) for frame in frames], [40] * 9)
    video = read_video(tmp_path / name, expect_frames=9)
    assert video.frames.shape == frames.shape
    assert video.fps == pytest.approx(25)
    if name != "foreign.gif":
        np.testing.assert_array_equal(video.frames, frames)


@pytest.mark.parametrize("name", [*FILES, "clip"])
def test_metadata_are_read_alone_as_with_the_frames(tmp_path: Path, moving: Moving, name: str) -> None:
    write_video(tmp_path / name, moving(4), 8.0, {"prompt": "ein Füchslein"})
    assert read_metadata(tmp_path / name) == read_video(tmp_path / name).metadata == {"prompt": "ein Füchslein"}


def test_one_long_frame_does_not_change_the_rate(tmp_path: Path, moving: Moving) -> None:
    images = [Image.fromarray(frame) for frame in moving(5)]
    save_animation(tmp_path / "hold.webp", images, [100, 100, 100, 100, 2000])
    assert read_video(tmp_path / "hold.webp").fps == pytest.approx(10)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    images = [Image.new("RGBA", (8, 8), (200, 0, 0, alpha)) for alpha in (0, 255)]
    save_animation(tmp_path / "alpha.webp", images, [100, 100])
    images[0].save(tmp_path / "alpha.png")
    first, second = read_video(tmp_path / "alpha.webp", expect_frames=2).frames
    assert (first == 255).all()
    assert (second == (200, 0, 0)).all()
    assert (read_video(tmp_path / "alpha.png").frames == 255).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "I;16", "CMYK"])
def test_any_kind_of_still_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((6, 4), 255 << 8, np.uint16))
    else:
        image = Image.new("RGB", (4, 6), "white").convert(mode)
    path = tmp_path / ("still.tiff" if mode == "CMYK" else "still.png")
    image.save(path)
    video = read_video(path)
    assert video.frames.shape == (1, 6, 4, 3)
    assert video.frames.min() == 255
    assert (video.fps, video.metadata) == (1.0, {})


def test_a_photograph_is_turned_upright(tmp_path: Path, moving: Moving) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(moving(1, 16, 32)[0]).save(tmp_path / "photo.jpg", exif=exif)
    assert read_video(tmp_path / "photo.jpg").frames.shape == (1, 32, 16, 3)


def test_a_phone_film_is_turned_upright(tmp_path: Path, moving: Moving) -> None:
    path = tmp_path / "phone.mp4"
    frames = moving(3, 32, 64)
    write_video(path, frames, 8, crf=4)
    one, none, minus = b"\0\1\0\0", b"\0\0\0\0", b"\xff\xff\0\0"
    plain, clockwise = one + none * 3 + one, none + one + none + minus + none
    content = path.read_bytes()
    place = content.index(plain, content.index(b"tkhd"))
    path.write_bytes(content[:place] + clockwise + content[place + 20 :])
    turned = np.rot90(frames, -1, axes=(1, 2))
    assert np.abs(read_video(path).frames.astype(int) - turned).mean() < 3


def test_the_content_decides_and_not_the_name(tmp_path: Path, moving: Moving) -> None:
    write_video(tmp_path / "clip.webp", moving(5), 8, lossless=True)
    (tmp_path / "clip.webp").rename(tmp_path / "clip.mp4")
    assert len(read_video(tmp_path / "clip.mp4").frames) == 5


@pytest.mark.parametrize(
    ("name", "junk"), [("clip.mp4", b"\n"), ("clip.mp4", b"TAGSong" + b" " * 121), ("clip.gif", b"\r\n")]
)
def test_what_follows_a_whole_file_is_no_matter(tmp_path: Path, moving: Moving, name: str, junk: bytes) -> None:
    write_video(tmp_path / name, moving(5), 8)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + junk)
    assert len(read_video(tmp_path / name).frames) == 5


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_an_avi_of_unknown_size_is_read(tmp_path: Path, size: int) -> None:
    path = write_film(tmp_path / "film.avi", 10, codec="mpeg4")
    content = path.read_bytes()
    path.write_bytes(content[:4] + size.to_bytes(4, "little") + content[8:])
    assert len(read_video(path).frames) == 10


@pytest.mark.parametrize("name", ["photo.jpg", "pages.tif"])
def test_pages_and_thumbnails_are_no_frames(tmp_path: Path, name: str) -> None:
    images = [Image.new("L", (8, 6), shade) for shade in (90, 200)]
    images[0].save(tmp_path / name, "MPO" if name == "photo.jpg" else "TIFF", save_all=True, append_images=images[1:])
    assert probe_video(tmp_path / name).duration_s == 0
    assert abs(int(read_video(tmp_path / name, expect_frames=1).frames.mean()) - 90) < 2


@pytest.mark.parametrize("error", [RuntimeError, TypeError])
def test_whatever_pillow_raises_is_a_damaged_file(
    tmp_path: Path, moving: Moving, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    write_video(tmp_path / "clip.png", moving(1), 8)

    def fail(*_: object) -> None:
        raise error("broken")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    for read in (read_video, probe_video):
        with pytest.raises(DataError, match=r"clip\.png is truncated or corrupt \(broken\)"):
            read(tmp_path / "clip.png")


def test_another_count_is_an_error(tmp_path: Path, moving: Moving) -> None:
    path = tmp_path / "clip.webp"
    write_video(path, moving(5), 8)
    with pytest.raises(DataError, match=r"clip\.webp has 5 frames, expected 24"):
        read_video(path, expect_frames=24)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_in_one_line(tmp_path: Path, moving: Moving, name: str) -> None:
    path = tmp_path / name
    write_video(path, moving(6, 16, 16), 8, {"prompt": "a square"})
    content = path.read_bytes()
    for share in (0.01, 0.2, 0.5, 0.8, 0.95, 0.99):
        path.write_bytes(content[: max(1, int(len(content) * share))])
        with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
            read_video(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "clip.webp"])
def test_a_file_cut_between_two_frames_is_not_a_shorter_film(tmp_path: Path, moving: Moving, name: str) -> None:
    path = tmp_path / name
    write_video(path, moving(4, 16, 16), 8)
    content = path.read_bytes()
    for cut in range(1, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:-cut])
        with pytest.raises(DataError):
            read_video(path)


@pytest.mark.parametrize("name", FILES)
def test_noise_in_a_file_is_an_error_of_ours_or_none(tmp_path: Path, moving: Moving, name: str) -> None:
    path = tmp_path / name
    write_video(path, moving(3, 16, 16), 8)
    content, chance = path.read_bytes(), random.Random(0)
    for _ in range(15):
        place = chance.randrange(len(content))
        path.write_bytes(content[:place] + chance.randbytes(12) + content[place + 12 :])
        with contextlib.suppress(DataError):
            read_video(path)


@pytest.mark.parametrize("content", [b"not a film at all, only text", b"\0" * 500, os.urandom(2000)])
def test_what_is_no_video(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"clip\.mp4 "):
        read_video(tmp_path / "clip.mp4")


def test_nothing_there_and_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"video must be a file or folder that can be read \(No such file"):
        read_video(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DataError, match=r"empty\.mp4 is empty"):
        read_video(tmp_path / "empty.mp4")


def test_broken_folders(tmp_path: Path, moving: Moving) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    with pytest.raises(DataError, match=r"clip is no video: it has no video\.json"):
        read_video(folder)
    write_video(folder, moving(3), 8)
    (folder / "frame_0001.png").unlink()
    with pytest.raises(DataError, match="clip has 2 of 3 frames"):
        read_video(folder)
    Image.new("RGB", (2, 2)).save(folder / "frame_0001.png")
    with pytest.raises(DataError, match="clip has frames of different sizes"):
        read_video(folder)
    (folder / "frame_0001.png").write_bytes((folder / "frame_0000.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"frame_0001\.png is truncated"):
        read_video(folder)
    for text in ("{", "[]", "{}", '{"frames": "x", "fps": 8, "metadata": {}}'):
        (folder / "video.json").write_text(text)
        with pytest.raises(DataError, match=r"video\.json is corrupt"):
            read_video(folder)


def test_a_sheet_reads_as_one_picture(tmp_path: Path, moving: Moving) -> None:
    frames = moving(5)
    write_video(tmp_path / "sheet.png", frames, 8)
    np.testing.assert_array_equal(read_video(tmp_path / "sheet.png").frames[0], contact_sheet(frames))
