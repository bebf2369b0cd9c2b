"""Latent-VDM, the paper's baseline (Sec. 4.2, Table 6): temporal attention in the latent space instead of the shift.

After each spatial transformer of the U-Net every pixel attends over its frames, as in Video Diffusion Models
(arXiv:2204.03458), with relative positions (Sec. 4.4), here T5's buckets (arXiv:1910.10683, Sec. 2.1), so that any
number of frames can be asked for. The output layer starts from zero: before training it is the image model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from latent_shift.core.errors import InputError
from latent_shift.ops import Boundary

from .video_unet import VideoUNet

_MAX_BATCH_TIMES_HEADS = 65_535
"""CUDA's attention kernels fail beyond."""


class TemporalAttention(nn.Module):
    """LayerNorm, self-attention over the frames of each pixel, and a residual connection.

    Args:
        channels: width, inside and outside.
        heads: attention heads.
        num_buckets: relative positions that are told apart, half of them for each direction.
        max_distance: frames further apart share the last bucket.
    """

    def __init__(self, channels: int, heads: int = 8, num_buckets: int = 32, max_distance: int = 32) -> None:
        super().__init__()
        self.heads, self.num_buckets, self.max_distance = heads, num_buckets, max_distance
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        self.relative_attention_bias = nn.Embedding(num_buckets, heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all weights anew; the output layer starts from zero, so that the layer changes nothing."""
        for layer in (self.norm, self.to_q, self.to_k, self.to_v, self.relative_attention_bias):
            layer.reset_parameters()
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(
        self, x: Float[Tensor, "batch_frames channels height width"], num_frames: int, boundary: Boundary = "zero"
    ) -> Float[Tensor, "batch_frames channels height width"]:
        """Mixes the frames of each clip.

        Args:
            x: features of `batch * num_frames` pictures, frames fastest.
            num_frames: frames in each clip.
            boundary: `"zero"`: distances along the clip; `"circular"`: around the loop.
        """
        batch, (_, channels, height, width) = x.shape[0] // num_frames, x.shape
        pixels = x.view(batch, num_frames, channels, height, width).permute(0, 3, 4, 1, 2)
        pixels = pixels.reshape(-1, num_frames, channels)
        bias = self._bias(num_frames, boundary, x.device)
        rows = max(1, _MAX_BATCH_TIMES_HEADS // self.heads)
        mixed = torch.cat([self._attend(part, bias) for part in torch.split(pixels, rows)])
        mixed = mixed.view(batch, height, width, num_frames, channels).permute(0, 3, 4, 1, 2)
        return x + mixed.reshape(x.shape)

    def _attend(
        self, x: Float[Tensor, "pixels frames channels"], bias: Float[Tensor, "heads frames frames"]
    ) -> Float[Tensor, "pixels frames channels"]:
        normed = self.norm(x)
        q, k, v = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        out: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return out

    def _bias(self, num_frames: int, boundary: Boundary, device: torch.device) -> Float[Tensor, "heads frames frames"]:
        frames = torch.arange(num_frames, device=device)  # not the weights', which may be offloaded
        distance = frames[None, :] - frames[:, None]
        if boundary == "circular":
            distance = (distance + num_frames // 2) % num_frames - num_frames // 2
        buckets = relative_position_buckets(distance, self.num_buckets, self.max_distance)
        bias: Tensor = self.relative_attention_bias(buckets)
        return bias.permute(2, 0, 1)


def relative_position_buckets(
    distance: Int[Tensor, "queries keys"], num_buckets: int = 32, max_distance: int = 32
) -> Int[Tensor, "queries keys"]:
    """T5's buckets: half for each direction; of these, half exact, the rest growing logarithmically."""
    half = num_buckets // 2
    exact = half // 2
    size = distance.abs()
    growth = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    coarse = (exact + growth * (half - exact)).long().clamp(max=half - 1)
    return (distance > 0).long() * half + torch.where(size < exact, size, coarse)


class LatentVDMUNet(VideoUNet):
    """Denoises latent videos with a 2-D text-to-image U-Net and temporal attention.

    The keys of the 2-D U-Net keep their names; each temporal layer is `...temporal_attentions.N` beside the spatial
    transformer `...attentions.N` that it follows. `boundary=None` leaves the temporal layers out (Fig. 6).

    Args:
        temporal_heads: heads of each temporal attention.
        relative_attention_num_buckets: as in T5.
        relative_attention_max_distance: in frames.
        **kwargs: the arguments of `VideoUNet`.

    Raises:
        InputError: a `ValueError`, for an option out of range, or a block type or conditioning that is not known here.
    """

    def __init__(
        self,
        *,
        temporal_heads: int = 8,
        relative_attention_num_buckets: int = 32,
        relative_attention_max_distance: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if relative_attention_num_buckets < 4 or relative_attention_num_buckets % 4:
            raise InputError("relative_attention_num_buckets", relative_attention_num_buckets, "be a multiple of 4")
        if relative_attention_max_distance <= relative_attention_num_buckets // 4:
            expected = f"be more than {relative_attention_num_buckets // 4}, the distances with a bucket of their own"
            raise InputError("relative_attention_max_distance", relative_attention_max_distance, expected)
        self.register_to_config(
            temporal_heads=temporal_heads,
            relative_attention_num_buckets=relative_attention_num_buckets,
            relative_attention_max_distance=relative_attention_max_distance,
        )
        for block in [*self.down_blocks, self.mid_block, *self.up_blocks]:
            layers = [self._temporal_layer(spatial.in_channels) for spatial in getattr(block, "attentions", None) or ()]
            if layers:
                block.temporal_attentions = nn.ModuleList(layers)

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Diffusers' `from_pretrained`; from the folder of a 2-D U-Net, too, whose temporal layers start anew.

        Raises:
            InputError: a `ValueError`, where a part of a temporal layer is missing.
        """
        network, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        missing = {key for key in info["missing_keys"] if ".temporal_attentions." in key}
        for name, layer in network.named_modules():
            if isinstance(layer, TemporalAttention):
                own = {f"{name}.{key}" for key in layer.state_dict()}
                if own & missing and not own <= missing:
                    raise InputError(name, f"no {min(own & missing)}", "have all of its weights, or none")
                if own <= missing:
                    layer.to_empty(device=network.device).reset_parameters()
        return (network, info) if output_loading_info else network

    def _temporal_layer(self, channels: int) -> TemporalAttention:
        heads = self.config.temporal_heads
        if heads < 1 or channels % heads:
            raise InputError("temporal_heads", heads, f"divide the width of every block, {channels}")
        buckets, distance = self.config.relative_attention_num_buckets, self.config.relative_attention_max_distance
        return TemporalAttention(channels, heads, buckets, distance)
