"""Who is asked for, by rule and never by eye. `h` is `core.seeding.hash_fraction`.

training      100 labels with a clip that the video stage may see, spread over the groups: within its group a label's
              place is its rank by `h("evaluate", label)` over the group's size, and the lowest 100 places are taken.
heldout       One label of each held-out family: the one whose still the image stage may see.
pairs         Each held-out pair of label and skin tone.
paraphrase    The 100 labels again, each asked for by the tag that no caption has (labels without such a tag are not).
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from latent_shift.core.errors import InputError
from latent_shift.core.seeding import derive_seed, hash_fraction
from latent_shift.data.heldout import load_heldout, stage_records, verify_heldout
from latent_shift.data.records import CaptionedVideo, CaptionedVideoFolder

from .samples import SampleRequest

SETS = ("training", "heldout", "pairs", "paraphrase")


@dataclass(frozen=True)
class Subject:
    """One clip that is asked for.

    Attributes:
        prompt: the sentence.
        label: what it should show.
        tone: its skin tone; None where none is asked for.
        record: index of the real clip in the data folder.
        seed: of its noise.
    """

    prompt: str
    label: str
    tone: str | None
    record: int
    seed: int

    @property
    def file_name(self) -> str:
        """Of the clip."""
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.label} {self.tone or ''}".lower()).strip("-")
        return f"{words}-{hashlib.sha256(repr(self).encode()).hexdigest()[:8]}.webp"

    def request(self, name: str) -> SampleRequest:
        """Its clip, as one of the set `name`."""
        return SampleRequest(f"{name}/{self.file_name}", self.prompt, self.seed)


def open_emoji(data: str | Path) -> CaptionedVideoFolder:
    """The folder that `latent-shift data emoji` made.

    Raises:
        InputError: it is another folder, or holds out other emoji than this version.
    """
    folder = CaptionedVideoFolder(data)
    verify_heldout(folder.manifest, folder.path)
    if not folder.manifest.get("heldout"):
        raise InputError("data", str(data), "be a folder made by `latent-shift data emoji`")
    return folder


def emoji_subjects(folder: CaptionedVideoFolder, labels: int = 100, seed: int = 0) -> dict[str, list[Subject]]:
    """Who is asked for, set by set; see the module.

    Args:
        folder: what `latent-shift data emoji` made.
        labels: how many training labels.
        seed: the seeds of all clips follow from it.
    """
    heldout = load_heldout()
    clips = [record for record in folder if record.metadata["kind"] == "clip"]
    plain = {record.metadata["label"]: record for record in clips if not record.metadata["tone"]}

    def subject(name: str, record: CaptionedVideo, prompt: str) -> Subject:
        label, tone = record.metadata["label"], record.metadata["tone"]
        return Subject(prompt, label, tone, record.index, derive_seed(seed, "evaluate", name, prompt))

    groups: dict[str, list[CaptionedVideo]] = defaultdict(list)
    for record in stage_records(plain.values(), "video"):
        groups[record.metadata["group"]].append(record)
    places = []
    for members in groups.values():
        members.sort(key=lambda record: hash_fraction("evaluate", record.metadata["label"]))
        places += [((rank + 0.5) / len(members), record.index) for rank, record in enumerate(members)]
    chosen = [folder[index] for _, index in sorted(places)[:labels]]
    stills = set(heldout.families.values())
    return {
        "training": [subject("training", record, record.caption) for record in chosen],
        "heldout": [
            subject("heldout", record, record.caption)
            for record in plain.values()
            if record.metadata["family"] in heldout.families and record.metadata["hexcode"] in stills
        ],
        "pairs": [
            subject("pairs", record, record.caption)
            for record in clips
            if isinstance(record.metadata["tone"], str)
            and (record.metadata["label"], record.metadata["tone"]) in heldout.pairs
        ],
        "paraphrase": [
            subject("paraphrase", record, record.metadata["heldout_tag"])
            for record in chosen
            if record.metadata["heldout_tag"]
        ],
    }
