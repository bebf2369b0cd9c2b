"""The temporal-shift U-Net (Latent-Shift, arXiv:2304.08477, Sec. 3.3, Fig. 3d).

It is diffusers' `UNet2DConditionModel` with the shift at the entry of the residual branch of every ResNet block,
and with the same keys: any text-to-image checkpoint loads `strict=True`, and back.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from torch import Tensor, nn

from latent_shift.core.errors import InputError
from latent_shift.ops import Boundary, shift_group_norm_silu, temporal_shift_folded

from .video_unet import VideoUNet, check_option

Placement = Literal["before_norm1", "before_conv1"]
"""Where the shift sits in the residual branch: at its entry, or after norm and SiLU (`blockres` of TSM)."""


class ShiftResnetBlock2D(ResnetBlock2D):  # type: ignore[misc]
    """A ResNet block whose residual branch sees the neighbouring frames; the shortcut does not (Fig. 3d).

    Made from diffusers' block by changing its class: parameters, keys and hooks stay.
    """

    fold: int
    placement: Placement

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
        early = boundary if self.placement == "before_norm1" else None
        x = self._normalise(self.norm1, input_tensor, num_frames, early)
        if boundary is not None and self.placement == "before_conv1":
            x = temporal_shift_folded(x, num_frames, self.fold, boundary)
        x = self.conv1(x)
        time = self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        if self.time_embedding_norm == "scale_shift":
            scale, bias = time.chunk(2, dim=1)
            x = self.nonlinearity(self.norm2(x) * (1 + scale) + bias)
        else:
            x = self._normalise(self.norm2, x + time, num_frames, None)
        x = self.conv2(self.dropout(x))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return (input_tensor + x) / self.output_scale_factor  # type: ignore[no-any-return]

    def _normalise(self, norm: nn.Module, x: Tensor, num_frames: int, boundary: Boundary | None) -> Tensor:
        """Shift, norm and activation: as one operation, or as modules where somebody changed or watches one."""
        activation = self.nonlinearity
        if _is_plain(norm, nn.GroupNorm) and _is_plain(activation, nn.SiLU):
            group_norm = cast("nn.GroupNorm", norm)
            weights = (group_norm.weight, group_norm.bias, group_norm.num_groups, group_norm.eps)
            return shift_group_norm_silu(x, *weights, num_frames, self.fold, boundary)
        if boundary is not None:
            x = temporal_shift_folded(x, num_frames, self.fold, boundary)
        return cast("Tensor", activation(norm(x)))


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module is no more than what its class does: no adapter, no hook, no forward set by a library.

    Offloading libraries set `forward` on the instance, to bring the weights first.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is kind and not any(hooks) and "forward" not in vars(module)


class LatentShiftUNet(VideoUNet):
    """Denoises latent videos with a 2-D text-to-image U-Net and the temporal shift (Sec. 3.3).

    Args:
        shift_fold: into how many parts the channels are divided; two of them move (Table 6: "Shift Fold 3").
        shift_placement: `"before_norm1"` (entry of the residual branch) or `"before_conv1"`.
        **kwargs: the arguments of `VideoUNet`.

    Raises:
        InputError: a `ValueError`, for an option out of range, or a block type or conditioning that is not known here.
    """

    def __init__(
        self,
        shift_fold: int = 3,
        shift_placement: Placement = "before_norm1",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_option("shift_placement", shift_placement, ("before_norm1", "before_conv1"))
        if shift_fold < 2:
            raise InputError("shift_fold", shift_fold, "be at least 2")
        self.register_to_config(shift_fold=shift_fold, shift_placement=shift_placement)
        for module in self.modules():
            if type(module) is ResnetBlock2D:
                module.__class__ = ShiftResnetBlock2D
                module.fold, module.placement = shift_fold, shift_placement

    def _run_resnet(self, block: nn.Module, x: Tensor, temb: Tensor, num_frames: int, boundary: Any) -> Tensor:
        return cast("Tensor", block(x, temb, num_frames, boundary))
