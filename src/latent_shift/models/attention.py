"""Attention as folded frames allow it: all frames of a clip see one caption, so its keys and values are made once."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class ClipAttnProcessor(AttnProcessor2_0):  # type: ignore[misc]
    """Cross-attention of folded frames to text with one row a clip.

    The pixels of a clip's frames are the queries of one attention, so neither the text nor its keys and values are
    repeated. With as many rows of text as frames it is diffusers' own processor.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "batch_frames pixels channels"],
        encoder_hidden_states: Float[Tensor, "batch tokens text_channels"] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "batch_frames pixels channels"]:
        """As in diffusers; frames are fastest in the first axis of `hidden_states`."""
        clips = hidden_states if encoder_hidden_states is None else _by_clip(hidden_states, len(encoder_hidden_states))
        mixed: Tensor = super().__call__(attn, clips, encoder_hidden_states, attention_mask, temb, **kwargs)
        return mixed.reshape(hidden_states.shape)


def _by_clip(x: Tensor, clips: int) -> Tensor:
    return x.reshape(clips, -1, x.shape[-1])


def attend_by_clip(network: nn.Module) -> None:
    """Gives every cross-attention of diffusers a `ClipAttnProcessor`."""
    for attention in _cross_attentions(network):
        attention.set_processor(ClipAttnProcessor())


def attends_by_clip(network: nn.Module) -> bool:
    """Whether every cross-attention takes text with one row a clip; not where others set processors of theirs."""
    return all(isinstance(attention.processor, ClipAttnProcessor) for attention in _cross_attentions(network))


def _cross_attentions(network: nn.Module) -> list[Attention]:
    return [module for module in network.modules() if isinstance(module, Attention) and module.is_cross_attention]


def training_attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The attention kernel for training: on a CPU plain products; the flash kernel's backward took 39 % of a step."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
