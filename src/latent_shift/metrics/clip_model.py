"""CLIP ViT-B/32, for CLIPSIM and for distances of frames, through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.files import sha256_file

from .extractors import FeatureInfo

MODEL = "openai/clip-vit-base-patch32"
FOLDER = "clip-vit-base-patch32"
TOKENS = 77
_PATCH_SIZE, _PROJECTION = 32, 512
"""Of this CLIP; others have the same files."""

_CHUNK = 32
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipViTB32:
    """Projected features of frames and of sentences, not of length 1."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Reads the model's folder; nothing is fetched.

        Args:
            weights: holds the folder `clip-vit-base-patch32`.
            device: where it runs.

        Raises:
            InputError: the folder or a file of it is missing.
            DataError: a file is damaged, or the model is another CLIP.
        """
        from transformers import AutoTokenizer, CLIPModel

        folder = weights / FOLDER
        files = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
        if not files or not (folder / "config.json").is_file():
            expected = (
                f"hold {FOLDER}: fetch https://huggingface.co/{MODEL} (config.json, {' or '.join(_WEIGHTS)}, and the "
                f"tokenizer's files) to {folder}"
            )
            raise InputError("weights", str(weights), expected)
        try:
            model, found = CLIPModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=files[0].suffix == ".safetensors",
                weights_only=True,
                output_loading_info=True,
            )
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{folder} is no CLIP model that can be read ({type(error).__name__})") from error
        if found["missing_keys"]:  # transformers would draw them at random
            missing = f"{len(found['missing_keys'])} weights, as {min(found['missing_keys'])}"
            raise DataError(f"{files[0]} is no whole CLIP model: it lacks {missing}")
        shape = model.config.vision_config.patch_size, model.config.projection_dim
        if shape != (_PATCH_SIZE, _PROJECTION):
            has = f"has patches of {shape[0]} pixels and {shape[1]} features, not {_PATCH_SIZE} and {_PROJECTION}"
            raise DataError(f"{folder} is not {MODEL}: it {has}")
        self._model, self._device = model.float().eval().requires_grad_(False).to(device), device
        self._size: int = model.config.vision_config.image_size
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
        self.info = FeatureInfo(
            "clip",
            "frame",
            model.config.projection_dim,
            f"bicubic, antialiased, shorter side {self._size}, middle {self._size} x {self._size}",
            f"{MODEL}/{files[0].name}",
            str(getattr(model.config, "_commit_hash", None) or "local folder"),
            sha256_file(files[0]),
        )

    @torch.no_grad()
    def __call__(
        self, clips: UInt8[Tensor, "clips frames height width 3"]
    ) -> Float32[Tensor, "clips frames dimension"]:
        """See `FeatureExtractor`."""
        rows = []
        for part in torch.split(clips.flatten(0, 1).permute(0, 3, 1, 2), _CHUNK):
            pixels = self.pixels(part)
            states = self._model.vision_model(pixel_values=pixels.to(self._device)).pooler_output
            rows.append(self._model.visual_projection(states).cpu())
        return torch.cat(rows).reshape(*clips.shape[:2], -1)

    @torch.no_grad()
    def texts(self, sentences: Sequence[str]) -> Float32[Tensor, "sentences dimension"]:
        """Features of sentences, each cut after 77 tokens."""
        rows = []
        for start in range(0, len(sentences), _CHUNK):
            tokens = self._tokenizer(
                list(sentences[start : start + _CHUNK]),
                padding="max_length",
                truncation=True,
                max_length=TOKENS,
                return_tensors="pt",
            ).to(self._device)
            states = self._model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            rows.append(self._model.text_projection(states).cpu())
        return torch.cat(rows)

    def pixels(self, frames: UInt8[Tensor, "n 3 height width"]) -> Float32[Tensor, "n 3 size size"]:
        """OpenAI's preprocessing: resized as Pillow resizes bytes (so on the CPU), cropped, normalised."""
        height, width = frames.shape[-2:]
        shorter = min(height, width)
        size = self._size * height // shorter, self._size * width // shorter
        resized = functional.interpolate(frames, size, mode="bicubic", antialias=True, align_corners=False)
        top, left = (size[0] - self._size) // 2, (size[1] - self._size) // 2
        cropped = resized[..., top : top + self._size, left : left + self._size].float() / 255
        return (cropped - self._mean) / self._std
