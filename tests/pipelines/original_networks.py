"""Text encoders with the module names of the original code, written from what it publishes, to compare features with.

`TransformerWrapper` is the one in CompVis/latent-diffusion's `x_transformer.py`, `OpenClipText` that of OpenCLIP.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, heads * 64, bias=False) for _ in range(3))
        self.to_out = nn.Linear(heads * 64, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, 64)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        weights = (q @ k.transpose(-1, -2) / 8).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.net = nn.Sequential(inner, nn.Dropout(0.0), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerWrapper(nn.Module):
    """Pre-norm; attention and feed-forward layers take turns; no mask; the features of the last norm."""

    def __init__(self, vocabulary: int, width: int, layers: int, tokens: int, heads: int = 2) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(vocabulary, width)
        self.pos_emb = nn.Module()
        self.pos_emb.emb = nn.Embedding(tokens, width)
        self.attn_layers = nn.Module()
        self.attn_layers.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(width), _FeedForward(width) if index % 2 else _Attention(width, heads)])
            for index in range(2 * layers)
        )
        self.norm = nn.LayerNorm(width)
        self.to_logits = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_emb(ids) + self.pos_emb.emb.weight[: ids.shape[1]]
        for norm, layer in self.attn_layers.layers:
            x = x + layer(norm(x))
        return self.norm(x)


class OpenClipText(nn.Module):
    """Causal transformer of `nn.MultiheadAttention`; pooled at the token with the largest number, then projected."""

    def __init__(self, vocabulary: int, width: int, layers: int, tokens: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(0.1 * torch.randn(tokens, width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(self._block(width) for _ in range(layers))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(0.1 * torch.randn(width, width))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    @staticmethod
    def _block(width: int) -> nn.Module:
        block = nn.Module()
        block.ln_1, block.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        block.attn = nn.MultiheadAttention(width, max(1, width // 64), batch_first=True)
        block.mlp = nn.Module()
        block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        return block

    def forward(self, ids: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """Features after `layers` layers and the last norm, and the projected features of the last word."""
        x = self.token_embedding(ids) + self.positional_embedding
        causal = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        for block in list(self.transformer.resblocks)[:layers]:
            normed = block.ln_1(x)
            x = x + block.attn(normed, normed, normed, attn_mask=causal, need_weights=False)[0]
            x = x + block.mlp.c_proj(functional.gelu(block.mlp.c_fc(block.ln_2(x))))
        features = self.ln_final(x)
        return features, features[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection
