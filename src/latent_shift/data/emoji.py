"""The data of the default model: Microsoft's animated Fluent emoji, with emojibase's words for them.

Fetched from the npm registry as pinned packages, written in the format of `records`: clips of 24 frames over the whole
loop and still images, 128 x 128 pixels, on white, lossless.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

from latent_shift.core.errors import InputError, LatentShiftError
from latent_shift.core.files import write_json

from ._emoji_pictures import PictureJob, make_picture
from ._emoji_source import LABELS, PACKAGES, EmojiPicture, EmojiSource
from ._emojibase import count_labels, emoji_key, make_captions
from .heldout import HeldOut, LabelInfo, family_of, load_heldout
from .npm import NpmPackage, PackageSource, fetch_package, find_package
from .records import MANIFEST_FILE, METADATA_FILE, CaptionedVideoFolder, Dropped, write_records

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

SIZE, NUM_FRAMES, FPS = 128, 24, 8.0
CREDITS = [
    "Fluent Emoji by Microsoft (MIT), packaged by LobeHub (MIT)",
    "Labels and tags: emojibase by Miles Johnson (MIT), after Unicode CLDR",
]

_PICTURES_VERSION, _CAPTIONS_VERSION = 1, 2
_BUILD_FILE, _FETCHED = "build.json", ".packages"
_MADE_HERE = {_BUILD_FILE, MANIFEST_FILE, METADATA_FILE, "clips", "stills"}


@dataclass(frozen=True)
class EmojiSummary:
    """What a build gave.

    Attributes:
        path: the data folder.
        counts: clips, stills, labels and more, by name.
        dropped: the files of the packages that are not in the data, and why.
    """

    path: Path
    counts: dict[str, int]
    dropped: list[Dropped] = field(default_factory=list)


def build_emoji(
    output: Path,
    *,
    packages: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> EmojiSummary:
    """Builds the emoji data; interrupted, the same call goes on; complete, it does nothing.

    Args:
        output: the data folder: new, empty, or one that this function began.
        packages: a folder that has the npm packages, packed or unpacked; None fetches them with npm.
        workers: processes; None takes one a core, at most eight.
        progress: called with what is done, how many and of how many.

    Raises:
        InputError: `output` holds something else or cannot be written, or a package is not in `packages`.
        DataError: a package could not be fetched or is not the pinned one, or animated WebP cannot be decoded here.
    """
    report = progress or _no_progress
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    if workers < 1:
        raise InputError("workers", workers, "be at least 1")
    output, heldout = Path(output), load_heldout()
    recipe = _recipe(heldout)
    if (summary := _complete(output, recipe)) is not None:
        return summary
    given = None if packages is None else _locate(packages, packages, report)
    _prepare(output, recipe)
    source = EmojiSource(given or _locate(None, output / _FETCHED, report))
    records, broken = _make_all(source, output, workers, heldout, report)
    dropped = sorted([*source.dropped, *broken], key=lambda entry: entry.file)
    for entry in dropped:
        logger.warning("%s is left out: %s", entry.file, entry.reason)
    write_records(output, records)
    counts = _counts(records, dropped, source.mended_tones)
    shutil.rmtree(output / _FETCHED, ignore_errors=True)
    write_json(output / MANIFEST_FILE, _manifest(recipe, counts, dropped, heldout))
    return EmojiSummary(output, counts, dropped)


def list_labels(packages: Path) -> list[LabelInfo]:
    """What the packages in a folder hold, by label: the ground of the held-out list."""
    source = EmojiSource(_locate(packages, packages, _no_progress))
    pictures: dict[str, list[EmojiPicture]] = defaultdict(list)
    for picture in source.pictures():
        if picture is not None:
            pictures[picture.emoji.label].append(picture)
    plain = {emoji.label: emoji for emoji in source.emoji.values() if not emoji.tones}
    labels = []
    for label, found in sorted(pictures.items()):
        moving = [picture.emoji for picture in found if picture.kind == "clip"]
        tones = sorted({emoji.tones[0] for emoji in moving if len(emoji.tones) == 1})
        labels.append(LabelInfo(label, plain[label].hexcode, plain[label].tags, bool(moving), tuple(tones)))
    return labels


def _no_progress(_what: str, _done: int, _total: int) -> None:
    pass


def _recipe(heldout: HeldOut) -> dict[str, Any]:
    """Everything that decides what the build writes. JSON values."""
    return {
        "packages": {package.spec: package.integrity for package in PACKAGES},
        "pictures": {"version": _PICTURES_VERSION, "size": SIZE, "num_frames": NUM_FRAMES, "fps": FPS},
        "captions": {"version": _CAPTIONS_VERSION, "heldout": heldout.sha256},
    }


def _complete(output: Path, recipe: Mapping[str, Any]) -> EmojiSummary | None:
    try:
        manifest = json.loads((output / MANIFEST_FILE).read_text(encoding="utf-8"))
        if manifest["recipe"] != recipe:
            return None
        folder = CaptionedVideoFolder(output, "output")
        counts, dropped = manifest["counts"], [Dropped(**entry) for entry in manifest["dropped"]]
    except (OSError, ValueError, KeyError, TypeError, LatentShiftError):
        return None
    whole = len(folder) == counts["records"] and all(_is_whole(record.path) for record in folder)
    return EmojiSummary(output, counts, dropped) if whole else None


def _is_whole(path: Path) -> bool:
    """Whether a WebP file is there and as long as it says."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            return head[:4] == b"RIFF" and 8 + int.from_bytes(head[4:], "little") == os.fstat(file.fileno()).st_size
    except OSError:
        return False


def _prepare(output: Path, recipe: Mapping[str, Any]) -> None:
    """Makes the folder ready: the pictures that an interrupted build of the same recipe left stay, older ones go."""
    if output.exists() and not output.is_dir():
        raise InputError("output", str(output), "be a folder")
    before = _read_build(output)
    names = {path.name for path in output.iterdir() if not path.name.startswith(".")} if output.is_dir() else set()
    if names and (names - _MADE_HERE or not before):
        other = min(names - _MADE_HERE or names)
        raise InputError("output", str(output), f"be empty or begun by this command; it has {other}")
    for name in (MANIFEST_FILE, METADATA_FILE):
        (output / name).unlink(missing_ok=True)
    same = all(before.get(key) == recipe[key] for key in ("packages", "pictures"))
    for folder in (output / "clips", output / "stills"):
        if not same:
            shutil.rmtree(folder, ignore_errors=True)
        for half_written in folder.glob(".*"):
            shutil.rmtree(half_written, ignore_errors=True)
    write_json(output / _BUILD_FILE, recipe)


def _read_build(output: Path) -> dict[str, Any]:
    """The recipe of the build that was begun in a folder; empty where none was."""
    try:
        before = json.loads((output / _BUILD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ours = isinstance(before, dict) and {"packages", "pictures", "captions"} <= before.keys()
    return before if ours else {}


def _locate(packages: Path | None, fetched: Path, report: Progress) -> dict[NpmPackage, PackageSource]:
    sources = {}
    for done, package in enumerate(PACKAGES):
        report(f"package {package.spec}", done, len(PACKAGES))
        sources[package] = fetch_package(package, fetched) if packages is None else find_package(package, packages)
    report("packages", len(PACKAGES), len(PACKAGES))
    return sources


def _make_all(
    source: EmojiSource, output: Path, workers: int, heldout: HeldOut, report: Progress
) -> tuple[list[dict[str, Any]], list[Dropped]]:
    """Makes every picture that is not there yet; returns the records, by file name, and what could not be read."""
    labels_of_tag = count_labels(source.emoji.values())
    records: dict[str, dict[str, Any]] = {}

    def jobs() -> Iterator[PictureJob]:
        for done, picture in enumerate(source.pictures(), start=1):
            report("pictures", min(done, len(source)), len(source))
            if picture is None:
                continue
            record = _record(picture, heldout, labels_of_tag)
            records[picture.source] = record
            target = output / record["file_name"]
            if not _is_whole(target):
                num_frames = record["metadata"]["num_frames"]
                yield PictureJob(picture.source, picture.content, target, num_frames, SIZE, record["metadata"]["fps"])

    broken = [Dropped(name, reason) for name, reason in _run(jobs(), workers)]
    for entry in broken:
        del records[entry.file]
    return sorted(records.values(), key=lambda record: str(record["file_name"])), broken


def _run(jobs: Iterable[PictureJob], workers: int) -> list[tuple[str, str]]:
    """Runs the jobs with a bounded queue; returns `(name, reason)` of those that could not be read."""
    if workers == 1:
        return [(job.name, reason) for job in jobs if (reason := make_picture(job)) is not None]
    failed: list[tuple[str, str]] = []
    names: dict[Future[str | None], str] = {}

    def collect(most: int) -> None:
        while len(names) > most:
            for future in wait(names, return_when=FIRST_COMPLETED).done:
                name, reason = names.pop(future), future.result()
                if reason is not None:
                    failed.append((name, reason))

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        for job in jobs:
            names[pool.submit(make_picture, job)] = job.name
            collect(4 * workers)
        collect(0)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return failed


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with it even where it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _record(picture: EmojiPicture, heldout: HeldOut, labels_of_tag: Mapping[str, int]) -> dict[str, Any]:
    emoji, clip = picture.emoji, picture.kind == "clip"
    tags = heldout.allowed_tags(emoji.label, emoji.tags)
    captions = make_captions(emoji, tags, labels_of_tag)
    tones: Sequence[str] = emoji.tones
    return {
        "file_name": f"{picture.kind}s/{emoji_key(emoji.hexcode)}.webp",
        "caption": captions[0],
        "captions": captions,
        "metadata": {
            "label": emoji.label,
            "tone": None if not tones else tones[0] if len(set(tones)) == 1 else list(tones),
            "tags": tags,
            "heldout_tag": heldout.paraphrases.get(emoji.label),
            "family": family_of(emoji.label),
            "group": emoji.group,
            "subgroup": emoji.subgroup,
            "hexcode": emoji.hexcode,
            "kind": picture.kind,
            "num_frames": NUM_FRAMES if clip else 1,
            "fps": FPS if clip else 1.0,
            "source": picture.source,
            "source_frames": picture.source_frames,
            "licence": picture.package.licence,
        },
    }


def _counts(records: Sequence[Mapping[str, Any]], dropped: Sequence[Dropped], mended_tones: int) -> dict[str, int]:
    metadata = [record["metadata"] for record in records]
    clips = [entry for entry in metadata if entry["kind"] == "clip"]
    return {
        "records": len(records),
        "clips": len(clips),
        "stills": len(records) - len(clips),
        "labels": len({entry["label"] for entry in metadata}),
        "labels_with_clips": len({entry["label"] for entry in clips}),
        "families_with_clips": len({entry["family"] for entry in clips}),
        "captions": sum(len(record["captions"]) for record in records),
        "mended_tones": mended_tones,
        "dropped": len(dropped),
    }


def _manifest(
    recipe: Mapping[str, Any], counts: Mapping[str, int], dropped: Sequence[Dropped], heldout: HeldOut
) -> dict[str, Any]:
    return {
        "name": "emoji",
        "version": f"{_PICTURES_VERSION}.{_CAPTIONS_VERSION}",
        "licence": LABELS.licence,
        "credits": CREDITS,
        "sources": [asdict(package) for package in PACKAGES],
        "size": SIZE,
        "num_frames": NUM_FRAMES,
        "fps": FPS,
        "counts": dict(counts),
        "dropped": [asdict(entry) for entry in dropped],
        "heldout": {"name": heldout.name, "sha256": heldout.sha256},
        "recipe": dict(recipe),
    }
