from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from latent_shift import LatentShiftUNet, PatchAutoencoderKL
from latent_shift.core.errors import InputError
from latent_shift.training.networks import load_autoencoder, make_network

from .conftest import MakeTree


def test_a_network_has_the_arguments_of_the_recipe(make_tree: MakeTree, tmp_path: Any) -> None:
    arguments = make_tree("image", tmp_path)["model"]["arguments"]
    torch.manual_seed(3)
    made = make_network(LatentShiftUNet, {**arguments, "shift_fold": 4})
    torch.manual_seed(3)
    twin = LatentShiftUNet(**arguments, shift_fold=4)
    assert made.config == twin.config
    for name, tensor in twin.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor)


def test_arguments_go_on_top_of_a_config(make_tree: MakeTree, tmp_path: Any) -> None:
    base = LatentShiftUNet(**make_tree("image", tmp_path)["model"]["arguments"])
    made = make_network(LatentShiftUNet, {"noise_correlation": 0.8}, base.config)
    changed = {name for name in base.config if base.config[name] != made.config[name]}
    assert {name for name in changed if not name.startswith("_")} == {"noise_correlation"}
    assert made.config.noise_correlation == 0.8


@pytest.mark.parametrize("on_top", [False, True])
@pytest.mark.parametrize(
    ("network", "key", "near"),
    [
        (LatentShiftUNet, "noise_corelation", "noise_correlation"),
        (LatentShiftUNet, "crossattention_dim", "cross_attention_dim"),
        (PatchAutoencoderKL, "latent_channel", "latent_channels"),
    ],
)
def test_an_unknown_argument_names_the_nearest_one(network: Any, key: str, near: str, on_top: bool) -> None:
    expected = f"^key must be a known key; did you mean {near!r}\\?, got 'model.arguments.{key}'$"
    with pytest.raises(InputError, match=expected):
        make_network(network, {key: 0.8}, {} if on_top else None)


@pytest.mark.parametrize(
    ("network", "arguments", "reason"),
    [
        (LatentShiftUNet, {"block_out_channels": [8, 16]}, r"same number of `block_out_channels`"),
        (LatentShiftUNet, {"norm_num_groups": 7}, r"divisible by num_groups"),
        (PatchAutoencoderKL, {"latent_channels": -1}, "negative dimension"),
    ],
)
def test_arguments_that_make_no_network_are_one_line(network: Any, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=rf"^model.arguments must make a {network.__name__} \(.*{reason}.*, got \{{"):
        make_network(network, arguments)


def test_an_option_of_the_shift_out_of_range_keeps_its_own_message(make_tree: MakeTree, tmp_path: Any) -> None:
    arguments = make_tree("image", tmp_path)["model"]["arguments"]
    with pytest.raises(InputError, match="^shift_fold must be a whole number from 2 to 8, the narrowest width, got 1$"):
        make_network(LatentShiftUNet, {**arguments, "shift_fold": 1})


def test_an_autoencoder_may_be_of_diffusers(tmp_path: Path) -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, **blocks).save_pretrained(tmp_path)
    assert type(load_autoencoder(tmp_path, "model.autoencoder")) is AutoencoderKL
    expected = "model.init must hold a network of the class PatchAutoencoderKL, not AutoencoderKL, got"
    with pytest.raises(InputError, match=expected):
        load_autoencoder(tmp_path, "model.init", (PatchAutoencoderKL,))
