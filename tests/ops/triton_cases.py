"""Run by `test_shift_group_norm_silu.py` in interpreters of their own: `python triton_cases.py CASE DEVICE`.

Triton decides at import whether it interprets (TRITON_INTERPRET=1), and checks of annotations cannot be compiled.
Prints "passed" at the end.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
import unittest.mock
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from latent_shift.ops import choose_backend, group_norm, shift_group_norm_silu

DEVICE = torch.device(sys.argv[2])
FORMATS = (torch.contiguous_format, torch.channels_last)
# Clips, frames, channels, height, width, groups, fold.
SHAPES = (
    (2, 3, 6, 5, 3, 2, 3),
    (1, 1, 4, 1, 1, 2, 3),
    (1, 2, 7, 3, 2, 1, 2),
    (1, 2, 6, 65, 33, 1, 3),  # more than a tile a group
    (1, 2, 192, 9, 5, 2, 3),
)
# Of the largest value: outputs, and gradients. Two units in the last place of fp16 and bf16.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def run(x: Tensor, weight: Tensor, bias: Tensor, upstream: Tensor, *arguments: Any, **options: Any) -> list[Tensor]:
    """The result, and the gradients of x, weight and bias."""
    inputs = [one.detach().clone().requires_grad_() for one in (x, weight, bias)]
    y = shift_group_norm_silu(*inputs, *arguments, **options)
    return [y, *torch.autograd.grad(y, inputs, upstream)]


def features(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Features whose mean is far from zero, weight, bias, and the gradient that comes from above."""
    clips, frames, channels, height, width, *_ = shape
    generator = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(2, clips * frames, channels, height, width, generator=generator)
    weight, bias = torch.randn(2, channels, generator=generator)
    return tuple(one.to(DEVICE, dtype) for one in (x * 2 + 5, weight, bias, upstream))


def assert_close(ours: list[Tensor], expected: list[Tensor], dtype: torch.dtype, what: object) -> None:
    """Equal as far as the dtype goes, at the scale of the largest value."""
    for name, own, other in zip(("output", "x", "weight", "bias"), ours, expected, strict=True):
        assert own.dtype == dtype, (what, name)
        error = (own.double() - other).abs().max() / other.abs().max().clamp_min(1e-2)
        assert error <= TOLERANCES[dtype], (what, name, float(error))


def agrees() -> None:
    """With the eager reference in fp64, and it keeps the layout."""
    for dtype in TOLERANCES:
        for shape in SHAPES if dtype == torch.float32 else SHAPES[:1]:
            _, frames, _, _, _, groups, fold = shape
            x, weight, bias, upstream = features(shape, dtype)
            far = 2 if shape == SHAPES[0] else 1
            for boundary, distance in ((None, 1), ("zero", 1), ("circular", 1), ("zero", far), ("circular", far)):
                arguments = (groups, 1e-5, frames, fold, boundary)
                options = {"distance": distance}
                exact = run(
                    *(one.double() for one in (x, weight, bias, upstream)), *arguments, backend="eager", **options
                )
                for layout in FORMATS if shape == SHAPES[0] else FORMATS[1:]:
                    laid = x.contiguous(memory_format=layout)
                    ours = run(laid, weight, bias, upstream, *arguments, backend="triton", **options)
                    assert_close(ours, exact, dtype, (shape, dtype, boundary, distance, layout))
                    assert ours[0].stride() == ours[1].stride() == laid.stride()


def views() -> None:
    """Gaps, repeats, transposed pictures, gradients of another layout, weights of another dtype."""
    base, _, _, _ = features((2, 4, 12, 6, 4, 4, 3), torch.float32)
    weight, bias = torch.randn(2, 10, device=DEVICE)
    kept = base.clone()
    for x in (base[:4, 1:11], base[::2, :10], base[:1, :10].expand(4, -1, -1, -1), base[:4, :10].transpose(2, 3)):
        upstream = torch.randn_like(x).to(memory_format=torch.channels_last)
        ours = run(x, weight, bias, upstream, 2, 1e-5, 2, backend="triton")
        exact = run(*(one.double() for one in (x, weight, bias, upstream)), 2, 1e-5, 2, backend="eager")
        assert_close(ours, exact, torch.float32, x.stride())
    half = base[:4, :10].bfloat16()
    y = shift_group_norm_silu(half, weight, bias, 2, 1e-5, 2, backend="triton")
    rounded = shift_group_norm_silu(half.float(), weight, bias, 2, 1e-5, 2, backend="eager")
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), rounded, rtol=1e-2, atol=1e-2)
    assert shift_group_norm_silu(base[:0], torch.ones(12), torch.ones(12), 2, backend="triton").shape == (0, 12, 6, 4)
    assert torch.equal(base, kept)


def time() -> None:
    """Weight and bias of each picture, from its time embedding; and no SiLU."""
    x, weight, bias, upstream = features(SHAPES[0], torch.float32)
    time_embedding = torch.randn(2, *x.shape[:2], device=DEVICE)
    results = {}
    for backend, dtype in (("eager", torch.float64), ("triton", torch.float32)):
        inputs = [one.to(dtype).detach().requires_grad_() for one in (x, weight, bias, *time_embedding)]
        y = shift_group_norm_silu(*inputs[:3], 2, 1e-5, 3, 3, "circular", backend, *inputs[3:])
        plain = group_norm(*inputs[:3], 2, backend=backend)
        results[backend] = [y, plain, *torch.autograd.grad(y, inputs, upstream.to(dtype))]
        results[backend] += torch.autograd.grad(plain, inputs[:3], upstream.to(dtype))
    for ours, exact in zip(results["triton"], results["eager"], strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


def operator() -> None:
    """What PyTorch asks of operators: shapes without data, autograd, compiled graphs, checkpoints, autocast."""
    x, weight, bias, upstream = features((1, 2, 6, 3, 2, 2, 3), torch.float32)
    inputs = [one.requires_grad_() for one in (x, weight, bias)]
    shift_group_norm_silu(*inputs, 2, backend="triton")
    torch.library.opcheck(
        torch.ops.latent_shift.shift_group_norm_silu.default, (*inputs, 2, 1e-5, 2, 2, 1, False, True, "triton")
    )

    on_meta = [one.detach().to("meta", memory_format=torch.channels_last if one.ndim == 4 else None) for one in inputs]
    y = shift_group_norm_silu(*on_meta, 2, 1e-5, 2, backend="triton")
    assert (y.device.type, y.shape, y.stride()) == ("meta", x.shape, on_meta[0].stride())

    def call(*inputs: Tensor) -> Tensor:
        return shift_group_norm_silu(*inputs, 2, 1e-5, 2, 3, "circular", backend="triton") * 2

    def gradients(function: Callable[..., Tensor]) -> list[Tensor]:
        y = function(*inputs)
        return [y, *torch.autograd.grad(y, inputs, upstream)]

    expected = gradients(call)
    others = {
        "compiled": torch.compile(call, fullgraph=True, backend="aot_eager"),
        "checkpointed": lambda *inputs: checkpoint(call, *inputs, use_reentrant=False),
    }
    for name, function in others.items():
        for ours, theirs in zip(gradients(function), expected, strict=True):
            assert torch.equal(ours, theirs), name
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert torch.equal(call(*inputs), expected[0])


def network() -> None:
    """A training step of the U-Net with checkpoints; on a GPU two boundaries in two threads at once."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    from latent_shift.models import LatentShiftUNet

    torch.manual_seed(0)
    unet = LatentShiftUNet(
        sample_size=4,
        block_out_channels=(6, 12),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=3,
    ).to(DEVICE)
    unet.set_attn_processor(AttnProcessor2_0())
    inputs = (torch.randn(1, 4, 2, 4, 4, device=DEVICE), 500, torch.randn(1, 3, 8, device=DEVICE))
    results = {}
    for name in ("eager", "triton"):
        own = copy.deepcopy(unet)
        own.enable_gradient_checkpointing()
        with environment(name):
            prediction = own(*inputs).sample
            prediction.square().sum().backward()
        results[name] = (prediction, {key: one.grad for key, one in own.named_parameters()})
    torch.testing.assert_close(results["triton"], results["eager"], rtol=1e-3, atol=1e-4)

    if DEVICE.type == "cpu":
        return  # Triton's interpreter is for one thread
    unet.eval().requires_grad_(False)
    with environment("triton"):
        boundaries = ("zero", "circular")
        alone = [unet(*inputs, boundary=boundary).sample for boundary in boundaries]
        together: dict[str, Tensor] = {}

        def sample(boundary: str) -> None:
            together[boundary] = unet(*inputs, boundary=boundary).sample

        threads = [threading.Thread(target=sample, args=(boundary,)) for boundary in boundaries]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for boundary, expected in zip(boundaries, alone, strict=True):
        assert torch.equal(together[boundary], expected), boundary


def environment(name: str) -> Any:
    """`LATENT_SHIFT_BACKEND` for a while."""
    return unittest.mock.patch.dict(os.environ, LATENT_SHIFT_BACKEND=name)


def compiles() -> None:
    """Triton's real compiler takes both kernels, down to machine code, where there is no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from latent_shift.ops import _triton

    for kernel in (_triton._forward_kernel, _triton._backward_kernel):
        for pointer, ones in (
            ("bf16", ("stride_p",)),
            ("fp32", ("stride_c",)),
            # What is 1 is a constant for the compiler: one picture of one pixel and one channel.
            ("fp16", ("stride_c", "stride_p", "stride_n", "num_pixels", "num_channels", "num_groups", "num_frames")),
        ):
            constants = {
                "circular": False,
                "activate": True,
                "group": 10,
                "block_c": 16,
                "block_p": 256,
                **dict.fromkeys(ones, 1),
            }
            signature = {name: "i32" for name in kernel.arg_names}
            signature |= dict.fromkeys(("x", "y", "upstream", "weight", "bias", "gradient"), f"*{pointer}")
            signature |= dict.fromkeys(("means", "rstds", "weight_sums", "bias_sums"), "*fp32")
            signature |= {"eps": "fp32", **dict.fromkeys(constants, "constexpr")}
            source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constants)
            options = {"num_warps": 8, "enable_fp_fusion": True}
            built = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
            assert built.asm["cubin"], (kernel, pointer)


def automatic() -> None:
    """On a GPU it is chosen without being asked."""
    assert choose_backend(DEVICE, torch.float16).backend == "triton"


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]]()
    sys.stdout.write("passed\n")
