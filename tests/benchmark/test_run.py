from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from latent_shift.benchmark import MODELS, BenchmarkOptions, benchmark, run, write_report
from latent_shift.benchmark.memory import peak_memory
from latent_shift.benchmark.networks import find_benchmark_preset
from latent_shift.benchmark.report import to_markdown
from latent_shift.core.errors import InputError, LatentShiftError
from latent_shift.ops.rates import matrix_size

MEASURED = ("latent_shift", "latent_shift_off", "latent_vdm", "unet2d")
QUICK = BenchmarkOptions(
    models=("latent_shift_off", "latent_vdm"),  # and those that they are compared with
    rounds=2,
    train_rounds=2,
    clip_rounds=1,
    sweep_rounds=1,
    sweep_frames=(2, 4),
    op_rounds=2,
)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    def measure(name: str, *_: str) -> int:
        if name == "latent_vdm":
            raise LatentShiftError("The peak memory of latent_vdm could not be measured: Killed")
        return 2**20

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "peak_memory", measure)
        return benchmark("tiny", QUICK, "cpu", "fp32")


def test_every_network_is_there_or_says_why_not(result: dict[str, Any]) -> None:
    forward = result["forward"]
    assert list(forward) == list(MODELS)
    for name in MEASURED:
        assert forward[name]["seconds"] > 0
        assert forward[name]["ratio_to_unet2d"] > 0
        assert forward[name]["memory_format"] in ("contiguous", "channels_last")
    for name in set(MODELS) - set(MEASURED):
        assert forward[name] == {"seconds": None, "ratio_to_unet2d": None, "reason": "not asked for"}


def test_a_peak_that_cannot_be_measured_costs_nothing_else(result: dict[str, Any]) -> None:
    peaks = {name: result["forward"][name]["peak_memory_bytes"] for name in MEASURED}
    assert peaks == {name: None if name == "latent_vdm" else 2**20 for name in MEASURED}
    reason = "The peak memory of latent_vdm could not be measured: Killed"
    assert result["forward"]["latent_vdm"]["peak_memory_reason"] == reason
    assert f"\n\n{reason}.\n" in to_markdown(result)
    assert to_markdown(result).count("could not be measured") == 1


def test_ratios(result: dict[str, Any]) -> None:
    forward = result["forward"]
    assert forward["unet2d"]["ratio_to_unet2d"] == 1
    assert len(forward["unet2d"]["rounds"]) == 2 * QUICK.rounds  # it is in every group
    assert len(forward["latent_vdm"]["rounds"]) == QUICK.rounds
    on, off = forward["latent_shift"]["rounds"], forward["latent_shift_off"]["rounds"]
    ratios = sorted(one / two for one, two in zip(on, off, strict=True))
    assert forward["latent_shift"]["ratio_to_latent_shift_off_range"] == ratios
    assert forward["latent_shift"]["memory_format"] == forward["latent_shift_off"]["memory_format"]


def test_training_steps(result: dict[str, Any]) -> None:
    training = result["training"]
    assert set(training) == set(MEASURED)
    assert training["unet2d"]["ratio_to_unet2d"] == 1
    for row in training.values():
        assert len(row["rounds"]) == QUICK.train_rounds
        assert row["ratio_to_unet2d"] > 0
    # Forward and backward are more than a forward, whatever else the machine does.
    assert min(training["unet2d"]["rounds"]) > min(result["forward"]["unet2d"]["rounds"])


def test_whole_clips(result: dict[str, Any]) -> None:
    clips = result["clip"]
    assert set(clips) == set(MEASURED) - {"latent_shift_off"}
    for name, clip in clips.items():
        parts = [clip[f"{part}_seconds"] for part in ("text", "denoising", "decoding")]
        assert min(parts) > 0
        if name != "unet2d":  # the others have one round: no medians that need not add up
            assert sum(parts) == pytest.approx(clip["total_seconds"])
        assert (clip["steps_measured"], clip["steps"]) == (2, 100)
        assert clip["estimated_total_seconds"] > clip["total_seconds"]


def test_frames(result: dict[str, Any]) -> None:
    assert set(result["frames"]) == {"latent_shift", "latent_vdm"}
    for row in result["frames"].values():
        assert set(row) == {"2", "4", "linear_fit"}
        assert row["4"]["seconds"] > 0
        assert row["linear_fit"]["seconds_per_frame"] > 0


def test_floors(result: dict[str, Any]) -> None:
    rates = result["rates"]
    assert 1e9 < rates["matrix_flop_per_s"] < 1e15
    assert 1e8 < rates["copy_bytes_per_s"] < 1e13
    for name in MEASURED:
        row = result["forward"][name]
        assert row["floor_seconds"] * rates["matrix_flop_per_s"] == pytest.approx(row["flops"])
        assert row["floor_seconds"] < row["seconds"]


def test_where_the_time_goes(result: dict[str, Any]) -> None:
    assert list(result["profile"]) == ["latent_shift", "latent_vdm", "unet2d"]
    for shares in result["profile"].values():
        assert sum(shares.values()) == pytest.approx(1)
        assert {"convolutions", "matrix products", "norms", "activations"} <= set(shares)
        assert shares.get("rest", 0) < 0.5  # of a tiny network much is bookkeeping
        assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_the_operation_alone(result: dict[str, Any]) -> None:
    preset = find_benchmark_preset("tiny")
    widths = list(enumerate(preset.unet["block_out_channels"]))
    for operation in ("shift", "shift, norm, SiLU"):
        rows = [row for row in result["ops"] if (row["operation"], row["backend"]) == (operation, "eager")]
        sides = [preset.unet["sample_size"] >> level for level, _ in widths]
        assert [(row["channels"], row["side"]) for row in rows] == [
            (channels, side) for (_, channels), side in zip(widths, sides, strict=True)
        ]
        for row in rows:
            assert row["bytes"] == 2 * 4 * preset.num_frames * row["channels"] * row["side"] ** 2
            assert row["floor_seconds"] == pytest.approx(row["bytes"] / result["rates"]["copy_bytes_per_s"])
            assert row["seconds_range"][0] <= row["seconds"] <= row["seconds_range"][1]
    whole, part = (
        sum(row["seconds_range"][0] for row in result["ops"] if row["operation"] == operation)
        for operation in ("shift, norm, SiLU", "shift")
    )
    assert whole > part


def test_what_the_shift_adds(result: dict[str, Any]) -> None:
    shift = result["shift"]
    assert shift["blocks"] == 4 + 2 + 2 * 4  # one block a level going down, two in the middle, two a level going up
    assert shift["seconds_range"][0] <= shift["seconds"] <= shift["seconds_range"][1]
    assert abs(shift["seconds"]) < sum(result["forward"]["latent_shift"]["rounds"])


def test_it_says_on_what_and_how(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    assert (result["preset"], result["dtype"]) == ("tiny", "float32")
    assert {"torch", "diffusers"} <= set(result["versions"])
    assert result["machine"]["threads"] >= 1
    assert result["device"].startswith("cpu: ")
    assert "2 rounds" in " ".join(result["protocol"])
    assert "the rate of products of 2048 x 2048 matrices" in " ".join(result["protocol"])
    assert matrix_size(torch.device("cuda")) == 8192


def test_the_report(result: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    write_report(result, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "forward.png", "frames.png", "results.json"]
    assert json.loads((folder / "results.json").read_text()) == result
    for name in ("forward.png", "frames.png"):
        with Image.open(folder / name) as image:
            assert image.format == "PNG"
    page = (folder / "README.md").read_text()
    for name in MEASURED:
        assert f"\n| {MODELS[name]} | " in page
    assert "## Where the time of a forward goes" in page
    assert "the shifts of the 14 ResNet blocks add " in page
    assert page.count("| shift, norm, SiLU | eager |") == len(find_benchmark_preset("tiny").unet["block_out_channels"])
    assert "Not measured: the same, compiled: not asked for; ModelScope" in page
    assert all(line in page for line in result["protocol"])


def test_the_units_of_the_report(result: dict[str, Any]) -> None:
    shown = copy.deepcopy(result)
    shown["forward"]["latent_shift"] |= {
        **{"parameters": 1_645_572, "flops": 2.5e12, "seconds": 0.25, "seconds_range": [0.2, 0.5]},
        **{"floor_seconds": 0.125, "ratio_to_unet2d": 1.01, "ratio_to_unet2d_range": [1.0, 1.02]},
        **{"peak_memory_bytes": 3 * 2**29, "memory_format": "contiguous"},
    }
    shown["ops"] = [
        {**{"operation": "shift", "backend": "eager", "channels": 320, "side": 32, "floor_seconds": 2e-6}}
        | {"seconds": 3e-5, "seconds_range": [2.5e-5, 4e-5]}
    ]
    shown["rates"] = {"matrix_flop_per_s": 1.5e12, "copy_bytes_per_s": 2e10}
    page = to_markdown(shown)
    row = "1.6 M | 2.5 | 0.25 (0.2 to 0.5) | 0.125 | 1.010 (1.000 to 1.020) | 1.50 GiB | contiguous |"
    assert f"\n| {MODELS['latent_shift']} | {row}\n" in page
    assert "\n| shift | eager | 320 | 32 | 30 (25 to 40) | 2 |\n" in page
    assert "At most 1.5 TFLOP a second in matrix products, and 20 GB a second in copies." in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ("unet4d",)}, "models must be among latent_shift, .*, got 'unet4d'"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"sweep_frames": (4,)}, r"sweep_frames must be two numbers of frames or more, got \(4,\)"),
        ({"sweep_frames": (4, 0)}, r"sweep_frames must be two numbers of frames or more, got \(4, 0\)"),
        ({"op_rounds": -1}, "op_rounds must be at least 0, got -1"),
        ({"clip_steps": 101}, "clip_steps must be between 1 and steps, 100, got 101"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BenchmarkOptions(**changes)


@pytest.mark.slow
def test_peak_memory_is_that_of_one_network() -> None:
    ballast = bytearray(2**28)  # this process's memory is not counted
    small = peak_memory("latent_shift", "tiny", "cpu", "float32", "contiguous")
    assert small is not None
    assert 4 * 1_645_572 <= small < len(ballast)
    with pytest.raises(LatentShiftError, match="peak memory of latent_shift could not be measured"):
        peak_memory("latent_shift", "tiny", "nowhere", "float32", "contiguous")


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_run")
def test_the_shift_costs_less_than_the_text_that_is_not_repeated() -> None:
    """Forward, and forward and backward, against as many images in diffusers' own U-Net, in turns.

    Without the checks of types and shapes that tests add to each call: they cost a quarter of this network's forward.
    """
    options = BenchmarkOptions(
        models=("latent_shift",), rounds=7, train_rounds=5, compile=False, clip_rounds=0, sweep_rounds=0, memory=False
    )
    measured = benchmark("small", options, "cpu", "bf16")
    for part in ("forward", "training"):
        ours, floor = (measured[part][name] for name in ("latent_shift", "unet2d"))
        # Two estimates, which other processes move in different ways; what is really slower moves both.
        least = min(ours["rounds"]) / min(floor["rounds"])
        assert min(least, ours["ratio_to_unet2d"]) <= 1.05, part
