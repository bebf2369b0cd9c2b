"""The networks: the shifted U-Net, the paper's baseline, the small autoencoder of the default model."""

from .autoencoder import PatchAutoencoderKL
from .latent_shift_unet import LatentShiftUNet
from .latent_vdm_unet import LatentVDMUNet, TemporalAttention
from .resnet import ShiftResnetBlock2D
from .video_unet import VideoUNet

__all__ = [
    "LatentShiftUNet",
    "LatentVDMUNet",
    "PatchAutoencoderKL",
    "ShiftResnetBlock2D",
    "TemporalAttention",
    "VideoUNet",
]
