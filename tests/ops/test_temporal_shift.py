"""Covers `latent_shift.ops`: the temporal shift of Eq. 3, on videos and on folded frames."""

from __future__ import annotations

import doctest
import importlib
import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latent_shift.core.errors import InputError
from latent_shift.ops import temporal_shift, temporal_shift_folded

BOUNDARIES = ("zero", "circular")
BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def shift_by_loops(x: np.ndarray, fold: int, boundary: str, distance: int = 1) -> np.ndarray:
    """Eq. 3 on `(batch, channels, frames, height, width)`, one channel of one frame at a time."""
    _, channels, frames, _, _ = x.shape
    k = channels // fold
    y = np.zeros_like(x)
    for i in range(frames):
        for c in range(channels):
            source = i - distance if c < k else i + distance if c >= channels - k else i
            if boundary == "circular":
                source = source % frames
            if 0 <= source < frames:
                y[:, c, i] = x[:, c, source]
    return y


def shift_by_indexing(x: Tensor, fold: int, boundary: str) -> Tensor:
    """Eq. 3 on a video by what autograd differentiates by itself: slices and concatenation."""
    k = x.shape[1] // fold
    first, middle, last = x.split([k, x.shape[1] - 2 * k, k], dim=1)
    hole = (slice(None), slice(None), slice(0, 1))
    before = first[:, :, -1:] if boundary == "circular" else torch.zeros_like(first[hole])
    after = last[:, :, :1] if boundary == "circular" else torch.zeros_like(last[hole])
    return torch.cat(
        [torch.cat([before, first[:, :, :-1]], 2), middle, torch.cat([last[:, :, 1:], after], 2)],
        dim=1,
    )


def fold_frames(x: Tensor) -> Tensor:
    """`(batch, channels, frames, ...)` to `(batch * frames, channels, ...)`, frames fastest."""
    return torch.stack([x[b, :, t] for b in range(x.shape[0]) for t in range(x.shape[2])])


def random_bits(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Every bit pattern: NaNs with payloads, infinities, negative zeros and denormals too."""
    bits = np.random.default_rng(0).integers(0, 256, (*shape, dtype.itemsize)).astype(np.uint8)
    return torch.from_numpy(bits).view(dtype).squeeze(-1)


def bits_of(x: Tensor) -> np.ndarray:
    return x.contiguous().view(BITS[x.dtype]).numpy()


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("distance", [2, 3, 5, 24])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 6, 24])
def test_other_distances(num_frames: int, distance: int, boundary: str) -> None:
    x = torch.randn(2, 7, num_frames, 2, 1, dtype=torch.float64, requires_grad=True)
    expected = torch.from_numpy(shift_by_loops(x.detach().numpy(), 3, boundary, distance))
    y = temporal_shift(x, 3, boundary, distance)
    assert torch.equal(y, expected)
    assert torch.equal(temporal_shift_folded(fold_frames(x), num_frames, 3, boundary, distance), fold_frames(expected))
    # Each place of x comes up at most once, so its gradient is that of where it went, or zero.
    upstream = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    numbers = torch.arange(1.0, x.numel() + 1).view_as(x)
    places = shift_by_loops(numbers.numpy(), 3, boundary, distance)
    wanted = torch.zeros(x.numel() + 1, dtype=x.dtype)
    wanted[torch.from_numpy(places).long().flatten()] = upstream.flatten()
    assert torch.equal(gradient.flatten(), wanted[1:])


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("fold", [2, 3, 8])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 24])
@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_every_bit_is_that_of_equation_3(dtype: torch.dtype, num_frames: int, fold: int, boundary: str) -> None:
    for channels in (1, 2, 3, 5, 7, 8, 9, 16, 17):
        x = random_bits((2, channels, num_frames, 2, 3), dtype)
        expected = shift_by_loops(bits_of(x), fold, boundary)
        y = temporal_shift(x, fold, boundary)
        assert (y.dtype, y.shape, y.device) == (x.dtype, x.shape, x.device)
        np.testing.assert_array_equal(bits_of(y), expected, f"{channels} channels")
        folded = temporal_shift_folded(fold_frames(x), num_frames, fold, boundary)
        assert folded.dtype == dtype
        expected = np.concatenate(expected.transpose(0, 2, 1, 3, 4))
        np.testing.assert_array_equal(bits_of(folded), expected, f"{channels} channels, folded")


def test_by_hand() -> None:
    # Frames 1, 2, 3 of five channels: the first sees the past, the last the future, the remainder stays.
    x = torch.tensor([[1.0, 2.0, 3.0]] * 5).view(1, 5, 3, 1, 1)
    zero, circular = (temporal_shift(x, 3, boundary).view(5, 3).tolist() for boundary in BOUNDARIES)
    assert zero == [[0, 1, 2], [1, 2, 3], [1, 2, 3], [1, 2, 3], [2, 3, 0]]
    assert circular == [[3, 1, 2], [1, 2, 3], [1, 2, 3], [1, 2, 3], [2, 3, 1]]


def test_defaults_are_the_papers() -> None:
    x = torch.randn(1, 320, 4, 1, 1)
    y = temporal_shift(x)
    torch.testing.assert_close(y, temporal_shift(x, fold=3, boundary="zero"), rtol=0, atol=0)
    torch.testing.assert_close(temporal_shift_folded(fold_frames(x), 4), fold_frames(y), rtol=0, atol=0)
    moved = (x != y).flatten(2).any(2)[0]
    assert moved.tolist() == [True] * 106 + [False] * 108 + [True] * 106


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_strides_are_kept_and_the_input_too(boundary: str) -> None:
    frames = torch.randn(6, 8, 4, 5)
    video = torch.randn(2, 8, 3, 4, 5)
    for x in (frames, frames.to(memory_format=torch.channels_last)):
        before = x.clone()
        y = temporal_shift_folded(x, 3, 3, boundary)
        assert y.stride() == x.stride()
        assert y.data_ptr() != x.data_ptr()
        assert torch.equal(x, before)
        expected = temporal_shift_folded(x.contiguous(), 3, 3, boundary)
        assert torch.equal(y, expected)
    frames_first = video.transpose(1, 2).contiguous().transpose(1, 2)
    for x in (video, video.to(memory_format=torch.channels_last_3d), frames_first):
        y = temporal_shift(x, 3, boundary)
        assert y.stride() == x.stride()
        assert torch.equal(y, shift_by_indexing(video, 3, boundary))


def test_views_with_gaps_and_repeats() -> None:
    x = torch.randn(12, 10, 4, 6)
    for view in (x[::2], x[:, 1:9], x[..., ::2], x[:1].expand(6, -1, -1, -1), x.transpose(2, 3)):
        assert torch.equal(temporal_shift_folded(view, 3), temporal_shift_folded(view.clone().contiguous(), 3))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_gradients_are_right_to_second_order(num_frames: int, boundary: str) -> None:
    x = torch.randn(1, 5, num_frames, 1, 2, dtype=torch.float64, requires_grad=True)
    folded = torch.randn(2 * num_frames, 4, 1, 1, dtype=torch.float64, requires_grad=True)
    # Of a cube, whose second derivative is not zero.
    assert torch.autograd.gradcheck(lambda x: temporal_shift(x, 3, boundary) ** 3, x)
    assert torch.autograd.gradgradcheck(lambda x: temporal_shift(x, 3, boundary) ** 3, x)
    assert torch.autograd.gradcheck(lambda x: temporal_shift_folded(x, num_frames, 2, boundary) ** 3, folded)
    assert torch.autograd.gradgradcheck(lambda x: temporal_shift_folded(x, num_frames, 2, boundary) ** 3, folded)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_gradients_equal_those_of_indexing(dtype: torch.dtype, boundary: str) -> None:
    for num_frames, fold, channels in itertools.product((1, 2, 3, 24), (2, 3, 8), (2, 7, 9)):
        x = torch.randn(2, channels, num_frames, 2, 1).to(dtype).requires_grad_()
        upstream, direction = torch.randn_like(x), torch.randn_like(x)
        results = []
        for shift in (temporal_shift, shift_by_indexing):
            y = shift(x, fold, boundary)
            (first,) = torch.autograd.grad(y * y, x, upstream, create_graph=True)
            (second,) = torch.autograd.grad(first, x, direction)
            results.append((y, first, second))
        for ours, theirs in zip(*results, strict=True):
            assert torch.equal(ours, theirs), (num_frames, fold, channels)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # of `torch.func.jvp`
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_function_transforms(boundary: Any) -> None:
    x, direction = torch.randn(2, 12, 4, 2, 1)

    def shift(x: Tensor) -> Tensor:
        return temporal_shift_folded(x, 6, boundary=boundary)

    value, tangent = torch.func.jvp(shift, (x,), (direction,))
    assert torch.equal(value, shift(x))
    assert torch.equal(tangent, shift(direction))
    x.requires_grad_()
    gradients = torch.func.vmap(torch.func.grad(lambda x: (shift(x) * direction).sum()))(x[None])
    (expected,) = torch.autograd.grad((shift(x) * direction).sum(), x)
    assert torch.equal(gradients[0], expected)


def test_no_frames() -> None:
    assert temporal_shift(torch.zeros(1, 3, 0, 2, 2), boundary="circular").shape == (1, 3, 0, 2, 2)


def test_gradients_keep_channels_last() -> None:
    x = torch.randn(6, 8, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = temporal_shift_folded(x, 3)
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert gradient.stride() == x.stride()


videos = st.builds(
    lambda batch, channels, frames, seed: torch.randn(
        batch, channels, frames, 1, 2, generator=torch.Generator().manual_seed(seed)
    ),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 7),
    st.integers(0, 2**31),
)
folds = st.integers(2, 9)
boundaries = st.sampled_from(BOUNDARIES)


@settings(deadline=None, max_examples=60)
@given(videos, folds, boundaries, st.data())
def test_clips_never_leak(x: Tensor, fold: int, boundary: str, data: st.DataObject) -> None:
    num_frames = x.shape[2]
    together = temporal_shift_folded(fold_frames(x), num_frames, fold, boundary)
    alone = [temporal_shift_folded(fold_frames(clip[None]), num_frames, fold, boundary) for clip in x]
    assert torch.equal(together, torch.cat(alone))
    spoilt = data.draw(st.integers(0, len(x) - 1))
    others = [index for index in range(len(x)) if index != spoilt]
    x = x.clone()
    x[spoilt] = float("nan")
    for y in (temporal_shift(x, fold, boundary), temporal_shift_folded(fold_frames(x), num_frames, fold, boundary)):
        assert y.view(len(x), -1)[others].isfinite().all()


@settings(deadline=None, max_examples=60)
@given(videos, folds, boundaries)
def test_forward_then_backward(x: Tensor, fold: int, boundary: str) -> None:
    # Channels in reverse order, what went forward goes backward.
    back = temporal_shift(temporal_shift(x, fold, boundary).flip(1), fold, boundary).flip(1)
    k, num_frames = x.shape[1] // fold, x.shape[2]
    expected = x.clone()
    if boundary == "zero":
        expected[:, :k, num_frames - 1] = 0
        expected[:, x.shape[1] - k :, 0] = 0
    assert torch.equal(back, expected)


@settings(deadline=None, max_examples=60)
@given(videos, folds)
def test_a_circle_comes_round(x: Tensor, fold: int) -> None:
    y = x
    for _ in range(x.shape[2]):
        y = temporal_shift(y, fold, "circular")
    assert torch.equal(y, x)
    rolled = temporal_shift(x.roll(1, dims=2), fold, "circular")
    assert torch.equal(rolled, temporal_shift(x, fold, "circular").roll(1, dims=2))


def test_one_frame() -> None:
    x = torch.randn(3, 7, 1, 2, 2)
    assert torch.equal(temporal_shift(x, 3, "circular"), x)
    assert torch.equal(temporal_shift_folded(x[:, :, 0], 1, 3, "circular"), x[:, :, 0])
    zero = temporal_shift(x, 3, "zero")
    assert torch.equal(zero[:, 2:5], x[:, 2:5])
    assert not zero[:, :2].any()
    assert not zero[:, 5:].any()


@pytest.mark.usefixtures("as_users_run")
def test_messages() -> None:
    x = torch.zeros(4, 6, 2, 2)
    cases = {
        r"x must have 5 axes \(batch, channels, frames, height, width\), got \(4, 6, 2, 2\)": lambda: temporal_shift(x),
        r"x must have 4 axes \(batch \* frames, channels, height, width\), got \(1, 4, 6, 2, 2\)": lambda: (
            temporal_shift_folded(x[None], 2)
        ),
        "num_frames must divide the folded batch of 4, got 3": lambda: temporal_shift_folded(x, 3),
        "num_frames must divide the folded batch of 4, got 0": lambda: temporal_shift_folded(x, 0),
        "num_frames must divide the folded batch of 4, got -2": lambda: temporal_shift_folded(x, -2),
        "fold must be at least 2, got 1": lambda: temporal_shift_folded(x, 2, 1),
        "fold must be at least 2, got 0": lambda: temporal_shift(x[None], 0),
        "boundary must be one of zero, circular, got 'reflect'": lambda: temporal_shift(x[None], 3, "reflect"),
        "boundary must be one of zero, circular, got None": lambda: temporal_shift_folded(x, 2, 3, None),
        "distance must be at least 1, got 0": lambda: temporal_shift_folded(x, 2, distance=0),
        "distance must be at least 1, got -1": lambda: temporal_shift(x[None], distance=-1),
    }
    for message, call in cases.items():
        with pytest.raises(InputError, match=message):
            call()


def test_the_example_of_the_docstring() -> None:
    module = importlib.import_module("latent_shift.ops.temporal_shift")
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


COMPILED = """
import torch
from latent_shift.ops import temporal_shift, temporal_shift_folded

torch.manual_seed(0)
for boundary in ("zero", "circular"):
    for num_frames in (1, 3):
        video = torch.randn(2, 7, num_frames, 2, 2, requires_grad=True)
        frames = torch.randn(2 * num_frames, 7, 2, 2, requires_grad=True)
        calls = [
            (lambda x: temporal_shift(x.sin(), 3, boundary) * 2, video),
            (lambda x: temporal_shift_folded(x.sin(), num_frames, 3, boundary) * 2, frames),
        ]
        for function, x in calls:
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
            upstream = torch.randn_like(x)
            for ours, theirs in zip(*(
                (y, *torch.autograd.grad(y, x, upstream)) for y in (compiled(x), function(x))
            ), strict=True):
                assert torch.equal(ours, theirs), (boundary, num_frames)
print("equal")
"""


@pytest.mark.slow
def test_compiles_in_one_graph() -> None:
    # In an interpreter of its own: the checks of annotations cannot be compiled.
    result = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "equal\n"
