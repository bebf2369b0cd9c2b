"""Files of clips that are scored: which there are, their captions, and the frames that are cut out of them.

Of a file that is longer than a clip, a window at a random moment is taken, which depends on the seed and on the file's
name alone.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.seeding import hash_fraction
from latent_shift.core.shapes import check_at_least
from latent_shift.data.identity import file_key
from latent_shift.data.sources import files_below, is_media, open_source
from latent_shift.media import Frames, open_video, read_video

from .samples import Progress

logger = logging.getLogger(__name__)

_MAX_BAD_SHARE = 0.1
_SHOWN_REASONS = 3
_ROUNDING_S = 1e-3
"""A file may be so much shorter than a clip: containers round times."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class ClipWindow:
    """What is cut out of a file.

    Attributes:
        frames: of a clip.
        fps: frames a second of the clip; None takes neighbouring frames of each file, whatever its rate.
        size: height and width in pixels, to which frames are scaled and cropped when they are read; None: as they are.
        seed: of the moment at which the window starts.
    """

    frames: int = 16
    fps: float | None = None
    size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `InputError` for a value out of range."""
        check_at_least("frames", self.frames, 1)
        check_at_least("size", 1 if self.size is None else self.size, 1)
        if self.fps is not None and not 0.01 <= self.fps <= 1000:
            raise InputError("fps", self.fps, "be from 0.01 to 1000 frames a second")


class ClipFiles(NamedTuple):
    """Clips that are scored together: what messages call them, and their files."""

    place: str
    paths: list[Path]


def list_clips(folder: str | Path, argument: str) -> list[Path]:
    """The videos, images, and folders of PNG frames with a `video.json` below a folder, in the order of their names.

    Folders behind links count, too.

    Raises:
        InputError: there is no such folder, or nothing of that in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(argument, str(folder), "be a folder that exists")
    below = list(files_below(root))
    as_folders = {path.parent for path in below if path.name == "video.json"}
    files = (path for path in below if is_media(path) and path.is_file() and path.parent not in as_folders)
    found = sorted(
        (path for path in (*as_folders, *files) if not _is_hidden(path.relative_to(root))),
        key=lambda path: path.relative_to(root).as_posix(),
    )
    if not found:
        raise InputError(argument, str(folder), "hold videos or images")
    return found


def _is_hidden(path: Path) -> bool:
    """Below a folder whose name starts with a dot: also what a write that was killed has left."""
    return any(part.startswith(".") for part in path.parts)


def read_captions(folder: str | Path, files: Sequence[Path]) -> dict[Path, str]:
    """The sentence of each file: as `data` reads captioned folders, or else the prompt that the file itself holds.

    A file that is damaged or may not be read has none, and is no error here: whoever scores it leaves it out.

    Raises:
        InputError: a file has neither. Names it.
    """
    try:
        captions = {record.path.resolve(): record.caption for record in open_source(str(folder), "generated")}
    except InputError:  # no captioned folder
        captions = {}
    found: dict[Path, str] = {}
    for path in files:
        try:
            caption = captions.get(path.resolve()) or read_video(path).metadata.get("prompt")
        except (DataError, InputError):
            continue
        if not caption:
            expected = (
                f"have a caption for each clip (metadata.jsonl, a .txt beside it, or a prompt in it); {path} has none"
            )
            raise InputError("generated", str(folder), expected)
        found[path] = caption
    return found


def read_window(path: Path, window: ClipWindow) -> Frames:
    """The frames of a file that are scored, `(frames, height, width, 3)`, uint8.

    Raises:
        InputError: nothing is there, or it may not be read.
        DataError: it is damaged, or shorter than a clip. Names the file.
    """
    with open_video(path) as video:
        if window.frames == 1 and video.is_still:
            return video.clip(0, 0, 1, window.size)
        if video.is_still:
            raise DataError(f"{path} is a still image, and clips have {window.frames} frames")
        rate = window.fps or video.info().fps
        window_s = window.frames / rate
        spare_s = video.duration_s - window_s
        if spare_s < -_ROUNDING_S:
            raise DataError(f"{path} lasts {video.duration_s:.2f} s, less than the clip's {window_s:.2f} s")
        moment = hash_fraction("window", window.seed, path.name)
        if window.fps:
            start_s = max(0.0, spare_s) * moment
        else:  # a clip starts with a frame, one of those that leave room for it
            start_s = int((int((spare_s + _ROUNDING_S) * rate) + 1) * moment) / rate
        return video.clip(start_s, min(window_s, video.duration_s - start_s), window.frames, window.size)


def read_ahead(read: Callable[[T], R], items: Iterable[T], threads: int, ahead: int) -> Iterator[Future[R]]:
    """Reads on threads while the caller computes; results come in the order of `items`.

    Args:
        read: is called with each item, on one of the threads.
        items: what to read.
        threads: how many.
        ahead: at most so many items are read before they are asked for.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > ahead:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for future in waiting:
                future.cancel()


class ClipReader:
    """The clips of some files, decoded ahead; counts what cannot be used, and stops where that is too much.

    Attributes:
        used: the files whose clips were given.
        sizes: how many of them are of which size, "WIDTHxHEIGHT".
    """

    def __init__(
        self,
        name: str,
        files: ClipFiles,
        window: ClipWindow,
        threads: int,
        ahead: int,
        progress: Progress | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            name: what progress calls the clips.
            files: in their order.
            window: what is cut out of each.
            threads: decode.
            ahead: at most so many clips are decoded before they are asked for.
            progress: told how far it is.
        """
        self._name, self._files, self._window = name, files, window
        self._threads, self._ahead, self._progress = threads, ahead, progress
        self.used: list[Path] = []
        self.sizes: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Frames]:
        """The clips, `(frames, height, width, 3)`, uint8.

        Raises:
            DataError: more than a tenth of the files cannot be used. Names some, and why.
        """
        bad: list[str] = []
        paths, window = self._files.paths, self._window
        reads = read_ahead(lambda path: read_window(path, window), paths, self._threads, self._ahead)
        for done, (path, future) in enumerate(zip(paths, reads, strict=True)):
            if self._progress:
                self._progress(f"{self._name} clips", done, len(paths))
            try:
                clip = future.result()
            except (DataError, InputError) as error:
                logger.warning("left out: %s", error)
                bad.append(str(error))
                self._check(bad)
                continue
            self.used.append(path)
            self.sizes["{2}x{1}".format(*clip.shape)] += 1
            yield clip
        if self._progress:
            self._progress(f"{self._name} clips", len(paths), len(paths))

    def _check(self, bad: Sequence[str]) -> None:
        place, paths = self._files
        if len(bad) > _MAX_BAD_SHARE * len(paths):
            shown = "; ".join(bad[:_SHOWN_REASONS])
            count = f"{len(bad)} of {len(paths)} clips of {place} cannot be used"
            raise DataError(f"{count}, more than {_MAX_BAD_SHARE:.0%}: {shown}")


def hash_files(paths: Sequence[Path]) -> str:
    """Names a set of files, wherever they are, by their names and samples of their bytes."""
    text = "\n".join(f"{path.name} {file_key(min(path.iterdir()) if path.is_dir() else path)}" for path in paths)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]
