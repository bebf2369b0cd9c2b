"""Captioned video: sources of every layout, clips of them, the emoji data and what of it is held out. No torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import SourceReport, check_source
    from .clips import Clip, ClipLoader
    from .config import ClipConfig
    from .emoji import EmojiSummary, build_emoji
    from .heldout import HeldOut, Stage, family_of, load_heldout, stage_records, verify_heldout
    from .records import CaptionedVideo, CaptionedVideoFolder, Dropped
    from .sources import Source, open_source, ucf101_sentences

# Resolved when first used, so that `python -m latent_shift.data.heldout` does not import itself twice.
_MODULES = {
    "CaptionedVideo": "records",
    "CaptionedVideoFolder": "records",
    "Clip": "clips",
    "ClipConfig": "config",
    "ClipLoader": "clips",
    "Dropped": "records",
    "EmojiSummary": "emoji",
    "HeldOut": "heldout",
    "Source": "sources",
    "SourceReport": "check",
    "Stage": "heldout",
    "build_emoji": "emoji",
    "check_source": "check",
    "family_of": "heldout",
    "load_heldout": "heldout",
    "open_source": "sources",
    "stage_records": "heldout",
    "ucf101_sentences": "sources",
    "verify_heldout": "heldout",
}

__all__ = [
    "CaptionedVideo",
    "CaptionedVideoFolder",
    "Clip",
    "ClipConfig",
    "ClipLoader",
    "Dropped",
    "EmojiSummary",
    "HeldOut",
    "Source",
    "SourceReport",
    "Stage",
    "build_emoji",
    "check_source",
    "family_of",
    "load_heldout",
    "open_source",
    "stage_records",
    "ucf101_sentences",
    "verify_heldout",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
