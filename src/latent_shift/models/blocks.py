"""The levels of the video U-Nets: diffusers' down, mid and up blocks, whose layers are told of the clip's frames.

Each is made from diffusers' block by changing its class: parameters, keys and hooks stay, and so do what wraps,
offloads or checkpoints a block.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d_blocks import (
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)
from jaxtyping import Float
from torch import Tensor, nn

from latent_shift.ops import Boundary

Features = Float[Tensor, "batch_frames channels height width"]


class _VideoBlock(nn.Module):
    """What all levels share.

    `forward` takes features of folded frames, the time embedding of each, the number of frames in a clip, what its
    first and last frame see, and what spatial transformers are told of the text.
    """

    gradient_checkpointing: bool
    resnets: nn.ModuleList

    def _resnet(self, index: int, x: Features, temb: Tensor, num_frames: int, boundary: Boundary | None) -> Tensor:
        return self._run(self.resnets[index], x, temb, num_frames, boundary)

    def _attend(
        self, index: int, x: Features, num_frames: int, boundary: Boundary | None, text: dict[str, Any]
    ) -> Tensor:
        """The spatial transformer, and the attention over the frames after it, of networks that have them."""
        spatial: Any = getattr(self, "attentions", None)
        if not spatial:
            return x
        x = spatial[index](x, return_dict=False, **text)[0]  # checkpoints its own parts
        temporal: Any = getattr(self, "temporal_attentions", None)
        if temporal is None or boundary is None:
            return x
        return self._run(temporal[index], x, num_frames, boundary)

    def _run(self, layer: nn.Module, *arguments: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            checkpoint: Any = self._gradient_checkpointing_func  # diffusers' `enable_gradient_checkpointing` sets it
            return cast("Tensor", checkpoint(layer, *arguments))
        return cast("Tensor", layer(*arguments))


class _DownBlock(_VideoBlock):
    downsamplers: nn.ModuleList | None

    def forward(
        self, hidden_states: Features, temb: Tensor, num_frames: int, boundary: Boundary | None, text: dict[str, Any]
    ) -> tuple[Tensor, list[Tensor]]:
        """The features, and those after each layer, for the up block of the same level."""
        x, skips = hidden_states, []
        for index in range(len(self.resnets)):
            x = self._resnet(index, x, temb, num_frames, boundary)
            x = self._attend(index, x, num_frames, boundary, text)
            skips.append(x)
        for downsampler in self.downsamplers or ():
            x = downsampler(x)
            skips.append(x)
        return x, skips


class _MidBlock(_VideoBlock):
    def forward(
        self, hidden_states: Features, temb: Tensor, num_frames: int, boundary: Boundary | None, text: dict[str, Any]
    ) -> Tensor:
        x = self._resnet(0, hidden_states, temb, num_frames, boundary)
        for index in range(1, len(self.resnets)):
            x = self._attend(index - 1, x, num_frames, boundary, text)
            x = self._resnet(index, x, temb, num_frames, boundary)
        return x


class _UpBlock(_VideoBlock):
    upsamplers: nn.ModuleList | None

    def forward(
        self,
        hidden_states: Features,
        skips: list[Tensor],
        temb: Tensor,
        num_frames: int,
        boundary: Boundary | None,
        text: dict[str, Any],
    ) -> Tensor:
        """Takes the features of the way down, one for each ResNet block, from the end of `skips`."""
        x = hidden_states
        for index in range(len(self.resnets)):
            x = self._resnet(index, torch.cat([x, skips.pop()], dim=1), temb, num_frames, boundary)
            x = self._attend(index, x, num_frames, boundary, text)
        for upsampler in self.upsamplers or ():
            x = upsampler(x)
        return x


class VideoDownBlock2D(_DownBlock, DownBlock2D):  # type: ignore[misc]
    """diffusers' `DownBlock2D` on folded frames."""


class VideoCrossAttnDownBlock2D(_DownBlock, CrossAttnDownBlock2D):  # type: ignore[misc]
    """diffusers' `CrossAttnDownBlock2D` on folded frames."""


class VideoMidBlock2DCrossAttn(_MidBlock, UNetMidBlock2DCrossAttn):  # type: ignore[misc]
    """diffusers' `UNetMidBlock2DCrossAttn` on folded frames."""


class VideoUpBlock2D(_UpBlock, UpBlock2D):  # type: ignore[misc]
    """diffusers' `UpBlock2D` on folded frames."""


class VideoCrossAttnUpBlock2D(_UpBlock, CrossAttnUpBlock2D):  # type: ignore[misc]
    """diffusers' `CrossAttnUpBlock2D` on folded frames."""


VIDEO_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {
    DownBlock2D: VideoDownBlock2D,
    CrossAttnDownBlock2D: VideoCrossAttnDownBlock2D,
    UNetMidBlock2DCrossAttn: VideoMidBlock2DCrossAttn,
    UpBlock2D: VideoUpBlock2D,
    CrossAttnUpBlock2D: VideoCrossAttnUpBlock2D,
}
"""diffusers' blocks that are known here, those of LDM and Stable Diffusion, and what each becomes."""
