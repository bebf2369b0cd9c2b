"""One trainer, three stages: autoencoder, image, video (the paper's road, Sec. 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import Recipe

if TYPE_CHECKING:
    from .run import train

__all__ = ["Recipe", "train"]


def __getattr__(name: str) -> Any:
    """Loads torch when training starts, and not to read a recipe."""
    if name == "train":
        from .run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
