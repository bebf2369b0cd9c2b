"""The temporal-shift U-Net (Latent-Shift, arXiv:2304.08477, Sec. 3.3, Fig. 3d).

It is diffusers' `UNet2DConditionModel` with the shift at the entry of the residual branch of every ResNet block,
and with the same keys: any text-to-image checkpoint loads `strict=True`, and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        *,
        shift_fold: int = 3,
        shift_placement: Placement = "before_norm1",
        shift_distance: int | Sequence[int] = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_option("shift_placement", shift_placement, ("before_norm1", "before_conv1"))
        narrowest = min(self.config.block_out_channels)
        if not isinstance(shift_fold, int) or not 2 <= shift_fold <= narrowest:
            raise InputError("shift_fold", shift_fold, f"be a whole number from 2 to {narrowest}, the narrowest width")
        levels = len(self.config.block_out_channels)
        distances = list(shift_distance) if isinstance(shift_distance, Sequence) else [shift_distance] * levels
        if len(distances) != levels or not all(isinstance(one, int) and one >= 1 for one in distances):
            raise InputError("shift_distance", shift_distance, f"be a whole number from 1, or {levels} such numbers")
        self.register_to_config(shift_fold=shift_fold, shift_placement=shift_placement, shift_distance=shift_distance)
        blocks = [*self.down_blocks, self.mid_block, *self.up_blocks]
        for block, distance in zip(blocks, [*distances, distances[-1], *reversed(distances)], strict=True):
            for resnet in block.resnets:
                resnet.shifts = True
                resnet.fold, resnet.placement, resnet.distance = shift_fold, shift_placement, distance
