"""The networks: the shifted U-Net, the small autoencoder of the default model, presets."""

from .autoencoder import PatchAutoencoderKL
from .unet import LatentShiftUNet, ShiftResnetBlock2D

__all__ = ["LatentShiftUNet", "PatchAutoencoderKL", "ShiftResnetBlock2D"]
