"""What a step of the image and the video stage learns from, and its loss against formulas written again here."""

from __future__ import annotations

import dataclasses
import gc
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latent_shift import LatentShiftPipeline
from latent_shift.core.errors import DataError, InputError
from latent_shift.core.seeding import derive_seed
from latent_shift.data.records import CaptionedVideoFolder, write_records
from latent_shift.media import contact_sheet, read_video
from latent_shift.pipelines.text import encode_text
from latent_shift.pipelines.text import logger as text_logger
from latent_shift.training import train
from latent_shift.training.batches import Batch, DenoisingBatches
from latent_shift.training.checkpoint import latest_checkpoint
from latent_shift.training.config import DiffusionConfig
from latent_shift.training.denoising import DenoisingStage, min_snr_weights, noise_schedule
from latent_shift.training.report import read_log
from latent_shift.training.trainer import run_stage

from .conftest import MakeRecipe, MakeStage, make_stage_of

STEPS = range(16)
KINDS = ("clips", "stills")
BATCH_OPTIONS: dict[str, dict[str, Any]] = {
    "image": {"image_share": 0.25, "caption_dropout": 0.3, "text_noise": 0.5},
    "video": {"circular_share": 0.5, "image_share": 0.25, "random_phase": True, "caption_dropout": 0.3}
    | {"text_noise": 0.5},
}
FIELDS = ("moments", "text", "text_noise", "posterior_noise", "noise", "timesteps")


def assert_same(left: Batch, right: Batch) -> None:
    assert left.boundary == right.boundary
    assert left.captions == right.captions
    for name in (*FIELDS, "frames"):
        one, other = getattr(left, name), getattr(right, name)
        assert (one is other is None) or torch.equal(one, other), name


def is_still(batch: Batch) -> bool:
    return batch.noise.shape[2] == 1


def count_rows(batches: DenoisingBatches, step: int) -> int:
    """Of a step that learns from one kind."""
    (group,) = batches.groups(step)
    return len(group.rows)


def means(stage: DenoisingStage, batch: Batch) -> Tensor:
    """Latents of a batch without the noise of the posterior."""
    return stage.encode(dataclasses.replace(batch, posterior_noise=torch.zeros_like(batch.noise)))


def encoded(stage: DenoisingStage, squares: Path, kind: str) -> list[Tensor]:
    """Normalised latents of all clips or stills of the data, encoded here: `(channels, frames, height, width)`."""
    vae, folder = stage.pipeline.vae, CaptionedVideoFolder(squares)
    mean, std = (torch.tensor(vae.config[name]).view(-1, 1, 1) for name in ("latents_mean", "latents_std"))
    found = []
    for record in folder:
        if record.path.parent.name == kind:
            pixels = torch.from_numpy(folder.read(record.index).frames).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.no_grad():
                found.append(((vae.encode(pixels).latent_dist.mean - mean) / std).transpose(0, 1))
    return found


def nearest(latents: Tensor, candidates: list[Tensor]) -> int | None:
    """The candidate that equals `latents` up to the cache's fp16."""
    for index, candidate in enumerate(candidates):
        if torch.allclose(latents, candidate, atol=5e-3):
            return index
    return None


def alphas(options: DiffusionConfig) -> np.ndarray:
    """Products of 1 - beta (Table 6; arXiv:2305.08891, Alg. 1 where the last one is to be zero)."""
    betas = np.linspace(options.beta_start**0.5, options.beta_end**0.5, options.num_train_timesteps) ** 2
    products = np.cumprod(1 - betas)
    if options.zero_terminal_snr:
        root = np.sqrt(products)
        products = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return products


@pytest.mark.parametrize("stage", ["image", "video"])
def test_a_batch_is_a_function_of_seed_and_step(make_stage: MakeStage, stage: str) -> None:
    options = BATCH_OPTIONS[stage]
    first, second = (make_stage(stage, diffusion=options) for _ in range(2))
    expected = [first.batches.draw(step) for step in STEPS]
    for step in (11, 3, 3, 0, 15):
        assert_same(second.batches.draw(step), expected[step])
    torch.manual_seed(123)
    np.random.default_rng(0).random()
    assert_same(first.batches.draw(3), expected[3])
    other = make_stage(stage, diffusion=options, seed=1)
    assert all(not torch.equal(other.batches.draw(step).noise, expected[step].noise) for step in STEPS)


@pytest.mark.parametrize("stage", ["image", "video"])
def test_rows_of_a_batch_do_not_depend_on_the_others(make_stage: MakeStage, stage: str) -> None:
    options = BATCH_OPTIONS[stage]
    batches = make_stage(stage, diffusion=options).batches
    for step in STEPS:
        whole, size = batches.draw(step), count_rows(batches, step)
        assert len(whole.noise) == size
        for rows in (range(0, 1), range(1, size), range(size - 1, size)):
            part = batches.draw(step, rows)
            assert part.boundary == whole.boundary
            for name in FIELDS:
                assert torch.equal(getattr(part, name), getattr(whole, name)[rows.start : rows.stop]), name


@pytest.mark.parametrize("stage", ["image", "video"])
def test_rows_have_the_names_of_their_files(make_stage: MakeStage, squares: Path, stage: str) -> None:
    made = make_stage(stage)
    folder = CaptionedVideoFolder(squares)
    paths = {kind: [str(r.path) for r in folder if r.path.parent.name == kind] for kind in KINDS}
    candidates = {
        path: latents for kind in paths for path, latents in zip(paths[kind], encoded(made, squares, kind), strict=True)
    }
    for step in STEPS:
        batch, size = made.batches.draw(step), count_rows(made.batches, step)
        names = made.batches.names(step, range(size))
        assert [made.batches.names(step, range(row, row + 1)) for row in range(size)] == [[name] for name in names]
        for latents, name in zip(means(made, batch), names, strict=True):
            clip, count = candidates[name], latents.shape[1]
            starts = range(clip.shape[1] - count + 1)
            assert nearest(latents, [clip[:, start : start + count] for start in starts]) is not None


def test_clips_and_stills_are_the_data_normalised(make_stage: MakeStage, squares: Path) -> None:
    stage = make_stage("video")
    clips, stills = encoded(stage, squares, "clips"), encoded(stage, squares, "stills")
    assert (len(clips), len(stills)) == (8, 4)
    seen: dict[bool, list[int | None]] = {True: [], False: []}
    for step in STEPS:
        batch = stage.batches.draw(step)
        for latents in means(stage, batch):
            seen[is_still(batch)].append(nearest(latents, stills if is_still(batch) else clips))
    # Four steps of three stills, twelve of four clips; each record once an epoch.
    assert sorted(map(str, seen[True])) == sorted(map(str, 3 * list(range(4))))
    assert sorted(map(str, seen[False])) == sorted(map(str, 6 * list(range(8))))


def test_the_image_stage_sees_frames_of_clips_and_stills_without_the_shift(
    make_stage: MakeStage, squares: Path
) -> None:
    stage = make_stage("image")
    frames = [clip[:, [index]] for clip in encoded(stage, squares, "clips") for index in range(4)]
    stills = encoded(stage, squares, "stills")
    picked = set()
    for step in STEPS:
        batch = stage.batches.draw(step)
        assert batch.boundary is None
        assert batch.noise.shape == (4, 4, 1, 2, 2)
        for latents in means(stage, batch):
            index = nearest(latents, stills if step % 2 else frames)
            assert index is not None
            picked.add((step % 2, index))
    assert len({index % 4 for kind, index in picked if not kind}) == 4


def test_frames_of_a_clip_can_be_fewer(make_stage: MakeStage, squares: Path) -> None:
    stage = make_stage("image", data={"num_frames": 2}, diffusion={"image_share": 0.0})
    frames = [clip[:, [index]] for clip in encoded(stage, squares, "clips") for index in (0, 2)]
    assert all(
        nearest(latents, frames) is not None for step in STEPS for latents in means(stage, stage.batches.draw(step))
    )


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 4), (0.5, 8), (1.0, 16)])
@pytest.mark.parametrize("stage", ["image", "video"])
def test_steps_on_stills_are_the_share_of_all_and_spread_evenly(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch, stage: str, share: float, count: int
) -> None:
    made = make_stage(stage, diffusion={"image_share": share})
    calls: list[tuple[str, int, int]] = []
    for step in STEPS:
        ((kind, number, group),) = made.batches._plan(step)
        assert group.weight == 1
        calls.append((kind, number, len(group.rows)))
    kinds = [kind == "still" for kind, _, _ in calls]
    assert sum(kinds) == count
    if count:
        quarters = [sum(kinds[start : start + 4]) for start in range(0, 16, 4)]
        assert quarters == [count // 4] * 4
    # Each kind is drawn from its start without a gap, in batches of its own size.
    for kind in {kind for kind, _, _ in calls}:
        assert [number for name, number, _ in calls if name == kind] == list(range(sum(c[0] == kind for c in calls)))
    sizes = {"still": 3 if stage == "video" else 4, "clip": 4, "frame": 4}
    assert all(size == sizes[kind] for kind, _, size in calls)


def test_a_joint_step_learns_from_clips_and_stills(make_recipe: MakeRecipe, make_stage: MakeStage) -> None:
    alike: dict[str, Any] = {"caption_dropout": 0.3, "circular_share": 0.5}
    joint = make_stage("video", diffusion={**alike, "image_share": 0.25, "joint_images": True})
    clips, stills = (make_stage("video", diffusion={**alike, "image_share": share}) for share in (0.0, 1.0))
    for step in STEPS:
        first, second = joint.batches.groups(step)
        assert (first.weight, second.weight) == (0.75, 0.25)
        assert (first.rows, second.rows) == (range(4), range(4, 7))
        for group, alone in ((first, clips), (second, stills)):  # each as if there were no other
            assert_same(joint.batches.draw(step, group.rows), alone.batches.draw(step))
            assert joint.batches.names(step, group.rows) == alone.batches.names(step, range(len(group.rows)))
        assert_same(joint.batches.draw(step, range(5, 7)), stills.batches.draw(step, range(1, 3)))
    recipes = {
        name: make_recipe("video", name, steps=1, log_every=1, micro_batch_size=2, diffusion={**alike, **options})
        for name, options in {
            "joint": {"image_share": 0.25, "joint_images": True},
            "clips": {"image_share": 0.0},
            "stills": {"image_share": 1.0},
        }.items()
    }
    losses = {}
    for name, recipe in recipes.items():
        run_stage(make_stage_of(recipe), recipe)
        (row,) = read_log(Path(recipe.output) / "log.jsonl")
        losses[name] = row["loss"]
    assert losses["joint"] == pytest.approx(0.75 * losses["clips"] + 0.25 * losses["stills"], abs=2e-6)
    with pytest.raises(InputError, match="image_share must be between 0 and 1 with joint_images, got 0.0"):
        make_recipe("video", diffusion={"image_share": 0.0, "joint_images": True})


@pytest.mark.parametrize("kept", ["clips", "stills"])
def test_data_of_one_kind_have_no_share(make_stage: MakeStage, squares: Path, tmp_path: Path, kept: str) -> None:
    folder = CaptionedVideoFolder(squares)
    (tmp_path / "data" / kept).mkdir(parents=True)
    rows = []
    for record in folder:
        if record.path.parent.name == kept:
            name = f"{kept}/{record.path.name}"
            (tmp_path / "data" / name).write_bytes(record.path.read_bytes())
            rows.append({"file_name": name, "caption": record.caption})
    write_records(tmp_path / "data", rows)
    data = {"source": str(tmp_path / "data")}
    image = make_stage("image", data=data)
    candidates = encoded(image, tmp_path / "data", kept)
    frames = [clip[:, [index]] for clip in candidates for index in range(clip.shape[1])]
    assert all(
        nearest(latents, frames) is not None for step in STEPS for latents in means(image, image.batches.draw(step))
    )
    if kept == "clips":
        video = make_stage("video", data=data)
        assert not any(is_still(video.batches.draw(step)) for step in STEPS)
    else:
        with pytest.raises(InputError, match=r"data.source must have clips of more than one frame"):
            make_stage("video", data=data)


@pytest.mark.parametrize("cache", [True, False])
def test_clips_are_cut_and_resized_as_the_recipe_says(make_stage: MakeStage, tmp_path: Path, cache: bool) -> None:
    data = {"num_frames": 3, "size": 32, "cache": str(tmp_path / "cache") if cache else ""}
    stage = make_stage("video", data=data, diffusion={"image_share": 0.0})
    batch = stage.batches.draw(0)
    latents, (text, _) = stage.encode(batch), stage.encode_text(batch)
    assert latents.shape == stage.batches.draw(0).noise.shape == (4, 4, 3, 4, 4)
    assert text.shape == (4, 8, 16)


def test_of_captions_that_are_cut_the_first_alone_is_told(
    make_stage: MakeStage, caplog: pytest.LogCaptureFixture
) -> None:
    stage = make_stage("video", data={"cache": ""}, diffusion={"image_share": 0.0})
    captions = [f"a red square and a {color} square of the same size" for color in ("red", "blue", "green", "red")]
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            stage.encode_text(dataclasses.replace(stage.batches.draw(step), captions=captions))
    (message,) = [record.getMessage() for record in caplog.records if "is cut to" in record.getMessage()]
    assert message.endswith(f"{captions[0]!r}; further captions that are cut are not told of")
    assert not text_logger.filters


@pytest.mark.parametrize("stage", ["image", "video"])
def test_without_a_cache_clips_are_decoded_and_encoded_as_they_come(
    make_stage: MakeStage, squares: Path, stage: str
) -> None:
    """The same latents and captions as those that the cache would hold of these files."""
    live, cached = make_stage(stage, data={"cache": ""}), make_stage(stage)
    paths = {kind: [str(r.path) for r in CaptionedVideoFolder(squares) if r.path.parent.name == kind] for kind in KINDS}
    clips = {p: c for kind in KINDS for p, c in zip(paths[kind], encoded(cached, squares, kind), strict=True)}
    records = {str(record.path): record for record in CaptionedVideoFolder(squares)}
    pipeline = live.pipeline
    for step in range(8):
        batch, names = live.batches.draw(step), live.batches.names(step, range(count_rows(live.batches, step)))
        assert batch.moments is batch.text is None
        assert batch.captions is not None
        latents, (text, _) = means(live, batch), live.encode_text(batch)
        for row, name in enumerate(names):
            candidates = (
                [clips[name][:, [i]] for i in range(clips[name].shape[1])] if stage == "image" else [clips[name]]
            )
            assert nearest(latents[row], candidates) is not None
            assert batch.captions[row] in (*records[name].captions, "")
            expected = encode_text(pipeline.tokenizer, pipeline.text_encoder, [batch.captions[row]], 8, True)
            torch.testing.assert_close(text[row], expected[0])
        assert_same(live.batches.draw(step), batch)
    assert torch.equal(live.batches.draw(3).noise, cached.batches.draw(3).noise)


@pytest.mark.parametrize("live", [True, False], ids=["live", "cached"])
def test_names_are_those_of_the_files_that_were_read(
    make_stage: MakeStage, squares: Path, tmp_path: Path, live: bool
) -> None:
    """Also where a bad file was replaced; that one is told apart."""
    shutil.copytree(squares, tmp_path / "data")
    bad = next((tmp_path / "data" / "clips").iterdir())
    bad.write_bytes(b"RIFF, but no picture")
    data = {"source": str(tmp_path / "data"), "max_bad_share": 0.5, "cache": "" if live else str(tmp_path / "cache")}
    stage = make_stage("video", data=data, diffusion={"image_share": 0.0})
    candidates = {
        record.path.name: latents
        for record, latents in zip(
            [record for record in CaptionedVideoFolder(squares) if record.path.parent.name == "clips"],
            encoded(stage, squares, "clips"),
            strict=True,
        )
    }
    for step in range(4):
        batch = stage.batches.draw(step)
        for latents, name in zip(means(stage, batch), stage.batches.names(step, range(4)), strict=True):
            assert name != str(bad)
            assert nearest(latents, [candidates[Path(name).name]]) is not None
    assert list(stage.batches.quarantined) == [str(bad)]


@pytest.mark.parametrize("live", [True, False], ids=["live", "cached"])
def test_each_row_of_a_table_is_one_record_also_where_rows_share_a_file(
    make_stage: MakeStage, squares: Path, tmp_path: Path, live: bool
) -> None:
    clips = [record.path for record in CaptionedVideoFolder(squares) if record.path.parent.name == "clips"]
    rows = [(clips[0], color) for color in ("red", "green", "blue")] + [(clips[1], "yellow")]
    (tmp_path / "clips.csv").write_text("video,caption\n" + "".join(f"{path},{color}\n" for path, color in rows))
    data = {"source": f"table:{tmp_path}/clips.csv?video=video", "cache": "" if live else str(tmp_path / "cache")}
    options = {"image_share": 0.0, "caption_dropout": 0.0}
    stage = make_stage("video", data=data, diffusion=options)
    for step in range(4):  # of four rows each: an epoch
        names = stage.batches.names(step, range(4))
        assert sorted(names) == sorted(str(path) for path, _ in rows)


def test_what_a_source_has_dropped_is_said_at_the_start(
    make_stage: MakeStage, squares: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(squares, tmp_path / "data")
    for path in list((tmp_path / "data" / "clips").iterdir())[:2]:
        path.unlink()
    with caplog.at_level(logging.INFO):
        make_stage("video", data={"source": str(tmp_path / "data"), "cache": ""})
    assert f"{tmp_path / 'data'}: 10 records, 2 dropped (2 x the file is missing)" in caplog.messages


def test_latents_are_drawn_from_the_posterior(make_stage: MakeStage) -> None:
    stage = make_stage("video")
    batch = stage.batches.draw(1)
    assert batch.moments is not None
    deviation = (0.5 * batch.moments[:, 4:]).exp()
    std = torch.tensor(stage.pipeline.vae.config.latents_std).view(-1, 1, 1, 1)
    drawn = stage.encode(batch) - means(stage, batch)
    torch.testing.assert_close(drawn, deviation * batch.posterior_noise / std, rtol=1e-3, atol=1e-5)
    assert drawn.abs().max() > 0


@pytest.mark.parametrize(("share", "expected"), [(0.0, {"zero"}), (1.0, {"circular"}), (0.5, {"zero", "circular"})])
def test_a_share_of_the_steps_is_circular(make_stage: MakeStage, share: float, expected: set[str]) -> None:
    stage = make_stage("video", diffusion={"circular_share": share})
    batches = [stage.batches.draw(step) for step in range(64)]
    for kind in (True, False):
        boundaries = [batch.boundary for batch in batches if is_still(batch) is kind]
        assert set(boundaries) == expected
        if share == 0.5:
            assert 0.2 < boundaries.count("circular") / len(boundaries) < 0.8


@pytest.mark.parametrize("random_phase", [False, True])
def test_a_random_phase_rolls_the_loop(make_stage: MakeStage, squares: Path, random_phase: bool) -> None:
    stage = make_stage("video", diffusion={"random_phase": random_phase, "image_share": 0.0})
    clips = encoded(stage, squares, "clips")
    rolled = [clip.roll(phase, dims=1) for clip in clips for phase in range(4)]
    phases = set()
    for step in STEPS:
        for latents in means(stage, stage.batches.draw(step)):
            index = nearest(latents, rolled)
            assert index is not None
            phases.add(index % 4)
    assert phases == (set(range(4)) if random_phase else {0})


@pytest.mark.parametrize("dropout", [0.0, 1.0, 0.4])
def test_dropped_captions_are_the_empty_one(make_stage: MakeStage, squares: Path, dropout: float) -> None:
    stage = make_stage("video", diffusion={"caption_dropout": dropout, "image_share": 0.0})
    pipeline = stage.pipeline
    captions = sorted({form for record in CaptionedVideoFolder(squares) for form in record.captions})
    features = encode_text(pipeline.tokenizer, pipeline.text_encoder, ["", *captions], 8, True)
    found = []
    for step in range(24):
        batch = stage.batches.draw(step)
        assert batch.text.shape == (4, 8, 16)
        for row in batch.text:
            close = [torch.allclose(row, feature, atol=5e-3) for feature in features]
            assert sum(close) == 1
            found.append(close.index(True))
    assert found.count(0) / len(found) == pytest.approx(dropout, abs=0.12 * (0 < dropout < 1))
    if dropout == 0:
        plain = [captions[index - 1].startswith("a ") for index in found]
        # Half the time the first form, else any of the two.
        assert sum(plain) / len(plain) == pytest.approx(0.75, abs=0.12)


def test_a_caption_belongs_to_its_clip(make_stage: MakeStage, squares: Path) -> None:
    stage = make_stage("video", diffusion={"caption_dropout": 0.0, "image_share": 0.0})
    clips = encoded(stage, squares, "clips")
    records = [record for record in CaptionedVideoFolder(squares) if record.path.parent.name == "clips"]
    pipeline = stage.pipeline
    for step in range(6):
        batch = stage.batches.draw(step)
        for latents, row in zip(means(stage, batch), batch.text, strict=True):
            index = nearest(latents, clips)
            assert index is not None
            features = encode_text(pipeline.tokenizer, pipeline.text_encoder, records[index].captions, 8, True)
            assert any(torch.allclose(row, feature, atol=5e-3) for feature in features)


def test_captions_have_the_length_of_the_recipe(make_stage: MakeStage) -> None:
    assert make_stage("image", model={"max_tokens": 4}).batches.draw(0).text.shape == (4, 4, 16)


@pytest.mark.parametrize("cached", [True, False])
def test_text_noise_is_as_strong_as_the_caption_and_leaves_its_padding(make_stage: MakeStage, cached: bool) -> None:
    data = {} if cached else {"data": {"cache": ""}}
    stage, plain = (make_stage("image", diffusion={"text_noise": noise}, **data) for noise in (0.5, 0.0))
    strengths = []
    for step in range(40):
        batch = stage.batches.draw(step)
        assert batch.text_noise is not None
        noisy, text = stage.encode_text(batch)[0], plain.encode_text(plain.batches.draw(step))[0]
        padding = (text == 0).all(dim=2)
        assert padding.any()
        assert (noisy[padding] == 0).all()
        added = noisy - text
        for one, own, hidden in zip(added, text, padding, strict=True):
            strengths.append((one[~hidden].square().mean() / own[~hidden].square().mean()).sqrt().item())
    assert 0 < min(strengths) < 0.1
    assert 0.4 < max(strengths) < 0.65  # at most 0.5, but for chance: a caption has few features
    assert np.mean(strengths) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("stage", ["image", "video"])
def test_a_stage_in_bf16_has_a_loss(make_stage: MakeStage, stage: str) -> None:
    made = make_stage(stage, precision="bf16")
    assert made.loss(made.batches.draw(0)).isfinite().all()


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("circular", [False, True])
def test_noise_of_neighbouring_frames_correlates(make_stage: MakeStage, correlation: float, circular: bool) -> None:
    diffusion = {"image_share": 0.0, "circular_share": float(circular)}
    stage = make_stage("video", model={"arguments": {"noise_correlation": correlation}}, diffusion=diffusion)
    noise = torch.cat([stage.batches.draw(step).noise for step in range(60)]).transpose(1, 2).flatten(2)
    assert noise.square().mean().item() == pytest.approx(1.0, abs=0.06)
    neighbours = [(noise[:, i] * noise[:, i + 1]).mean().item() for i in range(3)]
    ends = (noise[:, 0] * noise[:, 3]).mean().item()
    loop = (correlation + correlation**3) / (1 + correlation**4)
    assert neighbours == pytest.approx([loop if circular else correlation] * 3, abs=0.08)
    assert ends == pytest.approx(loop if circular else correlation**3, abs=0.08)


def test_timesteps_are_uniform_and_spread_over_the_batch(make_stage: MakeStage) -> None:
    stage = make_stage("video", diffusion={"image_share": 0.0})
    drawn = torch.stack([stage.batches.draw(step).timesteps for step in range(50)])
    assert drawn.dtype == torch.int64
    assert 0 <= drawn.min() < 30
    assert 970 < drawn.max() < 1000
    gaps = drawn.sort(dim=1).values.diff(dim=1)
    assert ((gaps == 250) | (gaps - 250).abs().le(1)).all()
    assert len(set(drawn[:, 0].tolist())) > 40
    assert set(make_stage("image", diffusion={"num_train_timesteps": 2}).batches.draw(0).timesteps.tolist()) == {0, 1}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 0.7, 5.0])
def test_min_snr_weights_are_those_of_the_paper(prediction_type: str, gamma: float | None) -> None:
    """min(SNR, gamma) / SNR for noise and min(SNR, gamma) / (SNR + 1) for v (arXiv:2303.09556, Sec. 3.4)."""
    options = DiffusionConfig(prediction_type=prediction_type)
    steps = torch.tensor([0, 100, 500, 999])
    kept = alphas(options)[steps.numpy()]
    snr = kept / (1 - kept)
    expected = np.ones(4)
    if gamma is not None:
        expected = np.minimum(snr, gamma) / (snr + (prediction_type == "v_prediction"))
    weights = min_snr_weights(noise_schedule(options), steps, gamma)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=2e-3)


def test_the_noise_process_is_the_papers_unless_told_otherwise() -> None:
    options = DiffusionConfig()
    assert (options.num_train_timesteps, options.beta_start, options.beta_end) == (1000, 8.5e-4, 1.2e-2)
    np.testing.assert_allclose(noise_schedule(options).alphas_cumprod.numpy(), alphas(options), rtol=1e-4)
    other = DiffusionConfig(num_train_timesteps=50, beta_start=0.01, beta_end=0.2)
    np.testing.assert_allclose(noise_schedule(other).alphas_cumprod.numpy(), alphas(other), rtol=1e-4)


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    options = DiffusionConfig(zero_terminal_snr=True, prediction_type="v_prediction")
    schedule = noise_schedule(options)
    assert schedule.alphas_cumprod[-1] == 0
    np.testing.assert_allclose(schedule.alphas_cumprod.numpy(), alphas(options), rtol=1e-3, atol=1e-6)
    assert noise_schedule(DiffusionConfig()).alphas_cumprod[-1] > 1e-3


LOSSES: list[dict[str, Any]] = [
    {},
    {"min_snr_gamma": 2.0},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "v_prediction", "min_snr_gamma": 2.0},
    {"prediction_type": "v_prediction", "zero_terminal_snr": True},
]


@pytest.mark.parametrize(
    ("stage", "options"),
    [(stage, options) for stage in ("image", "video") for options in LOSSES] + [("video", {"motion_weight": 3.0})],
)
def test_the_loss_is_that_of_the_equations(make_stage: MakeStage, stage: str, options: dict[str, Any]) -> None:
    """Eqs. 1, 2 and 5; v = sqrt(a) noise - sqrt(1 - a) u_0 (arXiv:2202.00512)."""
    made = make_stage(stage, diffusion=options)
    config = DiffusionConfig(**options)
    for step in (0, 3):
        batch = made.batches.draw(step)
        latents = made.encode(batch)
        kept = torch.from_numpy(alphas(config)[batch.timesteps.numpy()]).float()
        a, s = (value.sqrt().view(-1, 1, 1, 1, 1) for value in (kept, 1 - kept))
        target = batch.noise if config.prediction_type == "epsilon" else a * batch.noise - s * latents
        with torch.no_grad():
            noisy = a * latents + s * batch.noise
            predicted = made.network(noisy, batch.timesteps, batch.text, boundary=batch.boundary).sample
            losses = made.loss(batch)
        error = predicted - target
        still = error.mean(dim=2)  # what all frames of a clip have in common
        per_clip = still.square().flatten(1).mean(dim=1)
        per_clip += config.motion_weight * (error - still.unsqueeze(2)).square().flatten(1).mean(dim=1)
        weights = torch.ones(len(kept))
        if config.min_snr_gamma is not None:
            snr = kept / (1 - kept)
            weights = snr.clamp(max=2.0) / (snr + (config.prediction_type == "v_prediction"))
        torch.testing.assert_close(losses, per_clip * weights, rtol=1e-3, atol=1e-5)


def test_only_the_unet_learns(make_stage: MakeStage) -> None:
    stage = make_stage("video")
    stage.loss(stage.batches.draw(1)).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in stage.network.parameters())
    for part in (stage.pipeline.vae, stage.pipeline.text_encoder):
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in part.parameters())


def test_previews_have_fixed_seeds_and_come_from_the_pipeline(make_stage: MakeStage, tmp_path: Path) -> None:
    stage = make_stage("video", preview={"guidance_scale": 2.0})
    for name in ("first", "second"):
        torch.manual_seed(len(name))
        with torch.no_grad():
            stage.preview(tmp_path / name)
    assert stage.network.training
    names = ["00.webp", "01.webp", "sheet.png"]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == names
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    stage.network.eval()
    prompts = ["a red square", "blue"]
    result: Any = stage.pipeline(
        prompts,
        num_frames=4,
        num_inference_steps=2,
        guidance_scale=2.0,
        boundary="zero",
        generator=[torch.Generator().manual_seed(derive_seed(0, "preview", index)) for index in range(2)],
        output_type="np",
    )
    clips = (np.asarray(result.frames) * 255).round().astype(np.uint8)
    sheet = contact_sheet([clip[::3] for clip in clips], labels=prompts)
    assert (read_video(tmp_path / "first" / "sheet.png").frames[0] == sheet).all()


@pytest.mark.parametrize("changed", [{"guidance_scale": 7.0}, {"num_inference_steps": 3}, {"prompts": ["a", "b"]}])
def test_every_option_of_the_preview_changes_it(make_stage: MakeStage, tmp_path: Path, changed: dict[str, Any]) -> None:
    sheets = []
    for name, options in (("plain", {}), ("changed", changed)):
        stage = make_stage("image", preview=options)
        torch.manual_seed(0)
        # The last layer is zero at the start, and would hide every difference.
        torch.nn.init.normal_(stage.network.conv_out.weight, std=0.3)
        with torch.no_grad():
            stage.preview(tmp_path / name)
        sheets.append((tmp_path / name / "sheet.png").read_bytes())
    assert sheets[0] != sheets[1]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_preview_that_is_not_finite_is_told_of_with_its_step_and_its_prompts(
    make_recipe: MakeRecipe, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    draw = DenoisingStage._draw_previews

    def overflow(self: DenoisingStage, indices: Any) -> Any:
        clips = dict(draw(self, indices))
        clips[1][0, 3, 4] = np.nan
        clips[2][:] = np.nan
        return list(clips.items())

    monkeypatch.setattr(DenoisingStage, "_draw_previews", overflow)
    recipe = make_recipe(kind, steps=2, preview={"prompts": ["a red square", "blue", "a, b"], "every": 2})
    train(recipe)
    assert "the preview of step 2 is not of finite numbers: 'blue', 'a, b'" in caplog.messages
    assert (Path(recipe.output) / "previews/step_00000002/sheet.png").is_file()


def test_a_network_that_is_not_finite_draws_previews_that_are_not(make_stage: MakeStage, tmp_path: Path) -> None:
    stage = make_stage("image")
    torch.nn.init.constant_(stage.network.conv_out.bias, float("nan"))
    with torch.no_grad():
        assert stage.preview(tmp_path) == ["a red square", "blue"]
    torch.nn.init.zeros_(stage.network.conv_out.bias)
    with torch.no_grad():
        assert stage.preview(tmp_path) == []


def test_without_prompts_there_is_no_preview(make_stage: MakeStage, tmp_path: Path) -> None:
    assert make_stage("image", preview={"prompts": []}).preview(tmp_path / "preview") == []
    assert not (tmp_path / "preview").exists()


def test_lora_learns_alone_and_is_exported_merged_and_beside(
    make_recipe: MakeRecipe, road: Path, tmp_path: Path
) -> None:
    base = LatentShiftPipeline.from_pretrained(road / "image/model", torch_dtype=torch.float32)
    recipe = make_recipe("video", lora={"rank": 2, "alpha": 8.0}, steps=3, optimizer={"learning_rate": 0.05})
    merged = LatentShiftPipeline.from_pretrained(train(recipe), torch_dtype=torch.float32)
    found = latest_checkpoint(Path(recipe.output) / "checkpoints")
    assert found is not None
    assert all("lora_" in name for name in found[0]["network"])
    before, after = base.unet.state_dict(), merged.unet.state_dict()
    assert before.keys() == after.keys()
    ends = tuple(f"{name}.weight" for name in recipe.lora.target_modules)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    may_change = {name for name in before if name.endswith(ends)}
    # Self-attention over a single latent pixel has nothing to choose, so its queries and keys do not learn.
    assert may_change - changed < {name for name in may_change if ".attn1." in name}
    assert changed <= may_change

    # The same clip from the image model with diffusers' own loader of the small file.
    options: dict[str, Any] = {"num_frames": 4, "num_inference_steps": 3, "output_type": "latent"}
    expected = merged("a red square", generator=torch.Generator().manual_seed(0), **options).frames
    base.unet.register_to_config(noise_correlation=merged.unet.config.noise_correlation)
    base.load_lora_weights(Path(recipe.output) / "lora")
    made = base("a red square", boundary="zero", generator=torch.Generator().manual_seed(0), **options).frames
    torch.testing.assert_close(made, expected, rtol=1e-2, atol=1e-2)


def test_lora_goes_on_from_a_file(make_recipe: MakeRecipe, make_stage: MakeStage, tmp_path: Path) -> None:
    recipe = make_recipe("video", lora={"rank": 2}, steps=2, optimizer={"learning_rate": 0.05})
    train(recipe)
    file = Path(recipe.output) / "lora/pytorch_lora_weights.safetensors"
    network = make_stage("video", output="next", lora={"rank": 2, "init": str(file)}).network
    for name, learned in load_file(file).items():
        own = network.get_parameter(name.removeprefix("unet.").replace(".weight", ".default.weight"))
        assert torch.equal(own, learned.float())
        assert own.requires_grad
    message = "lora.init must have updates of the layers, the rank and the alpha of the recipe, got"
    for other in ({"rank": 3}, {"rank": 2, "alpha": 3.0}, {"rank": 2, "target_modules": ["conv1"]}):
        with pytest.raises(InputError, match=message):
            make_stage("video", output="next", lora={**other, "init": str(file)})
    begun: dict[str, Any] = {"lora": {"rank": 2, "init": str(shutil.copy(file, tmp_path / "begun.safetensors"))}}
    train(make_recipe("video", "second", steps=1, **begun))
    (tmp_path / "begun.safetensors").unlink()  # a checkpoint has what was learned since
    assert train(make_recipe("video", "second", steps=2, **begun)).is_dir()
    with pytest.raises(
        InputError, match=r"^lora.init must be a file that is there, or empty, got '.*begun.safetensors'"
    ):
        make_stage("video", output="next", **begun)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"damaged.safetensors is no file of LoRA updates that can be read"):
        make_stage("video", output="next", lora={"rank": 2, "init": str(damaged)})


def test_lora_of_the_images_of_a_vdm_model_goes_on(make_recipe: MakeRecipe) -> None:
    vdm: dict[str, Any] = {"video": "vdm"}
    init = str(train(make_recipe("image", "first", steps=1, model=vdm)))
    model = {**vdm, "init": init, "arguments": {}, "autoencoder": "", "text_encoder": "", "max_tokens": 24}
    for steps in (1, 2):
        recipe = make_recipe("image", "second", steps=steps, model=model, lora={"rank": 2})
        assert train(recipe).is_dir()
    found = latest_checkpoint(Path(recipe.output) / "checkpoints")
    assert found is not None
    assert not any(".temporal_attentions." in name for name in found[0]["network"])


@pytest.mark.parametrize("changed", [{"rank": 3}, {"alpha": 1.0}, {"target_modules": ["to_q"]}, {"rank": 0}])
def test_every_option_of_lora_changes_the_model(make_recipe: MakeRecipe, changed: dict[str, Any]) -> None:
    weights = []
    for name, options in (("plain", {}), ("changed", changed)):
        lora = {"rank": 2, **options}
        folder = train(make_recipe("video", name, lora=lora, steps=2, optimizer={"learning_rate": 0.05}))
        weights.append(LatentShiftPipeline.from_pretrained(folder).unet.state_dict())
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_layers_that_are_not_there_cannot_learn(make_stage: MakeStage) -> None:
    with pytest.raises(InputError, match=r"^lora.target_modules must name layers of the U-Net .*, got \['nothing'\]$"):
        make_stage("video", lora={"rank": 2, "target_modules": ["nothing"]})


def test_gradient_checkpointing_changes_no_gradient(make_stage: MakeStage) -> None:
    gradients = []
    for checkpointing in (False, True):
        stage = make_stage("video", gradient_checkpointing=checkpointing)
        assert stage.network.is_gradient_checkpointing is checkpointing
        torch.nn.init.normal_(stage.network.conv_out.weight, std=0.3, generator=torch.Generator().manual_seed(0))
        stage.loss(stage.batches.draw(0)).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad for parameter in stage.network.parameters()])
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right)


def test_a_preview_leaves_no_memory_behind(make_recipe: MakeRecipe) -> None:
    stage = make_stage_of(make_recipe("video", preview={"every": 1}))

    def tensors() -> tuple[int, int]:
        gc.collect()
        found = [item for item in gc.get_objects() if type(item) in (Tensor, torch.nn.Parameter)]
        return len(found), sum(item.numel() * item.element_size() for item in found)

    counts: list[tuple[int, int]] = []
    preview = stage.preview

    def counted(folder: Path) -> None:
        before = tensors()
        preview(folder)
        counts.append((tensors()[0] - before[0], tensors()[1] - before[1]))

    stage.preview = counted  # type: ignore[method-assign]
    run_stage(stage, make_recipe("video", steps=3, preview={"every": 1}))
    # The first one makes the scheduler's tables of its steps.
    assert counts[1:] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_model_is_exported_in_the_dtype_of_the_recipe(
    make_stage: MakeStage, tmp_path: Path, dtype: torch.dtype
) -> None:
    names = {torch.float16: "fp16", torch.float32: "fp32"}
    make_stage("video", export_dtype=names[dtype]).export(tmp_path / "model")
    files = list((tmp_path / "model").rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        assert {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()} == {dtype}
