"""Captioned video on disk: the project's folder format, the emoji data and what of it is held out. Imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .emoji import EmojiSummary, build_emoji
    from .heldout import HeldOut, Stage, family_of, load_heldout, stage_records, verify_heldout
    from .records import CaptionedVideo, CaptionedVideoFolder

# Resolved when first used, so that `python -m latent_shift.data.heldout` does not import itself twice.
_MODULES = {
    "CaptionedVideo": "records",
    "CaptionedVideoFolder": "records",
    "EmojiSummary": "emoji",
    "HeldOut": "heldout",
    "Stage": "heldout",
    "build_emoji": "emoji",
    "family_of": "heldout",
    "load_heldout": "heldout",
    "stage_records": "heldout",
    "verify_heldout": "heldout",
}

__all__ = [
    "CaptionedVideo",
    "CaptionedVideoFolder",
    "EmojiSummary",
    "HeldOut",
    "Stage",
    "build_emoji",
    "family_of",
    "load_heldout",
    "stage_records",
    "verify_heldout",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
