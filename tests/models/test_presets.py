import pytest
import torch

from latent_shift.core.errors import InputError
from latent_shift.models import LatentShiftUNet, LatentVDMUNet
from latent_shift.models.presets import PRESETS, find_preset


@pytest.mark.parametrize(("name", "unet"), [("paper", 872_300_484), ("paper-vdm", 921_903_620)])
def test_the_papers_networks_have_the_papers_parameters(name: str, unet: int) -> None:
    parts = find_preset(name).build()
    assert {weight.device.type for part in parts.values() for weight in part.parameters()} == {"meta"}
    counts = {part: sum(weight.numel() for weight in network.parameters()) for part, network in parts.items()}
    assert counts == {"unet": unet, "vae": 83_653_863, "text_encoder": 581_994_042}
    head = sum(weight.numel() for weight in parts["text_encoder"].to_logits.parameters())
    assert round((counts["text_encoder"] - head) / 1e6, 1) == 542.9


def test_table_6() -> None:
    preset = find_preset("paper")
    assert (preset.size, preset.num_frames, preset.guidance_scale, preset.max_tokens) == (256, 16, 7.5, 77)
    parts = preset.build()
    unet, vae, text = parts["unet"], parts["vae"], parts["text_encoder"]
    assert unet.config.shift_fold == 3
    assert unet.config.default_boundary == "zero"
    assert unet.config.noise_correlation == 0
    assert unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.heads == 8
    assert unet.config.cross_attention_dim == text.config.d_model == 1280
    assert [type(block).__name__ for block in unet.down_blocks[:3]] == ["VideoCrossAttnDownBlock2D"] * 3
    assert vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1) == unet.config.sample_size == 32
    assert vae.config.latent_channels == unet.config.in_channels == 4
    assert text.config.max_position_embeddings == 77


@pytest.mark.parametrize(("name", "kind"), [("tiny", LatentShiftUNet), ("tiny-vdm", LatentVDMUNet)])
def test_the_twins_have_the_same_blocks(name: str, kind: type) -> None:
    twin = PRESETS[name].build("cpu")
    assert type(twin["unet"]) is kind
    paper = PRESETS[name.replace("tiny", "paper")].build()
    for part in twin:
        shape = [type(module) for module in twin[part].children()]
        assert shape == [type(module) for module in paper[part].children()]
    assert not any(module.training for network in twin.values() for module in network.modules())


def test_building_leaves_the_default_dtype_alone() -> None:
    parts = PRESETS["tiny"].build("cpu", torch.bfloat16)
    assert {weight.dtype for part in parts.values() for weight in part.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(
        InputError, match="preset must be one of paper, paper-vdm, small, small-vdm, tiny, tiny-vdm, got 'papre'"
    ):
        find_preset("papre")
