from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from latent_shift.core.errors import DataError, InputError
from latent_shift.evaluation.clip_files import (
    ClipFiles,
    ClipReader,
    ClipWindow,
    hash_files,
    list_clips,
    read_ahead,
    read_captions,
    read_window,
)
from latent_shift.media import write_video

from .numbered import FRAMES, clip, write_clips


@pytest.mark.parametrize("suffix", [".webp", ".mp4", ".png-folder"])
def test_a_file_of_a_clips_length_is_taken_whole_and_in_order(tmp_path: Path, suffix: str) -> None:
    folder = write_clips(tmp_path, 1, suffix.removesuffix(".png-folder"))
    (path,) = list_clips(folder, "generated")
    for seed in range(3):
        frames, is_whole = read_window(path, ClipWindow(FRAMES, seed=seed))
        assert is_whole
        assert np.round(frames[:, 0, 0, 0] / 10).tolist() == list(range(FRAMES))


def test_a_longer_file_gives_neighbouring_frames_from_a_moment_that_the_seed_decides(tmp_path: Path) -> None:
    (path,) = list_clips(write_clips(tmp_path, 1, frames=9), "generated")
    starts = set()
    for seed in range(30):
        first = [read_window(path, ClipWindow(FRAMES, seed=seed)).frames[:, 0, 0, 0] // 10 for _ in range(2)]
        assert np.array_equal(*first)
        assert np.diff(first[0]).tolist() == [1] * (FRAMES - 1)
        starts.add(int(first[0][0]))
    assert starts == {0, 1, 2, 3}
    wholes = {frames: read_window(path, ClipWindow(frames)).is_whole for frames in (6, 8, 9)}
    assert wholes == {6: False, 8: False, 9: True}


def test_a_rate_takes_frames_at_that_rate(tmp_path: Path) -> None:
    (path,) = list_clips(write_clips(tmp_path, 1, frames=12), "generated")
    frames, is_whole = read_window(path, ClipWindow(FRAMES, fps=4.0))
    assert is_whole
    assert (frames[:, 0, 0, 0] // 10).tolist() == [0, 2, 4, 6, 8, 10]
    assert read_window(path, ClipWindow(FRAMES, fps=4.0, size=8)).frames.shape == (FRAMES, 8, 8, 3)
    assert not read_window(path, ClipWindow(5, fps=4.0)).is_whole


def test_a_gif_is_as_long_as_its_rate_says_but_for_its_rounding(tmp_path: Path) -> None:
    write_video(tmp_path / "a.gif", clip(0, frames=16), 12.0)  # 1.33 s in steps of 10 ms, and not 1.3333
    frames = read_window(tmp_path / "a.gif", ClipWindow(16, fps=12.0)).frames
    assert np.round(frames[:, 0, 0, 0] / 10).tolist() == list(range(16))
    with pytest.raises(DataError, match=r"a.gif lasts 1.330 s, less than the clip's 1.417 s"):
        read_window(tmp_path / "a.gif", ClipWindow(17, fps=12.0))


def test_a_set_is_named_by_every_frame_of_its_folders(tmp_path: Path) -> None:
    names = []
    for number, changed in enumerate((None, 3, "video.json", ".hidden")):
        frames = clip(0)
        if isinstance(changed, int):
            frames[changed] += 1
        path = tmp_path / str(number) / "a"
        write_video(path, frames, 8.0)
        if isinstance(changed, str):
            (path / changed).write_text('{"fps": 9, "frames": 6, "metadata": {}}')
        names.append(hash_files([path]))
    assert names[0] == names[3]
    assert len(set(names)) == 3


def test_what_a_killed_write_left_is_no_clip(tmp_path: Path) -> None:
    write_clips(tmp_path, 2)
    write_clips(tmp_path / ".clip02.webp.x1", 1)
    assert [path.name for path in list_clips(tmp_path, "generated")] == ["clip00.webp", "clip01.webp"]


def test_a_damaged_file_has_no_caption_and_is_no_error(tmp_path: Path) -> None:
    write_clips(tmp_path, 2)
    (tmp_path / "broken.webp").write_bytes(b"no video")
    (tmp_path / "gone.webp").symlink_to("nowhere.webp")
    assert len(list_clips(tmp_path, "generated")) == 3
    found = read_captions(tmp_path, list_clips(tmp_path, "generated"))
    assert {path.name: caption for path, caption in found.items()} == {
        "clip00.webp": "number 0",
        "clip01.webp": "number 1",
    }


def test_sentences_come_from_the_folder_or_from_the_files(
    tmp_path: Path, squares: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = list_clips(squares, "generated")
    assert set(read_captions(squares, clips).values()) >= {"a moving red square", "a still blue square"}
    made = list_clips(write_clips(tmp_path, 2), "generated")
    assert list(read_captions(tmp_path, made).values()) == ["number 0", "number 1"]
    assert caplog.text == ""
    (tmp_path / "clip00.txt").write_text("a caption beside it")
    assert list(read_captions(tmp_path, made).values()) == ["a caption beside it", "number 1"]
    assert "1 are from its .txt files and 1 are the prompts that files hold" in caplog.text
    write_video(tmp_path / "dumb.webp", clip(0), 8.0, lossless=True)
    with pytest.raises(InputError, match="generated must have a caption for each clip .*dumb.webp has none"):
        read_captions(tmp_path, list_clips(tmp_path, "generated"))


def test_a_table_that_cannot_be_used_is_no_reason_to_take_other_sentences(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = list_clips(write_clips(tmp_path, 2), "generated")
    (tmp_path / "captions.csv").write_text("file_name,said\nclip00.webp,a sentence\n")
    with pytest.raises(InputError, match=r"caption must be a column of .*captions.csv \(file_name, said\)"):
        read_captions(tmp_path, made)
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "clip01.webp", "caption": "a sentence"}\n')
    assert list(read_captions(tmp_path, made).values()) == ["number 0", "a sentence"]
    assert "1 are from its metadata.jsonl and 1 are the prompts that files hold" in caplog.text
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "other.webp", "caption": "a sentence"}\n')
    assert list(read_captions(tmp_path, made).values()) == ["number 0", "number 1"]
    assert "0 are from its metadata.jsonl and 2 are the prompts that files hold" in caplog.text


def test_prompts_are_read_without_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".webp", ".mp4", ".gif", ""):
        write_video(tmp_path / f"clip{suffix}", clip(0), 8.0, {"prompt": f"in a {suffix}"})
    monkeypatch.setattr("latent_shift.media._images.picture", lambda *_: pytest.fail("a picture was read"))
    monkeypatch.setattr("latent_shift.media._movie_reader._stack", lambda *_: pytest.fail("a film was decoded"))
    found = read_captions(tmp_path, list_clips(tmp_path, "generated"))
    assert sorted(found.values()) == ["in a ", "in a .gif", "in a .mp4", "in a .webp"]


def test_reading_ahead_keeps_the_order_and_the_bound() -> None:
    reading, most, lock = 0, 0, threading.Lock()
    asked: list[int] = []

    def read(item: int) -> int:
        nonlocal reading, most
        with lock:
            reading += 1
            most = max(most, reading)
            asked.append(item)
        time.sleep(0.002 * (item % 3))
        with lock:
            reading -= 1
        return item

    reads = read_ahead(read, range(40), threads=3, ahead=5)
    assert [next(reads).result() for _ in range(4)] == [0, 1, 2, 3]
    assert max(asked) <= 4 + 5
    assert [future.result() for future in reads] == list(range(4, 40))
    assert 1 < most <= 3
    stopped = read_ahead(read, range(1000), threads=1, ahead=3)
    next(stopped)
    asked.clear()
    stopped.close()
    assert len(asked) <= 4


def test_the_moment_follows_from_the_files_name_and_not_from_its_folder(tmp_path: Path) -> None:
    one, other = (list_clips(write_clips(tmp_path / name, 1, frames=12), "generated")[0] for name in ("a", "b"))
    for seed in range(8):
        frames = [read_window(path, ClipWindow(FRAMES, seed=seed)).frames for path in (one, other)]
        assert np.array_equal(*frames)


def test_a_tenth_of_the_files_may_be_bad_and_no_more(tmp_path: Path) -> None:
    write_clips(tmp_path, 9)
    (tmp_path / "bad0.webp").write_bytes(b"no video")
    paths = list_clips(tmp_path, "generated")
    assert len(list(ClipReader("some", ClipFiles("here", paths), ClipWindow(FRAMES), 1, 1))) == 9
    with pytest.raises(DataError, match="1 of 9 clips of here cannot be used, more than 10%"):
        list(ClipReader("some", ClipFiles("here", paths[:1] + paths[2:]), ClipWindow(FRAMES), 1, 1))
