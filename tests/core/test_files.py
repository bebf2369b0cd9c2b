from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from pathlib import Path

import pytest

from latent_shift.core.errors import InputError
from latent_shift.core.files import atomic_path, check_can_write, sha256_file, write_json


class Interrupted(BaseException):
    """Like KeyboardInterrupt, no `Exception`."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_with_the_suffix_of_its_name(tmp_path: Path) -> None:
    target = tmp_path / "new" / "clip.mp4"
    with atomic_path(target) as temporary:
        assert temporary.name == "clip.mp4"
        assert temporary.parent.parent == target.parent
        temporary.write_text("half")
        assert not target.exists()
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert names(target.parent) == ["clip.mp4"]


def test_whether_a_folder_can_be_written_is_told_without_making_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = names(tmp_path)
    for good in (tmp_path, tmp_path / "new/deep/er"):
        check_can_write("output", str(good))
    for bad, reason in (
        ("file", f"{tmp_path / 'file'} is no folder"),
        ("file/new", f"{tmp_path / 'file'} is no folder"),
        ("link", f"{tmp_path / 'link'} is no folder"),
        ("n" * 300, "File name too long"),
    ):
        with pytest.raises(InputError) as caught:
            check_can_write("output", str(tmp_path / bad))
        assert str(caught.value).startswith(f"output must be in a folder that can be written ({reason}), got ")
    monkeypatch.setattr(os, "access", lambda place, _mode: Path(place) != tmp_path)
    with pytest.raises(InputError, match=re.escape(f"({tmp_path} may not be written)")):
        check_can_write("output", str(tmp_path / "new"))
    assert names(tmp_path) == before


@pytest.mark.parametrize("error", [RuntimeError, Interrupted])
def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    for path in (target, tmp_path / "other.txt"):
        with pytest.raises(error), atomic_path(path) as temporary:  # noqa: PT012
            temporary.write_text("half")
            raise error
    assert names(tmp_path) == ["a.txt"]
    assert target.read_text() == "old"


def test_a_folder_replaces_a_folder_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("first", "second"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert names(target) == ["second"]
    assert names(tmp_path) == ["model"]


def test_a_failure_in_a_folder_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:  # noqa: PT012
        temporary.mkdir()
        (temporary / "new").touch()
        raise RuntimeError
    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("old")
    with pytest.raises(InputError, match="output must be a place that can be written"), atomic_path(folder) as path:
        path.write_text("new")
    with pytest.raises(InputError, match="output must be a place that can be written"), atomic_path(file) as path:
        path.mkdir()
    assert names(tmp_path) == ["file", "folder"]
    assert file.read_text() == "old"


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "clip.mp4"
    expected = r"output must be in a folder that can be written \(.+\), got '.*clip.mp4'"
    with pytest.raises(InputError, match=expected), atomic_path(target):
        raise AssertionError("must not be entered")


def test_files_are_shared_as_those_that_the_process_makes(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "model") as temporary:
            (temporary / "unet").mkdir(parents=True)
            weights, script = temporary / "unet/weights", temporary / "script"
            weights.touch(0o600)
            script.touch(0o700)
        with atomic_path(tmp_path / "file") as temporary:
            temporary.touch(0o600)
    finally:
        os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("model/unet/weights", "model/script", "file")}
    assert modes == {"model/unet/weights": 0o640, "model/script": 0o740, "file": 0o640}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(InputError, match="Permission denied"), atomic_path(tmp_path / "x"):
        raise AssertionError("must not be entered")


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="File name too long"), atomic_path(tmp_path / ("x" * 300)):
        raise AssertionError("must not be entered")
    assert names(tmp_path) == []


@pytest.mark.parametrize("path", ["..", ".", "", "../work", "../..", "missing/.."])
def test_the_current_folder_and_those_above_it_are_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "secret").touch(0o600)
    monkeypatch.chdir(tmp_path / "work")
    expected = "output must be another than the current folder and those above it, got"
    with pytest.raises(InputError, match=expected), atomic_path(path):
        raise AssertionError("must not be entered")
    assert (names(tmp_path), names(tmp_path / "work")) == (["secret", "work"], [])
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_linked_folder_is_replaced_where_it_is_and_a_link_to_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk/model").mkdir(parents=True)
    (tmp_path / "disk/model/old").touch()
    (tmp_path / "disk/file").write_text("old")
    for name in ("model", "file"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    with atomic_path(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "model").is_symlink()
    assert names(tmp_path / "disk/model") == ["new"]
    assert not (tmp_path / "file").is_symlink()
    assert [(tmp_path / place).read_text() for place in ("file", "disk/file")] == ["new", "old"]
    assert (names(tmp_path), names(tmp_path / "disk")) == (["disk", "file", "model"], ["file", "model"])


@pytest.mark.skipif(os.name != "posix", reason="Windows syncs no folders")
def test_what_must_last_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    names_by_number: dict[int, str] = {}

    def sync(descriptor: int) -> None:
        done.append(names_by_number.get(os.fstat(descriptor).st_ino, "parent"))

    replace = os.replace
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    with atomic_path(tmp_path / "result", durable=True) as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "clip.mp4").write_text("a")
        names_by_number.update({path.stat().st_ino: path.name for path in (temporary, *temporary.rglob("*"))})
    assert sorted(done[:3]) == ["clip.mp4", "inner", "result"]
    assert done[3:] == ["rename", "parent"]
    done.clear()
    with atomic_path(tmp_path / "file", durable=True) as temporary:
        temporary.write_text("a")
    assert done == ["parent", "rename", "parent"]  # the first is the file, which has no name above
    with atomic_path(tmp_path / "quick") as temporary:
        temporary.write_text("a")
    assert done[3:] == ["rename"]


def test_a_folder_that_cannot_be_synced_is_an_error_and_the_new_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "result"
    target.mkdir()
    place = tmp_path.stat().st_ino

    def sync(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == place:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(InputError, match="Input/output error"), atomic_path(target, durable=True) as temporary:  # noqa: PT012
        temporary.mkdir()
        (temporary / "new").touch()
    assert names(target) == ["new"]


def test_json_keeps_its_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"prompt": "Kätzchen"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Kätzchen" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"prompt": "Kätzchen"}


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
