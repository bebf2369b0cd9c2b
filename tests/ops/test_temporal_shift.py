"""`ops.temporal_shift` against Eq. 3 written out in NumPy, frame by frame."""

import inspect
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_shift.ops import temporal_shift, temporal_shift_folded


def reference(x: np.ndarray, fold: int, circular: bool) -> np.ndarray:
    """Eq. 3 with loops: `(batch, channels, frames, height, width)`."""
    batch, channels, frames = x.shape[:3]
    k = channels // fold
    y = np.zeros_like(x)
    for b in range(batch):
        for t in range(frames):
            for c in range(channels):
                source = t - 1 if c < k else t + 1 if c >= channels - k else t
                if circular:
                    source %= frames
                if 0 <= source < frames:
                    y[b, c, t] = x[b, c, source]
    return y


@pytest.mark.parametrize("boundary", ["zero", "circular"])
@pytest.mark.parametrize("fold", [2, 3, 8])
@pytest.mark.parametrize("frames", [1, 2, 3, 24])
@pytest.mark.parametrize("channels", [1, 3, 7, 8, 10, 320])
def test_equals_equation_3(channels, frames, fold, boundary):
    x = torch.randn(2, channels, frames, 2, 3, dtype=torch.float64)
    expected = reference(x.numpy(), fold, boundary == "circular")
    np.testing.assert_array_equal(temporal_shift(x, fold, boundary).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_copies_bits_in_every_dtype(dtype):
    x = torch.randn(2, 10, 5, 3, 3).to(dtype)
    expected = reference(x.double().numpy(), 3, False)
    y = temporal_shift(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.double().numpy(), expected)


def test_320_channels_are_106_108_106():
    x = torch.arange(320.0).reshape(1, 320, 1, 1, 1).repeat(1, 1, 3, 1, 1) + 1
    middle = temporal_shift(x)[0, :, 0, 0, 0]
    assert (middle == 0).sum() == 106
    assert temporal_shift(x)[0, :, 2, 0, 0].eq(0).nonzero().flatten().tolist() == list(range(214, 320))


@pytest.mark.parametrize("boundary", ["zero", "circular"])
def test_folded_equals_5d_and_keeps_channels_last(boundary):
    x = torch.randn(3, 7, 4, 2, 2)
    folded = x.transpose(1, 2).flatten(0, 1).to(memory_format=torch.channels_last)
    y = temporal_shift_folded(folded, 4, 3, boundary)
    assert y.stride() == folded.stride()
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = temporal_shift(x, 3, boundary).transpose(1, 2).flatten(0, 1)
    assert torch.equal(y, expected)


def test_input_is_not_changed():
    x = torch.randn(1, 6, 4, 2, 2)
    before = x.clone()
    temporal_shift(x)
    assert torch.equal(x, before)


def test_circular_of_one_frame_is_the_identity_and_zero_keeps_the_middle():
    x = torch.randn(2, 9, 1, 2, 2)
    assert torch.equal(temporal_shift(x, boundary="circular"), x)
    y = temporal_shift(x)
    assert torch.equal(y[:, 3:6], x[:, 3:6])
    assert y[:, :3].abs().sum() == y[:, 6:].abs().sum() == 0


@pytest.mark.parametrize("boundary", ["zero", "circular"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_gradients(frames, boundary):
    x = torch.randn(2, 7, frames, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: temporal_shift(value, 3, boundary), x)
    assert torch.autograd.gradgradcheck(lambda value: temporal_shift(value, 3, boundary).square(), x)


def test_gradient_equals_autograd_through_indexing():
    x = torch.randn(2, 9, 4, 3, 3, requires_grad=True)
    weights = torch.randn(2, 9, 4, 3, 3)
    (ours,) = torch.autograd.grad((temporal_shift(x) * weights).sum(), x)
    zeros = torch.zeros_like(x[:, :3, :1])
    previous, following = torch.cat([zeros, x[:, :3, :-1]], 2), torch.cat([x[:, 6:, 1:], zeros], 2)
    plain = torch.cat([previous, x[:, 3:6], following], 1)
    (expected,) = torch.autograd.grad((plain * weights).sum(), x)
    assert torch.equal(ours, expected)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(2, 4),
    frames=st.integers(1, 6),
    channels=st.integers(1, 12),
    boundary=st.sampled_from(["zero", "circular"]),
)
def test_clips_never_leak_into_each_other(batch, frames, channels, boundary):
    x = torch.randn(batch * frames, channels, 2, 2)
    together = temporal_shift_folded(x, frames, 3, boundary)
    alone = torch.cat([temporal_shift_folded(clip, frames, 3, boundary) for clip in x.split(frames)])
    assert torch.equal(together, alone)


def test_circular_commutes_with_rolling_the_frames():
    x = torch.randn(1, 8, 5, 2, 2)
    rolled = temporal_shift(x.roll(2, 2), boundary="circular")
    assert torch.equal(rolled, temporal_shift(x, boundary="circular").roll(2, 2))


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (temporal_shift, (torch.zeros(1, 3, 2, 2),), "x must have 5 axes"),
        (temporal_shift, (torch.zeros(1, 3, 2, 2, 2), 1), "fold must be at least 2, got 1"),
        (temporal_shift, (torch.zeros(1, 3, 2, 2, 2), 3, "wrap"), "boundary must be one of zero, circular, got 'wrap'"),
        (temporal_shift_folded, (torch.zeros(4, 3, 2, 2), 3), "num_frames must divide the folded batch of 4, got 3"),
    ],
)
def test_bad_input_is_named(function, arguments, message):
    # As users have it: without the type checks of the test run.
    with pytest.raises(ValueError, match=re.escape(message)):
        inspect.unwrap(function)(*arguments)
