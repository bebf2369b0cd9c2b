"""What the emoji model never sees: the rule, the committed list that it makes, and the subset for each training stage.

The rule (`h` is `core.seeding.hash_fraction`; a label is emojibase's English one, without skin tone):

families      Labels that differ only by words of gender or number (man, women, person, boy, ...) or by a mirrored side
              are one family (`family_of`). Of the families with a clip, those with `h("family", name) < 0.08` are held
              out: no clip of theirs is seen in the video stage, and in the image and autoencoder stages only one
              still: of the label with the smallest `h("still", label)` among those with a clip, without skin tone.
pairs         Of the pairs (label, single skin tone) with a clip, those with `h("pair", label, tone) < 0.08` are never
              seen, neither clip nor still. Labels of held-out families do not count.
paraphrases   Every other label with at least two tags loses one: the tag with the smallest `h("tag", family, tag)`
              among those that share no word with a label of the family, are no gender or skin tone word and no label
              themselves; where possible among those carried by at most three families, for "animal" says too little.
              What one label of a family loses, alone, inside a longer tag or in another form ("laugh", "laughing":
              words are one where their first four letters are), none of the family may use.

`python -m latent_shift.data.heldout` makes the list again from `emoji_labels.json`, which lists what the packages hold.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from latent_shift.core.errors import InputError
from latent_shift.core.files import atomic_path, write_json
from latent_shift.core.seeding import hash_fraction

from .records import CaptionedVideo

Stage = Literal["autoencoder", "image", "video"]

NAME = "emoji-v1"
FRACTION = 0.08
_PREFERRED_FAMILIES = 3
_STEM = 4
_EMOJI_KEYS = frozenset(("label", "tone", "family", "hexcode", "kind", "heldout_tag"))
"""Metadata that a record of `emoji` has, wherever it was packed since; other data hold nothing out."""
_LIST = Path(__file__).with_name("emoji_heldout.json")
_LABELS = Path(__file__).with_name("emoji_labels.json")

_GENDER = frozenset(
    ("man", "men", "woman", "women", "person", "people", "male", "female", "boy", "boys", "girl", "girls")
    + ("mr", "mrs", "mx", "and")
)
_TONE_WORDS = frozenset(("light", "medium", "dark", "skin", "tone", "tones"))
_SIDES = {"left": "sideways", "right": "sideways", "leftwards": "sideways", "rightwards": "sideways"}
_SAME = {
    "boy": "child",
    "girl": "child",
    "man": "person",
    "woman": "person",
    "older person": "older person",
    "old man": "older person",
    "old woman": "older person",
    "princess": "prince",
    "person with crown": "prince",
    "mermaid": "merperson",
    "merman": "merperson",
    "santa claus": "claus",  # codespell:ignore claus
    "mrs. claus": "claus",  # codespell:ignore claus
    "mx claus": "claus",  # codespell:ignore claus
}


@dataclass(frozen=True)
class LabelInfo:
    """What the packages hold for one label.

    Attributes:
        label: emojibase's English label.
        hexcode: of the picture without skin tone.
        tags: other words for it.
        clip: whether any of its pictures moves.
        tones: the single skin tones in which it moves.
    """

    label: str
    hexcode: str
    tags: tuple[str, ...]
    clip: bool
    tones: tuple[str, ...]


@dataclass(frozen=True)
class HeldOut:
    """The list that the rule makes.

    Attributes:
        name: of the list; a changed rule gets a new one.
        sha256: of the committed file.
        families: held-out families; for each the hexcode of the one still that may be seen.
        pairs: `(label, skin tone)`, never seen.
        paraphrases: the tag that each label never has in a caption.
    """

    name: str
    sha256: str
    families: Mapping[str, str]
    pairs: frozenset[tuple[str, str]]
    paraphrases: Mapping[str, str]

    @functools.cached_property
    def _lost_stems(self) -> dict[str, list[set[str]]]:
        lost: dict[str, list[set[str]]] = defaultdict(list)
        for label, tag in self.paraphrases.items():
            lost[family_of(label)].append(_stems(tag))
        return dict(lost)

    def allowed_tags(self, label: str, tags: Iterable[str]) -> list[str]:
        """The words for `label` that captions may use: none in which a tag is found that its family lost."""
        lost = self._lost_stems.get(family_of(label), [])
        return [tag for tag in tags if not any(stems <= _stems(tag) for stems in lost)]


def family_of(label: str) -> str:
    """The name that labels share which differ only by words of gender or number, or by a mirrored side."""
    lowered = label.lower()
    if lowered in _SAME:
        return _SAME[lowered]
    words = re.split(r"[\s:,]+", lowered.replace("left-facing", "left").replace("right-facing", "right"))
    if words[-2:] in (["facing", "left"], ["facing", "right"]):
        words = words[:-2]
    kept = [_SIDES.get(word, word) for word in words if word not in _GENDER]
    return " ".join(kept) or lowered


@functools.cache
def load_heldout() -> HeldOut:
    """The committed list."""
    content = _LIST.read_bytes()
    value = json.loads(content)
    return HeldOut(
        name=value["name"],
        sha256=hashlib.sha256(content).hexdigest(),
        families={entry["family"]: entry["still"] for entry in value["families"]},
        pairs=frozenset((label, tone) for label, tone in value["pairs"]),
        paraphrases=value["paraphrases"],
    )


def verify_heldout(manifest: Mapping[str, Any] | None, folder: str | Path) -> None:
    """Refuses data whose held-out list is not the one that this version knows.

    Args:
        manifest: the folder's `dataset.json`; None, or one without `heldout`, is data that holds nothing out.
        folder: the data folder, for the message.

    Raises:
        InputError: the list is another.
    """
    declared = (manifest or {}).get("heldout")
    if declared is None:
        return
    known = load_heldout()
    found = (declared.get("name"), declared.get("sha256")) if isinstance(declared, dict) else (declared, None)
    if found != (known.name, known.sha256):
        expected = f"have the held-out list {known.name} ({known.sha256[:12]}); build it again with this version"
        raise InputError("data", f"{folder}: {found[0]} ({str(found[1])[:12]})", expected)


def stage_records(records: Iterable[CaptionedVideo], stage: Stage | str) -> list[CaptionedVideo]:
    """The records that a training stage may see.

    Args:
        records: of an emoji folder, or of any other, where nothing is held out.
        stage: `autoencoder` and `image` see frames of clips, and one still of each held-out family; `video` sees clips,
            and stills as videos of one frame.

    Raises:
        InputError: there is no such stage.
    """
    return list(filter(stage_filter(stage), records))


def stage_filter(stage: Stage | str) -> Callable[[CaptionedVideo], bool]:
    """Whether a training stage may see a record: the rule of `stage_records`.

    Raises:
        InputError: there is no such stage.
    """
    if stage not in get_args(Stage):
        raise InputError("stage", stage, f"be one of {', '.join(get_args(Stage))}")
    heldout = load_heldout()
    return lambda record: _may_be_seen(record.metadata, stage, heldout)


def _may_be_seen(metadata: Mapping[str, Any], stage: str, heldout: HeldOut) -> bool:
    if not metadata.keys() >= _EMOJI_KEYS:
        return True
    label, tone = metadata["label"], metadata["tone"]
    family = family_of(label)
    if family in heldout.families:
        is_the_still = metadata["kind"] == "still" and metadata["hexcode"] == heldout.families[family]
        return stage != "video" and is_the_still
    return not isinstance(tone, str) or (label, tone) not in heldout.pairs


def make_heldout(labels: Sequence[LabelInfo]) -> dict[str, Any]:
    """The content of the list: the rule of this module, applied."""
    families: dict[str, list[LabelInfo]] = defaultdict(list)
    for info in labels:
        families[family_of(info.label)].append(info)
    moving = {name: [info for info in members if info.clip] for name, members in sorted(families.items())}
    held = {name: members for name, members in moving.items() if members and hash_fraction("family", name) < FRACTION}
    stills = {name: min(members, key=lambda info: hash_fraction("still", info.label)) for name, members in held.items()}
    others = sorted((info for info in labels if family_of(info.label) not in held), key=lambda info: info.label)
    carried, names = _families_of_tags(families), {info.label.lower() for info in labels}
    return {
        "name": NAME,
        "rule": "families: hash_fraction('family', family) < fraction; pairs: hash_fraction('pair', label, tone) < "
        "fraction; paraphrases: smallest hash_fraction('tag', family, tag). In full: data/heldout.py",
        "fraction": FRACTION,
        "families_with_clips": sum(1 for members in moving.values() if members),
        "families": [
            {"family": name, "still": info.hexcode, "label": info.label, "labels": [i.label for i in families[name]]}
            for name, info in stills.items()
        ],
        "pairs": [
            [info.label, tone]
            for info in others
            for tone in info.tones
            if hash_fraction("pair", info.label, tone) < FRACTION
        ],
        "paraphrases": {info.label: tag for info in others if (tag := _paraphrase(info, families, carried, names))},
    }


def _paraphrase(
    info: LabelInfo, families: Mapping[str, Sequence[LabelInfo]], carried: Mapping[str, int], names: set[str]
) -> str | None:
    if len(info.tags) < 2:
        return None
    family = family_of(info.label)
    taken = {word for member in families[family] for word in _words(member.label)} | _GENDER | _TONE_WORDS
    candidates = [tag for tag in info.tags if _words(tag) and not taken & set(_words(tag)) and tag.lower() not in names]
    preferred = [tag for tag in candidates if carried[tag] <= _PREFERRED_FAMILIES]
    return min(preferred or candidates, key=lambda tag: hash_fraction("tag", family, tag), default=None)


def _families_of_tags(families: Mapping[str, Sequence[LabelInfo]]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for members in families.values():
        for tag in {tag for info in members for tag in info.tags}:
            counts[tag] += 1
    return counts


def _stems(text: str) -> set[str]:
    return {word[:_STEM] for word in _words(text)}


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def read_labels(path: Path = _LABELS) -> list[LabelInfo]:
    """The committed list of what the packages hold."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return [LabelInfo(**{**value, "tags": tuple(value["tags"]), "tones": tuple(value["tones"])}) for value in values]


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the committed files again."""
    parser = argparse.ArgumentParser(prog="python -m latent_shift.data.heldout", description="Makes the held-out list.")
    parser.add_argument("--packages", type=Path, help="folder of the npm packages: makes emoji_labels.json again first")
    packages = parser.parse_args(arguments).packages
    if packages is not None:
        from .emoji import list_labels

        with atomic_path(_LABELS) as temporary:
            lines = [json.dumps(vars(info), ensure_ascii=False) for info in list_labels(packages)]
            temporary.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    write_json(_LIST, make_heldout(read_labels()))


if __name__ == "__main__":
    main()
