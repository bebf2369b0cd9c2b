from __future__ import annotations

import pytest
import torch

from latent_shift.benchmark.networks import (
    MODELS,
    build_denoiser,
    count,
    example_inputs,
    find_benchmark_preset,
)
from latent_shift.core.errors import InputError
from latent_shift.models.layers import set_memory_format
from latent_shift.models.presets import PRESETS

TINY = PRESETS["tiny"]
CPU = torch.device("cpu")
EAGER = [name for name in MODELS if name != "unet2d_compiled"]


@pytest.mark.parametrize("name", EAGER)
def test_each_network_takes_clips_and_gives_clips(name: str) -> None:
    inputs = example_inputs(TINY, CPU, torch.float32)
    denoiser = build_denoiser(name, TINY, CPU, torch.float32)
    with torch.inference_mode():
        (prediction,) = denoiser(*inputs)
    assert prediction.shape == inputs[0].shape == (1, 4, TINY.num_frames, 8, 8)
    # Neither vanishing nor exploding: denormal numbers and infinities would change the time.
    assert 0.1 < prediction.std() < 10


def test_networks_share_weights_and_without_the_shift_give_the_same() -> None:
    inputs = example_inputs(TINY, CPU, torch.float32)
    floor = build_denoiser("unet2d", TINY, CPU, torch.float32)
    shift = build_denoiser("latent_shift", TINY, CPU, torch.float32, floor)
    off = build_denoiser("latent_shift_off", TINY, CPU, torch.float32, shift)
    assert off.network.conv_in.weight.data_ptr() == floor.network.conv_in.weight.data_ptr()
    with torch.inference_mode():
        torch.testing.assert_close(off(*inputs)[0], floor(*inputs)[0], rtol=0, atol=1e-4)
        assert not torch.allclose(shift(*inputs)[0], floor(*inputs)[0])
    # The memory format of one is its own.
    set_memory_format(shift.network, "channels_last")
    assert shift.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert floor.network.conv_in.weight.is_contiguous()


def test_the_shift_has_no_parameter_and_no_operation() -> None:
    shift, off, floor = (count(name, TINY) for name in ("latent_shift", "latent_shift_off", "unet2d"))
    assert shift == off
    assert shift["parameters"] == floor["parameters"]
    # The text's keys and values are made once a clip, and not once a frame.
    widths = [32, 32, 64] + [64] + [64, 64, 32, 32, 32, 32]
    saved = sum(2 * 2 * TINY.max_tokens * 32 * width for width in widths) * (TINY.num_frames - 1)
    assert 1 <= (floor["flops"] - shift["flops"]) / saved < 1.2  # and the time embedding


@pytest.mark.parametrize("name", ["latent_vdm", "unet3d", "unet_motion"])
def test_the_rivals_have_more_of_both(name: str) -> None:
    rival, shift = count(name, TINY), count("latent_shift", TINY)
    assert rival["parameters"] > shift["parameters"]
    assert rival["flops"] > shift["flops"]


def test_presets_that_are_not_of_latent_shift_are_refused() -> None:
    with pytest.raises(InputError, match="preset must be paper, small or tiny"):
        find_benchmark_preset("tiny-vdm")
    with pytest.raises(InputError, match="preset must be one of paper"):
        find_benchmark_preset("papre")
