"""What the emoji packages hold: which file shows which emoji, and which of them move."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from latent_shift.core.errors import DataError

from ._emoji_pictures import UnreadablePictureError, count_frames, mean_luminance
from ._emojibase import TONES, Emoji, emoji_key, read_emojibase
from .npm import NpmPackage, PackageSource
from .records import Dropped

LABELS = NpmPackage(
    "emojibase-data",
    "17.0.0",
    "MIT",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
STILLS = NpmPackage(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "MIT",
    "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
)
CLIPS = tuple(
    NpmPackage(f"@lobehub/fluent-emoji-anim-{number}", "1.0.0", "MIT", f"sha512-{integrity}")
    for number, integrity in (
        (1, "/4m31vAuZEQ4aUJ5pxcOU5PVkuJya55GRxUZL7+zgLlxZXpzzE8jPqpDyhZICE3n47nS/Y9M5/vLdizi8201QA=="),
        (2, "S6yzf0RZXrQbXdxCWuHA9BAoLdBRk2flX+ne4TPGEH/qApwisCAKHoAAGjKSlTY3OVeZ9b7t/NEbmpjawnQYJA=="),
        (3, "UzRSUDMjdfdt9vER5bhjHkPqgc3EEgfGtYs6ndvizOTvQOxYQ57ow2RTkWSDZxwW30X4EYBi2eWTS7CXDDoFsg=="),
        (4, "IIkl5ztSd1HrzvIDt/uGsFoC1WODXRdYq5uROrnkyqi9DbToEcJ1nlY86PnoUXeFS9nBCnHfiYk3ouSEGThFmA=="),
    )
)
PACKAGES = (LABELS, STILLS, *CLIPS)

_SWAPPED = ("medium-light", "medium")
# The still pictures of the deaf man and the deaf woman carry each other's name.
_DEAF, _SIGNS = "1f9cf", {"2640": "2642", "2642": "2640"}


@dataclass(frozen=True)
class EmojiPicture:
    """A file of a package, and the emoji that it shows.

    Attributes:
        emoji: what it shows.
        kind: `clip` or `still`.
        package: where it is from.
        file: its path in the package.
        content: its bytes.
        source_frames: frames in the file.
    """

    emoji: Emoji
    kind: str
    package: NpmPackage
    file: str
    content: bytes
    source_frames: int

    @property
    def source(self) -> str:
        """Package, version and file."""
        return f"{self.package.spec}/{self.file}"


class EmojiSource:
    """The pinned packages, read together."""

    def __init__(self, packages: Mapping[NpmPackage, PackageSource]) -> None:
        """Args: packages: where each of `PACKAGES` is."""
        self._packages = packages
        self.emoji = read_emojibase(packages[LABELS])
        self.dropped: list[Dropped] = []
        self.mended_tones = 0
        self._stills = dict(packages[STILLS].files(".webp"))

    def __len__(self) -> int:
        """Files to look at, stills and animated ones."""
        return 2 * len(self._stills)

    def pictures(self) -> Iterator[EmojiPicture | None]:
        """Stills, then clips; None for a file that gives no picture: it is in `dropped`, or a still met before.

        The animated packages hold each still image again, pixel for pixel; those copies are passed over.
        """
        self.dropped.clear()
        yield from self._known(STILLS, self._mended_stills(), "still")
        names, met = {_name(path) for path in self._stills}, set()
        for package in CLIPS:

            def files(package: NpmPackage = package) -> Iterator[tuple[str, bytes, str]]:
                for path, content in self._packages[package].files(".webp"):
                    met.add(_name(path))
                    yield path, content, _name(path)

            yield from self._known(package, files(), "clip")
        for name in sorted(names ^ met):
            lacking = "the animated packages" if name in names else STILLS.spec
            self.dropped.append(Dropped(name, f"missing from {lacking}"))

    def _known(
        self, package: NpmPackage, files: Iterable[tuple[str, bytes, str]], kind: str
    ) -> Iterator[EmojiPicture | None]:
        met: dict[str, str] = {}
        for path, content, code in files:
            try:
                source_frames = count_frames(content, path)
                emoji = self.emoji.get(emoji_key(code))
                if kind == "clip" and source_frames == 1:
                    yield None
                    continue
                if emoji is None:
                    raise DataError(f"emojibase has no label for {code}")
                twin = met.setdefault(emoji.hexcode, path)
                if twin != path:
                    raise DataError(f"the same emoji as {twin}")
            except (UnreadablePictureError, DataError) as error:
                self.dropped.append(Dropped(f"{package.spec}/{path}", str(error)))
                yield None
                continue
            yield EmojiPicture(emoji, kind, package, path, content, source_frames)

    def _mended_stills(self) -> Iterator[tuple[str, bytes, str]]:
        """The stills, each under the code of what it shows.

        In most labels of the package the pictures of the second and the third skin tone carry each other's name (the
        animated packages are right), so the brighter of the two is taken for the lighter skin. Where even then the
        dark tones are brighter than the light ones, the order is unknown and no toned still of the label is used.
        """
        by_label: dict[str, dict[str, str]] = defaultdict(dict)
        for path in sorted(self._stills):
            emoji = self._emoji_of(path)
            if emoji is not None and len(emoji.tones) == 1:
                by_label[emoji.label].setdefault(emoji.tones[0], path)
        moved: dict[str, str] = {}
        unknown: set[str] = set()
        for paths in by_label.values():
            light = self._luminances(paths)
            first, second = (light.get(tone) for tone in _SWAPPED)
            if first is not None and second is not None and second > first:
                one, other = (paths[tone] for tone in _SWAPPED)
                moved |= {one: _shown(other), other: _shown(one)}
                self.mended_tones += 2
            brighter = [light[tone] for tone in TONES[1:3] if tone in light]
            darker = [light[tone] for tone in TONES[3:] if tone in light]
            if brighter and darker and max(darker) > min(brighter):
                unknown.update(paths.values())
        for path in sorted(self._stills):
            if path in unknown:
                reason = "its skin tone cannot be told: the dark ones of its label are brighter than the light ones"
                self.dropped.append(Dropped(f"{STILLS.spec}/{path}", reason))
                continue
            yield path, self._stills[path], moved.get(path, _shown(path))

    def _emoji_of(self, path: str) -> Emoji | None:
        try:
            return self.emoji.get(emoji_key(_shown(path)))
        except DataError:
            return None

    def _luminances(self, paths: Mapping[str, str]) -> dict[str, float]:
        """Brightness by tone; a picture that cannot be read is left out, and reported when it is its turn."""
        result = {}
        for tone, path in paths.items():
            try:
                result[tone] = mean_luminance(self._stills[path], path)
            except UnreadablePictureError:
                continue
        return result


def _name(path: str) -> str:
    return PurePosixPath(path).stem


def _shown(path: str) -> str:
    """The code of what a still shows, skin tones apart."""
    points = _name(path).split("-")
    return "-".join(_SIGNS.get(point, point) for point in points) if points[0] == _DEAF else "-".join(points)
