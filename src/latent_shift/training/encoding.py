"""What the frozen parts of a model make of clips and captions: latents and text features, now or once for a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from latent_shift.core.errors import InputError
from latent_shift.data.cache import ClipCache, open_or_build_cache
from latent_shift.data.records import CaptionedVideo
from latent_shift.pipelines import LatentShiftPipeline
from latent_shift.pipelines.components import text_encoders
from latent_shift.pipelines.text import encode_text

from .config import DataConfig
from .sources import clip_fingerprint, read_clip_once

_FRAMES_AT_ONCE = 32
"""Pictures that the autoencoder encodes at once: its features are the largest tensors of all."""


@torch.no_grad()
def encode_moments(
    pipeline: LatentShiftPipeline, frames: UInt8[Tensor, "n height width 3"]
) -> Float[Tensor, "n moments latent_height latent_width"]:
    """Mean and log-variance of the autoencoder's posterior of each picture, in this order along the second axis."""
    vae = pipeline.vae
    parts = []
    for some in torch.split(frames, _FRAMES_AT_ONCE):
        posterior = vae.encode(some.to(vae.device).permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1).latent_dist
        parts.append(torch.cat([posterior.mean, posterior.logvar], dim=1).float())
    return torch.cat(parts)


def encode_captions(pipeline: LatentShiftPipeline, captions: Sequence[str]) -> list[np.ndarray]:
    """Text features of each caption, `(tokens, width)` float16, without the zeros of its padding."""
    features = encode_text(
        pipeline.tokenizer, pipeline.text_encoder, captions, pipeline.max_prompt_tokens, pipeline.config.mask_padding
    )
    rows = features.float().cpu().numpy().astype(np.float16)
    kept = np.abs(rows).sum(axis=2) > 0
    return [row[: int(mask.nonzero()[0].max()) + 1] for row, mask in zip(rows, kept, strict=True)]


def check_cacheable(pipeline: LatentShiftPipeline, data: DataConfig) -> None:
    """Raises `InputError` where the model is SDXL, whose text has a pooled part that caches do not hold."""
    if len(text_encoders(pipeline.components)) > 1:
        expected = "be empty where the model is SDXL: it is trained on videos as they come"
        raise InputError("data.cache", data.cache, expected)


def open_clip_cache(
    pipeline: LatentShiftPipeline,
    records: Sequence[CaptionedVideo],
    data: DataConfig,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> ClipCache:
    """The cache of moments and text features below `data.cache`; what is missing of it is encoded first.

    It is found again by the records' files and captions, the weights of the autoencoder and of the text encoder, the
    tokenizer and its padding, and what is cut out of a video; anything else is another cache.

    Args:
        pipeline: whose autoencoder and text encoder encode.
        records: what is encoded.
        data: what is cut out of a video, and where the cache is.
        seed: decides at which moment.
        progress: called with "records", what is done and of how many.

    Raises:
        InputError: the model is SDXL, whose text has a pooled part that caches do not hold.
        DataError: more of the records are bad than `data.max_bad_share`, or the cache is damaged.
    """
    check_cacheable(pipeline, data)
    return open_or_build_cache(
        Path(data.cache),
        records,
        read_frames=lambda record: read_clip_once(record, data, seed),
        encode_frames=lambda frames: (
            encode_moments(pipeline, torch.from_numpy(frames)).cpu().numpy().astype(np.float16)
        ),
        encode_text=lambda captions: encode_captions(pipeline, captions),
        fingerprint={
            "kind": "moments",
            "autoencoder": _weights_hash(pipeline.vae),
            "text_encoder": _weights_hash(pipeline.text_encoder),
            "tokenizer": _tokenizer_hash(pipeline.tokenizer),
            "mask_padding": pipeline.config.mask_padding,
            "max_tokens": pipeline.max_prompt_tokens,
            **clip_fingerprint(data, seed),
        },
        max_bad_share=data.max_bad_share,
        progress=progress,
    )


def _weights_hash(module: nn.Module) -> str:
    """SHA-256 of a module's weights: what a cache of its outputs depends on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of what decides a tokenizer's tokens; how a call before this one padded and cut is no part of it."""
    facts: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "vocabulary": tokenizer.get_vocab(),
    }
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        facts["backend"] = {name: part for name, part in backend.items() if name not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
