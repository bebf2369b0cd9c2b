"""A training step of the default model beside the same step of stock diffusers modules with their default settings.

Both learn from noise in the place of latents, under bf16 autocast with fp32 weights, and both clip gradients and step
AdamW. Stock means `UNet2DConditionModel` on as many pictures, with the caption repeated for each, diffusers'
attention processors, PyTorch's own choice of attention and of AdamW's implementation. Steps go in turns; printed are
medians, and the median and range of the rounds' ratios.

usage: python scripts/training_speed.py [ROUNDS]
"""

from __future__ import annotations

import inspect
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.utils import clip_grad_norm_

from latent_shift.benchmark.timing import take_turns
from latent_shift.models.attention import training_attention
from latent_shift.models.layers import lay_out_for_cpu
from latent_shift.pipelines import load_pipeline

CPU = torch.device("cpu")
BATCHES = {"image stage: 32 pictures": (32, 1), "video stage: 12 clips of 8 frames": (12, 8), "4 clips of 24": (4, 24)}


def stock(unet: Any) -> UNet2DConditionModel:
    """The 2-D network with the configuration of the video network."""
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    return UNet2DConditionModel(**{key: value for key, value in unet.config.items() if key in known})


def step(network: nn.Module, optimizer: torch.optim.Optimizer, clips: int, frames: int) -> float:
    """Seconds of one step."""
    sample, times, text = (
        torch.randn(clips, 8, frames, 16, 16),
        torch.randint(1000, (clips,)),
        torch.randn(clips, 24, 384),
    )
    start = time.perf_counter()
    optimizer.zero_grad()
    if type(network) is UNet2DConditionModel:
        pictures = sample.transpose(1, 2).flatten(0, 1)
        inputs = pictures, times.repeat_interleave(frames), text.repeat_interleave(frames, dim=0)
        with torch.autocast("cpu", torch.bfloat16):
            network(*inputs).sample.float().square().mean().backward()
    else:
        with training_attention(CPU), torch.autocast("cpu", torch.bfloat16):
            network(sample, times, text).sample.float().square().mean().backward()
    clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    """Prints a line for each kind of batch."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    ours = load_pipeline("emoji", "cpu", "fp32").unet.train()
    networks = {"ours": ours, "stock": stock(ours).train()}
    lay_out_for_cpu(ours, torch.bfloat16)
    optimizers = {
        "ours": torch.optim.AdamW(ours.parameters(), lr=1e-5, fused=True),
        "stock": torch.optim.AdamW(networks["stock"].parameters(), lr=1e-5),
    }
    for title, (clips, frames) in BATCHES.items():
        jobs: dict[str, Callable[[], float]] = {
            name: partial(step, network, optimizers[name], clips, frames) for name, network in networks.items()
        }
        for job in jobs.values():
            job()  # to warm up
        seconds = take_turns(jobs, rounds)
        ratios = [theirs / own for own, theirs in zip(seconds["ours"], seconds["stock"], strict=True)]
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        print(
            f"{title}: {medians['ours']:.2f} s, stock {medians['stock']:.2f} s, "
            f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
