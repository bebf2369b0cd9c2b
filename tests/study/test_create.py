"""`study/pairing.py` and `study/create.py`: what goes together, what is named, what raters could tell."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from latent_shift.core.errors import DataError, InputError
from latent_shift.media import read_video, write_video
from latent_shift.study import Source, Store, StudySettings, create_study, find_sources
from latent_shift.study.pairing import pair_sources
from latent_shift.study.records import ClipFacts

from .conftest import CopyWriter, sources


def test_a_folder_is_read_by_its_table_or_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b.mp4", "below/a.WEBP", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    asked: list[str] = []

    def read_prompt(path: Path) -> str | None:
        asked.append(path.name)
        return "  a  red\nheart " if path.suffix == ".mp4" else None

    assert find_sources(tmp_path, read_prompt) == [
        Source(tmp_path / "b.mp4", "a red heart"),
        Source(tmp_path / "below" / "a.WEBP", None),
    ]
    rows = [{"file_name": "below/a.WEBP", "caption": "a cat"}, {"file_name": "b.mp4", "prompt": " a  dog"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert find_sources(tmp_path, read_prompt) == [
        Source(tmp_path / "below" / "a.WEBP", "a cat"),
        Source(tmp_path / "b.mp4", "a dog"),
    ]
    assert asked == ["b.mp4", "a.WEBP"]
    row = {"file_name": "b.mp4", "caption": "a\u2028dog"}  # a line for Python, not for JSON
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert find_sources(tmp_path, read_prompt) == [Source(tmp_path / "b.mp4", "a dog")]


def test_what_a_killed_write_left_is_no_clip(tmp_path: Path) -> None:
    (tmp_path / ".cat.webp.x1").mkdir()
    for name in (".cat.webp.x1/cat.webp", "cat.webp"):
        (tmp_path / name).write_bytes(b"x")
    assert find_sources(tmp_path, lambda _: "a cat") == [Source(tmp_path / "cat.webp", "a cat")]


def test_a_folder_of_frames_is_one_clip(tmp_path: Path) -> None:
    write_video(tmp_path / "clips/cat", np.zeros((2, 8, 8, 3), dtype=np.uint8), 8.0, {"prompt": "a cat"})
    (tmp_path / "clips/notes").mkdir()
    expected = [Source(tmp_path / "clips/cat", "a cat")]
    assert find_sources(tmp_path / "clips", lambda path: read_video(path).metadata["prompt"]) == expected
    (tmp_path / "clips/metadata.jsonl").write_text('{"file_name": "cat", "caption": "a cat"}')
    assert find_sources(tmp_path / "clips", lambda _: None) == expected
    (tmp_path / "clips/metadata.jsonl").write_text('{"file_name": "notes", "caption": "a cat"}')
    with pytest.raises(DataError, match="names notes, which is not there"):
        find_sources(tmp_path / "clips", lambda _: None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":1 must be a JSON object with file_name and caption"),
        ("[1]", ":1 must be a JSON object with file_name and caption"),
        ('{"file_name": "a.mp4", "caption": 3}', ":1 must have a text as file_name and as caption"),
        ('{"file_name": "none.mp4", "caption": "x"}', ":1 names none.mp4, which is not there"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(DataError, match=re.escape(message)):
        find_sources(tmp_path, lambda _: None)


def test_no_folder_and_no_clips(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="be a folder of clips"):
        find_sources(tmp_path / "none", lambda _: None)
    with pytest.raises(InputError, match=r"hold clips \(\.webp \.gif"):
        find_sources(tmp_path, lambda _: None)


def test_clips_of_a_sentence_pair_in_order_and_the_rest_is_named() -> None:
    def clips(system: str, *prompts: str | None) -> list[Source]:
        return [Source(Path(system, str(number)), prompt) for number, prompt in enumerate(prompts)]

    together, alone = pair_sources({"a": clips("a", "x", "y", "x", None), "b": clips("b", "x", "x", "z", "x")})
    assert {key: [source.path.as_posix() for source in found.values()] for key, found in together.items()} == {
        ("x", 0): ["a/0", "b/0"],
        ("x", 1): ["a/2", "b/1"],
    }
    assert [(clip.path.as_posix(), clip.reason) for clip in alone] == [
        ("a/3", "it carries no prompt, and there is no metadata.jsonl"),
        ("a/1", "no other system has a clip for 'y'"),
        ("b/2", "no other system has a clip for 'z'"),
        ("b/3", "no other system has so many clips for 'x': this is number 3"),
    ]


def test_each_with_each_or_all_with_the_baseline(tmp_path: Path) -> None:
    systems = {name: sources(tmp_path, name, 2) for name in ("base", "one", "two")}
    each, _ = create_study(tmp_path / "each", systems, CopyWriter(), StudySettings())
    against, _ = create_study(tmp_path / "against", systems, CopyWriter(), StudySettings(), baseline="base")
    assert (each, against) == (6, 4)
    store = Store(tmp_path / "against")
    pairs = [pair for pair in store.pairs() if pair.kind == "pair"]
    assert {(pair.first, pair.second) for pair in pairs} == {("one", "base"), ("two", "base")}
    assert len([pair for pair in store.pairs() if pair.kind == "check"]) == 4
    store.close()


def test_checks_are_made_of_clips_that_are_in_no_pair_then_of_other_sentences(tmp_path: Path) -> None:
    systems = {name: sources(tmp_path, name, count) for name, count in (("a", 5), ("b", 3))}
    create_study(tmp_path / "study", systems, CopyWriter(), StudySettings(checks_per_rater=3))
    store = Store(tmp_path / "study")
    checks = [pair.prompt for pair in store.pairs() if pair.kind == "check"]
    store.close()
    assert checks[0] in ("sentence 3", "sentence 4")  # the other one is the example
    assert len(set(checks)) == 3


def test_files_and_addresses_say_nothing(tmp_path: Path) -> None:
    systems = {name: sources(tmp_path, name, 5) for name in ("ours", "theirs")}
    create_study(tmp_path / "study", systems, CopyWriter(), StudySettings())
    files = list((tmp_path / "study" / "clips").iterdir())
    assert all(re.fullmatch(r"[0-9a-f]{32}-0\.webp", file.name) for file in files)
    assert {file.stat().st_mtime for file in files} == {0}
    store = Store(tmp_path / "study")
    assert set(store.files.values()) == set(files)
    # The order of the clips in the database is that of their random names, not that of the systems.
    content = [store.files[name].read_bytes() for name in sorted(store.files)]
    assert content != sorted(content)
    store.close()


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    def create(systems: dict[str, list[Source]], baseline: str | None = None, **settings: int) -> None:
        create_study(tmp_path / "study", systems, CopyWriter(), StudySettings(**settings), baseline=baseline)

    ours, theirs = sources(tmp_path, "ours", 2), sources(tmp_path, "theirs", 2)
    with pytest.raises(InputError, match="folders must be two or more"):
        create({"ours": ours})
    with pytest.raises(InputError, match="--baseline must be one of ours, theirs, got 'x'"):
        create({"ours": ours, "theirs": theirs}, "x")
    with pytest.raises(InputError, match=r"share prompts \(no other system has a clip for 'sentence 0'\)"):
        create({"ours": ours, "theirs": [Source(theirs[0].path, "another")]})
    with pytest.raises(InputError, match="checks_per_rater must be at most 3: so many of the clips"):
        create({"ours": ours, "theirs": theirs}, checks_per_rater=9)
    assert not (tmp_path / "study").exists()
    create({"ours": ours, "theirs": theirs})
    with pytest.raises(InputError, match="study must be new: votes are never overwritten"):
        create({"ours": ours, "theirs": theirs})


def test_clips_with_nothing_to_see_make_no_check(tmp_path: Path) -> None:
    class Blank(CopyWriter):
        def write_scrambled(self, source: Path, target: Path) -> ClipFacts | None:
            return None

    systems = {name: sources(tmp_path, name, 2) for name in ("a", "b")}
    with pytest.raises(InputError, match="hold a clip that can be told from a scrambled copy"):
        create_study(tmp_path / "study", systems, Blank(), StudySettings(checks_per_rater=0))


def test_what_the_baseline_lacks_is_named(tmp_path: Path) -> None:
    systems = {name: sources(tmp_path, name, count) for name, count in (("a", 2), ("b", 2), ("base", 1))}
    made, unpaired = create_study(tmp_path / "study", systems, CopyWriter(), StudySettings(), baseline="base")
    assert made == 2
    assert [left.path for left in unpaired] == [systems["a"][1].path, systems["b"][1].path]
    assert all("the baseline, base, has no clip for 'sentence 1'" in left.reason for left in unpaired)
