"""One trainer, three stages: autoencoder, image, video (the paper's road, Sec. 3)."""

from .config import Recipe
from .run import train

__all__ = ["Recipe", "train"]
