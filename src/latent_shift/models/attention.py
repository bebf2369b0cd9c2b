"""Attention as folded frames allow it: all frames of a clip see one caption, so its keys and values are made once."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class ClipAttnProcessor(AttnProcessor2_0):  # type: ignore[misc]
    """Attention of folded frames to themselves, or to text with one row a clip.

    The pixels of a clip's frames are the queries of one cross-attention, so neither the text nor its keys and values
    are repeated. With as many rows of text as frames it is diffusers' own processor, less a division by one.
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
        if attention_mask is not None or kwargs or not _is_bare(attn):
            mixed: Tensor = super().__call__(attn, clips, encoder_hidden_states, attention_mask, temb, **kwargs)
            return mixed.reshape(hidden_states.shape)
        source = clips if encoder_hidden_states is None else encoder_hidden_states
        rows = attn.to_q(clips), attn.to_k(source), attn.to_v(source)
        query, key, value = (one.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in rows)
        attended = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))
        return out.reshape(hidden_states.shape)


def _is_bare(attn: Attention) -> bool:
    """Whether the layer is four projections and nothing else, as in a U-Net's spatial transformer."""
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, attn.norm_cross)
    return not any(extras) and not attn.residual_connection and attn.rescale_output_factor == 1


def _by_clip(x: Tensor, clips: int) -> Tensor:
    return x.reshape(clips, -1, x.shape[-1])


def attend_by_clip(network: nn.Module) -> None:
    """Gives every attention of diffusers a `ClipAttnProcessor`."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(ClipAttnProcessor())


def attends_by_clip(network: nn.Module) -> bool:
    """Whether every cross-attention takes text with one row a clip; not where others set processors of theirs."""
    layers = (module for module in network.modules() if isinstance(module, Attention) and module.is_cross_attention)
    return all(isinstance(attention.processor, ClipAttnProcessor) for attention in layers)


def training_attention(device: torch.device, compiled: bool = False) -> contextlib.AbstractContextManager[Any]:
    """The attention for training: plain batched products on a CPU, what PyTorch picks on a GPU and where it compiles.

    On a CPU both of PyTorch's own ways are slow to train: the flash kernel's backward pass took 39 % of a small U-Net's
    step, and its "math" kernel takes up to four times as long as the same products in three calls. Where layers are
    checkpointed, `backward` must be inside, too. PyTorch's compiler cannot see through it.
    """
    return _PlainAttention() if device.type == "cpu" and not compiled else contextlib.nullcontext()


class _PlainAttention(TorchFunctionMode):
    """Every `scaled_dot_product_attention` inside goes through `_attend`, whoever calls it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = _attend if func is functional.scaled_dot_product_attention else func
        return called(*args, **(kwargs or {}))


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **others: Any,
) -> Tensor:
    """`plain_attention` of what U-Nets ask for; for more (a text encoder's causal mask, dropout) PyTorch's own."""
    same_heads = query.dim() == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2]
    added_mask = attn_mask is None or attn_mask.is_floating_point()
    if same_heads and added_mask and not (dropout_p or is_causal or any(others.values())):
        return plain_attention(query, key, value, attn_mask)
    arguments = (query, key, value, attn_mask, dropout_p, is_causal)
    return functional.scaled_dot_product_attention(*arguments, **others)


def plain_attention(
    query: Float[Tensor, "batch heads queries channels"],
    key: Float[Tensor, "batch heads keys channels"],
    value: Float[Tensor, "batch heads keys channels"],
    attn_mask: Tensor | None = None,
) -> Float[Tensor, "batch heads queries channels"]:
    """softmax(q k^T / sqrt(channels) + mask) v as three calls, in the dtype of `query`, also under autocast.

    Args:
        query: what asks.
        key: what is compared with it.
        value: what is mixed.
        attn_mask: added to the products; broadcasts to `(batch, heads, queries, keys)`.
    """
    with torch.autocast(query.device.type, enabled=False):  # whose softmax would be fp32
        q, k, v = (rows.flatten(0, 1) for rows in (query * query.shape[-1] ** -0.5, key, value))
        scores = torch.bmm(q, k.transpose(1, 2))
        if attn_mask is not None:
            scores = (scores.view(*query.shape[:3], -1) + attn_mask).flatten(0, 1)
        return torch.bmm(scores.softmax(dim=-1), v).view(query.shape)
