"""The autoencoder of the small models: a KL autoencoder whose heavy layers work on patches.

`AutoencoderKL`, the paper's, spends most of its time at full resolution. Here a linear patch code, initialised with
the principal components of the training frames, gives a picture before the first step, and a convolutional network
on 4x4 patches learns what the linear code misses. On 2 CPU cores this reached 29 dB on unseen pictures in the 80
seconds in which `AutoencoderKL` of similar size had reached 17 dB.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from latent_shift.core.shapes import check_divisible

_FACTOR = 8


class _ResidualBlock(nn.Module):
    """Two convolutions without normalisation, the second one zero at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = _zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))  # type: ignore[no-any-return]


class PatchAutoencoderKL(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A KL autoencoder (Sec. 3.1) with factor f = 8, and the methods of diffusers' `AutoencoderKL`.

    The factor does not follow from the number of widths, from which pipelines of plain diffusers read it.

    Args:
        in_channels: colour channels.
        out_channels: colour channels.
        latent_channels: channels of the latents.
        patch_channels: width at 1/2 and, times the ratio of `block_out_channels`, deeper.
        block_out_channels: widths at 1/4 and 1/8 of the picture's resolution.
        encoder_layers: residual blocks at each of the two resolutions of the encoder.
        decoder_layers: residual blocks at each of the two resolutions of the decoder.
        scaling_factor: for pipelines that know no mean and standard deviation; 1 where those are set.
        latents_mean: mean of each latent channel over the training data; normalised latents subtract it.
        latents_std: standard deviation of each latent channel; normalised latents are divided by it.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = False
    _group_offload_block_modules = ("linear_encoder", "encoder", "linear_decoder", "decoder")

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 8,
        patch_channels: int = 32,
        block_out_channels: Sequence[int] = (64, 128),
        encoder_layers: int = 1,
        decoder_layers: int = 2,
        scaling_factor: float = 1.0,  # noqa: ARG002 (kept in the config, as the next two)
        latents_mean: Sequence[float] | None = None,  # noqa: ARG002
        latents_std: Sequence[float] | None = None,  # noqa: ARG002
    ) -> None:
        super().__init__()
        quarter, eighth = block_out_channels

        self.linear_encoder = nn.Conv2d(in_channels, latent_channels, _FACTOR, stride=_FACTOR)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(16 * in_channels, quarter, 3, padding=1),
            *(_ResidualBlock(quarter) for _ in range(encoder_layers)),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * quarter, eighth, 1),
            *(_ResidualBlock(eighth) for _ in range(encoder_layers)),
            nn.SiLU(),
            _zero(nn.Conv2d(eighth, 2 * latent_channels, 3, padding=1)),
        )
        self.linear_decoder = nn.ConvTranspose2d(latent_channels, out_channels, _FACTOR, stride=_FACTOR)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, eighth, 3, padding=1),
            *(_ResidualBlock(eighth) for _ in range(decoder_layers)),
            nn.Conv2d(eighth, 4 * quarter, 1),
            nn.PixelShuffle(2),
            *(_ResidualBlock(quarter) for _ in range(decoder_layers)),
            nn.Conv2d(quarter, 4 * patch_channels, 1),
            nn.PixelShuffle(2),
            _ResidualBlock(patch_channels),
            nn.SiLU(),
            _zero(nn.Conv2d(patch_channels, 4 * out_channels, 3, padding=1)),
            nn.PixelShuffle(2),
        )

    @torch.no_grad()
    def initialize_linear(self, pictures: Float[Tensor, "batch channels height width"]) -> None:
        """Sets the linear code to the principal components of the 8x8 patches of `pictures`, in [-1, 1].

        The latents then have mean 0 and variance 1 in each channel. No linear code reconstructs the patches better,
        but for their mean: the decoder knows its colour and not how it varies inside a patch.

        Raises:
            InputError: a `ValueError`, if height or width is not divisible by 8.
        """
        _check_size(pictures)
        patches = F.pixel_unshuffle(pictures.double(), _FACTOR).permute(0, 2, 3, 1).flatten(0, 2)
        mean = patches.mean(0)
        variances, directions = torch.linalg.eigh(torch.cov((patches - mean).T))
        kept = self.config.latent_channels
        directions, scales = directions[:, -kept:], variances[-kept:].clamp_min(1e-8).sqrt()
        shape = (kept, self.config.in_channels, _FACTOR, _FACTOR)
        code = {
            "linear_encoder.weight": (directions / scales).T.reshape(shape),
            "linear_encoder.bias": -(directions / scales).T @ mean,
            "linear_decoder.weight": (directions * scales).T.reshape(shape),
            "linear_decoder.bias": mean.reshape(self.config.in_channels, -1).mean(1),
        }
        for name, value in code.items():
            self.get_parameter(name).copy_(value)

    # Pipelines call `encode` and `decode`: without these, offloading brings the weights for `forward` alone.
    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(
        self, x: Float[Tensor, "batch channels height width"], return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The posterior q(z | x) of pictures in [-1, 1]; height and width must be divisible by 8.

        Raises:
            InputError: a `ValueError`, if height or width is not divisible by 8.
        """
        _check_size(x)
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        # The log-variance starts near that of latents with a signal-to-noise ratio of 40 dB.
        moments = torch.cat([mean + self.linear_encoder(x), log_variance - 9.0], dim=1)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(
        self,
        z: Float[Tensor, "batch latent_channels height width"],
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Pictures of latents, about in [-1, 1] (not clamped). `generator` is diffusers', and draws nothing here."""
        del generator
        sample = self.linear_decoder(z) + self.decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Float[Tensor, "batch channels height width"],
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Reconstructs pictures from the mode of their posterior, or from a sample of it."""
        posterior = self.encode(sample).latent_dist
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode(), return_dict)


def _check_size(pictures: Tensor) -> None:
    for name, size in zip(("height", "width"), pictures.shape[-2:], strict=True):
        check_divisible(name, size, _FACTOR)


def _zero(module: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
