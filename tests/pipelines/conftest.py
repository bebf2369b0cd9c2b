"""A whole model, tiny but real: every part is of the class that a user's model has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from transformers import BertConfig, BertModel, BertTokenizerFast

from latent_shift import LatentShiftPipeline, LatentShiftUNet, PatchAutoencoderKL
from latent_shift.pipelines import convert_model

from .pretrained import make_pipeline as make_pretrained

SIZE = 16
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "heart", "hand", "wav", "##ing", "."]

MakePipeline = Callable[..., LatentShiftPipeline]


def make_unet(**options: Any) -> LatentShiftUNet:
    torch.manual_seed(1)
    return LatentShiftUNet(
        **{
            "sample_size": 4,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": 12,
            "attention_head_dim": 2,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            **options,
        }
    ).eval()


def make_patch_vae() -> PatchAutoencoderKL:
    torch.manual_seed(2)
    statistics = {"latents_mean": (0.1, -0.2, 0.3, 0.0), "latents_std": (0.5, 1.0, 2.0, 0.7)}
    vae = PatchAutoencoderKL(latent_channels=4, patch_channels=4, block_out_channels=(4, 8), **statistics)
    with torch.no_grad():
        # The last layers start at zero; a test that they are saved needs them not to be.
        for parameter in vae.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return vae.eval()


def make_kl_vae() -> AutoencoderKL:
    """Factor 4, and the one scaling factor of LDM instead of statistics of each channel."""
    torch.manual_seed(3)
    return AutoencoderKL(
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=2,
        scaling_factor=0.5,
    ).eval()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a WordPiece vocabulary of a dozen words lies."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=8).save_pretrained(folder)
    return folder


def build(
    tokenizer_folder: Path, unet: dict[str, Any] | None = None, vae: Any = None, **options: Any
) -> LatentShiftPipeline:
    """The pipeline, with other options of the U-Net, another autoencoder or other settings."""
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    text_encoder = BertModel(config, add_pooling_layer=False).eval()
    # Strong weights: else all captions mean the same.
    torch.nn.init.normal_(text_encoder.embeddings.word_embeddings.weight)
    pipeline = LatentShiftPipeline(
        vae=vae or make_patch_vae(),
        text_encoder=text_encoder,
        tokenizer=BertTokenizerFast.from_pretrained(tokenizer_folder),
        unet=make_unet(**(unet or {})),
        scheduler=DDPMScheduler(
            beta_start=8.5e-4,
            beta_end=1.2e-2,
            beta_schedule="scaled_linear",
            clip_sample=False,
            timestep_spacing="linspace",
        ),
        **{"default_frames": 3, "default_size": SIZE, "default_guidance_scale": 2.0, **options},
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def make_pipeline(tokenizer_folder: Path) -> MakePipeline:
    return functools.partial(build, tokenizer_folder)


@pytest.fixture
def pipeline(make_pipeline: MakePipeline) -> LatentShiftPipeline:
    return make_pipeline()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A folder of the tiny model; copy it before damaging it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    build(tokenizer_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of SDXL's parts, converted to a video model."""
    place = tmp_path_factory.mktemp("sdxl")
    make_pretrained("sdxl", place / "words").save_pretrained(place / "image")
    convert_model(place / "image", place / "video", "shift")
    return place / "video"
