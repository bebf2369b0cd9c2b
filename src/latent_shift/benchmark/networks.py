"""The networks that are compared, of one width, with random weights, behind the interface that the pipeline calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latent_shift.core.errors import InputError
from latent_shift.models import LatentShiftUNet, LatentVDMUNet
from latent_shift.models.attention import training_attention
from latent_shift.models.presets import Preset, find_preset
from latent_shift.ops import Boundary

MODELS: dict[str, str] = {
    "latent_shift": "Latent-Shift",
    "latent_shift_off": "Latent-Shift, shift off",
    "latent_vdm": "Latent-VDM",
    "unet2d": "the same U-Net as images (`UNet2DConditionModel`)",
    "unet2d_compiled": "the same, compiled",
    "unet3d": "ModelScope (`UNet3DConditionModel`)",
    "unet_motion": "AnimateDiff (`UNetMotionModel`)",
}
"""What is measured, and what reports call it."""

SHARES = {"latent_shift": "unet2d", "latent_shift_off": "latent_shift", "unet2d_compiled": "unet2d"}
"""Whose weights a network can use: the shift has none."""

Call = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""Network, sample `(batch, channels, frames, height, width)`, timestep, text `(batch, tokens, width)` to prediction."""


class Denoiser(nn.Module):
    """A network behind the interface of `VideoUNet`, as far as the pipeline uses it.

    Args:
        network: of this package or of diffusers.
        call: how it is given clips.
        config: of the video U-Net whose place it takes.
    """

    def __init__(self, network: Any, call: Call, config: Any) -> None:
        super().__init__()
        self.network, self.call, self.config = network, call, config

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        device: torch.device = self.network.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        dtype: torch.dtype = self.network.dtype
        return dtype

    @property
    def num_upsamplers(self) -> int:
        """How often the network doubles the size."""
        times: int = self.network.num_upsamplers
        return times

    @property
    def default_boundary(self) -> Boundary:
        """The paper's."""
        return "zero"

    def forward(
        self,
        sample: Float[Tensor, "batch channels frames height width"],
        timestep: Tensor,
        encoder_hidden_states: Float[Tensor, "batch tokens text_channels"],
        boundary: Any = "default",
        added_cond_kwargs: None = None,
        cross_attention_kwargs: None = None,
        return_dict: bool = False,
    ) -> tuple[Float[Tensor, "batch channels frames height width"]]:
        """Predicts the noise; the last four arguments are there for the pipeline."""
        del boundary, added_cond_kwargs, cross_attention_kwargs, return_dict
        return (self.call(self.network, sample, timestep, encoder_hidden_states),)


def find_benchmark_preset(name: str) -> Preset:
    """A preset whose U-Net both video networks and all rivals can be built from.

    Raises:
        InputError: a `ValueError`, if there is none of that name.
    """
    preset = find_preset(name)
    if preset.unet_class is not LatentShiftUNet:
        raise InputError("preset", name, "be paper, small or tiny: Latent-VDM is measured beside Latent-Shift")
    return preset


def build_denoiser(
    name: str,
    preset: Preset,
    device: torch.device,
    dtype: torch.dtype,
    shared: Denoiser | None = None,
) -> Denoiser:
    """One of `MODELS`; "unet2d_compiled" is made from a shared network, and compiled when it is first called.

    Args:
        name: a key of `MODELS`.
        preset: whose U-Net it is built from.
        device: on "meta" it has no weights.
        dtype: of the weights.
        shared: has the weights to be used (see `SHARES`); where None, they are random.
    """
    if name == "unet2d_compiled" and shared is not None:
        return Denoiser(torch.compile(shared.network, dynamic=False), _as_images, shared.config)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights():  # buffers get their values
            network, config = _build_network(name, preset.unet), LatentShiftUNet(**preset.unet).config
    finally:
        torch.set_default_dtype(before)
    if shared is not None:
        network.load_state_dict(shared.network.state_dict(), assign=True)
    if device.type != "meta":
        fill_weights(network, device)
    network.to(device)
    network.eval().requires_grad_(False)
    return Denoiser(network, _CALLS.get(name, _as_clips), config)


def _build_network(name: str, unet: Mapping[str, Any]) -> Any:
    if name == "unet3d":
        # Here "attention_head_dim" is what it says, and ModelScope's heads are 64 wide.
        head_width = min(64, *unet["block_out_channels"])
        return UNet3DConditionModel(**{**unet, **_block_types(unet, "3D"), "attention_head_dim": head_width})
    if name == "unet_motion":
        arguments = {key: value for key, value in unet.items() if key != "attention_head_dim"}
        heads = unet["attention_head_dim"]
        return UNetMotionModel(**{**arguments, **_block_types(unet, "Motion"), "num_attention_heads": heads})
    if name in ("unet2d", "unet2d_compiled"):
        return UNet2DConditionModel(**unet)
    return LatentVDMUNet(**unet) if name == "latent_vdm" else LatentShiftUNet(**unet)


def _block_types(unet: Mapping[str, Any], ending: str) -> dict[str, list[str]]:
    """The types of the blocks of `UNet2DConditionModel`, as its relatives call theirs."""
    names = ("down_block_types", "up_block_types")
    return {name: [block.replace("2D", ending) for block in unet[name]] for name in names}


def fill_weights(network: nn.Module, device: torch.device) -> None:
    """Gives random values to the weights that are on the meta device: fast, and safe in fp16.

    Matrices and kernels are normal with variance 1 / inputs, from one million numbers again and again; norms start as
    they do in training.
    """
    noise = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).to(device)
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            if not weight.is_meta:
                continue
            values = torch.full_like(weight, float(name == "weight"), device=device)
            if weight.dim() > 1:
                scaled = (noise[: weight.numel()] * weight[0].numel() ** -0.5).to(weight.dtype)
                for part in torch.split(values.view(-1), len(scaled)):
                    part.copy_(scaled[: len(part)])
            setattr(module, name, nn.Parameter(values, requires_grad=False))


def training_step(denoiser: Denoiser, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Forward and backward of a squared error, with the attention kernel that training uses; gradients are let go."""
    denoiser.requires_grad_(True).train()
    with training_attention(inputs[0].device):
        denoiser(*inputs)[0].float().square().mean().backward()
    denoiser.zero_grad(set_to_none=True)
    denoiser.requires_grad_(False).eval()


def count(name: str, preset: Preset) -> dict[str, int]:
    """Parameters of a network, and floating-point operations of one forward (a multiply and an add are two)."""
    meta, dtype = torch.device("meta"), torch.float32
    denoiser = build_denoiser("unet2d" if name == "unet2d_compiled" else name, preset, meta, dtype)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        denoiser(*example_inputs(preset, meta, dtype))
    parameters = sum(weight.numel() for weight in denoiser.parameters())
    return {"parameters": parameters, "flops": counter.get_total_flops()}


def example_inputs(
    preset: Preset, device: torch.device, dtype: torch.dtype, num_frames: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise in the place of one clip's latents, a timestep, and noise in the place of its text features."""
    generator = torch.Generator().manual_seed(0)
    side = preset.unet["sample_size"]
    sample = torch.randn(
        1, preset.unet["in_channels"], num_frames or preset.num_frames, side, side, generator=generator
    )
    text = torch.randn(1, preset.max_tokens, preset.unet["cross_attention_dim"], generator=generator)
    return sample.to(device, dtype), torch.tensor(500, device=device), text.to(device, dtype)


def _as_clips(network: Any, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    prediction: Tensor = network(sample, timestep, text, return_dict=False)[0]
    return prediction


def _without_shift(network: Any, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    prediction: Tensor = network(sample, timestep, text, boundary=None, return_dict=False)[0]
    return prediction


def _with_text_a_frame(network: Any, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    return _as_clips(network, sample, timestep, text.repeat_interleave(sample.shape[2], dim=0))


def _as_images(network: Any, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    images = sample.transpose(1, 2).flatten(0, 1)
    text = text.repeat_interleave(sample.shape[2], dim=0)
    prediction = _as_clips(network, images, timestep, text)
    return prediction.view(sample.transpose(1, 2).shape).transpose(1, 2)


_CALLS: dict[str, Call] = {
    "latent_shift_off": _without_shift,
    "unet2d": _as_images,
    "unet2d_compiled": _as_images,
    "unet_motion": _with_text_a_frame,
}
"""Where it is not `_as_clips`."""
