"""Covers `latent_shift.media.clip`, `_reader` and `_movie_reader`: clips out of films as other programs write them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from latent_shift.core.errors import DataError, InputError
from latent_shift.media import even_times, open_video, probe_video, read_clip, read_video, resize_frames, write_video
from latent_shift.media._movie_reader import MovieReader

from .conftest import Moving
from .films import cut, number_of, numbered, turn_clockwise, write_film, write_sound

EVEN = [int(index * 0.125 * 25) for index in range(16)]


def numbers(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("film.mp4", "libx264"),
        ("film.mkv", "libx264"),
        ("film.ts", "libx264"),
        ("film.avi", "mpeg4"),
        ("film.webm", "libvpx-vp9"),
    ],
)
@pytest.mark.parametrize("start", [0, 13, 37, 50])
def test_frames_are_those_that_a_player_shows(tmp_path: Path, name: str, codec: str, start: int) -> None:
    path = write_film(tmp_path / name, 100, codec=codec)
    assert numbers(read_clip(path, start / 25, 2.0, 16)) == [start + index for index in EVEN]


def test_a_variable_frame_rate_is_read_by_its_times(tmp_path: Path) -> None:
    path = write_film(tmp_path / "screen.mp4", [0, 0.1, 0.2, 0.3, 1.0, 1.5, 1.52, 1.54, 2.5, 2.9])
    assert numbers(read_clip(path, 0.0, 2.0, 8)) == [0, 2, 3, 3, 4, 4, 5, 7]
    assert numbers(read_clip(path, 0.9, 2.0, 4)) == [3, 4, 7, 7]


def test_fewer_frames_than_asked_for_are_repeated(tmp_path: Path) -> None:
    path = write_film(tmp_path / "slow.mp4", 4, fps=2)
    assert numbers(read_clip(path, 0.0, 2.0, 8)) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_late_clip_is_not_decoded_from_the_start(tmp_path: Path) -> None:
    path = write_film(tmp_path / "long.mp4", 250, keyframe_every=50)
    with open_video(path) as video:
        assert numbers(video.clip(8.0, 1.0, 5)) == [200, 205, 210, 215, 220]
        assert video.decoded_frames <= 25  # from the keyframe at 200 on
        assert numbers(video.clip(5.0, 1.0, 1)) == [125]
        assert video.decoded_frames <= 25 + 30  # from the keyframe at 100 on
        assert numbers(video.clip(0.0, 1.0, 2)) == [0, 12]


def test_frames_that_nobody_refers_to_are_skipped_and_no_bit_changes(
    tmp_path: Path, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "film.mp4"
    grain = np.random.default_rng(0).integers(0, 20, (100, 48, 128, 3), dtype=np.uint8)
    write_video(path, moving(100, 48, 128) + grain, 25, crf=28)
    with open_video(path) as video:
        few = video.clip(0.3, 3.0, 8), video.decoded_frames
    monkeypatch.setattr(MovieReader, "_wanted", lambda *_: None)
    with open_video(path) as video:
        all_of_them = video.clip(0.3, 3.0, 8), video.decoded_frames
    np.testing.assert_array_equal(few[0], all_of_them[0])
    assert few[1] < 0.7 * all_of_them[1]


def test_a_container_that_seeks_too_late_is_read_from_earlier(tmp_path: Path) -> None:
    path = write_film(tmp_path / "tape.ts", 250, keyframe_every=25)
    with open_video(path) as video:
        assert numbers(video.clip(8.0, 1.0, 2)) == [200, 212]
        assert video.decoded_frames < 150


def test_sizes_rates_and_lengths(tmp_path: Path, moving: Moving) -> None:
    film = write_film(tmp_path / "film.mp4", 50)
    info = probe_video(film)
    assert (info.height, info.width, info.fps, info.num_frames) == (48, 64, 25.0, 50)
    assert info.duration_s == pytest.approx(2.0)
    write_video(tmp_path / "clip.webp", moving(8, 16, 32), 4)
    assert probe_video(tmp_path / "clip.webp").duration_s == pytest.approx(2.0)
    Image.fromarray(moving(1, 20, 30)[0]).save(tmp_path / "still.png")
    still = probe_video(tmp_path / "still.png")
    assert (still.duration_s, still.height, still.width, still.fps, still.num_frames) == (0.0, 20, 30, 0.0, 1)


def test_a_phone_film_is_turned_upright(tmp_path: Path, moving: Moving) -> None:
    frames = moving(25, 32, 64)
    path = turn_clockwise(write_film(tmp_path / "phone.mp4", 25, frames=list(frames)))
    assert (probe_video(path).height, probe_video(path).width) == (64, 32)
    upright = np.rot90(frames, -1, axes=(1, 2))
    assert np.abs(read_clip(path, 0.0, 1.0, 25).astype(int) - upright).mean() < 3
    cropped = read_clip(path, 0.0, 1.0, 25, size=32)
    assert np.abs(cropped.astype(int) - upright[:, 16:48]).mean() < 3


@pytest.mark.parametrize("size", [(24, 40), (30, 30), (96, 32)])
def test_the_picture_fills_the_size_and_is_cropped_evenly(
    tmp_path: Path, moving: Moving, size: tuple[int, int]
) -> None:
    path = write_film(tmp_path / "film.mp4", 5, frames=list(moving(5)))
    clip = read_clip(path, 0.0, 0.2, 5, size)
    assert clip.shape == (5, *size, 3)
    # Pillow's Lanczos of the whole frames: another filter, the same geometry and no darker.
    difference = clip.astype(int) - resize_frames(read_video(path).frames, size)
    assert np.abs(difference).mean() < 2
    assert abs(difference.mean()) < 0.3


def test_clips_of_animations_and_folders_and_stills(tmp_path: Path) -> None:
    frames = np.stack([numbered(index, 32, 64) for index in range(16)])
    for name in ("clip.webp", "clip.gif", "folder/"):
        write_video(tmp_path / name, frames, 8, lossless=name != "clip.gif")
        assert numbers(read_clip(tmp_path / name, 0.5, 1.0, 4)) == [4, 6, 8, 10]
    write_video(tmp_path / "still.png", frames[5:6], 1)
    assert read_clip(tmp_path / "still.png", 0.0, 2.0, 16, 32).shape == (1, 32, 32, 3)


def test_a_film_with_sound_alone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sound\.mp4 has no video stream"):
        read_clip(write_sound(tmp_path / "sound.mp4"), 0.0, 1.0, 4)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.avi"])
@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_a_truncated_film_is_named(tmp_path: Path, name: str, share: float) -> None:
    path = cut(write_film(tmp_path / name, 50, codec="mpeg4" if name == "film.avi" else "libx264"), share)
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
        read_clip(path, 0.0, 1.0, 4)
    assert "\n" not in str(caught.value)


def test_a_film_that_ends_before_its_header_says_is_named(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", 50)
    with open_video(path) as video:
        video.duration_s = 9.0
        with pytest.raises(DataError, match=r"film\.mp4 ends at 1\.96 s, but its header says 9\.00 s"):
            video.clip(1.0, 4.0, 4)
        with pytest.raises(DataError, match=r"film\.mp4 ends at|film\.mp4 has no frames at"):
            video.clip(7.0, 1.0, 4)


def test_damage_inside_is_named_or_read(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", 50)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    for place in places:
        content[place + 4 : place + 40] = b"\xff" * 36
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"film\.mp4 "):
        read_clip(path, 0.0, 1.0, 4)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((1.5, 1.0, 4), r"start_s must leave 1 s of the 2\.000 s that .*film\.mp4 lasts, got 1\.5"),
        ((-1.0, 1.0, 4), r"start_s must be at least 0, got -1\.0"),
        ((0.0, -1.0, 4), r"duration_s must be at least 0, got -1\.0"),
        ((0.0, 1.0, 0), "num_frames must be at least 1, got 0"),
        ((0.0, 1.0, 4, (0, 8)), r"size must be at least 1, got \(0, 8\)"),
    ],
)
def test_wrong_windows_are_named(tmp_path: Path, window: tuple[float, float, int], message: str) -> None:
    path = write_film(tmp_path / "film.mp4", 50)
    with pytest.raises(InputError, match=message):
        read_clip(path, *window)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"video must be a file or folder that can be read"):
        probe_video(tmp_path / "none.mp4")


def test_even_times() -> None:
    assert even_times(1.0, 2.0, 4) == [1.0, 1.5, 2.0, 2.5]
