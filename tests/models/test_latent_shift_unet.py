"""Covers `models.latent_shift_unet` and `video_unet`: against diffusers' 2-D U-Net, and the shift hooked into it."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from latent_shift.core.errors import InputError
from latent_shift.models import LatentShiftUNet, ShiftResnetBlock2D
from latent_shift.models.attention import attend_by_clip, attends_by_clip
from latent_shift.models.blocks import VIDEO_BLOCKS
from latent_shift.models.layers import LeanFeedForward, LeanTransformer2DModel, LeanUpsample2D
from latent_shift.ops import shift_group_norm_silu

TINY: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
# LDM's text-to-image network, which the paper starts from, and its autoencoder.
PAPER: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
}
PAPER_AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
SDXL: dict[str, Any] = {
    "use_linear_projection": True,
    "attention_head_dim": [2, 4],
    "transformer_layers_per_block": [1, 2],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 10,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "LDM": {},
    "SD 2": {"use_linear_projection": True, "attention_head_dim": [1, 2]},
    "SDXL": SDXL,
    "scale_shift": {"resnet_time_scale_shift": "scale_shift", "resnet_out_scale_factor": 1.4},
    "scaled middle": {"mid_block_scale_factor": 1.4},
    "three levels": {
        "block_out_channels": (8, 16, 24),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "time condition": {"time_cond_proj_dim": 6, "time_embedding_act_fn": "silu"},
    "text projection": {"encoder_hid_dim": 12, "encoder_hid_dim_type": "text_proj"},
    "another activation": {"act_fn": "gelu"},
}

Inputs = tuple[Tensor, Tensor, Tensor]


def make_pair(**options: Any) -> tuple[UNet2DConditionModel, LatentShiftUNet]:
    """diffusers' network and ours with the same weights, and with the same attention: every bit is to be the same."""
    torch.manual_seed(0)
    plain = UNet2DConditionModel(**{**TINY, **options}).eval()
    shifted = LatentShiftUNet(**{**TINY, **options}).eval()
    shifted.set_attn_processor(AttnProcessor2_0())
    shifted.load_state_dict(plain.state_dict(), strict=True)
    return plain, shifted


def make_inputs(batch: int = 2, num_frames: int = 3, size: int = 8) -> Inputs:
    """Latents, a timestep for each clip, text features."""
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch, 4, num_frames, size, size, generator=generator)
    text = torch.randn(batch, 5, 12, generator=generator)
    return sample, torch.tensor([7, 400, 800][:batch]), text


def make_conditions(name: str, batch: int) -> dict[str, Any]:
    """What else a network of `CONFIGS` wants: one row a clip."""
    if name == "SDXL":
        return {"added_cond_kwargs": {"text_embeds": torch.randn(batch, 10), "time_ids": torch.rand(batch, 6) * 100}}
    return {"timestep_cond": torch.randn(batch, 6)} if name == "time condition" else {}


def fold(x: Tensor) -> Tensor:
    """`(batch, channels, frames, ...)` to `(batch * frames, channels, ...)`, frames fastest."""
    return torch.stack([clip[:, t] for clip in x for t in range(x.shape[2])])


def per_frame(rows: Any, num_frames: int) -> Any:
    """Each row once for each frame of its clip, at any depth of dicts and lists."""
    if isinstance(rows, dict):
        return {name: per_frame(value, num_frames) for name, value in rows.items()}
    if isinstance(rows, list):
        return [per_frame(value, num_frames) for value in rows]
    return torch.stack([row for row in rows for _ in range(num_frames)])


def run_plain(plain: UNet2DConditionModel, inputs: Inputs, **conditions: Any) -> Tensor:
    """The 2-D network on every frame."""
    sample, timestep, text = inputs
    frames = sample.shape[2]
    return plain(
        fold(sample), per_frame(timestep, frames), per_frame(text, frames), **per_frame(conditions, frames)
    ).sample


def shift_from_outside(x: Tensor, num_frames: int, k: int, boundary: str) -> Tensor:
    """Eq. 3 on folded frames, picture by picture."""
    y = x.clone()
    for index in range(len(x)):
        clip, t = divmod(index, num_frames)
        for source, channels in ((t - 1, slice(0, k)), (t + 1, slice(x.shape[1] - k, x.shape[1]))):
            if boundary == "circular" or 0 <= source < num_frames:
                y[index, channels] = x[clip * num_frames + source % num_frames, channels]
            else:
                y[index, channels] = 0
    return y


@pytest.mark.parametrize("name", CONFIGS)
def test_keys_are_those_of_the_2d_network_both_ways(name: str) -> None:
    plain, shifted = make_pair(**CONFIGS[name])
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (plain, shifted)]
    assert shapes[0] == shapes[1]
    assert list(shapes[0]) == list(shapes[1])
    torch.manual_seed(1)
    other = LatentShiftUNet(**{**TINY, **CONFIGS[name]})
    plain.load_state_dict(other.state_dict(), strict=True)
    for key, value in other.state_dict().items():
        assert torch.equal(plain.state_dict()[key], value), key
    # These layers, and nothing else, are of other classes.
    classes: dict[type, type] = {
        ResnetBlock2D: ShiftResnetBlock2D,
        Transformer2DModel: LeanTransformer2DModel,
        FeedForward: LeanFeedForward,
        Upsample2D: LeanUpsample2D,
        **VIDEO_BLOCKS,
    }
    for ours, theirs in zip(shifted.modules(), plain.modules(), strict=True):
        if ours is not shifted:
            assert type(ours) is classes.get(type(theirs), type(theirs))


@torch.no_grad()
@pytest.mark.parametrize("name", ["LDM", "SDXL", "scale_shift"])
def test_config_round_trip(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    shift = {
        "shift_fold": 4,
        "shift_placement": "before_conv1",
        "shift_distance": 2,
        "default_boundary": "circular",
        "noise_correlation": 0.5,
    }
    parents = {"dropout": 0.25, "norm_eps": 1e-4, "flip_sin_to_cos": False, "downsample_padding": 1}
    unet = LatentShiftUNet(**{**TINY, **CONFIGS[name]}, **shift, **parents).eval()
    unet.save_pretrained(tmp_path)
    inputs, conditions = make_inputs(), make_conditions(name, 2)
    expected = unet(*inputs, **conditions).sample
    loaded, report = LatentShiftUNet.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(loaded(*inputs, **conditions).sample, expected)
    again = LatentShiftUNet.from_config(unet.config).eval()
    of_a_dict = LatentShiftUNet.from_config({**loaded.config}).eval()
    for other in (loaded, again, of_a_dict):
        for key, value in {**TINY, **CONFIGS[name], **shift, **parents}.items():
            kept = other.config[key]
            assert (list(kept) if isinstance(kept, tuple | list) else kept) == (
                list(value) if isinstance(value, tuple | list) else value
            ), key
        other.load_state_dict(unet.state_dict(), strict=True)
        assert torch.equal(other(*inputs, **conditions).sample, expected)


def test_a_2d_config_gives_the_papers_shift() -> None:
    plain, _ = make_pair()
    unet = LatentShiftUNet.from_config(plain.config)
    options = {"shift_fold": 3, "shift_placement": "before_norm1", "shift_distance": 1, "default_boundary": "zero"}
    options |= {"noise_correlation": 0.0}
    assert {key: unet.config[key] for key in options} == options
    assert unet.config.block_out_channels == TINY["block_out_channels"]
    # An option given beside the config counts.
    assert LatentShiftUNet.from_config(plain.config, shift_fold=4).config.shift_fold == 4
    assert LatentShiftUNet.from_config(unet.config, default_boundary="circular").config.default_boundary == "circular"


@torch.no_grad()
def test_folders_load_into_either_class(tmp_path: Path) -> None:
    plain, shifted = make_pair()
    plain.save_pretrained(tmp_path / "image")
    shifted.save_pretrained(tmp_path / "video")
    inputs = make_inputs()
    expected = run_plain(plain, inputs)
    for folder in ("image", "video"):
        image_model, report = UNet2DConditionModel.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(report.values()), report
        assert torch.equal(run_plain(image_model, inputs), expected)
        video_model, report = LatentShiftUNet.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(report.values()), report
        video_model.set_attn_processor(AttnProcessor2_0())
        assert torch.equal(video_model(*inputs).sample, shifted(*inputs).sample)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_without_shift_every_bit_is_that_of_the_2d_network(name: str, dtype: torch.dtype) -> None:
    plain, shifted = (nn.Module.to(network, dtype) for network in make_pair(**CONFIGS[name]))
    for batch, num_frames in ((1, 1), (2, 3), (1, 16)):
        sample, timestep, text = make_inputs(batch, num_frames)
        inputs = (sample.to(dtype), timestep, text.to(dtype))
        conditions = make_conditions(name, batch)
        if "timestep_cond" in conditions:
            conditions["timestep_cond"] = conditions["timestep_cond"].to(dtype)
        expected = run_plain(plain, inputs, **conditions)
        assert torch.equal(fold(shifted(*inputs, boundary=None, **conditions).sample), expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_keys_made_once_a_clip_change_nothing(name: str, masked: bool) -> None:
    """Our own attention against diffusers', whose text is repeated for the frames: predictions and gradients."""
    repeated = make_pair(**CONFIGS[name])[1].double()
    once = copy.deepcopy(repeated)
    attend_by_clip(once)
    assert attends_by_clip(once)
    assert not attends_by_clip(repeated)
    (sample, timestep, text), conditions = make_inputs(), make_conditions(name, 2)
    if "timestep_cond" in conditions:
        conditions["timestep_cond"] = conditions["timestep_cond"].double()
    if masked:
        conditions["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]])
    results = []
    for network in (once, repeated):
        prediction = network(sample.double(), timestep, text.double(), **conditions).sample
        prediction.square().sum().backward()
        results.append((prediction, {key: value.grad for key, value in network.named_parameters()}))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_text_is_not_repeated_for_the_frames() -> None:
    _, unet = make_pair()
    attend_by_clip(unet)
    rows: list[int] = []
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    unet(*make_inputs(batch=2, num_frames=3))
    assert rows
    assert set(rows) == {2}


@torch.no_grad()
@pytest.mark.parametrize("timestep", [500, 500.0, torch.tensor(500), torch.tensor([500])], ids=str)
def test_one_timestep_for_all_clips(timestep: Any) -> None:
    plain, shifted = make_pair()
    sample, _, text = make_inputs()
    expected = plain(fold(sample), timestep, per_frame(text, 3)).sample
    assert torch.equal(fold(shifted(sample, timestep, text, boundary=None).sample), expected)


@torch.no_grad()
def test_masked_tokens_as_in_the_2d_network() -> None:
    plain, shifted = make_pair()
    inputs = make_inputs()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]])
    result = shifted(*inputs, boundary=None, encoder_attention_mask=mask).sample
    assert torch.equal(fold(result), run_plain(plain, inputs, encoder_attention_mask=mask))
    sample, timestep, text = inputs
    hidden = torch.where(mask[:, :, None] == 1, text, torch.randn_like(text))
    torch.testing.assert_close(
        shifted(sample, timestep, hidden, boundary=None, encoder_attention_mask=mask).sample, result
    )
    assert not torch.allclose(shifted(*inputs, boundary=None).sample, result, atol=1e-4)


@torch.no_grad()
def test_controlnet_residuals_as_in_the_2d_network() -> None:
    plain, shifted = make_pair()
    inputs = make_inputs()
    down = tuple(torch.randn(2, width, 3, side, side) for width, side in ((8, 8), (8, 8), (8, 4), (16, 4)))
    mid = torch.randn(2, 16, 3, 4, 4)
    frames = inputs[0].shape[2]
    expected = plain(
        fold(inputs[0]),
        per_frame(inputs[1], frames),
        per_frame(inputs[2], frames),
        down_block_additional_residuals=tuple(fold(residual) for residual in down),
        mid_block_additional_residual=fold(mid),
    ).sample
    result = shifted(
        *inputs, boundary=None, down_block_additional_residuals=down, mid_block_additional_residual=mid
    ).sample
    assert torch.equal(fold(result), expected)
    assert not torch.allclose(result, shifted(*inputs, boundary=None).sample, atol=1e-2)


@torch.no_grad()
def test_ip_adapter_as_in_the_2d_network() -> None:
    plain, shifted = make_pair()
    for network in (plain, shifted):
        torch.manual_seed(2)
        processors = dict(network.attn_processors)
        for name in processors:
            if "attn2" in name:
                width = network.get_submodule(name.removesuffix(".processor")).to_q.in_features
                processors[name] = IPAdapterAttnProcessor2_0(width, cross_attention_dim=12, num_tokens=(2,))
        network.set_attn_processor(processors)
        network.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(7, 12, 2)]).eval()
        network.config.encoder_hid_dim_type = "ip_image_proj"
    inputs = make_inputs()
    pictures = {"image_embeds": [torch.randn(2, 1, 7)]}
    result = shifted(*inputs, boundary=None, added_cond_kwargs=pictures).sample
    assert torch.equal(fold(result), run_plain(plain, inputs, added_cond_kwargs=pictures))
    other = {"image_embeds": [torch.randn(2, 1, 7)]}
    assert not torch.allclose(shifted(*inputs, boundary=None, added_cond_kwargs=other).sample, result, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("boundary", ["zero", "circular"])
@pytest.mark.parametrize("placement", ["before_norm1", "before_conv1"])
def test_the_shift_is_in_each_residual_branch_and_not_in_the_shortcut(placement: str, boundary: str) -> None:
    """The same function is the 2-D network with a hook before each norm1 or conv1, which the shortcut does not pass."""
    options = CONFIGS["three levels"]
    for fold_option in (2, 3):
        plain, _ = make_pair(**options)
        shifted = LatentShiftUNet(**{**TINY, **options}, shift_placement=placement, shift_fold=fold_option).eval()
        shifted.load_state_dict(plain.state_dict())
        shifted.set_attn_processor(AttnProcessor2_0())
        inputs = make_inputs(num_frames=4)

        def hook(module: nn.Module, args: tuple[Tensor, ...], fold_option: int = fold_option) -> tuple[Tensor]:
            return (shift_from_outside(args[0], 4, args[0].shape[1] // fold_option, boundary),)

        for block in plain.modules():
            if isinstance(block, ResnetBlock2D):
                block.get_submodule(placement.removeprefix("before_")).register_forward_pre_hook(hook)
        result = fold(shifted(*inputs, boundary=boundary).sample)
        assert torch.equal(result, run_plain(plain, inputs))
        assert not torch.allclose(result, fold(shifted(*inputs, boundary=None).sample), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("boundary", ["zero", "circular"])
def test_each_level_has_its_distance(boundary: str) -> None:
    """A shift of `d` frames is that of one frame in each of the clip's `d` interleaved parts."""
    options = CONFIGS["three levels"]
    plain, _ = make_pair(**options)
    inputs = make_inputs(num_frames=6)
    levels = {"down_blocks.0": 0, "down_blocks.1": 1, "down_blocks.2": 2, "mid_block": 2}
    levels |= {"up_blocks.0": 2, "up_blocks.1": 1, "up_blocks.2": 0}
    shifted = LatentShiftUNet(**{**TINY, **options}, shift_distance=[1, 2, 3]).eval()
    shifted.load_state_dict(plain.state_dict())
    shifted.set_attn_processor(AttnProcessor2_0())
    for name, block in plain.named_modules():
        if isinstance(block, ResnetBlock2D):
            distance = levels[name.partition(".resnets")[0]] + 1

            def hook(module: nn.Module, args: tuple[Tensor, ...], distance: int = distance) -> tuple[Tensor]:
                x = args[0].unflatten(0, (-1, distance)).clone()
                for part in range(distance):
                    x[:, part] = shift_from_outside(x[:, part], 6 // distance, x.shape[2] // 3, boundary)
                return (x.flatten(0, 1),)

            block.norm1.register_forward_pre_hook(hook)
    assert torch.equal(fold(shifted(*inputs, boundary=boundary).sample), run_plain(plain, inputs))


class Watched(nn.GroupNorm):
    """A norm that somebody changed, as adapters do."""


def hook_forward(block: ShiftResnetBlock2D) -> None:
    """As offloading libraries do: they set `forward` on the instance."""
    block.norm1.forward = functools.partial(nn.GroupNorm.forward, block.norm1)


CHANGES: dict[str, tuple[Callable[[ShiftResnetBlock2D], Any], int]] = {
    "nothing": (lambda block: None, 2),
    "a hook after norm1": (lambda block: block.norm1.register_forward_hook(lambda *_: None), 1),
    "a hook before norm2": (lambda block: block.norm2.register_forward_pre_hook(lambda *_: None), 1),
    "a backward hook": (lambda block: block.norm1.register_full_backward_hook(lambda *_: None), 1),
    "a hook on SiLU": (lambda block: block.nonlinearity.register_forward_hook(lambda *_: None), 0),
    "another activation": (lambda block: setattr(block, "nonlinearity", nn.GELU()), 0),
    "another norm": (lambda block: setattr(block.norm1, "__class__", Watched), 1),
    "another forward": (hook_forward, 1),
    "a hook on conv1": (lambda block: block.conv1.register_forward_hook(lambda *_: None), 2),
}


@pytest.mark.parametrize("boundary", [None, "zero", "circular"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_block_runs_its_modules(change: str, boundary: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is plain is one operation; a module that somebody changed or watches is called, and has its effect."""
    apply, fused = CHANGES[change]
    calls = []

    def counted(*args: Any) -> Tensor:
        calls.append(args[7])  # the boundary
        return shift_group_norm_silu(*args)

    monkeypatch.setattr("latent_shift.models.resnet.shift_group_norm_silu", counted)
    torch.manual_seed(0)
    plain = ResnetBlock2D(in_channels=8, out_channels=4, temb_channels=6, groups=2).eval()
    block = copy.deepcopy(plain)
    block.__class__, block.shifts, block.fold, block.placement = ShiftResnetBlock2D, True, 3, "before_norm1"
    apply(block)
    plain.nonlinearity = block.nonlinearity
    x, temb = torch.randn(6, 8, 4, 4), torch.randn(6, 6)
    y = block(x, temb, 3, boundary)
    assert len(calls) == fused
    assert set(calls[1:]) <= {None}
    if boundary is not None:
        plain.norm1.register_forward_pre_hook(lambda _, args: (shift_from_outside(args[0], 3, 2, boundary),))
    assert torch.equal(y, plain(x, temb))


@torch.no_grad()
def test_the_default_boundary_is_the_configs() -> None:
    _, zero = make_pair()
    circular = LatentShiftUNet(**TINY, default_boundary="circular").eval()
    circular.load_state_dict(zero.state_dict())
    circular.set_attn_processor(AttnProcessor2_0())
    inputs = make_inputs()
    for network, boundary in ((zero, "zero"), (circular, "circular")):
        assert torch.equal(network(*inputs).sample, network(*inputs, boundary=boundary).sample)
        assert torch.equal(network(*inputs).sample, network(*inputs, return_dict=False)[0])
        assert torch.equal(network(*inputs, boundary="zero").sample, zero(*inputs).sample)
    assert not torch.allclose(zero(*inputs).sample, circular(*inputs).sample, atol=1e-4)


@torch.no_grad()
def test_an_image_is_a_video_of_one_frame_with_the_shift_on() -> None:
    _, shifted = make_pair()
    inputs = make_inputs(num_frames=1)
    without = shifted(*inputs, boundary=None).sample
    assert torch.equal(shifted(*inputs, boundary="circular").sample, without)
    assert not torch.allclose(shifted(*inputs, boundary="zero").sample, without, atol=1e-3)


def test_paper_scale_has_22_blocks_and_the_papers_parameters() -> None:
    with torch.device("meta"):
        unet, autoencoder = LatentShiftUNet(**PAPER), AutoencoderKL(**PAPER_AUTOENCODER)
    blocks = [module for module in unet.modules() if isinstance(module, ResnetBlock2D)]
    assert [type(block) for block in blocks] == [ShiftResnetBlock2D] * 22
    assert {(block.fold, block.placement) for block in blocks} == {(3, "before_norm1")}
    assert sum(parameter.numel() for parameter in unet.parameters()) == 872_300_484
    blocks = [module for module in autoencoder.modules() if isinstance(module, ResnetBlock2D)]
    assert [type(block) for block in blocks] == [ResnetBlock2D] * 24
    assert sum(parameter.numel() for parameter in autoencoder.parameters()) == 83_653_863


@torch.no_grad()
@pytest.mark.parametrize("boundary", ["zero", "circular"])
def test_clips_of_a_batch_never_leak(boundary: str) -> None:
    _, shifted = make_pair()
    sample, timestep, text = make_inputs(3, 4)
    before = shifted(sample, timestep, text, boundary=boundary).sample
    others = [torch.randn_like(sample), torch.randn_like(text)]
    changed = (sample.clone(), timestep.clone(), text.clone())
    changed[0][1], changed[1][1], changed[2][1] = others[0][1], 3, others[1][1]
    after = shifted(*changed, boundary=boundary).sample
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1], atol=1e-2)
    alone = [shifted(sample[[i]], timestep[[i]], text[[i]], boundary=boundary).sample for i in range(3)]
    torch.testing.assert_close(before, torch.cat(alone), rtol=0, atol=1e-5)


@torch.no_grad()
def test_frames_see_each_other_through_the_shift_alone() -> None:
    _, shifted = make_pair()
    sample, timestep, text = make_inputs(num_frames=4)
    changed = sample.clone()
    changed[:, :, 3] += 1
    for boundary, seen in (("zero", True), (None, False)):
        before, after = (shifted(x, timestep, text, boundary=boundary).sample for x in (sample, changed))
        for t in range(3):
            assert torch.equal(before[:, :, t], after[:, :, t]) is not seen, (boundary, t)


@torch.no_grad()
def test_circular_boundary_commutes_with_rolling_the_frames() -> None:
    _, shifted = make_pair()
    sample, timestep, text = make_inputs(num_frames=5)
    for boundary, commutes in (("circular", True), ("zero", False)):
        rolled = shifted(sample.roll(2, 2), timestep, text, boundary=boundary).sample
        expected = shifted(sample, timestep, text, boundary=boundary).sample.roll(2, 2)
        assert torch.allclose(rolled, expected, rtol=0, atol=1e-5) is commutes


def test_two_threads_on_one_model() -> None:
    _, shifted = make_pair()
    cases = [(make_inputs(2, 3), "zero"), (make_inputs(1, 6), "circular"), (make_inputs(3, 2), None)]
    with torch.no_grad():
        expected = [shifted(*inputs, boundary=boundary).sample for inputs, boundary in cases]
    start = threading.Barrier(len(cases))
    right = [0] * len(cases)

    def work(number: int) -> None:
        inputs, boundary = cases[number]
        with torch.no_grad():
            start.wait()
            for _ in range(15):
                result = shifted(*inputs, boundary=boundary).sample
                right[number] += torch.allclose(result, expected[number], rtol=0, atol=1e-5)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [15] * len(cases)


def count_calls(module: nn.Module) -> Callable[[], int]:
    calls: list[None] = []
    module.register_forward_hook(lambda *_: calls.append(None))
    return lambda: len(calls)


@pytest.mark.parametrize("boundary", ["zero", "circular", None])
def test_checkpointing_gives_the_same_loss_and_gradients(boundary: str | None) -> None:
    results = []
    for checkpointing in (False, True):
        _, shifted = make_pair(dropout=0.2)
        shifted.train()
        if checkpointing:
            shifted.enable_gradient_checkpointing()
        convolutions = count_calls(shifted.down_blocks[0].resnets[0].conv1)
        attentions = count_calls(shifted.down_blocks[0].attentions[0].transformer_blocks[0].attn2)
        sample, timestep, text = make_inputs()
        sample, text = sample.requires_grad_(), text.requires_grad_()
        torch.manual_seed(5)
        loss = shifted(sample, timestep, text, boundary=boundary).sample.square().mean()
        # The shift must be that of this call, though another one comes between forward and backward.
        with torch.no_grad():
            shifted(*make_inputs(1, 5), boundary="zero")
        loss.backward()
        # Once in each forward pass, and once more where activations were forgotten.
        assert convolutions() == 2 + checkpointing
        assert attentions() == 2 + checkpointing
        gradients = {name: parameter.grad for name, parameter in shifted.named_parameters()}
        results.append({"loss": loss.detach(), "sample": sample.grad, "text": text.grad, **gradients})
    for name, value in results[0].items():
        assert torch.allclose(results[1][name], value, rtol=1e-6, atol=1e-9), name


def test_a_function_that_checkpoints_runs_what_it_runs_in_diffusers() -> None:
    plain, shifted = make_pair()
    called: dict[Any, list[str]] = {plain: [], shifted: []}
    for network, names in called.items():

        def run(module: nn.Module, *arguments: Any, names: list[str] = names) -> Any:
            names.append(type(module).__name__.removeprefix("Shift"))
            return module(*arguments)

        network.enable_gradient_checkpointing(run)
    run_plain(plain, make_inputs())
    shifted(*make_inputs())
    # Diffusers leaves out the first ResNet block of the middle.
    assert sorted(called[shifted]) == sorted([*called[plain], "ResnetBlock2D"])
    assert {*called[plain]} == {"ResnetBlock2D", "BasicTransformerBlock"}


@torch.no_grad()
def test_blocks_are_called_as_modules(tmp_path: Path) -> None:
    """So that what hooks them, wraps them or brings their weights when they are called works."""
    _, shifted = make_pair()
    expected = shifted(*make_inputs()).sample
    calls = [count_calls(block) for block in (*shifted.down_blocks, shifted.mid_block, *shifted.up_blocks)]
    assert torch.equal(shifted(*make_inputs()).sample, expected)
    assert [count() for count in calls] == [1] * 5
    shifted.enable_group_offload(
        torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=str(tmp_path)
    )
    assert torch.equal(shifted(*make_inputs()).sample, expected)


def test_what_is_not_split_is_in_the_network() -> None:
    _, shifted = make_pair()
    assert {*shifted._no_split_modules} <= {type(module).__name__ for module in shifted.modules()}


@torch.no_grad()
def test_the_default_attention_is_that_of_a_clip() -> None:
    shifted = LatentShiftUNet(**TINY).eval()
    expected = shifted(*make_inputs()).sample
    shifted.set_attn_processor(AttnProcessor2_0())
    assert not attends_by_clip(shifted)
    shifted.set_default_attn_processor()
    assert attends_by_clip(shifted)
    assert torch.equal(shifted(*make_inputs()).sample, expected)


def test_no_state_is_left_on_the_modules() -> None:
    _, shifted = make_pair()
    before = [set(vars(module)) for module in shifted.modules()]
    with torch.no_grad():
        shifted(*make_inputs(), boundary="circular")
    assert [set(vars(module)) for module in shifted.modules()] == before


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift_fold": 1}, "shift_fold must be a whole number from 2 to 8, the narrowest width, got 1"),
        ({"shift_fold": 2.5}, "shift_fold must be a whole number from 2 to 8, the narrowest width, got 2.5"),
        ({"shift_fold": 9}, "shift_fold must be a whole number from 2 to 8, the narrowest width, got 9"),
        ({"shift_distance": 1.0}, "shift_distance must be a whole number from 1, or 2 such numbers, got 1.0"),
        ({"shift_distance": [1, 2.0]}, r"shift_distance must be .* got \[1, 2.0\]"),
        ({"dual_cross_attention": True}, "dual_cross_attention must be False, got True"),
        ({"attention_type": "gated"}, "attention_type must be default, got 'gated'"),
        ({"shift_placement": "after"}, "shift_placement must be one of before_norm1, before_conv1, got 'after'"),
        ({"shift_distance": 0}, "shift_distance must be a whole number from 1, or 2 such numbers, got 0"),
        ({"shift_distance": (1, 0)}, r"shift_distance must be a whole number from 1, or 2 such numbers, got \(1, 0\)"),
        ({"shift_distance": (1, 2, 3)}, r"shift_distance must be .* or 2 such numbers, got \(1, 2, 3\)"),
        ({"default_boundary": "wrap"}, "default_boundary must be one of zero, circular, got 'wrap'"),
        ({"noise_correlation": 1.0}, r"noise_correlation must be in \[0, 1\), got 1.0"),
        ({"noise_correlation": -0.1}, r"noise_correlation must be in \[0, 1\), got -0.1"),
        (
            {"down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D")},
            "block type must be one of CrossAttnDownBlock2D, CrossAttnUpBlock2D, DownBlock2D, UNetMidBlock2DCrossAttn, "
            "UpBlock2D, got 'AttnDownBlock2D'",
        ),
        ({"up_block_types": ("ResnetUpsampleBlock2D", "CrossAttnUpBlock2D")}, "got 'ResnetUpsampleBlock2D'"),
        ({"mid_block_type": "UNetMidBlock2D"}, "got 'UNetMidBlock2D'"),
        ({"mid_block_type": None}, "got 'NoneType'"),
        ({"num_class_embeds": 3}, "num_class_embeds must be None, got 3"),
        ({"class_embed_type": "timestep"}, "class_embed_type must be None, got 'timestep'"),
        ({"center_input_sample": True}, "center_input_sample must be False, got True"),
        (
            {"addition_embed_type": "image_hint", "encoder_hid_dim": 12},
            "addition_embed_type must be one that leaves the sample as it is, got 'image_hint'",
        ),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LatentShiftUNet(**{**TINY, **options})


@pytest.mark.usefixtures("as_users_run")
def test_inputs_that_are_refused() -> None:
    _, shifted = make_pair()
    sample, timestep, text = make_inputs()
    axes = r"\(batch, channels, frames, height, width\)"
    cases = {
        rf"sample must have 5 axes {axes}, got \(2, 4, 8, 8\)": (
            sample[:, :, 0],
            text,
        ),
        r"encoder_hidden_states must have 2 rows, got \(1, 5, 12\)": (sample, text[:1]),
        r"encoder_hidden_states must have 2 rows, got \(6, 5, 12\)": (sample, text.repeat(3, 1, 1)),
        "height of the latents must be a multiple of 2, got 7": (sample[..., :7, :], text),
        "width of the latents must be a multiple of 2, got 5": (sample[..., :5], text),
    }
    for message, (latents, features) in cases.items():
        with pytest.raises(InputError, match=message):
            shifted(latents, timestep, features)
    with pytest.raises(InputError, match="boundary must be one of zero, circular, got 'mirror'"):
        shifted(sample, timestep, text, boundary="mirror")
    with pytest.raises(InputError, match=r"timestep must be one, or one for each of 2 clips, got \(6,\)"):
        shifted(sample, timestep.repeat(3), text)
    with pytest.raises(InputError, match="down_block_additional_residuals must be 4 tensors, got 1"):
        shifted(sample, timestep, text, down_block_additional_residuals=(sample,))


COMPILED = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
import logging
logging.disable(logging.WARNING)
from latent_shift import LatentShiftUNet
from latent_shift.models.layers import set_memory_format

torch.manual_seed(0)
unet = LatentShiftUNet(
    block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12, attention_head_dim=2,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
inputs = torch.randn(2, 4, 3, 8, 8), torch.tensor([3, 500]), torch.randn(2, 5, 12)


def compare(boundary, **tolerances):
    options = {"boundary": boundary, "return_dict": False}
    torch.testing.assert_close(compiled(*inputs, **options)[0], unet(*inputs, **options)[0], **tolerances)


for boundary in ("zero", None):
    compare(boundary)
# As a CPU runs it: convolutions as products, and norms in C++, are for code that is not compiled.
unet.to(torch.bfloat16)
set_memory_format(unet, "channels_last")
inputs = inputs[0].bfloat16(), inputs[1], inputs[2].bfloat16()
with torch.no_grad():
    compare("zero", rtol=0.05, atol=0.05)
print("equal")
"""


@pytest.mark.slow
def test_compiles_in_one_graph() -> None:
    # In an interpreter of its own: the checks of annotations cannot be compiled.
    source = str(Path(sys.modules["latent_shift"].__file__ or "").parents[1])
    command = [sys.executable, "-c", COMPILED, source]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "equal\n"


def test_what_forward_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match="enable_freeu must not be called: the video U-Nets have no FreeU"):
        LatentShiftUNet(**TINY).enable_freeu(0.9, 0.2, 1.2, 1.4)
