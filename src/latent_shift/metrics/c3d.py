"""C3D finetuned on UCF-101: the classifier behind the Inception Score of videos."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional

from latent_shift.core.errors import DataError

from .extractors import FeatureInfo, pictures
from .weight_files import C3D, C3D_MEAN

FRAMES, SIZE, CLASSES = 16, 112, 101

_STAGES = (("1a",), ("2a",), ("3a", "3b"), ("4a", "4b"), ("5a", "5b"))
_WIDTHS = (64, 128, 256, 512, 512)
_HIDDEN = 4096
_CROP = slice(8, 8 + SIZE)


class C3DNetwork(nn.Module):
    """C3D (arXiv:1412.0767, Fig. 3) up to its class probabilities, without dropout.

    Poolings round sizes up, as TGANv2's do (arXiv:1811.09245): 7 becomes 4.
    """

    def __init__(self, hidden: int = _HIDDEN, widths: tuple[int, ...] = _WIDTHS) -> None:
        """Args: hidden: width of the two hidden layers. widths: of the stages; smaller ones for tests."""
        super().__init__()
        channels = 3
        for names, width in zip(_STAGES, widths, strict=True):
            for name in names:
                self.add_module(f"conv{name}", nn.Conv3d(channels, width, 3, padding=1))
                channels = width
        self.fc6 = nn.Linear(channels * 4 * 4, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, CLASSES)

    def forward(self, x: Float32[Tensor, "clips 3 16 112 112"]) -> Float32[Tensor, "clips 101"]:
        """Probabilities of clips in BGR, from which the mean clip was taken."""
        for index, names in enumerate(_STAGES):
            for name in names:
                x = functional.relu(self.get_submodule(f"conv{name}")(x))
            pool = (1, 2, 2) if index == 0 else (2, 2, 2)
            x = functional.max_pool3d(x, pool, ceil_mode=True)
        x = functional.relu(self.fc6(x.flatten(1)))
        x = functional.relu(self.fc7(x))
        return self.fc8(x).softmax(dim=1)  # type: ignore[no-any-return]


class C3DProbabilities:
    """TGANv2's weights and preprocessing (tgan2/models/c3d/c3d_ucf101.py of pfnet-research/tgan2): the usual IS."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Args: weights: the folder of the two files. device: where it runs."""
        (path, sha256), (mean_path, mean_sha256) = C3D.find(weights), C3D_MEAN.find(weights)
        self._device = device
        with torch.device("meta"):
            self._network = C3DNetwork()
        arrays = _read(path)
        names = {name: name.replace(".weight", "/W").replace(".bias", "/b") for name in self._network.state_dict()}
        state = {name: torch.from_numpy(_array(path, arrays, key)) for name, key in names.items()}
        try:
            self._network.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise DataError(f"{path} does not hold C3D with {CLASSES} classes") from error
        self._network.eval().requires_grad_(False).to(device)
        mean = _array(mean_path, _read(mean_path), "mean")
        if mean.size != 3 * FRAMES * 128 * 171:
            raise DataError(f"{mean_path} holds a mean of the shape {mean.shape}, expected (3, {FRAMES}, 128, 171)")
        self._mean = torch.from_numpy(mean.reshape(3, FRAMES, 128, 171)[:, :, _CROP, _CROP].copy()).to(device)
        resize = f"bilinear, corners aligned, {SIZE} x {SIZE}"
        self.info = FeatureInfo(
            "c3d",
            "clip",
            CLASSES,
            resize,
            f"{path.name}, {mean_path.name}",
            C3D.revision,
            f"{sha256}, {mean_sha256}",
            FRAMES,
            FRAMES,
        )

    @torch.no_grad()
    def __call__(self, clips: UInt8[Tensor, "clips frames height width 3"]) -> Float32[Tensor, "clips 1 101"]:
        """See `FeatureExtractor`."""
        self.info.check_frames(clips.shape[1])
        frames = functional.interpolate(
            pictures(clips).to(self._device), (SIZE, SIZE), mode="bilinear", align_corners=True
        )
        videos = (
            frames.reshape(*clips.shape[:2], 3, SIZE, SIZE).transpose(1, 2).flip(1)
        )  # (clips, BGR, frames, height, width)
        rows: Tensor = self._network(videos - self._mean)
        return rows.cpu().unsqueeze(1)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no .npz file that can be read") from error


def _array(path: Path, arrays: dict[str, np.ndarray], key: str) -> np.ndarray:
    if key not in arrays:
        raise DataError(f"{path} has no array {key!r}")
    return arrays[key].astype(np.float32)
