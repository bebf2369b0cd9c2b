"""`LatentShiftUNet` against diffusers' own 2-D U-Net, and against the shift hooked into it from outside."""

import inspect
import threading

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D

from latent_shift.models import LatentShiftUNet, ShiftResnetBlock2D
from latent_shift.ops import temporal_shift_folded

TINY = {
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
PAPER = {
    "sample_size": 32,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
}


def make_pair(**options):
    torch.manual_seed(0)
    plain = UNet2DConditionModel(**TINY, **options).eval()
    shifted = LatentShiftUNet(**TINY, **options).eval()
    shifted.load_state_dict(plain.state_dict(), strict=True)
    return plain, shifted


def make_inputs(batch=2, frames=3):
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch, 4, frames, 8, 8, generator=generator)
    text = torch.randn(batch, 5, 12, generator=generator)
    return sample, torch.tensor([7, 400, 800][:batch]), text


def fold(x):
    return x.transpose(1, 2).flatten(0, 1)


def test_keys_are_those_of_the_2d_network_both_ways():
    plain, shifted = make_pair()
    assert list(plain.state_dict()) == list(shifted.state_dict())
    plain.load_state_dict(shifted.state_dict(), strict=True)


def test_config_round_trip(tmp_path):
    unet = LatentShiftUNet(
        **TINY, shift_fold=8, shift_placement="before_conv1", shift_boundary="circular", noise_shared=0.5
    ).eval()
    unet.save_pretrained(tmp_path)
    loaded = LatentShiftUNet.from_pretrained(tmp_path).eval()
    again = LatentShiftUNet.from_config(unet.config)
    for other in (loaded, again):
        for key, value in {**TINY, "shift_fold": 8, "shift_boundary": "circular", "noise_shared": 0.5}.items():
            assert other.config[key] == (list(value) if isinstance(value, tuple) and other is loaded else value)
        assert {block.placement for block in other.modules() if isinstance(block, ShiftResnetBlock2D)} == {
            "before_conv1"
        }
    inputs = make_inputs()
    assert torch.equal(unet(*inputs).sample, loaded(*inputs).sample)


@torch.no_grad()
def test_the_2d_class_loads_our_folder(tmp_path):
    _, shifted = make_pair()
    shifted.save_pretrained(tmp_path)
    image_model = UNet2DConditionModel.from_pretrained(tmp_path).eval()
    sample, time, text = make_inputs(frames=1)
    expected = shifted(sample, time, text, boundary=None).sample[:, :, 0]
    assert torch.equal(image_model(sample[:, :, 0], time, text).sample, expected)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"use_linear_projection": True}, {"resnet_time_scale_shift": "scale_shift"}])
def test_without_shift_every_bit_is_that_of_the_2d_network(options):
    plain, shifted = make_pair(**options)
    sample, time, text = make_inputs()
    frames = sample.shape[2]
    expected = plain(fold(sample), time.repeat_interleave(frames), text.repeat_interleave(frames, 0)).sample
    assert torch.equal(fold(shifted(sample, time, text, boundary=None).sample), expected)


@torch.no_grad()
@pytest.mark.parametrize("boundary", ["zero", "circular"])
def test_the_shift_is_at_the_entry_of_each_residual_branch(boundary):
    """The 2-D network with a hook before each norm1, which the shortcut does not pass, is the same function."""
    plain, shifted = make_pair()
    sample, time, text = make_inputs()
    frames = sample.shape[2]
    blocks = [module for module in plain.modules() if isinstance(module, ResnetBlock2D)]
    for block in blocks:
        block.norm1.register_forward_pre_hook(
            lambda _, inputs: (temporal_shift_folded(inputs[0], frames, 3, boundary),)
        )
    expected = plain(fold(sample), time.repeat_interleave(frames), text.repeat_interleave(frames, 0)).sample
    result = fold(shifted(sample, time, text, boundary=boundary).sample)
    assert torch.equal(result, expected)
    assert not torch.equal(result, fold(shifted(sample, time, text, boundary=None).sample))


def test_paper_scale_has_22_blocks_and_the_papers_parameters():
    with torch.device("meta"):
        unet = LatentShiftUNet(**PAPER)
    assert sum(isinstance(module, ShiftResnetBlock2D) for module in unet.modules()) == 22
    assert sum(parameter.numel() for parameter in unet.parameters()) == 872_300_484


@torch.no_grad()
def test_clips_of_a_batch_never_leak():
    _, shifted = make_pair()
    sample, time, text = make_inputs(batch=3, frames=4)
    before = shifted(sample, time, text).sample
    changed = sample.clone()
    changed[1] += 1
    after = shifted(changed, time, text).sample
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not torch.equal(before[1], after[1])


@torch.no_grad()
def test_neighbouring_frames_are_seen_and_only_through_the_shift():
    _, shifted = make_pair()
    sample, time, text = make_inputs(frames=4)
    changed = sample.clone()
    changed[:, :, 3] += 1
    difference = (shifted(changed, time, text).sample - shifted(sample, time, text).sample).abs().amax((0, 1, 3, 4))
    assert (difference > 0).all()
    still = shifted(changed, time, text, boundary=None).sample - shifted(sample, time, text, boundary=None).sample
    assert still[:, :, :3].abs().max() == 0


@torch.no_grad()
def test_two_threads_on_one_model():
    _, shifted = make_pair()
    cases = [(make_inputs(2, 3), "zero"), (make_inputs(1, 5), "circular")]
    expected = [shifted(*inputs, boundary=boundary).sample for inputs, boundary in cases]
    wrong: list[int] = []

    def work(number):
        inputs, boundary = cases[number]
        with torch.no_grad():
            for _ in range(10):
                if not torch.allclose(shifted(*inputs, boundary=boundary).sample, expected[number], atol=1e-6):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("boundary", ["zero", "circular", None])
def test_checkpointing_gives_the_same_gradients(boundary):
    _, shifted = make_pair()
    shifted.train()
    inputs = make_inputs()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            shifted.enable_gradient_checkpointing()
        shifted.zero_grad()
        shifted(*inputs, boundary=boundary).sample.square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in shifted.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-9)


@torch.no_grad()
def test_circular_boundary_commutes_with_rolling_the_frames():
    _, shifted = make_pair()
    sample, time, text = make_inputs(frames=5)
    rolled = shifted(sample.roll(2, 2), time, text, boundary="circular").sample
    torch.testing.assert_close(rolled, shifted(sample, time, text, boundary="circular").sample.roll(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift_fold": 1}, "shift_fold must be at least 2, got 1"),
        ({"noise_shared": 1.0}, r"noise_shared must be in \[0, 1\), got 1.0"),
        ({"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, "block type must be one of"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LatentShiftUNet(**{**TINY, **options})


def test_bad_sizes_are_named():
    _, shifted = make_pair()
    sample, time, text = make_inputs()
    with pytest.raises(ValueError, match="height of the latents must be a multiple of 2, got 7"):
        shifted(sample[..., :7, :], time, text)
    forward = inspect.unwrap(LatentShiftUNet.forward)  # as users have it, without the type checks of the test run
    with pytest.raises(ValueError, match="encoder_hidden_states must have 2 rows"):
        forward(shifted, sample, time, text[:1])
