"""Covers `latent_shift.media.clip`, `_reader` and `_movie_reader`: clips out of films as other programs write them."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from latent_shift.core.errors import DataError, InputError
from latent_shift.media import even_times, open_video, probe_video, read_clip, read_video, resize_frames, write_video
from latent_shift.media._movie_reader import MovieReader

from .conftest import Moving
from .films import cut, number_of, numbered, turn, turn_clockwise, write_cover, write_film, write_sound, write_talkie

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


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts", "loop.webp", "frames/"])
@pytest.mark.parametrize("fps", [24, 30])
def test_a_frame_is_shown_from_its_own_time_on(tmp_path: Path, name: str, fps: int) -> None:
    """Whatever the container and the sums of times have rounded."""
    path = tmp_path / name
    if name.startswith("film"):
        write_film(path, 50, fps=fps)
    else:
        write_video(path, np.stack([numbered(index) for index in range(50)]), fps, lossless=True)
    with open_video(path) as video:
        assert [number_of(video.clip(index / fps, 0.0, 1)[0]) for index in range(50)] == list(range(50))
        assert numbers(video.clip(1 / fps, 49 / fps, 49)) == list(range(1, 50))


def test_a_window_may_end_a_millisecond_late(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", 50)
    assert numbers(read_clip(path, 1.0 + 5e-4, 1.0, 2)) == [25, 37]
    with pytest.raises(InputError, match=r"start_s must leave 1 s of the 2\.000 s"):
        read_clip(path, 1.002, 1.0, 2)


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


def test_wanted_frames_are_not_skipped_where_a_container_rounds_their_times(tmp_path: Path) -> None:
    """Matroska counts in milliseconds: frame 1 of 24 a second is said to be shown at 42 ms."""
    grain = np.random.default_rng(0).integers(0, 20, (50, 48, 64, 3), dtype=np.uint8)
    frames = np.stack([numbered(index) for index in range(50)]) // 2 + grain * 2
    write_video(tmp_path / "film.mp4", frames, 24, crf=28)
    with av.open(str(tmp_path / "film.mp4")) as source, av.open(str(tmp_path / "film.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    whole = read_video(tmp_path / "film.mkv").frames
    with open_video(tmp_path / "film.mkv") as video:
        for start in range(10):
            np.testing.assert_array_equal(video.clip(start / 24, 40 / 24, 8), whole[start : start + 40 : 5])


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


@pytest.mark.parametrize("name", ["hold.gif", "hold.webp", "hold.png"])
def test_frames_of_an_animation_are_shown_for_as_long_as_it_says(tmp_path: Path, name: str) -> None:
    images = [Image.fromarray(numbered(index)) for index in range(5)]
    durations = [1000, 100, 100, 200, 2000]
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=durations, lossless=True)
    with open_video(tmp_path / name) as video:
        assert (video.duration_s, video.info().num_frames) == (3.4, 5)
        assert numbers(video.clip(0.0, 2.0, 4)) == [0, 0, 1, 4]
        assert numbers(video.clip(0.9, 0.6, 6)) == [0, 1, 2, 3, 3, 4]
        assert numbers(video.clip(0.0, 3.4, 2)) == [0, 4]


def test_a_clip_of_an_animation_holds_its_own_frames_alone(tmp_path: Path) -> None:
    images = [Image.fromarray(np.full((200, 300, 3), index, np.uint8)) for index in range(100)]
    images[0].save(tmp_path / "long.gif", save_all=True, append_images=images[1:], duration=100)
    tracemalloc.start()
    read_clip(tmp_path / "long.gif", 0.0, 10.0, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * images[0].width * images[0].height * 3


@pytest.mark.parametrize("name", ["talk.mkv", "talk.webm", "talk.mp4", "talk.flv"])
@pytest.mark.parametrize("tagged", [True, False])
def test_a_film_lasts_as_long_as_its_pictures_and_not_as_its_sound(tmp_path: Path, name: str, tagged: bool) -> None:
    path = write_talkie(tmp_path / name, 4, 10)
    if not tagged:
        path.write_bytes(path.read_bytes().replace(b"DURATION", b"LANGUAGE"))
    with open_video(path) as video:
        assert video.duration_s == pytest.approx(4.0, abs=0.05)
        assert numbers(video.clip(3.0, 0.96, 4)) == [75, 81, 87, 93]


@pytest.mark.parametrize("turned", [False, True])
def test_pixels_are_as_wide_as_the_film_says(tmp_path: Path, moving: Moving, turned: bool) -> None:
    path = write_film(tmp_path / "tape.mp4", 5, frames=list(moving(5, 48, 64)), aspect=Fraction(3, 2))
    wide = moving(5, 48, 64).repeat(3, axis=2)[:, :, ::2]
    if turned:
        path, wide = turn(path, 90), np.rot90(wide, axes=(1, 2))
    info, shape = probe_video(path), wide.shape[1:3]
    assert (info.height, info.width) == shape == ((96, 48) if turned else (48, 96))
    for frames in (read_video(path).frames, read_clip(path, 0.0, 0.2, 5)):
        assert frames.shape == wide.shape
        assert np.abs(frames.astype(int) - wide).mean() < 3
    rows, columns = ((side - 48) // 2 for side in shape)
    middle = read_clip(path, 0.0, 0.2, 5, 48).astype(int)
    assert np.abs(middle - wide[:, rows : rows + 48, columns : columns + 48]).mean() < 3


def test_pixels_that_no_camera_has_are_square(tmp_path: Path) -> None:
    info = probe_video(write_film(tmp_path / "odd.mp4", 5, aspect=Fraction(1, 60)))
    assert (info.height, info.width) == (48, 64)


@pytest.mark.parametrize("name", ["late.mkv", "late.webm", "late.mp4", "late.ts"])
def test_a_film_that_begins_late_lasts_from_its_first_frame_on(tmp_path: Path, name: str) -> None:
    codec = "libvpx-vp9" if name == "late.webm" else "libx264"
    path = write_film(tmp_path / name, [3 + index / 25 for index in range(50)], codec=codec)
    with open_video(path) as video:
        assert video.duration_s == pytest.approx(2.0, abs=0.05)
        assert numbers(video.clip(1.0, 0.8, 2)) == [25, 35]


@pytest.mark.parametrize(("degrees", "turns"), [(-1, 0), (1, 0), (89.5, 1), (180, 2), (-90, 3)])
def test_turns_are_rounded_to_quarters(tmp_path: Path, moving: Moving, degrees: float, turns: int) -> None:
    frames = moving(5, 32, 64)
    path = turn(write_film(tmp_path / "phone.mp4", 5, frames=list(frames)), degrees)
    for shown in (read_clip(path, 0.0, 0.2, 5), read_video(path).frames):
        assert np.abs(shown.astype(int) - np.rot90(frames, turns, axes=(1, 2))).mean() < 3


def test_a_cover_picture_is_no_film(tmp_path: Path) -> None:
    path = write_cover(tmp_path / "song.mp4")
    for read in (probe_video, read_video):
        with pytest.raises(DataError, match=r"song\.mp4 has no video stream"):
            read(path)


def test_a_codec_that_is_not_known_is_named(tmp_path: Path) -> None:
    path = write_film(tmp_path / "new.mp4", 10)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    for read in (probe_video, read_video):
        with pytest.raises(DataError, match=r"new\.mp4 has pictures of a kind that FFmpeg cannot read"):
            read(path)


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
    for read in (lambda: read_clip(path, 0.0, 1.0, 4), lambda: read_video(path)):
        with pytest.raises(DataError, match=r"film\.mp4 "):
            read()


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
