"""Tiny real things, made on the spot: captioned clips of a moving square, a text encoder, the three stages on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest

SIZE, NUM_FRAMES = 16, 4
COLORS = {"red": (220, 30, 40), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
WORDS = ["a", "moving", "square", "still", "picture", "of", "the", *COLORS]
AUTOENCODER = {"latent_channels": 4, "patch_channels": 8, "block_out_channels": [8, 16], "decoder_layers": 1}
UNET = {
    "sample_size": SIZE // 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}

MakeTree = Callable[..., dict[str, Any]]


def draw_square(color: str, top: int, num_frames: int = NUM_FRAMES, size: int = SIZE) -> np.ndarray:
    """A coloured square on white that moves one pixel a frame: `(num_frames, size, size, 3)`, uint8."""
    frames = np.full((num_frames, size, size, 3), 255, np.uint8)
    for index in range(num_frames):
        frames[index, top : top + 7, 1 + index : 8 + index] = COLORS[color]
    return frames


def write_squares(folder: Path, clips: int = 2, stills: int = 1, **shape: int) -> Path:
    """For each colour some clips and stills, in the project's format."""
    from latent_shift.data.records import write_records
    from latent_shift.media import write_video

    records = []
    for color in COLORS:
        for number in range(clips + stills):
            moves = number < clips
            frames = draw_square(color, 2 + 4 * number, **shape)[: None if moves else 1]
            name = f"{'clips' if moves else 'stills'}/{color}{number}.webp"
            write_video(folder / name, frames, fps=8.0, lossless=True)
            caption = f"a {'moving' if moves else 'still'} {color} square"
            facts = {"label": color, "num_frames": len(frames)}
            records.append({"file_name": name, "caption": caption, "captions": [caption, color], "metadata": facts})
    write_records(folder, records)
    return folder


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 8 clips and 4 stills; tests only read it."""
    return write_squares(tmp_path_factory.mktemp("squares") / "data")


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of one layer in `text_encoder/`, and its WordPiece `tokenizer/`."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("text")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters[1:],
        *(f"##{letter}" for letter in letters),
    ]
    tokenizer = BertTokenizerFast(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=16)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="session")
def make_tree(
    squares: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Any]]:
    """Makes the tree of a tiny recipe: a stage, its output folder, and changed tables."""
    cache = tmp_path_factory.mktemp("cache")

    def make(stage: str, output: Path, **changes: Any) -> dict[str, Any]:
        tree: dict[str, Any] = {
            "stage": stage,
            "output": str(output),
            "steps": 4,
            "batch_size": 4,
            "device": "cpu",
            "precision": "fp32",
            "log_every": 2,
            "data": {
                "source": str(squares),
                "size": SIZE,
                "num_frames": NUM_FRAMES,
                "duration_s": "whole",
                "cache": str(cache),
            },
            "model": {},
            "optimizer": {"warmup_steps": 2},
            "preview": {"every": 100},
        }
        if stage == "autoencoder":
            tree["model"]["arguments"] = AUTOENCODER
            tree["data"]["balance_by"] = "label"
            tree["autoencoder_loss"] = {"crop": 8}
        else:
            tree["preview"] |= {"prompts": ["a red square", "blue"], "num_inference_steps": 2}
        if stage == "image":
            tree["model"] |= {"text_encoder": str(tiny_text), "arguments": UNET, "max_tokens": 8}
            tree["diffusion"] = {"image_share": 0.5}
        if stage == "video":
            tree["diffusion"] = {"image_share": 0.25, "circular_share": 0.5}
            tree["image_batch_size"] = 3
        for key, value in changes.items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
        return tree

    return make


@pytest.fixture(scope="session")
def road(make_tree: MakeTree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three stages trained one after the other: `autoencoder/`, `image/` and `video/`; tests only read it."""
    from latent_shift.core.config import parse_config
    from latent_shift.training import Recipe, train

    root = tmp_path_factory.mktemp("road")
    for stage, model in (
        ("autoencoder", {}),
        ("image", {"autoencoder": str(root / "autoencoder/model")}),
        ("video", {"init": str(root / "image/model"), "arguments": {"noise_correlation": 0.5}}),
    ):
        train(parse_config(Recipe, make_tree(stage, root / stage, model=model)))
    return root


@pytest.fixture
def as_users_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns the checks of annotations off: users have none, and the messages are for them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
