import contextlib

import pytest
import torch
from torch.nn import functional

from latent_shift.models.attention import plain_attention, training_attention


def _rows(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(len(shape))
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_is_that_of_pytorch_forward_and_backward(dtype, tolerance, masked):
    query, key, value = _rows(2, 3, 5, 8, dtype=dtype)
    key, value = key[:, :, :4], value[:, :, :4]
    mask = torch.linspace(-2, 2, 20, dtype=dtype).view(5, 4) if masked else None
    weights = torch.linspace(-1, 1, 8, dtype=dtype)
    results = []
    for attention in (plain_attention, functional.scaled_dot_product_attention):
        out = attention(query, key, value, attn_mask=mask)
        results.append([out, *torch.autograd.grad((out * weights).sum(), (query, key, value))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_training_on_a_cpu_takes_it_and_a_gpu_does_not():
    query, key, value = _rows(1, 2, 4, 8, dtype=torch.bfloat16)
    with training_attention(torch.device("cpu")), torch.autocast("cpu", torch.bfloat16):
        inside = functional.scaled_dot_product_attention(query, key, value)
    assert type(inside.grad_fn).__name__ == "ViewBackward0"
    assert inside.dtype == torch.bfloat16
    torch.testing.assert_close(inside, plain_attention(query, key, value), rtol=0, atol=0)
    assert isinstance(training_attention(torch.device("cuda")), contextlib.nullcontext)
    assert isinstance(training_attention(torch.device("cpu"), compiled=True), contextlib.nullcontext)


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"scale": 0.5},
        {"attn_mask": torch.ones(4, 4).tril().bool()},
        {"attn_mask": torch.ones(4, 4).tril().log()},
    ],
)
def test_what_others_ask_for_is_what_pytorch_gives(options):
    """A text encoder that runs beside the U-Net, for one."""
    query, key, value = _rows(1, 2, 4, 8)
    expected = functional.scaled_dot_product_attention(query, key, value, **options)
    with training_attention(torch.device("cpu")):
        inside = functional.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(inside, expected, rtol=1e-12, atol=1e-12)


def test_a_mask_by_position_is_not_lost():
    query, key, value = _rows(1, 2, 4, 8)
    mask = torch.ones(4, 4, dtype=torch.float64).tril().log()
    expected = functional.scaled_dot_product_attention(query, key, value, mask)
    with training_attention(torch.device("cpu")):
        inside = functional.scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(inside, expected, rtol=1e-12, atol=1e-12)
