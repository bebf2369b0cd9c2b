"""Covers `latent_shift.media.output`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from latent_shift.core.errors import InputError
from latent_shift.media import check_output_path, write_video
from latent_shift.media.output import output_kind

from .conftest import Moving


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.mp4", ".mp4"), ("a.b.GIF", ".gif"), ("a.jpeg", ".jpg"), ("frames/", "/"), ("frames", "/"), ("v1.5/", "/")],
)
def test_the_name_says_the_format(name: str, kind: str) -> None:
    assert output_kind(name) == kind


@pytest.mark.parametrize("name", ["clip.avi", "clip.mp4v", ".", "..", "", ".mp4", ".PNG"])
def test_an_unknown_suffix_is_named(name: str, tmp_path: Path, moving: Moving) -> None:
    expected = "output must end in one of .mp4 .webm .gif .webp .png .jpg or / (a folder of PNG frames), got " + repr(
        os.path.join(tmp_path, name) if name.startswith("clip") else name
    )
    path = os.path.join(tmp_path, name) if name.startswith("clip") else name
    for call in (lambda: check_output_path(path), lambda: write_video(path, moving(2), 8)):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == expected


def test_a_check_makes_nothing(tmp_path: Path) -> None:
    check_output_path(tmp_path / "new" / "deep" / "clip.mp4")
    check_output_path(f"{tmp_path}/frames/")
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path: Path, moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "clip.mp4").mkdir()
    cases = {
        f"{tmp_path}/file/clip.mp4": "output must be in a folder that can be written",
        f"{tmp_path}/file/deep/clip.mp4": "output must be in a folder that can be written",
        f"{tmp_path}/file/": "output must be a folder; a file of that name exists",
        f"{tmp_path}/clip.mp4": "output must be a file; a folder of that name exists",
        f"{tmp_path}/{'x' * 300}.mp4": "output must be a place that can be written",
    }
    for path, message in cases.items():
        with pytest.raises(InputError, match=message):
            check_output_path(path)
        with pytest.raises(InputError, match=message):
            write_video(path, moving(2), 8)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="output must be in a folder that can be written"):
        check_output_path(tmp_path / "clip.gif")


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path, moving: Moving) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="it holds other files"):
        write_video(tmp_path / "work", moving(2), 8)
    write_video(tmp_path / "frames", moving(4), 8)
    (tmp_path / "frames" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="it holds other files"):
        write_video(tmp_path / "frames", moving(2), 8)
    (tmp_path / "frames" / "notes.txt").unlink()
    write_video(tmp_path / "frames", moving(2), 8)
    assert sorted(os.listdir(tmp_path / "frames")) == ["frame_0000.png", "frame_0001.png", "video.json"]
