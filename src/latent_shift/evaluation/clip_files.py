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
from latent_shift.core.files import is_hidden
from latent_shift.core.seeding import hash_fraction
from latent_shift.core.shapes import check_at_least
from latent_shift.data.identity import file_key
from latent_shift.data.records import METADATA_FILE
from latent_shift.data.sources import files_below, find_kind, is_media, open_source
from latent_shift.media import Frames, open_video, probe_video, read_metadata

from .samples import Progress

logger = logging.getLogger(__name__)

_MAX_BAD_SHARE = 0.1
_SHOWN_REASONS = 3
_ROUNDING_S = 1e-3
"""Containers round times."""
_FRAMES_HINT = (
    "frames in a folder are one clip where they are frame_0000.png, frame_0001.png, ... and a video.json beside them "
    'says {"fps": 8, "frames": 16, "metadata": {}}'
)

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


class CutClip(NamedTuple):
    """What was cut out of a file.

    Attributes:
        frames: `(frames, height, width, 3)`, uint8.
        is_whole: whether that is all of the file, so that its last frame is the file's.
    """

    frames: Frames
    is_whole: bool


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
        (path for path in (*as_folders, *files) if not is_hidden(path.relative_to(root))),
        key=lambda path: path.relative_to(root).as_posix(),
    )
    if not found:
        raise InputError(argument, str(folder), "hold videos or images")
    return found


def read_captions(folder: str | Path, files: Sequence[Path]) -> dict[Path, str]:
    """The sentence of each file: as `data` reads captioned folders, or else the prompt that the file itself holds.

    A file that is damaged or may not be read has none, and is no error here: whoever scores it leaves it out. Where a
    captioned folder has no sentence for some files that hold their own, a warning says how many.

    Raises:
        InputError: a file has neither, which names it, or the folder's table has not the columns of one.
        DataError: the folder's table is damaged.
    """
    captions, kind = {}, find_kind(folder)
    if kind is not None:
        captions = {record.path.resolve(): record.caption for record in open_source(str(folder), "generated")}
    found: dict[Path, str] = {}
    own = 0
    for path in files:
        caption = captions.get(path.resolve())
        try:
            if not caption:
                caption = read_metadata(path).get("prompt")
                own += bool(caption)
            if not caption:
                probe_video(path)  # raises where there is no video
        except (DataError, InputError):
            continue
        if not caption:
            expected = (
                f"have a caption for each clip (metadata.jsonl, a .txt beside it, or a prompt in it); {path} has none"
            )
            raise InputError("generated", str(folder), expected)
        found[path] = caption
    if kind is not None and own:
        logger.warning(
            "of the captions of %s, %d are from its %s and %d are the prompts that files hold",
            *(folder, len(found) - own, {"folder": METADATA_FILE, "files": ".txt files"}.get(kind or "", "table"), own),
        )
    return found


def read_window(path: Path, window: ClipWindow) -> CutClip:
    """The frames of a file that are scored.

    Raises:
        InputError: nothing is there, or it may not be read.
        DataError: it is damaged, or shorter than a clip. Names the file.
    """
    with open_video(path) as video:
        if window.frames == 1 and video.is_still:
            return CutClip(video.clip(0, 0, 1, window.size), is_whole=True)
        if video.is_still:
            raise DataError(f"{path} is a still image, and clips have {window.frames} frames")
        rate = window.fps or video.info().fps
        window_s = window.frames / rate
        spare_s = video.duration_s - window_s
        if spare_s < -video.rounding_s:
            raise DataError(f"{path} lasts {video.duration_s:.3f} s, less than the clip's {window_s:.3f} s")
        moment = hash_fraction("window", window.seed, path.name)
        if window.fps:
            start_s = max(0.0, spare_s) * moment
        else:  # a clip starts with a frame, one of those that leave room for it
            start_s = int((int((spare_s + _ROUNDING_S) * rate) + 1) * moment) / rate
        frames = video.clip(start_s, min(window_s, video.duration_s - start_s), window.frames, window.size)
        return CutClip(frames, is_whole=spare_s < 0.5 / rate)


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
        whole: of each of them, whether the clip was all of it.
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
        self.whole: list[bool] = []
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
                clip, is_whole = future.result()
            except (DataError, InputError) as error:
                logger.warning("left out: %s", error)
                bad.append(str(error))
                self._check(bad)
                continue
            self.used.append(path)
            self.whole.append(is_whole)
            self.sizes["{2}x{1}".format(*clip.shape)] += 1
            yield clip
        if self._progress:
            self._progress(f"{self._name} clips", len(paths), len(paths))

    def _check(self, bad: Sequence[str]) -> None:
        place, paths = self._files
        if len(bad) > _MAX_BAD_SHARE * len(paths):
            shown = "; ".join(bad[:_SHOWN_REASONS])
            count = f"{len(bad)} of {len(paths)} clips of {place} cannot be used"
            if self._window.frames > 1 and any(path.suffix.lower() == ".png" and path.is_file() for path in paths):
                shown += f" ({_FRAMES_HINT})"
            raise DataError(f"{count}, more than {_MAX_BAD_SHARE:.0%}: {shown}")


def hash_files(paths: Sequence[Path]) -> str:
    """Names a set of files, wherever they are, by their names and samples of their bytes."""
    return _hash("\n".join(f"{path.name} {_key(path)}" for path in paths))[:12]


def _key(path: Path) -> str:
    """Of a file its size and samples of its bytes; of a folder of frames, those of all that is not hidden in it."""
    if not path.is_dir():
        return file_key(path)
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    return _hash("\n".join(f"{file.name} {file_key(file)}" for file in files))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
