"""Captions to text features, for the text encoders that the models come with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from latent_shift.core.errors import shortened

logger = logging.getLogger(__name__)


def encode_text(
    tokenizer: Any,
    text_encoder: Any,
    captions: Sequence[str],
    max_tokens: int,
    mask_padding: bool,
    device: torch.device | None = None,
) -> Float[Tensor, "captions tokens width"]:
    """Token features of captions, padded to `max_tokens`.

    Args:
        tokenizer: a transformers tokenizer.
        text_encoder: a transformers encoder; runs without dropout.
        captions: what to encode; an empty one is the unconditional caption.
        max_tokens: longer captions are cut, with a warning that says how much is read.
        mask_padding: True hides padding from the encoder and zeroes its features (sentence encoders such as MiniLM);
            False lets padding attend (CLIP, and LDM's BERT, which were trained so).
        device: where the encoder runs; that of its weights where None.
    """
    # Hidden padding changes nothing, so it is added after the encoder and not before.
    padding = "longest" if mask_padding else "max_length"
    tokens = tokenize(tokenizer, captions, max_tokens, padding)
    device = device or text_encoder.device
    input_ids = tokens.input_ids.to(device)
    mask = tokens.attention_mask.to(device) if mask_padding else None
    with torch.no_grad():
        features: Tensor = text_encoder(input_ids, attention_mask=mask)[0]
    if mask is None:
        return features
    return F.pad(features * mask[:, :, None].to(features.dtype), (0, 0, 0, max_tokens - features.shape[1]))


def tokenize(tokenizer: Any, captions: Sequence[str], max_tokens: int, padding: str) -> Any:
    """Captions as tokens, cut to `max_tokens` with a warning that says how much is read; what transformers returns."""
    tokens = tokenizer(list(captions), padding=padding, truncation=True, max_length=max_tokens, return_tensors="pt")
    # Afterwards: a fast tokenizer keeps the last call's way of cutting, and would be saved with it. Not verbose:
    # transformers would warn that the model may fail on what it never gets.
    for caption in captions:
        length = len(tokenizer(caption, truncation=False, verbose=False)["input_ids"])
        if length > max_tokens:
            logger.warning("prompt of %d tokens is cut to %d: %s", length, max_tokens, shortened(caption, 80))
    return tokens
