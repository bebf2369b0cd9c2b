from __future__ import annotations

import datetime
import json
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_shift.core.errors import DataError, InputError
from latent_shift.data import CaptionedVideoFolder
from latent_shift.data.records import ArchiveMember, CaptionedVideo, PackedRecords, write_records
from latent_shift.media import write_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_video(tmp_path / "a.webp", np.zeros((3, 8, 8, 3), np.uint8), 8.0, lossless=True)
    return tmp_path


def test_reads_records_and_videos(folder: Path) -> None:
    line = {"file_name": "a.webp", "caption": "a", "captions": ["a", "b"], "metadata": {"num_frames": 3}}
    write_records(folder, [line, {"file_name": "a.webp", "caption": "c"}])
    data = CaptionedVideoFolder(folder)
    assert len(data) == 2
    assert [record.captions for record in data] == [("a", "b"), ("c",)]
    assert [record.index for record in data] == [0, 1]
    assert data[0].path == folder / "a.webp"
    assert data.read(0).frames.shape == (3, 8, 8, 3)
    assert data.manifest == {}


def test_records_are_packed_and_come_out_as_they_went_in() -> None:
    odd = Path(os.fsdecode(b"films/\xff.mp4"))  # no UTF-8
    facts: list[dict[str, Any]] = [{}, {"n": 3, "tags": ["a", None]}, {"date": datetime.date(2026, 11, 27), "b": b"x"}]
    member = ArchiveMember("https://host/00.tar", 512, 9)
    records = [
        CaptionedVideo(Path("a.mp4"), "ein Schiff fährt", ("ein Schiff fährt", "船"), facts[0], 0),
        CaptionedVideo(odd, "b", ("b",), facts[1], 1),
        CaptionedVideo(Path("/films/c.mp4"), "c", ("c",), facts[2], 2, member),
    ]
    packed = PackedRecords()
    for record in records:
        packed.append(record)
    assert list(packed) == records
    assert [packed[-1], *packed[:2]] == [records[2], *records[:2]]
    assert pickle.loads(pickle.dumps(packed))[2] == records[2]  # as workers that are spawned get them
    with pytest.raises(IndexError):
        packed[3]


def test_a_million_records_take_no_more_than_their_text() -> None:
    packed = PackedRecords()
    tracemalloc.start()
    try:
        for index in range(2000):
            place = Path(f"page_{index % 50}/{1_000_000_000 + index}.mp4")
            caption = f"{index} people walk over a bridge in the rain, seen from far above"
            packed.append(CaptionedVideo(place, caption, (caption,), {"videoid": str(index)}, index))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / len(packed) < 250  # as objects they are 1,000


def test_reads_the_manifest(folder: Path) -> None:
    write_records(folder, [{"file_name": "a.webp", "caption": "a"}])
    (folder / "dataset.json").write_text('{"name": "x"}')
    assert CaptionedVideoFolder(folder).manifest == {"name": "x"}
    (folder / "dataset.json").write_text("[")
    with pytest.raises(DataError, match=r"dataset\.json is no JSON"):
        CaptionedVideoFolder(folder)


def test_another_number_of_frames_is_an_error(folder: Path) -> None:
    write_records(folder, [{"file_name": "a.webp", "caption": "a", "metadata": {"num_frames": 24}}])
    with pytest.raises(DataError, match=r"a\.webp has 3 frames, expected 24"):
        CaptionedVideoFolder(folder).read(0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_records_as_hugging_face_writes_them(folder: Path, encoding: str) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "a.webp", "text": "a square"}\n', encoding=encoding)
    assert [record.captions for record in CaptionedVideoFolder(folder)] == [("a square",)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no valid JSON"),
        ("[1]", "line 2: must be a JSON object, got list"),
        ({"caption": "a"}, "line 2: file_name must be a relative path, got None"),
        ({"file_name": "../a.webp", "caption": "a"}, "line 2: file_name must stay inside the folder"),
        ({"file_name": "a.webp", "caption": " "}, "line 2: caption must be text"),
        ({"file_name": "a.webp", "caption": "smile \ud83d"}, "line 2: caption must be text"),  # half an emoji
        ({"file_name": "a.webp", "caption": "a", "captions": ["a", "\ud83d"]}, "line 2: captions must be a list"),
        ({"file_name": "a.webp", "caption": "a", "captions": "a"}, "line 2: captions must be a list"),
        ({"file_name": "a.webp", "caption": "a", "captions": ["b"]}, "the first of captions must be the caption 'a'"),
        ({"file_name": "a.webp", "caption": "a", "metadata": [1]}, "line 2: metadata must be an object"),
        ({"file_name": "gone.webp", "caption": "a"}, r"line 2: the file gone\.webp is missing"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, line: Any, message: str) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    (folder / "metadata.jsonl").write_text('{"file_name": "a.webp", "caption": "a"}\n' + text + "\n")
    with pytest.raises(DataError, match=message):
        CaptionedVideoFolder(folder)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data must be a folder that exists"):
        CaptionedVideoFolder(tmp_path / "none")
    with pytest.raises(InputError, match=r"data must hold a metadata\.jsonl \(it is empty\)"):
        CaptionedVideoFolder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(InputError, match="hold at least one video"):
        CaptionedVideoFolder(tmp_path)
