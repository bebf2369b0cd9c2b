"""What a step of the autoencoder stage learns from, its loss, and what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from latent_shift import PatchAutoencoderKL
from latent_shift.core.errors import DataError, InputError
from latent_shift.data.records import CaptionedVideoFolder, write_records
from latent_shift.media import read_video
from latent_shift.training import train
from latent_shift.training.autoencoding import AutoencoderStage, _unseen
from latent_shift.training.sources import TrainingData

from .conftest import MakeRecipe


def make(recipe: Any) -> AutoencoderStage:
    return AutoencoderStage(recipe, Accelerator(cpu=True), TrainingData(recipe))


def all_frames(squares: Path) -> np.ndarray:
    folder = CaptionedVideoFolder(squares)
    return np.concatenate([folder.read(record.index).frames for record in folder])


def unseen_labels(squares: Path) -> set[str]:
    labels = [record.metadata["label"] for record in CaptionedVideoFolder(squares)]
    return {label for label, out in zip(labels, _unseen(labels), strict=True) if out}


def test_a_share_of_the_groups_but_at_least_one_is_kept_out() -> None:
    few = ["red", "red", "blue", "green"]
    out = _unseen(few)
    assert {group for group, kept in zip(few, out, strict=True) if kept} != set()
    assert len({group for group, kept in zip(few, out, strict=True) if kept}) == 1
    many = [f"label {number}" for number in range(3000) for _ in range(2)]
    assert sum(_unseen(many)) / len(many) == pytest.approx(0.02, abs=0.01)
    assert _unseen(many)[::2] == _unseen(many)[1::2]


def test_a_batch_is_crops_of_seen_frames_and_a_function_of_seed_and_step(
    make_recipe: MakeRecipe, squares: Path
) -> None:
    first, second = make(make_recipe("autoencoder")), make(make_recipe("autoencoder"))
    other = make(make_recipe("autoencoder", seed=1))
    seen = [
        frame[top : top + 8, left : left + 8]
        for record in CaptionedVideoFolder(squares)
        if record.metadata["label"] not in unseen_labels(squares)
        for frame in read_video(record.path).frames
        for top in range(9)
        for left in range(9)
    ]
    crops = {crop.tobytes() for crop in seen} | {crop[:, ::-1].tobytes() for crop in seen}
    assert torch.equal(second.batches.draw(5).pictures, first.batches.draw(5).pictures)
    different = 0
    for step in range(6):
        batch = first.batches.draw(step).pictures
        assert batch.shape == (4, 3, 8, 8)
        assert torch.equal(batch, second.batches.draw(step).pictures)
        different += not torch.equal(batch, other.batches.draw(step).pictures)
        pixels = ((batch + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        assert all(np.ascontiguousarray(crop).tobytes() in crops for crop in pixels)
    assert different == 6


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_weight": 0.0, "kl_weight": 0.0},
        {"gradient_weight": 3.0, "kl_weight": 0.0},
        {"gradient_weight": 0.0, "kl_weight": 0.1},
        {"gradient_weight": 0.0, "kl_weight": 0.0, "crop": 16},
    ],
)
def test_the_loss_is_l1_and_gradients_and_kl(make_recipe: MakeRecipe, options: dict[str, float]) -> None:
    stage = make(make_recipe("autoencoder", autoencoder_loss=options))
    batch = stage.batches.draw(2)
    pictures = batch.pictures
    losses = []
    with torch.no_grad():
        loss = stage.loss(batch).mean()
        assert torch.equal(loss, stage.loss(batch).mean())
        posterior = stage.network.encode(pictures).latent_dist
        mean, std = posterior.mean, posterior.std
        kl = 0.5 * (mean**2 + std**2 - 1 - torch.log(std**2)).sum(dim=(1, 2, 3)).mean()
        # The noise is the stage's own; at the start the variance is so small that other noise gives nearly the same.
        for seed in range(40):
            torch.manual_seed(seed)
            error = stage.network.decode(mean + std * torch.randn(mean.shape)).sample - pictures
            across = (error[..., 1:] - error[..., :-1]).abs().mean()
            down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
            losses.append(error.abs().mean() + options["gradient_weight"] * (across + down))
    expected = torch.stack(losses).mean() + options["kl_weight"] * kl
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    if options["kl_weight"]:
        assert options["kl_weight"] * kl > 0.2 * expected


def test_the_loss_of_a_batch_can_be_learned(make_recipe: MakeRecipe) -> None:
    stage = make(make_recipe("autoencoder"))
    optimizer = torch.optim.AdamW(stage.network.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = stage.loss(stage.batches.draw(0)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_labels_are_balanced_where_the_recipe_says_so(make_recipe: MakeRecipe) -> None:
    by_label, by_record = (make(make_recipe("autoencoder", data={"balance_by": key})) for key in ("label", ""))
    assert len(by_label.batches._order) == 3
    assert len(by_record.batches._order) == 11


def test_reconstructions_that_are_not_finite_are_told_of(
    make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    """The loss of the one step is finite, and what its enormous rate leaves is not."""
    train(make_recipe("autoencoder", steps=1, optimizer={"learning_rate": 1e30, "warmup_steps": 0, "ema_decay": 0.0}))
    assert "the preview of step 1 is not of finite numbers: 'reconstructions'" in caplog.messages


def test_the_preview_shows_unseen_frames_above_their_reconstructions(
    make_recipe: MakeRecipe, squares: Path, tmp_path: Path
) -> None:
    stage = make(make_recipe("autoencoder"))
    with torch.no_grad():
        stage.preview(tmp_path)
    (label,) = unseen_labels(squares)
    unseen = [
        read_video(record.path).frames[0]
        for record in CaptionedVideoFolder(squares)
        if record.metadata["label"] == label
    ]
    sheet = read_video(tmp_path / "reconstructions.png").frames[0]
    facts = json.loads((tmp_path / "psnr.json").read_text())
    assert facts["unseen_frames"] == len(unseen) == 3
    psnr = []
    for index, frame in enumerate(unseen):
        tile = sheet[:, 18 * index : 18 * index + 16]
        assert (tile[:16] == frame).all()
        error = (tile[16:32].astype(float) - frame) ** 2
        psnr.append(10 * np.log10(255**2 / error.mean()))
    assert facts["psnr_db"] == pytest.approx(np.mean(psnr), abs=0.01)


def test_the_model_knows_mean_and_deviation_of_its_latents(
    make_recipe: MakeRecipe, squares: Path, tmp_path: Path
) -> None:
    stage = make(make_recipe("autoencoder"))
    with torch.no_grad():
        stage.export(tmp_path / "model")
        network = PatchAutoencoderKL.from_pretrained(tmp_path / "model")
        pixels = torch.from_numpy(all_frames(squares)).permute(0, 3, 1, 2).float() / 127.5 - 1
        folder = CaptionedVideoFolder(squares)
        out = unseen_labels(squares)
        seen = [record.metadata["label"] not in out for record in folder for _ in range(record.metadata["num_frames"])]
        latents = network.encode(pixels[torch.tensor(seen)]).latent_dist.mean
    torch.testing.assert_close(torch.tensor(network.config.latents_mean), latents.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(torch.tensor(network.config.latents_std), latents.std(dim=(0, 2, 3)))


def test_one_label_is_too_few(make_recipe: MakeRecipe, squares: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "clips").mkdir(parents=True)
    (tmp_path / "data" / "clips" / "red0.webp").write_bytes((squares / "clips" / "red0.webp").read_bytes())
    write_records(tmp_path / "data", [{"file_name": "clips/red0.webp", "caption": "red"}])
    with pytest.raises(InputError, match="data.source must have at least two different labels or records"):
        make(make_recipe("autoencoder", data={"source": str(tmp_path / "data"), "balance_by": ""}))


def test_bad_videos_are_borne_whether_they_are_seen_or_kept_out(
    make_recipe: MakeRecipe, squares: Path, tmp_path: Path
) -> None:
    """Each record is a group of its own, and one of twelve is kept out: where that is bad, another one."""
    shutil.copytree(squares, tmp_path / "data")
    records = list(CaptionedVideoFolder(tmp_path / "data"))
    (kept_out,) = np.flatnonzero(_unseen([str(record.index) for record in records]))
    records[kept_out].path.write_bytes(b"RIFF, but no picture")
    data = {"source": str(tmp_path / "data"), "cache": str(tmp_path / "cache"), "balance_by": ""}
    with pytest.raises(DataError, match=r"^1 of 12 videos are bad, more than max_bad_share = 0.05: "):
        make(make_recipe("autoencoder", data={**data, "max_bad_share": 0.05}))
    model = train(make_recipe("autoencoder", steps=1, data={**data, "max_bad_share": 0.1}))
    facts = json.loads((model / "psnr.json").read_text())
    assert facts["unseen_frames"] == 1
    for record in records:
        record.path.write_bytes(b"RIFF, but no picture")
    with pytest.raises(InputError, match="have at least two different labels or records that can be read, got"):
        make(make_recipe("autoencoder", data={**data, "max_bad_share": 1.0}))
    assert np.isfinite(facts["psnr_db"])


def test_a_decoder_that_goes_on_learning_keeps_the_latents(road: Path, make_recipe: MakeRecipe) -> None:
    start = road / "autoencoder/model"
    recipe = make_recipe("autoencoder", model={"init": str(start)}, autoencoder_loss={"latent_noise": 0.5, "crop": 8})
    before, after = PatchAutoencoderKL.from_pretrained(start), PatchAutoencoderKL.from_pretrained(train(recipe))
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(after.encode(pictures).latent_dist.mean, before.encode(pictures).latent_dist.mean)
    assert after.config.latents_mean == before.config.latents_mean
    assert after.config.latents_std == before.config.latents_std
    changed = {
        name.split(".")[0]
        for name, tensor in after.state_dict().items()
        if not torch.equal(tensor, before.state_dict()[name])
    }
    assert changed == {"decoder", "linear_decoder"}


def test_noise_of_the_latents_is_in_their_own_units(road: Path, make_recipe: MakeRecipe) -> None:
    start = {"init": str(road / "autoencoder/model")}
    stage = make(make_recipe("autoencoder", model=start, autoencoder_loss={"latent_noise": 0.5, "crop": 8}))
    batches = stage.batches
    batches._std = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(-1, 1, 1)
    noise = torch.cat([batches.draw(step).latent_noise for step in range(1000)])
    assert torch.equal(noise[12:16], batches.draw(3).latent_noise)
    assert torch.equal(noise[13:15], batches.draw(3, range(1, 3)).latent_noise)
    assert not torch.equal(noise[12:16], noise[16:20])
    # The root mean square of a deviation that is uniform in [0, 0.5] is 0.5 / sqrt(3).
    expected = [channel * 0.5 / 3**0.5 for channel in (1, 2, 3, 4)]
    assert noise.square().mean(dim=(0, 2, 3)).sqrt().tolist() == pytest.approx(expected, rel=0.05)
    per_picture = (noise / torch.tensor([1.0, 2, 3, 4]).view(-1, 1, 1)).square().mean(dim=(1, 2, 3)).sqrt()
    assert per_picture.max() < 1.6
    assert per_picture.min() < 0.02


def test_the_loss_sees_that_noise(road: Path, make_recipe: MakeRecipe) -> None:
    start = {"init": str(road / "autoencoder/model")}
    stages = [
        make(make_recipe("autoencoder", model=start, autoencoder_loss={"latent_noise": most, "crop": 8}))
        for most in (0.0, 3.0)
    ]
    plain, noisy = (stage.loss(stage.batches.draw(0)).mean() for stage in stages)
    assert noisy > plain


def test_a_place_without_an_autoencoder_is_named(make_recipe: MakeRecipe) -> None:
    with pytest.raises(InputError, match=r"model.init must be the folder of a trained autoencoder"):
        make(make_recipe("autoencoder", model={"init": "nowhere"}))
