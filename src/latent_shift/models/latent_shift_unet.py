"""The temporal-shift U-Net (Latent-Shift, arXiv:2304.08477, Sec. 3.3, Fig. 3d).

It is diffusers' `UNet2DConditionModel` with the shift at the entry of the residual branch of every ResNet block,
and with the same keys: any text-to-image checkpoint loads `strict=True`, and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from latent_shift.core.errors import InputError

from .resnet import Placement
from .video_unet import VideoUNet, check_option


class LatentShiftUNet(VideoUNet):
    """Denoises latent videos with a 2-D text-to-image U-Net and the temporal shift (Sec. 3.3).

    Args:
        shift_fold: into how many parts the channels are divided; two of them move (Table 6: "Shift Fold 3").
        shift_placement: `"before_norm1"` (entry of the residual branch) or `"before_conv1"`.
        shift_distance: how many frames features move in a block, at each level of the network (as `block_out_channels`)
            or at all; 1 is the paper. The paper's 22 blocks reach all of its 16 frames; a small network's do not.
        **kwargs: the arguments of `VideoUNet`.

    Raises:
        InputError: a `ValueError`, for an option out of range, or a block type or conditioning that is not known here.
    """

    def __init__(
        self,
        shift_fold: int = 3,
        shift_placement: Placement = "before_norm1",
        shift_distance: int | Sequence[int] = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_option("shift_placement", shift_placement, ("before_norm1", "before_conv1"))
        if shift_fold < 2:
            raise InputError("shift_fold", shift_fold, "be at least 2")
        levels = len(self.config.block_out_channels)
        distances = [shift_distance] * levels if isinstance(shift_distance, int) else list(shift_distance)
        if len(distances) != levels or min(distances) < 1:
            raise InputError("shift_distance", shift_distance, f"be at least 1, or {levels} such numbers")
        self.register_to_config(shift_fold=shift_fold, shift_placement=shift_placement, shift_distance=shift_distance)
        blocks = [*self.down_blocks, self.mid_block, *self.up_blocks]
        for block, distance in zip(blocks, [*distances, distances[-1], *reversed(distances)], strict=True):
            for resnet in block.resnets:
                resnet.fold, resnet.placement, resnet.distance = shift_fold, shift_placement, distance

    def _run_resnet(self, block: nn.Module, x: Tensor, temb: Tensor, num_frames: int, boundary: Any) -> Tensor:
        return cast("Tensor", block(x, temb, num_frames, boundary))
