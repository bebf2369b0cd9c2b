"""Covers `latent_shift.media.video` and what importing the room costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from latent_shift.core.errors import InputError
from latent_shift.media.video import check_fps, metadata_from_json, metadata_to_json


def test_metadata_survives_json(metadata: dict[str, str]) -> None:
    for ascii_only in (True, False):
        text = metadata_to_json(metadata, ascii_only=ascii_only)
        assert metadata_from_json(text) == metadata
        assert text.isascii() == ascii_only
        assert "\n" not in text


@pytest.mark.parametrize("text", ["made by hand", "[1, 2]", '{"seed": 7}'])
def test_a_foreign_comment_stays_a_comment(text: str) -> None:
    assert metadata_from_json(text) == {"comment": text}
    assert metadata_from_json("") == {}


@pytest.mark.usefixtures("as_users_run")
def test_metadata_that_no_file_can_hold_is_named() -> None:
    with pytest.raises(InputError, match="metadata must map text to text, got {'seed': 7}"):
        metadata_to_json({"seed": 7})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="map text to text"):
        metadata_to_json({"prompt": "\ud800"})
    with pytest.raises(InputError, match="at most 60000 characters"):
        metadata_to_json({"prompt": "x" * 60_000})


@pytest.mark.parametrize("fps", [0, -1, 1001, float("nan"), float("inf")])
def test_fps_out_of_range(fps: float) -> None:
    with pytest.raises(InputError, match=r"fps must be from 0\.01 to 1000"):
        check_fps(fps)


def test_importing_media_loads_neither_pyav_nor_torch() -> None:
    code = "import sys, latent_shift.media; print([name for name in ('av', 'torch') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
