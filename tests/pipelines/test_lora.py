"""LoRA files made for the text-to-image model work in the video model: no key of the U-Net changes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_shift.pipelines import convert_model, load_pipeline

from .pretrained import SIZE, make_pipeline

peft = pytest.importorskip("peft")


def add_lora(network: torch.nn.Module, modules: list[str], seed: int) -> dict[str, torch.Tensor]:
    """An adapter that was trained, as far as anyone can tell: both of its matrices are random."""
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=modules)
    network.add_adapter(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return peft.get_peft_model_state_dict(network)


def draw(pipeline: Any) -> np.ndarray:
    latents = torch.randn(1, 4, 3, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(0))
    options = {"num_frames": 3, "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    return np.asarray(pipeline("a red heart", latents=latents, **options).frames)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_lora_of_the_image_model(kind: str, tmp_path: Path) -> None:
    theirs: Any = make_pipeline(kind, tmp_path / "words")
    theirs.save_pretrained(tmp_path / "model")
    convert_model(tmp_path / "model", tmp_path / "video", "shift")
    layers = {
        # conv1 sees the shifted features: in diffusers' block it is the same layer
        "unet_lora_layers": add_lora(theirs.unet, ["to_q", "to_v", "conv1", "proj_in"], 1),
        "text_encoder_lora_layers": add_lora(theirs.text_encoder, ["q_proj", "v_proj"], 2),
    }
    if kind == "sdxl":
        layers["text_encoder_2_lora_layers"] = add_lora(theirs.text_encoder_2, ["q_proj"], 3)
    type(theirs).save_lora_weights(tmp_path / "lora", **layers)

    ours: Any = load_pipeline(str(tmp_path / "video"), "cpu", "fp32")
    ours.set_progress_bar_config(disable=True)
    before = draw(ours)
    ours.load_lora_weights(tmp_path / "lora", adapter_name="style")
    active = draw(ours)
    assert np.abs(active - before).max() > 0.01
    ours.set_adapters("style", 0.0)
    np.testing.assert_allclose(draw(ours), before, atol=1e-5)
    ours.set_adapters("style", 1.0)
    ours.fuse_lora()
    np.testing.assert_allclose(draw(ours), active, atol=1e-4)
    ours.unfuse_lora()
    ours.unload_lora_weights()
    np.testing.assert_allclose(draw(ours), before, atol=1e-5)

    # A frame without the shift is the picture that the text-to-image model with its adapter draws.
    ours.load_lora_weights(tmp_path / "lora")
    latents = torch.randn(1, 4, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    expected = theirs("a red heart", height=SIZE, width=SIZE, latents=latents, **options).images
    frames = ours("a red heart", num_frames=1, latents=latents[:, :, None], boundary=None, **options).frames
    np.testing.assert_allclose(np.asarray(frames)[:, 0], expected, atol=1e-5)


def test_the_scale_of_a_call_is_that_of_its_lora_layers(tmp_path: Path) -> None:
    make_pipeline("sd1", tmp_path / "words").save_pretrained(tmp_path / "model")
    convert_model(tmp_path / "model", tmp_path / "video", "shift")
    unet = load_pipeline(str(tmp_path / "video"), "cpu", "fp32").unet
    add_lora(unet, ["to_q", "conv1"], 1)
    call = functools.partial(unet, torch.randn(1, 4, 2, 8, 8), 1, torch.randn(1, 3, 64), return_dict=False)
    with torch.no_grad():
        full, half, none = (call(cross_attention_kwargs={"scale": scale})[0] for scale in (1.0, 0.5, 0.0))
        assert torch.equal(full, call()[0])
        unet.disable_adapters()
        torch.testing.assert_close(none, call()[0])
    assert (half - none).abs().max() > 1e-4
    assert (half - full).abs().max() > 1e-4


def test_a_merged_checkpoint_converts(tmp_path: Path) -> None:
    theirs: Any = make_pipeline("sd1", tmp_path / "words")
    theirs.save_pretrained(tmp_path / "model")
    layers = add_lora(theirs.unet, ["to_q", "conv1"], 1)
    type(theirs).save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    convert_model(tmp_path / "model", tmp_path / "video", "shift")
    ours: Any = load_pipeline(str(tmp_path / "video"), "cpu", "fp32")
    ours.set_progress_bar_config(disable=True)
    ours.load_lora_weights(tmp_path / "lora")

    merged: Any = make_pipeline("sd1", tmp_path / "words")
    merged.load_lora_weights(tmp_path / "lora")
    merged.fuse_lora()
    merged.unload_lora_weights()
    merged.save_pretrained(tmp_path / "merged")
    convert_model(tmp_path / "merged", tmp_path / "merged-video", "shift")
    other: Any = load_pipeline(str(tmp_path / "merged-video"), "cpu", "fp32")
    other.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(draw(other), draw(ours), atol=1e-4)
