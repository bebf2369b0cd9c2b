from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from latent_shift.core.errors import InputError
from latent_shift.data import (
    CaptionedVideo,
    CaptionedVideoFolder,
    EmojiSummary,
    family_of,
    heldout,
    load_heldout,
    stage_records,
    verify_heldout,
)
from latent_shift.data._emojibase import Emoji, count_labels, make_captions
from latent_shift.data.heldout import make_heldout, read_labels

from .conftest import HELD_FAMILY, STILL_ONLY, held_pair

STAGES = ("autoencoder", "image", "video")


def everything() -> list[CaptionedVideo]:
    """A still of each label and tone of the packages, and a clip where it moves."""
    records = []
    for info in read_labels():
        for tone in (None, *info.tones):
            for kind in ("still", "clip") if info.clip else ("still",):
                code = info.hexcode + (f"-{tone}" if tone else "")
                tag, family = load_heldout().paraphrases.get(info.label), family_of(info.label)
                facts = {"label": info.label, "tone": tone, "hexcode": code, "kind": kind}
                facts |= {"family": family, "heldout_tag": tag}
                records.append(CaptionedVideo(Path("x.webp"), "x", ("x",), facts))
    return records


def test_the_committed_list_is_what_the_rule_makes() -> None:
    assert json.loads(heldout._LIST.read_text(encoding="utf-8")) == make_heldout(read_labels())


def test_about_eight_percent_are_held_out() -> None:
    labels = read_labels()
    families = {family_of(info.label) for info in labels if info.clip}
    assert 0.05 < len(load_heldout().families) / len(families) < 0.11
    assert 0.06 < len(load_heldout().pairs) / sum(len(info.tones) for info in labels) < 0.1


@pytest.mark.parametrize(
    "labels",
    [
        ("person running", "man running", "woman running", "woman running facing right"),
        ("artist", "man artist", "woman artist"),
        ("man: red hair", "woman: red hair"),
        ("kiss", "kiss: woman, man"),
        ("family", "family: man, man, girl, boy"),
        ("people holding hands", "woman and man holding hands"),
        ("old man", "old woman", "older person"),
        ("left-facing fist", "right-facing fist"),
        ("backhand index pointing left", "backhand index pointing right"),
        ("mermaid", "merman", "merperson"),
        ("Santa Claus", "Mrs. Claus", "Mx Claus"),  # codespell:ignore claus
        ("boy", "girl", "child"),
        ("man", "woman", "person"),
    ],
)
def test_gender_words_and_mirrored_sides_make_no_new_family(labels: tuple[str, ...]) -> None:
    assert len({family_of(label) for label in labels}) == 1


def test_other_words_do() -> None:
    labels = ["backhand index pointing up", "backhand index pointing down", "beetle", "lady beetle", "child", "person"]
    assert len({family_of(label) for label in [*labels, "older person", "person running", "person walking"]}) == 9


def test_no_clip_of_a_held_out_family_is_in_the_video_stage() -> None:
    held = load_heldout().families
    assert all(family_of(record.metadata["label"]) not in held for record in stage_records(everything(), "video"))


@pytest.mark.parametrize("stage", ["autoencoder", "image"])
def test_one_still_of_a_held_out_family_is_in_the_image_stages(stage: heldout.Stage) -> None:
    held = load_heldout().families
    seen = [r.metadata for r in stage_records(everything(), stage) if family_of(r.metadata["label"]) in held]
    assert Counter(family_of(facts["label"]) for facts in seen) == dict.fromkeys(held, 1)
    assert {facts["kind"] for facts in seen} == {"still"}


@pytest.mark.parametrize("stage", STAGES)
def test_no_held_out_pair_is_in_any_stage(stage: heldout.Stage) -> None:
    seen = {(record.metadata["label"], record.metadata["tone"]) for record in stage_records(everything(), stage)}
    assert load_heldout().pairs
    assert not seen & load_heldout().pairs
    assert len(seen) > 2500


def test_no_paraphrase_is_in_a_caption_of_its_family() -> None:
    lost: dict[str, set[str]] = {}
    for label, tag in load_heldout().paraphrases.items():
        lost.setdefault(family_of(label), set()).add(tag.lower())
    labels = read_labels()
    emoji = []
    for info in labels:
        tags = lost.get(family_of(info.label), ())
        forms = [f"{tag} here" for tag in tags] + [f"{tag}ing" for tag in tags if re.fullmatch(r"\w{4,}", tag)]
        emoji.append(Emoji(info.hexcode, info.label, (), (*info.tags, *forms), "", ""))
    counts = count_labels(emoji)
    for item in emoji:
        captions = make_captions(item, load_heldout().allowed_tags(item.label, item.tags), counts)
        assert 1 <= len(captions) <= 8
        words = [part for caption in captions for part in caption.split(", ") if part != captions[0]]
        for tag in lost.get(family_of(item.label), ()):
            pattern = rf"(?<!\w){re.escape(tag)}(?!\w)"
            assert not any(re.search(pattern, caption.lower()) for caption in captions), (item.label, tag)
            assert len(tag) < 4 or f"{tag}ing" not in words, item.label


def test_a_built_folder_follows_the_list(built: EmojiSummary) -> None:
    folder = CaptionedVideoFolder(built.path)
    verify_heldout(folder.manifest, folder.path)
    pair = held_pair()
    for stage in STAGES:
        seen = [record.metadata for record in stage_records(folder, stage)]
        held = [facts["kind"] for facts in seen if facts["label"] == HELD_FAMILY]
        assert held == ([] if stage == "video" else ["still"])
        assert pair not in {(facts["label"], facts["tone"]) for facts in seen}
        assert STILL_ONLY in {facts["label"] for facts in seen}
    for record in folder:
        tag = record.metadata["heldout_tag"]
        assert tag == load_heldout().paraphrases.get(record.metadata["label"])
        assert tag is None or tag not in record.metadata["tags"]


def test_data_of_other_sources_hold_nothing_out() -> None:
    for facts in ({}, {"hexcode": "1F98D"}, {"hexcode": "1F98D", "label": HELD_FAMILY, "kind": "clip", "tone": None}):
        record = CaptionedVideo(Path("x.mp4"), HELD_FAMILY, (HELD_FAMILY,), facts)
        assert stage_records([record], "video") == [record]
    verify_heldout({}, "somewhere")
    verify_heldout(None, "somewhere")


@pytest.mark.parametrize("declared", [{"name": "emoji-v1", "sha256": "0" * 64}, {"name": "other"}, "other"])
def test_an_unknown_list_is_refused(declared: object) -> None:
    with pytest.raises(InputError, match=r"data must have the held-out list emoji-v1.*got 'somewhere: (emoji|other)"):
        verify_heldout({"heldout": declared}, "somewhere")


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(InputError, match="stage must be one of autoencoder, image, video, got 'sound'"):
        stage_records([], "sound")
