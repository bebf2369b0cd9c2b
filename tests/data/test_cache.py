from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk import full_disk

from latent_shift.core.errors import DataError
from latent_shift.data import CaptionedVideoFolder
from latent_shift.data import cache as cache_module
from latent_shift.data.cache import ClipCache, open_or_build_cache
from latent_shift.data.records import CaptionedVideo, write_records
from latent_shift.media import Frames, read_video, write_video

LENGTHS = (3, 1, 5)
CAPTIONS = (["a red square", "red"], ["blue"], ["a green thing", "green", "a thing that is green"])

Open = Callable[..., ClipCache]


def clip(number: int) -> Frames:
    frames = np.zeros((LENGTHS[number], 4, 6, 3), np.uint8)
    frames[..., 0], frames[..., 1] = number, np.arange(LENGTHS[number])[:, None, None]
    return frames


def encode_frames(frames: Frames) -> np.ndarray:
    """Record and frame number of each frame, doubled."""
    return frames[:, 0, 0, :2].astype(np.float16) * 2


def encode_text(captions: Sequence[str]) -> list[np.ndarray]:
    """A row for each word: its length, and that of the caption."""
    return [np.array([[len(word), len(text)] for word in text.split()], np.float16) for text in captions]


@pytest.fixture
def folder(tmp_path: Path) -> CaptionedVideoFolder:
    path = tmp_path / "data"
    for number in range(3):
        write_video(path / f"{number}.webp", clip(number), fps=8.0, lossless=True)
    rows = [{"file_name": f"{n}.webp", "caption": CAPTIONS[n][0], "captions": CAPTIONS[n]} for n in range(3)]
    write_records(path, rows)
    return CaptionedVideoFolder(path)


@pytest.fixture
def open_cache(tmp_path: Path, folder: CaptionedVideoFolder) -> Open:
    def make(records: Sequence[Any] | None = None, **options: Any) -> ClipCache:
        given = {
            "read_frames": lambda record: read_video(record.path).frames,
            "encode_frames": encode_frames,
            "encode_text": encode_text,
            "fingerprint": {"size": 4},
            **options,
        }
        chosen = list(folder) if records is None else records
        return open_or_build_cache(tmp_path / "cache", chosen, **given)

    return make


def test_a_worker_is_told_where_the_cache_is_and_opens_it_again(open_cache: Open) -> None:
    cache = open_cache()
    again: Any = pickle.loads(pickle.dumps(cache))
    assert again.frames.filename == cache.place / "frames.npy"
    for name in ("frames", "frame_offsets", "tokens", "token_offsets", "caption_offsets"):
        assert np.array_equal(getattr(again, name), getattr(cache, name))
    assert (again.place, again.bad) == (cache.place, cache.bad)


def never(*_: Any) -> Any:
    raise AssertionError("must not encode again")


def places(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").iterdir())


def test_every_frame_and_caption_is_where_its_record_says(open_cache: Open) -> None:
    cache = open_cache()
    assert cache.frame_offsets.tolist() == [0, 3, 4, 9]
    assert cache.caption_offsets.tolist() == [0, 2, 3, 6]
    assert cache.token_offsets.tolist() == [0, 3, 4, 5, 8, 9, 14]
    for record in range(3):
        assert cache.clip(record).tolist() == encode_frames(clip(record)).tolist()
        assert cache.num_captions(record) == len(CAPTIONS[record])
        for form, caption in enumerate(CAPTIONS[record]):
            assert cache.caption(record, form).tolist() == encode_text([caption])[0].tolist()
    assert cache.frames.dtype == np.float16
    assert isinstance(cache.frames, np.memmap)


def test_the_records_are_numbered_as_they_are_given(open_cache: Open, folder: CaptionedVideoFolder) -> None:
    cache = open_cache([folder[2], folder[0]])
    assert cache.clip(0).tolist() == encode_frames(clip(2)).tolist()
    assert cache.clip(1).tolist() == encode_frames(clip(0)).tolist()
    assert cache.caption(1, 1).tolist() == [[3, 3]]


def test_a_cache_without_text_has_none(open_cache: Open) -> None:
    cache = open_cache(encode_text=None)
    assert len(cache.tokens) == 0
    assert cache.clip(2).shape == (5, 2)


def test_more_captions_than_a_batch_keep_their_places(open_cache: Open, folder: CaptionedVideoFolder) -> None:
    many = [" ".join(["word"] * (1 + number % 7)) + f" {number}" for number in range(600)]
    write_records(folder.path, [{"file_name": "1.webp", "caption": many[0], "captions": many}])
    again = CaptionedVideoFolder(folder.path)
    calls: list[int] = []

    def counted(captions: Sequence[str]) -> list[np.ndarray]:
        calls.append(len(captions))
        return encode_text(captions)

    cache = open_cache(list(again), encode_text=counted)
    assert sum(calls) == 600
    assert max(calls) <= 256
    for form in (0, 1, 255, 256, 257, 599):
        assert cache.caption(0, form).tolist() == encode_text([many[form]])[0].tolist()


def test_a_second_opening_encodes_nothing(open_cache: Open, tmp_path: Path) -> None:
    first = open_cache()
    second = open_cache(encode_frames=never, encode_text=never)
    assert second.frames.tolist() == first.frames.tolist()
    assert len(places(tmp_path)) == 1


def test_other_content_is_another_cache(open_cache: Open, folder: CaptionedVideoFolder, tmp_path: Path) -> None:
    open_cache()
    open_cache(fingerprint={"size": 8})
    open_cache([folder[0], folder[1]])
    open_cache([folder[1], folder[0]])
    assert len(places(tmp_path)) == 4
    rows = [{"file_name": f"{n}.webp", "caption": "other words"} for n in range(3)]
    write_records(folder.path, rows)
    open_cache(list(CaptionedVideoFolder(folder.path)))
    assert len(places(tmp_path)) == 5


def test_a_folder_that_moved_has_the_same_cache(open_cache: Open, folder: CaptionedVideoFolder, tmp_path: Path) -> None:
    open_cache()
    moved = CaptionedVideoFolder(folder.path.rename(tmp_path / "elsewhere"))
    open_cache(list(moved), encode_frames=never, encode_text=never)


@pytest.mark.parametrize("place", [10, 50_000, 99_990])
def test_another_file_of_the_same_name_and_size_is_another_cache(
    open_cache: Open, folder: CaptionedVideoFolder, tmp_path: Path, place: int
) -> None:
    for record in folder:
        record.path.write_bytes(bytes(100_000))
    frames = {"read_frames": lambda record: clip(0)}
    open_cache(**frames)
    content = bytearray(100_000)
    content[place] = 1
    folder[1].path.write_bytes(content)
    open_cache(**frames)
    assert len(places(tmp_path)) == 2
    open_cache(**frames, encode_frames=never)


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path: Path, open_cache: Open) -> None:
    def listed(*names: str) -> list[CaptionedVideo]:
        for name in names:
            (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "data" / name).write_bytes(b"the same")
        return [CaptionedVideo(tmp_path / "data" / name, "a", ("a",)) for name in names]

    frames = {"read_frames": lambda record: clip(1)}
    for names in (("x/0.mp4", "y/0.mp4"), ("y/0.mp4", "x/0.mp4"), ("x/0.mp4", "x/1.mp4")):
        open_cache(listed(*names), **frames)
    assert len(places(tmp_path)) == 3


@pytest.mark.parametrize(
    ("size", "shown"), [(300, r"cache \S+\.parts/0+\.npz"), (14_000, r"cache \S+/cache/[0-9a-f]{16}")]
)
def test_a_full_disk_is_one_line_and_the_next_build_goes_on(
    open_cache: Open, monkeypatch: pytest.MonkeyPatch, size: int, shown: str
) -> None:
    """The first size stops a part, the second the file that joins them all."""
    monkeypatch.setattr(cache_module, "_PART", 1)
    many: dict[str, Any] = {"encode_frames": lambda frames: np.zeros((len(frames), 1000), np.float16)}
    with full_disk() as limit:
        limit(size)
        with pytest.raises(DataError) as caught:
            open_cache(**many)
    assert re.fullmatch(shown + r" cannot be written \([^()]+\); its finished parts stay", str(caught.value))
    assert open_cache(**many).frames.shape == (9, 1000)


def test_progress_is_told(open_cache: Open) -> None:
    calls: list[tuple[str, int, int]] = []
    open_cache(progress=lambda *call: calls.append(call))
    assert calls == [("records", 3, 3)]


def test_an_interrupted_build_goes_on_after_its_last_whole_part(
    open_cache: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_cache()
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(cache_module, "_PART", 1)
    seen: list[int] = []

    def stop(frames: Frames) -> np.ndarray:
        seen.append(int(frames[0, 0, 0, 0]))
        if seen == [0, 1]:
            raise KeyboardInterrupt
        return encode_frames(frames)

    with pytest.raises(KeyboardInterrupt):
        open_cache(encode_frames=stop)
    _lock, parts = places(tmp_path)
    (parts / ".half").write_bytes(b"half")
    (parts / "000000001.npz").write_bytes(b"PK half a zip")
    made = open_cache(encode_frames=stop)
    assert seen == [0, 1, 1, 2]
    for name in ("frames", "frame_offsets", "tokens", "token_offsets", "caption_offsets"):
        assert getattr(made, name).tolist() == getattr(whole, name).tolist()
    assert [place.name for place in places(tmp_path)] == [parts.stem]


def test_bad_records_have_no_frames_up_to_a_share(
    open_cache: Open, folder: CaptionedVideoFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder.path / "1.webp").write_bytes(b"RIFF, but no picture")
    with pytest.raises(DataError, match=r"^1 of 3 videos are bad, more than max_bad_share = 0: .*1.webp [^\n]+$"):
        open_cache()
    with pytest.raises(DataError, match="more than max_bad_share = 0.3"):
        open_cache(max_bad_share=0.3)
    made = open_cache(max_bad_share=0.5)
    assert made.frame_offsets.tolist() == [0, 3, 3, 8]
    assert made.caption(1, 0).tolist() == [[4, 4]]
    assert "quarantined" in caplog.text
    (place,) = places(tmp_path)
    assert list(json.loads((place / "cache.json").read_text())["bad"]) == [str(folder.path / "1.webp")]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_part_without_frames_takes_nothing_from_the_others(
    open_cache: Open, folder: CaptionedVideoFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(cache_module, "_PART", 1)
    (folder.path / f"{number}.webp").write_bytes(b"RIFF, but no picture")
    made = open_cache(max_bad_share=0.5)
    for record in range(3):
        expected = [] if record == number else encode_frames(clip(record)).tolist()
        assert made.clip(record).tolist() == expected


def test_bad_records_of_one_file_count_each(open_cache: Open, folder: CaptionedVideoFolder) -> None:
    (folder.path / "1.webp").write_bytes(b"RIFF, but no picture")
    with pytest.raises(DataError, match=r"^3 of 4 videos are bad, more than max_bad_share = 0.5: .*1.webp [^\n]+$"):
        open_cache([folder[1], folder[1], folder[0], folder[1]], max_bad_share=0.5)


def test_parts_are_read_twice_and_not_more(open_cache: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the shape of the whole, and to copy them."""
    monkeypatch.setattr(cache_module, "_PART", 1)
    looks: Counter[str] = Counter()
    look = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(
        np.lib.npyio.NpzFile, "__getitem__", lambda part, key: (looks.update([key]), look(part, key))[1]
    )
    open_cache()
    assert (looks["frames"], looks["tokens"]) == (2 * 3, 2 * 3)


def test_what_could_not_be_read_once_is_tried_again(open_cache: Open) -> None:
    """A disk or a network that was away leaves nothing behind."""

    def away(record: CaptionedVideo) -> Frames:
        raise DataError(f"{record.path} cannot be read (connection refused)")

    with pytest.raises(DataError, match=r"^3 of 3 videos are bad, .*connection refused"):
        open_cache(read_frames=away)
    assert open_cache().frame_offsets.tolist() == [0, 3, 4, 9]


def test_a_cache_that_another_run_builds_is_waited_for(
    open_cache: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun, done = threading.Event(), threading.Event()

    def slow(record: CaptionedVideo) -> Frames:
        begun.set()
        assert done.wait(60)
        return read_video(record.path).frames

    with ThreadPoolExecutor() as pool, caplog.at_level(logging.INFO):
        first = pool.submit(open_cache, read_frames=slow)
        assert begun.wait(60)
        second = pool.submit(open_cache, read_frames=never)
        while "waiting for another run" not in caplog.text:
            time.sleep(0.01)
        done.set()
        assert second.result(60).clip(2).tolist() == first.result(60).clip(2).tolist()
    (place,) = places(tmp_path)
    assert place.is_dir()


def test_a_cache_whose_build_failed_is_free(open_cache: Open, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="must not encode again"):
        open_cache(encode_frames=never)
    (lock,) = (place for place in places(tmp_path) if place.suffix == ".lock")
    half_joined = lock.with_name(f".{lock.stem}.123")
    half_joined.mkdir()
    assert open_cache().frame_offsets.tolist() == [0, 3, 4, 9]
    assert [place.name for place in places(tmp_path)] == [lock.stem]


def test_a_build_that_was_killed_before_its_last_file_is_made_again(open_cache: Open, tmp_path: Path) -> None:
    open_cache()
    (place,) = places(tmp_path)
    (place / "cache.json").unlink()
    (place / "frames.npy").write_bytes(b"half")
    assert open_cache().clip(2).tolist() == encode_frames(clip(2)).tolist()


@pytest.mark.parametrize("name", ["frames", "frame_offsets", "tokens", "token_offsets", "caption_offsets"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage"])
def test_a_damaged_array_is_an_error_that_names_the_cache(
    open_cache: Open, tmp_path: Path, name: str, damage: str
) -> None:
    open_cache()
    (place,) = places(tmp_path)
    file = place / f"{name}.npy"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut": content[:-1], "garbage": b"garbage" * 9}[damage])
    with pytest.raises(DataError, match=rf"^cache .*{place.name} is damaged \([^\n]*\); remove it$"):
        open_cache(encode_frames=never)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"sha256": 3}'])
def test_a_damaged_manifest_is_an_error(open_cache: Open, tmp_path: Path, content: str) -> None:
    open_cache()
    (place,) = places(tmp_path)
    (place / "cache.json").write_text(content)
    with pytest.raises(DataError, match=rf"^cache .*{place.name} .*; remove it$"):
        open_cache(encode_frames=never)


def test_arrays_of_another_cache_are_not_read(open_cache: Open, folder: CaptionedVideoFolder, tmp_path: Path) -> None:
    open_cache()
    (place,) = places(tmp_path)
    open_cache([folder[0]])
    (other,) = set(places(tmp_path)) - {place}
    shutil.copy(other / "frames.npy", place / "frames.npy")
    with pytest.raises(DataError, match="was made of other data; remove it"):
        open_cache(encode_frames=never)


def test_two_digests_that_start_alike_are_told_apart(open_cache: Open, tmp_path: Path) -> None:
    open_cache()
    (place,) = places(tmp_path)
    facts = json.loads((place / "cache.json").read_text())
    assert place.name == facts["sha256"][:16]
    (place / "cache.json").write_text(json.dumps({**facts, "sha256": facts["sha256"][:16] + "0" * 48}))
    with pytest.raises(DataError, match="was made of other data; remove it"):
        open_cache(encode_frames=never)
