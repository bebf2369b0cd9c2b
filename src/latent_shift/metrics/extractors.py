"""Networks that turn clips into features, each with its name, its weights and how it wants its frames.

======================  =========  ====================================================================================
name                    row        network
======================  =========  ====================================================================================
`lite0-frames`          a frame    EfficientNet-Lite0, ImageNet; comes with this package; 1280 numbers
`lite0-clips`           a clip     the mean of the same over the frames, and the mean change from frame to frame; 2560
`inception`             a frame    the Inception of FID, antialiased resize ("clean"); 2048
`inception-legacy`      a frame    the same, with its own resize, that of the first FID: not antialiased; 2048
`clip`                  a frame    CLIP ViT-B/32, projected; 512
`i3d`                   a clip     the I3D of FVD, Kinetics-400, before the softmax; 400
`c3d`                   a clip     C3D finetuned on UCF-101: probabilities of its 101 classes
`motion`                a clip     no network: frame difference, flicker, whether the loop closes
======================  =========  ====================================================================================

Nothing is fetched: a file that is missing is an error that says where to get it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.files import sha256_file

from .features import FEATURE_DIM, frame_features, load_efficientnet_lite0, weights_path
from .motion import flicker, frame_difference, loop_closes
from .weight_files import I3D, INCEPTION, WeightFile

_CHUNK = 32
"""Frames of an image network at once."""


@dataclass(frozen=True)
class FeatureInfo:
    """What a score has to say about its features.

    Attributes:
        name: of `EXTRACTORS`.
        unit: what a row stands for.
        dimension: of a row.
        resize: what the network does to frames first.
        weights: the file's name.
        revision: of the weights, at their source.
        sha256: of the file.
        min_frames: fewer frames of a clip are refused.
        max_frames: more are refused.
    """

    name: str
    unit: Literal["frame", "clip"]
    dimension: int
    resize: str
    weights: str
    revision: str
    sha256: str
    min_frames: int = 1
    max_frames: int | None = None

    def check_frames(self, count: int) -> None:
        """Raises `InputError` where the network cannot take clips of so many frames."""
        if count < self.min_frames or (self.max_frames is not None and count > self.max_frames):
            wanted = f"be {self.min_frames}" if self.max_frames == self.min_frames else f"be at least {self.min_frames}"
            raise InputError("frames", count, f"{wanted} for the features {self.name}")


@runtime_checkable
class FeatureExtractor(Protocol):
    """Turns clips into rows of features."""

    @property
    def info(self) -> FeatureInfo:
        """What it is."""

    def __call__(self, clips: UInt8[Tensor, "clips frames height width 3"]) -> Float32[Tensor, "clips rows dimension"]:
        """Features, on the CPU; as many rows a clip as it has frames, or one.

        Raises:
            InputError: the network cannot take so many frames.
        """


class Lite0Frames:
    """EfficientNet-Lite0 of each frame. Its distances are not FID or KID as published."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Args: weights: not needed. device: where it runs."""
        del weights
        self.info = FeatureInfo(
            "lite0-frames", "frame", FEATURE_DIM, "bilinear, antialiased, 224 x 224", *_lite0_file()
        )
        self._network = load_efficientnet_lite0(device)

    def __call__(
        self, clips: UInt8[Tensor, "clips frames height width 3"]
    ) -> Float32[Tensor, "clips frames dimension"]:
        """See `FeatureExtractor`."""
        rows = frame_features(self._network, clips.flatten(0, 1).cpu().numpy(), _CHUNK)
        return torch.from_numpy(rows).reshape(*clips.shape[:2], -1)


class Lite0Clips:
    """EfficientNet-Lite0: what the frames show and how much that changes. Its distances are not FVD."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Args: weights: not needed. device: where it runs."""
        self._frames = Lite0Frames(weights, device)
        resize = self._frames.info.resize
        self.info = FeatureInfo("lite0-clips", "clip", 2 * FEATURE_DIM, resize, *_lite0_file(), min_frames=2)

    def __call__(self, clips: UInt8[Tensor, "clips frames height width 3"]) -> Float32[Tensor, "clips 1 dimension"]:
        """See `FeatureExtractor`. The first half is mean_t f_t, the second mean_t |f_(t+1) - f_t|."""
        self.info.check_frames(clips.shape[1])
        rows = self._frames(clips)
        return torch.cat([rows.mean(dim=1), rows.diff(dim=1).abs().mean(dim=1)], dim=1).unsqueeze(1)


class Inception:
    """The Inception of FID, from NVIDIA's TorchScript file of the original TensorFlow graph."""

    def __init__(self, weights: Path, device: torch.device, *, legacy: bool = False) -> None:
        """Args: weights: the folder of the file. device: where it runs. legacy: the network's own resize."""
        self._network, file = _load_script(INCEPTION, weights, device)
        self._legacy, self._device = legacy, device
        name = "inception-legacy" if legacy else "inception"
        resize = "bilinear, not antialiased, 299 x 299" if legacy else "bicubic, antialiased, 299 x 299"
        self.info = FeatureInfo(name, "frame", 2048, resize, *file)

    @torch.no_grad()
    def __call__(
        self, clips: UInt8[Tensor, "clips frames height width 3"]
    ) -> Float32[Tensor, "clips frames dimension"]:
        """See `FeatureExtractor`."""
        rows = [self._features(part.to(self._device)).float().cpu() for part in torch.split(pictures(clips), _CHUNK)]
        return _checked(torch.cat(rows).flatten(1), self.info).reshape(*clips.shape[:2], -1)

    def _features(self, frames: Tensor) -> Tensor:
        if self._legacy:
            features: Tensor = self._network(frames, return_features=True)
        else:
            features = self._network.layers((clean_resize(frames, 299) - 128) / 128)
        return features


class I3D400:
    """The I3D of FVD: StyleGAN-V's TorchScript file; resizes frames itself."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Args: weights: the folder of the file. device: where it runs."""
        self._network, file = _load_script(I3D, weights, device)
        self._device = device
        self.info = FeatureInfo("i3d", "clip", 400, "bilinear, 224 x 224, by the network", *file, min_frames=10)

    @torch.no_grad()
    def __call__(self, clips: UInt8[Tensor, "clips frames height width 3"]) -> Float32[Tensor, "clips 1 dimension"]:
        """See `FeatureExtractor`."""
        self.info.check_frames(clips.shape[1])
        videos = clips.permute(0, 4, 1, 2, 3).to(self._device).float()
        rows = self._network(videos, rescale=True, resize=True, return_features=True)
        return _checked(rows.float().cpu().flatten(1), self.info).unsqueeze(1)


class MotionNumbers:
    """Three numbers a clip: `frame_difference`, `flicker`, and 1 or 0 for `loop_closes`."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Args: weights: not needed. device: not needed."""
        del weights, device
        self.info = FeatureInfo("motion", "clip", 3, "none", "no network", "with this package", "", min_frames=2)

    def __call__(self, clips: UInt8[Tensor, "clips frames height width 3"]) -> Float32[Tensor, "clips 1 3"]:
        """See `FeatureExtractor`."""
        self.info.check_frames(clips.shape[1])
        rows = [[frame_difference(clip), flicker(clip), float(loop_closes(clip))] for clip in clips.numpy()]
        return torch.tensor(rows).unsqueeze(1)


def load_extractor(name: str, weights: str | Path = "models/metrics", device: torch.device | str = "cpu") -> Any:
    """A `FeatureExtractor` by name.

    Args:
        name: one of `EXTRACTORS`.
        weights: the folder where weight files were put; those of EfficientNet-Lite0 come with this package.
        device: where it runs.

    Raises:
        InputError: the name is unknown, or a weight file is missing: says what to fetch and where to put it.
        DataError: a weight file is damaged or another than it should be.
    """
    if name not in EXTRACTORS:
        raise InputError("features", name, f"be one of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](Path(weights), torch.device(device))


def pictures(clips: UInt8[Tensor, "clips frames height width 3"]) -> Float32[Tensor, "pictures 3 height width"]:
    """All frames, one after the other, in [0, 255]."""
    return clips.flatten(0, 1).permute(0, 3, 1, 2).float()


def clean_resize(frames: Float32[Tensor, "n 3 height width"], size: int) -> Float32[Tensor, "n 3 size size"]:
    """Bicubic and antialiased, as Pillow resizes floats: the resize of clean-fid (arXiv:2104.11222), in [0, 255]."""
    resized = functional.interpolate(frames, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 255)


def _lite0_file() -> tuple[str, str, str]:
    path = weights_path()
    return path.name, "with this package", sha256_file(path)


def _load_script(file: WeightFile, folder: Path, device: torch.device) -> tuple[Any, tuple[str, str, str]]:
    """The network of a TorchScript file (which is no pickle), and the facts about the file."""
    path, sha256 = file.find(folder)
    try:
        network: Any = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise DataError(f"{path} is no TorchScript file that can be read") from error
    return network.eval(), (file.file_name, file.revision, sha256)


def _checked(rows: Tensor, info: FeatureInfo) -> Tensor:
    if rows.shape[1] != info.dimension:
        raise DataError(f"{info.weights} gives {rows.shape[1]} numbers a row, expected {info.dimension}")
    return rows


def _inception_legacy(weights: Path, device: torch.device) -> FeatureExtractor:
    return Inception(weights, device, legacy=True)


def _clip(weights: Path, device: torch.device) -> FeatureExtractor:
    from .clip_model import ClipViTB32

    return ClipViTB32(weights, device)


def _c3d(weights: Path, device: torch.device) -> FeatureExtractor:
    from .c3d import C3DProbabilities

    return C3DProbabilities(weights, device)


EXTRACTORS: dict[str, Callable[[Path, torch.device], FeatureExtractor]] = {
    "lite0-frames": Lite0Frames,
    "lite0-clips": Lite0Clips,
    "inception": Inception,
    "inception-legacy": _inception_legacy,
    "clip": _clip,
    "i3d": I3D400,
    "c3d": _c3d,
    "motion": MotionNumbers,
}
