"""How the keys of the original single-file checkpoints are called in diffusers and transformers.

The originals are the module names of CompVis/latent-diffusion (in `ldm/modules`: `diffusionmodules/openaimodel.py` and
`model.py`, `x_transformer.py`), which Stable Diffusion kept, and of OpenCLIP. Widths, depths and the rest of each
network's configuration are read off the shapes of its weights. What they do not tell is the number of heads, which
follows from a habit: 8 heads, or heads of width 64 where the projections of the transformers are linear.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from latent_shift.core.errors import InputError

State = Mapping[str, Tensor]

_CLIP_WORDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}


def rename(state: State, names: Mapping[str, str], source: str) -> dict[str, Tensor]:
    """The same tensors under new names; `names` maps modules, and what is below a module keeps its name.

    Raises:
        InputError: a key is of no module in `names`.
    """
    renamed = {}
    for key, tensor in state.items():
        parts = key.split(".")
        module = next((".".join(parts[:cut]) for cut in range(len(parts), 0, -1) if ".".join(parts[:cut]) in names), "")
        if not module:
            raise InputError(source, f"unexpected {key}", "have the keys of the original checkpoints")
        renamed[names[module] + key[len(module) :]] = tensor
    return renamed


def unet_config(state: State) -> dict[str, Any]:
    """Arguments of `UNet2DConditionModel` for the weights of `UNetModel` (keys without `model.diffusion_model.`).

    Raises:
        InputError: the weights are those of another network.
    """
    levels: list[list[tuple[int, int]]] = [[]]  # of each ResNet block its width and its transformer's depth
    for index in itertools.count(1):
        block = f"input_blocks.{index}"
        if f"{block}.0.op.weight" in state:
            levels.append([])
        elif f"{block}.0.out_layers.3.weight" in state:
            levels[-1].append((len(state[f"{block}.0.out_layers.3.weight"]), _depth(state, f"{block}.1")))
        else:
            break
    uniform = all(len(set(level)) == 1 and len(level) == len(levels[0]) for level in levels)
    if not uniform or "input_blocks.0.0.weight" not in state or "out.2.weight" not in state:
        raise InputError("U-Net of the checkpoint", sorted(state)[:1], "be a U-Net with blocks alike on each level")
    widths, depths = zip(*(level[0] for level in levels), strict=True)
    transformer = next((key.partition(".transformer_blocks")[0] for key in state if ".attn2.to_k." in key), None)
    if transformer is None:
        raise InputError("U-Net of the checkpoint", None, "have cross-attention")
    linear = state[f"{transformer}.proj_in.weight"].ndim == 2
    config: dict[str, Any] = {
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "out_channels": len(state["out.2.weight"]),
        "block_out_channels": list(widths),
        "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [depth or 1 for depth in depths],
        "cross_attention_dim": state[f"{transformer}.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "use_linear_projection": linear,
        # diffusers' name for the number of heads of such a network
        "attention_head_dim": [max(1, width // 64) for width in widths] if linear else 8,
    }
    if "label_emb.0.0.weight" in state:  # SDXL: 6 sizes, each embedded in 256 numbers, beside the pooled caption
        width = state["label_emb.0.0.weight"].shape[1]
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        config["projection_class_embeddings_input_dim"] = width
    return config


def unet_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Module of `UNetModel` to module of `UNet2DConditionModel`."""
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    attended = [name.startswith("CrossAttn") for name in config["down_block_types"]]
    names = {
        "input_blocks.0.0": "conv_in",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        **_resnet_names("middle_block.0", "mid_block.resnets.0"),
        "middle_block.1": "mid_block.attentions.0",
        **_resnet_names("middle_block.2", "mid_block.resnets.1"),
    }
    for level, layer in itertools.product(range(levels), range(layers)):
        old, new = f"input_blocks.{1 + level * (layers + 1) + layer}", f"down_blocks.{level}"
        names |= {**_resnet_names(f"{old}.0", f"{new}.resnets.{layer}"), f"{old}.1": f"{new}.attentions.{layer}"}
    for level in range(levels - 1):
        names[f"input_blocks.{(level + 1) * (layers + 1)}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    for level, layer in itertools.product(range(levels), range(layers + 1)):
        old, new = f"output_blocks.{level * (layers + 1) + layer}", f"up_blocks.{level}"
        names |= _resnet_names(f"{old}.0", f"{new}.resnets.{layer}")
        has_attention = attended[levels - 1 - level]
        if has_attention:
            names[f"{old}.1"] = f"{new}.attentions.{layer}"
        if layer == layers:
            names[f"{old}.{1 + has_attention}.conv"] = f"{new}.upsamplers.0.conv"
    return names


def _resnet_names(old: str, new: str) -> dict[str, str]:
    return {
        f"{old}.in_layers.0": f"{new}.norm1",
        f"{old}.in_layers.2": f"{new}.conv1",
        f"{old}.emb_layers.1": f"{new}.time_emb_proj",
        f"{old}.out_layers.0": f"{new}.norm2",
        f"{old}.out_layers.3": f"{new}.conv2",
        f"{old}.skip_connection": f"{new}.conv_shortcut",
    }


def _depth(state: State, transformer: str) -> int:
    return _count(state, f"{transformer}.transformer_blocks")


def _count(keys: Iterable[str], modules: str) -> int:
    """How many modules a module list has."""
    found = {key[len(modules) + 1 :].partition(".")[0] for key in keys if key.startswith(f"{modules}.")}
    return len(found)


def vae_config(state: State, scaling_factor: float) -> dict[str, Any]:
    """Arguments of `AutoencoderKL` for the weights of the original's (keys without `first_stage_model.`)."""
    levels = _count(state, "encoder.down")
    if not levels or "post_quant_conv.weight" not in state:
        raise InputError("autoencoder of the checkpoint", sorted(state)[:1], "be a KL autoencoder")
    widths = [len(state[f"encoder.down.{level}.block.0.conv1.weight"]) for level in range(levels)]
    return {
        "block_out_channels": widths,
        "layers_per_block": _count(state, "encoder.down.0.block"),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": len(state["post_quant_conv.weight"]),
        "scaling_factor": scaling_factor,
    }


def vae_state(state: State, config: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The weights under their names in `AutoencoderKL`; 1x1 convolutions of its attention become matrices."""
    kept = {key: tensor for key, tensor in state.items() if not key.startswith("loss.")}
    return {
        key: tensor[:, :, 0, 0] if ".attentions." in key and tensor.ndim == 4 else tensor
        for key, tensor in rename(kept, vae_names(config), source).items()
    }


def vae_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Module of the original autoencoder to module of `AutoencoderKL`."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half, side, sampler, blocks in (
        ("encoder", "down", "downsample", layers),
        ("decoder", "up", "upsample", layers + 1),
    ):
        names |= {
            f"{half}.conv_in": f"{half}.conv_in",
            f"{half}.conv_out": f"{half}.conv_out",
            f"{half}.norm_out": f"{half}.conv_norm_out",
            f"{half}.mid.block_1": f"{half}.mid_block.resnets.0",
            f"{half}.mid.block_2": f"{half}.mid_block.resnets.1",
        }
        old, new = f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0"
        names |= {f"{old}.{part}": f"{new}.to_{part}" for part in "qkv"}
        names |= {f"{old}.norm": f"{new}.group_norm", f"{old}.proj_out": f"{new}.to_out.0"}
        for level, block in itertools.product(range(levels), range(blocks)):
            # The original counts the decoder's levels from the picture inwards.
            old = f"{half}.{side}.{level if side == 'down' else levels - 1 - level}"
            new = f"{half}.{side}_blocks.{level}"
            names[f"{old}.{sampler}.conv"] = f"{new}.{sampler}rs.0.conv"
            names[f"{old}.block.{block}"] = f"{new}.resnets.{block}"
            names[f"{old}.block.{block}.nin_shortcut"] = f"{new}.resnets.{block}.conv_shortcut"
    return names


def ldm_bert_config(state: State) -> dict[str, Any]:
    """Arguments of `LDMBertConfig` for `BERTEmbedder` (keys without `cond_stage_model.transformer.`)."""
    vocabulary, width = state["token_emb.weight"].shape
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "max_position_embeddings": len(state["pos_emb.emb.weight"]),
        "encoder_layers": _count(state, "attn_layers.layers") // 2,
        "encoder_ffn_dim": len(state["attn_layers.layers.1.1.net.0.0.weight"]),
        "encoder_attention_heads": len(state["attn_layers.layers.0.1.to_q.weight"]) // 64,
        "head_dim": 64,
    }


def ldm_bert_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Module of `TransformerWrapper` to module of `LDMBertModel`: layers 2i attend, layers 2i + 1 feed forward."""
    names = {
        "token_emb": "model.embed_tokens",
        "pos_emb.emb": "model.embed_positions",
        "norm": "model.layer_norm",
        "to_logits": "to_logits",
    }
    for layer in range(config["encoder_layers"]):
        attention, feed, new = 2 * layer, 2 * layer + 1, f"model.layers.{layer}"
        names |= {f"attn_layers.layers.{attention}.1.to_{part}": f"{new}.self_attn.{part}_proj" for part in "qkv"}
        names |= {
            f"attn_layers.layers.{attention}.0": f"{new}.self_attn_layer_norm",
            f"attn_layers.layers.{attention}.1.to_out": f"{new}.self_attn.out_proj",
            f"attn_layers.layers.{feed}.0": f"{new}.final_layer_norm",
            f"attn_layers.layers.{feed}.1.net.0.0": f"{new}.fc1",
            f"attn_layers.layers.{feed}.1.net.2": f"{new}.fc2",
        }
    return names


def clip_config(state: State, activation: str) -> dict[str, Any]:
    """Arguments of `CLIPTextConfig` for transformers' weights (with or without `text_model.`)."""
    shapes = {key.removeprefix("text_model."): tensor.shape for key, tensor in state.items()}
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "num_hidden_layers": _count(shapes, "encoder.layers"),
        "num_attention_heads": max(1, width // 64),
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "hidden_act": activation,
        **_CLIP_WORDS,
    }
    if "text_projection.weight" in shapes:
        config["projection_dim"] = shapes["text_projection.weight"][0]
    return config


def open_clip_state(state: State, source: str, projection: bool) -> dict[str, Tensor]:
    """The weights of OpenCLIP's text transformer under the names of transformers' `CLIPTextModel`.

    Args:
        state: keys without their prefix (`cond_stage_model.model.`).
        source: what messages call the checkpoint.
        projection: True keeps all layers and the projection of the pooled features (SDXL); False leaves the last layer
            and the projection out: Stable Diffusion 2 reads the features before it.
    """
    layers = _count(state, "transformer.resblocks") - (not projection)
    names = {"token_embedding": "embeddings.token_embedding", "ln_final": "final_layer_norm"}
    for layer in range(layers):
        old, new = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        names |= {
            f"{old}.ln_1": f"{new}.layer_norm1",
            f"{old}.ln_2": f"{new}.layer_norm2",
            f"{old}.mlp.c_fc": f"{new}.mlp.fc1",
            f"{old}.mlp.c_proj": f"{new}.mlp.fc2",
            f"{old}.attn.out_proj": f"{new}.self_attn.out_proj",
        }
    renamed: dict[str, Tensor] = {"embeddings.position_embedding.weight": state["positional_embedding"]}
    rest = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if key.startswith("transformer.resblocks.") and int(parts[2]) >= layers:
            continue
        if ".attn.in_proj_" in key:
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                kind = key.rpartition("_")[2]
                renamed[f"encoder.layers.{parts[2]}.self_attn.{part}_proj.{kind}"] = chunk
        elif key not in ("positional_embedding", "text_projection", "logit_scale", "attn_mask"):
            rest[key] = tensor
    renamed |= rename(rest, names, source)
    if projection:
        renamed["text_projection.weight"] = state["text_projection"].T.contiguous()
    return renamed


def without_prefix(state: State, prefix: str) -> dict[str, Tensor]:
    """What lies below a prefix, by the rest of its name."""
    return {key[len(prefix) :]: tensor for key, tensor in state.items() if key.startswith(prefix)}


def has_prefix(keys: Iterable[str], prefix: str) -> bool:
    """Whether anything lies below a prefix."""
    return any(key.startswith(prefix) for key in keys)
