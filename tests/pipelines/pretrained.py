"""Text-to-image models as people have them, tiny: CLIP's tokenizer and encoders, Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SIZE = 32
UNET: dict[str, Any] = {
    "sample_size": SIZE // 4,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
}
LINEAR = {"use_linear_projection": True, "attention_head_dim": [1, 1, 1]}
XL: dict[str, Any] = {
    **LINEAR,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 3],
    "cross_attention_dim": 128,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 64,
}
VAE: dict[str, Any] = {
    "block_out_channels": [32, 32, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "scaling_factor": 0.18215,
    "sample_size": SIZE,
}
SCHEDULE = {
    "beta_start": 8.5e-4,
    "beta_end": 1.2e-2,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A real CLIP tokenizer whose vocabulary is the letters, alone and at the end of a word."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=16)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_text_encoder(vocabulary: int, projection: bool = False, **options: Any) -> Any:
    config = CLIPTextConfig(
        **{
            "vocab_size": vocabulary,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 1,
            "intermediate_size": 96,
            "max_position_embeddings": 16,
            "projection_dim": 64,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 1,
            **options,
        }
    )
    return perturb((CLIPTextModelWithProjection if projection else CLIPTextModel)(config))


def perturb(network: torch.nn.Module) -> Any:
    """Norms and biases start alike everywhere; a test that they arrive at the right place needs them to differ."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network.eval()


def make_pipeline(kind: str, tokenizer_folder: Path) -> DiffusionPipeline:
    """A diffusers pipeline: "sd1", "sd2" or "sdxl"."""
    torch.manual_seed(0)
    tokenizer = write_tokenizer(tokenizer_folder)
    count = len(tokenizer)
    options = {"sd1": {}, "sd2": LINEAR, "sdxl": XL}[kind]
    parts: dict[str, Any] = {
        "unet": perturb(UNet2DConditionModel(**{**UNET, **options})),
        "vae": perturb(AutoencoderKL(**VAE)),
        "text_encoder": make_text_encoder(count, hidden_act="gelu" if kind == "sd2" else "quick_gelu"),
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(**SCHEDULE, prediction_type="v_prediction" if kind == "sd2" else "epsilon"),
    }
    if kind == "sdxl":
        parts["text_encoder_2"] = make_text_encoder(count, projection=True, hidden_act="gelu")
        parts["tokenizer_2"] = CLIPTokenizer.from_pretrained(tokenizer_folder, pad_token="!")
        pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **nothing)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
