"""Tiny packages in the layout of the real ones: real labels and code points, made-up pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latent_shift.data import EmojiSummary, build_emoji, emoji, load_heldout
from latent_shift.data._emoji_source import CLIPS, LABELS, PACKAGES, STILLS
from latent_shift.data.heldout import LabelInfo, family_of, read_labels

SIZE = 16
SKINS = {
    "light": ("1F3FB", 250),
    "medium-light": ("1F3FC", 200),
    "medium": ("1F3FD", 150),
    "medium-dark": ("1F3FE", 100),
    "dark": ("1F3FF", 50),
}
HELD_FAMILY = "gorilla"
STILL_ONLY = "four leaf clover"


def picture(shade: int, num_frames: int = 1) -> bytes:
    """A grey square on transparent ground, its green channel counting the frames: a WebP file."""
    frames = np.zeros((num_frames, SIZE, SIZE, 4), np.uint8)
    frames[:, 4:12, 4:12] = (shade, shade, shade, 255)
    frames[:, 4:12, 4:12, 1] = np.arange(num_frames)[:, None, None] * 3 if num_frames > 1 else shade
    frames[:, 4, 4, 3] = 128  # without it the encoder crops to the opaque square and forgets that there is alpha
    images = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    if num_frames == 1:
        images[0].save(file, "WEBP", lossless=True, exact=True)
    else:
        images[0].save(file, "WEBP", lossless=True, save_all=True, append_images=images[1:], duration=42, loop=0)
    return file.getvalue()


def toned(hexcode: str, skin: str) -> str:
    first, *rest = hexcode.replace("-FE0F", "").split("-")
    return "-".join([first, skin, *rest])


def held_pair() -> tuple[str, str]:
    """A held-out pair whose label has a code point alone, so that its tones are easy to write."""
    hexcodes = {info.label: info.hexcode for info in read_labels()}
    return min(pair for pair in load_heldout().pairs if "-" not in hexcodes[pair[0]])


def write_packages(folder: Path) -> Path:
    """Six unpacked packages: a clip in a held-out family, one with skin tones (a held-out pair), 72 frames, a still."""
    labels = {info.label: info for info in read_labels()}
    chosen = [labels[name] for name in (HELD_FAMILY, held_pair()[0], "waving hand", "sneezing face", STILL_ONLY)]
    assert family_of(chosen[0].label) in load_heldout().families
    for package in PACKAGES:
        root = folder / package.stem / "package"
        (root / "assets").mkdir(parents=True)
        (root / "package.json").write_text(json.dumps({"name": package.name, "version": package.version}))
    emojibase = folder / LABELS.stem / "package"
    (emojibase / "en").mkdir()
    (emojibase / "meta").mkdir()
    (emojibase / "en" / "data.json").write_text(json.dumps([_entry(info) for info in chosen]))
    (emojibase / "meta" / "groups.json").write_text(json.dumps({"groups": {"1": "some"}, "subgroups": {"2": "thing"}}))
    for info in chosen:
        _write_pictures(folder, info)
    return folder


def asset(folder: Path, package_index: int, name: str) -> Path:
    """A picture of the still package (0) or of an animated one (1 to 4)."""
    return folder / (STILLS, *CLIPS)[package_index].stem / "package" / "assets" / f"{name.lower()}.webp"


def _entry(info: LabelInfo) -> dict[str, object]:
    entry: dict[str, object] = {"label": info.label, "hexcode": info.hexcode, "tags": info.tags}
    entry |= {"group": 1, "subgroup": 2}
    if info.tones:
        skins = [(toned(info.hexcode, skin), number) for number, (skin, _) in enumerate(SKINS.values(), start=1)]
        entry["skins"] = [{"label": "...", "hexcode": hexcode, "tone": tone} for hexcode, tone in skins]
    return entry


def _write_pictures(folder: Path, info: LabelInfo) -> None:
    frames = {"sneezing face": 72, STILL_ONLY: 1}.get(info.label, 6)
    shades = {info.hexcode: 220}
    if info.tones:
        shades |= {toned(info.hexcode, skin): shade for skin, shade in SKINS.values()}
    for hexcode, shade in shades.items():
        asset(folder, 0, hexcode).write_bytes(picture(shade))
        asset(folder, 1 + info.clip * (len(hexcode) % 4), hexcode).write_bytes(picture(shade, frames))


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    return write_packages(tmp_path / "packages")


@pytest.fixture
def build(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], EmojiSummary]:
    monkeypatch.setattr(emoji, "SIZE", 32)
    return lambda: build_emoji(tmp_path / "emoji", packages=packages, workers=1)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> EmojiSummary:
    """A finished folder; tests only read it."""
    root = tmp_path_factory.mktemp("emoji")
    return build_emoji(root / "data", packages=write_packages(root / "packages"), workers=1)
