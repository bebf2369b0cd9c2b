"""The ResNet block of both video U-Nets: diffusers' `ResnetBlock2D`, with the temporal shift where it is asked for."""

from __future__ import annotations

from typing import Literal, cast

from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from torch import Tensor, nn

from latent_shift.ops import Boundary, shift_group_norm_silu, temporal_shift_folded

from .layers import convolve, is_plain

Placement = Literal["before_norm1", "before_conv1"]
"""Where the shift sits in the residual branch: at its entry, or after norm and SiLU (`blockres` of TSM)."""


class ShiftResnetBlock2D(ResnetBlock2D):  # type: ignore[misc]
    """A ResNet block whose residual branch sees the neighbouring frames; the shortcut does not (Fig. 3d).

    Made from diffusers' block by changing its class: parameters, keys and hooks stay.
    """

    shifts: bool = False  # Latent-VDM's do not
    fold: int = 3
    distance: int = 1
    placement: Placement = "before_norm1"

    def forward(
        self,
        input_tensor: Float[Tensor, "batch_frames in_channels height width"],
        temb: Float[Tensor, "batch_frames time_channels"],
        num_frames: int = 1,
        boundary: Boundary | None = None,
    ) -> Float[Tensor, "batch_frames out_channels height width"]:
        """The block on folded frames.

        Args:
            input_tensor: features of `batch * num_frames` pictures, frames fastest.
            temb: the time embedding of each picture.
            num_frames: frames in each clip.
            boundary: what the first and the last frame see; None turns the shift off, as in diffusers' own block.
        """
        boundary = boundary if self.shifts else None
        early = boundary if self.placement == "before_norm1" else None
        x = self._normalise(self.norm1, input_tensor, num_frames, early)
        if boundary is not None and self.placement == "before_conv1":
            x = temporal_shift_folded(x, num_frames, self.fold, boundary, self.distance)
        x = convolve(self.conv1, x)
        time = self.time_emb_proj(self.nonlinearity(temb))
        if self.time_embedding_norm == "scale_shift":
            x = self._normalise(self.norm2, x, num_frames, None, *time.chunk(2, dim=1))
        else:
            x = self._normalise(self.norm2, x + time[:, :, None, None], num_frames, None)
        x = convolve(self.conv2, self.dropout(x))
        if self.conv_shortcut is not None:
            input_tensor = convolve(self.conv_shortcut, input_tensor)
        x = input_tensor + x
        return x if self.output_scale_factor == 1 else x / self.output_scale_factor

    def _normalise(
        self,
        norm: nn.Module,
        x: Tensor,
        num_frames: int,
        boundary: Boundary | None,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Shift, norm and activation: as one operation, or as modules where somebody changed or watches one."""
        activation = self.nonlinearity
        if is_plain(norm, nn.GroupNorm) and is_plain(activation, nn.SiLU):
            group_norm = cast("nn.GroupNorm", norm)
            weights = (group_norm.weight, group_norm.bias, group_norm.num_groups, group_norm.eps)
            return shift_group_norm_silu(x, *weights, num_frames, self.fold, boundary, None, scale, bias, self.distance)
        if boundary is not None:
            x = temporal_shift_folded(x, num_frames, self.fold, boundary, self.distance)
        x = norm(x)
        if scale is not None and bias is not None:
            x = x * (1 + scale[:, :, None, None]) + bias[:, :, None, None]
        return cast("Tensor", activation(x))
