"""What is cut out of a video. Apart from the code that does it: recipes are read without any codec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from latent_shift.core.config import Config


class ClipConfig(Config):
    """What is cut out of a video. The defaults are the paper's: 16 frames of 2 s (8 a second), 256 x 256."""

    num_frames: Annotated[int, Field(ge=1)] = 16
    """Frames of a clip, evenly spaced. Of 1, any moment of the video is drawn."""
    duration_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["whole"] = 2.0
    """Length of the window, seconds; or the whole video, whatever its length."""
    size: Annotated[int, Field(ge=1, le=16_383)] = 256
    """Height and width in pixels, at most those of a WebP file: the picture is scaled to fill the square, and what
    sticks out is cropped evenly."""
    short: Literal["drop", "whole"] = "drop"
    """A video shorter than the window is bad, or gives the frames of its whole length, which then seem faster."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the videos tried (counted as at least 100, or all there are) that may be bad; then the run stops."""
