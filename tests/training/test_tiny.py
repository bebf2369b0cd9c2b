"""The smallest real recipe: does what is learned move as the captions say?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from latent_shift.core.config import load_config
from latent_shift.data.shapes import DIRECTIONS, SHAPES, write_shapes
from latent_shift.pipelines import load_pipeline
from latent_shift.training import Recipe, train
from latent_shift.training.report import read_log

ROOT = Path(__file__).parents[2]


def centre_of_mass(frame: np.ndarray) -> np.ndarray:
    """Of what is not white, `(y, x)` in pixels; `frame` is `(height, width, 3)` in [0, 1]."""
    weight = (1 - frame).max(axis=2).clip(0.2, 1) - 0.2
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]]
    return np.array([(weight * y).sum(), (weight * x).sum()]) / weight.sum()


@pytest.mark.slow
def test_shapes_move_as_their_captions_say(tmp_path: Path) -> None:
    write_shapes(tmp_path / "shapes")
    settings = (f"data.source={tmp_path / 'shapes'}", f"data.cache={tmp_path / 'cache'}", f"output={tmp_path / 'run'}")
    model = train(load_config(Recipe, ROOT / "recipes/tiny.toml", settings))
    losses = [row["loss"] for row in read_log(tmp_path / "run/log.jsonl")]
    assert np.mean(losses[-3:]) < 0.5 * losses[0]

    pipeline = load_pipeline(str(model), "cpu", "fp32")
    pipeline.set_progress_bar_config(disable=True)
    for shape, (color, rgb) in SHAPES.items():
        for direction, (down, right) in DIRECTIONS.items():
            prompt = f"a {color} {shape} moves {direction}"
            generator = torch.Generator().manual_seed(0)
            frames = pipeline(prompt, generator=generator, guidance_scale=2.0, output_type="np").frames[0]
            assert frames.shape == (8, 64, 64, 3)
            went_down, went_right = centre_of_mass(frames[-1]) - centre_of_mass(frames[0])
            # The data's shapes go 32 pixels.
            assert went_down * down + went_right * right > 12, prompt
            assert abs(went_down * right) + abs(went_right * down) < 6, prompt
            inside = frames[4][np.abs(frames[4] - 1).max(axis=2) > 0.5].mean(axis=0)
            assert np.abs(inside - np.array(rgb) / 255).max() < 0.2, prompt
