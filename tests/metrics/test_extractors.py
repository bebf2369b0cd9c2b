"""Weights of published metrics are not here: files of the same form with other numbers stand in for them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from latent_shift.core.errors import DataError, InputError
from latent_shift.metrics import (
    EXTRACTORS,
    Moments,
    c3d,
    clip_model,
    extract_features,
    extractors,
    flicker,
    frame_difference,
    frame_features,
    frechet_distance,
    load_efficientnet_lite0,
    load_extractor,
)
from latent_shift.metrics.clip_model import FOLDER, ClipViTB32

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
CLIPS = RNG.integers(0, 256, (3, 16, 20, 24, 3), dtype=np.uint8)


class FlatInception(nn.Module):
    """The interface of NVIDIA's file: `layers` takes [-1, 1] at 299, `forward` bytes of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d((32, 32)), nn.Flatten(1))
        self.scale = 2048

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        return self.layers((x - 128) / 128)[:, : self.scale] if return_features else x


class FlatI3D(nn.Module):
    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        assert rescale
        assert resize
        assert return_features
        return functional.adaptive_avg_pool3d(x / 255, (10, 5, 8)).mean(1).flatten(1)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    inception = FlatInception()
    inception.layers.add_module("cut", nn.Sequential(nn.Linear(3 * 32 * 32, 2048, bias=False)))
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(inception), str(tmp_path / "inception-2015-12-05.pt"))
    torch.jit.save(torch.jit.script(FlatI3D()), str(tmp_path / "i3d_torchscript.pt"))
    return tmp_path


# TorchScript is what these files are; torch would like another format.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def pin(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Takes a file for I3D's."""
    known = extractors.I3D
    stand_in = type(known)(known.file_name, known.address, "test", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(extractors, "I3D", stand_in)


def test_lite0_of_clips_is_what_they_show_and_how_it_changes() -> None:
    network = load_efficientnet_lite0()
    clip = CLIPS[0, :4]
    frames = frame_features(network, clip)
    rows = extract_features(load_extractor("lite0-clips"), [clip])
    assert rows.shape == (1, 1, 2560)
    np.testing.assert_allclose(rows[0, 0, :1280], frames.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(rows[0, 0, 1280:], np.abs(np.diff(frames, axis=0)).mean(axis=0), atol=1e-4)
    still = extract_features(load_extractor("lite0-clips"), [np.repeat(clip[:1], 3, axis=0)])
    np.testing.assert_allclose(still[0, 0, 1280:], 0, atol=1e-4)
    reversed_clip = extract_features(load_extractor("lite0-clips"), [clip[::-1]])
    np.testing.assert_allclose(reversed_clip, rows, atol=1e-4)
    singles = extract_features(load_extractor("lite0-frames"), [clip])
    np.testing.assert_allclose(singles[0], frames, atol=1e-4)
    with pytest.raises(InputError, match="frames must be at least 2 for the features lite0-clips, got 1"):
        extract_features(load_extractor("lite0-clips"), [clip[:1]])


def test_motion_numbers_are_those_of_the_functions() -> None:
    rows = extract_features(load_extractor("motion"), CLIPS)
    assert rows[1, 0].tolist() == pytest.approx([frame_difference(CLIPS[1]), flicker(CLIPS[1]), 1.0])


def test_the_clean_resize_is_pillows() -> None:
    for size in ((64, 80), (400, 350)):
        picture = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
        channels = [Image.fromarray(picture[..., c].astype(np.float32)) for c in range(3)]
        expected = np.stack([np.asarray(c.resize((299, 299), Image.Resampling.BICUBIC)) for c in channels])
        ours = extractors.clean_resize(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), 299)
        np.testing.assert_allclose(ours[0], expected.clip(0, 255), atol=2e-2)


@torch.no_grad()
def test_inception_gets_bytes_or_the_clean_resize(weights: Path) -> None:
    script: Any = torch.jit.load(str(weights / "inception-2015-12-05.pt"))
    frames = torch.from_numpy(CLIPS[:2]).flatten(0, 1).permute(0, 3, 1, 2).float()
    legacy = extract_features(load_extractor("inception-legacy", weights), CLIPS[:2])
    np.testing.assert_allclose(legacy.reshape(32, -1), script(frames, return_features=True), rtol=1e-4, atol=1e-5)
    clean = extract_features(load_extractor("inception", weights), CLIPS[:2])
    resized = functional.interpolate(frames, (299, 299), mode="bicubic", antialias=True).clamp(0, 255)
    np.testing.assert_allclose(clean.reshape(32, -1), script.layers(resized / 128 - 1), rtol=1e-4, atol=1e-5)
    assert clean.shape == legacy.shape == (2, 16, 2048)
    info = load_extractor("inception", weights).info
    assert info.sha256 == hashlib.sha256((weights / "inception-2015-12-05.pt").read_bytes()).hexdigest()
    assert info.name != load_extractor("inception-legacy", weights).info.name


def test_i3d_gets_bytes_with_channels_first(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, weights / "i3d_torchscript.pt")
    rows = extract_features(load_extractor("i3d", weights), CLIPS)
    videos = torch.from_numpy(CLIPS).permute(0, 4, 1, 2, 3).float()
    expected = FlatI3D()(videos, rescale=True, resize=True, return_features=True)
    np.testing.assert_allclose(rows[:, 0], expected, rtol=1e-5)
    with pytest.raises(InputError, match="frames must be at least 10 for the features i3d, got 9"):
        extract_features(load_extractor("i3d", weights), CLIPS[:, :9])


@pytest.fixture
def c3d_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A narrow C3D in the form of TGANv2's files, as Chainer writes them."""
    widths = (4, 4, 6, 6, 8)
    torch.manual_seed(0)
    network = c3d.C3DNetwork(10, widths)
    keys = {name: name.replace(".weight", "/W").replace(".bias", "/b") for name in network.state_dict()}
    np.savez(tmp_path / "conv3d_deepnetA_ucf.npz", **{keys[n]: t.numpy() for n, t in network.state_dict().items()})
    mean = np.random.default_rng(0).uniform(80, 120, size=(3, 16, 128, 171)).astype(np.float32)
    np.savez(tmp_path / "mean2.npz", mean=mean)
    full = c3d.C3DNetwork
    monkeypatch.setattr(c3d, "C3DNetwork", lambda: full(10, widths))
    return tmp_path


def test_c3d_subtracts_the_mean_clip_and_reads_bgr(c3d_weights: Path) -> None:
    rows = extract_features(load_extractor("c3d", c3d_weights), CLIPS[:1])
    assert rows.shape == (1, 1, 101)
    assert rows.sum() == pytest.approx(1, abs=1e-5)
    # TGANv2: 128 * [-1, 1] + 128 - mean, channels turned around, corners aligned.
    mean = torch.from_numpy(np.load(c3d_weights / "mean2.npz")["mean"])[:, :, 8:120, 8:120]
    frames = torch.from_numpy(CLIPS[0]).permute(0, 3, 1, 2).float()
    scaled = functional.interpolate((frames - 128) / 128, (112, 112), mode="bilinear", align_corners=True)
    video = 128 * scaled[:, [2, 1, 0]].transpose(0, 1) + (128 - mean)
    network = c3d.C3DNetwork()
    arrays = np.load(c3d_weights / "conv3d_deepnetA_ucf.npz")
    for name, parameter in network.named_parameters():
        key = name.replace(".weight", "/W").replace(".bias", "/b")
        parameter.data.copy_(torch.from_numpy(arrays[key]))
    np.testing.assert_allclose(rows[0, 0], network(video[None])[0].detach(), rtol=1e-3, atol=1e-6)
    with pytest.raises(InputError, match="frames must be 16 for the features c3d, got 15"):
        extract_features(load_extractor("c3d", c3d_weights), CLIPS[:, :15])


def test_c3d_has_the_published_size() -> None:
    with torch.device("meta"):
        network = c3d.C3DNetwork()
    convolutions = sum(
        27 * a * b + b for a, b in zip((3, 64, 128, 256, 256, 512, 512, 512), c3d_outputs(), strict=True)
    )
    assert (
        sum(p.numel() for p in network.parameters()) == convolutions + 8192 * 4096 + 4096 + 4096**2 + 4096 + 4097 * 101
    )


@torch.no_grad()
def test_c3d_is_the_network_of_the_paper() -> None:
    """Fig. 3 of arXiv:1412.0767 in a row: the first pooling leaves the frames, and sizes are rounded up."""
    torch.manual_seed(0)
    network = c3d.C3DNetwork(10, (4, 4, 6, 6, 8))
    layers: list[nn.Module] = []
    for names in (("1a",), ("2a",), ("3a", "3b"), ("4a", "4b"), ("5a", "5b")):
        for name in names:
            layers += [network.get_submodule(f"conv{name}"), nn.ReLU()]
        layers.append(nn.MaxPool3d((1 if names == ("1a",) else 2, 2, 2), ceil_mode=True))
    layers += [nn.Flatten(), network.fc6, nn.ReLU(), network.fc7, nn.ReLU(), network.fc8, nn.Softmax(dim=1)]
    with torch.random.fork_rng():
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
        x = torch.randn(2, 3, 16, 112, 112)
    torch.testing.assert_close(network(x), nn.Sequential(*layers)(x))


def c3d_outputs() -> tuple[int, ...]:
    return (64, 128, 256, 256, 512, 512, 512, 512)


def test_damaged_c3d_files_are_named(c3d_weights: Path) -> None:
    np.savez(c3d_weights / "mean2.npz", mean=np.zeros((3, 16, 10, 10)))
    with pytest.raises(DataError, match=r"mean2.npz holds a mean of the shape \(3, 16, 10, 10\)"):
        load_extractor("c3d", c3d_weights)
    np.savez(c3d_weights / "conv3d_deepnetA_ucf.npz", other=np.zeros(3))
    with pytest.raises(DataError, match="has no array 'conv1a/W'"):
        load_extractor("c3d", c3d_weights)
    (c3d_weights / "conv3d_deepnetA_ucf.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="no .npz file"):
        load_extractor("c3d", c3d_weights)


@pytest.fixture(scope="session")
def clip_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny CLIP with its tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    root = tmp_path_factory.mktemp("clip")
    words = ["a</w>", "red</w>", "square</w>"]
    tokens = ["<|startoftext|>", "<|endoftext|>", *[chr(c) for c in range(97, 123)]]
    tokens += [*[f"{chr(c)}</w>" for c in range(98, 123)], *words]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[])
    tokenizer.save_pretrained(root / FOLDER)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(vocab), "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    CLIPModel(config).eval().save_pretrained(root / FOLDER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_model, "_PATCH_SIZE", 8)
        patch.setattr(clip_model, "_PROJECTION", 12)
        yield root


def test_another_clip_is_refused(clip_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_model, "_PATCH_SIZE", 32)
    message = r"is not openai/clip-vit-base-patch32: it has patches of 8 pixels and 12 features, not 32 and 12"
    with pytest.raises(DataError, match=message):
        load_extractor("clip", clip_weights)


def test_clip_is_transformers_own(clip_weights: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    ours = load_extractor("clip", clip_weights)
    rows = extract_features(ours, CLIPS[:1, :2])
    texts = ours.texts(["a red square", "a"])
    model: Any = CLIPModel.from_pretrained(clip_weights / FOLDER)
    tokens = AutoTokenizer.from_pretrained(clip_weights / FOLDER)(
        ["a red square", "a"], padding="max_length", max_length=77, return_tensors="pt"
    )
    pixels = ours.pixels(torch.from_numpy(CLIPS[0, :2]).permute(0, 3, 1, 2))
    with torch.no_grad():
        output = model(**tokens, pixel_values=pixels)
    unit = rows[0] / np.linalg.norm(rows[0], axis=1, keepdims=True)
    np.testing.assert_allclose(unit, output.image_embeds, atol=1e-5)
    np.testing.assert_allclose(texts / texts.norm(dim=1, keepdim=True), output.text_embeds, atol=1e-5)
    assert rows.shape == (1, 2, 12)
    assert ours.info.weights == "openai/clip-vit-base-patch32/model.safetensors"


def test_long_sentences_are_cut(clip_weights: Path) -> None:
    ours = load_extractor("clip", clip_weights)
    assert torch.isfinite(ours.texts(["a red square " * 60])).all()


def test_many_sentences_are_each_their_own(clip_weights: Path) -> None:
    ours = load_extractor("clip", clip_weights)
    sentences = [" ".join(["a"] * n) for n in range(1, 41)]
    alone = torch.cat([ours.texts([sentence]) for sentence in sentences])
    assert len(alone.unique(dim=0)) == 40
    torch.testing.assert_close(ours.texts(sentences), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 64), (50, 33), (32, 32), (20, 24), (98, 147)])
def test_clips_pixels_are_openais(clip_weights: Path, size: tuple[int, int]) -> None:
    """Pillow's bicubic, the shorter side at 32, the middle, CLIP's mean and deviation."""
    ours: ClipViTB32 = load_extractor("clip", clip_weights)
    picture = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    height, width = (max(32, int(s * 32 / min(size))) for s in size)
    image = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - 32) // 2, (width - 32) // 2
    cropped = image[top : top + 32, left : left + 32] / 255
    expected = (cropped - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    found = ours.pixels(torch.from_numpy(picture).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(found, expected, atol=1.01 / 255 / 0.26)  # one step of a byte, from rounding
    assert np.abs(found.numpy() - expected).mean() < 1e-3


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("i3d", ["i3d_torchscript.pt", "huggingface.co/flateon/FVD-I3D-torchscript", "sha256 bec6519f66ea"]),
        ("inception", ["inception-2015-12-05.pt", "nvlabs-fi-cdn.nvidia.com"]),
        ("inception-legacy", ["inception-2015-12-05.pt"]),
        ("c3d", ["conv3d_deepnetA_ucf.npz", "github.com/rezoo/tgan2/releases/download/v1.0"]),
        ("clip", ["openai/clip-vit-base-patch32", "config.json"]),
    ],
)
def test_missing_weights_say_what_to_fetch_and_where_to_put_it(tmp_path: Path, name: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_extractor(name, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in ["weights must hold", "fetch https://", f"to {tmp_path}/", *parts]:
        assert part in message


def test_another_file_under_the_name_is_refused(weights: Path) -> None:
    with pytest.raises(DataError, match=r"i3d_torchscript.pt is not the file of .*, expected bec6519f66ea"):
        load_extractor("i3d", weights)


def test_damaged_weights_are_refused(tmp_path: Path, clip_weights: Path) -> None:
    (tmp_path / "inception-2015-12-05.pt").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no TorchScript file"):
        load_extractor("inception", tmp_path)
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "config.json").write_text((clip_weights / FOLDER / "config.json").read_text())
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no CLIP model"):
        load_extractor("clip", tmp_path)


def test_half_a_clip_model_is_refused_and_not_filled_at_random(tmp_path: Path, clip_weights: Path) -> None:
    shutil.copytree(clip_weights / FOLDER, tmp_path / FOLDER)
    file = tmp_path / FOLDER / "model.safetensors"
    texts = {key: value for key, value in load_file(file).items() if not key.startswith("vision")}
    save_file(texts, file, {"format": "pt"})
    with pytest.raises(DataError, match=r"model.safetensors is no whole CLIP model: it lacks \d+ weights, as vision"):
        load_extractor("clip", tmp_path)


@pytest.mark.parametrize("damage", ["empty", "an array"])
def test_damaged_c3d_is_refused(c3d_weights: Path, damage: str) -> None:
    with (c3d_weights / "mean2.npz").open("wb") as file:
        if damage == "an array":
            np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=r"mean2.npz is no .npz file that can be read"):
        load_extractor("c3d", c3d_weights)


def test_c3d_is_named_by_both_of_its_files(c3d_weights: Path) -> None:
    before = load_extractor("c3d", c3d_weights).info
    np.savez(c3d_weights / "mean2.npz", mean=np.zeros((3, 16, 128, 171), np.float32))
    after = load_extractor("c3d", c3d_weights).info
    assert before.sha256 != after.sha256
    assert before.weights == "conv3d_deepnetA_ucf.npz, mean2.npz"


def test_unknown_features_are_refused() -> None:
    with pytest.raises(InputError, match="features must be one of lite0-frames, .*, got 'vgg'"):
        load_extractor("vgg")


# The numbers of others, where somebody has put the weights.
REAL_WEIGHTS = Path(os.environ.get("LATENT_SHIFT_METRIC_WEIGHTS", "models/metrics"))
needs_i3d = pytest.mark.skipif(
    not (REAL_WEIGHTS / "i3d_torchscript.pt").is_file(), reason=f"needs i3d_torchscript.pt in {REAL_WEIGHTS}"
)


@needs_i3d
@pytest.mark.slow
def test_fvd_of_black_and_white_is_that_of_common_metrics() -> None:
    """8 clips of 30 frames, all 0 against all 1: 151.256 (README of JunyaoHu/common_metrics; TensorFlow: 151.392)."""
    i3d = load_extractor("i3d", REAL_WEIGHTS)
    distances = [
        rows[:, 0]
        for rows in (extract_features(i3d, np.full((8, 30, 64, 64, 3), value, np.uint8)) for value in (0, 255))
    ]
    # Equal clips have no covariance; the distance is that of the means.
    assert np.square(distances[0].mean(axis=0) - distances[1].mean(axis=0)).sum() == pytest.approx(151.256, rel=1e-3)


@needs_i3d
@pytest.mark.slow
def test_fvd_of_noise_is_that_of_the_original() -> None:
    """128 clips of noise, twice: 10.138085 by TensorFlow and by this file (README of universome/fvd-comparison).

    Their range is [0, 1] at 224 and the network resizes nothing, so the network is called as they call it.
    """
    network: Any = load_extractor("i3d", REAL_WEIGHTS)._network
    sides = []
    for seed in (1, 2):
        noise = np.random.RandomState(seed).rand(128, 3, 16, 224, 224).astype(np.float32)
        moments = Moments(400)
        with torch.no_grad():
            parts = torch.from_numpy(noise).split(8)
            rows = [network(part, rescale=False, resize=False, return_features=True) for part in parts]
        moments.update(torch.cat(rows))
        sides.append(moments)
    value = frechet_distance(sides[0].mean, sides[0].covariance, sides[1].mean, sides[1].covariance)
    assert value == pytest.approx(10.138085, rel=1e-3)


def test_names_are_all_there() -> None:
    assert list(EXTRACTORS) == [
        line.split("`")[1] for line in (extractors.__doc__ or "").splitlines() if line[:1] == "`"
    ]
