"""Stage 1: the autoencoder learns pictures (Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from latent_shift.core.errors import InputError
from latent_shift.core.files import atomic_path, write_json
from latent_shift.core.seeding import derive_seed, hash_fraction
from latent_shift.data.cache import ClipCache, open_or_build_cache
from latent_shift.data.order import SampleOrder
from latent_shift.data.records import CaptionedVideo
from latent_shift.media import contact_sheet, write_video
from latent_shift.models import PatchAutoencoderKL
from latent_shift.pipelines.components import DeviceMap

from .config import Recipe
from .networks import load_autoencoder, make_network
from .shares import Group
from .sources import TrainingData, balance_groups, check_balance, clip_fingerprint, read_clip_once

_UNSEEN_SHARE = 0.02
"""Share of the groups (of labels, say) that this stage keeps out to measure on."""


@dataclass(frozen=True)
class Crops:
    """Rows of a batch."""

    pictures: Float[Tensor, "rows 3 crop crop"]
    """RGB in [-1, 1]."""
    posterior_noise: Float[Tensor, "rows channels height width"]
    """What draws from the posterior: noise of unit variance."""
    latent_noise: Float[Tensor, "rows channels height width"]
    """What is added to the latents before they are decoded; zeros where the recipe asks for none."""


class CropBatches:
    """Random crops of single frames, and their noise: row `r` of step `s` is a function of (seed, s, r)."""

    def __init__(
        self,
        recipe: Recipe,
        records: Sequence[CaptionedVideo],
        cache: ClipCache,
        seen: Sequence[int],
        bad: Mapping[str, str],
        config: Mapping[str, Any],
    ) -> None:
        """Takes what the crops are of.

        Args:
            recipe: the run's.
            records: what is in the cache.
            cache: their frames.
            seen: numbers of the records that crops are of; each has frames.
            bad: files of such records that could not be read, and why.
            config: the autoencoder's.
        """
        self._recipe, self._records, self._cache, self._usable = recipe, records, cache, seen
        groups = balance_groups((records[index] for index in self._usable), recipe.data.balance_by)
        self._order = SampleOrder(groups, recipe.seed)
        self._channels = int(config["latent_channels"])
        self._std = torch.tensor(config["latents_std"] or [1.0]).view(-1, 1, 1)
        self.quarantined = bad

    def groups(self, step: int) -> list[Group]:
        """One of the recipe's size, in every step."""
        del step
        return [Group(range(self._recipe.batch_size))]

    def names(self, step: int, rows: range) -> list[str]:
        """Files that the crops are of."""
        return [str(self._records[self._record(self._position(step, row))].path) for row in rows]

    def draw(self, step: int, rows: range | None = None) -> Crops:
        """Rows of the batch of a step; all of them where none are named."""
        options = self._recipe.autoencoder_loss
        crops, noises = [], []
        for row in rows or range(self._recipe.batch_size):
            seed = derive_seed(self._recipe.seed, "crop", self._position(step, row))
            crops.append(self._crop(self._position(step, row), np.random.default_rng(seed)))
            shape = (self._channels, options.crop // 8, options.crop // 8)
            generator = torch.Generator().manual_seed(seed)
            posterior, latent = torch.randn(2, *shape, generator=generator)
            scale = options.latent_noise * torch.rand((), generator=generator)
            noises.append((posterior, scale * self._std * latent))
        posterior_noise, latent_noise = (torch.stack(parts) for parts in zip(*noises, strict=True))
        return Crops(_to_pictures(np.stack(crops)), posterior_noise, latent_noise)

    def _record(self, position: int) -> int:
        return self._usable[self._order.record(position)]

    def _position(self, step: int, row: int) -> int:
        return step * self._recipe.batch_size + row

    def _crop(self, position: int, rng: np.random.Generator) -> np.ndarray:
        crop = self._recipe.autoencoder_loss.crop
        clip: np.ndarray = self._cache.clip(self._record(position))
        frame = clip[rng.integers(len(clip))]
        top, left = rng.integers(frame.shape[0] - crop + 1), rng.integers(frame.shape[1] - crop + 1)
        part: np.ndarray = frame[top : top + crop, left : left + crop]
        return part[:, ::-1] if rng.random() < 0.5 else part


class AutoencoderStage:
    """Reconstruction of random crops of single frames: L1, L1 of image gradients, KL."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator, data: TrainingData) -> None:
        """Reads the frames, makes the network and starts its linear code from the frames' principal components."""
        records = data.records
        check_balance(records, recipe.data.balance_by)
        self.data_digest = data.digest
        groups = balance_groups(records, recipe.data.balance_by)
        two = "have at least two different labels or records"
        meant_to_see = np.logical_not(_unseen(groups))
        if not meant_to_see.any():
            raise InputError("data.source", recipe.data.source, two)
        self._recipe, self._accelerator = recipe, accelerator
        self.network = make_autoencoder(recipe).to(accelerator.device)
        cache = _pixel_cache(recipe, records)
        lengths = np.diff(cache.frame_offsets)
        readable = np.flatnonzero(lengths)
        kept_out = np.array(_unseen([groups[index] for index in readable]))
        if kept_out.all():
            raise InputError("data.source", recipe.data.source, f"{two} that can be read")
        seen, unseen = readable[~kept_out], readable[kept_out]
        self._frames = cache.frames
        self._seen_frames = np.flatnonzero(np.repeat(np.isin(np.arange(len(records)), seen), lengths))
        self._unseen = torch.from_numpy(np.array(cache.frames[cache.frame_offsets[unseen]]))
        names = {str(record.path) for record, meant in zip(records, meant_to_see, strict=True) if meant}
        bad = {file: reason for file, reason in cache.bad.items() if file in names}  # so checkpoints count them
        self.batches = CropBatches(recipe, records, cache, seen.tolist(), bad, self.network.config)
        if recipe.model.init:
            return
        rng = np.random.default_rng(derive_seed(recipe.seed, "principal components"))
        picks = rng.choice(len(self._seen_frames), size=min(512, len(self._seen_frames)), replace=False)
        frames = self._frames[self._seen_frames[np.sort(picks)]]
        self.network.initialize_linear(_to_pictures(frames).to(accelerator.device))

    def loss(self, batch: Crops) -> Tensor:
        """L1 + image gradients + KL of each crop."""
        options, device = self._recipe.autoencoder_loss, self._accelerator.device
        pictures = batch.pictures.to(device)
        posterior = self.network.encode(pictures).latent_dist
        latents = posterior.mean + posterior.std * batch.posterior_noise.to(device) + batch.latent_noise.to(device)
        error: Tensor = self.network.decode(latents).sample.float() - pictures
        gradients = sum(error.diff(dim=dim).abs().mean(dim=(1, 2, 3)) for dim in (-1, -2))
        kl: Tensor = posterior.kl().float()
        return error.abs().mean(dim=(1, 2, 3)) + options.gradient_weight * gradients + options.kl_weight * kl

    def preview(self, folder: Path) -> list[str]:
        """Unseen frames above their reconstructions, and the PSNR over all unseen frames.

        Returns:
            "reconstructions" where some are not of finite numbers.
        """
        if not self._accelerator.is_main_process:
            return []
        originals, rebuilt, psnr, finite = self._reconstruct()
        rows = [np.concatenate([a, b]) for a, b in zip(originals[:24], rebuilt[:24], strict=True)]
        write_video(folder / "reconstructions.png", contact_sheet(np.stack(rows), columns=8)[None], fps=1.0)
        write_json(folder / "psnr.json", {"unseen_frames": len(originals), "psnr_db": round(psnr, 2)})
        return [] if finite else ["reconstructions"]

    def export(self, folder: Path) -> None:
        """The network, with the mean and standard deviation of its latents over the training frames."""
        if not self._accelerator.is_main_process:
            return
        if not self._recipe.model.init:  # a decoder that went on learning leaves the latents, and what normalises them
            picks = self._seen_frames[:: max(1, len(self._seen_frames) // 4096)]
            parts = np.array_split(picks, max(1, len(picks) // 64))
            latents = torch.cat([self._encode(self._frames[part]) for part in parts])
            mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
            self.network.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
        with atomic_path(folder) as temporary:
            self.network.save_pretrained(temporary)
            write_json(temporary / "psnr.json", {"unseen_frames": len(self._unseen), "psnr_db": self._reconstruct()[2]})

    def _encode(self, frames: np.ndarray) -> Tensor:
        mean: Tensor = self.network.encode(_to_pictures(frames).to(self._accelerator.device)).latent_dist.mean
        return mean.float().cpu()

    def _reconstruct(self) -> tuple[np.ndarray, np.ndarray, float, bool]:
        """The unseen frames, what the network makes of them, their mean PSNR in dB, and whether all is finite."""
        originals = self._unseen.numpy()
        rebuilt, finite = [], True
        for part in np.array_split(originals, max(1, len(originals) // 32)):
            pictures = self.network.decode(self._encode(part).to(self._accelerator.device)).sample
            rebuilt.append(_to_frames(pictures))
            finite &= bool(pictures.isfinite().all())
        error = originals.astype(np.float64) - np.concatenate(rebuilt)
        per_frame = 10 * np.log10(255**2 / np.maximum(np.square(error).mean(axis=(1, 2, 3)), 1e-3))
        return originals, np.concatenate(rebuilt), float(per_frame.mean()), finite


def make_autoencoder(recipe: Recipe, device_map: DeviceMap = None) -> PatchAutoencoderKL:
    """The network at the start of a run: a new one, or that of `model.init`, whose encoder stays as it is.

    Args:
        recipe: of the autoencoder stage.
        device_map: "meta" for a network without memory.

    Raises:
        InputError: there is no `model.init`, or no network can be made with `model.arguments`.
        DataError: `model.init` is damaged.
    """
    if not recipe.model.init:
        for key in ("in_channels", "out_channels"):
            if recipe.model.arguments.get(key, 3) != 3:
                raise InputError(f"model.arguments.{key}", recipe.model.arguments[key], "be 3: pictures are RGB")
        torch.manual_seed(derive_seed(recipe.seed, "initial weights"))
        made: PatchAutoencoderKL = make_network(PatchAutoencoderKL, recipe.model.arguments, device_map=device_map)
        return made
    kinds = (PatchAutoencoderKL,)
    network: PatchAutoencoderKL = load_autoencoder(Path(recipe.model.init), "model.init", kinds, device_map)
    for part in (network.encoder, network.linear_encoder):
        part.requires_grad_(False)
    return network


def _unseen(groups: Sequence[str]) -> list[bool]:
    """Which records are kept out: those of a share of the groups, at least one, picked by hash."""
    fractions = {group: hash_fraction("unseen", group) for group in groups}
    limit = max(_UNSEEN_SHARE, min(fractions.values(), default=0.0))
    return [fractions[group] <= limit for group in groups]


def _pixel_cache(recipe: Recipe, records: Sequence[CaptionedVideo]) -> ClipCache:
    return open_or_build_cache(
        Path(recipe.data.cache),
        records,
        read_frames=lambda record: read_clip_once(record, recipe.data, recipe.seed),
        encode_frames=lambda frames: frames,
        fingerprint={"kind": "pixels", **clip_fingerprint(recipe.data, recipe.seed)},
        max_bad_share=recipe.data.max_bad_share,
    )


def _to_pictures(frames: np.ndarray) -> Tensor:
    """`(n, height, width, 3)` uint8 to `(n, 3, height, width)` float in [-1, 1]."""
    return torch.from_numpy(np.array(frames, order="C")).permute(0, 3, 1, 2).float() / 127.5 - 1


def _to_frames(pictures: Tensor) -> np.ndarray:
    """The inverse of `_to_pictures`, rounded and clamped; what is no number is black."""
    scaled = ((pictures.float() + 1) * 127.5).round().nan_to_num().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
