"""Covers `latent_shift.models.autoencoder`; its linear code against NumPy's principal components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor

from latent_shift.core.errors import InputError
from latent_shift.models import PatchAutoencoderKL

SMALL: dict[str, Any] = {"latent_channels": 5, "patch_channels": 4, "block_out_channels": (6, 8)}


def make_autoencoder(**options: Any) -> PatchAutoencoderKL:
    torch.manual_seed(0)
    return PatchAutoencoderKL(**{**SMALL, **options}).eval()


def disturb(autoencoder: PatchAutoencoderKL) -> PatchAutoencoderKL:
    """Moves every weight: the last layers are zero at the start."""
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return autoencoder


def make_pictures(count: int = 12, size: int = 32) -> Tensor:
    """Coloured discs on coloured ramps, anywhere."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size
    pictures = []
    for _ in range(count):
        ground, disc = generator.uniform(-1, 1, (2, 3, 1, 1))
        slope, y, x = generator.uniform(0, 1, 3)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < 0.06
        pictures.append(np.where(inside, disc, ground * (1 - slope * rows)))
    return torch.from_numpy(np.stack(pictures).astype(np.float32))


def patches_of(pictures: Tensor) -> np.ndarray:
    """`(patches, 192)`: the 8x8 patches, one a row."""
    count, channels, height, width = pictures.shape
    blocks = pictures.numpy().astype(np.float64).reshape(count, channels, height // 8, 8, width // 8, 8)
    return blocks.transpose(0, 2, 4, 1, 3, 5).reshape(-1, channels * 64)


def psnr(first: Tensor, second: Tensor) -> float:
    """In dB, of pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / (first - second).square().mean()))


@torch.no_grad()
def test_shapes() -> None:
    autoencoder = make_autoencoder()
    for height, width in ((8, 8), (16, 40)):
        pictures = torch.randn(3, 3, height, width)
        posterior = autoencoder.encode(pictures).latent_dist
        assert posterior.mean.shape == posterior.std.shape == (3, 5, height // 8, width // 8)
        assert autoencoder.decode(posterior.mean).sample.shape == pictures.shape
        assert torch.equal(autoencoder(pictures).sample, autoencoder.decode(posterior.mean).sample)
        drawn = [
            autoencoder(pictures, True, return_dict=False, generator=torch.Generator().manual_seed(seed))
            for seed in (0, 0, 1)
        ]
        assert torch.equal(drawn[0][0], drawn[1][0])
        assert not torch.equal(drawn[0][0], drawn[2][0])
        assert torch.equal(autoencoder.encode(pictures, return_dict=False)[0].mean, posterior.mean)
        (decoded,) = autoencoder.decode(posterior.mean, return_dict=False)
        assert torch.equal(decoded, autoencoder.decode(posterior.mean).sample)


@torch.no_grad()
def test_every_size_counts() -> None:
    sizes = {
        "latent_channels": 7,
        "patch_channels": 5,
        "block_out_channels": (7, 9),
        "encoder_layers": 2,
        "decoder_layers": 4,
    }
    counts = {name: make_autoencoder(**{name: value}).num_parameters() for name, value in sizes.items()}
    assert len({*counts.values(), make_autoencoder().num_parameters()}) == len(sizes) + 1
    grey = make_autoencoder(in_channels=1, out_channels=1)
    assert grey(torch.randn(2, 1, 8, 8)).sample.shape == (2, 1, 8, 8)


@torch.no_grad()
def test_round_trip(tmp_path: Path) -> None:
    settings = {
        "latents_mean": (0.1, 0.2, 0.3, 0.4, 0.5),
        "latents_std": (1.0, 2.0, 3.0, 4.0, 5.0),
        "encoder_layers": 2,
    }
    autoencoder = disturb(make_autoencoder(**settings, scaling_factor=0.5))
    autoencoder.save_pretrained(tmp_path)
    loaded, report = PatchAutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    pictures = make_pictures(2)
    latents = autoencoder.encode(pictures).latent_dist
    for name in ("mean", "std"):
        assert torch.equal(getattr(loaded.encode(pictures).latent_dist, name), getattr(latents, name))
    assert torch.equal(loaded.decode(latents.mean).sample, autoencoder.decode(latents.mean).sample)
    assert tuple(loaded.config.latents_mean) == settings["latents_mean"]
    assert tuple(loaded.config.latents_std) == settings["latents_std"]
    assert loaded.config.scaling_factor == 0.5


@torch.no_grad()
def test_the_linear_code_gives_latents_of_mean_0_and_variance_1() -> None:
    autoencoder, pictures = make_autoencoder(), make_pictures()
    autoencoder.initialize_linear(pictures)
    latents = autoencoder.encode(pictures).latent_dist.mean.transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(5), rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cov(latents), torch.eye(5), rtol=0, atol=1e-3)


@torch.no_grad()
def test_the_linear_code_is_that_of_numpy() -> None:
    pictures = make_pictures()
    patches = patches_of(pictures)
    mean = patches.mean(0)
    directions = np.linalg.svd(patches - mean, full_matrices=False)[2]
    for kept in (1, 5, 12):
        autoencoder = make_autoencoder(latent_channels=kept)
        autoencoder.initialize_linear(pictures)
        decoded = patches_of(autoencoder.decode(autoencoder.encode(pictures).latent_dist.mean).sample)
        best = (patches - mean) @ directions[:kept].T @ directions[:kept]
        # The decoder's bias is one number a colour.
        colour = np.repeat(mean.reshape(3, 64).mean(1), 64)
        np.testing.assert_allclose(decoded, best + colour, rtol=0, atol=1e-4)


@torch.no_grad()
def test_pictures_of_few_components_come_back() -> None:
    # Each patch is of one colour: three components are enough.
    blocks = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)
    for kept, least, most in ((3, 60, 200), (2, 0, 25)):
        autoencoder = make_autoencoder(latent_channels=kept)
        autoencoder.initialize_linear(pictures)
        result = psnr(autoencoder.decode(autoencoder.encode(pictures).latent_dist.mean).sample, pictures)
        assert least < result < most
    # More channels than there are components: still finite.
    autoencoder = make_autoencoder(latent_channels=8)
    autoencoder.initialize_linear(pictures)
    assert psnr(autoencoder.decode(autoencoder.encode(pictures).latent_dist.mean).sample, pictures) > 50


@torch.no_grad()
def test_pictures_of_one_colour_come_back() -> None:
    """Nothing varies: no latent has a scale of its own."""
    autoencoder, pictures = make_autoencoder(), torch.full((2, 3, 16, 16), 0.25)
    autoencoder.initialize_linear(pictures)
    latents = autoencoder.encode(pictures).latent_dist.mean
    assert latents.isfinite().all()
    assert psnr(autoencoder.decode(latents).sample, pictures) > 50


@torch.no_grad()
def test_the_posterior_starts_at_40_db() -> None:
    autoencoder, pictures = make_autoencoder(), make_pictures(2)
    autoencoder.initialize_linear(pictures)
    posterior = autoencoder.encode(pictures).latent_dist
    decibels = 20 * torch.log10(1 / posterior.std)
    torch.testing.assert_close(decibels, torch.full_like(decibels, 39.1), rtol=0, atol=0.05)
    seeded = [torch.Generator().manual_seed(3) for _ in range(2)]
    noise = torch.randn(posterior.mean.shape, generator=seeded[0])
    expected = autoencoder.decode(posterior.mean + posterior.std * noise).sample
    torch.testing.assert_close(autoencoder(pictures, True, generator=seeded[1]).sample, expected)


def test_training_learns_what_the_linear_code_misses() -> None:
    autoencoder, pictures = make_autoencoder(patch_channels=8, block_out_channels=(16, 24)), make_pictures()
    autoencoder.initialize_linear(pictures)
    optimizer = torch.optim.Adam(autoencoder.parameters(), 3e-3)
    before = {name: parameter.detach().clone() for name, parameter in autoencoder.named_parameters()}
    errors = []
    for _ in range(60):
        posterior = autoencoder.encode(pictures).latent_dist
        loss = (autoencoder.decode(posterior.mean).sample - pictures).square().mean()
        optimizer.zero_grad()
        (loss + 1e-6 * posterior.kl().mean()).backward()
        optimizer.step()
        errors.append(loss.item())
    assert min(errors[-5:]) < 0.8 * errors[0]
    for name, parameter in autoencoder.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} never learns"


@torch.no_grad()
def test_each_latent_pixel_sees_its_surroundings() -> None:
    autoencoder, pictures = disturb(make_autoencoder()), make_pictures(1)
    changed = pictures.clone()
    changed[..., 8:16, 8:16] += 1
    difference = (
        (autoencoder.encode(changed).latent_dist.mean - autoencoder.encode(pictures).latent_dist.mean).abs().sum(1)[0]
    )
    assert difference[1, 1] > 0
    assert difference[0, 1] > 0


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [(20, 16, "height must be a .*multiple of 8, got 20"), (16, 12, "width must be a .*multiple of 8, got 12")],
)
def test_sizes_that_are_refused(height: int, width: int, message: str) -> None:
    autoencoder, pictures = make_autoencoder(), torch.zeros(1, 3, height, width)
    for call in (autoencoder.encode, autoencoder.initialize_linear, autoencoder):
        with pytest.raises(InputError, match=message):
            call(pictures)


@torch.no_grad()
def test_what_brings_the_weights_is_asked_before_encoding_and_decoding(tmp_path: Path) -> None:
    class Counter(ModelHook):
        calls = 0

        def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return args, kwargs

    autoencoder, pictures = disturb(make_autoencoder()), make_pictures(2)
    moments = autoencoder.encode(pictures).latent_dist.parameters
    decoded = autoencoder.decode(moments[:, :5]).sample
    hook = Counter()
    add_hook_to_module(autoencoder, hook)
    autoencoder.encode(pictures)
    assert hook.calls == 1
    autoencoder.decode(moments[:, :5])
    assert hook.calls == 2

    offloaded = disturb(make_autoencoder())
    options = {"offload_type": "block_level", "num_blocks_per_group": 1, "offload_to_disk_path": str(tmp_path)}
    offloaded.enable_group_offload(torch.device("cpu"), **options)
    assert torch.equal(offloaded.encode(pictures).latent_dist.parameters, moments)
    assert torch.equal(offloaded.decode(moments[:, :5]).sample, decoded)
