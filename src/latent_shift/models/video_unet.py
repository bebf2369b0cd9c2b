"""A video U-Net that is diffusers' 2-D `UNet2DConditionModel` and something that mixes frames.

The forward pass is written out here and in `blocks`, and not inherited, for one reason: the number of frames and the
boundary are then arguments of each call. State kept on the modules between calls gave wrong frames with two threads
and wrong gradients with checkpointing.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils.peft_utils import apply_lora_scale
from jaxtyping import Float
from torch import Tensor

from latent_shift.core.errors import InputError
from latent_shift.ops import Boundary

from .attention import attend_by_clip, attends_by_clip
from .blocks import VIDEO_BLOCKS
from .layers import use_lean_layers
from .resnet import ShiftResnetBlock2D
from .weights import load_exactly

_ONLY = {
    "class_embed_type": None,
    "num_class_embeds": None,
    "center_input_sample": False,
    "dual_cross_attention": False,
    "attention_type": "default",
}


class VideoUNet(UNet2DConditionModel):  # type: ignore[misc]
    """The 5-D interface that `LatentShiftUNet` and `LatentVDMUNet` share. Alone it treats each frame as a picture.

    Args:
        noise_correlation: of the noise of neighbouring frames, in training and where sampling adds noise, in [0, 1); 0
            is the paper (progressive noise of PYoCo, arXiv:2305.10474).
        default_boundary: what `forward`'s `boundary="default"` means: `"zero"`, `"circular"` for a model of loops, or
            None for a model of pictures, which was trained without the shift.
        **kwargs: the arguments of `UNet2DConditionModel`, all of them kept in the config.

    Raises:
        InputError: a `ValueError`, for an option out of range, or a block type or conditioning that is not known here.
    """

    _no_split_modules: ClassVar[list[str]] = [
        "BasicTransformerBlock",
        "ShiftResnetBlock2D",
        "VideoUpBlock2D",
        "VideoCrossAttnUpBlock2D",
    ]

    def __init__(
        self,
        *,
        noise_correlation: float = 0.0,
        default_boundary: Boundary | None = "zero",
        **kwargs: Any,
    ) -> None:
        if default_boundary is not None:
            check_option("default_boundary", default_boundary, ("zero", "circular"))
        if not 0 <= noise_correlation < 1:
            raise InputError("noise_correlation", noise_correlation, "be in [0, 1)")
        super().__init__(**kwargs)
        self.register_to_config(noise_correlation=noise_correlation, default_boundary=default_boundary)
        self._refuse_unknown_parts()
        attend_by_clip(self)
        use_lean_layers(self)
        for module in self.modules():
            if type(module) is ResnetBlock2D:
                module.__class__ = ShiftResnetBlock2D
            module.__class__ = VIDEO_BLOCKS.get(type(module), type(module))

    def set_default_attn_processor(self) -> None:
        """Undoes what was set: every attention is that of the clip's frames to its text (`ClipAttnProcessor`)."""
        attend_by_clip(self)

    @property
    def frame_mixing_keys(self) -> set[str]:
        """Keys of the layers that the 2-D U-Net does not have (`temporal_attentions`)."""
        return {key for key in self.state_dict() if ".temporal_attentions." in key}

    def load_image_state_dict(self, state: Mapping[str, Tensor], assign: bool = False) -> None:
        """Loads the weights of a 2-D U-Net, or of a network like this one.

        Every weight must have its place. Layers that mix frames may be missing, all at once, and stay as they are: they
        change nothing before training.

        Args:
            state: the weights.
            assign: whether to take the tensors themselves, with their dtype and memory, and not copies.

        Raises:
            InputError: a `ValueError`, for a key that is missing or unexpected, or a shape that differs; names it.
        """
        load_exactly(self, state, optional=self.frame_mixing_keys, assign=assign)

    @property
    def default_boundary(self) -> Boundary | None:
        """The config's `default_boundary`."""
        return cast("Boundary | None", self.config.default_boundary)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """Config keys of the parents too: `**kwargs` hides them from diffusers' look at the signature."""
        classes = [parent for parent in input_class.__mro__ if issubclass(parent, UNet2DConditionModel)]
        return {name for parent in classes for name in inspect.signature(parent.__init__).parameters}  # type: ignore[misc]

    def _refuse_unknown_parts(self) -> None:
        """Raises `InputError` for what `forward` would pass over in silence."""
        for block in [*self.down_blocks, self.mid_block, *self.up_blocks]:
            if type(block) not in VIDEO_BLOCKS:
                known = sorted(kind.__name__ for kind in VIDEO_BLOCKS)
                raise InputError("block type", type(block).__name__, f"be one of {', '.join(known)}")
        for name, only in _ONLY.items():
            if self.config[name] != only:
                raise InputError(name, self.config[name], f"be {only}")
        if self.config.addition_embed_type == "image_hint":
            raise InputError("addition_embed_type", "image_hint", "be one that leaves the sample as it is")

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Not here: `forward` does not scale skips and features.

        Raises:
            InputError: a `ValueError`, always.
        """
        raise InputError("enable_freeu", (s1, s2, b1, b2), "not be called: the video U-Nets have no FreeU")

    @apply_lora_scale("cross_attention_kwargs")  # type: ignore[untyped-decorator]
    def forward(
        self,
        sample: Float[Tensor, "batch in_channels frames height width"],
        timestep: Tensor | float | int,
        encoder_hidden_states: Float[Tensor, "batch tokens text_channels"],
        *,
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
            boundary: what the first and the last frame see: `"zero"` (no neighbour) or `"circular"` (each other); None
                for no mixing of frames (the 2-D network on each, Figs. 6 and 7); the default is `default_boundary`.
            timestep_cond: as in diffusers, one row a clip.
            encoder_attention_mask: `(batch, tokens)`, 1 keeps a token.
            cross_attention_kwargs: as in diffusers; its `scale` is that of LoRA layers.
            added_cond_kwargs: as in diffusers (SDXL, IP-Adapter), one row a clip.
            down_block_additional_residuals: ControlNet's, 5-D.
            mid_block_additional_residual: ControlNet's, 5-D.
            return_dict: whether to return `UNet2DConditionOutput` or a tuple.

        Returns:
            The prediction, with the shape of `sample`.

        Raises:
            InputError: a `ValueError`, if `sample` is not 5-D, its size is not divisible by the network's factor, the
                batches differ, there is not one timestep for all clips or one each, or ControlNet's residuals are not
                as many as the features that they are added to.
        """
        self._check_inputs(sample, timestep, encoder_hidden_states, boundary)
        batch, _, num_frames, _, _ = sample.shape
        edges = self.default_boundary if boundary == "default" else boundary

        # Conditions are one row a clip, and all that follows from them alone is made once a clip. Where other attention
        # processors than ours were set, they are repeated for the frames before any layer sees them: matrix products
        # round by the number of rows, and so every bit is that of the 2-D network on the same frames.
        early = 1 if attends_by_clip(self) else num_frames
        text, added = _repeat(encoder_hidden_states, early), _repeat(added_cond_kwargs, early)
        time = self.get_time_embed(sample=sample, timestep=timestep)
        emb = self.time_embedding(_repeat(time, early), _repeat(timestep_cond, early))
        aug_emb = self.get_aug_embed(emb=emb, encoder_hidden_states=text, added_cond_kwargs=added)
        if aug_emb is not None:
            emb = emb + _repeat(aug_emb, len(emb) // len(aug_emb))
        emb = emb if self.time_embed_act is None else self.time_embed_act(emb)
        emb = _repeat(emb, batch * num_frames // len(emb))
        text = self.process_encoder_hidden_states(encoder_hidden_states=text, added_cond_kwargs=added)
        told: dict[str, Any] = {"encoder_hidden_states": text, "cross_attention_kwargs": cross_attention_kwargs}
        if encoder_attention_mask is not None:
            bias = (1 - encoder_attention_mask.to(sample.dtype)) * -10000.0
            told["encoder_attention_mask"] = _repeat(bias.unsqueeze(1), early)

        x = self.conv_in(_fold_frames(sample))
        skips = [x]
        for block in self.down_blocks:
            x, after = block(x, emb, num_frames, edges, told)
            skips += after
        if down_block_additional_residuals is not None:
            extra = [_fold_frames(residual) for residual in down_block_additional_residuals]
            if len(extra) != len(skips):
                raise InputError("down_block_additional_residuals", len(extra), f"be {len(skips)} tensors")
            skips = [skip + residual for skip, residual in zip(skips, extra, strict=True)]

        x = self.mid_block(x, emb, num_frames, edges, told)
        if mid_block_additional_residual is not None:
            x = x + _fold_frames(mid_block_additional_residual)

        for block in self.up_blocks:
            layers = len(block.resnets)
            skips, own = skips[:-layers], skips[-layers:]
            x = block(x, own, emb, num_frames, edges, told)

        if self.conv_norm_out is not None:
            x = self.conv_act(self.conv_norm_out(x))
        prediction = _unfold_frames(self.conv_out(x), batch)
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def _check_inputs(
        self, sample: Tensor, timestep: Tensor | float | int, encoder_hidden_states: Tensor, boundary: str | None
    ) -> None:
        if sample.ndim != 5:
            raise InputError("sample", tuple(sample.shape), "have 5 axes (batch, channels, frames, height, width)")
        if boundary not in (None, "default"):
            check_option("boundary", boundary, ("zero", "circular"))
        if isinstance(timestep, Tensor) and timestep.shape not in ((), (1,), sample.shape[:1]):
            raise InputError("timestep", tuple(timestep.shape), f"be one, or one for each of {len(sample)} clips")
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


def check_option(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Raises `InputError` unless `value` is one of `known`."""
    if value not in known:
        raise InputError(name, value, f"be one of {', '.join(known)}")
