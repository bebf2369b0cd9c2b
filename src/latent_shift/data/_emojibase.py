"""What emojibase says about an emoji, and the captions made of it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latent_shift.core.errors import DataError
from latent_shift.core.seeding import hash_fraction

from .npm import PackageSource

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
"""The skin tones, as emojibase counts them from 1. The default yellow is no tone."""

_WITHOUT_MEANING = {"fe0f", "e007f"}
_MAX_TAGS = 3
_MAX_LONE_TAGS = 4
_LONE_TAG_LABELS = 3


@dataclass(frozen=True)
class Emoji:
    """One emoji, one skin tone.

    Attributes:
        hexcode: code points, as emojibase writes them.
        label: what it shows, without skin tone.
        tones: empty, one, or one for each of two people.
        tags: other words for it, shared by all skin tones.
        group: for example `animals-nature`.
        subgroup: for example `animal-bird`.
    """

    hexcode: str
    label: str
    tones: tuple[str, ...]
    tags: tuple[str, ...]
    group: str
    subgroup: str


def emoji_key(code: str) -> str:
    """Code points in the form by which files and emojibase match: lower case, no variation selectors, no zeros ahead.

    Raises:
        DataError: it is no sequence of hexadecimal code points.
    """
    try:
        points = [format(int(point, 16), "x") for point in code.replace("_", "-").split("-")]
    except ValueError as error:
        raise DataError(f"the name {code!r} is no sequence of code points") from error
    return "-".join(point for point in points if point not in _WITHOUT_MEANING)


def read_emojibase(source: PackageSource) -> dict[str, Emoji]:
    """All emoji of the package, English, by `emoji_key`."""
    groups = json.loads(source.read("meta/groups.json"))
    emoji: dict[str, Emoji] = {}
    for entry in json.loads(source.read("en/data.json")):
        for variant in [entry, *entry.get("skins", [])]:
            emoji[emoji_key(variant["hexcode"])] = Emoji(
                hexcode=variant["hexcode"],
                label=entry["label"],
                tones=_tone_names(variant.get("tone")),
                tags=tuple(dict.fromkeys(entry.get("tags", ()))),
                group=groups["groups"].get(str(entry.get("group")), ""),
                subgroup=groups["subgroups"].get(str(entry.get("subgroup")), ""),
            )
    return emoji


def _tone_names(tone: Any) -> tuple[str, ...]:
    numbers = [] if tone is None else tone if isinstance(tone, list) else [tone]
    return tuple(TONES[number - 1] for number in numbers)


def natural_label(label: str) -> str:
    """The label as somebody would say it: "man: red hair" is "man with red hair", "flag: Peru" is "flag of Peru"."""
    head, separator, rest = label.partition(": ")
    if not separator:
        return label
    parts = rest.split(", ")
    if head == "flag":
        return f"flag of {rest}"
    if head == "keycap":
        return f"keycap {rest}"
    if rest == "bald":
        return f"bald {head}"
    if head in ("man", "woman", "person"):
        return f"{head} with {rest}"
    return f"{head}, " + (" and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else rest)


def tone_phrase(tones: Sequence[str]) -> str:
    """How the tones are said: "medium skin tone", "light and dark skin tones", or nothing."""
    if not tones:
        return ""
    if len(set(tones)) == 1:
        return f"{tones[0]} skin tone"
    return f"{' and '.join(tones)} skin tones"


def count_labels(emoji: Iterable[Emoji]) -> dict[str, int]:
    """How many labels carry each tag."""
    labels: dict[str, set[str]] = defaultdict(set)
    for item in emoji:
        for tag in item.tags:
            labels[tag].add(item.label)
    return {tag: len(names) for tag, names in labels.items()}


def make_captions(emoji: Emoji, tags: Sequence[str], labels_of_tag: Mapping[str, int]) -> list[str]:
    """Up to eight captions: the label; the label with one, two, three tags; at most four tags without the label.

    Tags made of the label's own words say nothing new and are not used. The order of tags is drawn by hash for each
    emoji and form, so that the skin tones of a label differ. Only a tag of at most three labels stands alone: "animal"
    says too little.

    Args:
        emoji: what the picture shows.
        tags: the tags that captions may use.
        labels_of_tag: how many labels carry each tag.

    Returns:
        Different captions, the label (with its skin tone) first.
    """
    tone = tone_phrase(emoji.tones)
    label = ", ".join(part for part in (natural_label(emoji.label), tone) if part)
    known = set(_words(emoji.label))
    new = [tag for tag in tags if not set(_words(tag)) <= known]
    captions = [label]
    for count in range(1, min(_MAX_TAGS, len(new)) + 1):
        by_hash = sorted((hash_fraction("caption", emoji.hexcode, count, tag), tag) for tag in new)
        captions.append(", ".join([label, *(tag for _, tag in by_hash[:count])]))
    alone = [tag for tag in new if labels_of_tag.get(tag, 0) <= _LONE_TAG_LABELS and re.search(r"\w{3}", tag)]
    alone.sort(key=lambda tag: hash_fraction("alone", emoji.hexcode, tag))
    captions += [", ".join(part for part in (tag, tone) if part) for tag in alone[:_MAX_LONE_TAGS]]
    return list(dict.fromkeys(captions))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
