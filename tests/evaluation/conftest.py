"""Squares that pass for emoji: real labels, families and tones, so that the held-out list means something."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_shift.core.files import write_json
from latent_shift.data.heldout import family_of, load_heldout, read_labels
from latent_shift.data.records import write_records
from latent_shift.media import write_video

SIZE, NUM_FRAMES = 16, 4
SEEN = {"rocket": "travel-places", "waving hand": "people-body", "frog": "animals-nature", "red heart": "smileys"}


@dataclasses.dataclass(frozen=True)
class Emoji:
    label: str
    tone: str | None
    group: str
    color: tuple[int, int, int]


def write_emoji(folder: Path, hidden: int = 1) -> Path:
    """Four labels that training sees, `hidden` of held-out families, and as many held-out pairs.

    Beside each pair is the same label untoned.
    """
    heldout = load_heldout()
    labels = {info.label: info for info in read_labels()}
    families = [info.label for info in labels.values() if info.hexcode in heldout.families.values()]
    pairs = sorted({label: (label, tone) for label, tone in sorted(heldout.pairs, reverse=True)}.values())
    chosen = [Emoji(label, None, group, (40 * n, 200 - 30 * n, 90)) for n, (label, group) in enumerate(SEEN.items())]
    chosen += [Emoji(label, None, "animals-nature", (10, 10, 200)) for label in families[:hidden]]
    for pair in pairs[:hidden]:
        chosen += [Emoji(pair[0], None, "people-body", (230, 200, 0)), Emoji(*pair, "people-body", (120, 70, 20))]
    records: list[dict[str, Any]] = []
    for number, emoji in enumerate(chosen):
        frames = np.full((NUM_FRAMES, SIZE, SIZE, 3), 255, np.uint8)
        for index in range(NUM_FRAMES):
            frames[index, 2 + number : 9 + number, 1 + 2 * index : 8 + 2 * index] = emoji.color
        write_video(folder / f"clips/{number}.webp", frames, fps=8.0, lossless=True)
        facts = {
            "label": emoji.label,
            "tone": emoji.tone,
            "family": family_of(emoji.label),
            "group": emoji.group,
            "hexcode": labels[emoji.label].hexcode,
            "heldout_tag": heldout.paraphrases.get(emoji.label),
            "kind": "clip",
            "num_frames": NUM_FRAMES,
        }
        caption = f"{emoji.label}, {emoji.tone} skin tone" if emoji.tone else emoji.label
        records.append(
            {"file_name": f"clips/{number}.webp", "caption": caption, "captions": [caption], "metadata": facts}
        )
    write_records(folder, records)
    write_json(folder / "dataset.json", {"heldout": {"name": heldout.name, "sha256": heldout.sha256}})
    return folder


@pytest.fixture(scope="session")
def emoji_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_emoji(tmp_path_factory.mktemp("emoji") / "data")
