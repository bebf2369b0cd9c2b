from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from latent_shift.core.errors import DataError, InputError
from latent_shift.data.npm import NpmPackage, fetch_package, find_package


def tarball(path: Path, files: dict[str, bytes]) -> str:
    """Writes a package as npm does; returns its integrity."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def fake_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def package(tmp_path: Path) -> NpmPackage:
    integrity = tarball(tmp_path / "s-n-1.0.0.tgz", {"a/x.webp": b"x", "package.json": b"{}", "y.webp": b"yy"})
    return NpmPackage("@s/n", "1.0.0", "MIT", integrity)


def test_reads_a_checked_tarball(package: NpmPackage, tmp_path: Path) -> None:
    source = find_package(package, tmp_path)
    assert dict(source.files(".webp")) == {"a/x.webp": b"x", "y.webp": b"yy"}
    assert source.read("y.webp") == b"yy"
    with pytest.raises(DataError, match="has no file z"):
        source.read("z")


def test_a_damaged_tarball_is_named(package: NpmPackage, tmp_path: Path) -> None:
    path = tmp_path / "s-n-1.0.0.tgz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"s-n-1\.0\.0\.tgz is damaged or not @s/n@1\.0\.0"):
        find_package(package, tmp_path)


def test_a_missing_package_is_named(package: NpmPackage, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"packages must hold s-n-1\.0\.0\.tgz \(npm pack @s/n@1\.0\.0\)"):
        find_package(package, tmp_path / "empty")


def test_another_version_unpacked_is_refused(package: NpmPackage, tmp_path: Path) -> None:
    root = tmp_path / "unpacked" / "s-n-1.0.0" / "package"
    root.mkdir(parents=True)
    (root / "package.json").write_text('{"name": "@s/n", "version": "2.0.0"}')
    with pytest.raises(DataError, match=r"holds @s/n@2\.0\.0, expected @s/n@1\.0\.0"):
        find_package(package, tmp_path / "unpacked")


def test_fetches_with_npm_once(package: NpmPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = tmp_path / "count"
    fake_npm(tmp_path / "bin", monkeypatch, f'echo "$2" >> {count}; cp {tmp_path}/s-n-1.0.0.tgz "$4"/')
    for _ in range(2):
        assert fetch_package(package, tmp_path / "fetched").read("y.webp") == b"yy"
    assert count.read_text() == "@s/n@1.0.0\n"
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == ["s-n-1.0.0.tgz"]


def test_fetches_into_a_relative_folder(package: NpmPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", monkeypatch, f'cp {tmp_path}/s-n-1.0.0.tgz "$4"/')
    monkeypatch.chdir(tmp_path)
    assert fetch_package(package, Path("downloads")).path == Path("downloads") / "s-n-1.0.0.tgz"


def test_npm_that_fails_is_one_line(package: NpmPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", monkeypatch, 'echo "npm error code E404" >&2; exit 1')
    with pytest.raises(DataError, match=r"npm pack @s/n@1\.0\.0 failed \(npm error code E404\)"):
        fetch_package(package, tmp_path / "fetched")
    assert list((tmp_path / "fetched").iterdir()) == []


def test_without_npm_the_message_says_what_to_install(
    package: NpmPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=r"npm is not installed.*install Node\.js with npm"):
        fetch_package(package, tmp_path / "fetched")
