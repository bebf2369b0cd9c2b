"""`latent-shift reproduce`: the paper's comparisons, of the default model and a Latent-VDM twin, at emoji scale."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from latent_shift import __version__
from latent_shift.benchmark.machine import describe_machine
from latent_shift.benchmark.timing import compare, spread, take_turns, timed
from latent_shift.core.errors import InputError
from latent_shift.data.heldout import load_heldout
from latent_shift.media import resize_frames
from latent_shift.models import LatentShiftUNet, LatentVDMUNet
from latent_shift.pipelines import LatentShiftPipeline
from latent_shift.pipelines.loading import model_folder

from .claims import CLAIMS, MIN_ROUNDS, STATISTICS, Comparison, Estimate, applicable, verdict
from .report import check_report, rounded, write_report
from .samples import Progress
from .subjects import open_emoji
from .systems import SYSTEMS, ReproduceOptions, Samples

_COLUMNS = 8
"""Subjects of the training set whose clips the report shows: the first ones, by the rule that chose the set."""


def reproduce(
    model: str,
    twin: str,
    base: str | None = None,
    data: str | Path = "data/emoji",
    output: str | Path = "runs/evaluation",
    report: str | Path = "runs/reproduce",
    options: ReproduceOptions | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Makes and judges what is missing of the clips, decides the claims, and writes the report.

    Args:
        model: name or folder of the Latent-Shift model.
        twin: of the Latent-VDM model.
        base: of the text-to-image model that both were trained from; without it its rows and claims are left out.
        data: the folder that `latent-shift data emoji` made.
        output: where clips, features and numbers are kept; what `latent-shift evaluate emoji` made there is used.
        report: a folder for `README.md`, `index.html`, `results.json` and the pictures.
        options: see `ReproduceOptions`.
        device: as `load_pipeline`.
        dtype: as `load_pipeline`.
        progress: told how far each part is.

    Returns:
        What `results.json` holds: `settings`, `systems`, `scores` (set, system, statistic), `size`, `speed`, `claims`.

    Raises:
        InputError: the model has no shift or the twin no temporal attention, the twin or the base does not go with the
            model, or the data are no emoji of this version.
        MissingExtraError: matplotlib is not installed.
    """
    options, output = options or ReproduceOptions(), Path(output)
    models = {"latent_shift": model, "latent_vdm": twin, **({"base": base} if base else {})}
    for argument, place in zip(("model", "twin", "base"), models.values(), strict=False):
        model_folder(place, argument)
    folder = open_emoji(data)
    say = progress or (lambda _what, _done, _total: None)
    samples = Samples(SYSTEMS, models, folder, output, options, device, dtype, say)
    pipelines = {name: samples.load(name) for name in models}
    _check_models(pipelines, models)
    if "base" in pipelines:
        pipelines["base"].register_modules(vae=pipelines["latent_shift"].vae)  # another decoder is no other base
    check_report(Path(report))
    pipeline, other = pipelines["latent_shift"], pipelines["latent_vdm"]
    loop = pipeline.unet.default_boundary == "circular"
    if loop:
        del samples.systems["latent_shift_off_image"]  # a loop of one frame is its own neighbour: the same images

    scores: dict[str, Any] = {}
    decided: list[dict[str, Any]] = []
    for name, seeds in samples.subjects.items():
        asked = [system for system, how in samples.systems.items() if name in how.sets]
        measured = {system: samples.measure(system, name) for system in asked}
        real = samples.real_features(name, pipeline.config.default_size)
        comparison = Comparison(measured, real, samples.families[name], options.resamples)
        scores[name] = {"subjects": len(seeds[0])}
        for system in asked:
            row: dict[str, Any] = {"seeds": measured[system].top1.shape[1]}
            for statistic in STATISTICS:
                if statistic != "tone" or name == "pairs":
                    score = comparison.score(system, statistic)
                    row[statistic] = score and rounded(score)
            scores[name][system] = row
        for claim in applicable(asked):
            if name in claim.sets:
                gain = comparison.gain(claim)
                facts: dict[str, Any] = {
                    "source": claim.source,
                    "text": claim.text,
                    "statistic": claim.statistic,
                    "set": name,
                    "stated": claim.stated,
                }
                facts |= {"first": claim.first, "second": claim.second, "gain": rounded(gain)}
                decided.append(facts | {"verdict": verdict(gain, comparison.families)})

    order = [claim.text for claim in CLAIMS]
    decided.sort(key=lambda facts: order.index(facts["text"]))
    both = {"latent_shift": pipeline, "latent_vdm": other}
    speed = _speed(both, options)
    result = {
        "settings": {
            "models": {
                name: {"model": _short(place), "sha256": samples.hashes[name]} for name, place in models.items()
            },
            "latent_shift": __version__,
            "torch": torch.__version__,
            "device": str(pipeline.device),
            "machine": describe_machine(pipeline.device)["device"],
            "threads": torch.get_num_threads(),
            "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
            "heldout": load_heldout().name,
            "frames": pipeline.config.default_frames,
            "size": pipeline.config.default_size,
            "loop": loop,
            "steps": options.steps,
            # The base draws with the model's guidance.
            "guidance_scale": {
                name: (pipeline if name == "base" else one).config.default_guidance_scale
                for name, one in pipelines.items()
            },
            "motion_guidance": {name: one.config.default_motion_guidance for name, one in pipelines.items()},
            "noise_correlation": {name: one.noise_correlation for name, one in pipelines.items()},
            "seeds": options.seeds,
            "limit": options.limit,
            "resamples": options.resamples,
        },
        "systems": {name: SYSTEMS[name].title for name in samples.systems},
        "scores": scores,
        "size": {name: _size(one) for name, one in both.items()},
        "speed": speed,
        "claims": [*_claims_of_table_4(both, speed), *decided],
    }
    subjects = samples.subjects["training"][0][:_COLUMNS]
    result["shown"] = [subject.prompt for subject in subjects]
    columns = range(len(subjects))
    shown = {name: [samples.clip(name, "training", column) for column in columns] for name in samples.systems}
    originals = [
        resize_frames(folder.read(subject.record).frames, pipeline.config.default_size) for subject in subjects
    ]
    write_report(result, Path(report), {"real": originals, **shown})
    return result


def _check_models(pipelines: Mapping[str, LatentShiftPipeline], models: Mapping[str, str]) -> None:
    """Raises `InputError` unless the twin is the model but for its temporal layers, and the base draws its latents."""
    model, twin = pipelines["latent_shift"], pipelines["latent_vdm"]
    if not isinstance(model.unet, LatentShiftUNet) or model.config.default_frames < 2:
        raise InputError("model", models["latent_shift"], "be a video model whose U-Net is a LatentShiftUNet")
    if not isinstance(twin.unet, LatentVDMUNet):
        raise InputError("twin", models["latent_vdm"], "be a model whose U-Net is a LatentVDMUNet")
    for fact, (ours, theirs) in _facts(model, twin).items():
        if ours != theirs:
            raise InputError("twin", models["latent_vdm"], f"have the model's {fact} ({ours}, not {theirs})")
    for part in ("vae", "text_encoder"):
        if not _are_equal(getattr(model, part), getattr(twin, part)):
            raise InputError("twin", models["latent_vdm"], f"have the model's {part}, weight for weight")
    if model.tokenizer.get_vocab() != twin.tokenizer.get_vocab():
        raise InputError("twin", models["latent_vdm"], "have the model's tokenizer, word for word")
    base = pipelines.get("base")
    if base is None:
        return
    if base.config.default_frames != 1 or base.config.default_size != model.config.default_size:
        expected = f"be a text-to-image model, of one frame of {model.config.default_size} pixels"
        raise InputError("base", models["base"], expected)
    if not _are_equal(model.vae, base.vae, besides=("decoder.", "post_quant_conv.")):
        raise InputError("base", models["base"], "have the model's latents: the encoder of its autoencoder is another")


def _facts(model: LatentShiftPipeline, twin: LatentShiftPipeline) -> dict[str, tuple[Any, Any]]:
    """What both have a value of, the network's and the solver's settings among it."""
    own = model.config.keys() - model.components.keys() - {"default_noise_correlation"}
    facts = {key: (model.config[key], twin.config.get(key)) for key in sorted(own) if not key.startswith("_")}
    facts["first step's noise_correlation"] = (model.noise_correlation, twin.noise_correlation)
    for part in ("unet", "scheduler"):
        ours, theirs = (getattr(pipeline, part).config for pipeline in (model, twin))
        shared = sorted(key for key in ours.keys() & theirs.keys() if not key.startswith("_"))
        facts |= {f"{part}'s {key}": (ours[key], theirs[key]) for key in shared}
    return facts


def _are_equal(one: torch.nn.Module, other: torch.nn.Module, besides: tuple[str, ...] = ("/",)) -> bool:
    """Whether two networks have the same weights, those apart whose keys begin as `besides` says."""
    ours, theirs = (
        {key: value for key, value in network.state_dict().items() if not key.startswith(besides)}
        for network in (one, other)
    )
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def _short(place: str) -> str:
    """How the report names a model: by its run's folder where there is one."""
    path = Path(place)
    return f"{path.parent.name}/{path.name}" if path.name == "model" else path.name


def _speed(pipelines: Mapping[str, LatentShiftPipeline], options: ReproduceOptions) -> dict[str, Any]:
    """Seconds of a clip of each model, in turns after a warm-up. They are the only numbers that are not kept."""
    jobs = {}
    for name, pipeline in pipelines.items():
        make = partial(pipeline, "a rocket", num_inference_steps=options.steps, output_type="np")
        make()
        jobs[name] = timed(make, pipeline.device)
    seconds = take_turns(jobs, options.rounds)
    rows: dict[str, Any] = {name: spread("seconds", values) for name, values in seconds.items()}
    rows["rounds"] = options.rounds
    rows["ratio"] = compare(seconds["latent_vdm"], seconds["latent_shift"], "vdm_to_shift")
    return rows


def _size(pipeline: LatentShiftPipeline) -> dict[str, int]:
    """Parameters of the parts, and of all."""
    parts = {
        name: sum(weight.numel() for weight in getattr(pipeline, name).parameters())
        for name in ("unet", "vae", "text_encoder")
    }
    return {**parts, "total": sum(parts.values())}


def _claims_of_table_4(pipelines: Mapping[str, LatentShiftPipeline], speed: dict[str, Any]) -> list[dict[str, Any]]:
    """Latent-Shift is smaller, which is counted, and faster: in every one of at least six rounds."""
    shift, vdm = (_size(pipelines[name])["total"] for name in ("latent_shift", "latent_vdm"))
    smaller, (slowest, fastest) = vdm / shift - 1, speed["ratio"]["vdm_to_shift_range"]
    gains = {
        "parameters": Estimate(smaller, smaller, smaller),
        "seconds": Estimate(speed["ratio"]["vdm_to_shift"] - 1, slowest - 1, fastest - 1),
    }
    texts = {
        "parameters": "Latent-Shift has fewer parameters (gain: Latent-VDM's over its own, less 1).",
        "seconds": "Latent-Shift is faster (gain: Latent-VDM's seconds over its own, less 1; over the rounds).",
    }
    return [
        {
            "source": "Table 4",
            "text": texts[name],
            "statistic": name,
            "set": None,
            "stated": True,
            "first": "latent_shift",
            "second": "latent_vdm",
            "gain": rounded(gain),
            "verdict": verdict(gain, speed["rounds"] if name == "seconds" else MIN_ROUNDS, MIN_ROUNDS),
        }
        for name, gain in gains.items()
    ]
