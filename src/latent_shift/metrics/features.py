"""EfficientNet-Lite0: ImageNet features of frames, from weights that come with this package.

It judges the default model, and so is no part of any training loss. Written from the published definition (the
EfficientNet-Lite of tensorflow/tpu): EfficientNet-B0 (arXiv:1905.11946, Table 1) with ReLU6, without squeeze and
excitation, with stem and head at their first width.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float32, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

FEATURE_DIM = 1280
IMAGE_SIZE = 224


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


class _SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": what is odd goes to the right and to the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size in (x.shape[-1], x.shape[-2]):
            kernel, stride = self.kernel_size[0], self.stride[0]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        padded = functional.pad(x, pads) if any(pads) else x
        return functional.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)


class _InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        inner = in_channels * stage.expansion
        self.expand = nn.Conv2d(in_channels, inner, 1) if stage.expansion != 1 else None
        self.depthwise = _SameConv2d(inner, inner, stage.kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, stage.channels, 1)
        self.residual = stride == 1 and in_channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x))
        y = functional.relu6(self.depthwise(y))
        return x + self.project(y) if self.residual else self.project(y)  # type: ignore[no-any-return]


class EfficientNetLite0(nn.Module):
    """The network up to its pooled features; each batch norm is folded into the convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _SameConv2d(3, 32, 3, 2)
        blocks, channels = [], 32
        for stage in _STAGES:
            for index in range(stage.repeats):
                blocks.append(_InvertedResidual(channels, stage, stage.stride if index == 0 else 1))
                channels = stage.channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(channels, FEATURE_DIM, 1)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1280"]:
        """Features of pictures with values in [-127 / 128, 1]."""
        x = self.blocks(functional.relu6(self.stem(x)))
        features: Tensor = functional.relu6(self.head(x)).mean(dim=(2, 3))
        return features


def weights_path() -> Path:
    """The weights in this package (fp16); `scripts/convert_efficientnet.py` made them."""
    return Path(str(importlib.resources.files("latent_shift"))) / "weights" / "efficientnet_lite0.safetensors"


def load_efficientnet_lite0(device: torch.device | str = "cpu") -> EfficientNetLite0:
    """The network with its ImageNet weights, in fp32, ready to judge."""
    network = EfficientNetLite0()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(weights_path()).items()})
    return network.eval().requires_grad_(False).to(device)


@torch.no_grad()
def frame_features(
    network: EfficientNetLite0, frames: UInt8[np.ndarray, "frames height width 3"], batch_size: int = 24
) -> Float32[np.ndarray, "frames 1280"]:
    """Features of each frame, resized to 224 x 224 (bilinear, antialiased).

    Args:
        network: the judge.
        frames: uint8 RGB in [0, 255].
        batch_size: frames at once.
    """
    device = network.head.weight.device
    rows = []
    for start in range(0, len(frames), batch_size):
        part = torch.from_numpy(np.ascontiguousarray(frames[start : start + batch_size])).to(device)
        pictures = (part.permute(0, 3, 1, 2).float() - 127) / 128
        pictures = functional.interpolate(
            pictures, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True, align_corners=False
        )
        rows.append(network(pictures.contiguous(memory_format=torch.channels_last)).cpu())
    return torch.cat(rows).numpy()


def clip_features(
    network: EfficientNetLite0, clips: Iterable[UInt8[np.ndarray, "frames height width 3"]]
) -> Float32[np.ndarray, "clips 1280"]:
    """One row a clip: the mean of its frames' features, at length 1, so that a product of rows is their cosine."""
    rows = [frame_features(network, clip).mean(axis=0) for clip in clips]
    return unit_rows(np.stack(rows)) if rows else np.zeros((0, FEATURE_DIM), dtype=np.float32)


def unit_rows(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows divided by their length."""
    unit: npt.NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
