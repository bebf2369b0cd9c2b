"""The noise process of a run is that of the model it starts from, unless the recipe says otherwise, and then aloud."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines.pretrained import make_pipeline

from latent_shift.core.errors import InputError
from latent_shift.pipelines import LatentShiftPipeline, convert_model, load_preset
from latent_shift.training import train
from latent_shift.training.noise import resolve_noise

from .conftest import MakeRecipe, make_stage_of

PREDICTION = {"sd1": "epsilon", "sd2": "v_prediction", "ldm": "epsilon"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with a tiny Stable Diffusion 1 and 2 and an LDM, as users have them."""
    root = tmp_path_factory.mktemp("pretrained")
    for kind in ("sd1", "sd2"):
        make_pipeline(kind, root / "words").save_pretrained(root / kind)
    load_preset("tiny", "cpu", "fp32", seed=1).save_pretrained(root / "ldm")
    return root


def from_init(init: Path, **changes: Any) -> dict[str, Any]:
    data = {"size": 32, "num_frames": 2, **changes.pop("data", {})}
    own = {"model": {"init": str(init), "arguments": {}}, "steps": 1, "batch_size": 2, "image_batch_size": 2}
    return {**own, "data": data, "preview": {"prompts": []}, **changes}


def rewrite_scheduler(init: Path, **changes: Any) -> None:
    place = init / "scheduler" / "scheduler_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))


FAST = [("sd2", "shift", False), ("ldm", "shift", True)]
COMBINATIONS = [
    pytest.param(kind, video, cached, marks=() if (kind, video, cached) in FAST else pytest.mark.slow)
    for kind in PREDICTION
    for video in ("shift", "vdm")
    for cached in (True, False)
]


@pytest.mark.parametrize(("kind", "video", "cached"), COMBINATIONS)
def test_a_converted_model_goes_on_with_its_own_noise(
    make_recipe: MakeRecipe, pretrained: Path, tmp_path: Path, kind: str, video: str, cached: bool
) -> None:
    """The target is written again here: v = sqrt(a) noise - sqrt(1 - a) u_0 (arXiv:2202.00512), or the noise."""
    convert_model(pretrained / kind, tmp_path / "init", video)
    data = {"size": 64 if kind == "ldm" else 32, **({} if cached else {"cache": ""})}
    changes = from_init(tmp_path / "init", data=data)
    changes["model"]["video"] = video
    recipe = make_recipe("video", **changes)
    stage = make_stage_of(recipe)
    batch = stage.batches.draw(0)
    latents, (text, _) = stage.encode(batch), stage.encode_text(batch)
    betas = torch.linspace(8.5e-4**0.5, 1.2e-2**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)[batch.timesteps].float().view(-1, 1, 1, 1, 1)
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * batch.noise
    target = batch.noise if PREDICTION[kind] == "epsilon" else kept.sqrt() * batch.noise - (1 - kept).sqrt() * latents
    with torch.no_grad():
        predicted = stage.network(noisy, batch.timesteps, text, boundary=batch.boundary).sample
        losses = stage.loss(batch)
    torch.testing.assert_close(losses, (predicted - target).square().mean(dim=(1, 2, 3, 4)), rtol=1e-3, atol=1e-5)

    model = train(recipe)
    made = LatentShiftPipeline.from_pretrained(model)
    assert made.scheduler.config.prediction_type == PREDICTION[kind]
    saved = json.loads((Path(recipe.output) / "recipe.json").read_text())["recipe"]
    assert saved["diffusion"]["prediction_type"] == PREDICTION[kind]


def test_every_field_that_a_recipe_leaves_out_is_the_models(
    make_recipe: MakeRecipe, road: Path, tmp_path: Path
) -> None:
    init = tmp_path / "init"
    init.mkdir()
    (init / "model_index.json").write_text((road / "image/model/model_index.json").read_text())
    (init / "scheduler").mkdir()
    (init / "scheduler/scheduler_config.json").write_text(
        (road / "image/model/scheduler/scheduler_config.json").read_text()
    )
    own = {
        "num_train_timesteps": 500,
        "beta_start": 1e-3,
        "beta_end": 2e-2,
        "beta_schedule": "linear",
        "prediction_type": "v_prediction",
    }
    rewrite_scheduler(init, **own, rescale_betas_zero_snr=True)
    found, notes = resolve_noise(make_recipe("video", **from_init(init)))
    assert notes == []
    assert {name: getattr(found.diffusion, name) for name in own} == own
    assert found.diffusion.zero_terminal_snr
    assert found.diffusion.image_share == 0.25  # not of the process
    assert resolve_noise(found) == (found, [])

    changed = make_recipe("video", **from_init(init, diffusion={"beta_end": 1.2e-2}))
    found, notes = resolve_noise(changed)
    assert found.diffusion.beta_end == 1.2e-2
    assert notes == [
        f"diffusion.beta_end = 0.012 changes the noise process: {init} was trained with 0.02",
    ]


def test_another_process_is_said_in_the_log(
    make_recipe: MakeRecipe, road: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe("video", steps=1, diffusion={"prediction_type": "v_prediction"})
    with caplog.at_level(logging.WARNING):
        model = train(recipe)
    expected = "diffusion.prediction_type = 'v_prediction' changes the noise process: "
    assert f"{expected}{road / 'image/model'} was trained with 'epsilon'" in caplog.messages
    assert LatentShiftPipeline.from_pretrained(model).scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("scheduler", "changes", "message"),
    [
        ({"prediction_type": "sample"}, {}, "model.init must be trained with a prediction_type of epsilon, v_pred"),
        ({"beta_schedule": "sigmoid"}, {}, "model.init must be trained with a beta_schedule of scaled_linear, "),
        (
            {"beta_end": 0.002},
            {"diffusion": {"beta_start": 0.01}},
            "diffusion.beta_start must be at most beta_end, 0.002, got 0.01",
        ),
        (
            {"num_train_timesteps": 5},
            {"preview": {"num_inference_steps": 6}},
            "preview.num_inference_steps must be at most diffusion.num_train_timesteps, 5, got 6",
        ),
        ({"trained_betas": [0.1, 0.2]}, {}, "model.init must have a noise schedule with a name, not betas of its own"),
        (
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            {"diffusion": {"prediction_type": "epsilon"}},
            "diffusion.prediction_type must be v_prediction, or diffusion.zero_terminal_snr be given as false: ",
        ),
        (
            {"prediction_type": "v_prediction"},
            {
                "diffusion": {"prediction_type": "epsilon"},
                "distillation": {"steps": 2},
                "preview": {"num_inference_steps": 2, "guidance_scale": 1.0},
            },
            "diffusion.prediction_type must be left out, or 'v_prediction': a distillation has the noise process of ",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused(
    make_recipe: MakeRecipe,
    road: Path,
    tmp_path: Path,
    scheduler: dict[str, Any],
    changes: dict[str, Any],
    message: str,
) -> None:
    init = tmp_path / "init"
    LatentShiftPipeline.from_pretrained(road / "image/model").save_pretrained(init)
    rewrite_scheduler(init, **scheduler)
    recipe = make_recipe("video", **from_init(init, **changes))
    with pytest.raises(InputError) as caught:
        train(recipe)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not Path(recipe.output).exists()
