"""Covers `latent_shift.data.sources`, `_collect`, `_tables` and `_benchmarks`: each layout, as its authors have it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from latent_shift.core.errors import DataError, InputError, MissingExtraError
from latent_shift.data import open_source, ucf101_sentences
from latent_shift.data.records import CaptionedVideo, write_records
from latent_shift.training.sources import is_still


def touch(folder: Path, *names: str) -> Path:
    """Listing decodes nothing, so an empty file will do."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write_csv(path: Path, header: Iterable[str], *rows: Iterable[Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def listed(spec: str | Path, relative_to: Path) -> list[tuple[str, tuple[str, ...]]]:
    return [(record.path.relative_to(relative_to).as_posix(), record.captions) for record in open_source(str(spec))]


def why(spec: str | Path) -> dict[str, str]:
    return {Path(entry.file).name: entry.reason for entry in open_source(str(spec)).dropped}


def test_captions_beside_the_files(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a/x.webm", "a/photo.JPG", "alone.mp4", "empty.mov", "bad.mp4", ".hidden.mp4", "notes.md")
    (tmp_path / "b.txt").write_text("a dog\nruns \n", encoding="utf-8")
    (tmp_path / "a/x.txt").write_text("\ufeffa cat", encoding="utf-8")
    (tmp_path / "a/photo.txt").write_text("a photo")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    found = [("a/photo.JPG", ("a photo",)), ("a/x.webm", ("a cat",)), ("b.mp4", ("a dog runs",))]
    assert listed(tmp_path, tmp_path) == listed(f"files:{tmp_path}", tmp_path) == found
    assert open_source(str(tmp_path)).kind == "files"
    assert [record.index for record in open_source(str(tmp_path))] == [0, 1, 2]
    assert why(tmp_path) == {
        "alone.mp4": "there is no alone.txt beside it",
        "empty.mov": "it has no caption",
        "bad.mp4": "bad.txt cannot be read as UTF-8 text (UnicodeDecodeError)",
    }


def test_links_are_followed_once_and_what_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (tmp_path / "data/own", tmp_path / "far"):
        touch(place, "a.mp4")
        (place / "a.txt").write_text("a dog")
    (tmp_path / "data/linked").symlink_to(tmp_path / "far")
    (tmp_path / "data/own/round").symlink_to(tmp_path / "data")
    spec = f"files:{tmp_path / 'data'}"
    assert listed(spec, tmp_path) == [("data/linked/a.mp4", ("a dog",)), ("data/own/a.mp4", ("a dog",))]
    walk = os.scandir

    def scan(path: str) -> Any:
        if str(path).endswith("own"):
            raise PermissionError(13, "Permission denied", str(path))
        return walk(path)

    monkeypatch.setattr(os, "scandir", scan)
    (dropped,) = open_source(spec).dropped
    assert dropped.file.endswith("data/own")
    assert dropped.reason == "the folder cannot be read (Permission denied)"


def test_a_source_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "t.csv").write_text("path,caption\n")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"source must be readable \(.*t.csv: Permission denied\), got '.*t.csv'"):
        open_source(str(tmp_path / "t.csv"))


def test_this_projects_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    write_records(tmp_path, [{"file_name": "a.mp4", "caption": "a"}, {"file_name": "gone.mp4", "caption": "b"}])
    assert open_source(str(tmp_path)).kind == "folder"
    assert listed(tmp_path, tmp_path) == [("a.mp4", ("a",))]
    assert why(tmp_path) == {"gone.mp4": "the file is missing"}


ROWS = [
    {"video": "a.mp4", "caption": "a, with comma", "likes": 3},
    {"video": "gone.mp4", "caption": "b", "likes": 0},
    {"video": "b.mp4", "caption": "", "likes": 1},
]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    path = tmp_path / f"clips{suffix}"
    if suffix == ".csv":
        write_csv(path, ROWS[0], *(row.values() for row in ROWS))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), path)
    for spec in (path, tmp_path, f"table:{path}"):
        assert listed(spec, tmp_path) == [("a.mp4", ("a, with comma",))]
    assert str(open_source(str(path))[0].metadata["likes"]) == "3"
    assert why(path) == {"gone.mp4": "the file is missing", "b.mp4": "it has no caption"}


def test_a_caption_with_commas_and_no_quotes_is_dropped_and_not_cut(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "t.csv").write_text('path,caption\na.mp4,"a dog, quoted"\nb.mp4,a dog, with a hat\n')
    source = open_source(str(tmp_path / "t.csv"))
    assert [record.caption for record in source] == ["a dog, quoted"]
    (dropped,) = source.dropped
    assert dropped.file.endswith("t.csv, row 2")
    assert dropped.reason == "it has more cells than the header; put captions with commas in quotes"


@pytest.mark.parametrize(
    ("name", "num_frames", "still"),
    [
        ("a.mp4", 1, False),
        ("a.mp4", "1", False),
        ("a.webp", 1, True),
        ("a.webp", 24, False),
        ("a.webp", None, False),
        ("a.png", None, True),
        ("a.png", 24, True),
    ],
)
def test_a_number_of_frames_is_believed_of_files_that_may_move(name: str, num_frames: Any, still: bool) -> None:
    metadata = {} if num_frames is None else {"num_frames": num_frames}
    assert is_still(CaptionedVideo(Path(name), "a", ("a",), metadata, 0)) == still


def test_columns_and_root_can_be_named(tmp_path: Path) -> None:
    touch(tmp_path, "films/a.mp4")
    path = tmp_path / "clips.jsonl"
    path.write_text(json.dumps({"where": "a.mp4", "title": "one", "captions": ["two"]}) + "\n")
    spec = f"{path}?video=where&caption=title&root={tmp_path / 'films'}"
    assert listed(spec, tmp_path) == [("films/a.mp4", ("one", "two"))]
    with pytest.raises(InputError, match=r"video must be a column of .*clips\.jsonl \(where, title, captions\)"):
        open_source(str(path))
    with pytest.raises(InputError, match="caption must be a column .*, got 'words'"):
        open_source(f"{path}?video=where&caption=words")


@pytest.mark.parametrize(("header", "warned"), [("path,start,end,caption", True), ("path,start,more,caption", False)])
def test_captions_of_segments_are_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, header: str, warned: bool
) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "clips.csv").write_text(f"{header}\na.mp4,0.0,0.5,one\na.mp4,0.5,1.0,two\n")
    assert len(open_source(str(tmp_path / "clips.csv"))) == 2
    found = [message for message in caplog.messages if "cut the files first" in message]
    assert len(found) == warned
    expected = "clips.csv has the columns start and end, which select nothing: clips are taken from anywhere in a file"
    assert all(expected in message for message in found)


def test_captions_of_a_table_count_once(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    rows = [{"path": "a.mp4", "caption": "one", "captions": more} for more in (["one", "two"], "two", 5)]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [record.captions for record in open_source(str(tmp_path / "clips.jsonl"))]
    assert found == [("one", "two"), ("one", "two"), ("one",)]


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'latent-shift\[data\]'"):
        open_source(str(touch(tmp_path, "clips.parquet") / "clips.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"video": "a.mp4", "caption": "a"}\n{', r"t\.jsonl, line 2: no valid JSON"),
        ("t.jsonl", b"[]\n", r"t\.jsonl, line 1: must be a JSON object, got list"),
        ("t.csv", b"video,caption\n\xff\xff,a\n", r"t\.csv cannot be read \('utf-8' codec"),
        ("t.parquet", b"PAR1 not at all", r"t\.parquet is no Parquet file"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_source(f"table:{tmp_path / name}")
    assert "\n" not in str(caught.value)


def test_webvid(tmp_path: Path) -> None:
    touch(tmp_path, "videos/000001_000050/1066674784.mp4")
    header = ["videoid", "contentUrl", "duration", "page_dir", "name"]
    path = write_csv(
        tmp_path / "results_10M_train.csv",
        header,
        ["1066674784", "https://x/1.mp4", "PT00H00M20S", "000001_000050", "Merida, mexico: a street"],
        ["21179416", "https://x/2.mp4", "PT00H00M11S", "006001_006050", "Cloudy moscow kremlin time lapse"],
        ["7", "https://x/3.mp4", "PT00H00M11S", "../../..", "leads elsewhere"],
    )
    source = open_source(str(path))
    assert source.kind == open_source(str(tmp_path)).kind == "webvid"
    assert [(record.path.name, record.caption) for record in source] == [("1066674784.mp4", "Merida, mexico: a street")]
    assert source[0].metadata == {"videoid": "1066674784"}
    assert list(why(path).values()) == ["the file is missing", "its page_dir '../../..' leads out of the folder"]
    assert len(open_source(f"webvid:{path}?root={tmp_path / 'videos'}")) == 1
    (tmp_path / "videos/000001_000050").rename(tmp_path / "000001_000050")  # beside the table, and no `videos`
    (tmp_path / "videos").rmdir()
    assert [record.path.parent.parent for record in open_source(f"webvid:{path}")] == [tmp_path]
    with pytest.raises(InputError, match="have WebVid's columns"):
        open_source(f"webvid:{write_csv(tmp_path / 'other.csv', ['video', 'caption'], ['a', 'b'])}")


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    names = [f"Archery/v_Archery_g0{group}_c01.avi" for group in (1, 2)]
    names += ["PlayingGuitar/v_PlayingGuitar_g01_c01.avi", "Cooking/v_Cooking_g01_c01.avi"]
    touch(tmp_path / "UCF-101", *names)
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist01.txt").write_text(f"{names[1]} 3\r\n{names[2]} 63\r\n")
    (lists / "testlist01.txt").write_text(f"{names[0]}\r\nArchery/v_Archery_g09_c01.avi\r\n")
    return tmp_path


def test_ucf101_trains_on_everything_and_evaluates_on_the_train_split(ucf101: Path) -> None:
    for path in (ucf101, ucf101 / "UCF-101"):
        source = open_source(str(path))
        assert source.kind == "ucf101"
        assert [record.metadata["label"] for record in source] == ["Archery", "Archery", "PlayingGuitar"]
        assert [entry.reason for entry in source.dropped] == ["the folder is no class of UCF-101"]
        train = open_source(f"ucf101:{path}?split=train")
        assert [record.caption for record in train] == ["a person is doing archery", "a person is playing the guitar"]
        assert len(open_source(f"ucf101:{path}?split=train1")) == 2
        test = open_source(f"{path}?split=test")
        assert (len(test), [entry.reason for entry in test.dropped]) == (1, ["the file is missing"])
    with pytest.raises(InputError, match=r"have trainlist02\.txt in it or in ucfTrainTestlist beside it"):
        open_source(f"ucf101:{ucf101}?split=train2")
    with pytest.raises(InputError, match="split must be one of all, train, test, .*, got 'val'"):
        open_source(f"ucf101:{ucf101}?split=val")


def test_each_class_of_ucf101_has_a_sentence_of_its_own() -> None:
    sentences = ucf101_sentences()
    assert len(sentences) == len(set(sentences.values())) == 101
    assert sum(sentence.startswith("a person is ") for sentence in sentences.values()) == 93
    assert all(" is " in sentence or " are " in sentence for sentence in sentences.values())


def test_msrvtt_has_all_captions_of_its_test_split(tmp_path: Path) -> None:
    videos = [{"video_id": f"video{number}", "split": "test", "category": 1} for number in range(7010, 10000)]
    names = [video["video_id"] for video in videos for _ in range(20)][:59_794]
    sentences = [{"video_id": name, "caption": f"a man {index}"} for index, name in enumerate(names)]
    videos.append({"video_id": "video0", "split": "train", "category": 2})
    sentences.append({"video_id": "video0", "caption": "a car"})
    (tmp_path / "test_videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    touch(tmp_path, *(f"TestVideo/video{number}.mp4" for number in range(7010, 10000)))
    source = open_source(f"msrvtt:{tmp_path}?split=test")
    assert (len(source), sum(len(record.captions) for record in source)) == (2_990, 59_794)
    assert source[0].metadata == {"video_id": "video7010", "category": 1, "split": "test"}
    everything = open_source(str(tmp_path))
    assert (everything.kind, len(everything)) == ("msrvtt", 2_990)
    assert [entry.reason for entry in everything.dropped] == ["the file is missing"]
    assert len(open_source(f"{tmp_path / 'test_videodatainfo.json'}?root={tmp_path / 'TestVideo'}")) == 2_990


@pytest.mark.parametrize(
    ("split", "names"),
    [("all", "0 1 2 3"), ("train", "0 1"), ("validate", "2"), ("test", "3")],
)
def test_a_split_of_msrvtt_has_its_own_videos_alone(tmp_path: Path, split: str, names: str) -> None:
    videos = [{"video_id": f"video{n}", "split": s} for n, s in enumerate(("train", "train", "validate", "test"))]
    sentences = [{"video_id": f"video{n}", "caption": f"{n}"} for n in range(4)]
    (tmp_path / "videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    touch(tmp_path, *(f"videos/video{n}.mp4" for n in range(4)))
    source = open_source(f"msrvtt:{tmp_path}?split={split}")
    assert " ".join(record.caption for record in source) == names
    assert not source.dropped


@pytest.mark.parametrize("text", ["{", "[]", '{"videos": []}', '{"videos": [{}], "sentences": []}'])
def test_a_wrong_msrvtt_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"x\.json (is no JSON|must hold MSR-VTT's videos)"):
        open_source(str(tmp_path / "x.json"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none", "source must be a file or folder that exists, got 'none'"),
        ("webvdi:none.csv", "kind:path with one of folder, .*; did you mean 'webvid'?"),
        ("webvid:none.csv", r"source must be a \.csv, \.jsonl, \.parquet file that exists, got 'none\.csv'"),
        ("files:none", "source must be a folder that exists"),
        ("ucf101:none", "source must hold the class folders of UCF-101"),
        ("msrvtt:none", "source must be MSR-VTT's JSON"),
        ("files:.?split=train", r"have no option but those of 'files' \(none\)"),
        (".", r"source must hold captioned video, which is one of: metadata\.jsonl; class folders of UCF-101"),
        ("x.bin", "source must be a folder, or a"),
    ],
)
def test_what_is_no_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str) -> None:
    monkeypatch.chdir(touch(tmp_path, "x.bin", "lonely.mp4"))
    with pytest.raises(InputError, match=message) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)


def test_two_tables_are_not_guessed_between(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hold just one \.csv, \.jsonl, \.parquet \(a\.csv, b\.csv\)"):
        open_source(f"table:{touch(tmp_path, 'a.csv', 'b.csv')}")
