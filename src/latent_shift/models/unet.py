"""The temporal-shift U-Net (Latent-Shift, arXiv:2304.08477, Sec. 3.3, Fig. 3d).

It is diffusers' `UNet2DConditionModel` with the shift at the entry of the residual branch of every ResNet block,
and with the same keys: any text-to-image checkpoint loads `strict=True`, and back.

The forward pass is written out here, block by block, and not inherited, for one reason: the number of frames and the
boundary are then arguments of each call. State kept on the modules between calls gave wrong frames with two threads
and wrong gradients with checkpointing.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal, cast

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latent_shift.core.errors import InputError
from latent_shift.ops import Boundary, temporal_shift_folded

Placement = Literal["before_norm1", "before_conv1"]
"""Where the shift sits in the residual branch: at its entry, or after norm and SiLU (`blockres` of TSM)."""

_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn"}
_ONLY = {"class_embed_type": None, "num_class_embeds": None, "center_input_sample": False}


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
        x = input_tensor
        if boundary is not None and self.placement == "before_norm1":
            x = temporal_shift_folded(x, num_frames, self.fold, boundary)
        x = self.nonlinearity(self.norm1(x))
        if boundary is not None and self.placement == "before_conv1":
            x = temporal_shift_folded(x, num_frames, self.fold, boundary)
        x = self.conv1(x)
        time = self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        if self.time_embedding_norm == "scale_shift":
            scale, bias = time.chunk(2, dim=1)
            x = self.norm2(x) * (1 + scale) + bias
        else:
            x = self.norm2(x + time)
        x = self.conv2(self.dropout(self.nonlinearity(x)))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return (input_tensor + x) / self.output_scale_factor  # type: ignore[no-any-return]


class LatentShiftUNet(UNet2DConditionModel):  # type: ignore[misc]
    """Denoises latent videos with a 2-D text-to-image U-Net and the temporal shift (Sec. 3.3).

    Args:
        shift_fold: into how many parts the channels are divided; two of them move (Table 6: "Shift Fold 3").
        shift_placement: `"before_norm1"` (entry of the residual branch) or `"before_conv1"`.
        shift_boundary: the default of `forward`'s `boundary`.
        noise_shared: share of the noise variance that the frames of a clip have in common, in training and at the
            first step of sampling, in [0, 1); 0 is the paper (mixed noise of PYoCo, arXiv:2305.10474).
        **kwargs: the arguments of `UNet2DConditionModel`, all of them kept in the config.

    Raises:
        InputError: a `ValueError`, for an option out of range, or a block type or conditioning that is not known here.
    """

    def __init__(
        self,
        shift_fold: int = 3,
        shift_placement: Placement = "before_norm1",
        shift_boundary: Boundary = "zero",
        noise_shared: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_option("shift_placement", shift_placement, ("before_norm1", "before_conv1"))
        _check_option("shift_boundary", shift_boundary, ("zero", "circular"))
        if shift_fold < 2:
            raise InputError("shift_fold", shift_fold, "be at least 2")
        if not 0 <= noise_shared < 1:
            raise InputError("noise_shared", noise_shared, "be in [0, 1)")
        self.register_to_config(
            shift_fold=shift_fold,
            shift_placement=shift_placement,
            shift_boundary=shift_boundary,
            noise_shared=noise_shared,
        )
        self._refuse_unknown_parts()
        for module in self.modules():
            if type(module) is ResnetBlock2D:
                module.__class__ = ShiftResnetBlock2D
                module.fold, module.placement = shift_fold, shift_placement

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """Config keys of the parent too: `**kwargs` hides them from diffusers' look at the signature."""
        keys = set(inspect.signature(input_class.__init__).parameters)  # type: ignore[misc]
        if issubclass(input_class, LatentShiftUNet):
            keys |= set(inspect.signature(UNet2DConditionModel.__init__).parameters)
        return keys

    def _refuse_unknown_parts(self) -> None:
        """Raises `InputError` for what `forward` would pass over in silence."""
        for block in [*self.down_blocks, self.mid_block, *self.up_blocks]:
            if type(block).__name__ not in _BLOCKS:
                raise InputError("block type", type(block).__name__, f"be one of {', '.join(sorted(_BLOCKS))}")
        for name, only in _ONLY.items():
            if self.config[name] != only:
                raise InputError(name, self.config[name], f"be {only}")
        if self.config.addition_embed_type == "image_hint":
            raise InputError("addition_embed_type", "image_hint", "be one that leaves the sample as it is")

    def forward(
        self,
        sample: Float[Tensor, "batch in_channels frames height width"],
        timestep: Tensor | float | int,
        encoder_hidden_states: Float[Tensor, "batch tokens text_channels"],
        boundary: Boundary | Literal["default"] | None = "default",
        timestep_cond: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Any] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predicts the noise (or v) of noisy latent videos (Eq. 5).

        Args:
            sample: noisy latents; one frame is an image.
            timestep: one step for all clips, or one per clip `(batch,)`.
            encoder_hidden_states: text features, one row a clip; every frame sees the same.
            boundary: `"zero"`, `"circular"`, or None for no shift (the 2-D network on each frame, Figs. 6 and 7);
                the default is the config's `shift_boundary`.
            timestep_cond: as in diffusers, one row a clip.
            encoder_attention_mask: `(batch, tokens)`, 1 keeps a token.
            cross_attention_kwargs: as in diffusers.
            added_cond_kwargs: as in diffusers (SDXL, IP-Adapter), one row a clip.
            down_block_additional_residuals: ControlNet's, 5-D.
            mid_block_additional_residual: ControlNet's, 5-D.
            return_dict: whether to return `UNet2DConditionOutput` or a tuple.

        Returns:
            The prediction, with the shape of `sample`.

        Raises:
            InputError: a `ValueError`, if `sample` is not 5-D, its size is not divisible by the network's factor or
                the batches differ.
        """
        self._check_inputs(sample, encoder_hidden_states, boundary)
        batch, _, num_frames, _, _ = sample.shape
        shift = cast("Boundary | None", self.config.shift_boundary if boundary == "default" else boundary)

        # Conditions are one row a clip. They are repeated for the frames before any layer sees them, not after: matrix
        # products round by the number of rows, and so every bit is that of the 2-D network on the same frames.
        time, text, added, timestep_cond = (
            _repeat(rows, num_frames)
            for rows in (
                self.get_time_embed(sample=sample, timestep=timestep),
                encoder_hidden_states,
                added_cond_kwargs,
                timestep_cond,
            )
        )
        emb = self.time_embedding(time, timestep_cond)
        aug_emb = self.get_aug_embed(emb=emb, encoder_hidden_states=text, added_cond_kwargs=added)
        emb = emb if aug_emb is None else emb + aug_emb
        emb = emb if self.time_embed_act is None else self.time_embed_act(emb)
        text = self.process_encoder_hidden_states(encoder_hidden_states=text, added_cond_kwargs=added)
        attention: dict[str, Any] = {"encoder_hidden_states": text, "cross_attention_kwargs": cross_attention_kwargs}
        if encoder_attention_mask is not None:
            bias = (1 - encoder_attention_mask.to(sample.dtype)) * -10000.0
            attention["encoder_attention_mask"] = _repeat(bias.unsqueeze(1), num_frames)

        checkpointing = torch.is_grad_enabled() and self.is_gradient_checkpointing

        def run_resnet(block: ShiftResnetBlock2D, x: Tensor) -> Tensor:
            if checkpointing:
                return cast("Tensor", checkpoint(block, x, emb, num_frames, shift, use_reentrant=False))
            return cast("Tensor", block(x, emb, num_frames, shift))

        def run_attention(block: nn.Module, x: Tensor) -> Tensor:
            # Checkpoints its own parts.
            return cast("Tensor", block(x, return_dict=False, **attention)[0])

        def resnet_and_attention(block: Any, index: int, x: Tensor) -> Tensor:
            x = run_resnet(block.resnets[index], x)
            return run_attention(block.attentions[index], x) if getattr(block, "attentions", None) else x

        x = self.conv_in(_fold_frames(sample))
        skips = [x]
        for block in self.down_blocks:
            for index in range(len(block.resnets)):
                x = resnet_and_attention(block, index, x)
                skips.append(x)
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
                skips.append(x)
        if down_block_additional_residuals is not None:
            extra = [_fold_frames(residual) for residual in down_block_additional_residuals]
            skips = [skip + residual for skip, residual in zip(skips, extra, strict=True)]

        mid = self.mid_block
        x = run_resnet(mid.resnets[0], x)
        for attn, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
            x = run_resnet(resnet, run_attention(attn, x))
        if mid_block_additional_residual is not None:
            x = x + _fold_frames(mid_block_additional_residual)

        for block in self.up_blocks:
            for index in range(len(block.resnets)):
                x = resnet_and_attention(block, index, torch.cat([x, skips.pop()], dim=1))
            for upsampler in block.upsamplers or ():
                x = upsampler(x)

        if self.conv_norm_out is not None:
            x = self.conv_act(self.conv_norm_out(x))
        prediction = _unfold_frames(self.conv_out(x), batch)
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def _check_inputs(self, sample: Tensor, encoder_hidden_states: Tensor, boundary: str | None) -> None:
        if sample.ndim != 5:
            raise InputError("sample", tuple(sample.shape), "have 5 axes (batch, channels, frames, height, width)")
        if boundary not in (None, "default"):
            _check_option("boundary", boundary, ("zero", "circular"))
        if encoder_hidden_states.shape[0] != sample.shape[0]:
            raise InputError("encoder_hidden_states", tuple(encoder_hidden_states.shape), f"have {len(sample)} rows")
        factor = 2**self.num_upsamplers
        for name, size in zip(("height", "width"), sample.shape[-2:], strict=True):
            if size % factor:
                raise InputError(f"{name} of the latents", size, f"be a multiple of {factor}")


def _fold_frames(
    x: Float[Tensor, "batch channels frames height width"],
) -> Float[Tensor, "batch_frames channels height width"]:
    return x.transpose(1, 2).flatten(0, 1)


def _unfold_frames(
    x: Float[Tensor, "batch_frames channels height width"], batch: int
) -> Float[Tensor, "batch channels frames height width"]:
    return x.reshape(batch, -1, *x.shape[1:]).transpose(1, 2)


def _repeat(rows: Any, times: int) -> Any:
    """Each row `times` times in a row; of a tensor, or of all tensors in a dict or list."""
    if isinstance(rows, Tensor):
        return rows.repeat_interleave(times, dim=0)
    if isinstance(rows, dict):
        return {name: _repeat(value, times) for name, value in rows.items()}
    return [_repeat(value, times) for value in rows] if isinstance(rows, list) else rows


def _check_option(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(name, value, f"be one of {', '.join(known)}")
