"""The paper's networks at the paper's size (supplement A, Table 6), and smaller twins of them.

LDM's text-to-image model, from which the paper starts (`CompVis/ldm-text2im-large-256`), has exactly these networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from torch import nn

from latent_shift.core.errors import InputError

from .latent_shift_unet import LatentShiftUNet
from .latent_vdm_unet import LatentVDMUNet
from .video_unet import VideoUNet


@dataclass(frozen=True)
class Preset:
    """The networks of a model, without weights.

    Attributes:
        unet_class: what mixes the frames.
        unet: arguments of the U-Net.
        vae: arguments of diffusers' `AutoencoderKL`.
        text_encoder: arguments of diffusers' `LDMBertConfig`.
        size: height and width in pixels.
        num_frames: frames of a clip.
        guidance_scale: of classifier-free guidance.
        max_tokens: caption length in tokens.
    """

    unet_class: type[VideoUNet]
    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any] = field(default_factory=dict)
    size: int = 256
    num_frames: int = 16
    guidance_scale: float = 7.5
    max_tokens: int = 77

    def build(self, device: torch.device | str = "meta", dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
        """The networks `unet`, `vae` and `text_encoder`, in evaluation mode: LDM's encoder has dropout.

        Args:
            device: on "meta" no memory is allocated; elsewhere the weights are random, by torch's global generator.
            dtype: of the weights.
        """
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                unet = self.unet_class(**self.unet)
                vae = AutoencoderKL(**self.vae)
                text_encoder = LDMBertModel(LDMBertConfig(**self.text_encoder))
        finally:
            torch.set_default_dtype(before)
        return {"unet": unet.eval(), "vae": vae.eval(), "text_encoder": text_encoder.eval()}


_UNET = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,  # diffusers' name for the number of heads of such a network
}
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "sample_size": 256,
    "scaling_factor": 0.18215,
}
_SMALL_UNET = {
    **_UNET,
    "sample_size": 16,
    "block_out_channels": [128, 256, 384, 384],
    "layers_per_block": 1,
    "cross_attention_dim": 512,
}
_SMALL_VAE = {**_VAE, "block_out_channels": [64, 128, 256, 256], "sample_size": 128}
_SMALL_TEXT = {"d_model": 512, "encoder_layers": 8, "encoder_ffn_dim": 2048}
_TINY_UNET = {
    **_UNET,
    "sample_size": 8,
    "block_out_channels": [32, 32, 64, 64],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
}
_TINY_VAE = {**_VAE, "block_out_channels": [32, 32, 32, 32], "layers_per_block": 1, "sample_size": 64}
_TINY_TEXT = {"d_model": 32, "encoder_layers": 2, "encoder_ffn_dim": 64, "encoder_attention_heads": 2, "head_dim": 16}

PRESETS: dict[str, Preset] = {
    "paper": Preset(LatentShiftUNet, _UNET, _VAE),
    "paper-vdm": Preset(LatentVDMUNet, _UNET, _VAE),
    "small": Preset(LatentShiftUNet, _SMALL_UNET, _SMALL_VAE, _SMALL_TEXT, size=128),
    "small-vdm": Preset(LatentVDMUNet, _SMALL_UNET, _SMALL_VAE, _SMALL_TEXT, size=128),
    "tiny": Preset(LatentShiftUNet, _TINY_UNET, _TINY_VAE, _TINY_TEXT, size=64, num_frames=4),
    "tiny-vdm": Preset(LatentVDMUNet, _TINY_UNET, _TINY_VAE, _TINY_TEXT, size=64, num_frames=4),
}
"""By name: the paper's two models; twins with the same blocks, small enough for one CPU, and tiny ones for tests."""


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: a `ValueError`, if there is none.
    """
    if name not in PRESETS:
        raise InputError("preset", name, f"be one of {', '.join(PRESETS)}")
    return PRESETS[name]
