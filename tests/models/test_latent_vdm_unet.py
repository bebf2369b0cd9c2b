"""Covers `latent_shift.models.latent_vdm_unet`: against NumPy, transformers' T5 and diffusers' 2-D U-Net."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from latent_shift.core.errors import InputError
from latent_shift.models import LatentVDMUNet, TemporalAttention, latent_vdm_unet
from latent_shift.models.latent_vdm_unet import relative_position_buckets
from latent_shift.models.presets import PRESETS

from .test_latent_shift_unet import TINY as SHIFT_TINY

TINY: dict[str, Any] = {**SHIFT_TINY, "temporal_heads": 2}


def make_unet(trained: bool = True, **options: Any) -> LatentVDMUNet:
    """With random temporal layers, or as they are before training."""
    torch.manual_seed(0)
    unet = LatentVDMUNet(**{**TINY, **options}).eval()
    if trained:
        for name, parameter in unet.named_parameters():
            if ".temporal_attentions." in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return unet


def inputs(batch: int = 2, frames: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch, 4, frames, 8, 8, generator=generator)
    return sample, torch.arange(batch) * 100 + 3, torch.randn(batch, 3, 12, generator=generator)


def attention_by_hand(layer: TemporalAttention, x: np.ndarray, boundary: str) -> np.ndarray:
    """One pixel, `(frames, channels)`, in float64."""
    weights = {name: tensor.detach().double().numpy() for name, tensor in layer.state_dict().items()}
    frames, channels = x.shape
    width = channels // layer.heads
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    normed = normed * weights["norm.weight"] + weights["norm.bias"]
    q, k, v = (normed @ weights[f"to_{name}.weight"].T for name in "qkv")
    out = np.zeros_like(x)
    for head in range(layer.heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[:, part] @ k[:, part].T / np.sqrt(width)
        for i in range(frames):
            for j in range(frames):
                distance = j - i
                if boundary == "circular":
                    distance = (distance + frames // 2) % frames - frames // 2
                bucket = int(
                    relative_position_buckets(torch.tensor([[distance]]), layer.num_buckets, layer.max_distance)
                )
                scores[i, j] += weights["relative_attention_bias.weight"][bucket, head]
        scores = np.exp(scores - scores.max(1, keepdims=True))
        out[:, part] = scores / scores.sum(1, keepdims=True) @ v[:, part]
    return np.asarray(x + out @ weights["to_out.weight"].T + weights["to_out.bias"])


@pytest.mark.parametrize("boundary", ["zero", "circular"])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_temporal_attention_by_hand(frames: int, boundary: Any) -> None:
    torch.manual_seed(0)
    layer = TemporalAttention(8, heads=2).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2 * frames, 8, 3, 2, dtype=torch.float64)
    mixed = layer(x, frames, boundary).detach()
    for clip, row, column in [(0, 0, 0), (1, 2, 1)]:
        rows = slice(clip * frames, (clip + 1) * frames)
        expected = attention_by_hand(layer, x[rows, :, row, column].numpy(), boundary)
        np.testing.assert_allclose(mixed[rows, :, row, column].numpy(), expected, atol=1e-6)


def test_buckets_are_t5s() -> None:
    frames = torch.arange(200)
    distance = frames[None] - frames[:, None]
    for buckets, most in ((32, 32), (32, 128), (8, 20)):
        expected = T5Attention._relative_position_bucket(distance, True, buckets, most)
        assert torch.equal(relative_position_buckets(distance, buckets, most), expected)


def test_pixels_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = TemporalAttention(8, heads=2)
    torch.nn.init.normal_(layer.to_out.weight)
    x = torch.randn(6, 8, 4, 4)
    whole = layer(x, 3)
    sizes: list[int] = []
    attend = TemporalAttention._attend

    def counted(self: TemporalAttention, part: Tensor, bias: Tensor) -> Tensor:
        sizes.append(len(part))
        return attend(self, part, bias)

    monkeypatch.setattr(latent_vdm_unet, "_MAX_BATCH_TIMES_HEADS", 20)
    monkeypatch.setattr(TemporalAttention, "_attend", counted)
    torch.testing.assert_close(layer(x, 3), whole)
    assert sizes == [10, 10, 10, 2]


def test_paper_scale_has_a_temporal_layer_after_each_spatial_transformer() -> None:
    unet = PRESETS["paper-vdm"].build()["unet"]
    assert sum(parameter.numel() for parameter in unet.parameters()) == 921_903_620
    assert sum(isinstance(module, TemporalAttention) for module in unet.modules()) == 16


def test_before_training_and_without_temporal_layers_it_is_the_2d_network() -> None:
    sample, timestep, text = inputs()
    plain = UNet2DConditionModel(**{key: value for key, value in TINY.items() if key != "temporal_heads"}).eval()
    fresh, trained = make_unet(trained=False), make_unet()
    for unet in (fresh, trained):
        unet.load_image_state_dict(plain.state_dict())
    expected = torch.stack([plain(sample[:, :, i], timestep, text).sample for i in range(5)], dim=2)
    torch.testing.assert_close(fresh(sample, timestep, text).sample, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trained(sample, timestep, text, boundary=None).sample, expected, atol=1e-5, rtol=1e-5)
    assert (trained(sample, timestep, text).sample - expected).abs().max() > 1e-2


def test_weights_that_do_not_fit_are_named() -> None:
    unet = make_unet()
    state = unet.state_dict()
    with pytest.raises(InputError, match=r"missing conv_in.bias"):
        unet.load_image_state_dict({key: value for key, value in state.items() if key != "conv_in.bias"})
    with pytest.raises(InputError, match="unexpected extra"):
        unet.load_image_state_dict({**state, "extra": torch.zeros(1)})
    with pytest.raises(InputError, match=r"conv_in.bias must have the shape \(8,\), got \(3,\)"):
        unet.load_image_state_dict({**state, "conv_in.bias": torch.zeros(3)})
    one = next(key for key in state if ".temporal_attentions." in key)
    with pytest.raises(InputError, match="missing .*temporal_attentions"):
        unet.load_image_state_dict({key: value for key, value in state.items() if key != one})


def test_every_frame_sees_every_other_of_its_clip_alone() -> None:
    unet = make_unet()
    sample, timestep, text = inputs()
    before = unet(sample, timestep, text).sample
    changed = sample.clone()
    changed[0, :, 4] += 1
    difference = (unet(changed, timestep, text).sample - before).abs().amax(dim=(1, 3, 4))
    assert (difference[0] > 1e-4).all()
    assert difference[1].max() < 1e-5


def test_circular_boundary_commutes_with_rolling_the_frames() -> None:
    unet = make_unet()
    sample, timestep, text = inputs(frames=6)
    whole = unet(sample, timestep, text, boundary="circular").sample
    rolled = unet(sample.roll(2, dims=2), timestep, text, boundary="circular").sample
    torch.testing.assert_close(rolled, whole.roll(2, dims=2), atol=1e-5, rtol=1e-4)
    assert (unet(sample.roll(2, dims=2), timestep, text).sample - whole.roll(2, dims=2)).abs().max() > 1e-3


def test_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        unet = make_unet()
        unet.train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        sample, timestep, text = inputs()
        unet(sample, timestep, text).sample.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in unet.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)
    assert gradients[0]["mid_block.temporal_attentions.0.relative_attention_bias.weight"].abs().max() > 0


def test_config_round_trip(tmp_path: Path) -> None:
    unet = make_unet(relative_attention_max_distance=48, noise_correlation=0.25)
    unet.save_pretrained(tmp_path)
    again = LatentVDMUNet.from_pretrained(tmp_path)
    configs = [json.loads(network.to_json_string()) for network in (unet, again)]
    assert {**configs[1], "_name_or_path": None} == {**configs[0], "_name_or_path": None}
    assert configs[1]["relative_attention_max_distance"] == 48
    assert again.mid_block.temporal_attentions[0].max_distance == 48
    assert torch.equal(again(*inputs()).sample, unet(*inputs()).sample)


def test_the_folder_of_a_2d_network_is_the_image_model(tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain = UNet2DConditionModel(**SHIFT_TINY).eval()
    plain.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": False}):
        unet = LatentVDMUNet.from_pretrained(tmp_path, temporal_heads=2, **options).eval()
        assert not any(parameter.is_meta for parameter in unet.parameters())
        sample, timestep, text = inputs()
        result = unet(sample, timestep, text).sample
        assert torch.equal(result, unet(sample, timestep, text, boundary=None).sample)
        assert unet.mid_block.temporal_attentions[0].to_q.weight.abs().max() < 1
    half = LatentVDMUNet.from_pretrained(tmp_path, temporal_heads=2, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_a_part_of_a_temporal_layer_is_refused(tmp_path: Path) -> None:
    make_unet().save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    weights = load_file(file)
    del weights["mid_block.temporal_attentions.0.to_q.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"^mid_block.temporal_attentions.0 must have all of its weights, or none"):
        LatentVDMUNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temporal_heads": 3}, "temporal_heads must divide the width of every block, 8, got 3"),
        ({"temporal_heads": 0}, "temporal_heads"),
        ({"relative_attention_num_buckets": 6}, "relative_attention_num_buckets must be a multiple of 4, got 6"),
        ({"relative_attention_max_distance": 8}, "relative_attention_max_distance must be more than 8"),
        ({"noise_correlation": 1.0}, "noise_correlation"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        LatentVDMUNet(**{**TINY, **options})


def test_weights_may_be_elsewhere_until_they_are_needed() -> None:
    unet, (sample, timestep, text) = make_unet(), inputs()
    with torch.no_grad():
        expected = unet(sample, timestep, text).sample
        cpu_offload(unet, torch.device("cpu"))
        torch.testing.assert_close(unet(sample, timestep, text).sample, expected)
