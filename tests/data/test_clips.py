"""Covers `latent_shift.data.clips` and `check`: the paper's clips, and what happens to files that cannot be read."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from media.films import cut, number_of, numbered, write_film, write_sound

from latent_shift.core.config import parse_config
from latent_shift.core.errors import DataError, InputError
from latent_shift.data import Clip, ClipConfig, ClipLoader, check_source, open_source
from latent_shift.data._collect import CollectedSource
from latent_shift.data.records import ArchiveMember, CaptionedVideo
from latent_shift.media import write_video

SMALL = ClipConfig(num_frames=4, duration_s=1.0, size=32, max_bad_share=1.0)


def caption(path: Path, text: str = "a thing") -> Path:
    path.with_suffix(".txt").write_text(text)
    return path


def write_square(path: Path, num_frames: int) -> Path:
    """A square film: its numbers survive the crop."""
    return write_film(path, num_frames, frames=[numbered(index, 64, 64) for index in range(num_frames)])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three films, a still, and four files that are no use, each for a reason of its own."""
    for name in ("a.mp4", "b.mp4", "c.webm"):
        codec = "libvpx-vp9" if name == "c.webm" else "libx264"
        caption(write_film(tmp_path / name, 60, codec=codec), f"film {name[0]} moves")
    write_video(tmp_path / "still.png", numbered(9)[None], 1)
    caption(tmp_path / "still.png", "a still")
    caption(write_sound(tmp_path / "sound.mp4"))
    caption(cut(write_film(tmp_path / "cut.mp4", 60), 0.5))
    caption(write_film(tmp_path / "short.mp4", 10))
    write_film(tmp_path / "silent.mp4", 10)
    return tmp_path


def same(one: Clip, other: Clip) -> bool:
    facts = (one.caption, one.start_s, one.record) == (other.caption, other.start_s, other.record)
    return facts and np.array_equal(one.frames, other.frames)


def test_the_defaults_are_the_papers_clips(tmp_path: Path) -> None:
    caption(write_square(tmp_path / "film.mp4", 200))
    clip = ClipLoader(open_source(str(tmp_path)))[0]
    assert clip.frames.shape == (16, 256, 256, 3)
    assert clip.frames.dtype == np.uint8
    first = int(clip.start_s * 25 + 0.025)
    shown = [number_of(frame) for frame in clip.frames]
    assert shown[0] == first
    assert all(step in (3, 4) for step in np.diff(shown))  # 16 frames of 2 s at 25 a second
    assert 46 <= shown[-1] - shown[0] <= 48


def test_clips_start_at_random_moments_everywhere(tmp_path: Path) -> None:
    caption(write_film(tmp_path / "film.mp4", 100))
    loader = ClipLoader(open_source(str(tmp_path)), SMALL)
    starts = [loader[position].start_s for position in range(40)]
    assert min(starts) < 0.4
    assert 2.6 < max(starts) <= 3.0
    assert len(set(starts)) == 40


def test_a_clip_depends_on_seed_and_position_alone(mixed: Path) -> None:
    source = open_source(str(mixed))
    forward = ClipLoader(source, SMALL, seed=3)
    clips = [forward[position] for position in range(12)]
    backward = pickle.loads(pickle.dumps(ClipLoader(source, SMALL, seed=3)))
    assert all(same(backward[position], clips[position]) for position in reversed(range(12)))
    other = ClipLoader(source, SMALL, seed=4)
    assert not all(same(other[position], clips[position]) for position in range(12))


def test_a_film_that_is_damaged_in_places_changes_no_other_position(tmp_path: Path) -> None:
    for number in range(3):
        caption(write_film(tmp_path / f"{number}.mp4", 100, keyframe_every=10), f"film {number}")
    damaged = tmp_path / "0.mp4"
    content = bytearray(damaged.read_bytes())
    with av.open(str(damaged)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for place, size in packets[50:]:
        content[place + 4 : place + size] = b"\xff" * (size - 4)
    damaged.write_bytes(content)
    source = open_source(str(tmp_path))
    forward, backward = (ClipLoader(source, SMALL, seed=1) for _ in range(2))
    clips = [forward[position] for position in range(30)]
    assert all(same(backward[position], clips[position]) for position in reversed(range(30)))
    assert {clip.caption for clip in clips} == {"film 0", "film 1", "film 2"}
    assert [Path(bad.file).name for bad in forward.bad.values()] == ["0.mp4"]


def test_numpys_integers_are_positions_too(mixed: Path) -> None:
    loader = ClipLoader(open_source(str(mixed)), SMALL, seed=3)
    for position in np.arange(6):
        assert same(loader[position], loader[int(position)])
        assert loader.record(position) == loader.record(int(position))


@pytest.mark.parametrize("count", [2, 9])
def test_groups_of_another_length_are_refused(mixed: Path, count: int) -> None:
    source = open_source(str(mixed))
    with pytest.raises(InputError, match=f"groups must be one for each of the 7 records, got '{count} of them'"):
        ClipLoader(source, SMALL, groups=list(range(count)))


def test_bad_files_are_quarantined_with_their_reasons_and_the_run_goes_on(
    mixed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loader = ClipLoader(open_source(str(mixed)), SMALL)
    clips = [loader[position] for position in range(20)]
    assert {clip.record.path.name for clip in clips} == {"a.mp4", "b.mp4", "c.webm", "still.png"}
    reasons = {Path(bad.file).name: bad.reason for bad in loader.bad.values()}
    assert reasons.keys() == {"sound.mp4", "cut.mp4", "short.mp4"}
    assert reasons["sound.mp4"] == "has no video stream"
    assert reasons["cut.mp4"].startswith(("is truncated", "has no"))
    assert reasons["short.mp4"] == "lasts 0.40 s, less than the clip's 1 s"
    assert sum("quarantined" in message for message in caplog.messages) == 3


def test_the_record_of_a_clip_is_the_one_that_was_read(mixed: Path) -> None:
    loader = ClipLoader(open_source(str(mixed)), SMALL)
    turns = [loader.record(position).path.name for position in range(14)]
    assert {"sound.mp4", "cut.mp4", "short.mp4"} <= set(turns)
    for position in range(14):
        clip = loader[position]
        assert loader.record(position) == clip.record


def test_what_stands_in_for_bad_files_is_drawn_anew_for_each_position(mixed: Path) -> None:
    loader = ClipLoader(open_source(str(mixed)), SMALL)
    bad = [n for n in range(42) if loader.record(n).path.name in ("sound.mp4", "cut.mp4", "short.mp4")]
    assert len(bad) == 18
    counts = Counter(loader[position].record.path.name for position in bad)
    assert counts.keys() == {"a.mp4", "b.mp4", "c.webm", "still.png"}
    assert max(counts.values()) < 12


def test_the_share_of_bad_files_is_of_all_that_were_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large source may have more bad files than a tenth of the first hundred."""
    source = CollectedSource("files", tmp_path)
    for number in range(400):
        source.add((tmp_path / f"{number}.mp4"), "a thing", member=ArchiveMember("far.tar", 512 * number, 9))

    def read(_loader: ClipLoader, record: CaptionedVideo, _position: int) -> Clip:
        if record.index % 20 == 0:
            raise DataError(f"{record.path} is damaged")
        return Clip(np.zeros((1, 8, 8, 3), np.uint8), record.caption, 0.0, record)

    monkeypatch.setattr(ClipLoader, "read", read)
    loader = ClipLoader(source, SMALL.model_copy(update={"max_bad_share": 0.1}))
    for position in range(400):
        loader[position]
    assert len(loader.bad) == 20


def test_a_still_is_a_clip_of_one_frame(mixed: Path) -> None:
    loader = ClipLoader(open_source(str(mixed)), SMALL)
    shapes = {clip.record.path.suffix: clip.frames.shape for clip in (loader[position] for position in range(20))}
    assert shapes[".png"] == (1, 32, 32, 3)
    assert shapes[".mp4"] == (4, 32, 32, 3)


def test_too_many_bad_files_stop_the_run(mixed: Path) -> None:
    loader = ClipLoader(open_source(str(mixed)), SMALL.model_copy(update={"max_bad_share": 0.2}))
    message = r"2 of 7 videos of .* are bad, more than max_bad_share = 0\.2; .*\.mp4: .*; .*\.mp4: "
    with pytest.raises(DataError, match=message) as caught:
        [loader[position] for position in range(20)]
    assert "\n" not in str(caught.value)


def test_nothing_but_bad_files_stop_the_run(tmp_path: Path) -> None:
    caption(write_sound(tmp_path / "sound.mp4"))
    with pytest.raises(DataError, match="1 of 1 videos of .* are bad"):
        ClipLoader(open_source(str(tmp_path)), SMALL)[0]


def test_a_short_video_can_be_taken_whole(tmp_path: Path) -> None:
    caption(write_square(tmp_path / "short.mp4", 10))
    loader = ClipLoader(open_source(str(tmp_path)), SMALL.model_copy(update={"short": "whole", "size": 48}))
    assert [number_of(frame) for frame in loader[0].frames] == [0, 2, 5, 7]


def test_a_video_of_any_length_can_be_the_window(tmp_path: Path) -> None:
    for name, count in (("long.mp4", 100), ("short.mp4", 10)):
        caption(write_square(tmp_path / name, count), name)
    config = SMALL.model_copy(update={"duration_s": "whole", "size": 48})
    loader = ClipLoader(open_source(str(tmp_path)), config)
    shown = {clip.caption: [number_of(frame) for frame in clip.frames] for clip in (loader[0], loader[1])}
    assert shown == {"long.mp4": [0, 25, 50, 75], "short.mp4": [0, 2, 5, 7]}
    assert not loader.bad


def test_one_frame_is_drawn_from_the_whole_video(tmp_path: Path) -> None:
    caption(write_square(tmp_path / "short.mp4", 10))
    loader = ClipLoader(open_source(str(tmp_path)), ClipConfig(num_frames=1, duration_s=2.0, size=48))
    shown = [number_of(loader[position].frames[0]) for position in range(30)]
    assert min(shown) < 2
    assert max(shown) > 7


def test_any_of_the_captions_is_drawn(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", 30)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "caption": "a", "captions": ["a", "b", "c"]}\n')
    loader = ClipLoader(open_source(str(tmp_path)), SMALL)
    assert {loader[position].caption for position in range(30)} == {"a", "b", "c"}


def test_a_source_without_records_is_refused(tmp_path: Path) -> None:
    write_film(tmp_path / "silent.mp4", 5)
    with pytest.raises(InputError, match=r"source must hold at least one video \(1 were dropped\)"):
        ClipLoader(open_source(f"files:{tmp_path}"))


@pytest.mark.parametrize(("key", "value"), [("num_frames", 0), ("duration_s", 0), ("size", 0), ("short", "x")])
def test_wrong_settings_are_named(key: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{key} must be valid"):
        parse_config(ClipConfig, {key: value})


def test_the_report_of_a_source(mixed: Path) -> None:
    seen: list[int] = []
    report = check_source(open_source(str(mixed)), SMALL, progress=lambda _what, done, _total: seen.append(done))
    assert (report.kind, report.records, report.captions) == ("files", 7, 7)
    assert (report.checked, report.usable, report.stills) == (7, 4, 1)
    assert report.sizes == {"64x48": 4}
    assert report.duration_s is not None
    assert report.duration_s.median == pytest.approx(2.4)
    assert report.caption_words is not None
    assert (report.caption_words.least, report.caption_words.most) == (2, 3)
    assert [Path(entry.file).name for entry in report.dropped] == ["silent.mp4", "cut.mp4", "short.mp4", "sound.mp4"]
    assert len(report.clips) == 4
    assert seen == list(range(1, 8))


def test_a_sample_is_drawn_by_its_seed(mixed: Path) -> None:
    source = open_source(str(mixed))
    assert check_source(source, SMALL, sample=3).checked == 3
    assert check_source(source, SMALL, sample=99).checked == 7
    seen = [[text for _, text in check_source(source, SMALL, sample=2, seed=n).clips] for n in (0, 0, 1, 2, 3, 4)]
    assert seen[0] == seen[1]
    assert len({tuple(texts) for texts in seen}) > 2
    with pytest.raises(InputError, match="sample must be at least 1, got 0"):
        check_source(source, SMALL, sample=0)
