"""Files are written beside their place and renamed into it: a reader never sees half a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import DataError, InputError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` on success, removes it on any error.

    What is written at the yielded path may be a file or a folder. The yielded path keeps the suffix of `path`.

    Args:
        path: where to. Of a link to a folder, that folder is replaced and the link stays; a link to a file is replaced,
            and the file stays.
        durable: waits until all is on the disk before it is renamed, and then until the name is: `path` is whole after
            a power cut, too. Costs some milliseconds a file.

    Raises:
        InputError: if the folder of `path` cannot be made or written, or `path` is the current folder or above it.
    """
    path = Path(path)
    if os.path.isdir(path) or path.name == "..":
        if holds_process(path):
            raise InputError("output", str(path), "be another than the current folder and those above it")
        path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError("output", str(path), f"be in a folder that can be written ({error.strerror})") from error
    try:
        temporary, old = holder / path.name, holder / "old"
        yield temporary
        _share_as_usual(holder, temporary, *temporary.rglob("*"))
        try:
            if durable:
                _sync(temporary, *temporary.rglob("*"))
            if temporary.is_dir() and path.is_dir():
                path.rename(old)
            os.replace(temporary, path)
            if durable:
                _sync(path.parent)
        except OSError as error:
            if old.is_dir() and not path.exists():
                old.rename(path)
            raise InputError("output", str(path), f"be a place that can be written ({error.strerror})") from error
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def check_can_write(argument: str, folder: str) -> None:
    """Raises `InputError` where a folder can neither be written nor, if it is not there, be made; makes nothing."""
    problem, path = "", Path(folder).absolute()
    try:
        place = next(place for place in (path, *path.parents) if _is_there(place))
        if not place.is_dir():
            problem = f"{place} is no folder"
        elif not os.access(place, os.W_OK | os.X_OK):
            problem = f"{place} may not be written"
    except (OSError, ValueError) as error:  # no name of a folder: too long, or with a null byte
        problem = getattr(error, "strerror", str(error))
    if problem:
        raise InputError(argument, folder, f"be in a folder that can be written ({problem})")


def _is_there(path: Path) -> bool:
    """Whether it is, also as a link to nothing; unlike `exists`, raises where such a name can never be."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def holds_process(folder: Path) -> bool:
    """Whether it is the current folder or one above it, which no new one should replace."""
    return Path.cwd().is_relative_to(os.path.realpath(folder))


def _share_as_usual(folder: Path, *paths: Path) -> None:
    """Files may be read as any that this process makes: libraries (safetensors) make theirs for their owner alone."""
    made = folder / "made"
    with contextlib.suppress(OSError):  # of a disk without such rights
        made.touch()
        usual = made.stat().st_mode
        for path in paths:
            if path.is_file() and not path.is_symlink():
                path.chmod(path.stat().st_mode | usual)


def _sync(*paths: Path) -> None:
    """Waits until files and the names in folders are on the disk; Windows syncs no folder and nothing open to read."""
    for path in paths if os.name == "posix" else ():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no JSON that can be read ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object")
    return value


def is_hidden(path: Path) -> bool:
    """Below a folder whose name starts with a dot, or such a file: also what a write that was killed has left."""
    return any(part.startswith(".") for part in path.parts)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
