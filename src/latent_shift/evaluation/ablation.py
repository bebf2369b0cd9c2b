"""`latent-shift reproduce ablation`: what of the shift matters; the paper does not say. Short runs, one change each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latent_shift.core.config import parse_config
from latent_shift.core.errors import InputError
from latent_shift.core.files import read_json_object, write_json
from latent_shift.pipelines.loading import model_folder, resolve_dtype
from latent_shift.training import Recipe, train
from latent_shift.training.report import read_log

from .claims import Claim, Comparison, Estimate, Statistic, verdict
from .report import check_report, rounded, write_ablation
from .samples import Progress, hash_folder
from .subjects import open_emoji
from .systems import ReproduceOptions, Samples, System


@dataclass(frozen=True)
class Variant:
    """One change of a recipe.

    Attributes:
        title: for readers.
        arguments: of the U-Net, above those of the recipe.
        circular_share: of the batches, those that are loops.
        seed: added to the recipe's.
    """

    title: str
    arguments: Mapping[str, Any]
    circular_share: float = 0.0
    seed: int = 0


VARIANTS = {
    "paper": Variant("a third each way, one frame, at the entry of the branch, zeros at the ends", {}),
    "fold-4": Variant("a quarter each way", {"shift_fold": 4}),
    "fold-8": Variant("an eighth each way", {"shift_fold": 8}),
    "before-conv1": Variant("after norm and SiLU, before conv1", {"shift_placement": "before_conv1"}),
    "distance-2": Variant("two frames each way", {"shift_distance": 2}),
    "circular": Variant("loops, in training and sampling", {"default_boundary": "circular"}, 1.0),
    "mixed": Variant("zeros or loops by coin toss in training, zeros in sampling", {}, 0.5),
    "seed": Variant("the first again, with another seed", {}, seed=1),
}
"""The first is what the others are compared with."""
_COMMON = {"shift_fold": 3, "shift_placement": "before_norm1", "shift_distance": 1, "default_boundary": "zero"}
_STATISTICS: tuple[Statistic, ...] = ("top1", "top5", "r2", "ratio", "lite0-frames-kd", "lite0-clips-kd")
_COMPARED: tuple[Statistic, ...] = ("top5", "r2", "lite0-clips-kd")


def ablate(
    recipe: Recipe,
    output: str | Path = "runs/evaluation",
    report: str | Path = "runs/reproduce",
    options: ReproduceOptions | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains each variant of a recipe, measures it on the training labels, and writes the table.

    Every run has the recipe's data, order, noise, steps and seed. A run that is complete is taken as it is, one that
    was stopped goes on.

    Args:
        recipe: of the video stage, on emoji; each variant's run goes to a folder of its own in `recipe.output`.
        output: where clips, features and numbers are kept.
        report: a folder for `ablation.md` and `ablation.json`; a report of `reproduce` in it gets them as a section.
        options: see `ReproduceOptions`; `rounds` is not used.
        device: of sampling, as `load_pipeline`.
        dtype: of sampling, as `load_pipeline`.
        progress: told how far each part is.

    Returns:
        What `ablation.json` holds: `settings`, and for each variant its `scores`, its training `loss` over the second
        half of the run, and its `gains` and `loss_gain` over the first.

    Raises:
        InputError: the recipe is of another stage, network or data, sets what the variants change, or its folder holds
            longer runs, or runs from other weights; or the device or dtype is not there.
        MissingExtraError: matplotlib is not installed.
    """
    options, say = options or ReproduceOptions(), progress or (lambda _what, _done, _total: None)
    if recipe.stage != "video" or recipe.model.video != "shift":
        raise InputError("recipe", f"stage {recipe.stage}", "be one that trains a Latent-Shift model on video")
    own = [f"model.arguments.{key}" for key in _COMMON if key in recipe.model.arguments]
    own += [f"diffusion.{key}" for key in ("circular_share",) if key in recipe.diffusion.model_fields_set]
    if own:
        raise InputError("recipe", own[0], "leave to the variants what they change")
    folder = open_emoji(recipe.data.source)
    resolve_dtype(dtype, device)
    check_report(Path(report))
    _check_origin(recipe)
    models = {name: _trained(_vary(recipe, name, variant), name, say) for name, variant in VARIANTS.items()}
    systems = {name: System(variant.title, name) for name, variant in VARIANTS.items()}
    samples = Samples(systems, models, folder, Path(output), options, device, dtype, say)
    measured = {name: samples.measure(name, "training") for name in systems}
    first, *_ = VARIANTS
    pipeline = samples.load(first)
    real = samples.real_features("training", pipeline.config.default_size)
    comparison = Comparison(measured, real, samples.families["training"], options.resamples)
    losses = {name: _late_losses(Path(recipe.output) / name) for name in VARIANTS}
    variants: dict[str, Any] = {}
    for name, variant in VARIANTS.items():
        scores = {key: comparison.score(name, key) for key in _STATISTICS}
        row: dict[str, Any] = {"title": variant.title, "sha256": samples.hashes[name]}
        row["scores"] = {key: score and rounded(score) for key, score in scores.items()}
        row["loss"] = round(float(np.mean(list(losses[name].values()))), 4)
        if name != first:
            row["loss_gain"] = rounded(_loss_gain(losses[first], losses[name]))
            gains = {key: comparison.gain(Claim("", variant.title, key, name, first)) for key in _COMPARED}
            row["gains"] = {
                key: {**rounded(gain), "verdict": verdict(gain, comparison.families)} for key, gain in gains.items()
            }
        variants[name] = row
    settings = {
        "steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "size": pipeline.config.default_size,
        "frames": pipeline.config.default_frames,
        "init": Path(recipe.model.init).name,
        "subjects": len(samples.subjects["training"][0]),
        "sampling_steps": options.steps,
        "guidance_scale": pipeline.config.default_guidance_scale,
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "seeds": options.seeds,
        "resamples": options.resamples,
    }
    result = {"settings": settings, "variants": variants}
    write_ablation(result, Path(report))
    return result


def _check_origin(recipe: Recipe) -> None:
    """Raises `InputError` where the folder has runs that began from other weights; writes down which these are."""
    begun = any((Path(recipe.output) / name).exists() for name in VARIANTS)
    place, model = Path(recipe.output) / "origin.json", recipe.model
    found = {"init": hash_folder(model_folder(model.init))}
    if model.autoencoder:
        found["autoencoder"] = hash_folder(Path(model.autoencoder))
    if begun and not place.is_file():
        raise InputError("recipe.output", recipe.output, "be a new folder: what its runs began from is not known")
    if begun and (kept := read_json_object(place)) != found:
        changed = min(key for key in kept.keys() | found.keys() if kept.get(key) != found.get(key))
        raise InputError("recipe.output", recipe.output, f"be a new folder: its runs began from another {changed}")
    write_json(place, found)


def _trained(recipe: Recipe, name: str, say: Progress) -> str:
    """The model of a run, which is trained where it is not complete.

    Raises:
        InputError: the folder holds a complete run of more steps.
    """
    done = Path(recipe.output) / "done.json"
    steps = read_json_object(done)["steps"] if done.is_file() else 0
    if steps > recipe.steps:
        expected = f"be a new folder, or that of runs of {recipe.steps} steps: {name} has {steps}"
        raise InputError("recipe.output", str(Path(recipe.output).parent), expected)
    return str(train(recipe, lambda step, steps, _loss, _left: say(f"training {name}", step, steps)))


def _late_losses(run: Path) -> dict[int, float]:
    """The losses that were logged in the second half of a run, each the mean over the steps before; by step."""
    rows = read_log(run / "log.jsonl")
    return {int(row["step"]): float(row["loss"]) for row in rows if 2 * row["step"] > rows[-1]["step"]}


def _loss_gain(first: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
    """By how much a run's loss is below the first's: the mean difference of what both logged at the same step.

    Both saw the same clips, noise and timesteps until there, so most of what makes losses rise and fall from step to
    step is not in the differences. The interval is the mean's, +- 1.96 standard errors of a first-order autoregression:
    differences follow those before.
    """
    gains = np.array([first[step] - other[step] for step in sorted(first.keys() & other.keys())])
    margin = 0.0
    if len(gains) > 1:
        margin = 1.96 * gains.std(ddof=1) / np.sqrt(len(gains))
    if len(gains) > 3 and gains.std() > 0:
        follows = float(np.clip(np.corrcoef(gains[:-1], gains[1:])[0, 1], 0, 0.9))
        margin *= np.sqrt((1 + follows) / (1 - follows))
    return Estimate(gains.mean(), gains.mean() - margin, gains.mean() + margin)


def _vary(recipe: Recipe, name: str, variant: Variant) -> Recipe:
    tree = recipe.model_dump(exclude_unset=True)
    tree["output"] = str(Path(recipe.output) / name)
    model = tree.setdefault("model", {})
    model["arguments"] = {**model.get("arguments", {}), **_COMMON, **variant.arguments}
    tree.setdefault("diffusion", {})["circular_share"] = variant.circular_share
    tree["seed"] = recipe.seed + variant.seed
    return parse_config(Recipe, tree)
